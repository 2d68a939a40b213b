#!/usr/bin/env python3
"""./run demo: releases under load, with a database per colour, and what it cost whoever was there.

In a copy of the repository, with a stack, ports and images of its own, of which nothing is left at the end. It needs
Docker and Python's own library, and prints what it counted; --picture FILE keeps the picture.
"""

import argparse
import http.client
import json
import math
import os
import re
import secrets
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
WRITERS, READERS, INSERTERS = 4, 2, 4
PASSWORD = "correct horse battery staple"
PAUSE = 0.1  # seconds between two requests of a visitor
NAMES_PAUSE = 4.0  # seconds between two changes of a name, of which each account has 20 a minute
# Of the picture; GitHub shows it in its page's colours.
STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#57606a}.t{font-size:14px;fill:#1f2328}.b{fill:#eef1f4}"
    ".d{fill:#0969da;opacity:.55}.m{stroke:#cf222e;stroke-width:1.5}.g{stroke:#d8dee4}"
    "@media(prefers-color-scheme:dark){text{fill:#9198a1}.t{fill:#f0f6fc}.b{fill:#21262d}.d{fill:#58a6ff}"
    ".g{stroke:#30363d}}"
)
NEAR = 2.0  # seconds around a switch in which its gap is looked for

# What the releases change: a model's column with its migration, and answers that take 1.5 s.
COLUMN = """
import pathlib
folder = pathlib.Path("/app/accounts/migrations")
last = max(path.stem for path in folder.glob("0*.py"))
(folder / "9000_motto.py").write_text(f'''from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("accounts", "{last}")]
    operations = [migrations.AddField("user", "motto", models.CharField(max_length=50, null=True))]
''')
with open("/app/accounts/models.py", "a") as file:
    file.write('User.add_to_class("motto", models.CharField(max_length=50, null=True))\\n')
"""
SLOW = """
with open("/app/backstagetest1/wsgi.py", "a") as file:
    file.write('''
import time
fast = application
def application(environ, start_response):
    if "HTTP_X_REQUEST_ID" in environ:  # only what comes through nginx, so no test notices
        time.sleep(1.5)
    return fast(environ, start_response)
''')
"""


class Client:
    """A visitor with a connection that is kept, who sends nothing twice."""

    def __init__(self, port: int) -> None:
        self.host, self.cookies = f"localhost:{port}", dict[str, str]()
        self.link = http.client.HTTPConnection("127.0.0.1", port, timeout=30)

    def request(self, method: str, path: str, body: str | None = None, **headers: str) -> tuple[int, str]:
        """The status and the text of the answer. Raises OSError and HTTPException."""
        sent = {"Host": self.host, **{name.replace("_", "-"): value for name, value in headers.items()}}
        sent |= {"Cookie": "; ".join(map("=".join, self.cookies.items()))} if self.cookies else {}
        self.link.request(method, path, body, sent)
        answer = self.link.getresponse()
        text = answer.read().decode(errors="replace")
        for line in answer.headers.get_all("Set-Cookie") or []:
            name, _, value = line.partition(";")[0].partition("=")
            self.cookies[name] = value
        return answer.status, text

    def token(self, path: str) -> str:
        """The token against forged requests, in the form at `path`."""
        found = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', self.request("GET", path)[1])
        return found[1] if found else ""

    def post(self, path: str, token: str, **fields: str) -> tuple[int, str]:
        """Sends a form."""
        mark = secrets.token_hex(8)
        parts = {"csrfmiddlewaretoken": token, **fields}.items()
        body = "".join(
            f'--{mark}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n' for name, value in parts
        )
        return self.request("POST", path, f"{body}--{mark}--\r\n", Content_Type=f"multipart/form-data; boundary={mark}")


