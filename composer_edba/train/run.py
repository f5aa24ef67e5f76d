"""Runs described by YAML: ``composer -n 1 -m composer_edba.train CONFIG.yaml key=value ...``."""

from __future__ import annotations

import inspect
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import composer.algorithms
import composer.optim
import torch
from composer import Algorithm, Callback, Evaluator, Time, Trainer
from composer.loggers import InMemoryLogger, LoggerDestination, TensorboardLogger
from composer.models import ComposerClassifier
from composer.optim import ComposerScheduler
from composer.utils import dist, reproducibility

from composer_edba import DBA, EDBA
from composer_edba.spelling import nearest
from composer_edba.train.config import Config, ConfigError, load_config, schema_keys
from composer_edba.train.data import Data, build_data
from composer_edba.train.models import build_model
from composer_edba.train.summary import read_log, summarize, write_summary

USAGE = """\
usage: composer -n RANKS -m composer_edba.train CONFIG.yaml [key=value ...]
       python -m composer_edba.train CONFIG.yaml [key=value ...]

Trains the run that CONFIG.yaml describes and leaves summary.json and a plot in output.folder.
A key=value wins over the file, as in optimizer.lr=0.1 or algorithms.edba.num_candidates=256.
"""

OPTIMIZERS: Mapping[str, type[torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "decoupled_sgdw": composer.optim.DecoupledSGDW,
    "decoupled_adamw": composer.optim.DecoupledAdamW,
}

SCHEDULERS: Mapping[str, type[ComposerScheduler]] = {
    "constant": composer.optim.ConstantScheduler,
    "constant_with_warmup": composer.optim.ConstantWithWarmupScheduler,
    "linear": composer.optim.LinearScheduler,
    "linear_with_warmup": composer.optim.LinearWithWarmupScheduler,
    "cosine": composer.optim.CosineAnnealingScheduler,
    "cosine_with_warmup": composer.optim.CosineAnnealingWithWarmupScheduler,
    "cosine_warm_restarts": composer.optim.CosineAnnealingWarmRestartsScheduler,
    "step": composer.optim.StepScheduler,
    "multistep": composer.optim.MultiStepScheduler,
    "multistep_with_warmup": composer.optim.MultiStepWithWarmupScheduler,
    "exponential": composer.optim.ExponentialScheduler,
    "polynomial": composer.optim.PolynomialScheduler,
    "polynomial_with_warmup": composer.optim.PolynomialWithWarmupScheduler,
}

_Built = TypeVar("_Built")


def main(config: Config) -> Trainer:
    """Trains a run to its end and writes its summary.

    Args:
        config: The run, from :func:`~composer_edba.train.config.load_config`.

    Returns:
        The closed Trainer: its state, its loggers and ``trainer.state.model`` can be read.

    Raises:
        ConfigError: When a name or an argument in ``config`` is wrong for what it builds; nothing has trained then.
    """
    trainer, data = build_trainer(config)
    try:
        trainer.fit()
    finally:
        trainer.close()
    if dist.get_global_rank() == 0:
        dropped = config.data.drop_last and data.train_size % config.data.batch_size > 0
        partial_epochs = dropped or config.trainer.train_subset_num_batches != -1
        write_summary(
            summarize(trainer, data.train_size, partial_epochs),
            read_log(trainer),
            Path(config.output.folder),
            config=asdict(config),
            plot=config.output.plot,
        )
    return trainer


def build_trainer(
    config: Config,
    *,
    extra_algorithms: Sequence[Algorithm] = (),
    callbacks: Sequence[Callback] = (),
    evaluators: Callable[[Data], list[Evaluator]] | None = None,
) -> tuple[Trainer, Data]:
    """Builds a run, ready for ``trainer.fit()``, and its data.

    Args:
        config: The run, from :func:`~composer_edba.train.config.load_config`.
        extra_algorithms: Algorithms beside those that ``config`` names, which run after them.
        callbacks: Composer callbacks.
        evaluators: Makes the evaluators from the data. Default: ``eval``, the test set, and ``validation``, where
            samples are held out for it.

    Raises:
        ConfigError: When a name or an argument in ``config`` is wrong for what it builds.
    """
    # Names and arguments first: a typo must not wait for the data to load.
    _check_times(config)
    algorithms = [*build_algorithms(config.algorithms), *extra_algorithms]
    scheduler = _build_scheduler(config)
    checkpoint = config.trainer.load_path
    if checkpoint and "://" not in checkpoint and "{" not in checkpoint and not Path(checkpoint).exists():
        raise ConfigError(f"trainer.load_path: {checkpoint!r} does not exist; expected a checkpoint file")

    if config.torch_num_threads is not None:
        torch.set_num_threads(config.torch_num_threads)
    with _named("trainer.device"):
        device = composer.utils.get_device(config.trainer.device)
    dist.initialize_dist(device)
    # The Trainer seeds too late for the weights, which are drawn here.
    reproducibility.seed_all(config.seed)

    data = _build_data(config)
    with _named("model"):
        net = build_model(
            config.model.name, num_classes=data.num_classes, in_channels=data.in_channels, **config.model.kwargs
        )
    model = ComposerClassifier(net, num_classes=data.num_classes)
    options = config.trainer
    loggers: list[LoggerDestination] = [InMemoryLogger()]
    if config.output.tensorboard:
        loggers.append(TensorboardLogger(log_dir=str(Path(config.output.folder) / "tensorboard")))
    trainer = Trainer(
        model=model,
        train_dataloader=data.train,
        eval_dataloader=_evaluators(data) if evaluators is None else evaluators(data),
        callbacks=list(callbacks),
        optimizers=_build_optimizer(config, model),
        schedulers=scheduler,
        algorithms=algorithms,
        loggers=loggers,
        seed=config.seed,
        device=device,
        max_duration=options.max_duration,
        eval_interval=options.eval_interval,
        train_subset_num_batches=options.train_subset_num_batches,
        precision=options.precision,
        device_train_microbatch_size=options.device_train_microbatch_size,
        save_folder=options.save_folder,
        save_interval=options.save_interval,
        save_overwrite=options.save_overwrite,
        load_path=options.load_path,
        autoresume=options.autoresume,
        run_name=options.run_name,
        progress_bar=options.progress_bar,
        deterministic_mode=options.deterministic,
        step_schedulers_every_batch=options.step_schedulers_every_batch,
    )
    return trainer, data


def build_algorithms(given: Mapping[str, Any]) -> list[Algorithm]:
    """Builds the algorithms of a run.

    Args:
        given: From an algorithm's name to its keyword arguments. The name is ``edba``, ``dba`` or that of any algorithm
            of ``composer.algorithms``, whatever its case and underscores. ``None``, ``True`` or ``{}`` means the
            defaults; ``False`` leaves the algorithm out. ``edba`` also takes ``preset``: ``"default"`` or ``"paper"``.

    Raises:
        ConfigError: When a name or an argument is unknown, given twice or refused by the algorithm.
    """
    known = known_algorithms()
    spelled = {_bare(name): name for name in known}
    built: dict[str, Algorithm | None] = {}
    for name, arguments in given.items():
        key = f"algorithms.{name}"
        if _bare(str(name)) not in spelled:
            raise ConfigError(f"{key}: unknown algorithm; {nearest(str(name), list(known))}")
        canonical = spelled[_bare(str(name))]
        if canonical in built:
            raise ConfigError(f"{key}: names {canonical} a second time; give it once")
        if not (arguments is None or isinstance(arguments, (bool, Mapping))):
            raise ConfigError(
                f"{key}: {arguments!r} has the wrong type; expected a mapping of arguments, true or false"
            )
        keywords = dict(arguments) if isinstance(arguments, Mapping) else {}
        if arguments is False:
            built[canonical] = None
        elif canonical == "edba":
            built[canonical] = _build_edba(keywords, key)
        else:
            built[canonical] = _construct(known[canonical], keywords, key)
    return [algorithm for algorithm in built.values() if algorithm is not None]


def known_algorithms() -> dict[str, type[Algorithm]]:
    """The algorithms that a run may name: ``edba``, ``dba`` and Composer's own, by the name of their module there."""
    exported = (getattr(composer.algorithms, name) for name in composer.algorithms.__all__)
    own = [item for item in exported if inspect.isclass(item) and issubclass(item, Algorithm)]
    return {"edba": EDBA, "dba": DBA, **{item.__module__.split(".")[2]: item for item in own}}


def _bare(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")


def _build_edba(keywords: dict[str, Any], key: str) -> Algorithm:
    preset = keywords.pop("preset", "default")
    if preset not in ("default", "paper"):
        raise ConfigError(f"{key}.preset: {preset!r} is unknown; expected default or paper")
    _check_keywords(EDBA, keywords, key, extra=("preset",))
    with _named(key):
        return EDBA.paper(**keywords) if preset == "paper" else EDBA(**keywords)


def _build_data(config: Config) -> Data:
    arguments = asdict(config.data)
    for name in ("batch_size", "eval_batch_size"):
        arguments[name] = _per_rank(f"data.{name}", arguments[name])
    with _named("data"):
        return build_data(**arguments, shuffle_seed=config.seed)


def _per_rank(key: str, total: int) -> int:
    ranks = dist.get_world_size()
    if total % ranks:
        raise ConfigError(f"{key}: {total} does not divide evenly among {ranks} ranks; expected a multiple of {ranks}")
    return total // ranks


def _evaluators(data: Data) -> list[Evaluator]:
    splits = {"eval": data.eval, "validation": data.validation}
    return [Evaluator(label=label, dataloader=split) for label, split in splits.items() if split is not None]


def _build_optimizer(config: Config, model: torch.nn.Module) -> torch.optim.Optimizer:
    keywords = _given(asdict(config.optimizer))
    optimizer = _choose("optimizer.name", keywords.pop("name"), OPTIMIZERS)
    return _construct(optimizer, keywords, "optimizer", model.parameters())


def _build_scheduler(config: Config) -> ComposerScheduler:
    keywords = _given(asdict(config.scheduler))
    scheduler = _choose("scheduler.name", keywords.pop("name"), SCHEDULERS)
    return _construct(scheduler, keywords, "scheduler")


def _given(section: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in section.items() if value is not None}


def _choose(key: str, name: str, known: Mapping[str, _Built]) -> _Built:
    if name not in known:
        raise ConfigError(f"{key}: {name!r} is unknown; {nearest(name, list(known))}")
    return known[name]


def _construct(builder: Callable[..., _Built], keywords: Mapping[str, Any], key: str, *positional: Any) -> _Built:
    """Calls ``builder``, refusing arguments it does not take, or lacks, by their full dotted name."""
    _check_keywords(builder, keywords, key, positional=len(positional))
    with _named(key):
        return builder(*positional, **keywords)


def _check_keywords(
    builder: Callable[..., Any], keywords: Mapping[str, Any], key: str, extra: Sequence[str] = (), positional: int = 0
) -> None:
    parameters = list(inspect.signature(builder).parameters.values())[positional:]
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    known = [*(p.name for p in named), *extra]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    for name in keywords:
        if name not in known and not takes_any:
            hint = nearest(str(name), known)
            raise ConfigError(f"{key}.{name}: {getattr(builder, '__name__', builder)} takes no such argument; {hint}")
    unset = [p.name for p in named if p.default is p.empty and p.name not in keywords]
    if unset:
        raise ConfigError(f"{key}: {getattr(builder, '__name__', builder)} needs {', '.join(unset)}")


def _check_times(config: Config) -> None:
    """Refuses what is no Composer time by the name of its key."""
    times: dict[str, Any] = {
        "trainer.max_duration": config.trainer.max_duration,
        "trainer.eval_interval": config.trainer.eval_interval,
        "trainer.save_interval": config.trainer.save_interval,
    }
    for name in ("t_warmup", "t_max", "step_size", "decay_period", "t_0"):
        times[f"scheduler.{name}"] = getattr(config.scheduler, name)
    for index, milestone in enumerate(config.scheduler.milestones or ()):
        times[f"scheduler.milestones[{index}]"] = milestone
    for key, value in times.items():
        if isinstance(value, str):
            try:
                Time.from_timestring(value)
            except ValueError as error:
                raise ConfigError(
                    f"{key}: {value!r} is no time; expected a number and a unit, as 10ep, 500ba"
                ) from error


@contextmanager
def _named(key: str) -> Iterator[None]:
    """Puts the key in front of what a builder objects to in its arguments."""
    try:
        yield
    except ConfigError:
        raise
    except (ValueError, TypeError, AssertionError, OSError, NotImplementedError, ImportError) as error:
        raise ConfigError(f"{key}: {' '.join(str(error).split()) or type(error).__name__}") from error


def help_text() -> str:
    """The usage and every key with its default and comment."""
    lines = [USAGE, "Keys (default in brackets):"]
    section = ""
    for key in schema_keys():
        head = key.name.rpartition(".")[0]
        if head != section:
            section = head
            lines.append("")
        default = "required" if key.required else _yaml_word(key.default)
        comment = textwrap.wrap(f"[{default}] {key.help}", width=80)
        lines.append(f"  {key.name:<38}{comment[0]}")
        lines.extend(" " * 40 + line for line in comment[1:])
    return "\n".join(lines)


def _yaml_word(value: Any) -> str:
    words = {None: "null", True: "true", False: "false"}
    return words[value] if value is None or isinstance(value, bool) else str(value)


def cli(arguments: Sequence[str]) -> int:
    """Runs the command line; returns the exit code: 0, or 2 when the configuration is wrong."""
    if any(argument in ("-h", "--help") for argument in arguments):
        print(help_text())
        return 0
    if not arguments:
        print(f"{USAGE}\nerror: CONFIG.yaml is missing; --help lists the keys", file=sys.stderr)
        return 2
    # Composer warns at every batch that is smaller than the microbatch, the last one of any epoch and evaluation.
    warnings.filterwarnings("ignore", message="Cannot split tensor of length")
    try:
        main(load_config(arguments[0], arguments[1:]))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
