"""The plots of an environment's traffic: what Prometheus has of it, drawn as SVG, with the releases on the time axis.

One query asks for everything, as the recording rules have made it (monitoring/rules/recording.yml).
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from board import answers
from ledger import steps
from ledger.environments import EnvironmentConfig
from ledger.models import Deployment, Environment, Step
from metrics.prometheus import Series, quoted

WIDTH, HEIGHT = 1000, 100  # of a plot, in the drawing's units; the page stretches it
APART = 24.0  # per cent of the width between the labels of two releases
KEYS = 4  # releases below a plot at most, the newest
MARKS = 30  # deployments on the time axis at most
HOUR = 3600.0


@dataclass(frozen=True)
class Period:
    """How far a plot looks back: its name, its length and the distance of Prometheus' values in seconds, and how many
    of these make one value of the plot.
    """

    name: str
    label: str
    seconds: float
    step: float
    bundle: int = 1

    @property
    def distance(self) -> float:
        """Seconds between two values of the plot."""
        return self.step * self.bundle


PERIODS = {
    each.name: each
    for each in (
        Period("1h", "1 hour", HOUR, 30),
        Period("24h", "24 hours", 24 * HOUR, 300, 2),
        Period("7d", "7 days", 168 * HOUR, 600, 6),  # each value is of five minutes, so every other one is skipped
    )
}
QUANTILES = ("p99", "p95", "p50")
REQUESTS, ERRORS = "release:http_requests:rate5m", "release:http_errors:ratio_rate5m"
LATENCY = {name: f"release:http_request_duration_seconds:{name}_5m" for name in QUANTILES}
IN_PROGRESS, CACHE_HITS = "environment:http_requests_in_progress:sum", "environment:cache_hits:ratio_rate5m"
NAMES = (REQUESTS, ERRORS, *LATENCY.values(), IN_PROGRESS, CACHE_HITS)

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Line:
    """A series of a plot: its name, its style, and its path in the drawing's units."""

    label: str
    style: str
    path: str


@dataclass(frozen=True)
class Key:
    """What stands below a plot of its lines with one name: their style, the last value of all and the highest."""

    label: str
    style: str
    last: str
    highest: str


@dataclass(frozen=True)
class Plot:
    """A plot. `value` is the last value of its main series, and `scale` the value at the upper edge. `more` lines have
    no key.
    """

    name: str
    title: str
    value: str
    scale: str
    lines: list[Line]
    keys: list[Key]
    more: int
    description: str


@dataclass(frozen=True)
class Mark:
    """A release that gets the traffic: when, by which deployment, and how. `x` is in per cent of the plot's width;
    `anchor` is that of its label, empty if another label is in its place.
    """

    at: datetime
    version: str
    how: str
    deployment: int
    own: bool
    x: float
    anchor: str = ""


@dataclass(frozen=True)
class Traffic:
    """The plots of an environment from `start` to `end`, or none, and `why` for members."""

    environment: str
    period: Period
    start: datetime
    end: datetime
    plots: list[Plot]
    marks: list[Mark]
    answered: bool
    why: str


