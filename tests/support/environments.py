"""A team's own environments, in place of the guide's."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from django.test import override_settings

from ledger.environment_rows import follow_file

FIVE = """\
[qa]
purpose = "Trying it out"
colour = "blue"

[uat]
promotes_from = "qa"
url = "https://uat.example.com"

[eu]
promotes_from = "uat"
soak = "30m"
production = true
target = "kubernetes"
strategy = "blue-green"
namespace = "app-eu"
colour = "black"

[us]
promotes_from = ["uat"]
production = true
target = "kubernetes"
namespace = "app-us"

[dr]
promotes_from = ["eu", "us"]
"""


@contextmanager
def environments(folder: Path, text: str = FIVE) -> Iterator[Path]:
    """environments.toml with that text, and rows that follow it. Whoever uses it rolls the rows back."""
    file = folder / f"environments-{abs(hash(text))}.toml"
    file.write_text(text)
    with override_settings(ENVIRONMENTS_FILE=file):
        follow_file()
        yield file
