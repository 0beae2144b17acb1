"""Tests run side by side, one process to a core."""

import os


def pytest_configure() -> None:
    """Bind the processes that share the tests to a core each: the simulator's threads would take it from the others."""
    number = os.environ.get("PYTEST_XDIST_WORKER", "").removeprefix("gw")
    if number and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(number) % len(cores)]})
