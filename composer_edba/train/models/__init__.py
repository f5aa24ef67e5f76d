"""Networks for the YAML runs and benchmarks: plain ``torch.nn`` modules, built by name.

>>> model = build_model("preresnet56", num_classes=10)
>>> model.fc
Linear(in_features=256, out_features=10, bias=True)
"""

from composer_edba.train.models.digits_cnn import DigitsCNN, digits_cnn
from composer_edba.train.models.mlp import MLP, mlp
from composer_edba.train.models.preresnet import PreResNet, preresnet20_basic, preresnet56, preresnet56_basic
from composer_edba.train.models.registry import build_model
from composer_edba.train.models.resnet9 import ResNet9, resnet9
from composer_edba.train.names import MODELS

__all__ = [
    "MLP",
    "MODELS",
    "DigitsCNN",
    "PreResNet",
    "ResNet9",
    "build_model",
    "digits_cnn",
    "mlp",
    "preresnet20_basic",
    "preresnet56",
    "preresnet56_basic",
    "resnet9",
]
