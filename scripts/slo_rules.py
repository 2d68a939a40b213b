"""Makes monitoring/rules/slo.yml from monitoring/slo.toml; prints the file's name if it changed.

Multi-window, multi-burn-rate alerts, as in the SRE workbook (https://sre.google/workbook/alerting-on-slos/). The burn
rate says how fast the error budget is spent: at 1 it lasts exactly for the window. An alert looks at a long window,
which says that much has been spent, and at a short one, which says that it is still being spent.
"""

import tomllib
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
SOURCE, TARGET = ROOT / "monitoring" / "slo.toml", ROOT / "monitoring" / "rules" / "slo.yml"
RUNBOOK = "https://github.com/OWNER/backstagetest1/blob/main/docs/runbook.md"

HOURS = {"m": 1 / 60, "h": 1.0, "d": 24.0}


class Burn(NamedTuple):
    """A share of the budget, which raises the alert if it is spent within the long window."""

    share: float
    long: str
    short: str


# The workbook's table 5-8
FAST = (Burn(0.02, "1h", "5m"), Burn(0.05, "6h", "30m"))
SLOW = (Burn(0.10, "1d", "2h"), Burn(0.10, "3d", "6h"))
SHORT_WINDOWS, LONG_WINDOWS = ("5m", "30m", "1h", "2h", "6h"), ("1d", "3d")

HEAD = """\
# Made by scripts/slo_rules.py from monitoring/slo.toml: change that and run the script.
groups:
"""

INFO = "* on (job, instance) group_left (environment) instance:app:info"


def hours(window: str) -> float:
    """Returns the hours of a duration of Prometheus with one unit: 5m, 6h, 30d."""
    return float(window[:-1]) * HOURS[window[-1]]


def plain(number: float) -> str:
    """A number without the noise of binary fractions: 1 - 0.999 is 0.001."""
    return f"{number:.10g}"


def group(name: str, *rules: str, interval: str = "") -> str:
    """A rule group; `interval` is how often it is evaluated, by default as often as all others."""
    head = f"  - name: backstagetest1-{name}\n" + (f"    interval: {interval}\n" if interval else "")
    return f"{head}    rules:\n" + "".join(rules)


def record(name: str, expression: str, slo: str = "") -> str:
    """A recording rule."""
    lines = "".join(f"          {line}\n" for line in expression.strip().splitlines())
    labels = f"        labels: {{slo: {slo}}}\n" if slo else ""
    return f"      - record: {name}\n        expr: |\n{lines}{labels}"


def counters(name: str, objective: dict[str, Any]) -> tuple[str, str]:
    """The requests and the bad ones of each instance since its start, as two counters.

    All counters of an instance are reset together, so their sum is a counter, too. It starts at 0 with the instance, so
    the first error counts, which rate() of a series that begins with it would not see. It keeps its environment when
    the instance is gone, so a window of days counts earlier pods.
    """
    if "seconds" in objective:
        total = "sum by (job, instance) (http_request_duration_seconds_count)"
        good = f'sum by (job, instance) (http_request_duration_seconds_bucket{{le="{float(objective["seconds"])}"}})'
        bad = f"{total}\n  - {good}"
    else:
        total = "sum by (job, instance) (http_requests_total)"
        bad = 'sum by (job, instance) (http_requests_total{status=~"5.."})'
    zero = "0 * group by (job, instance) (instance:app:info)"
    if "seconds" in objective:  # a bucket that does not exist must not look like an objective that is met
        zero += f"\n  unless on (job, instance) {total}"
    every = f"(\n  {total}\n  or 0 * group by (job, instance) (instance:app:info)\n)\n{INFO}"
    return (
        record("instance:slo_requests:total", every, name),
        record("instance:slo_bad_requests:total", f"(\n  {bad}\n  or {zero}\n)\n{INFO}", name),
    )


def window_rules(window: str, slo: str = "") -> tuple[str, ...]:
    """Requests, bad ones and their ratio over a window, of all objectives or of one. Without requests it is 0."""
    which = f'{{slo="{slo}"}}' if slo else ""
    requests, bad = f"slo:requests:increase{window}", f"slo:bad_requests:increase{window}"
    return (
        record(requests, f"sum by (slo, environment) (increase(instance:slo_requests:total{which}[{window}]))", slo),
        record(bad, f"sum by (slo, environment) (increase(instance:slo_bad_requests:total{which}[{window}]))", slo),
        record(f"slo:errors:ratio_rate{window}", f"{bad}{which} / ({requests}{which} > 0)\nor 0 * {bad}{which}", slo),
    )


