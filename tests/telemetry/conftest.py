"""Where traces are off, settings/__init__.py keeps OpenTelemetry from being imported; these tests need it."""

import sys

if sys.modules.get("opentelemetry", sys) is None:
    del sys.modules["opentelemetry"]
