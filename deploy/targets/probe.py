"""Requests to an instance from inside it: the program that sends them, and what the answers mean."""

import json
import math
import subprocess
from collections.abc import Collection
from dataclasses import dataclass, field

from deploy.errors import StepFailed
from deploy.shell import last_line
from health.client import inconclusive

HEALTH = "/health/"  # not readiness, which stays once it was reached: a shared dependency that is down takes out nobody
SLOW = 2.0  # seconds that a page may take
SLOWER = 3.0  # times what another release needs at the same moment: so much is the release's own fault
SHORT = "the node is short of CPU"
STARVED = 0.5  # of the seconds that an answer took: so much waiting for a CPU shows that the machine is short of it
PAGES = (HEALTH, "/", "/accounts/login/", "/metrics")  # what every release must answer


@dataclass(frozen=True)
class Answer:
    """What an instance answered to GET `path`. `status` is 0 if nothing came; `error` says then why. `waited` is how
    many seconds the instance's threads were ready to run meanwhile and got no CPU, or 0 where the kernel does not say.
    """

    path: str
    status: int
    seconds: float
    body: str = field(default="", repr=False)
    error: str = ""
    waited: float = 0.0


# Runs inside an instance, whatever release that is of, so it needs nothing but Python. It asks as the proxy in front
# does, so that the redirect to TLS is not in its way: over the proxy's socket, or from whichever of the instance's own
# addresses is among TRUSTED_PROXIES. It asks with the environment's public host, as visitors do: a host that is missing
# in ALLOWED_HOSTS gets 400. Without a public host, with the first of ALLOWED_HOSTS.
#
# What it measures of the CPU: the time that the cgroup was throttled for, by its limit, and the time that its threads
# stood in the scheduler's queues. https://docs.kernel.org/admin-guide/cgroup-v2.html,
# https://docs.kernel.org/scheduler/sched-stats.html
PROGRAM = r"""
import glob, http.client, json, os, re, socket, sys, time
address, host, paths = sys.argv[1], sys.argv[2], sys.argv[3:]
hosts = [name.strip().lstrip(".") for name in os.environ.get("ALLOWED_HOSTS", "").split(",") if name.strip()]
token, path = os.environ.get("METRICS_TOKEN", ""), os.environ.get("METRICS_TOKEN_FILE", "")
if path:
    token = open(path, encoding="utf-8-sig").read().strip()
ways = [address] if address.startswith("/") else ["127.0.0.1"]
try:
    ways += [] if address.startswith("/") else [socket.gethostbyname(socket.gethostname())]
except OSError:
    pass
def waited():
    found = {"throttled": 0, "queued": 0}
    for path, unit in (("/sys/fs/cgroup/cpu.stat", 1e6), ("/sys/fs/cgroup/cpu/cpu.stat", 1e9)):
        try:
            found["throttled"] = int(re.search(r"throttled_(?:usec|time) (\d+)", open(path).read())[1]) / unit
        except (OSError, TypeError):
            pass
    for path in glob.glob("/proc/[0-9]*/task/[0-9]*/schedstat"):
        try:
            found["queued"] += int(open(path).read().split()[1]) / 1e9
        except (OSError, ValueError, IndexError):
            pass
    return found
def ask(way, path):
    began, answer = time.monotonic(), {"path": path, "status": 0, "body": "", "error": ""}
    link = http.client.HTTPConnection(host or (hosts or ["localhost"])[0], timeout=5)
    try:
        if way.startswith("/"):
            link.sock = socket.socket(socket.AF_UNIX)
            link.sock.settimeout(5)
            link.sock.connect(way)
        else:
            link.sock = socket.create_connection((way, int(address)), 5)
        headers = {"X-Forwarded-Proto": "https", "Connection": "close"}
        if path == "/metrics":
            headers = {"Connection": "close", **({"Authorization": "Bearer " + token} if token else {})}
        link.request("GET", path, headers=headers)
        response = link.getresponse()
        answer["body"], answer["status"] = response.read(2_000_000).decode(errors="replace"), response.status
    except (OSError, http.client.HTTPException) as error:
        answer["error"] = str(error) or type(error).__name__
    finally:
        link.close()
    return answer | {"seconds": time.monotonic() - began}
before, began = waited(), time.monotonic()
for path in paths:
    answer = ask(ways[0], path)
    if answer["status"] in (301, 308) and len(ways) > 1:
        answer = ask(ways[1], path)
    now, ended = waited(), time.monotonic()
    share = answer["seconds"] / (ended - began)
    answer["waited"] = share * max(0, *(now[key] - before[key] for key in now))
    before, began = now, ended
    print(json.dumps(answer))
"""


def answers(done: subprocess.CompletedProcess[str]) -> list[Answer]:
    """What PROGRAM has printed. Raises StepFailed if it could not run."""
    if done.returncode:
        raise StepFailed(f"The instance did not answer: {last_line(done.stderr)}")
    return [Answer(**json.loads(line)) for line in done.stdout.splitlines() if line.startswith("{")]


def problem(answer: Answer, needed: Collection[str] = ()) -> str:
    """What is wrong with the answer; empty if nothing is. With `needed` other checks of /health/ may fail."""
    if answer.status == 200:
        return ""
    if answer.status == 0:
        return f"{answer.path} {answer.error}"
    bad = {name: state for name, state in checks(answer).items() if state != "healthy"}
    if needed and bad and not bad.keys() & needed:
        return ""
    if answer.status == 400:
        return f"{answer.path} answered 400 (is the environment's public host in ALLOWED_HOSTS?)"
    return f"{answer.path} answered {answer.status}" + "".join(f" ({name} is {state})" for name, state in bad.items())


def late(answer: Answer) -> bool:
    """Whether nothing more is known than that an answer, or what /health/ asks for, did not come in time."""
    return (answer.status == 0 and "timed out" in answer.error) or inconclusive({"checks": checks(answer)})


def checks(answer: Answer) -> dict[str, str]:
    """The checks of a health report by name; none if the answer is not one."""
    try:
        found = json.loads(answer.body)["checks"] if answer.path == HEALTH else {}
        return {str(name): str(state) for name, state in found.items()}
    except (ValueError, TypeError, KeyError, AttributeError):
        return {}


def starved(answer: Answer) -> bool:
    """Whether the instance waited for a CPU for much of the time that the answer took."""
    return answer.waited >= STARVED * answer.seconds > 0


def suffers(other: Answer, seconds: float) -> bool:
    """Whether what another release, or this one from inside, answered at the same moment explains an answer that took
    so many seconds.
    """
    return late(other) or other.seconds > SLOW or SLOWER * other.seconds >= seconds


def excuse(answer: Answer, other: Answer | None) -> str:
    """Why a failed or slow answer is not the release's own fault, as a clause; empty if it is.

    `other` is what an instance of another release answered to the same request at the same moment; None if there is
    none. Slowness is excused by slowness and an error by an error, but an error not by slowness. Without another
    release, slowness is excused by evidence that the machine is short of CPU.
    """
    if problem(answer) and not late(answer):
        alike = other and problem(other) and not late(other)
        return f"the other release fails as well ({other.status})" if other and alike else ""
    if other is None:
        return SHORT if starved(answer) else ""
    if suffers(other, answer.seconds if answer.status == 200 else math.inf):
        took = "is late" if late(other) else f"took {other.seconds:.1f} s"
        return SHORT if starved(answer) or starved(other) else f"the other release {took} as well"
    return ""
