"""The environments as the status page shows them: the state of each now, and its uptime as one bar per day."""

from dataclasses import dataclass
from datetime import date
from typing import Any

from ledger.environments import production_first, production_names
from statuspage import verdict
from statuspage.readings import Reading, is_monitored

FULL_HEIGHT = 40  # of a bar, in the drawing's units
HEIGHTS = {"ok": FULL_HEIGHT, "warn": 28, "bad": 16, "idle": 3}  # by tone, so that height says the same as colour
PITCH = 4  # from one bar to the next, in the drawing's units

# By state: the style sheet's tone, which is also the icon's name, and the label of an environment.
STATE_STYLES: dict[verdict.State, tuple[str, str]] = {
    "up": ("ok", "operational"),
    "degraded": ("warn", "degraded"),
    "down": ("bad", "down"),
    "unknown": ("idle", "unknown"),
}


@dataclass(frozen=True)
class DayBar:
    """The bar of a day in UTC. `percent` is None without data. `x`, `y` and `height` are in the drawing's units."""

    day: date
    percent: float | None
    x: int

    @property
    def tone(self) -> str:
        """The style sheet's tone."""
        if self.percent is None:
            return "idle"
        return "ok" if self.percent == 100 else "warn" if self.percent >= 99 else "bad"

    @property
    def height(self) -> int:
        """The height by tone."""
        return HEIGHTS[self.tone]

    @property
    def y(self) -> int:
        """The upper edge, since all bars share one ground."""
        return FULL_HEIGHT - self.height

    @property
    def text(self) -> str:
        """The figure."""
        return format_percent(self.percent)


@dataclass(frozen=True)
class Row:
    """An environment: its reading now, and `past`, its entry in the history; None if there is none."""

    name: str
    reading: Reading
    past: dict[str, Any] | None

    @property
    def tone(self) -> str:
        """The style sheet's tone of its state."""
        return STATE_STYLES[verdict.state_of(self.reading)][0]

    @property
    def label(self) -> str:
        """Its state as people read it."""
        state = STATE_STYLES[verdict.state_of(self.reading)][1]
        return f"{state} (simulated)" if self.reading.simulated else state if self.monitored else "not monitored"

    @property
    def monitored(self) -> bool:
        """Whether its state is known at all."""
        return is_monitored(self.name)

    @property
    def bars(self) -> list[DayBar]:
        """One bar per day, oldest first."""
        days = self.past["days"] if self.past else []
        return [
            DayBar(date.fromisoformat(day["date"]), day["uptime_percent"], PITCH * number)
            for number, day in enumerate(days)
        ]

    @property
    def outages(self) -> list[DayBar]:
        """The days on which at least one minute was missed."""
        return [bar for bar in self.bars if bar.percent is not None and bar.percent < 100]

    @property
    def days_with_data(self) -> int:
        """The number of days that have a figure."""
        return int(self.past["days_with_data"]) if self.past else 0

    @property
    def days_without_data(self) -> int:
        """The number of days that have none."""
        return len(self.bars) - self.days_with_data

    @property
    def perfect_days(self) -> int:
        """The number of days with data on which no minute was missed."""
        return self.days_with_data - len(self.outages)

    @property
    def uptime(self) -> str:
        """Such as "99.98% over 90 days": never a percentage without its days."""
        if not self.past:
            return "no data"
        percent, days = format_percent(self.past["uptime_percent"]), self.days_with_data
        return f"{percent} over {days} day{'s' * (days != 1)}"


def rows(history: dict[str, Any] | None, current: dict[str, Reading]) -> list[Row]:
    """Returns production, whatever is known of it, then the others that are monitored, simulated or have a past."""
    past = {each["environment"]: each for each in history["environments"]} if history else {}
    all_rows = [Row(name, current[name], past.get(name)) for name in production_first()]
    production = production_names()
    return [row for row in all_rows if row.name in production or row.monitored or row.reading.simulated or row.past]


def format_percent(value: float | None) -> str:
    """Formats a percentage with two decimals, except for "100%"; "no data" for None."""
    return "no data" if value is None else "100%" if value == 100 else f"{value:.2f}%"
