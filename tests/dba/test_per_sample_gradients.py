"""Per-sample gradients from hooks equal those of every sample's own backward pass."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from composer_edba.dba.per_sample_gradients import LayerRecorder, check_gradients

CLASSES = 3


class Tokens(nn.Module):
    """Embedding, position weights of the module's own, a layer that is used twice, LayerNorm, a mean over tokens."""

    def __init__(self, bias=True):
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.places = nn.Parameter(torch.randn(1, 5, 6))
        self.twice = nn.Linear(6, 6, bias=bias)
        self.norm = nn.LayerNorm(6)
        self.fc = nn.Linear(6, CLASSES, bias=bias)

    def forward(self, x):
        x = self.embed(x) + self.places
        return self.fc(self.norm(self.twice(torch.tanh(self.twice(x)))).mean(1))


def images():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, stride=2),
        nn.GroupNorm(2, 4),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 4, 3, groups=2, bias=False),
        nn.InstanceNorm2d(4, affine=True),
        nn.PReLU(),
        nn.Flatten(),
        nn.LazyLinear(CLASSES),
    )


def convolutions():
    return nn.Sequential(
        nn.Conv2d(2, 3, (3, 2), stride=(2, 1), padding=(1, 0)),
        nn.Tanh(),
        nn.Conv2d(3, 4, 3, padding=2, dilation=2, bias=False),
        nn.Tanh(),
        nn.Conv2d(4, 3, 3, padding="same", padding_mode="reflect"),
        nn.Tanh(),
        nn.Conv2d(3, 3, 1),
        nn.Flatten(),
        nn.LazyLinear(CLASSES),
    )


NETWORKS = {
    "mlp": (lambda: nn.Sequential(nn.Linear(5, 4), nn.ReLU(inplace=True), nn.Linear(4, CLASSES)), (5,)),
    "no_bias": (lambda: nn.Sequential(nn.Linear(5, 4, bias=False), nn.Tanh(), nn.Linear(4, CLASSES)), (5,)),
    "positions": (lambda: nn.Sequential(nn.Linear(5, CLASSES), nn.Flatten(), nn.LazyLinear(CLASSES)), (4, 5)),
    "images": (images, (2, 9, 9)),
    "convolutions": (convolutions, (2, 7, 6)),
    "tokens": (Tokens, None),
}


def inputs_for(shape, samples, generator):
    if shape is None:
        return torch.randint(11, (samples, 5), generator=generator)
    return torch.randn(samples, *shape, generator=generator)


def record(model, batches, loss=F.cross_entropy):
    """Train as a trainer does: the mean loss over all batches, each of them a microbatch."""
    recorder, total = LayerRecorder(), sum(len(x) for x, _ in batches)
    model.zero_grad()
    for x, y in batches:
        recorder.attach(model, len(x))
        outputs = model(x)
        recorder.detach()
        (loss(outputs, y) * len(x) / total).backward()
    assert recorder.samples == total
    return recorder.layers(total)


def loop(model, x, y, name):
    """Each sample's gradient by the layer's own parameters, (B, P), from a backward pass of its own."""
    own = [p for p in model.get_submodule(name).parameters(recurse=False) if p.requires_grad]
    rows = [torch.autograd.grad(F.cross_entropy(model(x[i : i + 1]), y[i : i + 1]), own) for i in range(len(x))]
    return torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])


def flat(parts):
    return torch.cat([part.flatten() for part in parts.values()])


@pytest.mark.parametrize("name", NETWORKS)
@settings(max_examples=25)
@given(samples=st.integers(2, 7), cut=st.integers(0, 6), seed=st.integers(0, 10**6))
def test_they_equal_a_loop_over_samples(name, samples, cut, seed):
    build, shape = NETWORKS[name]
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model = build()
    x, y = inputs_for(shape, samples, generator), torch.randint(CLASSES, (samples,), generator=generator)
    model(x)  # lazy layers
    cut = min(cut, samples - 1)
    batches = [(x, y)] if cut == 0 else [(x[:cut], y[:cut]), (x[cut:], y[cut:])]
    layers = record(model, batches)
    assert [layer.name for layer in layers] == [
        n for n, m in model.named_modules() if any(True for _ in m.parameters(recurse=False))
    ]
    check_gradients(layers, model)
    weights = torch.rand(samples, generator=generator) * (torch.rand(samples, generator=generator) < 0.7)
    for layer in layers:
        exact = loop(model, x, y, layer.name).detach()
        scale = float(exact.norm(dim=1).max()) + 1e-12
        torch.testing.assert_close(layer.materialised(), exact, rtol=1e-4, atol=1e-5 * scale)
        torch.testing.assert_close(layer.inner_products(), exact @ exact.T, rtol=1e-4, atol=1e-5 * scale**2)
        torch.testing.assert_close(flat(layer.weighted_sum(weights)), weights @ exact, rtol=1e-4, atol=2e-5 * scale)


