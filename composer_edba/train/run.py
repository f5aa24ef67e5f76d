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
    """Trains a run, from :func:`~composer_edba.train.config.load_config`, to its end and writes its summary.

    The Trainer returned is closed; its state, loggers and ``trainer.state.model`` can be read.

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
        summary, folder = summarize(trainer, data.train_size, partial_epochs), Path(config.output.folder)
        write_summary(summary, read_log(trainer), folder, config=asdict(config), plot=config.output.plot)
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
        config: The run.
        extra_algorithms: Algorithms that run after those that ``config`` names.
        callbacks: Composer callbacks.
        evaluators: Makes the evaluators from the data. Default: ``eval`` and, where there is one, ``validation``.

    Raises:
        ConfigError: When a name or an argument in ``config`` is wrong for what it builds.
    """
    # Names and arguments first: a typo must not wait for the data to load.
    check(config)
    algorithms = [*build_algorithms(config.algorithms), *extra_algorithms]
    scheduler = _build_named(SCHEDULERS, "scheduler", config.scheduler)

    if config.torch_num_threads is not None:
        torch.set_num_threads(config.torch_num_threads)
    with _named("trainer.device"):
        device = get_device(config.trainer.device)
    dist.initialize_dist(device)
    # The Trainer seeds too late for the weights, which are drawn here.
    reproducibility.seed_all(config.seed)

    arguments = asdict(config.data)
    for name in ("batch_size", "eval_batch_size"):
        arguments[name] //= dist.get_world_size()  # check() saw to it that nothing is left
    with _named("data"):
        data = build_data(**arguments, shuffle_seed=config.seed)
    with _named("model"):
        net = build_model(
            config.model.name, num_classes=data.num_classes, in_channels=data.in_channels, **config.model.kwargs
        )
    model = ComposerClassifier(net, num_classes=data.num_classes)
    loggers: list[LoggerDestination] = [InMemoryLogger()]
    if config.output.tensorboard:
        loggers.append(TensorboardLogger(log_dir=str(Path(config.output.folder) / "tensorboard")))
    options = {**asdict(config.trainer), "device": device}
    options["deterministic_mode"] = options.pop("deterministic")
    trainer = Trainer(
        model=model,
        train_dataloader=data.train,
        eval_dataloader=(evaluators or _evaluators)(data),
        callbacks=list(callbacks),
        optimizers=_build_named(OPTIMIZERS, "optimizer", config.optimizer, model.parameters()),
        schedulers=scheduler,
        algorithms=algorithms,
        loggers=loggers,
        seed=config.seed,
        **options,
    )
    return trainer, data


def build_algorithms(given: Mapping[str, Any]) -> list[Algorithm]:
    """Builds the algorithms of a run.

    Args:
        given: From the name, ``edba``, ``dba`` or one of ``composer.algorithms`` in any case, underscores or none, to
            the keyword arguments; ``None``, ``True`` or ``{}`` means the defaults, ``False`` leaves the algorithm out.
            ``edba`` also takes ``preset``: ``"default"`` or ``"paper"``.

    Raises:
        ConfigError: When a name or an argument is unknown, given twice or refused by the algorithm.
    """
    known = known_algorithms()
    return [
        _construct(known[name], keywords, f"algorithms.{name}")
        for name, keywords in checked_algorithms(given).items()
        if keywords is not None
    ]


def known_algorithms() -> dict[str, type[Algorithm]]:
    """The algorithms that a run may name: ``edba``, ``dba`` and Composer's own, by the name of their module there."""
    exported = (getattr(composer.algorithms, name) for name in composer.algorithms.__all__)
    own = [item for item in exported if inspect.isclass(item) and issubclass(item, Algorithm)]
    return {"edba": EDBA, "dba": DBA, **{item.__module__.split(".")[2]: item for item in own}}


def _evaluators(data: Data) -> list[Evaluator]:
    splits = {"eval": data.eval, "validation": data.validation}
    return [Evaluator(label=label, dataloader=split) for label, split in splits.items() if split is not None]


def _build_named(builders: Mapping[str, str], key: str, section: Any, *positional: Any) -> Any:
    """What a section of the configuration names; its nulls leave the builder's defaults."""
    keywords = {name: value for name, value in asdict(section).items() if value is not None}
    return _construct(load(builders[keywords.pop("name")]), keywords, key, *positional)


def _construct(builder: Callable[..., _Built], keywords: Mapping[str, Any], key: str, *positional: Any) -> _Built:
    """Calls ``builder``, refusing arguments it does not take, or lacks, by their full dotted name."""
    parameters = list(inspect.signature(builder).parameters.values())[len(positional) :]
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    known, title = [p.name for p in named], getattr(builder, "__name__", builder)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    for name in keywords:
        if name not in known and not takes_any:
            raise ConfigError(f"{key}.{name}: {title} takes no such argument; {nearest(str(name), known)}")
    if unset := [p.name for p in named if p.default is p.empty and p.name not in keywords]:
        raise ConfigError(f"{key}: {title} needs {', '.join(unset)}")
    with _named(key):
        return builder(*positional, **keywords)


@contextmanager
def _named(key: str) -> Iterator[None]:
    """Puts the key in front of what a builder objects to in its arguments."""
    try:
        yield
    except ConfigError:
        raise
    except (ValueError, TypeError, AssertionError, OSError, NotImplementedError, ImportError) as error:
        raise ConfigError(f"{key}: {' '.join(str(error).split()) or type(error).__name__}") from error
