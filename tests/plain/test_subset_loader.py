"""EDBA in a loop written by hand."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from composer_edba.plain import SubsetLoader
from tests.support.torch_runs import following, loader, net, points, sgd

LOSS = nn.CrossEntropyLoss()


def train(subsets, model, optimizer, epochs=1, stop=None):
    """Returns the indices of the samples trained on, by step; stops after ``stop`` steps."""
    steps = []
    for _ in range(epochs):
        for x, y in subsets:
            optimizer.zero_grad()
            LOSS(model(x), y).backward()
            optimizer.step()
            steps.append(x[:, 0].long().tolist())
            if len(steps) == stop:
                return steps
    return steps


def test_a_loop_trains_on_chosen_subsets():
    model, data = net(), loader()
    subsets = SubsetLoader(data, model, LOSS, preset="paper")
    steps = train(subsets, model, sgd(model), epochs=4)
    assert len(steps[0]) == 64
    assert 10 <= min(map(len, steps)) < 64
    assert subsets.figures["samples_trained"] == sum(map(len, steps))
    assert subsets.figures["samples_scored"] == 4 * 256
    assert subsets.figures["distinct_samples"] == len({index for step in steps for index in step})
    assert data.batch_size == 64
    assert type(data.batch_sampler) is BatchSampler


@pytest.mark.parametrize("workers", [0, 2])
def test_every_pass_sees_each_sample_once(workers):
    policy = following([64, 20, 11, 128, 40])
    model, data = net(), loader(num_workers=workers)
    # No pool is larger than the smallest subset, so all of each is yielded.
    subsets = SubsetLoader(data, model, LOSS, preset="paper", min_subset_size=200, batch_size_policy=policy)
    sizes = set()
    for _ in range(4):
        steps = train(subsets, model, sgd(model))
        assert sorted(index for step in steps for index in step) == list(range(256))
        sizes |= set(map(len, steps))
    assert len(sizes) > 2


def test_a_state_of_an_earlier_version_is_refused():
    model = net()
    subsets = SubsetLoader(loader(), model, LOSS)
    with pytest.raises(ValueError, match=r"saved by a version before 0\.2"):
        subsets.load_state_dict({"selector": {}, "steps": 3})


def test_the_loop_is_that_of_ignite():
    engine = pytest.importorskip("ignite.engine", reason="PyTorch Ignite is not installed")
    from composer_edba.ignite import EDBAHandler

    first, second = net(), net()
    data = loader()
    torch.manual_seed(3)
    train(SubsetLoader(data, first, LOSS, preset="paper", seed=1), first, sgd(first), epochs=6)
    trainer = engine.create_supervised_trainer(second, sgd(second), LOSS)
    EDBAHandler(second, LOSS, preset="paper", seed=1).attach(trainer, data)
    torch.manual_seed(3)
    trainer.run(data, max_epochs=6)
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loop_resumed_at_any_batch_ends_as_the_whole_one(workers):
    policy = following([64, 20, 11, 128, 37])

    def parts():
        model, data = net(dropout=0.0), loader(num_workers=workers)
        return model, sgd(model), SubsetLoader(data, model, LOSS, preset="paper", batch_size_policy=policy)

    model, optimizer, subsets = parts()
    torch.manual_seed(3)
    steps, saved, passes = [], [], []
    for number in range(3):
        for x, y in subsets:
            optimizer.zero_grad()
            LOSS(model(x), y).backward()
            optimizer.step()
            steps.append(x[:, 0].long().tolist())
            passes.append(number)
            everything = [model.state_dict(), optimizer.state_dict(), subsets.state_dict(), torch.get_rng_state()]
            saved.append(copy.deepcopy(everything))
    for done, (weights, momentum, state, random_state) in enumerate(saved, 1):
        twin, other, rest = parts()
        twin.load_state_dict(weights)
        other.load_state_dict(momentum)
        rest.load_state_dict(state)
        torch.set_rng_state(random_state)
        epochs = 3 - passes[done - 1]  # after a pass's last batch its rest is empty
        assert train(rest, twin, other, epochs) == steps[done:], done
        for name, tensor in model.state_dict().items():
            assert torch.equal(twin.state_dict()[name], tensor), (done, name)


def test_a_loop_that_breaks_off_begins_a_new_pass():
    model, policy = net(), following([64, 20])
    subsets = SubsetLoader(loader(), model, LOSS, preset="paper", min_subset_size=200, batch_size_policy=policy)
    assert len(train(subsets, model, sgd(model), stop=2)) == 2
    steps = train(subsets, model, sgd(model))
    assert sorted(index for step in steps for index in step) == list(range(256))


@pytest.mark.parametrize("workers", [0, 1])
def test_passes_that_are_broken_off_resume_as_they_went_on(workers):
    policy = following([64, 20, 40])

    def parts():
        model = net(dropout=0.0)
        subsets = SubsetLoader(loader(num_workers=workers), model, LOSS, preset="paper", batch_size_policy=policy)
        return model, sgd(model), subsets

    model, optimizer, subsets = parts()
    torch.manual_seed(3)
    train(subsets, model, optimizer, stop=3)
    saved = copy.deepcopy([model.state_dict(), optimizer.state_dict(), subsets.state_dict(), torch.get_rng_state()])
    expected = train(subsets, model, optimizer, stop=4)
    twin, other, again = parts()
    for part, state in zip((twin, other, again), saved, strict=False):
        part.load_state_dict(state)
    torch.set_rng_state(saved[-1])
    steps = train(again, twin, other, stop=4)
    assert steps == expected
    assert len(steps) == 4


def test_a_loader_iterated_inside_of_itself_is_refused():
    model = net()
    subsets = SubsetLoader(loader(), model, LOSS)
    first = iter(subsets)
    next(first)
    with pytest.raises(RuntimeError, match="being iterated over already"):
        next(iter(subsets))
    first.close()
    assert sum(len(x) for x, _ in subsets) > 0


def test_split_and_forward():
    class Renamed(TensorDataset):
        def __getitem__(self, index):
            x, y = super().__getitem__(index)
            return {"points": x, "labels": y, "name": str(index)}

    model = net()
    subsets = SubsetLoader(
        DataLoader(Renamed(*points().tensors), batch_size=64),
        model,
        lambda output, target: LOSS(output["logits"], target),
        split=lambda batch: (batch["points"], batch["labels"]),
        forward=lambda model, x: {"logits": model(x)},
        last_layer=model.fc,
        criterion="margin",
    )
    batches = [batch for _ in range(3) for batch in subsets]
    assert min(len(batch["labels"]) for batch in batches) < 64
    for batch in batches:
        assert batch["name"] == [str(int(index)) for index in batch["points"][:, 0]]
    with pytest.raises(ValueError, match="the batch is a dict, not a pair"):
        next(iter(SubsetLoader(subsets._given, model, LOSS, preset="paper")))


def test_the_candidates_depend_on_the_seed_alone():
    def run(seed):
        model = net(dropout=0.0)
        torch.manual_seed(seed)
        data = loader(shuffle=False)
        return train(SubsetLoader(data, model, LOSS, preset="paper", seed=5), model, sgd(model), epochs=2)

    assert run(1) == run(2)


def test_what_a_user_expects_of_a_loader():
    model, data = net(), loader()
    subsets = SubsetLoader(data, model, LOSS, preset="paper")
    assert (len(subsets), subsets.batch_size) == (4, 64)
    assert subsets.dataset is data.dataset
    assert subsets.sampler is data.sampler
    assert subsets.figures == {}


def test_loaders_that_cannot_be_resized_or_are_empty():
    model = net()

    class Own(BatchSampler):
        pass

    own = Own(RandomSampler(range(256)), 64, False)
    with pytest.warns(UserWarning, match=r"cannot resize .* of the loader \(it has a batch sampler of its own, Own"):
        subsets = SubsetLoader(DataLoader(points(), batch_sampler=own), model, LOSS, preset="paper")
    steps = train(subsets, model, sgd(model), epochs=3)
    assert subsets.batch_size is None
    assert min(map(len, steps)) < 64
    with pytest.raises(ValueError, match="the loader is empty"):
        SubsetLoader(loader(size=10, drop_last=True), model, LOSS, preset="paper")
    with pytest.raises(TypeError, match="unknown argument 'start'"):
        SubsetLoader(loader(), model, LOSS, preset="paper", start=0.5)


@pytest.mark.parametrize(("scoring", "forwards"), [("forward", 1), ("cached", 0)])
def test_the_last_layer_is_looked_for_once(scoring, forwards):
    model, calls = net(), []
    model.register_forward_hook(lambda module, args, output: calls.append(module.training and len(output) > 8))
    subsets = SubsetLoader(loader(), model, LOSS, preset="paper", scoring=scoring, batch_size_policy="fixed")
    counts = []
    for x, y in subsets:
        counts.append(len(calls))
        calls.clear()
        LOSS(model(x), y).backward()
    assert [count - 1 for count in counts[1:]] == [forwards] * (len(counts) - 1)
