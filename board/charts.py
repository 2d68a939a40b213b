"""Bar charts: the figures that templates/board/_chart.html draws. No script, and no style that a page would forbid."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date

WIDTH, HEIGHT = 300, 100  # of the drawing; the page stretches it
GAP = 0.25  # of a bar's room


@dataclass(frozen=True)
class Bar:
    """`y` and `height` are in the drawing's units; `text` is the value in words."""

    at: date
    text: str
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Chart:
    """`scale` is the value, in words, that a bar of full height has."""

    name: str
    title: str
    value: str
    meaning: str
    tone: str
    bars: list[Bar]
    scale: str

    @property
    def description(self) -> str:
        """What one who does not see the bars is told."""
        if not self.scale:
            return "There is nothing to show in this period."
        return f"The tallest of {len(self.bars)} bars is {self.scale}."


def chart(
    name: str,
    title: str,
    value: str,
    meaning: str,
    tone: str,
    values: Sequence[tuple[date, float | None]],
    words: Callable[[float], str],
) -> Chart:
    """A chart of `values`, of which None is no bar at all; `words` words one of them."""
    top = max((each for _, each in values if each is not None), default=0)
    room = WIDTH / len(values)
    bars = []
    for number, (at, each) in enumerate(values):
        # What is there is seen, however small.
        height = 0.0 if not each else max(2.0, round(HEIGHT * each / top, 1))
        x = round(room * (number + GAP / 2), 1)
        text = "none" if each is None else words(each)
        bars.append(Bar(at, text, x, round(HEIGHT - height, 1), round(room * (1 - GAP), 1), height))
    return Chart(name, title, value, meaning, tone, bars, words(top) if top else "")
