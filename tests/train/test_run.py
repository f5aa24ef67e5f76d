import json

import composer.algorithms
import pytest
import torch
from composer.loggers import InMemoryLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from composer_edba import DBA, EDBA
from composer_edba.train.command import cli
from composer_edba.train.config import ConfigError, load_config
from composer_edba.train.names import OPTIMIZERS, SCHEDULERS, algorithm_names, load
from composer_edba.train.run import build_algorithms, build_trainer, known_algorithms, main
from tests.support.paths import YAMLS

DIGITS = YAMLS / "digits"
SHORT = ["data.samples=300", "trainer.max_duration=2ep", "trainer.progress_bar=false", "trainer.device=cpu"]

# Composer's word on a batch smaller than the microbatch, which any last batch is.
pytestmark = pytest.mark.filterwarnings("ignore:Cannot split tensor of length")


def short_run(kind, folder, *overrides):
    return load_config(DIGITS / f"{kind}.yaml", [*SHORT, f"output.folder={folder}", *overrides])


def summary_of(folder):
    return json.loads((folder / "summary.json").read_text())


def logged(trainer, name):
    memory = next(d for d in trainer.logger.destinations if isinstance(d, InMemoryLogger))
    return [value for _, value in memory.data[name]]


def weights(trainer):
    return {name: value.clone() for name, value in trainer.state.model.state_dict().items()}


# ---- whole runs


def test_a_baseline_run_trains_and_counts_its_samples(tmp_path, capsys):
    trainer = main(short_run("baseline", tmp_path))
    assert [type(a) for a in trainer.state.algorithms] == []
    results = summary_of(tmp_path)["results"]
    assert results["updates"] == 2 * 5
    assert (results["samples_scored"], results["samples_trained"], results["distinct_samples"]) == (0, 600, 300)
    assert (results["overhead"], results["final_batch_size"], results["epochs"]) == (0.0, 64, 2)
    losses = logged(trainer, "loss/train/total")
    assert losses[-1] < losses[0]
    assert capsys.readouterr().out.strip().splitlines()[-1] == str(tmp_path / "run.png")


def test_an_edba_run_trains_on_subsets_and_reports_them(tmp_path, capsys):
    trainer = main(short_run("edba", tmp_path, "algorithms.edba.preset=paper"))
    results = summary_of(tmp_path)["results"]
    assert results["samples_drawn"] == 600
    assert results["samples_trained"] == sum(logged(trainer, "edba/subset_size")) < 600
    assert results["samples_scored"] == logged(trainer, "edba/samples_scored")[-1] > 0
    assert 0 < results["distinct_samples"] <= 300
    assert 0 < results["overhead"] < 1
    assert results["final_batch_size"] == trainer.state.algorithms[0].batch_size
    table = capsys.readouterr().out
    assert "samples scored" in table
    assert "overhead" in table


def test_the_seed_alone_decides_a_run(tmp_path):
    first, again, other = (weights(main(short_run("edba", tmp_path, f"seed={seed}"))) for seed in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["module.fc.weight"], other["module.fc.weight"])


@pytest.mark.parametrize("kind", ["baseline", "edba"])
def test_a_run_resumes_from_a_checkpoint_by_a_key(tmp_path, kind):
    # 7 of 5 batches an epoch: in the middle of the second one.
    saving = [f"trainer.save_folder={tmp_path / 'whole'}", "trainer.save_interval=7ba"]
    whole = main(short_run(kind, tmp_path / "a", *saving))
    checkpoint = next((tmp_path / "whole").glob("ep*-ba7-rank0.pt"))
    resumed = main(short_run(kind, tmp_path / "b", f"trainer.load_path={checkpoint}"))
    expected, actual = weights(whole), weights(resumed)
    assert all(torch.equal(expected[name], actual[name]) for name in expected)
    before, after = summary_of(tmp_path / "a")["results"], summary_of(tmp_path / "b")["results"]
    for name in ("updates", "samples_drawn", "samples_scored", "samples_trained", "distinct_samples"):
        assert after[name] == before[name]


