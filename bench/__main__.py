"""`python -m bench`, which ./run bench calls in an environment that has the peers."""

import argparse
import os
import platform
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from bench import bluegreen, colours, copying, frozen, image, ledger, middleware, probes, scrape, telemetry, workers
from bench.measure import PEERS, Options, installed, say

PARTS: dict[str, tuple[Callable[[Options], str], str]] = {
    "middleware": (middleware.run, "Cost of metrics per request"),
    "workers": (workers.run, "Cost of metrics in gunicorn's workers"),
    "scrape": (scrape.run, "Cost of a scrape"),
    "telemetry": (telemetry.run, "Cost of traces and error reports"),
    "health": (probes.run, "Cost of /health/"),
    "frozen": (frozen.run, "Probes while PostgreSQL is frozen"),
    "ledger": (ledger.run, "The ledger's pages with a million deployments"),
    "bluegreen": (bluegreen.run, "Blue-green with a database per colour: the gap between two writes"),
    "copy": (copying.run, "A gigabyte copied to the other colour's database"),
    "colours": (colours.run, "Cost of a database per colour"),
    "image": (image.run, "Image size and start time"),
}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="./run bench",
        description="Measure health and metrics beside their peers, in turns, in one run. "
        "Prints a Markdown table to standard output and progress to standard error.",
        epilog="Examples:\n  ./run bench > table.md\n  ./run bench health frozen\n  ./run bench frozen --patience 60\n"
        "\nExit codes: 0 everything was measured, whether or not a goal was met; 1 a part failed; 2 usage error;\n"
        "130 interrupted.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = ", ".join(f"{name} ({title})" for name, (_, title) in PARTS.items())
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"the parts to run (default: all; image only with Docker): {names}"
    )
    parser.add_argument(
        "--quick", action="store_true", help="check in a minute that everything works; the figures are rough"
    )
    parser.add_argument(
        "--patience", type=float, default=15, metavar="SECONDS", help="how long to wait for a frozen peer's answer (15)"
    )
    parser.add_argument(
        "--versions",
        nargs="+",
        type=Path,
        default=[],
        metavar="FOLDER",
        help="bluegreen: folders of the programs of other versions of PostgreSQL (16 and later), paired with each "
        "other and with the one that the tests use",
    )
    chosen = parser.parse_args()
    if unknown := [name for name in chosen.names if name not in PARTS]:
        parser.error(f"unknown part {unknown[0]!r}; choose from {', '.join(PARTS)}")
    if not 1 <= chosen.patience <= 600:
        parser.error(f"--patience {chosen.patience:g}: expected 1 to 600 seconds")
    if missing := [folder for folder in chosen.versions if not (folder / "postgres").exists()]:
        parser.error(f"--versions {missing[0]}: expected a folder with postgres and initdb")
    options = Options(quick=chosen.quick, patience=chosen.patience, programs=tuple(chosen.versions))
    print(about(options), flush=True)
    failed = False
    for name in chosen.names or [name for name in PARTS if name != "image" or image.possible()]:
        run, title = PARTS[name]
        try:
            found = run(options)
        except KeyboardInterrupt:
            say("interrupted")
            return 130
        except (AssertionError, OSError, RuntimeError) as error:
            found, failed = f"Not measured: {error}", True
            say(f"{name} failed: {error}")
        print(f"\n## {title} (`./run bench {name}`)\n\n{found}", flush=True)
    say("done")
    return int(failed)


def about(options: Options) -> str:
    """What was measured, with what, and on what."""
    packages = ["django", "gunicorn", "prometheus-client", *filter(installed, PEERS)]
    words = ", ".join(f"{package} {version(package)}" for package in packages)
    rough = "Quick: the figures are rough. " if options.quick else ""
    return (
        f"{rough}{datetime.now(UTC):%Y-%m-%d}, Python {platform.python_version()}, {words}; "
        f"{os.cpu_count()} processors, load average {os.getloadavg()[0]:.1f} at the start."
    )


if __name__ == "__main__":
    sys.exit(main())
