"""What every release must do before it gets the traffic, asked of each of its instances from inside."""

import json
import re
import time
from collections.abc import Callable, Sequence

from deploy.errors import StepFailed
from deploy.targets.probe import HEALTH, PAGES, Answer, late, problem

SLOW = 2.0  # seconds for a page, when it is asked for once more
ROUNDS = 3  # several workers answer, and the first answer of each is not its fastest
CERTAIN = 5.0  # seconds for which an answer that is late is asked for again: once may be the machine's fault
ASSET = re.compile(r'"(/static/[^"?#]+\.[a-z0-9]+)"')
NEEDED = ("http_requests_total", "http_request_duration_seconds_bucket", "app_info")  # what the watch lives on


def test(ask: Callable[[Sequence[str]], list[Answer]], version: str) -> str:
    """Asks one instance for its health, version, pages, an asset and metrics. Returns a note. Raises StepFailed."""
    found: dict[str, Answer] = {}
    for answer in ask(PAGES * ROUNDS):
        until = time.monotonic() + CERTAIN
        while late(answer) and time.monotonic() < until:
            time.sleep(1)
            (answer,) = ask([answer.path])
        if said := problem(answer):
            raise StepFailed(f"{said}, not 200.")
        found[answer.path] = answer
    for path in PAGES:
        if found[path].seconds > SLOW:
            raise StepFailed(f"{path} took {found[path].seconds:.1f} s, more than {SLOW:g} s.")
    metrics = found["/metrics"].body
    for name in NEEDED:
        if f"\n{name}{{" not in metrics:
            raise StepFailed(f"/metrics has no {name}.")
    same_version(found[HEALTH].body, metrics, version)
    asset = ASSET.search(found["/accounts/login/"].body)
    if not asset:
        raise StepFailed("/accounts/login/ names no file below /static/.")
    (file,) = ask([asset[1]])
    if file.status != 200 or not file.body:
        raise StepFailed(f"{asset[1]}, which the sign-in page needs, answered {file.status or file.error}.")
    slowest = max(found[path].seconds for path in PAGES)
    return f"healthy, version {version}, {len(PAGES)} pages and an asset, the slowest in {1000 * slowest:.0f} ms"


def same_version(health: str, metrics: str, version: str) -> None:
    """Raises StepFailed unless the instance says that it is `version`, or was built from the commit of that name."""
    said = str(json.loads(health).get("version", ""))
    commit = re.search(r'^app_info\{[^}]*commit="([0-9a-f]{7,64})"', metrics, re.MULTILINE)
    by_commit = re.fullmatch(r"[0-9a-f]{7,64}", version) and commit and commit[1].startswith(version)
    if said != version and not by_commit:
        raise StepFailed(
            f"It says that it is version {said or 'unknown'}, not {version}: the image is not what its tag says."
        )
