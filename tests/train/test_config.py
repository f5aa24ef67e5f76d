import dataclasses
import re

import pytest
import yaml
from hypothesis import assume, example, given
from hypothesis import strategies as st

from composer_edba.train.config import Config, ConfigError, load_config, schema_keys
from tests.support.paths import YAMLS

FILES = sorted(YAMLS.glob("*/*.yaml"))
MINIMAL = """\
data: {name: digits}
model: {name: digits_cnn}
optimizer: {lr: 1e-1}
trainer: {max_duration: 2ep}
"""
KEYS = [key.name for key in schema_keys()]
CLOSED_KEYS = [key.name for key in schema_keys() if not key.free]


@pytest.fixture(scope="module")
def minimal(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "run.yaml"
    path.write_text(MINIMAL)
    return path


def refusal(path, *overrides):
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_defaults_fill_what_the_file_leaves_out(minimal):
    config = load_config(minimal)
    assert isinstance(config, Config)
    assert config.optimizer.lr == 0.1
    assert config.data.batch_size == 100
    assert config.trainer.run_name == "digits-digits_cnn"
    assert config.output.folder == "runs/digits-digits_cnn"
    assert config.algorithms == {}


def test_overrides_win_over_the_file_and_the_last_one_over_the_others(minimal):
    overrides = ["trainer.max_duration=5", "data.batch_size=32", "data.batch_size=48", "trainer.run_name=mine"]
    config = load_config(minimal, [*overrides, "algorithms.edba.num_candidates=64", "scheduler.milestones=[1ep, 2ep]"])
    assert config.trainer.max_duration == 5
    assert config.data.batch_size == 48
    assert config.output.folder == "runs/mine"
    assert config.algorithms == {"edba": {"num_candidates": 64}}
    assert config.scheduler.milestones == ["1ep", "2ep"]


def test_an_empty_section_keeps_its_defaults(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(MINIMAL + "scheduler:\noutput:\n")
    assert load_config(path) == load_config(path, ["scheduler.name=constant"])


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("data.fractoin=0.5", "data.fractoin: unknown key; did you mean data.fraction?"),
        ("lr=0.5", "lr: unknown key; did you mean optimizer.lr?"),
        ("trainer.lr=0.5", "trainer.lr: unknown key; did you mean optimizer.lr?"),
        ("trianer.precision=fp32", "trianer.precision: unknown key; did you mean trainer.precision?"),
        ("qqqqqq=1", "known: seed, torch_num_threads, data, model"),
        ("output.qqqqqq=1", "known: folder, plot, tensorboard"),
        ("data.batch_size=many", "data.batch_size: 'many' has the wrong type; expected an integer (int)"),
        ("data.batch_size=1.5", "data.batch_size: 1.5 has the wrong type; expected an integer (int)"),
        ("data.batch_size=null", "data.batch_size: None has the wrong type"),
        ("data.augment=perhaps", "data.augment: 'perhaps' has the wrong type; expected true or false (bool)"),
        ("optimizer.lr=fast", "optimizer.lr: 'fast' has the wrong type; expected a number (float)"),
        ("scheduler.milestones=1ep", "expected a list, each text (str) or null"),
        ("trainer.max_duration=1.5", "expected an integer (int) or text (str)"),
        ("algorithms=edba", "algorithms: 'edba' has the wrong type; expected a mapping (dict)"),
        ("data=digits", "data: 'digits' is no section; expected a mapping with keys among name, root"),
        ("data.name.kind=1", "data.name: {'kind': 1} has the wrong type"),
        ("data.fraction=1.5", "data.fraction: 1.5 is out of range; expected a share in (0, 1]"),
        ("data.fraction=0", "data.fraction: 0.0 is out of range"),
        ("data.batch_size=0", "data.batch_size: 0 is out of range; expected at least 1"),
        ("seed=-1", "seed: -1 is out of range"),
        ("optimizer.momentum=1", "optimizer.momentum: 1.0 is out of range"),
        ("trainer.precision=fp33", "trainer.precision: 'fp33' is out of range; expected fp32"),
        ("trainer.device_train_microbatch_size=some", "expected auto or an integer of at least 1"),
        ("trainer.autoresume=true", "trainer.autoresume: true needs trainer.save_folder"),
        ("trainer.run_name=${data.nmae}", "trainer.run_name"),
        ("data.batch_size=${data.name}", "data.batch_size"),
        ("data.batch_size={", "'data.batch_size={': the value is not valid YAML"),
        ("verbose", "'verbose': not an override; write key=value"),
        ("--seed=3", "'--seed=3': not an override; write key=value"),
        ("=3", "'=3': not an override"),
    ],
)
def test_a_wrong_override_is_refused_by_name(minimal, override, expected):
    assert expected in refusal(minimal, override)


