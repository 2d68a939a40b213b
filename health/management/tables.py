"""Tables of the commands: readable at 80 columns, whole in a pipe, colour on a terminal only."""

from collections.abc import Collection, Sequence
from typing import Any

from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from health.management import base


def show(
    out: Any, options: dict[str, Any], rows: Sequence[dict[str, Text]], *, spare: Sequence[str], right: Collection[str]
) -> None:
    """Prints `rows`, each the cells of a row by their column's name, to `out`, in colour as `--no-color` and
    `--force-color` of `options` say.

    No cell is cut: on a narrow terminal the columns in `spare` are left out, the first of them first, with a line that
    says so, and what is still too wide wraps. The columns in `right` are aligned to the right.
    """
    console = base.console(out, no_color=options["no_color"], force_color=options["force_color"])
    left_out: list[str] = []
    while True:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in rows[0]:
            if name not in left_out:
                table.add_column(name, justify="right" if name in right else "left", overflow="fold")
        for row in rows:
            table.add_row(*(cell for name, cell in row.items() if name not in left_out))
        wide = Measurement.get(console, console.options.update(max_width=10_000), table).maximum
        if wide <= console.width or len(left_out) == len(spare):
            break
        left_out.append(spare[len(left_out)])
    console.print(table)
    if left_out:
        console.print(Text(f"Not shown at this width: {', '.join(left_out)}.", "dim"))
