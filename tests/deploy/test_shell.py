"""What the deployer shows of a release's log."""

import json
import subprocess

from deploy.shell import telling_lines
from tests.support.servers import ROOT

SCRIPT = (ROOT / "scripts" / "rollback.sh").read_text()


def request(status: int, path: str = "/") -> str:
    return json.dumps({"logger": "gunicorn.access", "message": "request", "path": path, "status": status})


def by_bash(log: str) -> str:
    """What the function of the same name in scripts/rollback.sh leaves."""
    function = SCRIPT.partition("\ntelling_lines() {")[2].partition("\n}\n")[0]
    words = ("bash", "-c", f"telling_lines() {{{function}\n}}\ntelling_lines")
    return subprocess.run(words, input=log, capture_output=True, text=True, check=True, timeout=60).stdout.strip()


def test_of_a_log_the_last_lines_are_shown_without_requests_that_were_answered_and_probes() -> None:
    error = json.dumps({"logger": "django.request", "message": "Internal Server Error: /", "status_code": 500})
    probe = json.dumps({"logger": "django.request", "message": "Service Unavailable: /health/ready/"})
    others = [error, request(500), "not JSON", "[1]", '"text"', '{"logger": "gunicorn.error"}']
    served = [request(status) for status in [200, 302, 404] * 50]
    log = "\n".join([*others, *served, request(503, "/health/ready/"), probe])
    for read in (telling_lines, by_bash):
        assert read(log).splitlines() == others
        assert read("\n".join(map(str, range(30)))).splitlines() == [str(number) for number in range(10, 30)]
        assert read(request(200)) == ""
