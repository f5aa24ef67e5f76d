import pytest
import torch
from composer import Callback
from torch.nn import functional as F

from benchmarks.comparators.orderdp import OrderDP
from tests.support.small_runs import Watch, classifier, points_loader, trainer


class Epochs(Callback):
    """The samples of each epoch, and the losses that were known when it began."""

    def __init__(self, algorithm):
        self.algorithm, self.indices, self.losses = algorithm, [], []

    def epoch_start(self, state, logger):
        self.indices.append([])
        self.losses.append(self.algorithm.losses.clone())

    def batch_start(self, state, logger):
        self.indices[-1] += state.batch[0][:, 0].long().tolist()


def fit(algorithm, *callbacks, loader=None, **kwargs):
    loader = points_loader(with_index=True) if loader is None else loader
    run = trainer([algorithm], callbacks=callbacks, loader=loader, **kwargs)
    run.fit()
    return run


def test_the_top_of_a_random_subset():
    algorithm = OrderDP(subset=0.75, top=0.5)
    epochs = Epochs(algorithm)
    fit(algorithm, epochs, max_duration="12ep")
    assert sorted(epochs.indices[0]) == list(range(256)), "nothing is known before the first epoch"
    above_by_rank = torch.zeros(256)
    for indices, losses in zip(epochs.indices[1:], epochs.losses[1:], strict=True):
        assert len(indices) == len(set(indices)) == 96
        kept = torch.zeros(256, dtype=torch.bool)
        kept[torch.tensor(indices)] = True
        # Of those not kept all with a higher loss than the lowest kept one were not drawn: a quarter of all is not.
        above = (losses > losses[kept].min()) & ~kept
        assert above.sum() <= 64
        assert losses[kept].mean() > losses[~kept].mean()
        above_by_rank += kept[losses.argsort(descending=True)]
    # The highest are kept whenever they are drawn, three times in four; the lowest half of the subset never.
    assert abs(float(above_by_rank[:64].mean()) / 11 - 0.75) < 0.1
    assert float(above_by_rank[-64:].sum()) == 0
    assert algorithm.samples_trained == 256 + 11 * 96


def test_everything_drawn_is_what_has_the_highest_losses():
    algorithm = OrderDP(subset=1.0, top=0.25)
    epochs = Epochs(algorithm)
    fit(algorithm, epochs, max_duration="4ep")
    for indices, losses in zip(epochs.indices[1:], epochs.losses[1:], strict=True):
        assert set(indices) == set(losses.topk(64).indices.tolist())


def test_gradient_is_that_of_the_plain_mean():
    algorithm = OrderDP()
    model = classifier(dropout=0.0, batch_norm=False)
    data = points_loader().dataset
    steps = []

    class Compare(Callback):
        def batch_start(self, state, logger):
            indices = state.batch[0][:, 0].long()
            loss = F.cross_entropy(model.module(data.x[indices]), data.y[indices])
            self.expected = torch.autograd.grad(loss, list(model.parameters()))

        def after_train_batch(self, state, logger):
            steps.append(int(state.timestamp.epoch))
            for parameter, expected in zip(model.parameters(), self.expected, strict=True):
                torch.testing.assert_close(parameter.grad, expected)

    fit(algorithm, Compare(), model=model, device_train_microbatch_size=16, max_duration="3ep")
    assert set(steps) == {0, 1, 2}


def test_resumes_with_the_same_batches(tmp_path):
    def run(**kwargs):
        algorithm, watch = OrderDP(), Watch()
        end = fit(algorithm, watch, max_duration="4ep", model=classifier(dropout=0.0), **kwargs)
        return watch.indices, [p.detach().clone() for p in end.state.model.parameters()]

    whole, weights = run(save_folder=str(tmp_path), save_interval="1ba")
    resumed, resumed_weights = run(load_path=str(tmp_path / "ep2-ba9-rank0.pt"))
    assert resumed == whole[9:]
    for one, two in zip(weights, resumed_weights, strict=True):
        assert torch.equal(one, two)


def test_both_shares_whole_is_plain_training():
    watch, plain = Watch(), Watch()
    fit(OrderDP(1.0, 1.0), watch, max_duration="3ep")
    trainer([], loader=points_loader(with_index=True), callbacks=[plain], max_duration="3ep").fit()
    assert watch.indices == plain.indices


@pytest.mark.parametrize("name", ["subset", "top"])
@pytest.mark.parametrize("share", [0, 1.5])
def test_arguments_are_checked(name, share):
    with pytest.raises(ValueError, match=rf"{name} must be in \(0, 1\], not {share}"):
        OrderDP(**{name: share})
