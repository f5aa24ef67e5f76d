"""The schema of a YAML run and its loader: every key typed, explained, and refused by its full name when wrong."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from composer_edba.spelling import nearest


class ConfigError(ValueError):
    """A run's configuration is wrong; the message names the key, its value and what would be right, in one line."""

    def __init__(self, message: str):
        # Keys and values may hold any character.
        super().__init__("".join(char if char.isprintable() else repr(char)[1:-1] for char in message))


def _key(default: Any, text: str) -> Any:
    """A dataclass field with the comment that ``--help`` shows beside it."""
    return field(default=default, metadata={"help": text})


@dataclass
class DataConfig:
    """The data set, the part of it that is trained on, and how it is batched."""

    name: str = _key(MISSING, "data set: digits, fashion_mnist, cifar10, cifar100 or imagefolder")
    root: str | None = _key("datasets", "folder of the data; digits needs none, nor fashion_mnist where Debian has it")
    download: bool = _key(False, "fetch CIFAR into the root when it is missing")
    fraction: float | None = _key(None, "share of the training set to train on, in (0, 1]; null: all of it")
    samples: int | None = _key(None, "number of training samples to train on, instead of a fraction; null: all")
    validation_samples: int = _key(0, "training samples held out for validation, before that part is drawn")
    subset_seed: int = _key(0, "seed of the draw of these parts; they stay fixed for the whole run")
    label_noise: str | None = _key(
        None, "wrong training labels: aggre, random1 or worse (CIFAR-10N), noisy (CIFAR-100N) or symmetric_RATE"
    )
    batch_size: int = _key(100, "training batch, summed over ranks; EDBA starts from it")
    eval_batch_size: int = _key(1000, "evaluation batch, summed over ranks")
    num_workers: int = _key(0, "loader processes of a rank; 0: load in the training process")
    augment: bool = _key(True, "the data set's usual augmentation (CIFAR: random crop and horizontal flip)")
    drop_last: bool = _key(False, "drop an epoch's last batch when it is incomplete")
    image_size: int | None = _key(None, "side of the square images in pixels; null: the data set's own")


@dataclass
class ModelConfig:
    """The network."""

    name: str = _key(MISSING, "network: preresnet56, preresnet56_basic, preresnet20_basic, resnet9, digits_cnn or mlp")
    kwargs: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "further arguments of the network, a mapping"}
    )


@dataclass
class OptimizerConfig:
    """The optimizer; a null leaves an argument at the optimizer's own default."""

    name: str = _key("sgd", "optimizer: sgd, adam, adamw, decoupled_sgdw or decoupled_adamw")
    lr: float = _key(MISSING, "learning rate at its highest; the scheduler multiplies it")
    momentum: float | None = _key(None, "momentum in [0, 1), of the SGD family")
    nesterov: bool | None = _key(None, "Nesterov momentum, of the SGD family")
    weight_decay: float | None = _key(None, "weight decay; the decoupled optimizers do not scale it by lr")
    betas: list[float] | None = field(default=None, metadata={"help": "two decay rates, of the Adam family"})
    eps: float | None = _key(None, "added to the denominator, of the Adam family")


@dataclass
class SchedulerConfig:
    """One of Composer's schedulers; a null leaves an argument at the scheduler's own default."""

    name: str = _key(
        "constant",
        "scheduler: constant, linear, cosine, cosine_warm_restarts, step, multistep, exponential or polynomial; "
        "constant, linear, cosine, multistep and polynomial also as NAME_with_warmup",
    )
    t_warmup: str | None = _key(None, "length of the linear warmup, as 5ep, 100ba or 0.1dur")
    t_max: str | None = _key(None, "time at which the schedule ends; Composer's default is 1dur")
    alpha: float | None = _key(None, "multiplier of lr (constant)")
    alpha_i: float | None = _key(None, "multiplier of lr at the start (linear)")
    alpha_f: float | None = _key(None, "multiplier of lr at the end (linear, cosine, polynomial)")
    milestones: list[str] | None = field(
        default=None, metadata={"help": "times at which lr is multiplied by gamma (multistep)"}
    )
    gamma: float | None = _key(None, "multiplier of lr at each milestone or step")
    step_size: str | None = _key(None, "time between steps (step)")
    decay_period: str | None = _key(None, "time between decays (exponential)")
    t_0: str | None = _key(None, "length of the first cycle (cosine_warm_restarts)")
    t_mult: float | None = _key(None, "growth of the cycles (cosine_warm_restarts)")
    power: float | None = _key(None, "exponent (polynomial)")
    scale_warmup: bool | None = _key(None, "scale the warmup with Composer's scale_schedule_ratio")