@settings(max_examples=25)
@given(samples=st.integers(2, 9), seed=st.integers(0, 10**6))
def test_they_equal_torch_func_over_the_whole_network(samples, seed):
    torch.manual_seed(seed)
    model = images()
    x, y = torch.randn(samples, 2, 9, 9), torch.randint(CLASSES, (samples,))
    model(x)
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def own_loss(values, xi, yi):
        return F.cross_entropy(functional_call(model, values, (xi.unsqueeze(0),)), yi.unsqueeze(0))

    whole = vmap(grad(own_loss), in_dims=(None, 0, 0))(parameters, x, y)
    for layer in record(model, [(x, y)]):
        names = [f"{layer.name}.{name}" for name, _ in layer.module.named_parameters(recurse=False)]
        expected = torch.cat([whole[name].flatten(1) for name in names], 1)
        torch.testing.assert_close(layer.materialised(), expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))


def test_dropout_masks_are_those_of_training():
    """The gradient that backward left is the mean only if the masks were the ones that training drew."""
    model = nn.Sequential(nn.Linear(5, 32), nn.Dropout(0.5), nn.Linear(32, CLASSES))
    layers = record(model, [(torch.randn(6, 5), torch.randint(CLASSES, (6,)))])
    for layer in layers:
        expected = torch.cat([p.grad.flatten() for p in layer.module.parameters()])
        torch.testing.assert_close(layer.materialised().mean(0), expected, rtol=1e-4, atol=1e-6)


def test_a_frozen_batch_norm_has_gradients_of_its_own():
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, CLASSES))
    model(torch.randn(20, 5))
    model[1].eval()
    x, y = torch.randn(6, 5), torch.randint(CLASSES, (6,))
    for layer in record(model, [(x, y)]):
        torch.testing.assert_close(layer.materialised(), loop(model, x, y, layer.name), rtol=1e-4, atol=1e-6)


def test_what_is_frozen_or_unused_is_left_out():
    model = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, CLASSES))
    model.unused = nn.Linear(3, 3)
    model.forward = lambda x: model[1](model[0](x))
    model[0].requires_grad_(False)
    model[1].bias.requires_grad_(False)
    (layer,) = record(model, [(torch.randn(4, 5), torch.randint(CLASSES, (4,)))])
    assert layer.name == "1"
    assert layer.materialised().shape == (4, 4 * CLASSES)
    assert list(layer.weighted_sum(torch.ones(4))) == ["weight"]


@pytest.mark.parametrize("frozen", ["weight", "bias"])
def test_a_convolution_of_which_half_is_frozen(frozen):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(32, CLASSES))
    getattr(model[0], frozen).requires_grad_(False)
    x, y = torch.randn(5, 1, 6, 6), torch.randint(CLASSES, (5,))
    layer = record(model, [(x, y)])[0]
    torch.testing.assert_close(layer.materialised(), loop(model, x, y, "0"), rtol=1e-4, atol=1e-6)


def test_a_layer_that_one_microbatch_skips_has_zero_gradients_there():
    model = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, CLASSES))
    model.forward = lambda x: model[1](model[0](x) if len(x) == 3 else x)
    batches = [(torch.randn(n, 5), torch.randint(CLASSES, (n,))) for n in (3, 2)]
    skipped, used = record(model, batches)
    assert torch.equal(skipped.materialised()[3:], torch.zeros(2, 30))
    assert (skipped.inner_products()[:3, :3].diagonal() > 0).all()
    assert (used.inner_products().diagonal() > 0).all()
    check_gradients([skipped, used], model)


def test_microbatches_of_sequences_of_unequal_length():
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.AdaptiveAvgPool2d((1, 4)), nn.Flatten(), nn.Linear(4, CLASSES))
    batches = [(torch.randn(n, t, 5), torch.randint(CLASSES, (n,))) for n, t in ((2, 6), (3, 2))]
    layers = record(model, batches)
    check_gradients(layers, model)
    exact = torch.cat([loop(model, x, y, "0") for x, y in batches])
    torch.testing.assert_close(layers[0].inner_products(), exact @ exact.T, rtol=1e-4, atol=1e-6)


