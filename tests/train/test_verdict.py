import pytest
import torch
from torch.utils.data import DataLoader

from composer_edba import EDBA
from composer_edba.train.series import read_log
from composer_edba.train.summary import print_table, summarize
from tests.train.tiny_runs import SAMPLES, data, trained

pytestmark = pytest.mark.filterwarnings("ignore:Cannot split tensor of length", "ignore:.*cannot resize the batches")


class Sizes:
    """A rule that aims at the given sizes, one a scored batch."""

    def __init__(self, *sizes):
        self.sizes = sizes

    def __call__(self, size, minimum, maximum):
        self.size, self.coming = size, iter(self.sizes)
        return self

    def update(self, observation):
        self.size = next(self.coming, self.size)
        return self.size

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def verdict(max_duration="2ep", batch_size=25, loader=None, **settings):
    edba = EDBA(**{"min_subset_size": 4, "criterion": "margin", "interval": 1, **settings})
    return summarize(trained([edba], max_duration=max_duration, batch_size=batch_size, loader=loader), SAMPLES).edba


def test_a_run_without_edba_has_none(plain):
    assert summarize(plain, SAMPLES).edba is None


def test_it_counts_batches_and_samples(edba, capsys):
    summary, log = summarize(edba, SAMPLES), read_log(edba)
    steps, share = len(log["edba/margin"]), 100 * (1 - summary.samples_trained / summary.samples_drawn)
    assert summary.edba.startswith(f"EDBA chose subsets in {steps} of {steps} batches, leaving out {share:.0f} % of")
    print_table(summary)
    assert summary.edba in " ".join(capsys.readouterr().out.split())


def test_a_small_share_has_a_decimal():
    text = verdict(interval=10, batch_size=10, max_duration="11ba", subset_size_law=0.6)
    assert text.startswith("EDBA chose subsets in 2 of 11 batches, leaving out ")
    assert "." in text.partition("leaving out ")[2].partition(" %")[0]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"batch_size_policy": "fixed"}, "batch 25 throughout, because batch_size_policy is fixed"),
        ({}, "batch 25 throughout, because batch_size_policy is fixed"),
        (
            {"batch_size_policy": "loss"},
            "batch 25 throughout, because 'loss' needs more than 10 scored batches to change it",
        ),
        (
            {"batch_size_policy": "loss", "policy_options": {"window": 2}, "interval": 4},
            "batch 25 throughout, because 'loss' needs more than 2 scored batches to change it",
        ),
        (
            {"batch_size_policy": "loss", "policy_options": {"window": 1, "tolerance": 1e9}},
            "batch 25 throughout, because the size that its rule wanted stayed within the tolerance",
        ),
        (
            {
                "batch_size_policy": "loss",
                "policy_options": {"window": 1, "tolerance": 1.001},
                "max_batch_size": 25,
            },
            "batch 25 throughout, because max_batch_size is 25",
        ),
        ({"batch_size_policy": Sizes(25, 50)}, "batch 25 -> 50"),
        ({"batch_size_policy": Sizes(25, 50, 25)}, "batch 25 -> 25, between 25 and 50"),
    ],
    ids=["fixed", "default", "few", "few-of-its-own", "tolerance", "bound", "grown", "there-and-back"],
)
def test_it_says_how_the_batch_moved_or_why_it_did_not(settings, expected):
    assert verdict(**settings).partition("; ")[2] == expected


def test_a_loader_that_cannot_be_resized_is_named():
    class OwnSampler(torch.utils.data.BatchSampler):
        pass

    sampler = OwnSampler(torch.utils.data.SequentialSampler(data()), batch_size=25, drop_last=False)
    text = verdict(loader=DataLoader(data(), batch_sampler=sampler))
    assert text.endswith("; the batch size stayed, because this loader cannot be resized")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"min_subset_size": 30}, "because no batch held more than min_subset_size=30 samples a rank; "),
        ({"subset_size_law": 1.0}, "because the criterion took whole batches; "),
    ],
)
def test_it_says_why_nothing_was_left_out(settings, expected):
    assert f"in 8 of 8 batches, leaving out nothing, {expected}" in verdict(**settings)


@pytest.mark.filterwarnings("ignore:.*NaN or infinite")
def test_a_loss_that_is_never_finite_is_the_reason():
    broken = torch.utils.data.TensorDataset(torch.full((SAMPLES, 4), float("nan")), torch.zeros(SAMPLES).long())
    text = verdict(loader=DataLoader(broken, batch_size=25))
    assert "leaving out nothing, because no scored batch had a finite loss and finite gradients; " in text


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"start": 0.9, "max_duration": "1ep"}, "interval=1, start=0.9 let none of the 4 batches be scored"),
        (
            {"interval": 3, "interrupt": 4, "max_duration": "4ba", "start": 0.6},
            "interval=3, interrupt=4, start=0.6 let",
        ),
    ],
)
def test_a_run_in_which_nothing_was_scored_says_what_kept_it(settings, expected):
    assert verdict(**settings).startswith(f"EDBA did nothing: {expected}")