@dataclass
class TrainerConfig:
    """Arguments of Composer's Trainer, under its own names."""

    max_duration: int | str = _key(MISSING, "length of training: 10ep, 5000ba or 500000sp; a bare number is epochs")
    eval_interval: int | str = _key("1ep", "time between evaluations on the test set; a bare number is epochs")
    train_subset_num_batches: int = _key(-1, "batches of an epoch; -1: all")
    precision: str | None = _key(None, "fp32, amp_bf16 or amp_fp16; null: fp32 on a CPU, amp_fp16 on a GPU")
    device: str | None = _key(None, "cpu, gpu or mps; null: a GPU where there is one")
    device_train_microbatch_size: int | str | None = _key(
        None, "largest microbatch of a rank, or auto (GPU); null: no limit"
    )
    save_folder: str | None = _key(None, "folder of the checkpoints; null: none are saved")
    save_interval: int | str = _key("1ep", "time between checkpoints")
    save_overwrite: bool = _key(False, "overwrite the checkpoints of an earlier run in that folder")
    load_path: str | None = _key(None, "checkpoint to go on from")
    autoresume: bool = _key(False, "go on from the latest checkpoint in save_folder, when there is one")
    run_name: str = _key("${data.name}-${model.name}", "name of the run, also in checkpoints and TensorBoard")
    progress_bar: bool = _key(True, "Composer's progress bar")
    deterministic: bool = _key(False, "deterministic kernels only (slower on a GPU)")
    step_schedulers_every_batch: bool | None = _key(
        None, "step the scheduler every batch; null: Composer's choice, yes"
    )


@dataclass
class OutputConfig:
    """What a run leaves behind."""

    folder: str = _key("runs/${trainer.run_name}", "folder of summary.json and the plot, overwritten by the next run")
    plot: bool = _key(True, "write the plot of the run, run.png")
    tensorboard: bool = _key(False, "write TensorBoard events into that folder")


@dataclass
class Config:
    """A whole run.

    ``algorithms`` maps names to keyword arguments: ``edba``, or any class of ``composer.algorithms`` in snake case.
    """

    seed: int = _key(0, "seed of the weights, the batches and the subsets")
    torch_num_threads: int | None = _key(None, "threads torch computes with on the CPU; null: torch's default")
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    algorithms: dict[str, Any] = field(
        default_factory=dict,
        metadata={
            "help": "algorithm name -> its arguments ({} or true: the defaults; false: off); edba, which also takes "
            "preset: paper or default, and Composer's own, such as label_smoothing, mixup, channels_last"
        },
    )
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    output: OutputConfig = field(default_factory=OutputConfig)


@dataclass(frozen=True)
class Key:
    """A key of the schema: its full dotted name, type, default (``MISSING`` when required) and comment."""

    name: str
    type: Any
    default: Any
    help: str

    @property
    def required(self) -> bool:
        """Whether a run must set it."""
        return bool(self.default == MISSING)

    @property
    def free(self) -> bool:
        """Whether any key may stand below it."""
        return get_origin(self.type) is dict


