"""`python -m health --url URL`: the same as `manage.py health --url URL`, for a container's health check.

It loads neither Django nor the settings, because it runs every few seconds for as long as the container does.
"""

import argparse
import json
import sys

from health.client import Unreachable, ask


def main() -> int:
    """Returns the exit code: 0 healthy or degraded, 1 unhealthy or unreachable. Exits with 2 for a usage error."""
    parser = argparse.ArgumentParser(prog="python -m health", description="Check the health of a running instance.")
    parser.add_argument("--url", required=True, help="such as http://127.0.0.1:8000/health/ready/")
    parser.add_argument("--json", action="store_true", help="print the JSON response")
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
