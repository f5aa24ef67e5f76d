import pytest
import torch
from torch import nn

from composer_edba.train.models import MODELS, PreResNet, build_model


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def bottleneck_parameters(n: int, classes: int) -> int:
    """Parameters counted by hand from He et al.'s table, block by block."""
    total, channels = 3 * 16 * 9, 16
    for width in (16, 32, 64):
        for i in range(n):
            total += 2 * channels + channels * width  # BatchNorm, 1 x 1
            total += 2 * width + 9 * width * width  # BatchNorm, 3 x 3
            total += 2 * width + width * 4 * width  # BatchNorm, 1 x 1
            if i == 0:
                total += channels * 4 * width  # the shortcut
            channels = 4 * width
    return total + 2 * 256 + 256 * classes + classes


@pytest.mark.parametrize("classes", [10, 100])
@pytest.mark.parametrize("n", [1, 6, 18])
def test_bottleneck_parameter_count(n: int, classes: int) -> None:
    assert parameters(PreResNet(9 * n + 2, classes)) == bottleneck_parameters(n, classes)


# Counts that the imgclsmob/pytorchcv model zoo publishes for CIFAR-10, and for ResNet-9 Page's network.
@pytest.mark.parametrize(
    ("model", "count"),
    [
        (lambda: build_model("preresnet20_basic", 10), 272_282),
        (lambda: build_model("preresnet56_basic", 10), 855_578),
        (lambda: build_model("preresnet", 10, depth=110, block="basic"), 1_730_522),
        (lambda: build_model("preresnet", 10, depth=164), 1_703_258),
        (lambda: build_model("resnet9", 10), 6_573_120),
    ],
)
def test_published_parameter_count(model, count: int) -> None:
    assert parameters(model()) == count


def test_digits_cnn_parameter_count() -> None:
    convolutions = 9 * (1 * 16 + 16 * 32 + 32 * 32)
    assert parameters(build_model("digits_cnn", 10)) == convolutions + 2 * (16 + 32 + 32) + 32 * 10 + 10


def test_mlp_parameter_count() -> None:
    assert parameters(build_model("mlp", 10)) == 784 * 64 + 64 + 64 * 10 + 10
    assert parameters(build_model("mlp", 3, 2, image_size=4, hidden_size=5)) == 32 * 5 + 5 + 5 * 3 + 3


@pytest.mark.parametrize("argument", ["image_size", "hidden_size"])
def test_mlp_sizes_are_checked(argument: str) -> None:
    with pytest.raises(ValueError, match=f"{argument} must be at least 1, not 0"):
        build_model("mlp", 10, **{argument: 0})


@pytest.mark.parametrize(
    ("name", "features"), [("preresnet56", 256), ("preresnet56_basic", 64), ("preresnet20_basic", 64)]
)
def test_last_layer_features(name: str, features: int) -> None:
    assert build_model(name, 100).fc.in_features == features


@pytest.mark.parametrize("name", sorted(MODELS))
@pytest.mark.parametrize("channels", [1, 3])
def test_gradient_reaches_every_parameter(name: str, channels: int) -> None:
    torch.manual_seed(0)
    kwargs = {"preresnet": {"depth": 11}, "resnet9": {"width": 8}, "mlp": {"image_size": 16}}.get(name, {})
    model = build_model(name, 7, in_channels=channels, **kwargs)
    logits = model(torch.randn(6, channels, 16, 16))
    assert logits.shape == (6, 7)
    nn.functional.cross_entropy(logits, torch.arange(6)).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.abs().sum() > 0, key


@pytest.mark.parametrize(("block", "outputs"), [("basic", [(16, 8), (32, 4), (64, 2)]), ("bottleneck", None)])
def test_stage_shapes(block: str, outputs: list[tuple[int, int]] | None) -> None:
    model = PreResNet(20, 10, block)  # 20 = 9 * 2 + 2 = 6 * 3 + 2
    x = model.conv(torch.randn(2, 3, 8, 8))
    for stage, (width, size) in zip(model.stages, outputs or [(64, 8), (128, 4), (256, 2)], strict=True):
        x = stage(x)
        assert x.shape == (2, width, size, size)


