"""The package as it is imported, and what README promises."""

import re
import subprocess
import sys
from importlib import metadata, resources

import pytest

from tests.support.paths import ROOT, YAMLS

# What may import Composer, Ignite or what YAML runs need; everything else is torch, NumPy and Python.
_FRAMEWORKS = ("composer", "train", "ignite", "dba/algorithm", "__main__")


def torch_only_modules():
    package = ROOT / "composer_edba"
    files = [path.relative_to(package).with_suffix("").as_posix() for path in package.rglob("*.py")]
    return sorted(
        name.removesuffix("/__init__").replace("/", ".")
        for name in files
        if name != "__init__" and not any(name == part or name.startswith(f"{part}/") for part in _FRAMEWORKS)
    )


TORCH_ONLY = torch_only_modules()


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)


def test_the_torch_modules_work_without_composer_and_edba_names_the_extra():
    code = f"""
import sys
sys.modules["composer"] = None  # as if it were not installed
import importlib
import composer_edba
for name in {TORCH_ONLY}:
    importlib.import_module("composer_edba." + name)
print(composer_edba.functional.margin_loss.__name__)
try:
    composer_edba.EDBA
except ImportError as error:
    print(error)
"""
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert "margin_loss" in done.stdout
    assert "pip install 'composer-edba[composer]'" in done.stdout


def test_the_handler_names_the_extra_without_ignite():
    code = """
import sys
sys.modules["ignite"] = None  # as if it were not installed
try:
    import composer_edba.ignite
except ImportError as error:
    print(error)
"""
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert "pip install 'composer-edba[ignite]'" in done.stdout


def test_unknown_names_are_unknown():
    import composer_edba

    with pytest.raises(AttributeError, match="no attribute 'EDBB'"):
        _ = composer_edba.EDBB


def test_the_readmes_yaml_files_exist():
    named = re.findall(r"-m composer_edba\.train ([a-z0-9_]+/\w+)", (ROOT / "README.md").read_text())
    assert named
    for name in named:
        assert (YAMLS / f"{name}.yaml").exists(), name


def test_the_module_says_its_version():
    command = [sys.executable, "-m", "composer_edba"]
    version = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=300, check=True).stdout
    assert version == f"composer-edba {metadata.version('composer-edba')}\n"
    assert "torch " in subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout


def test_the_citation_has_the_packages_version():
    assert f"\nversion: {metadata.version('composer-edba')}\n" in (ROOT / "CITATION.cff").read_text()


def test_the_package_is_typed():
    assert resources.files("composer_edba").joinpath("py.typed").is_file()
