"""The image beside the one of the deployment guide, both built from this project: size, rebuild, time until ready.

Needs Docker; run by hand: .venv/bin/python -m bench.image
"""

import json
import secrets
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BASE = "python:3.11-slim"
NAME = f"bt1-bench-{secrets.token_hex(4)}"
STARTS = 7

# As the guide has it. Its context is the checkout, as it has no .dockerignore.
GUIDE = """\
FROM python:3.11-slim
ENV PYTHONDONTWRITEBYTECODE=1
ENV PYTHONUNBUFFERED=1
WORKDIR /app
RUN apt-get update && apt-get install -y \\
    postgresql-client \\
    && rm -rf /var/lib/apt/lists/*
COPY requirements.txt .
RUN pip install --no-cache-dir -r requirements.txt
COPY . .
RUN python manage.py collectstatic --noinput
EXPOSE 8000
CMD ["gunicorn", "--bind", "0.0.0.0:8000", "backstagetest1.wsgi:application"]
"""


def docker(*words: str) -> str:
    done = subprocess.run(["docker", *words], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"docker {' '.join(words)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout.strip()


def checkout(folder: Path) -> Path:
    """What git has of this project, without its history."""
    folder.mkdir()
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode()
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


def seconds(action: Callable[[], object]) -> float:
    began = time.monotonic()
    action()
    return time.monotonic() - began


def size(image: str) -> float:
    """Megabytes over the base image."""
    return (int(docker("inspect", "-f", "{{.Size}}", image)) - int(docker("inspect", "-f", "{{.Size}}", BASE))) / 1e6


def ready(image: str, environment: list[str]) -> float:
    """Seconds from `docker run` to the first 200 of /health/ready/."""
    began = time.monotonic()
    words = ("--network", NAME, "--publish", "127.0.0.1::8000", "--cpus", "1", "--memory", "768m")
    container = docker("run", "--detach", *words, *environment, image)
    try:
        url = f"http://{docker('port', container, '8000')}/health/ready/"
        while True:
            try:
                with urllib.request.urlopen(url, timeout=2) as answer:
                    if answer.status == 200:
                        return time.monotonic() - began
            except (OSError, urllib.error.HTTPError):
                pass
            if time.monotonic() - began > 60:
                sys.exit(f"{image} is not ready after a minute:\n{docker('logs', container)}")
            time.sleep(0.01)
    finally:
        docker("rm", "--force", container)


def measure(folder: Path) -> None:
    ours, guide = checkout(folder / "ours"), checkout(folder / "guide")
    (guide / ".dockerignore").unlink()
    (guide / "Dockerfile").write_text(GUIDE)
    images = {"ours": (ours, f"{NAME}:ours"), "guide": (guide, f"{NAME}:guide")}
    figures: dict[str, dict[str, float]] = {name: {} for name in images}
    for name, (source, tag) in images.items():
        print(f"building {name} ...", file=sys.stderr)
        docker("build", "--quiet", "--tag", tag, str(source))
        figures[name]["MB over the base"] = size(tag)
        with (source / "accounts" / "models.py").open("a") as code:
            code.write(f"# {secrets.token_hex(8)}\n")
        figures[name]["s to rebuild after a change of code"] = seconds(
            lambda: docker("build", "--quiet", "--tag", tag, str(source))
        )

    docker("network", "create", NAME)
    password = secrets.token_hex(16)
    docker(
        "run", "--detach", "--name", NAME, "--network", NAME, "--env", f"POSTGRES_PASSWORD={password}", "postgres:18"
    )
    values = {
        "DJANGO_SETTINGS_MODULE": "settings.production",
        "SECRET_KEY": secrets.token_urlsafe(50),
        "DATABASE_URL": f"postgresql://postgres:{password}@{NAME}:5432/postgres",
        "REDIS_URL": f"redis://{NAME}:6379/1",
    }
    environment = [word for name, value in values.items() for word in ("--env", f"{name}={value}")]
    while (
        "accepting"
        not in subprocess.run(
            ["docker", "exec", NAME, "pg_isready", "-h", "127.0.0.1"], capture_output=True, text=True
        ).stdout
    ):
        time.sleep(0.5)
    docker("run", "--rm", "--network", NAME, *environment, images["ours"][1], "python", "manage.py", "migrate")
    times: dict[str, list[float]] = {name: [] for name in images}
    for start in range(STARTS):  # by turns: machines are noisy
        print(f"start {start + 1} of {STARTS} ...", file=sys.stderr)
        for name, (_, tag) in images.items():
            times[name].append(ready(tag, environment))
    for name in images:
        figures[name]["s until ready (median)"] = statistics.median(times[name])

    print("| | ours | the guide's | ours / the guide's |\n| --- | --- | --- | --- |")
    for label, value in figures["ours"].items():
        other = figures["guide"][label]
        print(f"| {label} | {value:.1f} | {other:.1f} | {value / other:.2f} |")
    print(json.dumps({"starts": times}), file=sys.stderr)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        try:
            measure(Path(folder))
        finally:
            subprocess.run(["docker", "rm", "--force", "--volumes", NAME], capture_output=True)
            subprocess.run(["docker", "network", "rm", NAME], capture_output=True)
            subprocess.run(["docker", "image", "rm", "--force", f"{NAME}:ours", f"{NAME}:guide"], capture_output=True)


if __name__ == "__main__":
    main()
