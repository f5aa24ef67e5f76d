"""What a run's values must satisfy beyond their types, found out without importing torch or Composer."""

from __future__ import annotations

import importlib.util
import math
import operator
import os
import pkgutil
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from composer_edba.settings import SETTINGS, checked
from composer_edba.spelling import nearest
from composer_edba.train.names import DATASETS, FACTORY_MODULES, MODELS, OPTIMIZERS, SCHEDULERS, algorithm_names
from composer_edba.train.schema import Config, ConfigError

__all__ = ["check", "checked_algorithms"]

# A null is never checked: where it is allowed it means the default.
_VALUES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "seed": (lambda v: 0 <= v < 2**32, "an integer in [0, 2**32)"),
    "torch_num_threads": (lambda v: v >= 1, "at least 1"),
    "data.fraction": (lambda v: 0 < v <= 1, "a share in (0, 1]"),
    "data.samples": (lambda v: v >= 1, "at least 1"),
    "data.validation_samples": (lambda v: v >= 0, "at least 0"),
    "data.subset_seed": (lambda v: v >= 0, "at least 0"),
    "data.batch_size": (lambda v: v >= 1, "at least 1"),
    "data.eval_batch_size": (lambda v: v >= 1, "at least 1"),
    "data.num_workers": (lambda v: v >= 0, "at least 0"),
    "data.image_size": (lambda v: v >= 1, "at least 1"),
    "optimizer.lr": (lambda v: v >= 0, "at least 0"),
    "optimizer.momentum": (lambda v: 0 <= v < 1, "a number in [0, 1)"),
    "optimizer.weight_decay": (lambda v: v >= 0, "at least 0"),
    "optimizer.betas": (lambda v: len(v) == 2 and all(0 <= b < 1 for b in v), "two numbers in [0, 1)"),
    "trainer.train_subset_num_batches": (lambda v: v == -1 or v >= 1, "-1 or at least 1"),
    "trainer.precision": (lambda v: v in ("fp32", "amp_bf16", "amp_fp16"), "fp32, amp_bf16 or amp_fp16"),
    "trainer.device": (lambda v: v in ("cpu", "gpu", "mps"), "cpu, gpu or mps"),
    "trainer.device_train_microbatch_size": (
        lambda v: v == "auto" or (isinstance(v, int) and v >= 1),
        "auto or an integer of at least 1",
    ),
}
_NAMES = {"data.name": DATASETS, "optimizer.name": OPTIMIZERS, "scheduler.name": SCHEDULERS}
_TIMES = (
    *(f"trainer.{name}" for name in ("max_duration", "eval_interval", "save_interval")),
    *(f"scheduler.{name}" for name in ("t_warmup", "t_max", "milestones", "step_size", "decay_period", "t_0")),
)
# Composer's, without what it takes and cannot mean: a part of a batch, or less than nothing.
_TIME = re.compile(r"\s*(.+?)\s*(iter|ep|ba|sp|tok|dur|sec)")
_CLOCK = re.compile(r"(?=\d)((\d|[01]\d|2[0-3])h)?((\d|[0-5]\d)m)?((\d|[0-5]\d)s)?")


def check(config: Config) -> None:
    """Refuses a value that is out of its range, an unknown name and an argument of EDBA that is wrong.

    Raises:
        ConfigError: Names the key, the value and what would be right.
    """
    for name, (is_right, wanted) in _VALUES.items():
        value = _value(config, name)
        if value is not None and not is_right(value):
            raise ConfigError(f"{name}: {value!r} is out of range; expected {wanted}")
    fraction, samples = config.data.fraction, config.data.samples
    if fraction is not None and samples is not None:
        raise ConfigError(f"data.samples: {samples!r} beside data.fraction={fraction!r}; set one of the two")
    if config.trainer.autoresume and config.trainer.save_folder is None:
        raise ConfigError("trainer.autoresume: true needs trainer.save_folder, where it looks for the checkpoint")
    ranks = int(os.environ.get("WORLD_SIZE", "1"))  # as the composer launcher says
    for name in ("data.batch_size", "data.eval_batch_size"):
        if (total := _value(config, name)) % ranks:
            uneven = f"{name}: {total} does not divide evenly among {ranks} ranks"
            raise ConfigError(f"{uneven}; expected a multiple of {ranks}")
    for name, known in _NAMES.items():
        if (value := _value(config, name)) not in known:
            raise ConfigError(f"{name}: {value!r} is unknown; {nearest(value, known)}")
    _check_model_name(config.model.name)
    for key, value in _times(config):
        if not _is_time(value):
            raise ConfigError(f"{key}: {value!r} is no time; expected a number and a unit, as 10ep, 500ba")
    checkpoint = config.trainer.load_path
    if checkpoint and "://" not in checkpoint and "{" not in checkpoint and not Path(checkpoint).exists():
        raise ConfigError(f"trainer.load_path: {checkpoint!r} does not exist; expected a checkpoint file")
    checked_algorithms(config.algorithms)


