"""Environments on a real cluster, as docs/kubernetes.md has them created, each in a namespace of its own.

KUBECONFIG_E2E names the cluster: one whose nodes this machine reaches, such as kind's. KUBECONFIG_E2E_LOAD is the
command that gives it images of this machine's Docker; the default is kind's. KUBECONFIG_E2E_API_AWAY is a command that
stops its API server for 25 s or so.
"""

import http.client
import json
import os
import re
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.e2e.stack import LABEL, docker, say
from tests.support.servers import ROOT, eventually

APP = "backstagetest1"
REPOSITORY = f"{LABEL}/{APP}"
FIRST = "0.1.0"  # what the overlays begin with
POSTGRES, REDIS, NGINX = "postgres:18", "redis:7-alpine", "nginx:alpine"  # as in docker-compose.yml
HOSTS = {"staging": "staging.backstagetest1.com", "production": "backstagetest1.com"}
PORT = 8443

# As an ingress controller: TLS ends here, connections to the Service are kept, and nothing is sent twice.
NGINX_CONF = f"""\
worker_processes 1;
pid /tmp/nginx.pid;
error_log stderr warn;
events {{}}
http {{
  access_log off;
  client_body_temp_path /tmp/body;
  proxy_temp_path /tmp/proxy;
  fastcgi_temp_path /tmp/fastcgi;
  uwsgi_temp_path /tmp/uwsgi;
  scgi_temp_path /tmp/scgi;
  upstream app {{
    server {APP}:80;
    keepalive 32;
    keepalive_requests 100000;
  }}
  server {{
    listen 8080;
    listen {PORT} ssl;
    keepalive_requests 100000;
    ssl_certificate /etc/edge/tls.crt;
    ssl_certificate_key /etc/edge/tls.key;
    location / {{
      proxy_pass http://app;
      proxy_http_version 1.1;
      proxy_next_upstream off;
      proxy_set_header Connection "";
      proxy_set_header Host $http_host;
      proxy_set_header X-Forwarded-For $remote_addr;
      proxy_set_header X-Forwarded-Proto https;
      proxy_set_header X-Request-ID $request_id;
    }}
  }}
}}
"""


def pod(
    name: str, image: str, user: int, cpu: str, *, port: int = 0, folders: Iterable[str] = (), **container: Any
) -> list[Any]:
    """A Deployment of one pod that meets the `restricted` standard, and its Service if it has a port."""
    labels = {"app": name}
    mounts = [{"name": f"folder-{number}", "mountPath": path} for number, path in enumerate(folders)]
    volumes: list[Any] = [{"name": mount["name"], "emptyDir": {}} for mount in mounts]
    secret = container.pop("secret", "")
    if secret:
        mounts.append({"name": "secret", "mountPath": f"/etc/{name}"})
        volumes.append({"name": "secret", "secret": {"secretName": secret}})
    rights = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    app = {"name": name, "image": image, "imagePullPolicy": "IfNotPresent", "securityContext": rights}
    app["resources"] = {"requests": {"cpu": cpu}}  # without any it would starve beside the app's pods
    if port:
        app["readinessProbe"] = {"tcpSocket": {"port": port}, "periodSeconds": 1}
    person = {"runAsNonRoot": True, "runAsUser": user, "runAsGroup": user, "fsGroup": user}
    spec = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": 2,
        "securityContext": person | {"seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [app | {"volumeMounts": mounts} | container],
        "volumes": volumes,
    }
    template = {"metadata": {"labels": labels}, "spec": spec}
    deployment = {"selector": {"matchLabels": labels}, "template": template, "strategy": {"type": "Recreate"}}
    found: list[Any] = [thing("apps/v1", "Deployment", name, spec=deployment)]
    if port:
        found.append(thing("v1", "Service", name, spec={"selector": labels, "ports": [{"name": "main", "port": port}]}))
    return found


def thing(version: str, kind: str, name: str, **more: Any) -> dict[str, Any]:
    """An object of the API."""
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name}, **more}


@dataclass
class Request:
    """A line of visitors.py."""

    at: float  # seconds since 1970
    address: str
    method: str
    path: str
    outcome: str
    release: str
    revision: str

    @property
    def failed(self) -> bool:
        return self.outcome not in ("200", "302")

    def __str__(self) -> str:
        return f"{self.address} {self.method} {self.path} {self.outcome} of {self.release} {self.revision}"


