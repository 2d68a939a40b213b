"""The settings, a module for each environment. What is here comes before all of them."""

import sys

from settings import env

# redis-py imports OpenTelemetry's metrics wherever they are installed: 61 modules, 3 MB and 35 ms for each process of
# an instance that sends no traces. An entry that is None makes the import fail, and redis-py go on without it.
if not env.text("OTEL_EXPORTER_OTLP_ENDPOINT"):
    sys.modules.setdefault("opentelemetry", None)  # type: ignore[arg-type]
