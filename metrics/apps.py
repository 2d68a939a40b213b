from django.apps import AppConfig


class MetricsConfig(AppConfig):
    name = "metrics"

    def ready(self) -> None:
        """Connects the signals that are counted."""
        from django.core.signals import got_request_exception
        from django.db.backends.signals import connection_created

        from metrics.collectors import watch_connection
        from metrics.middleware import count_exception

        got_request_exception.connect(count_exception)
        connection_created.connect(watch_connection)