@dataclass(frozen=True)
class Question:
    """The traffic of an environment in a period: up to now, or around the time `about`. It has a Prometheus. `version`
    is the release to stand out; by default, the newest.
    """

    config: EnvironmentConfig
    period: Period
    about: datetime | None = None
    version: str = ""

    @property
    def key(self) -> answers.Key:
        """What answers are kept by."""
        assert self.config.prometheus
        return self.config.prometheus, (self.config.name, self.period.name, self.about, self.version)

    def begin(self) -> None:
        """Lets Prometheus be asked, without waiting."""
        answers.begin(self.key, self.ask)

    def window(self) -> tuple[float, float]:
        """Returns where the plots begin and end now (Unix times). They move in steps, so an open page keeps them."""
        step = self.period.distance
        end = time.time()
        if self.about:
            end = min(end, self.about.timestamp() + self.period.seconds / 2)
        end = math.floor(end / step) * step
        return end - self.period.seconds, end

    def ask(self) -> tuple[float, float, list[Plot]]:
        """Asks for the series and draws them. Raises PrometheusError."""
        prometheus = self.config.prometheus
        assert prometheus
        start, end = self.window()
        names = quoted("|".join(NAMES))
        expression = f"{{__name__=~{names},environment={quoted(self.config.name)}}}"
        found = prometheus.query_range(expression, start, end, self.period.step, answers.TIMEOUT)
        return start, end, draw(found, start, end, self.period, self.version)

    def answer(self, environment: Environment, until: float, own: int = 0) -> Traffic:
        """Returns the plots, with the releases that went live meanwhile; `own` is the deployment of the page. Waits
        until then, by the monotonic clock. Raises django.db.Error.
        """
        found = answers.result(self.key, until)
        start, end, plots = found.value or (*self.window(), [])
        begin, finish = (datetime.fromtimestamp(at, UTC) for at in (start, end))
        marks = releases(environment, begin, finish, own) if plots else []
        answered = found.value is not None
        return Traffic(self.config.name, self.period, begin, finish, plots, marks, answered, found.why)


@dataclass(frozen=True)
class Canvas:
    """What all plots of a page have in common: where they begin and end (Unix times), and their period."""

    start: float
    end: float
    period: Period

    def plot(
        self,
        name: str,
        title: str,
        series: Sequence[tuple[str, str, Points]],
        text: Callable[[float], str],
        least: float,
        main: str = "",
    ) -> Iterator[Plot]:
        """Yields a plot of series (label, style, points), unless none has a point. `text` formats a value, and the
        scale is `least` at least. `main` is the label whose values stand for all; by default, that of the last series.
        """
        drawn = [(label, style, finite) for label, style, points in series if (finite := drawable(points))]
        if not drawn:
            return
        top = ceiling(max(least, *(value for *_, points in drawn for _, value in points)))
        lines = [Line(label, style, self.path(points, top)) for label, style, points in drawn]
        keys: list[Key] = []
        for label, style in dict.fromkeys((label, style) for label, style, _ in reversed(drawn)):
            values = [value for name, _, points in drawn if name == label for _, value in points]
            keys.append(Key(label, style, text(values[-1]), text(max(values))))
        chief = next((key for key in keys if key.label == main), keys[0])
        described = f"Last {chief.last}, highest {chief.highest}. The upper edge is {text(top)}."
        yield Plot(name, title, chief.last, text(top), lines, keys[:KEYS], len(keys[KEYS:]), described)

    def path(self, points: Points, top: float) -> str:
        """The path of a line, which ends where a value is missing; one value alone is a dot."""
        drawn: list[str] = []
        before = -math.inf
        for at, value in points:
            x = f"{WIDTH * (at - self.start) / (self.end - self.start):.1f}".removesuffix(".0")
            y = f"{HEIGHT * (1 - value / top):.1f}".removesuffix(".0")
            drawn.append(f"L{x} {y}" if at - before < 1.5 * self.period.distance else f"M{x} {y}h0")
            before = at
        return "".join(drawn)


def draw(found: Sequence[Series], start: float, end: float, period: Period, version: str = "") -> list[Plot]:
    """Returns the plots of these series, none without any. The release `version` stands out, or else the newest."""
    canvas = Canvas(start, end, period)

    def named(name: str, bundle: Callable[[list[float]], float]) -> list[tuple[str, Points]]:
        """The series of that name, with the version of each, in the order in which they end."""
        series = [each for each in found if each.labels.get("__name__") == name]
        series.sort(key=lambda each: (each.points[-1][0], each.points[0][0]))
        return [(each.labels.get("version", ""), bundled(each.points, period, bundle)) for each in series]

    def by_release(name: str, bundle: Callable[[list[float]], float]) -> list[tuple[str, str, Points]]:
        """A line for each release, in a strong colour the one that stands out."""
        series = named(name, bundle)
        chosen = version if version in dict(series) else series[-1][0] if series else ""
        return [(each, "now" if each == chosen else "past", points) for each, points in series]

    latency = [(each, each, points) for each, name in LATENCY.items() for _, points in named(name, max)]
    progress = [("all releases", "now", points) for _, points in named(IN_PROGRESS, max)]
    cache = [("all releases", "now", points) for _, points in named(CACHE_HITS, mean)]
    return [
        *canvas.plot("requests", "Requests per second", by_release(REQUESTS, mean), rate, 1.0, version),
        *canvas.plot("errors", "Error ratio", by_release(ERRORS, max), share, 0.01, version),
        *canvas.plot("latency", "Response time", latency, duration, 0.05, "p95"),
        *canvas.plot("in-progress", "Requests in progress", progress, count, 4.0),
        *canvas.plot("cache-hits", "Cache hits", cache, share, 1.0),
    ]