@dataclass
class Moment:
    """When a command first prints a line with this text, something is done, once. Its process is passed."""

    text: str
    act: Callable[["subprocess.Popen[str]"], object]


def killed(process: "subprocess.Popen[str]") -> None:
    """As if the machine had failed: the command and all that it has started."""
    os.killpg(process.pid, signal.SIGKILL)


@dataclass
class Run:
    """A command that has ended, with the time (seconds since 1970) at which each of its lines came."""

    code: int
    lines: list[tuple[float, str]]
    began: float
    ended: float

    @property
    def said(self) -> str:
        return "\n".join(line for _, line in self.lines)

    @property
    def events(self) -> list[dict[str, Any]]:
        """What it printed with --json, with the time as `at`."""
        return [json.loads(line) | {"at": at} for at, line in self.lines if line.startswith("{")]

    @property
    def seconds(self) -> float:
        return self.ended - self.began


class Environment:
    """An environment of the clone in `folder`, named as in environments.toml."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name, self.namespace = folder, name, f"{LABEL}-{name}"
        self.host = HOSTS[name]
        self.switches: list[tuple[float, str]] = []  # when the Service came to select which colour
        self.over = threading.Event()  # set once the visitors are gone
        variables = {each: os.environ[each] for each in ("PATH", "HOME") if each in os.environ}
        self.variables = variables | {
            "KUBECONFIG": os.environ["KUBECONFIG_E2E"],
            "DJANGO_SETTINGS_MODULE": "settings.dev",
            "SSL_CERT_FILE": str(folder / f"{name}.crt"),
        }

    # Commands

    def kubectl(self, *words: str, given: str = "", check: bool = True) -> str:
        words = ("kubectl", "--namespace", self.namespace, *words)
        done = subprocess.run(words, env=self.variables, input=given, capture_output=True, text=True, timeout=600)
        assert not check or done.returncode == 0, f"{words}: {done.stdout[-2000:]}{done.stderr[-4000:]}"
        return done.stdout

    def apply(self, *things: Any) -> None:
        self.kubectl(
            "apply", "--filename", "-", given=json.dumps({"apiVersion": "v1", "kind": "List", "items": things})
        )

    def run(self, *words: str, when: Moment | None = None, path: str = "") -> Run:
        """Runs a command in the clone, as the leader of a process group of its own, with `path` before the PATH."""
        began, lines = time.time(), []
        variables = self.variables | {"PATH": f"{path}{self.variables['PATH']}"}
        with subprocess.Popen(
            words,
            cwd=self.folder,
            env=variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as process:
            assert process.stdout
            for line in process.stdout:
                lines.append((time.time(), line.rstrip("\n")))
                if when and when.text in line:
                    when.act(process)
                    when = None
        return Run(process.returncode, lines, began, time.time())

    def dying(self, at: str) -> str:
        """A folder with a kubectl that kills the command that calls it, and all that this has started, before it does
        what is said with these words: as if the machine had failed then. For the PATH, with the separator.
        """
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        program = folder / "kubectl"
        real = shutil.which("kubectl", path=self.variables["PATH"])
        program.write_text(f'#!/bin/sh\ncase " $* " in *"{at}"*) kill -KILL 0 ;; esac\nexec {real} "$@"\n')
        program.chmod(0o755)
        return f"{folder}:"

    def manage(self, *words: str, when: Moment | None = None, path: str = "") -> Run:
        return self.run(sys.executable, "manage.py", *words, when=when, path=path)

    def deploy(self, version: str, *words: str, when: Moment | None = None, path: str = "") -> Run:
        """manage.py deploy, of a release that the ledger has not seen elsewhere."""
        leave = ("--hotfix", "--reason", "Tried on a cluster") if self.name == "production" else ()
        commit = version.encode().hex().ljust(8, "0")
        words = ("deploy", version, "-e", self.name, "--json", "--commit", commit, *leave, *words)
        return self.manage(*words, when=when, path=path)

    def deploy_settings(self, commit: str, *words: str) -> Run:
        """manage.py deploy --config, of the version that is live."""
        leave = ("--hotfix", "--reason", "Tried on a cluster") if self.name == "production" else ()
        return self.manage("deploy", "--config", "-e", self.name, "--json", "--commit", commit, *leave, *words)

    def rollback(self, *words: str, when: Moment | None = None) -> Run:
        """scripts/rollback.sh, as an operator runs it."""
        version, *options = words
        return self.run("scripts/rollback.sh", version, self.namespace, "--yes", *options, when=when)

    @contextmanager
    def hosts(self, names: str) -> Iterator[None]:
        """With other ALLOWED_HOSTS in the overlay."""
        file = self.overlay / "kustomization.yaml"
        before = file.read_text()
        self.edit(file, r"ALLOWED_HOSTS=\S+", f"ALLOWED_HOSTS={names}")
        try:
            yield
        finally:
            file.write_text(before)

    def apply_again(self) -> Run:
        """Applies the overlay to what runs, as docs/kubernetes.md says."""
        return self.run("bash", "-euo", "pipefail", "-c", f"./run manifests {self.name} | kubectl apply -f -")

    # The environment

    def create(self) -> None:
        """Creates what docs/kubernetes.md says, in its order, with the stores and the proxy that it presumes."""
        began = time.monotonic()
        assert not self.kubectl("get", "namespace", self.namespace, "--ignore-not-found").strip(), self.namespace
        node = self.node = self.kubectl(
            "get", "nodes", "--output", "jsonpath={.items[0].status.addresses[?(@.type=='InternalIP')].address}"
        ).split()[0]
        self.adapt(node)
        self.kubectl("apply", "--filename", f"{self.overlay}/namespace.yaml")
        self.secrets(node)
        self.apply(*self.stores())
        self.kubectl("apply", "--kustomize", str(self.overlay))
        self.kubectl("rollout", "status", "deployment", "--selector", f"app={APP}", "--timeout=10m")
        self.apply(*self.edge())
        self.kubectl("rollout", "status", "deployment/edge", "--timeout=3m")
        port = self.kubectl("get", "service", "edge", "--output", "jsonpath={.spec.ports[0].nodePort}")
        self.edit(
            self.folder / "environments.toml",
            rf'(?s)(\[{self.name}\]\n.*?\n)url = "[^"]*"(.*?)namespace = "[^"]*"',
            rf'\1url = "https://{node}:{port}"\2namespace = "{self.namespace}"',
        )
        if self.name == "production":  # nobody is here to approve
            self.edit(self.folder / "environments.toml", r"\napprovals = 1\n", "\n")
        self.manage("migrate", "--verbosity", "0")
        say(f"{self.name} on the cluster after {time.monotonic() - began:.0f} s")

    @property
    def overlay(self) -> Path:
        return self.folder / "k8s" / "overlays" / self.name

    def adapt(self, node: str) -> None:
        """Names the namespace, the image and one more host in the overlay."""
        for file in ("kustomization.yaml", "namespace.yaml"):
            self.edit(self.overlay / file, f"{APP}-{self.name}", self.namespace)
        self.edit(self.overlay / "kustomization.yaml", r"(ALLOWED_HOSTS=\S+)", rf"\1,{node}")
        self.edit(
            self.overlay / "kustomization.yaml", f"(  - name: {APP}\n)(    newTag)", rf"\1    newName: {REPOSITORY}\n\2"
        )

    def edit(self, file: Path, pattern: str, new: str) -> None:
        """Replaces what matches, and fails if nothing does."""
        text, count = re.subn(pattern, new, file.read_text())
        assert count, f"{pattern} not found in {file}"
        file.write_text(text)

    def secrets(self, node: str) -> None:
        self.password = secrets.token_hex(16)
        database = f"postgresql://postgres:{self.password}@postgres:5432/postgres"
        key = self.folder / f"{self.name}.key"
        words = [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "1",
        ]
        words += ["-subj", "/CN=edge", "-addext", f"subjectAltName=IP:{node},DNS:{self.host}"]
        words += ["-keyout", str(key), "-out", self.variables["SSL_CERT_FILE"]]
        subprocess.run(words, check=True, capture_output=True)
        app = {"database-url": database, "redis-url": "redis://redis:6379/1", "secret-key": secrets.token_urlsafe(50)}
        edge = {"tls.crt": Path(self.variables["SSL_CERT_FILE"]).read_text(), "tls.key": key.read_text()}
        self.apply(
            thing("v1", "Secret", f"{APP}-secrets", stringData=app),
            thing("v1", "Secret", f"{APP}-migrate", stringData={"database-url": database}),
            thing("v1", "Secret", "edge", stringData=edge | {"nginx.conf": NGINX_CONF}),
        )

    def stores(self) -> list[Any]:
        """PostgreSQL and Redis, with nothing that outlives the namespace."""
        password = [{"name": "POSTGRES_PASSWORD", "value": self.password}, {"name": "PGDATA", "value": "/data/18"}]
        folders = ("/data", "/var/run/postgresql")
        postgres = pod(
            "postgres", POSTGRES, 999, "100m", port=5432, folders=folders, env=password, args=["-cfsync=off"]
        )
        return [*postgres, *pod("redis", REDIS, 999, "25m", port=6379, folders=("/data",))]

    def edge(self) -> list[Any]:
        """nginx and the visitors, whom the network policies let in."""
        command = ["nginx", "-c", "/etc/edge/nginx.conf", "-g", "daemon off;"]
        nginx = pod("edge", NGINX, 101, "50m", port=8080, folders=("/tmp",), secret="edge", command=command)
        nginx[1]["spec"] |= {
            "type": "NodePort",
            "ports": [{"name": "tls", "port": PORT}, {"name": "plain", "port": 8080}],
        }
        program = (ROOT / "tests" / "e2e" / "visitors.py").read_text()
        addresses = (f"{APP}:80", "edge:8080")
        visitors = pod(
            "visitors", f"{REPOSITORY}:{FIRST}", 10001, "50m", command=["python", "-c", program, self.host, *addresses]
        )
        visitors[0]["spec"]["replicas"] = 0
        ours = {"podSelector": {"matchExpressions": [{"key": "app", "operator": "In", "values": ["edge", "visitors"]}]}}
        allowed = {"ingress": [{}], "egress": [{}], "policyTypes": ["Ingress", "Egress"]}
        inside = {"podSelector": {"matchLabels": {"app": APP}}, "ingress": [{"from": [ours]}]}
        return [
            *nginx,
            *visitors,
            thing("networking.k8s.io/v1", "NetworkPolicy", "edge", spec=ours | allowed),
            thing("networking.k8s.io/v1", "NetworkPolicy", "edge-to-app", spec=inside | {"policyTypes": ["Ingress"]}),
        ]

    def delete(self) -> None:
        self.kubectl("delete", "namespace", self.namespace, "--ignore-not-found", "--wait=false", check=False)

    # What is seen

    def requests(self) -> list[Request]:
        """What the visitors have seen so far."""
        lines = (line.split() for line in self.kubectl("logs", "deployment/visitors", "--tail=-1").splitlines())
        return [Request(float(at), *rest) for at, *rest in lines]

    def settle(self) -> None:
        """Waits until no request has failed for some seconds, and each Deployment has what it wants."""

        def calm() -> bool:
            lately = [each for each in self.requests() if each.at > time.time() - 5]
            return bool(lately) and not any(each.failed for each in lately)

        eventually(calm, every=1)
        for name in self.kubectl("get", "deployments", "--selector", f"app={APP}", "--output", "name").split():
            self.kubectl("rollout", "status", name, "--timeout=3m")

    def errors(self) -> str:
        """What the app's pods have logged as errors of late, each message once."""
        words = ("logs", "--selector", f"app={APP}", "--container", APP, "--tail", "1000", "--prefix")
        found = (line.partition("{") for line in self.kubectl(*words, check=False).splitlines())
        logged = (json.loads(brace + rest) for _, brace, rest in found if brace and rest.endswith("}"))
        counts = Counter(
            f"{each['message']} {each.get('exception', '')[-300:]}" for each in logged if each["level"] == "ERROR"
        )
        return "\n".join(f"{count} x {text}" for text, count in counts.most_common(5))

    @contextmanager
    def visited(self) -> Iterator[None]:
        """With visitors all the while, and with a note of each switch."""
        self.kubectl("scale", "deployment/visitors", "--replicas=1")
        self.kubectl("rollout", "status", "deployment/visitors", "--timeout=3m")
        note = threading.Thread(target=self.note, daemon=True)
        note.start()
        try:
            eventually(lambda: len(self.requests()) > 100, every=1)
            yield
        finally:
            self.over.set()
            note.join()
        self.kubectl("scale", "deployment/visitors", "--replicas=0")

    def note(self) -> None:
        """Notes each switch until the visitors have gone. An API server that goes away ends a watch."""
        words = ["kubectl", "--namespace", self.namespace, "get", "service", APP, "--watch", "--output"]
        words.append(r'jsonpath={.spec.selector.colour}{"\n"}')
        while not self.over.wait(0.5):
            pipe, quiet = subprocess.PIPE, subprocess.DEVNULL
            with subprocess.Popen(words, env=self.variables, stdout=pipe, stderr=quiet, text=True) as watch:
                end = threading.Thread(target=lambda one: (self.over.wait(), one.kill()), args=(watch,), daemon=True)
                end.start()
                for line in watch.stdout or ():
                    if not self.switches or self.switches[-1][1] != line.strip():
                        self.switches.append((time.time(), line.strip()))

    def tasks(self) -> set[str]:
        """What the scheduled tasks run with: image and ConfigMap of each."""
        return self.sources("cronjobs", "tasks", ".spec.jobTemplate")

    def live(self) -> set[str]:
        """What the pods with the traffic run with: image and ConfigMap of their Deployment."""
        colour = self.switches[-1][1] if self.switches else ""
        return self.sources(f"deployment/{APP}{f'-{colour}' if colour else ''}", "", "")

    def sources(self, what: str, part: str, template: str) -> set[str]:
        container = f"{template}.spec.template.spec.containers[0]"
        form = f"{{{container}.image}} {{{container}.envFrom[0].configMapRef.name}}{{'\\n'}}"
        words = ("--selector", f"app={APP}-{part}") if part else ()
        form = f"{{range .items[*]}}{form}{{end}}" if part else form
        return set(self.kubectl("get", what, *words, "--output", f"jsonpath={form}").splitlines())

    @contextmanager
    def busy(self, pods: int, cpu: str) -> Iterator[None]:
        """With so many pods that take all the CPU they get, each by a request of `cpu`."""
        command = ["python", "-c", "while True: pass"]
        (found,) = pod("busy", f"{REPOSITORY}:{FIRST}", 10001, cpu, command=command)
        found["spec"]["replicas"] = pods
        self.apply(found)
        self.kubectl("rollout", "status", "deployment/busy", "--timeout=3m")
        try:
            yield
        finally:
            self.kubectl("delete", "deployment", "busy", "--wait=true", "--timeout=2m")


