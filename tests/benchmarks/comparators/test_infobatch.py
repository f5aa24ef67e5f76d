import numpy as np
import pytest
import torch
from composer import Callback
from composer.algorithms import SAM
from torch import nn
from torch.nn import functional as F

from benchmarks.comparators.infobatch import InfoBatch
from tests.support.small_runs import PointsClassifier, Watch, classifier, logged, points_loader, trainer


class Epochs(Callback):
    """The samples of each epoch, and what was known when it began."""

    def __init__(self, algorithm):
        self.algorithm, self.indices, self.weights, self.losses = algorithm, [], [], []

    def epoch_start(self, state, logger):
        self.indices.append([])
        self.weights.append(self.algorithm._weights.clone())
        self.losses.append(self.algorithm._losses.clone())

    def batch_start(self, state, logger):
        self.indices[-1] += state.batch[0][:, 0].long().tolist()


def fit(algorithm, *callbacks, **kwargs):
    kwargs.setdefault("loader", points_loader(with_index=True))
    run = trainer([algorithm], callbacks=callbacks, **kwargs)
    run.fit()
    return run


def test_prunes_by_the_published_rule():
    algorithm = InfoBatch()
    epochs, watch = Epochs(algorithm), Watch()
    run = fit(algorithm, epochs, watch, max_duration="8ep")

    assert sorted(epochs.indices[0]) == list(range(256))
    assert torch.equal(epochs.weights[0], torch.ones(256))
    for indices, weights, losses in list(zip(epochs.indices, epochs.weights, epochs.losses, strict=True))[1:7]:
        below = losses < losses.mean()
        assert 0 < below.sum() < 256
        assert sorted(indices) == torch.nonzero(weights).flatten().tolist()
        assert torch.equal(weights[~below], torch.ones(int((~below).sum())))
        assert set(weights[below].tolist()) == {0.0, 2.0}
    # About half of those below the mean are left out: all epochs together lie within five standard deviations.
    below = sum(int((losses < losses.mean()).sum()) for losses in epochs.losses[1:7])
    left_out = sum(int((weights == 0).sum()) for weights in epochs.weights[1:7])
    assert abs(left_out - below / 2) < 5 * np.sqrt(below) / 2
    # 7/8 of training are over: the last epoch is whole and not weighted.
    assert sorted(epochs.indices[7]) == list(range(256))
    assert torch.equal(epochs.weights[7], torch.ones(256))

    assert [end[0] for end in watch.epoch_ends] == list(range(1, 9))
    assert algorithm.samples_trained == sum(map(len, epochs.indices)) == int(run.state.timestamp.sample)
    assert algorithm.distinct_samples == 256
    assert logged(run, "infobatch/samples_trained")[-1] == algorithm.samples_trained


def test_losses_are_those_of_the_training_forward():
    """Without dropout and with a learning rate of zero they can be computed again."""
    algorithm = InfoBatch()
    model = classifier(dropout=0.0, batch_norm=False)
    fit(
        algorithm,
        model=model,
        optimizers=torch.optim.SGD(model.parameters(), lr=0.0),
        device_train_microbatch_size=10,
        max_duration="1ep",
    )
    data = points_loader().dataset
    with torch.no_grad():
        expected = F.cross_entropy(model.module(data.x), data.y, reduction="none")
    algorithm._take_losses()
    torch.testing.assert_close(algorithm._losses, expected)


def test_gradient_is_that_of_the_weighted_mean():
    algorithm = InfoBatch()
    model = classifier(dropout=0.0, batch_norm=False)
    data = points_loader().dataset
    steps = []

    class Compare(Callback):
        def batch_start(self, state, logger):
            indices = state.batch[0][:, 0].long()
            losses = F.cross_entropy(model.module(data.x[indices]), data.y[indices], reduction="none")
            weighted = (losses * algorithm._weights[indices]).mean()
            self.expected = torch.autograd.grad(weighted, list(model.parameters()))

        def after_train_batch(self, state, logger):
            steps.append(int(state.timestamp.epoch))
            for parameter, expected in zip(model.parameters(), self.expected, strict=True):
                torch.testing.assert_close(parameter.grad, expected)

    fit(algorithm, Compare(), model=model, device_train_microbatch_size=16, max_duration="3ep")
    assert set(steps) == {0, 1, 2}


