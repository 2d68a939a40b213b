#!/usr/bin/env python
"""Django's command line; `./manage.py help` lists the commands."""

import os
import sys


def main() -> None:
    """Runs a command. A setting that is missing or invalid ends the process with one line."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings.dev")
    try:
        from django.core.exceptions import ImproperlyConfigured
        from django.core.management import execute_from_command_line
        from django.core.management.base import CommandParser

        from backstagetest1.usage import complain
    except ImportError as error:
        sys.exit(f"{error}. Type ./run serve first (it makes .venv), then .venv/bin/python manage.py")
    CommandParser.error = complain  # type: ignore[method-assign,assignment]
    try:
        execute_from_command_line(sys.argv)
    except ImproperlyConfigured as reason:
        sys.exit(str(reason))


if __name__ == "__main__":
    main()
