"""What every release must do before it gets the traffic, asked of each of its instances from inside."""

import json
import re
import time
from collections.abc import Callable, Collection, Sequence

from deploy.targets.base import Answer, Failed
from health.client import doubtful

HEALTH = (
    "/health/"  # and not readiness, which stays once it was reached: what all instances share takes out none of them
)
PAGES = (HEALTH, "/", "/accounts/login/", "/metrics")
SLOW = 2.0  # seconds for a page, when it is asked for once more
ROUNDS = 3  # several workers answer, and the first answer of each is not its fastest
CERTAIN = 5.0  # seconds for which an answer that is late is asked for again: once may be the machine's fault
ASSET = re.compile(r'"(/static/[^"?#]+\.[a-z0-9]+)"')
NEEDED = ("http_requests_total", "http_request_duration_seconds_bucket", "app_info")  # what the watch lives on


def test(ask: Callable[[Sequence[str]], list[Answer]], version: str) -> str:
    """Asks one instance for its health, version, pages, an asset and metrics. Returns a note. Raises Failed."""
    found: dict[str, Answer] = {}
    for answer in ask(PAGES * ROUNDS):
        until = time.monotonic() + CERTAIN
        while late(answer) and time.monotonic() < until:
            time.sleep(1)
            (answer,) = ask([answer.path])
        if said := wrong(answer):
            raise Failed(f"{said}, not 200.")
        found[answer.path] = answer
    for path in PAGES:
        if found[path].seconds > SLOW:
            raise Failed(f"{path} took {found[path].seconds:.1f} s, more than {SLOW:g} s.")
    metrics = found["/metrics"].body
    for name in NEEDED:
        if f"\n{name}{{" not in metrics:
            raise Failed(f"/metrics has no {name}.")
    same_version(found[HEALTH].body, metrics, version)
    asset = ASSET.search(found["/accounts/login/"].body)
    if not asset:
        raise Failed("/accounts/login/ names no file below /static/.")
    (file,) = ask([asset[1]])
    if file.status != 200 or not file.body:
        raise Failed(f"{asset[1]}, which the sign-in page needs, answered {file.status or file.error}.")
    slowest = max(found[path].seconds for path in PAGES)
    return f"healthy, version {version}, {len(PAGES)} pages and an asset, the slowest in {1000 * slowest:.0f} ms"


def wrong(answer: Answer, needed: Collection[str] = ()) -> str:
    """What is wrong with the answer; empty if nothing is. With `needed` other checks of /health/ may fail."""
    if answer.status == 200:
        return ""
    if answer.status == 0:
        return f"{answer.path} {answer.error}"
    bad = {name: state for name, state in checks(answer).items() if state != "healthy"}
    if needed and bad and not bad.keys() & needed:
        return ""
    return f"{answer.path} answered {answer.status}" + "".join(f" ({name} is {state})" for name, state in bad.items())


def late(answer: Answer) -> bool:
    """Whether nothing more is known than that an answer, or what /health/ asks for, did not come in time."""
    return (answer.status == 0 and "timed out" in answer.error) or doubtful({"checks": checks(answer)})


def checks(answer: Answer) -> dict[str, str]:
    """The checks of a health report by name; none if the answer is not one."""
    try:
        found = json.loads(answer.body)["checks"] if answer.path == HEALTH else {}
        return {str(name): str(state) for name, state in found.items()}
    except (ValueError, TypeError, KeyError, AttributeError):
        return {}


def same_version(health: str, metrics: str, version: str) -> None:
    """Raises Failed unless the instance says that it is `version`, or was built from the commit of that name."""
    said = str(json.loads(health).get("version", ""))
    commit = re.search(r'^app_info\{[^}]*commit="([0-9a-f]{7,64})"', metrics, re.MULTILINE)
    by_commit = re.fullmatch(r"[0-9a-f]{7,64}", version) and commit and commit[1].startswith(version)
    if said != version and not by_commit:
        raise Failed(
            f"It says that it is version {said or 'unknown'}, not {version}: the image is not what its tag says."
        )