def test_bfloat16_autocast():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(64, CLASSES))
    x, y = torch.randn(8, 1, 6, 6), torch.randint(CLASSES, (8,))
    exact = {layer.name: layer.inner_products() for layer in record(model, [(x, y)])}

    class Cast(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = model

        def forward(self, x):
            with torch.autocast("cpu", torch.bfloat16):
                return self.net(x)

    cast = Cast()
    layers = record(cast, [(x, y)], lambda outputs, y: F.cross_entropy(outputs.float(), y))
    check_gradients(layers, cast)
    for layer in layers:
        products, expected = layer.inner_products(), exact[layer.name.removeprefix("net.")]
        assert products.dtype == torch.float32
        assert layer.half
        assert (products - expected).norm() < 0.05 * expected.norm()


def test_replacing_the_gradient_leaves_other_layers_alone():
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, CLASSES))
    x, y = torch.randn(6, 5), torch.randint(CLASSES, (6,))
    first, last = record(model, [(x, y)])
    before = last.module.weight.grad.clone()
    weights = torch.tensor([0, 0.5, 0, 0.5, 0, 0])
    first.replace_gradient(weights)
    exact = weights @ loop(model, x, y, "0")
    torch.testing.assert_close(torch.cat([first.module.weight.grad.flatten(), first.module.bias.grad]), exact)
    assert torch.equal(last.module.weight.grad, before)


class Bad(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.a, self.b = nn.Linear(5, 5), nn.Linear(5, CLASSES)
        if kind == "tied":
            self.c = nn.Linear(5, 5)
            self.c.weight = self.a.weight
        if kind == "lstm":
            self.c = nn.LSTM(5, 5, batch_first=True)
        if kind == "attention":
            self.c = nn.MultiheadAttention(5, 1, batch_first=True)

    def forward(self, x):
        if self.kind == "outside":
            return self.b(F.linear(x, self.a.weight, self.a.bias))
        x = self.a(x)
        if self.kind == "tied":
            x = torch.tanh(self.c(x))
        if self.kind == "lstm":
            x = self.c(x.unsqueeze(1))[0][:, 0]
        if self.kind == "attention":
            x = x + self.c(x.unsqueeze(1), x.unsqueeze(1), x.unsqueeze(1))[0][:, 0]
        if self.kind == "transposed":
            return self.b(x.T.contiguous().view(5, -1).T)[None].squeeze(0) if len(x) == 1 else self._transposed(x)
        return self.b(x)

    def _transposed(self, x):
        return self.b(x.view(2, -1, 5)).view(len(x), -1)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("tied", r"gradient of a\.weight .* \(tied weights\)"),
        ("outside", r"gradient of a\.weight .* outside of its module"),
        ("lstm", r"layer 'c' \(LSTM\) gives an output of type tuple"),
        ("attention", r"layer 'c' \(MultiheadAttention\) gives an output of type tuple"),
        ("transposed", r"layer 'b' \(Linear\) gives an output of shape \(2, 3, 3\) for 6 samples"),
    ],
)
def test_what_has_no_per_sample_gradients_is_refused_by_name(kind, message):
    model = Bad(kind)
    with pytest.raises(ValueError, match=message):
        check_gradients(record(model, [(torch.randn(6, 5), torch.randint(CLASSES, (6,)))]), model)


def test_a_layer_that_draws_random_numbers_is_refused():
    class Noisy(nn.Linear):
        def forward(self, x):
            return super().forward(F.dropout(x, 0.5))

    model = nn.Sequential(Noisy(5, CLASSES))
    (layer,) = record(model, [(torch.randn(6, 5), torch.randint(CLASSES, (6,)))])
    with pytest.raises(ValueError, match=r"layer '0' \(Noisy\) has no per-sample gradients"):
        layer.inner_products()


def test_evaluation_is_not_recorded_and_hooks_go():
    model, recorder = nn.Sequential(nn.Linear(5, CLASSES)), LayerRecorder()
    recorder.attach(model, 4)
    with torch.no_grad():
        model(torch.randn(4, 5))
    recorder.detach()
    assert recorder.layers(4) == []
    assert len(model[0]._forward_hooks) == 0