def drawable(points: Points) -> Points:
    """The points that are finite: a latency can be +Inf."""
    return [point for point in points if math.isfinite(point[1])]


def bundled(points: Points, period: Period, bundle: Callable[[list[float]], float]) -> Points:
    """The points, as many as make one value of the plot put together by `bundle`, each at its end."""
    length = period.distance
    found: dict[float, list[float]] = {}
    for at, value in points:
        found.setdefault(math.ceil(at / length) * length, []).append(value)
    return [(at, bundle(values)) for at, values in found.items()]


def mean(values: list[float]) -> float:
    """The mean; unlike that of statistics, fast."""
    return sum(values) / len(values)


def ceiling(value: float) -> float:
    """The next round number that is not below `value`."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(each * power for each in (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10) if each * power >= value * (1 - 1e-9))


def rate(value: float) -> str:
    """Requests per second."""
    return f"{value:.3g}/s"


def share(value: float) -> str:
    """A share in per cent."""
    return f"{100 * value:.3g}%"


def duration(value: float) -> str:
    """Seconds; below one, in milliseconds."""
    return f"{value:.3g} s" if value >= 1 else f"{1000 * value:.3g} ms"


def count(value: float) -> str:
    """A number of requests."""
    return f"{value:.3g}"


def releases(environment: Environment, start: datetime, end: datetime, own: int) -> list[Mark]:
    """Returns the releases that got the environment's traffic between these times, oldest first, labelled so that no
    label covers another; of two, the later one has it. Two queries. Raises django.db.Error.
    """
    recent = Deployment.objects.filter(
        environment=environment, created__gte=start - timedelta(days=1), created__lte=end
    )
    rows = recent.select_related("release", "previous__release").prefetch_related("steps").newest_first()[:MARKS]
    length = (end - start).total_seconds()
    marks: list[Mark] = []
    for row in rows:
        for at, version, how in turns(row):
            if start <= at <= end:
                x = round(100 * (at - start).total_seconds() / length, 1)
                marks.append(Mark(at, version, how, row.pk, row.pk == own and version == row.release.version, x))
    taken: list[float] = []
    labelled = []
    for mark in sorted(marks, key=lambda each: (each.own, each.at), reverse=True):
        anchor = "start" if mark.x < APART / 2 else "end" if mark.x > 100 - APART / 2 else "middle"
        free = all(abs(mark.x - other) >= APART for other in taken)
        taken += [mark.x] if free else []
        labelled.append(Mark(**{**vars(mark), "anchor": anchor if free else ""}))
    return sorted(labelled, key=lambda each: each.at)


def turns(row: Deployment) -> Iterator[tuple[datetime, str, str]]:
    """Yields when a deployment changed who has the traffic, to which release, and how."""
    known = {step.name: step for step in row.steps.all() if step.outcome != Step.Outcome.SKIPPED}
    switched = known.get(steps.SWITCH)
    back = known.get(steps.ROLL_BACK)
    how = "rolled back to" if row.kind == Deployment.Kind.ROLLBACK else "hotfix" if row.hotfix else "deployed"
    if switched:
        yield switched.started, row.release.version, how
    elif row.status == Deployment.Status.SUCCEEDED and row.finished:
        yield back.started if back else row.finished, row.release.version, how
    if switched and back and row.previous:
        yield back.started, row.previous.release.version, "rolled back to"