class Pair(Environment):
    """Production with a database per colour, in two servers whose roles are those of scripts/database.sh."""

    servers = {"blue": "postgres", "green": "postgres-green"}

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, "production")
        self.namespace = f"{LABEL}-pair"
        self.passwords = {role: secrets.token_hex(16) for role in (APP, f"{APP}_owner")}

    def adapt(self, node: str) -> None:
        shutil.copytree(ROOT / "k8s", self.folder / "k8s", dirs_exist_ok=True)  # another environment has changed them
        shutil.copy(ROOT / "environments.toml", self.folder)
        super().adapt(node)
        file = self.overlay / "kustomization.yaml"
        self.edit(file, "(  - ../../components/)blue-green\n", r"\g<0>\1two-databases\n")
        rates = "".join(f"\n      - API_RATE_PER_{each}=100000" for each in ("TOKEN", "ADDRESS"))
        self.edit(file, r"ALLOWED_HOSTS=\S+", rf"\g<0>{rates}")

    def secrets(self, node: str) -> None:
        super().secrets(node)
        for secret, role in ((f"{APP}-secrets", APP), (f"{APP}-migrate", f"{APP}_owner")):
            urls = {
                f"database-url-{colour}": f"postgresql://{role}:{self.passwords[role]}@{server}:5432/{APP}"
                for colour, server in self.servers.items()
            }
            patch = {"stringData": urls, "data": {"database-url": None}}
            self.kubectl("patch", "secret", secret, "--type", "merge", "--patch", json.dumps(patch))
        self.apply(*self.stores())
        program = (ROOT / "scripts" / "database.sh").read_text()
        for role, password in (("owner", self.passwords[f"{APP}_owner"]), ("app", self.passwords[APP])):
            program = program.replace(f"`cat /run/secrets/{role}_password`", f"'{password}'")
        for server in self.servers.values():
            self.kubectl("rollout", "status", f"deployment/{server}", "--timeout=5m")
            self.kubectl("exec", "--stdin", f"deployment/{server}", "--", "bash", given=program)

    def stores(self) -> list[Any]:
        found = super().stores()
        (blue,) = [each for each in found if (each["kind"], each["metadata"]["name"]) == ("Deployment", "postgres")]
        options = ["-cfsync=off", "-cwal_level=logical", "-cmax_slot_wal_keep_size=1GB"]
        blue["spec"]["template"]["spec"]["containers"][0]["args"] = options
        one = json.dumps([each for each in found if each["metadata"]["name"] == "postgres"])
        green: list[Any] = json.loads(one.replace('"postgres"', '"postgres-green"'))
        return found + green

    def ask(self, colour: str, statement: str) -> list[str]:
        """The lines that a colour's database answers with."""
        words = ("psql", "--username", "postgres", "--dbname", APP, "-qtAc", statement)
        return self.kubectl("exec", f"deployment/{self.servers[colour]}", "--", *words).splitlines()

    def writable(self) -> list[str]:
        """The colours whose database accepts writes."""
        return [each for each in self.servers if self.ask(each, "select last_value from bg.fence") == ["1"]]

    @contextmanager
    def written(self) -> Iterator["Writers"]:
        """With writers all the while."""
        words = ("api_token", "create", "writer", "--environment", self.name, "--register")
        pod = f"deployment/{APP}-blue"
        token = self.kubectl("exec", pod, "--container", APP, "--", "python", "manage.py", *words).split()[-1]
        form = "jsonpath={.spec.ports[?(@.name=='plain')].nodePort}"
        port = int(self.kubectl("get", "service", "edge", "--output", form))
        writers = Writers(self.node, port, self.host, token)
        try:
            eventually(lambda: len(writers.rows) > 20, every=1)
            yield writers
        finally:
            writers.end()


