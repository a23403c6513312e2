"""Keeps what each injected fault came to; `make chaos` prints it as a table at the end."""

from collections import defaultdict
from collections.abc import Callable
from typing import Literal

import pytest
from _pytest.terminal import TerminalReporter

Result = Literal["recovered", "clear error"]
Came = Callable[[str, Result, float], None]


@pytest.fixture
def came(record_property: Callable[[str, object], None]) -> Came:
    """Note what a fault came to: its name, the result, the seconds until the store and the registry were whole.

    What a test notes counts if it passes. A test that fails has lost something.
    """

    def note(fault: str, result: Result, seconds: float) -> None:
        record_property("fault", (fault, result, seconds))

    return note


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    """Print a row a fault: how often it was injected, what came of it, the longest recovery."""
    noted: dict[str, list[tuple[str, float]]] = defaultdict(list)
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            faults = [value for name, value in report.user_properties if name == "fault"]
            for fault, result, seconds in faults:
                noted[fault].append((result if outcome == "passed" else "lost", seconds))
            if outcome == "failed" and not faults:
                noted[report.nodeid].append(("lost", 0.0))
    if not noted:
        return
    terminalreporter.section("faults")
    row = "{:<58} {:>8} {:>9} {:>11} {:>4} {:>9}".format
    terminalreporter.write_line(row("fault", "injected", "recovered", "clear error", "lost", "longest"))
    for fault, results in sorted(noted.items()):
        count = [sum(result == name for result, _ in results) for name in ("recovered", "clear error", "lost")]
        terminalreporter.write_line(row(fault, len(results), *count, f"{max(s for _, s in results):.0f} s"))
