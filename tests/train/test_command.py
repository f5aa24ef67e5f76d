import json
import os
import subprocess
import sys

import pytest

from composer_edba.train.command import cli
from composer_edba.train.names import DATASETS, MODELS
from composer_edba.train.schema import schema_keys
from tests.support.paths import ROOT, YAMLS

DIGITS = YAMLS / "digits"
SHORT = ["data.samples=300", "trainer.max_duration=2ep", "trainer.progress_bar=false", "trainer.device=cpu"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "RUN is missing"),
        (["no.yaml"], "error: no.yaml: cannot read this YAML file"),
        (
            [str(DIGITS / "edba.yaml"), "data.fractoin=1"],
            "error: data.fractoin: unknown key; did you mean data.fraction?",
        ),
        ([str(DIGITS / "edba.yaml"), "--fast"], "error: '--fast': not an override"),
    ],
)
def test_a_wrong_command_line_exits_with_2(capsys, arguments, expected):
    assert cli(arguments) == 2
    captured = capsys.readouterr()
    assert expected in captured.err
    assert captured.out == ""


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_explains_every_key(capsys, flag):
    assert cli([flag]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for key in schema_keys():
        assert key.name in text
        assert key.help in text
    for name, model in MODELS.items():
        assert f"{name} {model.text}" in text
    for name, line in DATASETS.items():
        assert f"{name} {line}" in text
    for path in YAMLS.glob("*/*.yaml"):
        assert f"{path.parent.name}/{path.stem}" in text


# ---- in a process of its own


def run_command(command, folder):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=500, check=False
    )


# Runs the command line as __main__ does, and says whether torch came with it.
LIGHT = """
import sys
from composer_edba.train.command import cli
code = cli(sys.argv[1:])
print("heavy:", sorted({"torch", "composer", "numpy"} & set(sys.modules)))
sys.exit(code)
"""


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["digits/edba", "data.fractoin=1"], "data.fractoin: unknown key; did you mean data.fraction?"),
        (["digits/edba", "data.batch_size=many"], "data.batch_size: 'many' has the wrong type"),
        (["digits/edba", "data.fraction=2"], "data.fraction: 2.0 is out of range"),
        (["digits/edba", "trainer.max_duration=10epochs"], "trainer.max_duration: '10epochs' is no time"),
        (["digits/edba", "scheduler.name=cosin"], "scheduler.name: 'cosin' is unknown; did you mean cosine?"),
        (["digits/edba", "optimizer.name=sdg"], "optimizer.name: 'sdg' is unknown; did you mean sgd?"),
        (["digits/edba", "data.name=digit"], "data.name: 'digit' is unknown; did you mean digits?"),
        (["digits/edba", "model.name=resnet99"], "model.name: 'resnet99' is unknown; did you mean resnet9?"),
        (
            ["digits/edba", "model.name=torchvison:resnet18"],
            "model.name: 'torchvison:resnet18': the package torchvison is not installed; did you mean torchvision?",
        ),
        (["digits/baseline", "algorithms.mixpu={}"], "algorithms.mixpu: unknown algorithm; did you mean mixup?"),
        (["digits/edba", "algorithms.edba.num_candidate=3"], "did you mean num_candidates?"),
        (["digits/edba", "algorithms.edba.preset=papre"], "algorithms.edba: preset is 'papre'"),
        (["no/such.yaml"], "no/such.yaml: cannot read this YAML file (there is none), nor is it a shipped run"),
        (["digits/ebda"], "did you mean digits/edba? known: cifar10/preresnet56_baseline, "),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_what_is_wrong_is_said_before_torch_is_imported(tmp_path, arguments, expected):
    done = run_command([sys.executable, "-c", LIGHT, *arguments], tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stdout == "heavy: []\n"
    assert len(done.stderr.splitlines()) == 1
    assert expected in done.stderr


@pytest.mark.parametrize("arguments", [["--help"], []])
def test_help_needs_no_torch(tmp_path, arguments):
    done = run_command([sys.executable, "-c", LIGHT, *arguments], tmp_path)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0 if arguments else 2, "heavy: []")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["digits/edba", "data.fractoin=1"], "error: data.fractoin: unknown key; did you mean data.fraction?\n"),
        (["digits/edba", "optimizer.lr=-1"], "error: optimizer.lr: -1.0 is out of range; expected at least 0\n"),
        (["digits/ebda"], "did you mean digits/edba?"),
    ],
    ids=["key", "value", "run"],
)
def test_the_module_exits_with_2(tmp_path, arguments, expected):
    done = run_command([sys.executable, "-m", "composer_edba.train", *arguments], tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert expected in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_shipped_run_starts_by_its_name(tmp_path):
    done = run_command([sys.executable, "-m", "composer_edba.train", "digits/edba", *SHORT], tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1] == "runs/digits-edba/run.png"


@pytest.mark.slow
def test_the_composer_command_runs_a_file(tmp_path):
    launcher = [sys.executable, "-m", "composer.cli.launcher", "-n", "1", "-m", "composer_edba.train"]
    done = run_command([*launcher, str(DIGITS / "edba.yaml"), *SHORT], tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.strip().splitlines()
    own = [line for line in lines if not line.startswith("Waiting up to 30 seconds")]  # the launcher's last word
    assert own[-1] == "runs/digits-edba/run.png"
    assert (tmp_path / "runs/digits-edba/run.png").exists()
    refused = run_command([*launcher, str(DIGITS / "edba.yaml"), "data.fractoin=1"], tmp_path)
    assert refused.returncode == 2
    assert "did you mean data.fraction?" in refused.stdout + refused.stderr
    assert "Traceback" not in refused.stdout + refused.stderr


@pytest.mark.slow
def test_two_ranks_share_the_batch(tmp_path):
    launcher = [sys.executable, "-m", "composer.cli.launcher", "-n", "2", "-m", "composer_edba.train"]
    done = run_command([*launcher, str(DIGITS / "edba.yaml"), *SHORT, "torch_num_threads=1"], tmp_path)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "runs/digits-edba/summary.json").read_text())
    assert results["hardware"]["ranks"] == 2
    assert results["results"]["samples_drawn"] == 600
    odd = run_command([*launcher, str(DIGITS / "edba.yaml"), *SHORT, "data.batch_size=33"], tmp_path)
    assert odd.returncode == 2
    assert "data.batch_size: 33 does not divide evenly among 2 ranks" in odd.stdout + odd.stderr
