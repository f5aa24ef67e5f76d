"""Models of other packages by the name of their factory."""

import importlib.machinery
import sys
import types

import pytest
import torch
from torch import nn

from composer_edba.train.config import ConfigError, load_config
from composer_edba.train.models import build_model
from composer_edba.train.run import build_trainer, main
from tests.support.paths import YAMLS

pytestmark = pytest.mark.filterwarnings("ignore:Cannot split tensor of length")


class Classifier(nn.Module):
    def __init__(self, num_classes, channels, width):
        super().__init__()
        self.width = width
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x):
        return self.fc(x.mean((2, 3)))


def fake(monkeypatch, name, **contents):
    """A module of that name, as if it were installed."""
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    vars(module).update(contents)
    monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture
def zoo(monkeypatch):
    fake(
        monkeypatch,
        "zoo",
        by_channels=lambda num_classes, in_channels=3, width=1: Classifier(num_classes, in_channels, width),
        by_chans=lambda num_classes, in_chans=3, width=1: Classifier(num_classes, in_chans, width),
        colours=lambda num_classes: Classifier(num_classes, 3, 1),
        features=lambda: Classifier(1, 3, 1),
        function=lambda num_classes, in_channels: torch.relu,
    )


@pytest.fixture
def timm(monkeypatch):
    def create_model(model_name, pretrained=False, **kwargs):
        assert model_name in ("resnet18", "resnet18.a1_in1k")
        return Classifier(kwargs.pop("num_classes"), kwargs.pop("in_chans", 3), **{"width": 1, **kwargs})

    fake(monkeypatch, "timm", create_model=create_model, list_models=lambda: ["resnet18", "vit_tiny_patch16_224"])


def digits(folder, *overrides):
    keys = ["data.samples=64", "trainer.max_duration=2ba", "trainer.progress_bar=false", "trainer.device=cpu"]
    return load_config(YAMLS / "digits" / "edba.yaml", [*keys, f"output.folder={folder}", *overrides])


@pytest.mark.parametrize("name", ["torchvision:resnet18", "torchvision.models:resnet18"])
def test_a_torchvision_model_gets_classes_and_arguments(name):
    model = build_model(name, num_classes=7, in_channels=3, width_per_group=64, zero_init_residual=True)
    assert model.fc.out_features == 7
    assert all(block.bn2.weight.eq(0).all() for block in model.layer1)
    assert model.eval()(torch.randn(2, 3, 32, 32)).shape == (2, 7)


def test_edba_trains_a_torchvision_model(tmp_path, monkeypatch):
    """On three-channel images: the digits, repeated."""
    fake(
        monkeypatch,
        "zoo",
        grey=lambda num_classes, in_channels: nn.Sequential(
            nn.Conv2d(in_channels, 3, 1), build_model("torchvision:resnet18", num_classes, 3)
        ),
    )
    trainer = main(digits(tmp_path, "model.name=zoo:grey", "data.batch_size=32"))
    assert type(trainer.state.model.module[1]).__name__ == "ResNet"
    assert int(trainer.state.timestamp.batch) == 2
    assert (tmp_path / "run.png").exists()


def test_a_torchvision_model_needs_three_channels(tmp_path):
    expected = r"model: torchvision:resnet18 takes neither in_channels nor in_chans.*3 channels; these have 1"
    with pytest.raises(ConfigError, match=expected):
        build_trainer(digits(tmp_path, "model.name=torchvision:resnet18"))


@pytest.mark.parametrize("factory", ["by_channels", "by_chans"])
def test_a_factory_gets_the_channels_by_the_name_it_has_for_them(zoo, tmp_path, factory):
    trainer, _ = build_trainer(digits(tmp_path, f"model.name=zoo:{factory}"))
    assert trainer.state.model.module.fc.weight.shape == (10, 1)
    trainer.close()


def test_arguments_of_the_run_win(zoo):
    model = build_model("zoo:by_chans", 10, 1, in_chans=5, width=4)
    assert (model.fc.in_features, model.width) == (5, 4)
    assert build_model("zoo:by_channels", 10).fc.in_features == 3


@pytest.mark.parametrize("name", ["timm:resnet18", "timm:resnet18.a1_in1k"])
def test_a_timm_model_is_made_by_create_model(timm, tmp_path, name):
    trainer, _ = build_trainer(digits(tmp_path, f"model.name={name}", "model.kwargs.width=4"))
    model = trainer.state.model.module
    assert (model.fc.in_features, model.fc.out_features, model.width) == (1, 10, 4)
    trainer.close()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("torchvision:resnet81", "torchvision.models has no factory 'resnet81'; did you mean resnet18?"),
        ("torchvision.model:resnet18", "there is no module torchvision.model; did you mean models?"),
        ("zoo:features", "zoo:features takes no num_classes"),
        ("zoo:function", "zoo:function gave a builtin_function_or_method, no torch.nn.Module"),
        ("zoo:by_channel", "zoo has no factory 'by_channel'; did you mean by_channels?"),
        ("timm:resnet81", "timm has no model 'resnet81'; did you mean resnet18?"),
        ("timm:qqqq", "timm has no model 'qqqq'; known: 2 names, see timm.list_models()"),
        ("'resnet18:'", "model.name: 'resnet18:' is no factory; expected MODULE:NAME, as torchvision:resnet18"),
        ("a-b:c", "model.name: 'a-b:c' is no factory"),
        ("torchvison:resnet18", "the package torchvison is not installed; did you mean torchvision?"),
    ],
)
def test_a_wrong_factory_is_refused(zoo, timm, tmp_path, name, expected):
    with pytest.raises(ConfigError) as caught:
        build_trainer(digits(tmp_path, f"model.name={name}"))
    assert expected in str(caught.value)


def test_a_package_that_is_short_for_nothing_else_is_to_be_installed(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="the package timm is not installed; install it"):
        digits(tmp_path, "model.name=timm:resnet18")


def test_an_argument_that_a_factory_does_not_take_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"model: .*unexpected keyword argument 'widht'"):
        build_trainer(digits(tmp_path, "model.name=torchvision:resnet18", "model.kwargs={widht: 2, in_chans: 3}"))


def test_an_import_error_inside_of_a_module_is_its_own(monkeypatch, tmp_path):
    (tmp_path / "broken_zoo.py").write_text("import no_such_package_at_all\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_package_at_all"):
        build_model("broken_zoo:net", 10)
