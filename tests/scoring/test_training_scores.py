"""What a training step itself tells about its samples is what a scoring forward would have told."""

import gc
import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from composer_edba.method.reference import last_layer_gradients
from composer_edba.scoring.forward import Scorer
from composer_edba.scoring.last_layer import single_position
from composer_edba.scoring.training_scores import TrainingScores

FEATURES, CLASSES = 5, 3


class Net(nn.Module):
    def __init__(self, head):
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh()), head

    def forward(self, x):
        h = self.body(x[0] if isinstance(x, list) else x)
        if isinstance(self.head, nn.Conv2d):
            return self.head(h[:, :, None, None]).flatten(1)
        return self.head(h)


def heads():
    return [nn.Linear(8, CLASSES), nn.Linear(8, CLASSES, bias=False), nn.Conv2d(8, CLASSES, 1)]


def data(seed, size):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, FEATURES, generator=generator), torch.randint(CLASSES, (size,), generator=generator)


def step(net, scores, x, y, parts, scale=1.0):
    """A training step as Composer makes it: each microbatch's mean loss weighs its share of the batch."""
    net.zero_grad()
    scores.begin_step()
    for chunk_x, chunk_y in zip(x.split(parts), y.split(parts), strict=True):
        scores.begin_forward()
        outputs = net(chunk_x)
        scores.end_forward()
        scores.begin_loss(F.cross_entropy, outputs, chunk_y)
        scores.end_loss(F.cross_entropy(outputs, chunk_y))
        (F.cross_entropy(outputs, chunk_y) * scale * len(chunk_x) / len(x)).backward()
    return scores.rows(len(x) / torch.tensor(scale))


def loss(outputs, batch):
    return F.cross_entropy(outputs, batch[1])


counts = st.integers(1, 24)


