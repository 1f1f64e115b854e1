"""What all tests share: a summary in words, from whichever process recorded it."""

from __future__ import annotations

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what tests recorded as their summary; from another process, printing would be lost."""
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        for key, text in report.user_properties:
            if key == "summary":
                terminalreporter.write_line(str(text))