def test_autoresume_goes_on_from_the_latest_checkpoint(tmp_path):
    keys = [f"trainer.save_folder={tmp_path / 'saved'}", "trainer.autoresume=true"]
    main(short_run("edba", tmp_path, *keys, "trainer.max_duration=1ep"))
    trainer = main(short_run("edba", tmp_path, *keys, "trainer.max_duration=2ep"))
    assert int(trainer.state.timestamp.epoch) == 2
    assert len(logged(trainer, "edba/batch_size")) < summary_of(tmp_path)["results"]["updates"]


def test_tensorboard_takes_one_key(tmp_path):
    main(short_run("edba", tmp_path, "output.tensorboard=true"))
    folder = tmp_path / "tensorboard" / "digits-edba"
    tags = set()
    for events in folder.glob("events.*"):
        tags.update(EventAccumulator(str(events)).Reload().Tags()["scalars"])
    assert {"edba/batch_size", "edba/subset_size", "edba/samples_trained", "edba/overhead"} <= tags


def test_composers_algorithms_run_beside_edba(tmp_path):
    trainer = main(
        short_run("edba", tmp_path, "algorithms.label_smoothing.smoothing=0.2", "algorithms.ema={half_life: 2ba}")
    )
    assert {type(a).__name__ for a in trainer.state.algorithms} == {"EDBA", "LabelSmoothing", "EMA"}


def test_false_leaves_an_algorithm_out(tmp_path):
    trainer = main(short_run("edba", tmp_path, "algorithms.edba=false", "trainer.max_duration=1ba"))
    assert trainer.state.algorithms == []


@pytest.mark.parametrize(
    "scheduler",
    [
        ["name=cosine_with_warmup", "t_warmup=1ep"],
        ["name=multistep", "milestones=[1ep]", "gamma=0.5"],
        ["name=linear", "alpha_f=0.1"],
    ],
    ids=["cosine", "multistep", "linear"],
)
def test_a_scheduler_moves_the_learning_rate(tmp_path, scheduler):
    trainer = main(short_run("baseline", tmp_path, *(f"scheduler.{key}" for key in scheduler)))
    assert trainer.state.optimizers[0].param_groups[0]["lr"] < 0.05


@pytest.mark.parametrize("name", ["adam", "adamw", "decoupled_adamw", "decoupled_sgdw"])
def test_an_optimizer_trains(tmp_path, name):
    keys = ["optimizer.lr=0.001", "trainer.max_duration=2ba"]
    adam = ["optimizer.momentum=null", "optimizer.nesterov=null"] if "adam" in name else []
    trainer = main(short_run("baseline", tmp_path, f"optimizer.name={name}", *keys, *adam))
    assert type(trainer.state.optimizers[0]).__name__.lower() == name.replace("_", "")


