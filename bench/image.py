"""The image beside the one of the deployment guide, both built from this project: size, rebuild, time until ready."""

import secrets
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from statistics import median

from bench.measure import Options, goal, say, table
from tests.support.servers import ROOT

BASE = "python:3.11-slim"
NAME = f"bt1-bench-{secrets.token_hex(4)}"
SMALL = 0.60  # goal: share of the size, over the base image, of docs/guide.md's image

# The Dockerfile of docs/guide.md. Its context is the checkout, because the guide has no .dockerignore.
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
        raise RuntimeError(f"docker {' '.join(words)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
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
                raise RuntimeError(f"{image} is not ready after a minute:\n{docker('logs', container)}")
            time.sleep(0.01)
    finally:
        docker("rm", "--force", container)


def measure(folder: Path, starts: int) -> str:
    ours, guide = checkout(folder / "ours"), checkout(folder / "guide")
    (guide / ".dockerignore").unlink()
    (guide / "Dockerfile").write_text(GUIDE)
    images = {"ours": (ours, f"{NAME}:ours"), "guide": (guide, f"{NAME}:guide")}
    sizes, rebuilt = {}, {}
    for name, (source, tag) in images.items():
        say(f"image: building {name}")
        docker("build", "--quiet", "--tag", tag, str(source))
        sizes[name] = size(tag)
        with (source / "accounts" / "models.py").open("a") as code:
            code.write(f"# {secrets.token_hex(8)}\n")
        rebuilt[name] = seconds(lambda: docker("build", "--quiet", "--tag", tag, str(source)))

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
    migrate = ("python", "manage.py", "migrate_release", "--wait", "60")
    docker("run", "--rm", "--network", NAME, *environment, images["ours"][1], *migrate)
    times: dict[str, list[float]] = {name: [] for name in images}
    for start in range(starts):
        say(f"image: start {start + 1} of {starts}")
        for name, (_, tag) in list(images.items())[:: -1 if start % 2 else 1]:
            times[name].append(ready(tag, environment))
    both = zip(times["ours"], times["guide"], strict=True)
    share, faster = sizes["ours"] / sizes["guide"], median(mine / theirs for mine, theirs in both)
    goals = f"{goal(f'size ≤ {SMALL:g} × guide', share <= SMALL)}; {goal('ready ≤ 1.0 × guide', faster <= 1)}"
    rows = [
        [name, f"{sizes[name]:.0f} MB", *sized, f"{rebuilt[name]:.1f} s", f"{median(times[name]):.2f} s", *started]
        for name, sized, started in (
            ("guide", ["1.00"], ["1.00", ""]),
            ("ours", [f"{share:.2f}"], [f"{faster:.2f}", goals]),
        )
    ]
    head = ["", "over the base image", "× guide", "rebuilt after a change of code", "ready", "× guide", "goals"]
    return (
        f"One processor and 768 MB each; {starts} starts in turn, from `docker run` to the first 200 of "
        "/health/ready/.\n\n" + table(head, rows)
    )


def possible() -> bool:
    """Whether an engine answers."""
    try:
        return not subprocess.run(["docker", "info"], capture_output=True, timeout=20).returncode
    except (OSError, subprocess.TimeoutExpired):
        return False


def run(options: Options) -> str:
    if not possible():
        raise RuntimeError("no Docker engine answers: docker info")
    with tempfile.TemporaryDirectory() as folder:
        try:
            return measure(Path(folder), options.times(9, 2))
        finally:
            subprocess.run(["docker", "rm", "--force", "--volumes", NAME], capture_output=True)
            subprocess.run(["docker", "network", "rm", NAME], capture_output=True)
            subprocess.run(["docker", "image", "rm", "--force", f"{NAME}:ours", f"{NAME}:guide"], capture_output=True)