def test_fraction_beside_samples_is_refused(minimal):
    assert "data.samples: 10 beside data.fraction=0.5" in refusal(minimal, "data.samples=10", "data.fraction=0.5")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("data: [digits\n", "not valid YAML at line 2"),
        ("seed: 1\nseed: 2\n", "duplicate key seed"),
        ("digits\n", "holds no mapping"),
        ("- seed\n", "holds no mapping"),
        ("3: seed\n", "3: unknown key"),
        ("data: {nmae: digits}\n", "data.nmae: unknown key; did you mean data.name?"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path, text, expected):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    assert expected in refusal(path)


def test_a_missing_file_is_named(tmp_path):
    assert f"{tmp_path / 'no.yaml'}: cannot read this YAML file" in refusal(tmp_path / "no.yaml")


def test_every_unset_required_key_is_named(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("")
    message = refusal(path)
    for key in schema_keys():
        assert (f"{key.name} (" in message) == key.required
    assert "optimizer.lr" not in refusal(path, "optimizer.lr=0.1")


@st.composite
def typos(draw):
    """A key of the schema with one letter of its last part dropped, doubled or swapped with the next."""
    key = draw(st.sampled_from([name for name in CLOSED_KEYS if len(name.rpartition(".")[2]) >= 5]))
    at = draw(st.integers(key.rfind(".") + 1, len(key) - 1))
    edits = {
        "dropped": key[:at] + key[at + 1 :],
        "doubled": key[:at] + key[at] + key[at:],
        "swapped": key[:at] + key[at : at + 2][::-1] + key[at + 2 :],
    }
    return key, edits[draw(st.sampled_from(sorted(edits)))]


@given(typos())
@example(("data.fraction", "data.fractoin"))
def test_a_typo_is_refused_with_the_key_that_was_meant(minimal, pair):
    key, typo = pair
    assume(typo not in KEYS)
    message = refusal(minimal, f"{typo}=1")
    assert message.startswith(f"{typo}: unknown key; did you mean ")
    suggested = message.removesuffix("?").rpartition(" ")[2]
    # alpha_i and alpha_f, say, are as near as can be to alpha_ and each other.
    assert suggested == key or key.startswith("scheduler.alpha")


@given(st.text(min_size=1).filter(lambda text: "=" not in text))
def test_no_override_without_an_equals_sign_gets_through(minimal, text):
    assert "not an override" in refusal(minimal, text).replace("\\n", "")


def test_every_key_has_a_comment():
    assert [key.name for key in schema_keys() if not key.help.strip()] == []


# ---- the files in yamls/


def test_there_are_runs_for_every_benchmark_data_set():
    names = {str(path.relative_to(YAMLS)) for path in FILES}
    assert names == {
        "digits/edba.yaml",
        "digits/baseline.yaml",
        "fashion_mnist/mlp_baseline.yaml",
        "fashion_mnist/mlp_dba.yaml",
        "fashion_mnist/mlp_edba.yaml",
        "cifar10/preresnet56_edba.yaml",
        "cifar10/preresnet56_baseline.yaml",
        "cifar10/resnet9_edba.yaml",
        "cifar10/resnet9_baseline.yaml",
        "cifar10/resnet9_recipe_edba.yaml",
        "cifar10/resnet9_recipe_baseline.yaml",
        "cifar100/preresnet56_edba.yaml",
        "cifar100/preresnet56_baseline.yaml",
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_file_loads_and_names_its_own_run(path):
    config = load_config(path)
    assert config.data.name == path.parent.name
    assert config.trainer.run_name == f"{path.parent.name}-{path.stem.replace('_', '-')}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_key_line_of_a_file_has_a_comment(path):
    lines = [line for line in path.read_text().splitlines() if line.strip() and not line.startswith("#")]
    bare = [line for line in lines if not re.match(r"\s*\w+:( [^#]*)? +# \S", line)]
    assert bare == []


@pytest.mark.parametrize(
    "path", [p for p in FILES if p.stem.endswith("edba")], ids=lambda p: f"{p.parent.name}-{p.stem}"
)
def test_a_baseline_is_the_twin_without_edba(path):
    twin = path.with_stem(path.stem.replace("edba", "baseline"))
    ours, theirs = yaml.safe_load(path.read_text()), yaml.safe_load(twin.read_text())
    ours["algorithms"].pop("edba")
    assert ours["trainer"].pop("run_name") != theirs["trainer"].pop("run_name")
    assert ours == theirs


@pytest.mark.parametrize("data", ["cifar10", "cifar100"])
def test_the_paper_runs_have_the_settings_of_the_paper(data):
    config = load_config(YAMLS / data / "preresnet56_edba.yaml")
    assert config.model.name == "preresnet56"
    assert (config.data.batch_size, config.data.augment, config.trainer.max_duration) == (100, True, "300ep")
    optimizer = {k: v for k, v in dataclasses.asdict(config.optimizer).items() if v is not None}
    assert optimizer == {"name": "sgd", "lr": 0.001, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-5}
    assert config.scheduler.name == "constant"
    assert config.algorithms == {"edba": {"preset": "paper"}}
