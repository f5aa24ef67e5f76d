"""Any file and any override: a run's configuration, or a ConfigError of one line. The builders' the same."""

import string

import pytest
import torch
import yaml
from composer.core import Algorithm
from hypothesis import example, given, settings
from hypothesis import strategies as st

from composer_edba import EDBA
from composer_edba.train.config import Config, ConfigError, load_config, schema_keys
from composer_edba.train.names import OPTIMIZERS, SCHEDULERS
from composer_edba.train.run import _build_named, build_algorithms, known_algorithms
from tests.contract.fuzz.counter import ran

MINIMAL = {
    "data": {"name": "digits"},
    "model": {"name": "digits_cnn"},
    "optimizer": {"lr": 0.1},
    "trainer": {"max_duration": "2ep"},
}
NAMES = [key.name for key in schema_keys()]
PARTS = sorted({part for name in NAMES for part in name.split(".")})

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=12),
    st.dates(),
    st.datetimes(),
    st.binary(max_size=4),
    st.sampled_from(
        ["1ep", "10ba", "0.5dur", "-1ep", "1e400", "${data.name}", "${no.such}", "${", "${oc.env:NO_SUCH_VARIABLE}"]
    ),
    st.sampled_from(
        ["???", "${trainer.run_name}", "~", "0x1F", "1_000", "!!python/object:os.system x", "*anchor", "y"]
    ),
    st.sampled_from([float("nan"), float("inf"), 2**64, -(2**70), 1e-320]),
)
keys = st.one_of(
    st.sampled_from(PARTS),
    st.text(max_size=8),
    st.integers(-3, 3),
    st.booleans(),
    st.none(),
    st.floats(allow_nan=False),
    st.sampled_from(["a.b", "data.name", "[0]", "a[0]", "..", ".", " ", "${x}", "__class__", "data", "é", "\u202e"]),
)
values = st.recursive(
    scalars,
    lambda children: st.lists(children, max_size=3) | st.dictionaries(keys, children, max_size=3),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz") / "run.yaml"


def outcome(build):
    """What ``build`` gives, or the one line it refuses with."""
    built = message = None
    try:
        built = build()
    except ConfigError as error:
        message = str(error)
    if message is not None:
        assert message
        assert len(message.splitlines()) == 1
    return built, message


def load(path, overrides=()):
    """The configuration, or None after a refusal."""
    config, message = outcome(lambda: load_config(path, overrides))
    assert (message is None) == isinstance(config, Config)
    return config


@settings(max_examples=300)
@given(name=st.sampled_from(NAMES), value=values)
def test_any_value_of_a_key_is_taken_or_refused_by_its_name(path, name, value):
    ran["configurations"] += 1
    section, _, leaf = name.rpartition(".")
    content = {part: dict(inside) for part, inside in MINIMAL.items()}
    (content.setdefault(section, {}) if section else content)[leaf] = value
    path.write_text(yaml.dump(content, allow_unicode=True), encoding="utf-8")
    config, message = outcome(lambda: load_config(path))
    if message is None:
        assert isinstance(config, Config)
    else:
        assert name.split(".")[0] in message or "not valid YAML" in message, message


@settings(max_examples=300)
@given(content=st.dictionaries(keys, values, max_size=4))
def test_any_structure_in_a_file_is_taken_or_refused(path, content):
    ran["configurations"] += 1
    path.write_text(yaml.dump({**MINIMAL, **content}, allow_unicode=True), encoding="utf-8")
    load(path)


@settings(max_examples=300)
@given(
    text=st.one_of(
        st.text(max_size=60),
        st.text(alphabet=string.printable, max_size=60),
        st.text(alphabet="data: {}[],-&*!?|>'\"%@`#\n\t${}0e.", max_size=40),
    )
)
@example(text="seed: 0b_")
@example(text="0")
@example(text="a: &a [*a]")
def test_any_text_as_a_file_is_taken_or_refused(path, text):
    ran["configurations"] += 1
    path.write_text(text, encoding="utf-8", newline="", errors="surrogatepass")
    load(path)


@settings(max_examples=200)
@given(content=st.binary(max_size=60))
def test_any_bytes_as_a_file_are_refused(path, content):
    ran["configurations"] += 1
    path.write_bytes(content)
    assert load(path) is None


@settings(max_examples=300)
@given(
    override=st.one_of(
        st.builds("{}={}".format, st.sampled_from(NAMES), st.text(max_size=15)),
        st.builds("{}={}".format, st.sampled_from(NAMES), values.map(lambda v: yaml.dump(v, default_flow_style=True))),
        st.builds("{}={}".format, st.lists(st.sampled_from(PARTS), max_size=4).map(".".join), st.text(max_size=8)),
        st.builds("{}={}".format, st.text(alphabet="ab.[]0${}=-: ", max_size=10), st.text(max_size=6)),
        st.text(max_size=30),
    )
)
@example(override="[=")
@example(override="a\\=1")
@example(override="seed=0x_")
@example(override="seed=[")
def test_any_override_is_taken_or_refused(path, override):
    ran["configurations"] += 1
    path.write_text(yaml.dump(MINIMAL), encoding="utf-8")
    load(path, [override])


@settings(max_examples=20)
@given(depth=st.integers(50, 3000), kind=st.sampled_from(["list", "mapping", "override"]))
def test_deep_nesting_is_refused(path, depth, kind):
    ran["configurations"] += 1
    inner = "[" * depth + "]" * depth if kind == "list" else "{a: " * depth + "1" + "}" * depth
    if kind == "override":
        path.write_text(yaml.dump(MINIMAL), encoding="utf-8")
        assert load(path, [f"{'a.' * depth}b=1"]) is None
    else:
        path.write_text(f"{yaml.dump(MINIMAL)}deep: {inner}\n", encoding="utf-8")
        assert load(path) is None


# ---- the builders


ALGORITHMS = sorted(known_algorithms())
argument_values = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 5), st.floats(), st.text(max_size=6), st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)  # fmt: skip


