"""The smoke test: what each instance of a release must answer, from inside, before the release gets traffic."""

import json
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from deploy.errors import StepFailed
from deploy.targets.base import Progress
from deploy.targets.probe import HEALTH, PAGES, SLOW, Answer, excuse, late, problem

ROUNDS = 3  # several workers answer, and the first answer of each is not its fastest
PAUSE = 0.5  # seconds before a page that failed or was slow is asked for again
CLEAN, STRIKES = 5, 2  # such a page passes after so many good answers, and fails at so many more that are not
RETRIED = 5.0  # seconds for which a late answer is asked for again at least: it may be the machine's fault
DEADLINE = 60.0  # seconds for which a page is asked for again at most, while another release suffers as well
ASSET = re.compile(r'"(/static/[^"?#]+\.[a-z0-9]+)"')
NEEDED = ("http_requests_total", "http_request_duration_seconds_bucket", "app_info")  # metrics that watch.py reads


Ask = Callable[[Sequence[str]], list[Answer]]  # sends an instance a GET for each path


def test(ask: Ask, version: str, other: Ask | None = None, tell: Progress = lambda text: None) -> str:
    """Tests one instance: health, version, pages, an asset, metrics.

    A page that fails or is slow is asked for again, at the same moment as of `other`, an instance of the release that
    is live: what both suffer from is not the new one's fault. `tell` shows that. Returns a note. Raises StepFailed.
    """
    found: dict[str, Answer] = {}
    excuses: list[str] = []
    first = ask(PAGES * ROUNDS)
    for path in PAGES:
        rounds = [answer for answer in first if answer.path == path]
        found[path] = next((answer for answer in rounds if problem(answer)), rounds[-1])
        if complaint(found[path]):
            found[path], excused = again(ask, other, path, tell)
            excuses += [f"{complaint(found[path])} {excused}"] if excused else []
    metrics = found["/metrics"].body
    for name in NEEDED:
        if f"\n{name}{{" not in metrics:
            raise StepFailed(f"/metrics lacks {name}.")
    require_version(found[HEALTH].body, metrics, version)
    asset = ASSET.search(found["/accounts/login/"].body)
    if not asset:
        raise StepFailed("/accounts/login/ links no file under /static/.")
    (file,) = ask([asset[1]])
    if file.status == 0 or file.status >= 500:
        file, _ = again(ask, other, asset[1], tell)
    if file.status != 200 or not file.body:
        raise StepFailed(f"{asset[1]}, which the sign-in page links, answered {file.status or file.error}.")
    slowest = max(found[path].seconds for path in PAGES)
    note = f"healthy, version {version}; {len(PAGES)} pages and an asset, slowest {1000 * slowest:.0f} ms"
    return "; ".join([note, *excuses])


def complaint(answer: Answer) -> str:
    """What is wrong with the answer, as a sentence; empty if nothing is."""
    if reason := problem(answer):
        return f"{reason}; expected 200."
    return f"{answer.path} took {answer.seconds:.1f} s, limit {SLOW:g} s." if answer.seconds > SLOW else ""


def again(ask: Ask, other: Ask | None, path: str, tell: Progress) -> tuple[Answer, str]:
    """Asks for a page that failed or was slow until it is clear whether the instance is to blame.

    Returns a good answer and an empty text, or after DEADLINE one that is as slow as those of `other`, and the sentence
    that says so. Raises StepFailed if the instance is to blame, or if the page never answered.
    """
    began = time.monotonic()
    good = bad = 0
    while True:
        time.sleep(PAUSE)
        answer, theirs = together(ask, other, path)
        wrong, waited = complaint(answer), time.monotonic() - began
        why = excuse(answer, theirs) if wrong else ""
        good, bad = good + (not wrong), bad + bool(wrong and not why)
        if good >= CLEAN:
            return answer, ""
        if bad >= STRIKES and wrong and not why and (waited >= RETRIED or not late(answer)):
            beside = f" The live release took {theirs.seconds:.1f} s at the same moment." if theirs else ""
            raise StepFailed(f"{wrong}{beside}")
        if waited >= DEADLINE:
            if not problem(answer):
                return answer, f"{why[0].upper()}{why[1:]}." if why else ""
            raise StepFailed(f"{wrong} Not better for {DEADLINE:g} s, but {why or 'late'}.")
        tell(f"{wrong} {why}".strip() or f"{path} answers well again")


def together(ask: Ask, other: Ask | None, path: str) -> tuple[Answer, Answer | None]:
    """What the instance and the other one answer at the same moment; None of one that there is not, or cannot be asked.

    Raises StepFailed if the instance cannot be asked.
    """
    with ThreadPoolExecutor(2) as pool:
        mine = pool.submit(ask, [path])
        theirs = pool.submit(other, [path]) if other else None
        (answer,) = mine.result()
        try:
            return answer, theirs.result()[0] if theirs else None
        except StepFailed:
            return answer, None


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
