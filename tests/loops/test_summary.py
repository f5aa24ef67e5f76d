"""The table and the picture of a run, in a loop without Composer."""

import re
import subprocess
import sys

import pytest
import torch

import composer_edba
from composer_edba.plain import SubsetLoader
from tests.support.torch_runs import loader, net, sgd

LOSS = torch.nn.CrossEntropyLoss()


def run(**settings):
    model, figures = net(dropout=0.0), []
    optimizer, subsets = sgd(model), SubsetLoader(loader(256, 32), model, LOSS, **settings)
    before = subsets.summary()
    for _ in range(5):
        for inputs, target in subsets:
            optimizer.zero_grad()
            loss = LOSS(model(inputs), target)
            loss.backward()
            optimizer.step()
            figures.append({**subsets.figures, "loss": loss.item()})
    return subsets, figures, before


def rows(text):
    return dict(re.split(r"\s{2,}", line, maxsplit=1) for line in text.splitlines())


def test_the_table_adds_up():
    subsets, figures, before = run(left_out=0.3, min_subset_size=4)
    told, trained = rows(subsets.summary()), figures[-1]["samples_trained"]
    assert rows(before)["batches trained on"] == "0"
    assert told["batches trained on"] == str(len(figures))
    assert told["samples drawn"] == "1,280"
    assert told["samples trained on"] == f"{trained:,}  {1 - trained / 1280:.1%} left out"
    assert told["samples scored"] == "0"
    assert told["distinct samples"] == "256"
    assert re.fullmatch(r"\d+\.\d%  of the time since a batch arrived", told["overhead"])
    assert len({len(line) - len(line.lstrip()) for line in subsets.summary().splitlines()}) == 1


def test_a_run_of_any_loop_is_drawn(tmp_path):
    for number, settings in enumerate(({"left_out": 0.3}, {"preset": "paper"})):
        _, figures, _ = run(**settings)
        path = composer_edba.plot(figures, tmp_path / "made" / f"{number}.png", title="points")
        assert path.read_bytes().startswith(b"\x89PNG")
    # Lightning's and Transformers' names.
    named = [{f"edba/{name}": value for name, value in step.items()} for step in figures]
    other = composer_edba.plot(named, tmp_path / "named.png", title="points")
    assert other.read_bytes() == path.read_bytes()
    with pytest.raises(ValueError, match="figures is empty"):
        composer_edba.plot([], tmp_path / "none.png")


def test_the_picture_needs_no_composer_and_says_what_it_needs(tmp_path):
    pytest.importorskip("matplotlib")
    code = (
        "import sys\n"
        "sys.modules['composer'] = None\n"
        "import composer_edba\n"
        f"composer_edba.plot([{{'batch_size': 3, 'subset_size': 2}}], {str(tmp_path / 'a.png')!r})\n"
        "sys.modules['matplotlib.figure'] = sys.modules['matplotlib.backends.backend_agg'] = None\n"
        "try:\n"
        f"    composer_edba.plot([{{'batch_size': 3}}], {str(tmp_path / 'b.png')!r})\n"
        "except ImportError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "composer_edba.plot needs matplotlib" in done.stdout
    assert (tmp_path / "a.png").is_file()
