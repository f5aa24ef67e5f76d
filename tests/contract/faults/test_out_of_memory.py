"""Out of memory in scoring, forward and backward, with the Trainer's automatic microbatch size: training goes on."""

from types import SimpleNamespace

import pytest
import torch
from composer import Algorithm, Event
from torch import nn

from composer_edba import EDBA
from tests.support.small_runs import CLASSES, PointsClassifier, Watch, classifier, logged, points_loader, trainer

MESSAGE = "CUDA out of memory. Tried to allocate 20.00 GiB"


class FailsInBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor):
        return tensor.clone()

    @staticmethod
    def backward(ctx, grad):
        raise RuntimeError(MESSAGE)


class Limited(PointsClassifier):
    """Fits at most ``fits`` samples at once in the phase ``where``."""

    def __init__(self, where, fits, batch_norm=False):
        super().__init__(classifier(dropout=0.0, batch_norm=batch_norm).module, num_classes=CLASSES)
        self.where, self.fits = where, fits
        # Scoring puts attributes back, but not what is inside of them.
        self.seen = SimpleNamespace(failures=0, trained_at_once=[], scored_at_once=[])

    def forward(self, batch):
        samples = len(batch[0])
        phase = "forward" if torch.is_grad_enabled() else "scoring"
        (self.seen.trained_at_once if phase == "forward" else self.seen.scored_at_once).append(samples)
        fails = samples > self.fits
        if fails and self.where in (phase, "backward") and (self.where != "backward" or phase == "forward"):
            self.seen.failures += 1
            if self.where == "backward":
                return FailsInBackward.apply(super().forward(batch))
            raise RuntimeError(MESSAGE)
        return super().forward(batch)


class Gradients(Algorithm):
    """Notes each step's gradient, and what it is when the chosen samples go through at once."""

    def __init__(self):
        self.trained, self.whole, self.batch = [], [], None

    def match(self, event, state):
        return event in (Event.BATCH_START, Event.AFTER_TRAIN_BATCH)

    def apply(self, event, state, logger):
        model = state.model
        parameters = [p for p in model.parameters() if p.requires_grad]
        if event == Event.BATCH_START:
            x, y = state.batch
            loss = nn.functional.cross_entropy(model.module(x), y)
            self.whole.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)]))
        else:
            self.trained.append(torch.cat([p.grad.flatten() for p in parameters]))


def run(where, fits=12, loader=None, batch_norm=False, **kwargs):
    model, gradients, watch = Limited(where, fits, batch_norm), Gradients(), Watch()
    algorithms = [EDBA.paper(min_subset_size=5, **kwargs)] + ([] if batch_norm else [gradients])
    result = trainer(algorithms, model=model, loader=loader, callbacks=[watch], max_duration="4ep")
    result.state.auto_microbatching = True  # the argument 'auto' is refused on a CPU
    result.fit()
    return result, model, gradients, watch


@pytest.mark.parametrize("where", ["scoring", "forward", "backward"])
@pytest.mark.filterwarnings("ignore:CUDA out of memory", "ignore:scoring ran out of memory")
def test_training_goes_on_with_the_bound_it_learned_and_right_gradients(where):
    result, model, gradients, watch = run(where)
    edba = result.state.algorithms[-1]
    assert int(result.state.timestamp.epoch) == 4
    assert sum(watch.pools) == 4 * 256
    assert min(watch.subsets) < 64
    # 64 -> 32 -> 16 -> 8 on the first batch, and never again.
    assert model.seen.failures == 3
    assert (edba._engine.scorer.chunk_limit if where == "scoring" else edba._microbatches.learned_limit) == 8
    assert max(model.seen.trained_at_once[-20:]) <= (64 if where == "scoring" else 8)
    assert max(model.seen.scored_at_once[-20:]) <= 8
    for trained, whole in zip(gradients.trained, gradients.whole, strict=True):
        torch.testing.assert_close(trained, whole, rtol=1e-4, atol=1e-6)
    assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.filterwarnings("ignore:CUDA out of memory", "ignore:scoring ran out of memory")
def test_a_scoring_that_runs_out_of_memory_chooses_as_one_that_does_not():
    """Without batch normalisation the chunks change nothing."""
    _, short, _, watched_short = run("scoring")
    _, plenty, _, watched_plenty = run("scoring", fits=1000)
    assert short.seen.failures == 3
    assert plenty.seen.failures == 0
    assert watched_short.subsets == watched_plenty.subsets


@pytest.mark.filterwarnings("ignore:CUDA out of memory", "ignore:scoring ran out of memory")
@pytest.mark.parametrize("first_failure", range(1, 6))
def test_halved_subsets_leave_no_microbatch_of_one_sample(first_failure):
    """Memory that gets scarce later on meets a subset, and batch normalisation cannot train on one sample."""
    model, watch = Limited("forward", 1000, batch_norm=True), Watch()

    class Scarce(Algorithm):
        def match(self, event, state):
            return event == Event.BATCH_START

        def apply(self, event, state, logger):
            if int(state.timestamp.batch) == first_failure:
                model.fits = len(state.batch[0]) // 2

    result = trainer(
        [EDBA.paper(min_subset_size=5), Scarce()],
        model=model,
        callbacks=[watch],
        max_duration="4ep",
        seed=first_failure,
    )
    result.state.auto_microbatching = True
    result.fit()
    assert model.seen.failures >= 1
    assert min(model.seen.trained_at_once) >= 2


def test_too_little_memory_for_two_samples_is_reported_as_it_is():
    with (
        pytest.warns(UserWarning, match="scoring ran out of memory and goes on in chunks of 2"),
        pytest.raises(RuntimeError, match="out of memory"),
    ):
        run("scoring", fits=1)


@pytest.mark.parametrize("size", [31, 49, 61])
@pytest.mark.filterwarnings("ignore:scoring ran out of memory")
def test_pools_that_no_equal_chunks_fit_are_scored_in_unequal_ones(size):
    """One more than a multiple of 2, 3 and 4: equal chunks of any size up to four would leave one of one sample."""
    _, model, *_ = run("scoring", fits=4, loader=points_loader(size=size, batch_size=size), max_batch_size=size)
    assert model.seen.failures <= 6
    assert max(model.seen.scored_at_once[-20:]) <= 4
    assert min(model.seen.scored_at_once) >= 2


def test_another_error_in_scoring_is_not_taken_for_missing_memory():
    model = Limited("scoring", 12)

    class Wrong(nn.Module):
        def forward(self, x):
            raise RuntimeError("shapes cannot be multiplied (3x4 and 5x6)")

    model.module = nn.Sequential(model.module, Wrong())
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        trainer([EDBA.paper()], model=model, loader=points_loader()).fit()
    assert model.seen.failures == 0


def test_learned_bounds_survive_a_checkpoint(tmp_path):
    with pytest.warns(UserWarning, match="out of memory"):
        first, *_ = run("scoring")
    path = first.save_checkpoint(str(tmp_path / "ep4.pt"))
    model = Limited("scoring", 12)
    again = trainer([EDBA.paper(min_subset_size=5)], model=model, max_duration="5ep", load_path=str(path))
    again.fit()
    assert model.seen.failures == 0
    assert logged(again, "edba/nonfinite_steps")[-1] == 0
