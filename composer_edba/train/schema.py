"""The schema of a YAML run: every key with its type, default and comment, and the error about a wrong one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, get_origin, get_type_hints

from omegaconf import MISSING

from composer_edba.train.names import DATASETS, MODELS, OPTIMIZERS


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

    name: str = _key(MISSING, f"data set: {', '.join(DATASETS)}")
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

    name: str = _key(MISSING, f"network: {', '.join(MODELS)}; or any factory, as torchvision:resnet18")
    kwargs: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "further arguments of the network, a mapping"}
    )


@dataclass
class OptimizerConfig:
    """The optimizer; a null leaves an argument at the optimizer's own default."""

    name: str = _key("sgd", f"optimizer: {', '.join(OPTIMIZERS)}")
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
    """A whole run."""

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
    hints, defaults = get_type_hints(schema), schema()
    for item in fields(schema):
        if is_dataclass(hints[item.name]):
            yield from schema_keys(hints[item.name], f"{prefix}{item.name}.")
        else:
            yield Key(prefix + item.name, hints[item.name], getattr(defaults, item.name), item.metadata["help"])