def checked_algorithms(given: Mapping[Any, Any]) -> dict[str, dict[Any, Any] | None]:
    """The algorithms of a run by the name of their module, with their keyword arguments; None: left out.

    Args:
        given: As for :func:`~composer_edba.train.run.build_algorithms`, which checks what algorithms but EDBA take.

    Raises:
        ConfigError: When a name is unknown or given twice, or an argument of ``edba`` is wrong.
    """
    known = algorithm_names()
    spelled = {_bare(name): name for name in known}
    found: dict[str, dict[Any, Any] | None] = {}
    for name, arguments in given.items():
        key, canonical = f"algorithms.{name}", spelled.get(_bare(str(name)))
        if canonical is None:
            raise ConfigError(f"{key}: unknown algorithm; {nearest(str(name), known)}")
        if canonical in found:
            raise ConfigError(f"{key}: names {canonical} a second time; give it once")
        if not (arguments is None or isinstance(arguments, (bool, Mapping))):
            expected = "a mapping of arguments, true or false"
            raise ConfigError(f"{key}: {arguments!r} has the wrong type; expected {expected}")
        keywords = dict(arguments) if isinstance(arguments, Mapping) else {}
        if canonical == "edba" and arguments is not False:
            _check_edba(keywords, key)
        found[canonical] = None if arguments is False else keywords
    return found


def _check_edba(arguments: Mapping[Any, Any], key: str) -> None:
    known = [name for name, setting in SETTINGS.items() if "composer" in setting.loops]
    for name in arguments:
        if name not in known:
            raise ConfigError(f"{key}.{name}: EDBA takes no such argument; {nearest(str(name), known)}")
    try:
        checked(arguments, "composer")
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{key}: {' '.join(str(error).split())}") from error


def _check_model_name(name: str) -> None:
    """A model of the package's, or a factory of a package that is installed; what else is wrong shows when it loads."""
    module, colon, factory = name.partition(":")
    package = module.partition(".")[0]
    if not colon:
        if name not in MODELS:
            hint = nearest(name, MODELS)
            raise ConfigError(f"model.name: {name!r} is unknown; {hint} Other factories: as torchvision:resnet18")
    elif not factory or not all(part.isidentifier() for part in module.split(".")):
        raise ConfigError(f"model.name: {name!r} is no factory; expected MODULE:NAME, as torchvision:resnet18")
    elif package not in sys.modules and importlib.util.find_spec(package) is None:
        installed = [*FACTORY_MODULES, *(item.name for item in pkgutil.iter_modules())]
        hint = "install it" if package in FACTORY_MODULES else nearest(package, installed, list(FACTORY_MODULES))
        raise ConfigError(f"model.name: {name!r}: the package {package} is not installed; {hint}")


def _times(config: Config) -> Iterator[tuple[str, Any]]:
    for name in _TIMES:
        value = _value(config, name)
        if isinstance(value, list):
            yield from ((f"{name}[{index}]", item) for index, item in enumerate(value))
        elif value is not None:
            yield name, value


def _is_time(value: int | str) -> bool:
    if isinstance(value, int):
        return value >= 0
    if (match := _TIME.fullmatch(value)) is None:
        return _CLOCK.fullmatch(value) is not None
    try:
        number = float(match[1])
    except ValueError:
        return False
    return 0 <= number < math.inf and (match[2] == "dur" or number.is_integer())


def _value(config: Config, name: str) -> Any:
    return operator.attrgetter(name)(config)


def _bare(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")
