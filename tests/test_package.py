"""The package as it is imported, and what README promises."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TORCH_ONLY = [
    "arguments",
    "batch",
    "batch_size",
    "candidates",
    "distinct",
    "functional",
    "last_layer",
    "loader",
    "microbatch",
    "reference",
    "scoring",
    "selection",
]


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


def test_unknown_names_are_unknown():
    import composer_edba

    with pytest.raises(AttributeError, match="no attribute 'EDBB'"):
        _ = composer_edba.EDBB


@pytest.mark.parametrize("number", range(2))
def test_the_readmes_python_blocks_run(number, monkeypatch, tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 2
    monkeypatch.chdir(tmp_path)
    exec(compile(blocks[number], f"README block {number}", "exec"), {})


def test_the_readmes_files_exist():
    text = (ROOT / "README.md").read_text()
    for path in re.findall(r"\]\(((?!http)[^)]+)\)", text) + re.findall(r"yamls/\S+\.yaml", text):
        assert (ROOT / path).exists(), path
