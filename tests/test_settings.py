"""The table of settings: what is added to it arrives everywhere, and the paper's preset is literal."""

import inspect
import pydoc
import subprocess
import sys
from dataclasses import replace
from typing import Annotated, Literal

import pytest

from composer_edba.settings import (
    SETTINGS,
    Setting,
    Settings,
    as_markdown,
    check_value,
    checked,
    documented,
    signature_of,
    table_of,
)


def _temperature(name, value):
    if not isinstance(value, (int, float)):
        raise TypeError(f"{name} is {value!r}: it must be a number above 0")
    if not value > 0:
        raise ValueError(f"{name} is {value}: it must be above 0")


class More(Settings, total=False):
    temperature: Annotated[float, Setting(0.5, _temperature, paper=2.0, loops=("composer", "plain"))]
    """How freely to choose,
    > 0."""


class Choosy(Settings, total=False):
    order: Annotated[Literal["first", "last"], Setting("last")]
    """Which of two equals is taken."""


MORE = table_of(More)


# ---- an argument added to a copy of the table


def test_the_copy_has_one_more_and_the_table_is_as_before():
    assert list(MORE) == [*SETTINGS, "temperature"]
    assert MORE["temperature"].type is float
    assert {name: MORE[name] for name in SETTINGS} == SETTINGS == table_of(Settings)


def test_it_arrives_in_signatures():
    def train(model, seed=3, **settings):
        pass

    parameters = signature_of(train, "plain", MORE).parameters
    assert parameters["temperature"].kind is inspect.Parameter.KEYWORD_ONLY
    assert (parameters["temperature"].default, parameters["temperature"].annotation) == (0.5, float)
    inherited = [name for name, entry in SETTINGS.items() if "plain" in entry.loops and name != "seed"]
    assert list(parameters) == ["model", "seed", *inherited, "temperature"]
    assert parameters["seed"].default == 3, "a function's own argument stays"
    assert "temperature" not in signature_of(train, "ignite", MORE).parameters
    assert "temperature" in signature_of(train, table=MORE).parameters
    assert "temperature" not in signature_of(train, "plain").parameters


def test_it_arrives_in_a_classs_help():
    @documented("plain", MORE)
    class Loop:
        """A loop.

        Args:
            model: the network.
            settings: see there.

        Raises:
            ValueError: if not.
        """

        def __init__(self, model, **settings):
            self.settings = checked(settings, "plain", MORE)

    lines = inspect.getdoc(Loop).splitlines()
    assert "    temperature: How freely to choose, > 0. Default 0.5." in lines
    assert lines.index("    model: the network.") < lines.index("    interval: " + _told("interval"))
    assert lines.index("Raises:") == lines.index("    temperature: How freely to choose, > 0. Default 0.5.") + 2
    assert not any(line.strip().startswith(("settings:", "start:", "end:")) for line in lines)
    parameters = inspect.signature(Loop).parameters
    assert next(iter(parameters)) == "model"
    assert parameters["temperature"].default == 0.5
    assert not {"self", "settings", "start", "end"} & set(parameters)
    shown = pydoc.render_doc(Loop, renderer=pydoc.plaintext)
    assert "temperature: float = 0.5" in shown
    assert "How freely to choose" in shown
    assert Loop(None, temperature=3.0).settings["temperature"] == 3.0


def _told(name):
    return f"{SETTINGS[name].text} Default {SETTINGS[name].default!r}."


def test_it_is_checked():
    assert checked({}, "plain", MORE)["temperature"] == 0.5
    assert checked({"preset": "paper"}, "plain", MORE)["temperature"] == 2.0
    assert checked({"preset": "paper", "temperature": 7}, "plain", MORE)["temperature"] == 7
    with pytest.raises(ValueError, match=r"^temperature is -1\.5: it must be above 0$"):
        checked({"temperature": -1.5}, "plain", MORE)
    with pytest.raises(TypeError, match=r"^temperature is 'hot': it must be a number above 0$"):
        checked({"temperature": "hot"}, "composer", MORE)
    with pytest.raises(TypeError, match=r"^unknown argument 'temperature': "):
        checked({"temperature": 1.0}, "ignite", MORE)
    with pytest.raises(TypeError, match=r"^unknown argument 'temperature': "):
        checked({"temperature": 1.0})


def test_a_choice_of_names_needs_no_check_of_its_own():
    table = table_of(Choosy)
    assert table["order"].choices == ("first", "last")
    assert checked({}, table=table)["order"] == "last"
    assert checked({"preset": "paper"}, table=table)["order"] == "last"
    for value in ("middle", 1, None, len):
        with pytest.raises(ValueError, match=r"^order is .*: it must be one of 'first', 'last'$"):
            checked({"order": value}, table=table)