class Load:
    """Visitors who read, write, and write down what was acknowledged. All that they send is counted."""

    def __init__(self, port: int, token: str, *, share: int = 1) -> None:
        """`share` divides the number of visitors."""
        self.port, self.api_token = port, token
        self.outcomes: Counter[str] = Counter()
        self.writes: list[tuple[float, float]] = []  # of each acknowledged write: when, and the seconds it took
        self.rows: list[str] = []  # the keys of acknowledged rows
        self.names: dict[str, str] = {}  # by account, the name that was acknowledged last
        self.forgotten = 0  # names that the next page did not show
        self.lock, self.stopped = threading.Lock(), threading.Event()
        kinds = ((self.writer, WRITERS), (self.reader, READERS), (self.inserter, INSERTERS))
        self.threads = [
            threading.Thread(target=self.visit, args=(kind,), daemon=True)
            for kind, count in kinds
            for _ in range(count // share)
        ]

    def __enter__(self) -> "Load":
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        for thread in self.threads:
            thread.join(60)

    @property
    def failed(self) -> dict[str, int]:
        return {name: count for name, count in self.outcomes.items() if name not in ("200", "201", "302")}

    def visit(self, kind: Callable[[Client], Iterator[float]]) -> None:
        """Goes on until the end, over a new connection after each that broke, which counts as failed."""
        while not self.stopped.is_set():
            try:
                for pause in kind(Client(self.port)):
                    if self.stopped.wait(pause):
                        return
            except (OSError, http.client.HTTPException) as error:
                self.count(type(error).__name__)

    def count(self, outcome: str) -> None:
        with self.lock:
            self.outcomes[outcome] += 1

    def written(self, began: float, status: int) -> bool:
        """Counts a write. Returns whether it was acknowledged."""
        self.count(str(status))
        good = status in (201, 302)
        if good:
            with self.lock:
                self.writes.append((time.time(), time.time() - began))
        return good

    def reader(self, client: Client) -> Iterator[float]:
        while True:
            for path in ("/", "/accounts/login/"):
                self.count(str(client.request("GET", path)[0]))
                yield PAUSE

    def writer(self, client: Client) -> Iterator[float]:
        """Changes a name, and looks whether it is there."""
        email = f"{secrets.token_hex(6)}@example.com"
        words = {"email": email, "password1": PASSWORD, "password2": PASSWORD}
        self.count(str(client.post("/accounts/signup/", client.token("/accounts/signup/"), **words)[0]))
        path, number = "/accounts/profile/", 0
        token = client.token(path)
        while True:
            number += 1
            name, began = f"{email[:6]} {number}", time.time()
            if self.written(began, client.post(path, token, display_name=name)[0]):
                self.names[email] = name
                status, page = client.request("GET", path)
                self.count(str(status))
                self.forgotten += status == 200 and f'value="{name}"' not in page
            yield NAMES_PAUSE

    def inserter(self, client: Client) -> Iterator[float]:
        """Registers releases, which are rows with a key, each sent once."""
        headers = {"Authorization": f"Bearer {self.api_token}", "Content_Type": "application/json"}
        while True:
            key = f"row-{secrets.token_hex(8)}"
            release = {"version": key, "commit": secrets.token_hex(20), "built_at": "2026-03-01T12:00:00+00:00"}
            began = time.time()
            if self.written(began, client.request("POST", "/api/releases", json.dumps(release), **headers)[0]):
                self.rows.append(key)
            yield PAUSE


class Stack:
    """docker compose in a copy of the repository, under a name and on ports of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.name = folder, f"bt1-demo-{os.getpid()}"
        names = ("HTTP_PORT", "HTTPS_PORT", "WEB_PORT")
        self.ports = {name: free_port() for name in names}
        many = {"API_RATE_PER_TOKEN": "100000", "API_RATE_PER_ADDRESS": "100000"}
        two = {"COMPOSE_PROFILES": "two-databases", "DATABASE_PER_COLOUR": "true"}
        self.env = os.environ | {name: str(port) for name, port in self.ports.items()} | many | two
        self.env |= {"COMPOSE_PROJECT_NAME": self.name, "IMAGE": f"{self.name}:1.0.0", "ENVIRONMENT": "development"}
        for variable in ("LEDGER_URL", "LEDGER_TOKEN", "ENVIRONMENTS_FILE", "DATABASE_URL"):
            self.env.pop(variable, None)

    def run(self, *words: str, given: str = "") -> str:
        """What a program prints. Raises SystemExit with what it said if it fails."""
        done = subprocess.run(words, cwd=self.folder, env=self.env, input=given, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(words)[:200]} failed:\n{(done.stdout + done.stderr)[-3000:]}")
        return done.stdout

    def build(self) -> None:
        """The images: 1.0.0 of the working tree, and the releases made from it."""
        self.run(
            "docker",
            "build",
            "--quiet",
            "--build-arg",
            "APP_VERSION=1.0.0",
            "--build-arg",
            f"APP_COMMIT={'1.0.0'.encode().hex()}",
            "--tag",
            f"{self.name}:1.0.0",
            ".",
        )
        for version, base, change in (
            ("1.1.0", "1.0.0", "pass"),
            ("2.0.0", "1.1.0", COLUMN),
            ("2.1.0", "2.0.0", SLOW),
        ):
            commit = version.encode().hex()
            program = f"exec(bytes.fromhex('{change.encode().hex()}'))"
            self.run(
                *("docker", "build", "--quiet", "--tag", f"{self.name}:{version}", "-"),
                given=f'FROM {self.name}:{base}\nUSER 0\nRUN python -c "{program}"\n'
                f"USER 10001:10001\nENV APP_VERSION={version} APP_COMMIT={commit}\n"
                f"LABEL org.opencontainers.image.revision={commit}\n",
            )

    def up(self) -> None:
        self.run("docker", "compose", "--progress", "quiet", "up", "--detach", "--wait", "--no-build")
        self.run("docker", "compose", "exec", "-T", "web", "python", "manage.py", "record_release", "--actor", "demo")

    def down(self) -> None:
        words = ("docker", "compose", "--progress", "quiet", "--profile", "*", "down", "--volumes", "--timeout", "5")
        subprocess.run(words, cwd=self.folder, env=self.env, capture_output=True)
        images = [f"{self.name}:{version}" for version in ("1.0.0", "1.1.0", "2.0.0", "2.1.0")]
        subprocess.run(("docker", "image", "rm", "--force", *images), capture_output=True)

    def token(self) -> str:
        """A token for the ledger's API."""
        words = ("python", "manage.py", "api_token", "create", "demo", "--environment", "development", "--register")
        return self.run("docker", "compose", "exec", "-T", "web", *words).strip()

    def manage(self, *words: str, expected: int = 0) -> list[dict[str, Any]]:
        """The events of manage.py deploy or rollback, each step shown as it ends."""
        print(f"\n$ manage.py {' '.join(words)}", flush=True)
        command = (sys.executable, "manage.py", *words, "--json")
        events = []
        with subprocess.Popen(
            command, cwd=self.folder, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout and process.stderr
            for line in process.stdout:
                events.append(event := json.loads(line))
                if event["event"] == "step" and event["outcome"] != "running":
                    sign = "+" if event["outcome"] == "succeeded" else "x"
                    print(f"{sign} {event['name']:<16} {event['seconds']:5.1f} s  {event['note']}", flush=True)
            said = process.stderr.read()
        if process.returncode != expected:
            raise SystemExit(f"It ended with {process.returncode}, expected {expected}.\n{said}{events[-5:]}")
        print(events[-1].get("why") or f"{events[-1]['version']}: {events[-1]['result']}", flush=True)
        return events

    def sql(self, service: str, statement: str) -> str:
        words = ("psql", "--username", "postgres", "--dbname", "backstagetest1", "-qtAc", statement)
        return self.run("docker", "compose", "exec", "-T", service, *words).strip()


def prepare(folder: Path) -> None:
    """Lets the API have as many requests as all visitors send together, as they have one address."""
    file = folder / "nginx.conf"
    text = file.read_text()
    wider = text.replace("zone=api:10m rate=10r/s", "zone=api:10m rate=500r/s")
    if wider == text:
        raise SystemExit("nginx.conf has no limit of the API as the demonstration expects it.")
    file.write_text(wider)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


@contextmanager
def copy() -> Iterator[Path]:
    """A copy of what the repository holds, changes that are not committed included."""
    with tempfile.TemporaryDirectory(prefix="bt1-demo-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        words = ("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
        for path in subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0"):
            if path and (ROOT / path).is_file():
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / path, folder / path)
        yield folder


def moments(events: list[dict[str, Any]]) -> tuple[float, float, list[float]]:
    """When a command began and ended, and when the writes moved meanwhile."""
    times = [datetime.fromisoformat(each["time"]).timestamp() for each in events]
    moved = [
        at
        for at, each in zip(times, events)
        if each["event"] == "step" and "takes the writes, which" in str(each.get("note"))
    ]
    return times[0], times[-1], moved


def gaps(writes: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """When each gap between two acknowledged writes ended, and its seconds."""
    times = sorted(at for at, _ in writes)
    return [(after, after - before) for before, after in zip(times, times[1:])]


def picture(load: Load, phases: list[tuple[str, float, float]], moves: list[float], summary: str) -> str:
    """Each acknowledged write as a dot: when, and how long it took. Commands are bands, moves of the writes lines."""
    width, height, left, top = 960, 300, 68, 64
    begin, end = min(at for at, _ in load.writes), max(at for at, _ in load.writes)
    longest = 2.0

    def x(at: float) -> float:
        return left + (at - begin) / (end - begin) * (width - left - 16)

    def y(took: float) -> float:  # a square root shows both 10 ms and 1 s
        return top + (height - top - 36) * (1 - math.sqrt(min(1.0, took / longest)))

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-label="{summary}">',
        f"<style>{STYLE}</style>",
        f'<text class="t" x="{left}" y="20">{summary}</text>',
    ]
    for name, began, ended in phases:
        parts.append(
            f'<rect class="b" x="{x(began):.1f}" y="{top - 22}" width="{x(ended) - x(began):.1f}" '
            f'height="{height - top - 14}"/><text x="{x(began) + 4:.1f}" y="{top - 8}">{name}</text>'
        )
    for took in (0.01, 0.1, 0.5, 1.0, 2.0):
        parts.append(
            f'<line class="g" x1="{left}" x2="{width - 16}" y1="{y(took):.1f}" y2="{y(took):.1f}"/>'
            f'<text x="{left - 6}" y="{y(took) + 4:.1f}" text-anchor="end">{took * 1000:.0f} ms</text>'
        )
    for at in moves:
        parts.append(f'<line class="m" x1="{x(at):.1f}" x2="{x(at):.1f}" y1="{top}" y2="{height - 36}"/>')
    for at, took in load.writes:
        parts.append(f'<circle class="d" cx="{x(at):.1f}" cy="{y(took):.1f}" r="1.3"/>')
    for second in range(0, int(end - begin) + 1, 20 if end - begin < 300 else 60):
        parts.append(f'<text x="{x(begin + second):.1f}" y="{height - 10}" text-anchor="middle">{second} s</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def tell(stack: Stack, load: Load, done: Mapping[str, list[dict[str, Any]]], file: Path) -> dict[str, Any]:
    """Counts what is there, prints it and draws it. Returns the figures."""
    keys = set(load.rows)
    found: dict[str, Counter[str]] = {}
    for service in ("db", "db_green"):
        rows = stack.sql(service, "select version from ledger_release where version like 'row-%'").split()
        found[service] = Counter(rows)
    names = dict(
        line.split("|", 1) for line in stack.sql("db", "select email, display_name from accounts_user").splitlines()
    )
    lost = {service: len(keys - rows.keys()) for service, rows in found.items()}
    lost_names = sum(names.get(email) != name for email, name in load.names.items())
    marks = {name: moments(events) for name, events in done.items()}
    moves = [at for *_, each in marks.values() for at in each]
    between = gaps(load.writes)
    near = [max((gap for at, gap in between if abs(at - move) < NEAR), default=0.0) for move in moves]
    rest = sorted(gap for at, gap in between if all(abs(at - move) >= NEAR for move in moves))
    held = [
        float(took) / 1000
        for events in done.values()
        for each in events
        if each["event"] == "step"
        for took in re.findall(r"held for (\d+) ms", str(each.get("note")))
    ]
    figures: dict[str, Any] = {
        "requests": load.outcomes.total(),
        "failed": sum(load.failed.values()),
        "failures": load.failed,
        "writes": len(load.writes),
        "rows": len(keys),
        "lost": lost["db"] + lost_names + load.forgotten,
        "doubled": sum(count - 1 for count in found["db"].values()),
        "missing_on_the_other_side": lost["db_green"],
        "database_switches": len(moves),
        "held_ms": [round(each * 1000) for each in held],
        "gap_ms": [round(each * 1000) for each in near],
        "usual_gap_ms": round(statistics.median(rest) * 1000) if rest else None,
        "usual_gap_max_ms": round(rest[-1] * 1000) if rest else None,
    }
    summary = (
        f"{figures['requests']} requests, {figures['failed']} failed; {figures['writes']} acknowledged writes, "
        f"{figures['lost']} lost; {len(moves)} switches of the database, writes held for at most "
        f"{max(figures['held_ms'], default=0)} ms"
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    phases = [(name, began, ended) for name, (began, ended, _) in marks.items()]
    file.write_text(picture(load, phases, moves, summary))
    print(f"\n{summary}.")
    if load.failed:
        print(f"Failed: {load.failed}")
    print(
        f"Longest gap between two acknowledged writes around each switch: {figures['gap_ms']} ms; otherwise median "
        f"{figures['usual_gap_ms']} ms, longest {figures['usual_gap_max_ms']} ms."
    )
    print(f"Rows of the database that serves: each of {len(keys)} keys once. Picture: {file}")
    return figures


def main() -> int:
    """Runs the demonstration. Returns 1 if a request failed or a row is lost or doubled."""
    parser = argparse.ArgumentParser(prog="./run demo", description="Releases under load, with a database per colour.")
    parser.add_argument("--picture", type=Path, default=ROOT / "var" / "demo.svg", metavar="FILE", help="where to")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to a file as well")
    parser.add_argument("--short", action="store_true", help="without the first release, with half the visitors")
    options = parser.parse_args()
    began = time.monotonic()
    with copy() as folder:
        prepare(folder)
        stack = Stack(folder)
        environments = folder / "environments.toml"
        environments.write_text(
            environments.read_text().replace('image = "backstagetest1"', f'image = "{stack.name}"', 1)
        )
        try:
            print("Building the images and starting the stack, with two databases ...", flush=True)
            stack.build()
            stack.up()
            print(
                f"Up after {time.monotonic() - began:.0f} s, on http://localhost:{stack.ports['HTTP_PORT']}", flush=True
            )
            per_colour = ("-e", "development", "--strategy", "blue-green", "--database", "per-colour")
            done: dict[str, list[dict[str, Any]]] = {}
            with Load(stack.ports["HTTP_PORT"], stack.token(), share=2 if options.short else 1) as load:
                time.sleep(2)
                if not options.short:
                    done["1.1.0, one database"] = stack.manage("deploy", "1.1.0", *per_colour[:4], "--watch", "3")
                done["2.0.0, its own database"] = stack.manage("deploy", "2.0.0", *per_colour, "--watch", "3")
                done["rollback"] = stack.manage("rollback", "-e", "development", "--reason", "To show a rollback")
                done["2.1.0, which is slow"] = stack.manage("deploy", "2.1.0", *per_colour, "--watch", "30", expected=5)
                time.sleep(1)
            figures = tell(stack, load, done, options.picture)
        finally:
            stack.down()
    figures["seconds"] = round(time.monotonic() - began)
    print(f"Took {figures['seconds']} s. Nothing is left of the stack.")
    if options.json:
        options.json.write_text(json.dumps(figures) + "\n")
    return int(bool(figures["failed"] or figures["lost"] or figures["doubled"] or figures["missing_on_the_other_side"]))


if __name__ == "__main__":
    sys.exit(main())