@pytest.mark.parametrize("path", sorted(YAMLS.glob("*/*.yaml")), ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_every_file_builds_its_algorithms(path):
    algorithms = build_algorithms(load_config(path).algorithms)
    assert (EDBA in map(type, algorithms)) == path.stem.endswith("edba")
    assert (DBA in map(type, algorithms)) == path.stem.endswith("_dba")
    assert len(algorithms) == len(load_config(path).algorithms)


# ---- algorithms by name


def test_every_algorithm_of_composer_has_a_name():
    algorithms = {getattr(composer.algorithms, name) for name in composer.algorithms.__all__}
    expected = {a for a in algorithms if issubclass(a, composer.Algorithm)}
    known = known_algorithms()
    assert set(known.values()) == expected | {DBA, EDBA}
    assert set(known) == set(algorithm_names())  # which are found without importing Composer
    assert known["selective_backprop"] is composer.algorithms.SelectiveBackprop


@pytest.mark.parametrize("name", ["mixup", "MixUp", "mix_up", "mix-up", "MIXUP"])
def test_case_and_underscores_of_a_name_do_not_matter(name):
    assert [type(a) for a in build_algorithms({name: {"alpha": 0.3}})] == [composer.algorithms.MixUp]


@pytest.mark.parametrize("arguments", [None, {}, True])
def test_an_algorithm_without_arguments_has_its_defaults(arguments):
    assert repr(build_algorithms({"edba": arguments})[0]) == repr(EDBA())


def test_the_paper_preset_takes_overrides():
    algorithm = build_algorithms({"edba": {"preset": "paper", "num_candidates": 7}})[0]
    assert repr(algorithm) == repr(EDBA.paper(num_candidates=7))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"mixpu": {}}, "algorithms.mixpu: unknown algorithm; did you mean mixup?"),
        ({"selective_backdrop": {}}, "did you mean selective_backprop?"),
        (
            {"edba": {"num_candidate": 3}},
            "algorithms.edba.num_candidate: EDBA takes no such argument; did you mean num_candidates?",
        ),
        ({"edba": {"prest": "paper"}}, "algorithms.edba.prest: EDBA takes no such argument; did you mean preset?"),
        ({"edba": {"preset": "papre"}}, "algorithms.edba: preset is 'papre': it must be one of 'default', 'paper'"),
        ({"edba": {"num_candidates": 0}}, "algorithms.edba: "),
        ({"edba": 3}, "algorithms.edba: 3 has the wrong type"),
        ({"mixup": {"alhpa": 0.1}}, "algorithms.mixup.alhpa: MixUp takes no such argument; did you mean alpha?"),
        ({"mixup": {}, "MixUp": {}}, "algorithms.MixUp: names mixup a second time"),
        ({"gradient_clipping": {}}, "algorithms.gradient_clipping: GradientClipping needs clipping_type"),
    ],
)
def test_a_wrong_algorithm_is_refused_by_name(given, expected):
    with pytest.raises(ConfigError) as caught:
        build_algorithms(given)
    assert expected in str(caught.value)


@pytest.mark.parametrize("target", [*OPTIMIZERS.values(), *SCHEDULERS.values()])
def test_an_optimizer_and_a_scheduler_are_where_their_names_say(target):
    assert callable(load(target))


# ---- what is refused before anything trains


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optimizer.name=sdg", "optimizer.name: 'sdg' is unknown; did you mean sgd?"),
        ("optimizer.betas=[0.9,0.99]", "optimizer.betas: SGD takes no such argument"),
        ("scheduler.name=cosin", "scheduler.name: 'cosin' is unknown; did you mean cosine?"),
        ("scheduler.gamma=0.1", "scheduler.gamma: ConstantScheduler takes no such argument"),
        ("scheduler.name=multistep", "scheduler: MultiStepScheduler needs milestones"),
        ("scheduler.t_max=1epoch", "scheduler.t_max: '1epoch' is no time"),
        ("trainer.max_duration=ten", "trainer.max_duration: 'ten' is no time"),
        ("trainer.load_path=no/such.pt", "trainer.load_path: 'no/such.pt' does not exist"),
        ("data.name=digit", "data.name: 'digit' is unknown; did you mean digits?"),
        ("data.samples=100000", "data: "),
        ("data.name=cifar10", "data: "),
        ("model.name=resnet8", "model.name: 'resnet8' is unknown; did you mean resnet9?"),
        ("model.kwargs.widht=3", "model: unknown model argument widht"),
    ],
)
def test_a_wrong_value_is_one_line_and_exit_code_2(tmp_path, capsys, override, expected):
    root = f"data.root={tmp_path}"
    assert cli([str(DIGITS / "edba.yaml"), *SHORT, root, f"output.folder={tmp_path / 'out'}", override]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ")
    assert expected in error
    assert "\n" not in error
    assert not (tmp_path / "out").exists()


def test_main_refuses_with_a_config_error(tmp_path):
    with pytest.raises(ConfigError, match=r"optimizer\.name"):
        build_trainer(short_run("baseline", tmp_path, "optimizer.name=lion"))