@pytest.mark.parametrize("misspelt", ["temprature", "temperatur", "Temperature"])
def test_it_is_suggested_for_a_misspelt_name(misspelt):
    with pytest.raises(TypeError, match=f"^unknown argument '{misspelt}': did you mean temperature\\?$"):
        checked({misspelt: 1.0}, "plain", MORE)


def test_it_arrives_in_the_documentation():
    *rows, last = as_markdown(MORE).splitlines()
    assert "\n".join(rows) + "\n" == as_markdown()
    assert last == "| `temperature` | `0.5` | `2.0` | How freely to choose, > 0. *Only in Composer, Plain.* |"


# ---- the table itself


@pytest.mark.parametrize("name", SETTINGS)
def test_each_default_and_each_of_the_papers_is_in_range(name):
    entry = SETTINGS[name]
    for value in (entry.default, *(() if entry.paper is ... else (entry.paper,))):
        check_value(name, value)
    assert entry.text.endswith(".")
    assert set(entry.loops) <= {"composer", "ignite", "lightning", "transformers", "accelerate", "plain"}


# What the paper says; where it is silent, our first reading of it.
PAPER = {
    "criterion": "margin",
    "num_candidates": 1024,
    "subset_size_law": "uniform",
    "min_subset_size": 10,
    "ema_decay": 0.9,
    "batch_size_policy": "margin",
    "policy_options": None,
    "min_batch_size": 10,
    "max_batch_size": 1000,
    "scoring": "forward",
    "scale_factor": 1.0,
    "scoring_batch_norm": "pool",
    "interval": 1,
    "interrupt": 0,
    "start": 0.0,
    "end": 1.0,
}
NO_MATTER_OF_THE_METHOD = {"last_layer": None, "seed": None, "input_key": None, "target_key": None}
NO_MATTER_OF_THE_METHOD |= {"left_out": 0.1, "recheck": 3, "refill": None, "size_multiple": 8}


def test_the_papers_preset_is_literal_whatever_the_defaults_become(monkeypatch):
    paper = {**PAPER, **NO_MATTER_OF_THE_METHOD}
    assert checked({"preset": "paper"}) == paper
    for name in PAPER:
        monkeypatch.setitem(SETTINGS, name, replace(SETTINGS[name], default="another"))
    monkeypatch.setitem(SETTINGS, "last_layer", replace(SETTINGS["last_layer"], default="fc"))
    paper["last_layer"] = "fc"
    assert checked({"preset": "paper"}) == paper
    given = {"interval": 7, "scoring": "cached"}
    assert checked({"preset": "paper", **given}) == {**paper, **given}


def test_the_default_preset_is_the_defaults():
    defaults = {name: entry.default for name, entry in SETTINGS.items() if name != "preset"}
    assert checked({}) == checked({"preset": "default"}) == defaults
    assert checked(checked({"preset": "paper"})) == checked({"preset": "paper"}), "what it gives, it takes"


@pytest.mark.parametrize(
    ("name", "value", "loops"),
    [
        ("start", 0.5, {"composer", "ignite"}),
        ("end", 0.5, {"composer", "ignite"}),
        ("seed", 3, {"ignite", "plain"}),
        ("input_key", 0, {"composer"}),
        ("target_key", 1, {"composer"}),
    ],
)
def test_what_only_some_loops_can_do_is_refused_in_the_others(name, value, loops):
    for loop in ("composer", "ignite", "plain"):
        if loop in loops:
            assert checked({name: value}, loop)[name] == value
        else:
            with pytest.raises(TypeError, match=f"^unknown argument '{name}': "):
                checked({name: value}, loop)
    assert checked({name: value})[name] == value


def test_settings_need_no_torch():
    """A YAML file is checked before torch is imported, which takes seconds."""
    code = """
import sys
sys.modules["torch"] = None  # as if it were not installed
from composer_edba.settings import as_markdown, checked
assert checked({"preset": "paper", "last_layer": "fc"})["interval"] == 1
assert "| `interval` |" in as_markdown()
for wrong in ({"intervall": 1}, {"interval": 0}, {"last_layer": 3}):
    try:
        checked(wrong)
    except (TypeError, ValueError) as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    told = done.stdout.splitlines()
    assert told == [
        "unknown argument 'intervall': did you mean interval?",
        "interval is 0: it must be at least 1",
        "last_layer is 3: it must be a module of the model, its name, or None",
    ]
