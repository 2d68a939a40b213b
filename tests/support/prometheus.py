"""A real Prometheus for the tests, with a history that is written rather than waited for."""

import json
import math
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping

from tests.support.servers import PATIENCE, Server

Values = Callable[[float], float | None]  # of a series: the value at a Unix time; None where it has none


class PrometheusServer(Server):
    """Prometheus without targets, unless the config names some. write() gives it series before it starts."""

    def __init__(self, config: str = "global: {}\n", *flags: str) -> None:
        super().__init__()
        self.user = None
        self.flags = flags
        (self.folder / "prometheus.yml").write_text(config)

    def command(self) -> list[str]:
        program = shutil.which("prometheus")
        assert program, "prometheus not found"
        options = {
            "config.file": self.folder / "prometheus.yml",
            "storage.tsdb.path": self.folder / "data",
            "storage.tsdb.retention.time": "60d",
            "web.listen-address": f"127.0.0.1:{self.port}",
        }
        return [program, *(f"--{name}={value}" for name, value in options.items()), *self.flags]

    def ready(self) -> bool:
        with socket.create_connection(("127.0.0.1", self.port), timeout=2) as link:
            link.sendall(b"GET /-/ready HTTP/1.0\r\n\r\n")
            return link.recv(64).split()[1] == b"200"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def write(
        self, series: Iterable[tuple[str, Mapping[str, str], Values]], *, seconds: float, step: float, until: float = 0
    ) -> None:
        """Writes the series, (name, labels, values), of the `seconds` before `until` (now, unless given)."""
        until = until or time.time()
        lines = []
        for name, labels, values in series:
            inside = ",".join(f"{key}={json.dumps(value)}" for key, value in labels.items())
            for number in range(math.ceil(seconds / step), -1, -1):
                at = until - number * step
                if (value := values(at)) is not None:
                    lines.append(f"{name}{{{inside}}} {value!r} {at:.3f}")
        text = self.folder / "series.txt"
        text.write_text("\n".join([*lines, "# EOF\n"]))
        one_block = "--max-block-duration=1440h"  # a block for each day takes ten times as long
        self.promtool("tsdb", "create-blocks-from", "openmetrics", one_block, str(text), str(self.folder / "data"))

    def promtool(self, *words: str) -> str:
        """What promtool prints."""
        done = subprocess.run(["promtool", *words], capture_output=True, text=True, timeout=PATIENCE, cwd=self.folder)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


def constant(value: float) -> Values:
    """The same value at all times."""
    return lambda _: value
