"""Settings that every test needs."""

import importlib.util
import os

# Two cores: more threads than cores make small networks many times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import HealthCheck, settings

from tests.contract.fuzz.counter import ran

torch.set_num_threads(1)

settings.register_profile("shared_machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared_machine")


# Where Composer cannot be installed (torch 2.7.1 and later), the tests of what needs it are skipped, and no others.
WITHOUT_COMPOSER = importlib.util.find_spec("composer") is None
_COMPOSERS = {
    "bs_scheduler",
    "composer",
    "omegaconf",
    "torchvision",
    "torchmetrics",
    "matplotlib",
    "transformers",
    "yaml",
    "psutil",
}


def _missing(error):
    """The package of Composer's that an error comes from, if it does."""
    while error is not None:
        if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] in _COMPOSERS:
            return error.name
        error = error.__cause__
    return None


def _skip_without(error, **kwargs):
    if WITHOUT_COMPOSER and (name := _missing(error)) is not None:
        pytest.skip(f"{name} is not installed, nor is Composer", **kwargs)


class _Module(pytest.Module):
    """A test module that is skipped, with the reason, if it cannot be imported without Composer."""

    def collect(self):
        try:
            return list(super().collect())
        except self.CollectError as error:
            _skip_without(error, allow_module_level=True)
            raise


def pytest_pycollect_makemodule(module_path, parent):
    """Skip at collection what needs Composer, but only where Composer is missing as a whole."""
    return _Module.from_parent(parent, path=module_path) if WITHOUT_COMPOSER else None


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem):
    """Skip a test that turns out to need Composer while it runs."""
    try:
        return (yield)
    except ImportError as error:
        _skip_without(error)
        raise


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef, request):
    """The same for what a test is given."""
    try:
        return (yield)
    except ImportError as error:
        _skip_without(error)
        raise


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(1)


# ---- how many fuzz cases a test run had, over all of its processes


def pytest_sessionfinish(session):
    """A worker of pytest-xdist hands on its count."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["fuzz_cases"] = dict(ran)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    """The process that began the workers takes it in."""
    ran.update(getattr(node, "workeroutput", {}).get("fuzz_cases", {}))


def pytest_terminal_summary(terminalreporter):
    """Say it at the end."""
    if ran:
        kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(ran.items()))
        terminalreporter.write_line(f"fuzz cases: {sum(ran.values())} ({kinds})")
