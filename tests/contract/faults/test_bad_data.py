"""Samples that raise and losses that are NaN: the user sees his own exception, and the run ends as a plain one."""

import gc
import time
import warnings

import psutil
import pytest
import torch
from torch.utils.data import DataLoader

from composer_edba import EDBA
from tests.support.small_runs import Points, Watch, classifier, logged, trainer


class BadSample(Exception):
    """The user's own."""


class Broken(Points):
    """Raises at one index."""

    def __init__(self, bad, **kwargs):
        super().__init__(**kwargs)
        self.bad = bad

    def __getitem__(self, index):
        if index == self.bad:
            raise BadSample(f"sample {index} cannot be read")
        return super().__getitem__(index)


def loader_workers():
    return [child for child in psutil.Process().children() if child.name() == "pt_data_worker"]


def error_of(algorithms, loader):
    run = trainer(algorithms, loader=loader, max_duration="3ep")
    with pytest.raises(BadSample) as caught:
        run.fit()
    batch = int(run.state.timestamp.batch)
    run.close()
    return caught.value, batch


# With workers torch takes ten seconds to end them after an error, with and without EDBA.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("bad", "workers", "persistent"),
    [(0, 0, False), (100, 0, False), (255, 0, False), (100, 2, False), (255, 2, True)],
)
def test_a_sample_that_raises_reaches_the_user_as_without_edba(workers, bad, persistent):
    def loader():
        return DataLoader(
            Broken(bad), batch_size=32, num_workers=workers, persistent_workers=persistent and workers > 0
        )

    before = time.monotonic()
    plain, _ = error_of([], loader())
    error, batch = error_of([EDBA.paper(batch_size_policy="fixed")], loader())
    assert type(error) is type(plain) is BadSample
    assert "cannot be read" in str(error)
    assert str(error).splitlines()[-1] == str(plain).splitlines()[-1]
    assert batch == bad // 32
    assert time.monotonic() - before < 60
    del plain, error
    gc.collect()
    assert [child for child in loader_workers() if child.status() != psutil.STATUS_ZOMBIE] == []


def test_training_goes_on_after_a_bad_sample_was_mended():
    """An exception in the middle of a pass leaves nothing behind that spoils the next fit."""
    data = Broken(100)
    watch = Watch()
    run = trainer([EDBA.paper()], loader=DataLoader(data, batch_size=32), callbacks=[watch], max_duration="2ep")
    with pytest.raises(BadSample):
        run.fit()
    taken = int(run.state.timestamp.batch)
    assert taken == 3
    data.bad = None
    run.fit()
    assert [samples for _, _, samples in watch.epoch_ends] == [256, 512]
    assert logged(run, "edba/samples_scored")[-1] == 512


def test_nan_for_ever_ends_as_a_plain_run_with_one_warning():
    def loader():
        data = Points()
        data.x.fill_(float("nan"))
        return DataLoader(data, batch_size=64)

    watch = Watch()
    plain = trainer([], loader=loader(), max_duration="3ep")
    plain.fit()
    run = trainer([EDBA.paper()], loader=loader(), callbacks=[watch], max_duration="3ep")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run.fit()
    ours = [w for w in caught if "EDBA" in str(w.message) or "composer_edba" in w.filename]
    assert len(ours) == 1
    assert "is NaN or infinite at batch 0" in str(ours[0].message)
    assert run.state.timestamp.batch == plain.state.timestamp.batch
    assert run.state.timestamp.sample == plain.state.timestamp.sample == 768
    assert watch.subsets == watch.pools
    assert logged(run, "edba/nonfinite_steps")[-1] == int(run.state.timestamp.batch)
    for (name, a), b in zip(plain.state.model.state_dict().items(), run.state.model.state_dict().values(), strict=True):
        assert torch.equal(a.nan_to_num(-1), b.nan_to_num(-1)), name


def test_a_run_that_turns_to_nan_keeps_its_finite_averages(tmp_path):
    """A diverging learning rate: what was measured before stays, and the checkpoint can be taken up."""
    watch = Watch()
    model = classifier(dropout=0.0, batch_norm=False)
    run = trainer(
        [EDBA.paper()],
        model=model,
        callbacks=[watch],
        optimizers=torch.optim.SGD(model.parameters(), lr=1e9),
        max_duration="4ep",
    )
    with pytest.warns(UserWarning, match="NaN or infinite") as caught:
        run.fit()
    assert sum("NaN or infinite" in str(w.message) for w in caught) == 1
    averages = run.state.algorithms[-1]._engine._selector.averages
    assert torch.isfinite(torch.tensor([averages.model, averages.gradient])).all()
    assert [samples for _, _, samples in watch.epoch_ends] == [256, 512, 768, 1024]
    path = run.save_checkpoint(str(tmp_path / "nan.pt"))
    again = trainer([EDBA.paper()], model=classifier(0.0, False), max_duration="5ep", load_path=str(path))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*NaN or infinite")  # it was said in the run that was resumed
        again.fit()
    nonfinite = logged(again, "edba/nonfinite_steps")
    assert nonfinite[0] == logged(run, "edba/nonfinite_steps")[-1] + 1