def budget_rules(name: str, objective: dict[str, Any], minimum: int) -> tuple[str, str]:
    """The objective, and what is left of its budget: 1 untouched, 0 spent, negative overspent."""
    window, which = objective["window"], f'{{slo="{name}"}}'
    allowed = f"{plain(1 - objective['objective'])} * slo:requests:increase{window}{which}"
    return (
        record("slo:objective:ratio", f"{objective['objective']} * group by (environment) (instance:app:info)", name),
        record(
            "slo:error_budget_remaining:ratio",
            f"1 - slo:bad_requests:increase{window}{which}\n/ clamp_min({allowed}, {minimum})",
            name,
        ),
    )


def alert(name: str, objective: dict[str, Any], burns: tuple[Burn, Burn], minimum: int, fast: bool) -> str:
    """A burn-rate alert of one objective."""
    which, conditions = f'{{slo="{name}"}}', []
    for burn in burns:
        rate = burn.share * hours(objective["window"]) / hours(burn.long)
        limit = plain(rate * (1 - objective["objective"]))
        conditions.append(
            f"(  # {burn.share:.0%} of the budget in {burn.long}: a burn rate of {plain(rate)}\n"
            f"  slo:errors:ratio_rate{burn.long}{which} > {limit}\n"
            f"  and slo:errors:ratio_rate{burn.short}{which} > {limit}\n"
            f"  and slo:bad_requests:increase{burn.long}{which} >= {minimum}\n)"
        )
    lines = "".join(f"          {line}\n" for line in "\nor ".join(conditions).splitlines())
    title = f"{name.capitalize()}BudgetBurns{'Fast' if fast else 'Slowly'}"
    what = f"took more than {objective['seconds']} s" if "seconds" in objective else "got a server error"
    wait, keep, severity = ("2m", "10m", "page") if fast else ("15m", "1h", "ticket")
    return (
        f"      - alert: {title}\n        expr: |\n{lines}        for: {wait}\n        keep_firing_for: {keep}\n"
        f"        labels: {{severity: {severity}, service: backstagetest1}}\n"
        "        annotations:\n"
        f"          summary: '{{{{ $labels.environment }}}}: {{{{ $value | humanizePercentage }}}} of requests {what};"
        f" the objective allows {plain(100 * (1 - objective['objective']))}%'\n"
        f"          runbook_url: {RUNBOOK}#{title.lower()}\n"
    )


def rules(source: str) -> str:
    """Returns the rule file for the text of slo.toml. Raises KeyError or ValueError if that is not valid."""
    given = tomllib.loads(source)
    minimum, objectives = given["minimum_budget"], given["objectives"]
    for name, objective in objectives.items():
        if not name.isidentifier() or not 0 < objective["objective"] < 1 or hours(objective["window"]) < hours("7d"):
            raise ValueError(f"Objective {name}: expected a word, a share between 0 and 1, and a window of 7d or more")
    absent = (
        "      - alert: SloSeriesAbsent\n"
        "        expr: slo:objective:ratio unless on (slo, environment) slo:errors:ratio_rate5m\n"
        "        for: 15m\n        keep_firing_for: 5m\n"
        "        labels: {severity: ticket, service: backstagetest1}\n"
        "        annotations:\n"
        "          summary: '{{ $labels.environment }}: the {{ $labels.slo }} objective is not measured'\n"
        f"          runbook_url: {RUNBOOK}#sloseriesabsent\n"
    )
    groups = (
        group("slo-counters", *(rule for item in objectives.items() for rule in counters(*item))),
        group("slo", *(rule for window in SHORT_WINDOWS for rule in window_rules(window))),
        group(  # Long windows change slowly. Less than the 5 minutes after which Prometheus takes a series for gone.
            "slo-long",
            *(rule for window in LONG_WINDOWS for rule in window_rules(window)),
            *(rule for name, one in objectives.items() for rule in window_rules(one["window"], name)),
            *(rule for name, one in objectives.items() for rule in budget_rules(name, one, minimum)),
            interval="2m",
        ),
        group(
            "slo-alerts",
            *(
                alert(name, objective, burns, minimum, fast)
                for name, objective in objectives.items()
                for burns, fast in ((FAST, True), (SLOW, False))
            ),
            absent,
        ),
    )
    return HEAD + "\n".join(groups)


def main() -> None:
    """Writes the rule file if it is out of date."""
    text = rules(SOURCE.read_text())
    if not TARGET.exists() or TARGET.read_text() != text:
        TARGET.write_text(text)
        print(TARGET.relative_to(ROOT))


if __name__ == "__main__":
    main()
