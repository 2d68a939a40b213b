"""Programs that a test needs and a developer's machine may lack."""

import os
import shutil

import pytest


def needs(program: str) -> pytest.MarkDecorator:
    """Skips the test on a machine without the program. In CI it runs, and so fails: nothing may go unproven."""
    missing = not shutil.which(program) and not os.environ.get("CI")
    return pytest.mark.skipif(missing, reason=f"{program} not found")
