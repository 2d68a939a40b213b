"""A pytest plugin that measures the coverage of its process, and of each worker of xdist.

tests/support/runner.py loads it.
"""

import os

import coverage

measure = coverage.Coverage(data_file=f"{os.environ['MEASURED']}/data", data_suffix=True)
measure.start()  # at the import: before anything of the apps is imported


def pytest_unconfigure() -> None:
    measure.stop()
    measure.save()
