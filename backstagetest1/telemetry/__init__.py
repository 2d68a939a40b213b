"""What is sent to services outside: traces to an OpenTelemetry collector, errors to Sentry.

Each is off unless its address is set; then nothing of it is imported. docs/monitoring.md says what is sent and what
never is.
"""

from django.conf import settings


def start() -> None:
    """Starts what is set. gunicorn.conf.py calls it in each worker, as threads do not survive a fork."""
    if settings.OTLP_ENDPOINT:
        from backstagetest1.telemetry import traces

        traces.start()
    if settings.SENTRY_DSN:
        from backstagetest1.telemetry import errors

        errors.start()


def stop() -> None:
    """Sends what is still waiting, for a few seconds at most. gunicorn.conf.py calls it as a worker ends."""
    if settings.OTLP_ENDPOINT:
        from backstagetest1.telemetry import traces

        traces.stop()
    if settings.SENTRY_DSN:
        from backstagetest1.telemetry import errors

        errors.stop()