def test_identity_shortcut_passes_the_raw_input_on() -> None:
    model = PreResNet(20, 10, "basic").eval()
    block = model.stages[0][0]
    nn.init.zeros_(block.convs[-1].weight)
    x = torch.randn(2, 16, 8, 8)
    assert torch.equal(block(x), x)


def test_projected_shortcut_takes_the_activated_input() -> None:
    block = PreResNet(20, 10, "basic").eval().stages[1][0]
    nn.init.zeros_(block.convs[-1].weight)
    x = torch.randn(2, 16, 8, 8)
    assert torch.equal(block(x), block.projection(torch.relu(block.norms[0](x))))


def test_convolutions_start_from_he_fan_out() -> None:
    torch.manual_seed(0)
    weight = PreResNet(164, 10).stages[2][3].convs[1].weight
    assert weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.02)


def test_resnet9_output_scale_multiplies_the_logits() -> None:
    torch.manual_seed(0)
    model = build_model("resnet9", 10, width=4).eval()
    x = torch.randn(3, 3, 32, 32)
    small = model(x)
    model.output_scale = 1.0
    torch.testing.assert_close(model(x), 8 * small)


def test_resnet9_last_layer_returns_the_logits() -> None:
    model = build_model("resnet9", 10, width=4).eval()
    outputs = []
    model.fc.register_forward_hook(lambda module, args, output: outputs.append(output))
    assert model(torch.randn(3, 3, 32, 32)) is outputs[0]


def test_resnet9_width_is_the_first_layers() -> None:
    model = build_model("resnet9", 10, width=8)
    assert (model.features[0][0].out_channels, model.fc.in_features) == (8, 64)


@pytest.mark.parametrize(
    ("depth", "block", "form"),
    [(50, "bottleneck", "9n + 2"), (57, "basic", "6n + 2"), (2, "basic", "6n + 2"), (-7, "bottleneck", "9n + 2")],
)
def test_depth_of_no_valid_form(depth: int, block: str, form: str) -> None:
    with pytest.raises(ValueError, match=rf"{form.replace('+', '[+]')} .*not {depth}"):
        PreResNet(depth, 10, block)


def test_unknown_block() -> None:
    with pytest.raises(ValueError, match="'bottleneck' or 'basic', not 'botleneck'"):
        PreResNet(56, 10, "botleneck")


def test_unknown_name_lists_models_and_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"'presnet56'; did you mean preresnet56\? known: digits_cnn.*resnet9"):
        build_model("presnet56", 10)


def test_name_near_nothing_has_no_hint() -> None:
    with pytest.raises(ValueError, match="unknown model name 'zzz'") as error:
        build_model("zzz", 10)
    assert "did you mean" not in str(error.value)


def test_unknown_argument_names_the_accepted_ones() -> None:
    with pytest.raises(TypeError, match=r"widht.*'resnet9' takes output_scale, width"):
        build_model("resnet9", 10, widht=8)
    with pytest.raises(TypeError, match="'preresnet56' takes no further arguments"):
        build_model("preresnet56", 10, depth=20)


def test_missing_argument_is_named() -> None:
    with pytest.raises(TypeError, match="missing model argument depth"):
        build_model("preresnet", 10)


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"num_classes": 0}, "num_classes must be at least 1, not 0"),
        ({"num_classes": 10, "in_channels": 0}, "in_channels must be at least 1, not 0"),
        ({"num_classes": 10, "width": 0}, "width must be at least 1, not 0"),
    ],
)
@pytest.mark.parametrize("name", ["resnet9", "digits_cnn"])
def test_sizes_below_one(name: str, kwargs: dict[str, int], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        build_model(name, **kwargs)
