"""The drawings of the ledger's pages: bar charts of the DORA measures, and the timeline of a deployment's steps.

They are numbers for the templates, which write them as SVG: no script, and no style that the CSP forbids.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime

from ledger import dora
from ledger.humanize import took_seconds
from ledger.models import Deployment, Step

WIDTH, HEIGHT = 300, 100  # of a chart, in the drawing's units; the page stretches it
GAP = 0.25  # between two bars, as a share of the distance between their centres
MIN_HEIGHT = 2.0  # of a bar with a value, so that a small one can be seen
MIN_WIDTH = 1.0  # of a step on the timeline, in per cent


@dataclass(frozen=True)
class Bar:
    """A bar of a chart: its day, its value as people read it (`text`), and its rectangle in the drawing's units."""

    at: date
    text: str
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Chart:
    """A bar chart. `value` is the measure over the whole period, `scale` the value of a bar of full height."""

    name: str
    title: str
    value: str
    meaning: str
    tone: str
    bars: list[Bar]
    scale: str

    @property
    def description(self) -> str:
        """The text alternative to the bars."""
        if not self.scale:
            return "No data in this period."
        return f"The tallest of {len(self.bars)} bars is {self.scale}."


def bar_chart(
    name: str,
    title: str,
    value: str,
    meaning: str,
    tone: str,
    values: Sequence[tuple[date, float | None]],
    format_value: Callable[[float], str],
) -> Chart:
    """Returns a chart with one bar per value; None draws no bar."""
    highest = max((each for _, each in values if each is not None), default=0)
    pitch = WIDTH / len(values)
    bars = []
    for number, (at, each) in enumerate(values):
        height = max(MIN_HEIGHT, round(HEIGHT * each / highest, 1)) if each else 0.0
        x = round(pitch * (number + GAP / 2), 1)
        text = "none" if each is None else format_value(each)
        bars.append(Bar(at, text, x, round(HEIGHT - height, 1), round(pitch * (1 - GAP), 1), height))
    return Chart(name, title, value, meaning, tone, bars, format_value(highest) if highest else "")


def dora_charts(total: dora.Measures, periods: list[tuple[datetime, dora.Measures]], days: int) -> list[Chart]:
    """Returns the charts of the four measures: `total` over so many `days`, and a bar for each of the `periods`.

    The days of the bars are in UTC, the same for everybody.
    """

    def values(measure: str) -> list[tuple[date, float | None]]:
        return [(at.astimezone(UTC).date(), getattr(measures, measure)) for at, measures in periods]

    def count(value: float) -> str:
        return f"{value:g}"

    def share(value: float | None) -> str:
        return "none yet" if value is None else f"{value:.0%}"

    def duration(value: float | None) -> str:
        return "none yet" if value is None else took_seconds(value)

    return [
        bar_chart(
            "frequency",
            "Deployment frequency",
            f"{total.live * 7 / days:.1f} a week",
            f"{total.live} went live in {days} days",
            "busy",
            values("live"),
            count,
        ),
        bar_chart(
            "lead",
            "Lead time",
            duration(total.lead),
            "median, from a release's build until it is first live",
            "busy",
            values("lead"),
            duration,
        ),
        bar_chart(
            "failures",
            "Change failure rate",
            share(total.failure_rate),
            f"{total.failing} of {total.changes} changes failed, were rolled back, or needed a hotfix",
            "bad",
            values("failure_rate"),
            share,
        ),
        bar_chart(
            "restore",
            "Time to restore",
            duration(total.restore),
            "median, from a failed change until the next successful one",
            "warn",
            values("restore"),
            duration,
        ),
    ]


@dataclass(frozen=True)
class TimelineBar:
    """A step on the timeline of its deployment, which begins at `begin`; `start` and `width` are in per cent of it."""

    step: Step
    begin: datetime
    start: float
    width: float


def timeline(deployment: Deployment, now: datetime) -> list[TimelineBar]:
    """Returns a bar for each step, from the deployment's start until its end, or until `now` while it runs."""
    steps = list(deployment.steps.all())
    if not steps:
        return []
    begin = deployment.started or steps[0].started
    whole = max(((deployment.finished or now) - begin).total_seconds(), 0.001)

    def percent(at: datetime) -> float:
        return min(100.0, max(0.0, 100 * (at - begin).total_seconds() / whole))

    bars = []
    for step in steps:
        start = percent(step.started)
        width = max(MIN_WIDTH, percent(step.finished or now) - start)
        bars.append(TimelineBar(step, begin, round(min(start, 100 - width), 1), round(width, 1)))
    return bars