def test_expected_gradient_is_unbiased():
    """E[weight] = 1, whether below the mean or not."""
    algorithm = InfoBatch(ratio=0.3)
    epochs = Epochs(algorithm)
    fit(algorithm, epochs, max_duration="40ep", loader=points_loader(64, 32, with_index=True))
    weights = torch.stack(epochs.weights[1:35])
    # variance of a weight: r / (1 - r)
    assert abs(float(weights.mean()) - 1) < 5 * np.sqrt(0.3 / 0.7 / weights.numel())


def test_loss_is_restored_and_evaluation_sees_the_plain_one():
    algorithm, model = InfoBatch(), classifier()
    run = fit(algorithm, model=model, max_duration="2ep")
    assert "loss" not in vars(model)
    run.fit(duration="1ep")
    assert "loss" not in vars(model)
    assert int(run.state.timestamp.epoch) == 3


def test_epoch_lengths_stay_true_under_a_schedule():
    """A milestone at two epochs falls there, although epochs have different numbers of batches."""
    from composer.optim import MultiStepScheduler

    watch = Watch()
    fit(
        InfoBatch(),
        watch,
        schedulers=MultiStepScheduler(["2ep"]),
        max_duration="5ep",
        loader=points_loader(batch_size=16, with_index=True),
    )
    drop = next(i for i, rate in enumerate(watch.learning_rates) if rate < 0.04)
    end_of_second = watch.epoch_ends[1][1]
    assert abs(drop - end_of_second) <= 1


def test_resumes_with_the_same_batches(tmp_path):
    def run(**kwargs):
        algorithm = InfoBatch()
        watch = Watch()
        end = fit(algorithm, watch, max_duration="4ep", **kwargs)
        return watch.indices, [p.detach().clone() for p in end.state.model.parameters()], algorithm

    whole, weights, algorithm = run(save_folder=str(tmp_path), save_interval="1ba", model=classifier(dropout=0.0))
    resumed, resumed_weights, other = run(load_path=str(tmp_path / "ep2-ba9-rank0.pt"), model=classifier(dropout=0.0))
    assert resumed == whole[9:]
    for one, two in zip(weights, resumed_weights, strict=True):
        assert torch.equal(one, two)
    assert other.samples_trained == algorithm.samples_trained


def test_beside_sam():
    """The batch's loss is formed twice, each time of all its samples."""
    algorithm = InfoBatch()
    epochs = Epochs(algorithm)
    run = trainer([algorithm, SAM()], callbacks=[epochs], loader=points_loader(with_index=True), max_duration="3ep")
    run.fit()
    assert sum(map(len, epochs.indices)) == algorithm.samples_trained


def test_duration_in_samples():
    watch = Watch()
    run = fit(InfoBatch(), watch, max_duration="1000sp")
    assert 1000 <= int(run.state.timestamp.sample) < 1064
    assert int(run.state.timestamp.epoch) >= 4


class SquaredClassifier(PointsClassifier):
    def loss(self, outputs, batch):
        return F.mse_loss(outputs, F.one_hot(batch[1], 4).float())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"ratio": 1.0}, r"ratio must be in \[0, 1\), not 1.0"), ({"delta": 1.5}, r"delta must be in \[0, 1\], not 1.5")],
)
def test_arguments_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        InfoBatch(**arguments)


def test_other_losses_are_refused():
    model = SquaredClassifier(nn.Linear(12, 4), num_classes=4)
    with pytest.raises(ValueError, match="loss must be cross entropy"):
        fit(InfoBatch(), model=model)


def test_partial_samplers_are_refused():
    loader = points_loader(sampler=torch.utils.data.SubsetRandomSampler(range(100)), shuffle=None, with_index=True)
    with pytest.raises(ValueError, match="each of the 256 samples"):
        fit(InfoBatch(), loader=loader)


def test_loaders_that_cannot_be_resized_are_refused():
    with pytest.raises(ValueError, match="train_dataloader must be a torch DataLoader"):
        fit(InfoBatch(), loader=list(points_loader(with_index=True)), device_train_microbatch_size=64)
