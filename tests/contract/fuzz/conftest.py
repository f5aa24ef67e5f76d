"""Says at the end of a test run how many fuzz cases it had."""

from tests.contract.fuzz.counter import ran


def pytest_terminal_summary(terminalreporter):
    if ran:
        kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(ran.items()))
        terminalreporter.write_line(f"fuzz cases: {sum(ran.values())} ({kinds})")