class Writers:
    """Clients that send each row once, and write down which were acknowledged."""

    def __init__(self, node: str, port: int, host: str, token: str) -> None:
        self.address, self.host, self.token = (node, port), host, token
        self.rows: list[str] = []
        self.outcomes: Counter[str] = Counter()
        self.longest = 0.0  # seconds that an acknowledged write took
        self.over = threading.Event()
        self.threads = [threading.Thread(target=self.write, daemon=True) for _ in range(4)]
        for thread in self.threads:
            thread.start()

    @property
    def failed(self) -> dict[str, int]:
        return {outcome: count for outcome, count in self.outcomes.items() if outcome != "201"}

    def write(self) -> None:
        link = http.client.HTTPConnection(*self.address, timeout=30)
        headers = {"Host": self.host, "Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        while not self.over.wait(0.1):
            key, began = f"row-{secrets.token_hex(8)}", time.monotonic()
            row = {"version": key, "commit": secrets.token_hex(20), "built_at": "2026-03-01T12:00:00+00:00"}
            try:
                link.request("POST", "/api/releases", json.dumps(row), headers)
                with link.getresponse() as answer:
                    answer.read()
                    outcome = str(answer.status)
            except (OSError, http.client.HTTPException) as error:
                outcome = type(error).__name__
                link.close()
            self.outcomes[outcome] += 1
            if outcome == "201":
                self.rows.append(key)
                self.longest = max(self.longest, time.monotonic() - began)

    def end(self) -> None:
        self.over.set()
        for thread in self.threads:
            thread.join(60)


def load(*names: str) -> None:
    """Gives the cluster images of this machine."""
    words = shlex.split(os.environ.get("KUBECONFIG_E2E_LOAD") or "kind load docker-image")
    done = subprocess.run([*words, *names], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{words}: {done.stdout[-1000:]}{done.stderr[-2000:]}"


def release(image: str, version: str, script: str = "true") -> str:
    """Makes an image of that version from `image`, by a shell script that spoils it, and gives it to the cluster."""
    name = f"{REPOSITORY}:{version}"
    content = f"FROM {image}\nUSER 0\nRUN {script}\nUSER 10001:10001\nENV APP_VERSION={version}\n"
    docker("build", "--quiet", "--tag", name, "-", input=content)
    load(name)
    return version


def table(rows: list[tuple[str, ...]]) -> str:
    """Text columns under the first row's headings."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)
