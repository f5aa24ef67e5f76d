"""What a run may name, as plain strings: neither ``--help`` nor the check of a configuration imports what is named."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

YAMLS = Path(__file__).parent / "yamls"


class Model(NamedTuple):
    """Where a model's builder is, as ``module:attribute``, and a line of help."""

    target: str
    text: str


_MODELS = "composer_edba.train.models"
MODELS: Mapping[str, Model] = {
    "digits_cnn": Model(f"{_MODELS}.digits_cnn:digits_cnn", "three convolutions, for 8 x 8 images; takes width"),
    "mlp": Model(f"{_MODELS}.mlp:mlp", "one hidden layer; takes image_size (28) and hidden_size"),
    "preresnet": Model(f"{_MODELS}.preresnet:PreResNet", "pre-activation ResNet; takes depth and block"),
    "preresnet20_basic": Model(f"{_MODELS}.preresnet:preresnet20_basic", "PreResNet-20 of basic blocks, for a CPU"),
    "preresnet56": Model(f"{_MODELS}.preresnet:preresnet56", "PreResNet-56 of bottleneck blocks, the paper's network"),
    "preresnet56_basic": Model(f"{_MODELS}.preresnet:preresnet56_basic", "PreResNet-56 of basic blocks"),
    "resnet9": Model(f"{_MODELS}.resnet9:resnet9", "ResNet-9, quick on CIFAR; takes width and output_scale"),
}
"""The package's own models. A builder takes ``num_classes``, ``in_channels`` and what its signature says."""

FACTORY_MODULES: Mapping[str, str] = {"torchvision": "torchvision.models", "timm": "timm"}
"""What may stand before the colon of ``model.name`` in place of a module, beside any module itself."""

DATASETS: Mapping[str, str] = {
    "cifar10": "60,000 colour images of 32 x 32 pixels, 10 classes",
    "cifar100": "60,000 colour images of 32 x 32 pixels, 100 classes",
    "digits": "1,797 grey images of 8 x 8 pixels, 10 classes; comes with scikit-learn",
    "fashion_mnist": "70,000 grey images of 28 x 28 pixels, 10 classes",
    "imagefolder": "images of your own, in ROOT/train/CLASS and ROOT/val/CLASS",
}
"""Data sets, each with a line of help; :mod:`composer_edba.train.data.build` loads them."""

OPTIMIZERS: Mapping[str, str] = {
    "sgd": "torch.optim:SGD",
    "adam": "torch.optim:Adam",
    "adamw": "torch.optim:AdamW",
    "decoupled_sgdw": "composer.optim:DecoupledSGDW",
    "decoupled_adamw": "composer.optim:DecoupledAdamW",
}

SCHEDULERS: Mapping[str, str] = {
    "constant": "composer.optim:ConstantScheduler",
    "constant_with_warmup": "composer.optim:ConstantWithWarmupScheduler",
    "linear": "composer.optim:LinearScheduler",
    "linear_with_warmup": "composer.optim:LinearWithWarmupScheduler",
    "cosine": "composer.optim:CosineAnnealingScheduler",
    "cosine_with_warmup": "composer.optim:CosineAnnealingWithWarmupScheduler",
    "cosine_warm_restarts": "composer.optim:CosineAnnealingWarmRestartsScheduler",
    "step": "composer.optim:StepScheduler",
    "multistep": "composer.optim:MultiStepScheduler",
    "multistep_with_warmup": "composer.optim:MultiStepWithWarmupScheduler",
    "exponential": "composer.optim:ExponentialScheduler",
    "polynomial": "composer.optim:PolynomialScheduler",
    "polynomial_with_warmup": "composer.optim:PolynomialWithWarmupScheduler",
}


def load(target: str) -> Any:
    """Import what ``module:attribute`` names."""
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)


def algorithm_names() -> list[str]:
    """``edba``, ``dba`` and Composer's: the folders of ``composer.algorithms`` that hold a module of their name."""
    spec = importlib.util.find_spec("composer")
    roots = [] if spec is None else spec.submodule_search_locations or []
    folders = [folder for root in roots for folder in sorted(Path(root, "algorithms").glob("*"))]
    return ["edba", "dba", *(folder.name for folder in folders if (folder / f"{folder.name}.py").is_file())]


def shipped_runs() -> list[str]:
    """The YAML files that come with the package, as ``digits/edba``."""
    return sorted(path.relative_to(YAMLS).with_suffix("").as_posix() for path in YAMLS.glob("*/*.yaml"))
