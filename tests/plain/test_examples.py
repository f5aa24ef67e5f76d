"""The examples run, and show how little is added."""

import importlib.util
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_plain_loop(capsys):
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    assert load("plain_loop").main(4) > 0.7
    assert "epoch 4" in capsys.readouterr().out
    lines = (EXAMPLES / "plain_loop.py").read_text().splitlines()
    assert sum(line.endswith("# added") for line in lines) <= 4


def test_ignite_digits(capsys):
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    pytest.importorskip("ignite", reason="PyTorch Ignite is not installed")
    assert load("ignite_digits").main(4) > 0.7
    assert "epoch 4" in capsys.readouterr().out
    lines = (EXAMPLES / "ignite_digits.py").read_text().splitlines()
    assert [line for line in lines if "EDBA" in line and "import" not in line and '"""' not in line] == [
        "    EDBAHandler(model, loss_fn).attach(trainer, train_loader)  # the added line"
    ]


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_every_example_is_run_here(path):
    assert f'load("{path.stem}")' in Path(__file__).read_text()
