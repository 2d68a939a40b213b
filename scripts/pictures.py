"""Makes the docs' pictures anew from the real commands.

    .venv/bin/python scripts/pictures.py [pages] [rollback]

pages      docs/screenshot.png and docs/insights.png: the board and the insights of ./run serve. Needs Chromium.
rollback   docs/rollback.svg and docs/rollback-still.svg: a release that is slow under traffic and is rolled back, in a
           stack of its own. Needs Docker. Fails if the recording does not show what the picture promises.

Both run a clone of the last commit on free ports, and remove it afterwards.
"""

import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright
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
    """Returns the exit code: 1 if a recorded command ended otherwise than expected, 2 for an unknown picture."""
    makers = {"pages": pages, "rollback": rollback}
    names = sys.argv[1:] or list(makers)
    if unknown := set(names) - set(makers):
        print(f"Unknown picture {unknown.pop()!r}; choose from {', '.join(makers)}", file=sys.stderr)
        return 2
    for name in names:
        with tempfile.TemporaryDirectory(prefix="backstagetest1-") as place:
            folder = Path(place) / "backstagetest1"
            subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
            (folder / ".venv").symlink_to((ROOT / ".venv").resolve())
            environment = {key: os.environ[key] for key in ("PATH", "HOME", "DOCKER_HOST") if key in os.environ}
            if code := makers[name](folder, environment):
                return code
    return 0


def pages(folder: Path, environment: dict[str, str]) -> int:
    """Photographs the board and the insights for a member, as they are soon after the first ./run serve."""
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    server = subprocess.Popen(
        ["./run", "serve"], cwd=folder, env={**environment, "PORT": str(port)}, start_new_session=True
    )
    try:
        with sync_playwright() as playwright:
            arguments = ["--no-sandbox"] if os.geteuid() == 0 else []  # its sandbox refuses to be started by root
            browser = playwright.chromium.launch(executable_path=program, args=arguments)
            page = browser.new_page(base_url=url, viewport={"width": 1280, "height": 1080}, reduced_motion="reduce")
            while not answers(url):
                if server.poll() is not None:
                    return 1  # it has said why
                time.sleep(0.2)
            page.goto("/accounts/login/")
            page.get_by_label("Email").fill("demo@example.com")
            page.get_by_label("Password").fill("backstage-demo")
            page.get_by_role("button", name="Sign in").click()
            page.wait_for_url(f"{url}/**")
            for path, file in (("/", "screenshot.png"), ("/insights/", "insights.png")):
                page.goto(path)
                photo = Image.open(io.BytesIO(page.screenshot()))
                photo.convert("RGB").quantize(96, dither=Image.Dither.NONE).save(ROOT / "docs" / file, optimize=True)
            browser.close()
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()
    return 0


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url):
            return True
    except OSError:
        return False


def rollback(folder: Path, environment: dict[str, str]) -> int:
    """Records the deployment of a slow release. Returns 1, and writes no picture, if it does not end as expected."""
    environment |= {"COMPOSE_PROJECT_NAME": "backstagetest1-pictures", "IMAGE": "backstagetest1-pictures:latest"}
    environment |= {"LOGNAME": "operator", "BUILDKIT_PROGRESS": "quiet"}
    environment |= dict(zip(("HTTP_PORT", "HTTPS_PORT", "WEB_PORT"), map(str, free_ports(3)), strict=True))

    def shell(command: str) -> None:
        subprocess.run(["bash", "-euc", command], cwd=folder, env=environment, check=True)

    try:
        shell("git config user.name backstagetest1 && git config user.email pictures@example.com")
        shell("sed -i 's/^image = .backstagetest1./image = \"backstagetest1-pictures\"/' environments.toml")
        shell("git commit --quiet --all --message 'Release 1.0.0' && git tag 1.0.0")
        shell("./run up")
        with (folder / "backstagetest1" / "wsgi.py").open("a") as file:
            file.write(SLOW)
        shell("git commit --quiet --all --message 'Greet everybody'")
        shell("./run image backstagetest1-pictures:warm")  # so that the recording is not about waiting for a build
        recording = Recording()
        for command, code, promised in (
            ("./run deploy 1.1.0", 5, r"\b0 of \d+ probe requests failed"),
            ("./run deployments", 0, "rolled back"),
        ):
            ended, shown = recording.run(command, speed=SPEED, folder=folder, environment=environment)
            print(shown)
            if ended != code or not re.search(promised, shown):
                print(f"{command}: exit code {ended}, expected {code} and {promised!r}. Nothing was drawn.")
                return 1
    finally:
        shell("docker compose --profile '*' down --volumes --remove-orphans --timeout 5 2>/dev/null")
        shell("docker image ls --format '{{.Repository}}:{{.Tag}}' backstagetest1-pictures | xargs -r docker image rm")
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
