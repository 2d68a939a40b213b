"""The smoke test: what each instance of a release must answer, from inside, before the release gets traffic."""

import json
import re
import time
from collections.abc import Callable, Sequence

from deploy.errors import StepFailed
from deploy.targets.probe import HEALTH, PAGES, Answer, late, problem

SLOW = 2.0  # seconds that a page may take in the last round
ROUNDS = 3  # several workers answer, and the first answer of each is not its fastest
RETRIED = 5.0  # seconds for which a late answer is asked for again: once may be the machine's fault
ASSET = re.compile(r'"(/static/[^"?#]+\.[a-z0-9]+)"')
NEEDED = ("http_requests_total", "http_request_duration_seconds_bucket", "app_info")  # metrics that watch.py reads


def test(ask: Callable[[Sequence[str]], list[Answer]], version: str) -> str:
    """Tests one instance: health, version, pages, an asset, metrics. `ask` sends it a GET for each path.

    Returns a note. Raises StepFailed.
    """
    found: dict[str, Answer] = {}
    for answer in ask(PAGES * ROUNDS):
        deadline = time.monotonic() + RETRIED
        while late(answer) and time.monotonic() < deadline:
            time.sleep(1)
            (answer,) = ask([answer.path])
        if reason := problem(answer):
            raise StepFailed(f"{reason}; expected 200.")
        found[answer.path] = answer
    for path in PAGES:
        if found[path].seconds > SLOW:
            raise StepFailed(f"{path} took {found[path].seconds:.1f} s, limit {SLOW:g} s.")
    metrics = found["/metrics"].body
    for name in NEEDED:
        if f"\n{name}{{" not in metrics:
            raise StepFailed(f"/metrics lacks {name}.")
    require_version(found[HEALTH].body, metrics, version)
    asset = ASSET.search(found["/accounts/login/"].body)
    if not asset:
        raise StepFailed("/accounts/login/ links no file under /static/.")
    (file,) = ask([asset[1]])
    if file.status != 200 or not file.body:
        raise StepFailed(f"{asset[1]}, which the sign-in page links, answered {file.status or file.error}.")
    slowest = max(found[path].seconds for path in PAGES)
    return f"healthy, version {version}; {len(PAGES)} pages and an asset, slowest {1000 * slowest:.0f} ms"


def require_version(health: str, metrics: str, version: str) -> None:
    """Raises StepFailed unless the instance reports `version`, or that it was built from the commit of that name.

    `health` is the body of /health/ and `metrics` that of /metrics.
    """
    reported = str(json.loads(health).get("version", ""))
    commit = re.search(r'^app_info\{[^}]*commit="([0-9a-f]{7,64})"', metrics, re.MULTILINE)
    by_commit = re.fullmatch(r"[0-9a-f]{7,64}", version) and commit and commit[1].startswith(version)
    if reported != version and not by_commit:
        raise StepFailed(
            f"Reports version {reported or 'unknown'}, expected {version}: the image is not what its tag says."
        )
