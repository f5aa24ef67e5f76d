"""YAML runs on the real CIFAR data."""

import json
import os

import pytest

from composer_edba.train.config import load_config
from composer_edba.train.run import main
from tests.support.paths import YAMLS

pytestmark = [
    pytest.mark.cifar,
    pytest.mark.skipif("CIFAR_ROOT" not in os.environ, reason="CIFAR_ROOT names no folder with the CIFAR data"),
]


def short_run(tmp_path, file, *overrides):
    config = load_config(
        YAMLS / file,
        [
            f"data.root={os.environ['CIFAR_ROOT']}",
            f"output.folder={tmp_path}",
            "model.name=digits_cnn",  # small: CI has two cores
            "trainer.progress_bar=false",
            *overrides,
        ],
    )
    main(config)
    return json.loads((tmp_path / "summary.json").read_text())["results"]


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_edba_on_one_percent_never_sees_more_than_its_500_images(tmp_path, name):
    summary = short_run(
        tmp_path,
        f"{name}/preresnet56_edba.yaml",
        "data.fraction=0.01",
        "trainer.max_duration=3ep",
        "trainer.eval_interval=3ep",
    )
    assert summary["samples_scored"] == 1500
    assert summary["distinct_samples"] <= 500
    assert summary["samples_trained"] < 1500
    assert (tmp_path / "run.png").stat().st_size > 10_000


def test_edba_learns_real_images(tmp_path):
    """Far above the 10 % of chance after a minute, at a learning rate that a short run needs."""
    summary = short_run(
        tmp_path,
        "cifar10/preresnet56_edba.yaml",
        "data.samples=4000",
        "optimizer.lr=0.05",
        "trainer.max_duration=4ep",
        "trainer.eval_interval=4ep",
    )
    assert summary["test_accuracy"] > 0.25