@settings(max_examples=300)
@given(
    given_algorithms=st.dictionaries(
        st.one_of(st.sampled_from(ALGORITHMS), st.text(max_size=8), st.integers(), st.none()),
        st.one_of(
            argument_values,
            st.dictionaries(
                st.one_of(
                    st.sampled_from(["preset", "alpha", "smoothing", "keep", "num_candidates", "start", "criterion"]),
                    st.text(max_size=5),
                    st.integers(),
                ),
                argument_values,
                max_size=3,
            ),
        ),
        max_size=3,
    )
)
def test_any_algorithms_are_built_or_refused_by_their_key(given_algorithms):
    ran["builders"] += 1
    built, message = outcome(lambda: build_algorithms(given_algorithms))
    if message is None:
        assert all(isinstance(algorithm, Algorithm) for algorithm in built)
    else:
        assert message.startswith("algorithms."), message


@settings(max_examples=200)
@given(
    arguments=st.dictionaries(
        st.sampled_from([*EDBA().settings, "preset", "num_candidate", ""]), argument_values, max_size=4
    )
)
def test_any_arguments_of_edba_are_built_or_refused_by_its_key(arguments):
    ran["builders"] += 1
    built, message = outcome(lambda: build_algorithms({"edba": arguments}))
    if message is None:
        assert [type(algorithm) for algorithm in built] == [EDBA]
    else:
        assert message.startswith("algorithms.edba"), message


def section(name, values):
    """Any values of the right types for the keys of a section."""
    return st.dictionaries(st.sampled_from([n.rpartition(".")[2] for n in NAMES if n.startswith(f"{name}.")]), values)


@settings(max_examples=300)
@given(
    optimizer=section("optimizer", scalars | st.lists(st.floats(), max_size=3)),
    scheduler=section("scheduler", scalars | st.lists(st.sampled_from(["1ep", "2ba", "x", "0.5dur"]), max_size=3)),
    names=st.tuples(
        st.sampled_from(["sgd", "adam", "adamw", "decoupled_sgdw", "decoupled_adamw", "rmsprop"]),
        st.sampled_from(["constant", "linear", "cosine", "multistep", "step", "exponential", "polynomial", "cosin"]),
    ),
)
def test_any_optimizer_and_scheduler_are_built_or_refused_by_their_key(path, optimizer, scheduler, names):
    ran["builders"] += 1
    content = {
        **MINIMAL,
        "optimizer": {"lr": 0.1, **optimizer, "name": names[0]},
        "scheduler": {**scheduler, "name": names[1]},
    }
    path.write_text(yaml.dump(content, allow_unicode=True), encoding="utf-8")
    config = load(path)
    if config is None:
        return
    model = torch.nn.Linear(1, 1)
    for build in (
        lambda config: _build_named(SCHEDULERS, "scheduler", config.scheduler),
        lambda config: _build_named(OPTIMIZERS, "optimizer", config.optimizer, model.parameters()),
    ):
        _, message = outcome(lambda build=build: build(config))
        assert message is None or message.startswith(("optimizer", "scheduler", "trainer")), message
