"""`python -m health --url URL`: what `manage.py health --url URL` does, for a container's health check.

It loads neither Django nor the settings, as it runs every few seconds for the life of the container.
"""

import argparse
import json
import sys

from health.client import Unreachable, ask


def main() -> int:
    """The exit code: 0 healthy (or ready and degraded), 1 unhealthy or not to be reached, 2 wrong usage."""
    parser = argparse.ArgumentParser(prog="python -m health", description="Ask a running instance for its health.")
    parser.add_argument("--url", required=True, help="as in http://127.0.0.1:8000/health/ready/")
    parser.add_argument("--json", action="store_true", help="print the answer itself")
    options = parser.parse_args()
    try:
        report = ask(options.url)
    except ValueError as error:
        parser.error(str(error))
    except Unreachable as error:
        print(error, file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps(report))
    else:
        print(report["status"], *(f"{name}={state}" for name, state in report["checks"].items()), sep="; ")
    return 0 if report["status"] in ("healthy", "degraded") else 1


if __name__ == "__main__":
    sys.exit(main())
