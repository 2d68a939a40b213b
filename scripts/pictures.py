"""Records the docs' pictures anew from the real commands. Needs Docker.

    .venv/bin/python scripts/pictures.py

docs/rollback.svg and docs/rollback-still.svg show a release that is slow under traffic and is rolled back. They are
recorded in a stack of their own, which runs a clone of the last commit on free ports and is removed afterwards. The
script fails if the recording does not show what the picture promises.
"""

import os
import re
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from terminal_svg import Recording

ROOT = Path(__file__).resolve().parent.parent
TITLE = "A slow release, rolled back by itself (played three times as fast)"
SPEED = 3.0

# Makes the release slow for requests through nginx only, so that the smoke test passes.
SLOW = """
import time

from django.core.handlers.wsgi import WSGIHandler

resolve = WSGIHandler.resolve_request


def slowly(self, request):
    if "HTTP_X_REQUEST_ID" in request.META:
        time.sleep(1.5)
    return resolve(self, request)


WSGIHandler.resolve_request = slowly
"""


def main() -> int:
    """Returns the exit code: 1, and no picture is written, if a command ends otherwise than expected."""
    with tempfile.TemporaryDirectory(prefix="backstagetest1-") as name:
        folder = Path(name) / "backstagetest1"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
        (folder / ".venv").symlink_to((ROOT / ".venv").resolve())
        environment = {key: os.environ[key] for key in ("PATH", "HOME", "DOCKER_HOST") if key in os.environ}
        environment |= {"COMPOSE_PROJECT_NAME": "backstagetest1-pictures", "LOGNAME": "operator"}
        environment |= dict(zip(("HTTP_PORT", "HTTPS_PORT", "WEB_PORT"), map(str, free_ports(3)), strict=True))

        def shell(command: str) -> None:
            subprocess.run(["bash", "-euc", command], cwd=folder, env=environment, check=True)

        try:
            shell("APP_VERSION=1.0.0 ./run image backstagetest1-pictures:1.0.0")
            shell("IMAGE=backstagetest1-pictures:1.0.0 docker compose up --detach --wait --no-build")
            shell("./run manage migrate --verbosity 0")
            with (folder / "backstagetest1" / "wsgi.py").open("a") as file:
                file.write(SLOW)
            shell("git config user.name backstagetest1 && git config user.email pictures@example.com")
            shell("git commit --quiet --all --message 'Greet everybody'")
            shell("APP_VERSION=1.1.0 ./run image backstagetest1-pictures:1.1.0")
            shell('sed -i \'s/^image = "backstagetest1"/image = "backstagetest1-pictures"/\' environments.toml')
            recording = Recording()
            for command, code, promised in (
                (
                    "./run manage deploy 1.1.0 -e development --commit $(git rev-parse HEAD)",
                    5,
                    r"\b0 of \d+ probe requests failed",
                ),
                ("./run manage deployments -e development", 0, "rolled back"),
            ):
                ended, shown = recording.run(command, speed=SPEED, folder=folder, environment=environment)
                print(shown)
                if ended != code or not re.search(promised, shown):
                    print(f"{command}: exit code {ended}, expected {code} and {promised!r}. Nothing was drawn.")
                    return 1
        finally:
            shell("docker compose --profile '*' down --volumes --remove-orphans --timeout 5 2>/dev/null")
            shell("docker image rm --force backstagetest1-pictures:1.0.0 backstagetest1-pictures:1.1.0 >/dev/null")
    (ROOT / "docs" / "rollback.svg").write_text(recording.svg(TITLE))
    (ROOT / "docs" / "rollback-still.svg").write_text(recording.still().svg(TITLE))
    return 0


def free_ports(count: int) -> list[int]:
    """Returns TCP ports of 127.0.0.1 that are free now."""
    servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in servers]
    for server in servers:
        server.close()
    return ports


if __name__ == "__main__":
    sys.exit(main())