def schema_keys(schema: type = Config, prefix: str = "") -> Iterator[Key]:
    """Every key of the schema, in its order, by full dotted name."""
    hints = get_type_hints(schema)
    defaults = schema()
    for item in fields(schema):
        if is_dataclass(hints[item.name]):
            yield from schema_keys(hints[item.name], f"{prefix}{item.name}.")
        else:
            default = getattr(defaults, item.name)
            yield Key(prefix + item.name, hints[item.name], default, item.metadata["help"])


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Reads a run from a YAML file.

    Args:
        path: The YAML file.
        overrides: ``key=value`` strings that win over the file; the key is a full dotted name, the value YAML.

    Raises:
        ConfigError: When the file or an override cannot be read, a key is unknown, has a wrong type or value, or
            a required key is unset. The message is one line.
    """
    try:
        return _load(Path(path), overrides)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key or path}: {_first_line(error)}") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: nested too deeply; a run needs no more than four levels") from error


def _load(path: Path, overrides: Sequence[str]) -> Config:
    given = _plain(OmegaConf.merge(_read(path), *(_override(text) for text in overrides)))
    config = OmegaConf.structured(Config)
    keys = {key.name: key for key in schema_keys()}
    for name, value in _leaves(given, keys):
        _assign(config, keys[name], value)
    unset = [
        key
        for key in keys.values()
        if key.required and OmegaConf.is_missing(_section(config, key.name), _leaf(key.name))
    ]
    if unset:
        names = ", ".join(f"{key.name} ({key.help})" for key in unset)
        raise ConfigError(f"required, but unset: {names}; set it in {path} or as key=value")
    loaded = OmegaConf.to_object(config)
    assert isinstance(loaded, Config)
    _check_values(loaded)
    return loaded


def _read(path: Path) -> DictConfig:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot read this YAML file ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not a text file") from error
    with _valid_yaml(str(path)):
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    # OmegaConf makes a mapping of a bare word too, with that one key and no value.
    if root is not None and not isinstance(root, yaml.MappingNode):
        raise ConfigError(
            f"{path}: holds no mapping; a run is a mapping of sections, as seed: 0 or data: {{name: digits}}"
        )
    with _valid_yaml(str(path)):
        loaded = OmegaConf.create(text) if root is not None else OmegaConf.create({})
    assert isinstance(loaded, DictConfig)
    return loaded


def _override(text: str) -> DictConfig:
    name, equals, value = text.partition("=")
    # OmegaConf reads brackets and backslashes in a key as syntax, and stumbles over stray ones.
    if not equals or not name.strip() or name.startswith("-") or any(char in name for char in "[]\\"):
        raise ConfigError(f"{text!r}: not an override; write key=value, as optimizer.lr=0.1")
    with _valid_yaml(repr(text), "the value is "):
        return OmegaConf.from_dotlist([f"{name.strip()}={value}"])


@contextmanager
def _valid_yaml(where: str, what: str = "") -> Iterator[None]:
    """Refuses what YAML cannot read, or OmegaConf cannot hold, saying where it stands."""
    try:
        yield
    except OmegaConfBaseException as error:
        key = f"{error.full_key}: " if error.full_key else ""
        raise ConfigError(f"{where}: {key}{_first_line(error)}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: {what}not valid YAML{_yaml_problem(error)}") from error
    except ValueError as error:  # a number without digits, as 0x_
        raise ConfigError(f"{where}: {what}not valid YAML: {error}") from error


def _plain(config: Any) -> dict[Any, Any]:
    # Interpolations stay unresolved: they may point at defaults, which only the schema has.
    container = OmegaConf.to_container(config, resolve=False)
    assert isinstance(container, dict)
    return container


def _leaves(given: Mapping[Any, Any], keys: Mapping[str, Key], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the schema's keys that are given, with their values, refusing what the schema does not know."""
    sections = {name.rpartition(".")[0] for name in keys}
    for part, value in given.items():
        name = f"{prefix}{part}"
        if name in keys:
            yield name, value
        elif name not in sections:
            while (
                isinstance(value, Mapping) and value
            ):  # down to the key itself: its name tells more than the section's
                part, value = next(iter(value.items()))
                name = f"{name}.{part}"
            siblings = dict.fromkeys(key[len(prefix) :].partition(".")[0] for key in keys if key.startswith(prefix))
            raise ConfigError(f"{name}: unknown key; {nearest(name, _ranked(prefix, keys), list(siblings))}")
        elif isinstance(value, Mapping):
            yield from _leaves(value, keys, f"{name}.")
        elif value is not None:
            inside = ", ".join(_leaf(key) for key in keys if key.startswith(f"{name}."))
            raise ConfigError(f"{name}: {value!r} is no section; expected a mapping with keys among {inside}")


def _ranked(prefix: str, keys: Mapping[str, Key]) -> list[str]:
    """The known names, those of the same section first, so that they win a tie."""
    return sorted(keys, key=lambda name: not (prefix and name.startswith(prefix)))


def _assign(config: DictConfig, key: Key, value: Any) -> None:
    expected = ConfigError(f"{key.name}: {value!r} has the wrong type; expected {_type_words(key.type)}")
    if key.free and not (value is None or isinstance(value, Mapping)):
        raise expected
    try:
        OmegaConf.update(config, key.name, {} if key.free and value is None else value, merge=False)
    except OmegaConfBaseException as error:
        raise expected from error


def _section(config: DictConfig, name: str) -> DictConfig:
    section = name.rpartition(".")[0]
    return config[section] if section else config


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def _type_words(annotation: Any) -> str:
    if get_origin(annotation) in (Union, types.UnionType):
        return " or ".join(_type_words(option) for option in get_args(annotation))
    if get_origin(annotation) is list:
        return f"a list, each {_type_words(get_args(annotation)[0])}"
    if get_origin(annotation) is dict:
        return "a mapping (dict)"
    words = {int: "an integer (int)", float: "a number (float)", bool: "true or false (bool)", str: "text (str)"}
    return "null" if annotation is types.NoneType else words[annotation]


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def _yaml_problem(error: yaml.YAMLError) -> str:
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    return f"{place}: {problem}" if problem else place


# What a value must satisfy beyond its type. A null is never checked: where it is allowed it means the default.
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


def _check_values(config: Config) -> None:
    for name, (is_right, wanted) in _VALUES.items():
        value: Any = config
        for part in name.split("."):
            value = getattr(value, part)
        if value is not None and not is_right(value):
            raise ConfigError(f"{name}: {value!r} is out of range; expected {wanted}")
    if config.data.fraction is not None and config.data.samples is not None:
        raise ConfigError(
            f"data.samples: {config.data.samples!r} beside data.fraction={config.data.fraction!r}; set one of the two"
        )
    if config.trainer.autoresume and config.trainer.save_folder is None:
        raise ConfigError("trainer.autoresume: true needs trainer.save_folder, where it looks for the checkpoint")
