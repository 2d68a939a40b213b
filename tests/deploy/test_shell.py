"""What the deployer shows of a release's log."""

import json

from deploy.shell import telling_lines


def request(status: int) -> str:
    return json.dumps({"logger": "gunicorn.access", "message": "request", "path": "/", "status": status})


def test_of_a_log_the_last_lines_are_shown_without_requests_that_were_answered() -> None:
    error = json.dumps({"logger": "django.request", "message": "Internal Server Error", "status": 500})
    others = [error, request(500), "not JSON", "[1]", '"text"', '{"logger": "gunicorn.access"}']
    log = "\n".join([*others, *(request(status) for status in [200, 302, 404] * 50)])
    assert telling_lines(log).splitlines() == others
    assert telling_lines("\n".join(map(str, range(30)))).splitlines() == [str(number) for number in range(10, 30)]
    assert telling_lines(request(200)) == ""
