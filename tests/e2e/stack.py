"""The stack as a user gets it, for the tests that ./run e2e runs: in a clone, with a name and ports of its own.

Also a pytest plugin: the image is built once, and a stack comes up from nothing for the modules that ask for one.
"""

import http.client
import io
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any, Self

import pytest
from PIL import Image

from tests.support.servers import PATIENCE, ROOT, eventually, free_port

PASSWORD = "correct horse battery staple"
LABEL = f"bt1-e2e-{os.getpid()}"


def docker(*words: str, check: bool = True, **options: Any) -> str:
    """Runs docker and returns what it prints on standard output; an error is raised with what it said."""
    done: Any = subprocess.run(["docker", *words], capture_output=True, text=True, **options)
    if check and done.returncode:
        raise AssertionError(
            f"docker {' '.join(words)}: {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        )
    return str(done.stdout)


def clone(folder: Path) -> Path:
    """A copy of what the repository holds, as `git clone` would make it, and of changes not committed yet."""
    words = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(words, cwd=ROOT, capture_output=True, check=True)
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


def build(folder: Path, tag: str, *, version: str) -> str:
    """Builds the image from `folder` and returns its name."""
    name, began = f"{LABEL}:{tag}", time.monotonic()
    values = {"APP_VERSION": version, "APP_COMMIT": tag, "APP_CREATED": "2026-01-31T09:15:00+00:00"}
    arguments = [word for value in values.items() for word in ("--build-arg", "=".join(value))]
    docker("build", "--quiet", *arguments, "--tag", name, str(folder))
    say(f"image {tag} built in {time.monotonic() - began:.1f} s")
    return name


def say(text: str) -> None:
    """A figure, on the line of the test that it belongs to."""
    print(f"\n    {text}", end=" ", flush=True)


@dataclass
class Answer:
    """What came back. Header names are in lower case; of repeated headers the last is kept."""

    status: int
    headers: dict[str, str]
    body: bytes = field(repr=False)

    @property
    def text(self) -> str:
        return self.body.decode(errors="replace")

    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """A visitor: a connection for each request unless told, cookies kept, no redirect followed, nothing sent twice."""

    def __init__(self, port: int, host: str = "") -> None:
        self.port, self.host = port, host or f"localhost:{port}"
        self.cookies: dict[str, str] = {}
        self.link: http.client.HTTPConnection | None = None
        self.keep_alive = False

    def request(self, method: str, path: str, body: bytes | None = None, timeout: float = 30, **headers: str) -> Answer:
        """Raises what http.client raises when the connection breaks."""
        sent = {"Host": self.host} | {name.replace("_", "-"): value for name, value in headers.items()}
        if self.cookies:
            sent["Cookie"] = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        if not self.keep_alive:
            sent["Connection"] = "close"
        link = self.link or http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        self.link = None
        try:
            link.request(method, path, body, sent)
            response = link.getresponse()
            answer = Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
            for line in response.headers.get_all("Set-Cookie") or []:
                for name, morsel in SimpleCookie(line).items():
                    self.cookies[name] = morsel.value
        except BaseException:
            link.close()
            raise
        if self.keep_alive and not response.will_close:
            self.link = link
        else:
            link.close()
        return answer

    def get(self, path: str, **headers: str) -> Answer:
        return self.request("GET", path, None, 30, **headers)

    def token(self, path: str) -> str:
        """The token against forged requests in the form at `path`."""
        answer = self.get(path)
        found = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', answer.text)
        assert found, f"{path} has no form: {answer.status} {answer.text[:500]}"
        return found[1]

    def post(
        self, path: str, fields: Mapping[str, str | tuple[str, bytes]], *, token: str = "", **headers: str
    ) -> Answer:
        """Fills in and sends the form at `path`; a field that is a pair is a file's name and its content."""
        body, kind = multipart({"csrfmiddlewaretoken": token or self.token(path), **fields})
        return self.request("POST", path, body, 60, Content_Type=kind, **headers)

    def sign_up(self) -> str:
        """Makes an account, which is signed in then, and returns its address."""
        email = f"{secrets.token_hex(6)}@example.com"
        answer = self.post("/accounts/signup/", {"email": email, "password1": PASSWORD, "password2": PASSWORD})
        assert answer.status == 302, f"{answer.status} {answer.text[:3000]}"
        assert self.signed_in()
        return email

    def sign_in(self, email: str) -> Answer:
        return self.post("/accounts/login/", {"login": email, "password": PASSWORD})

    def signed_in(self) -> bool:
        """Whether the profile is shown, and not the way to sign in."""
        answer = self.get("/accounts/profile/")
        assert answer.status in (200, 302), f"{answer.status} {answer.text[:500]}"
        return answer.status == 200

    def rename(self, name: str, *, token: str = "", timeout: float = 30) -> Answer:
        body, kind = multipart({"csrfmiddlewaretoken": token or self.token("/accounts/profile/"), "display_name": name})
        return self.request("POST", "/accounts/profile/", body, timeout=timeout, Content_Type=kind)

    def give_avatar(self, content: bytes) -> Answer:
        return self.post("/accounts/profile/", {"display_name": "", "avatar": ("me.png", content)})

    def avatar(self) -> str:
        """The path of the picture on the profile's page."""
        found = re.search(r"/media/avatars/[0-9a-f]{32}\.webp", self.get("/accounts/profile/").text)
        assert found, "the profile shows no picture"
        return found[0]


def multipart(fields: Mapping[str, str | tuple[str, bytes]]) -> tuple[bytes, str]:
    """A form's body and its Content-Type: RFC 7578."""
    boundary = secrets.token_hex(16)
    body = b""
    for name, value in fields.items():
        text, content = value if isinstance(value, tuple) else ("", value.encode())
        body += f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"'.encode()
        if isinstance(value, tuple):
            body += f'; filename="{text}"\r\nContent-Type: image/png'.encode()
        body += b"\r\n\r\n" + content + b"\r\n"
    return body + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"


def picture(side: int = 300, noise: bool = False) -> bytes:
    """A PNG; `noise` makes one that no format can make small."""
    image = (
        Image.frombytes("RGB", (side, side), os.urandom(3 * side * side))
        if noise
        else Image.new("RGB", (side, side), "teal")
    )
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


@dataclass
class Load:
    """A steady load from several clients at once, with each answer recorded."""

    act: Callable[[int], Callable[[], int]]
    rate: int = 100  # requests a second, of all clients together
    clients: int = 8
    outcomes: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    began: float = 0.0
    seconds: float = 0.0

    def __enter__(self) -> Self:
        self.stop, self.lock = threading.Event(), threading.Lock()
        self.threads = [threading.Thread(target=self.run, args=(i,), daemon=True) for i in range(self.clients)]
        self.began = time.monotonic()
        for thread in self.threads:
            thread.start()
        return self

    def run(self, number: int) -> None:
        act, due = self.act(number), time.monotonic() + number / self.rate
        while not self.stop.wait(max(0.0, due - time.monotonic())):
            due += self.clients / self.rate
            began = time.monotonic()
            try:
                outcome = str(act())
            except (OSError, http.client.HTTPException) as error:
                outcome = type(error).__name__
            took = time.monotonic() - began
            with self.lock:
                self.outcomes[outcome] += 1
                self.slowest = max(self.slowest, took)

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join(PATIENCE)
        self.seconds = time.monotonic() - self.began

    @property
    def total(self) -> int:
        return self.outcomes.total()

    @property
    def failed(self) -> dict[str, int]:
        return {outcome: count for outcome, count in self.outcomes.items() if outcome not in ("200", "302")}

    def __str__(self) -> str:
        rate = self.total / self.seconds if self.seconds else 0
        return f"{self.total} requests at {rate:.0f}/s, {dict(self.outcomes)}, slowest {self.slowest:.2f} s"


def keep_alive(stack: "Stack", person: Client) -> Callable[[int], Callable[[], int]]:
    """For Load: strict clients that keep their connection and never look whether it is still there, nor try again.

    By turns a page for somebody signed in, which needs the database, and a POST, which nobody may repeat.
    """

    def start(_: int) -> Callable[[], int]:
        reader, sender, turn = stack.client(), stack.client(), [0]
        reader.cookies = dict(person.cookies)
        token = sender.token("/accounts/login/")
        reader.keep_alive = sender.keep_alive = True

        def act() -> int:
            turn[0] += 1
            if turn[0] % 2:
                return reader.get("/accounts/profile/").status
            return sender.post("/accounts/logout/", {}, token=token).status

        return act

    return start


class Stack:
    """docker compose, in a clone, with nothing set but ports that are free and names that collide with nobody's."""

    def __init__(self, folder: Path, name: str, image: str, **variables: str) -> None:
        self.folder, self.name = folder, f"{LABEL}-{name}"
        self.port, self.web_port, self.tls_port = free_port(), free_port(), free_port()
        self.variables = {"IMAGE": image, **variables}

    @property
    def environment(self) -> dict[str, str]:
        plain = {name: os.environ[name] for name in ("PATH", "HOME", "DOCKER_HOST") if name in os.environ}
        ports = {"HTTP_PORT": self.port, "WEB_PORT": self.web_port, "HTTPS_PORT": self.tls_port}
        return plain | {"COMPOSE_PROJECT_NAME": self.name, **{k: str(v) for k, v in ports.items()}, **self.variables}

    def compose(self, *words: str, check: bool = True, **options: Any) -> str:
        return docker("compose", *words, check=check, cwd=self.folder, env=self.environment, **options)

    def run(self, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """./run in the clone."""
        return subprocess.run(
            ["./run", *words], cwd=self.folder, env=self.environment, capture_output=True, text=True, **options
        )

    def use(self, repository: str) -> None:
        """Names the image's repository in environments.toml of the clone."""
        file = self.folder / "environments.toml"
        file.write_text(file.read_text().replace('image = "backstagetest1"', f'image = "{repository}"', 1))

    def up(self) -> Self:
        began = time.monotonic()
        try:
            self.compose("up", "--detach", "--wait", "--no-build")
        except AssertionError as error:
            logs = self.compose("logs", "--tail", "30", check=False)
            raise AssertionError(f"{error}\n{logs}") from None
        say(f"{self.name} up and healthy in {time.monotonic() - began:.1f} s")
        return self

    def close(self) -> None:
        self.variables.pop("TLS_DIR", None)  # compose forgets the volume that it stands for
        self.compose("--profile", "*", "down", "--volumes", "--remove-orphans", "--timeout", "5")

    def client(self, host: str = "") -> Client:
        """A visitor, who comes through nginx."""
        return Client(self.port, host)

    def direct(self, host: str = "") -> Client:
        """Somebody on this machine, who comes to gunicorn itself."""
        return Client(self.web_port, host)

    def container(self, service: str) -> str:
        return self.compose("ps", "--all", "--quiet", service).strip()

    def inspect(self, service: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(docker("inspect", self.container(service)))[0]
        return found

    def exec(self, service: str, *words: str, **options: Any) -> str:
        return self.compose("exec", "-T", service, *words, **options)

    def sql(self, statement: str) -> str:
        words = ("psql", "--username", "postgres", "--no-psqlrc", "--quiet", "--tuples-only", "--no-align")
        return self.exec("db", *words, "--dbname", "backstagetest1", "--command", statement).strip()

    def logs(self, service: str) -> list[dict[str, Any]]:
        """The lines of a service's log that are JSON."""
        lines = self.compose("logs", "--no-log-prefix", service).splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def ready(self) -> bool:
        return self.client().get("/health/").status == 200

    def serves(self, seconds: float = 60) -> float:
        """Waits until the home page is there, and returns after how many seconds it was."""
        began = time.monotonic()

        def home() -> bool:
            try:
                return self.client().get("/").status == 200
            except http.client.HTTPException as error:
                raise OSError(error) from error

        eventually(home, seconds=seconds, every=0.1)
        return time.monotonic() - began


def leftovers() -> list[str]:
    """The names of this run's containers, volumes, networks and images."""
    named = ["--filter", f"name={LABEL}"]
    found = [
        *docker("ps", "--all", *named, "--format", "{{.Names}}").split(),
        *docker("volume", "ls", *named, "--quiet").split(),
        *docker("network", "ls", *named, "--format", "{{.Name}}").split(),
        *images(),
    ]
    return found


def images() -> list[str]:
    """This run's images by their names: another run may have the same image under its own."""
    return docker("image", "ls", "--format", "{{.Repository}}:{{.Tag}}", LABEL).split()


@pytest.fixture(scope="session")
def checkout() -> Iterator[Path]:
    """A fresh clone."""
    with tempfile.TemporaryDirectory(prefix="bt1-e2e-") as folder:
        Path(folder).chmod(0o755)
        yield clone(Path(folder))


@pytest.fixture(scope="session")
def image(checkout: Path) -> Iterator[str]:
    """The image, built from the clone. At the end nothing is left of what the tests made, whatever became of them."""
    try:
        yield build(checkout, "one", version="1.0.0")
    finally:
        if made := images():
            docker("image", "rm", "--force", *made)
    assert not (left := leftovers()), f"not cleared up: {left}"


@pytest.fixture(scope="session")
def second(image: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An image of another release, 2.0.0: a change of code, and of the style sheet."""
    folder = clone(tmp_path_factory.mktemp("second"))
    with (folder / "accounts" / "models.py").open("a") as code, (folder / "static" / "style.css").open("a") as style:
        code.write(f"# {secrets.token_hex(8)}\n")
        style.write("\n:root { --release: two; }\n")
    return build(folder, "two", version="2.0.0")


@pytest.fixture(scope="session")
def stack(checkout: Path, image: str) -> Iterator[Stack]:
    """A stack that several modules share: a test leaves it as it found it."""
    with closing(Stack(checkout, "main", image)) as one:
        yield one


@contextmanager
def closing(stack: Stack) -> Iterator[Stack]:
    """`stack`, up from nothing, and gone at the end."""
    try:
        yield stack.up()
    finally:
        stack.close()


@pytest.fixture(scope="module")
def person(stack: Stack) -> Client:
    """Somebody with an account, signed in."""
    client = stack.client()
    client.sign_up()
    return client


# A run that is told to stop takes its containers with it.
signal.signal(signal.SIGTERM, lambda *_: pytest.exit("told to stop"))
# A shell starts what it runs in the background with SIGINT ignored, which all children would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)