@given(st.integers(0, 2), st.integers(0, 2**31), counts, counts, st.sampled_from([1.0, 2.0**12]))
def test_rows_are_the_scorers_and_give_autograds_gradients_per_sample(which, seed, size, part, scale):
    torch.manual_seed(seed)
    net, scores = Net(heads()[which]), TrainingScores()
    x, y = data(seed, size)
    scores.watch(net.head)
    rows = step(net, scores, x, y, part, scale)
    h, d, losses = rows[:, :8], rows[:, 8:-1], rows[:, -1]
    assert scores.features == 8
    assert scores.bias == (which != 1)
    scored = Scorer(net.head)(net, [x, y], loss)
    torch.testing.assert_close(h, scored.inputs.reshape(size, 8))
    torch.testing.assert_close(d, scored.output_grads.reshape(size, CLASSES), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(losses.mean(), scored.model_metric)
    gradients = last_layer_gradients(h, d, scores.bias)
    for i in range(size):
        net.zero_grad()
        F.cross_entropy(net(x[i : i + 1]), y[i : i + 1]).backward()
        own = [net.head.weight.grad.reshape(CLASSES, 8)]
        own += [net.head.bias.grad.unsqueeze(1)] if scores.bias else []
        torch.testing.assert_close(gradients[i], torch.cat(own, 1).flatten(), rtol=1e-4, atol=1e-6)


def test_under_autocast_they_are_right_to_its_precision():
    torch.manual_seed(0)
    net, scores = Net(nn.Linear(8, CLASSES)), TrainingScores()
    x, y = data(1, 64)
    exact = Scorer(net.head)(net, [x, y], loss)
    scores.watch(net.head)
    scores.begin_step()
    scores.begin_forward()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = net(x)
        mean = loss(outputs, [x, y])
    assert outputs.dtype == torch.bfloat16
    scores.end_forward()
    scores.end_loss(mean)
    mean.backward()
    rows = scores.rows(64.0)
    assert rows.dtype == torch.float32
    torch.testing.assert_close(rows[:, :8], exact.inputs, rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(rows[:, 8:-1], exact.output_grads, rtol=2e-2, atol=2e-2)
    assert torch.equal(rows[:, -1], mean.detach().expand(64))  # a scalar stands for all


def test_watching_changes_neither_gradients_nor_random_streams():
    def gradients(watched):
        torch.manual_seed(0)
        net, scores = Net(nn.Sequential(nn.Dropout(0.5), nn.Linear(8, CLASSES))), TrainingScores()
        if watched:
            scores.watch(net.head[1])
        x, y = data(1, 16)
        if watched:
            step(net, scores, x, y, 5)
        else:
            for a, b in zip(x.split(5), y.split(5), strict=True):
                (F.cross_entropy(net(a), b) * len(a) / 16).backward()
        return [p.grad for p in net.parameters()], torch.get_rng_state()

    (plain, plain_state), (watched, watched_state) = gradients(False), gradients(True)
    assert all(torch.equal(a, b) for a, b in zip(plain, watched, strict=True))
    assert torch.equal(plain_state, watched_state)


def test_only_what_lies_between_begin_and_end_of_a_forward_counts():
    net, scores = Net(nn.Linear(8, CLASSES)), TrainingScores()
    x, y = data(1, 6)
    scores.watch(net.head)
    net(x)  # nothing has begun
    rows = step(net, scores, x, y, 6)
    assert len(rows) == 6
    net(x).sum().backward()  # the step is over
    assert scores._parts == []
    # A part that ran out of memory is forgotten.
    scores.begin_step()
    scores.begin_forward()
    net(x)
    assert len(step(net, scores, x, y, 3)) == 6


def test_nothing_is_left_behind():
    net, scores = Net(nn.Linear(8, CLASSES)), TrainingScores()
    x, y = data(1, 6)
    scores.watch(net.head)
    scores.watch(net.head)
    assert len(net.head._forward_hooks) == 1
    step(net, scores, x, y, 6)
    scores.watch(net.body[0])
    assert len(net.head._forward_hooks) == 0
    scores.begin_forward()
    kept = net(x)
    inputs = weakref.ref(scores._parts[-1].inputs[0])
    assert inputs() is not None
    scores.unwatch()
    del kept  # its graph leads to the hook
    gc.collect()
    assert all(not module._forward_hooks for module in net.modules())
    assert inputs() is None


def test_no_view_keeps_the_whole_activations_alive():
    net, scores = Net(nn.Linear(8, CLASSES)), TrainingScores()
    scores.watch(net.head)
    scores.begin_step()
    scores.begin_forward()
    net.head(torch.randn(6, 100, 8)[:, 0])
    assert scores._parts[0].inputs[0].untyped_storage().nbytes() == 4 * 6 * 8


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (lambda net, x: net.head(net.body(x)) + net.head(net.body(x)), "called more than once in a forward"),
        (lambda net, x: net.head(net.body(x).unsqueeze(1).expand(-1, 4, -1)).mean(1), "at several positions"),
    ],
)
def test_layers_with_more_than_one_position_a_sample_are_refused(forward, message):
    net, scores = Net(nn.Linear(8, CLASSES)), TrainingScores()
    scores.watch(net.head)
    scores.begin_step()
    scores.begin_forward()
    with pytest.raises(ValueError, match=message + r".*Use scoring='forward'"):
        forward(net, data(0, 6)[0])


def test_a_layer_that_the_loss_does_not_depend_on_is_refused():
    net, scores = Net(nn.Linear(8, CLASSES)), TrainingScores()
    scores._recompiled = True  # nothing here is compiled
    scores.watch(net.head)
    for call in (True, False):
        scores.begin_step()
        scores.begin_forward()
        if call:
            net(data(0, 6)[0])
        scores.end_forward()
        scores.end_loss(torch.zeros(()))
        with pytest.raises(ValueError, match="got no gradient" if call else "was not called"):
            scores.rows(1.0)


def test_one_position_of_a_convolution_is_as_good_as_none():
    conv = nn.Conv2d(4, 2, 1)
    x = torch.randn(3, 4, 1, 1)
    assert torch.equal(single_position(conv, x), x.flatten(1))
    with pytest.raises(ValueError, match="several positions"):
        single_position(conv, torch.randn(3, 4, 2, 1))
