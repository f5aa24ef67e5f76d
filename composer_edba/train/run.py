"""Builds a run from its configuration, trains it and has its summary written."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import composer.algorithms
import torch
from composer import Algorithm, Callback, Evaluator, Trainer
from composer.loggers import InMemoryLogger, LoggerDestination, TensorboardLogger
from composer.models import ComposerClassifier
from composer.optim import ComposerScheduler
from composer.utils import dist, get_device, reproducibility

from composer_edba import DBA, EDBA
from composer_edba.spelling import nearest
from composer_edba.train.checks import check, checked_algorithms
from composer_edba.train.data import Data, build_data
from composer_edba.train.models import build_model
from composer_edba.train.names import OPTIMIZERS, SCHEDULERS, load
from composer_edba.train.schema import Config, ConfigError
from composer_edba.train.series import read_log
from composer_edba.train.summary import summarize, write_summary

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
    check(config)
    algorithms = [*build_algorithms(config.algorithms), *extra_algorithms]
    scheduler = _build_scheduler(config)

    if config.torch_num_threads is not None:
        torch.set_num_threads(config.torch_num_threads)
    with _named("trainer.device"):
        device = get_device(config.trainer.device)
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
    built = []
    for name, keywords in checked_algorithms(given).items():
        if keywords is not None:
            build = EDBA.paper if name == "edba" and keywords.pop("preset", "default") == "paper" else known[name]
            built.append(_construct(build, keywords, f"algorithms.{name}"))
    return built


def known_algorithms() -> dict[str, type[Algorithm]]:
    """The algorithms that a run may name: ``edba``, ``dba`` and Composer's own, by the name of their module there."""
    exported = (getattr(composer.algorithms, name) for name in composer.algorithms.__all__)
    own = [item for item in exported if inspect.isclass(item) and issubclass(item, Algorithm)]
    return {"edba": EDBA, "dba": DBA, **{item.__module__.split(".")[2]: item for item in own}}


def _build_data(config: Config) -> Data:
    arguments = asdict(config.data)
    for name in ("batch_size", "eval_batch_size"):
        arguments[name] //= dist.get_world_size()  # check() saw to it that nothing is left
    with _named("data"):
        return build_data(**arguments, shuffle_seed=config.seed)


def _evaluators(data: Data) -> list[Evaluator]:
    splits = {"eval": data.eval, "validation": data.validation}
    return [Evaluator(label=label, dataloader=split) for label, split in splits.items() if split is not None]


def _build_optimizer(config: Config, model: torch.nn.Module) -> torch.optim.Optimizer:
    keywords = _given(asdict(config.optimizer))
    optimizer = load(OPTIMIZERS[keywords.pop("name")])
    return _construct(optimizer, keywords, "optimizer", model.parameters())


def _build_scheduler(config: Config) -> ComposerScheduler:
    keywords = _given(asdict(config.scheduler))
    scheduler = load(SCHEDULERS[keywords.pop("name")])
    return _construct(scheduler, keywords, "scheduler")


def _given(section: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in section.items() if value is not None}


def _construct(builder: Callable[..., _Built], keywords: Mapping[str, Any], key: str, *positional: Any) -> _Built:
    """Calls ``builder``, refusing arguments it does not take, or lacks, by their full dotted name."""
    _check_keywords(builder, keywords, key, positional=len(positional))
    with _named(key):
        return builder(*positional, **keywords)


def _check_keywords(builder: Callable[..., Any], keywords: Mapping[str, Any], key: str, positional: int = 0) -> None:
    parameters = list(inspect.signature(builder).parameters.values())[positional:]
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    known = [p.name for p in named]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    for name in keywords:
        if name not in known and not takes_any:
            hint = nearest(str(name), known)
            raise ConfigError(f"{key}.{name}: {getattr(builder, '__name__', builder)} takes no such argument; {hint}")
    unset = [p.name for p in named if p.default is p.empty and p.name not in keywords]
    if unset:
        raise ConfigError(f"{key}: {getattr(builder, '__name__', builder)} needs {', '.join(unset)}")


@contextmanager
def _named(key: str) -> Iterator[None]:
    """Puts the key in front of what a builder objects to in its arguments."""
    try:
        yield
    except ConfigError:
        raise
    except (ValueError, TypeError, AssertionError, OSError, NotImplementedError, ImportError) as error:
        raise ConfigError(f"{key}: {' '.join(str(error).split()) or type(error).__name__}") from error
