"""When subsets are chosen: ``interval`` and ``interrupt`` count a run's batches, ``start`` and ``end`` its samples."""

import pytest
import torch
from composer.optim import ConstantScheduler, LinearScheduler
from ignite.engine import Events, create_supervised_trainer

from composer_edba import EDBA
from composer_edba.ignite import EDBAHandler
from tests.support.loops import LOOPS
from tests.support.small_runs import Watch, logged, points_loader, trainer
from tests.support.task import LOSS, Task
from tests.support.torch_runs import loader, net, sgd

BATCHES = 7  # a pass
FIXED = {"criterion": "margin", "interval": 1, "batch_size_policy": "fixed"}


def chosen(loop, passes, scoring="forward", **settings):
    """Steps in which a subset was chosen."""
    record = LOOPS[loop]({**FIXED, "scoring": scoring, **settings}, passes, Task())
    assert len(record.steps) == passes * BATCHES
    return [number for number, step in enumerate(record.steps) if "margin" in step["figures"]]


@pytest.mark.parametrize("loop", list(LOOPS))
@pytest.mark.parametrize(("interval", "interrupt"), [(1, 2), (3, 4)])
@pytest.mark.parametrize("scoring", ["forward", "cached"])
def test_interval_and_interrupt_count_on_one_clock(loop, interval, interrupt, scoring):
    """A pass has an odd number of batches, so one that began anew in it would tell."""
    due = [s for s in range(4 * BATCHES) if s % interval == 0 and (s + 1) % interrupt != 0]
    first = BATCHES if scoring == "cached" else 0  # which knows nothing in the first pass
    steps = chosen(loop, 4, scoring, interval=interval, interrupt=interrupt)
    assert steps == [s for s in due if s >= first]


@pytest.mark.parametrize("loop", ["composer", "ignite"])
def test_start_and_end_may_lie_inside_of_an_epoch(loop):
    assert chosen(loop, 1, start=0.5, end=0.9) == [4, 5]  # batches of 32 of 200 samples
    # Batches 0 and 1 of a pass are first recorded in the third.
    assert chosen(loop, 4, "cached", start=0.3, end=0.9) == list(range(2 * BATCHES + 2, 3 * BATCHES + 4))


def test_where_an_epoch_is_a_number_of_batches_its_parts_are_counted_in_them():
    run = trainer([EDBA.paper(start=0.25, **FIXED)], max_duration="2ep", train_subset_num_batches=2)
    run.fit()
    scored = logged(run, "edba/samples_scored")
    assert [b > a for a, b in zip([0, *scored], scored, strict=False)] == [False, True, True, True]
    model = net()
    engine, data, steps = create_supervised_trainer(model, sgd(model), LOSS), loader(), []
    EDBAHandler(model, LOSS, start=0.25, **FIXED).attach(engine, data)
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda e: steps.append("margin" in e.state.edba))
    engine.run(data, max_epochs=2, epoch_length=2)
    assert steps == [False, True, True, True]


# ---- what the loss policy compares with


BY_LOSS = {
    "criterion": "margin",
    "interval": 1,
    "batch_size_policy": "loss",
    "policy_options": {"window": 2, "tolerance": 1.1},
}


def policy_of(algorithm):
    return algorithm.state_dict()["selector"]["policy"]


def fit(algorithm, duration="8ep", **kwargs):
    run = trainer([algorithm], max_duration=duration, **kwargs)
    run.fit()
    return run


def test_before_start_the_first_window_is_scored_and_not_chosen_from():
    begun, late = EDBA(**BY_LOSS), EDBA(**BY_LOSS, start=0.5)
    first = logged(fit(begun), "edba/model_metric")[:2]
    watch = Watch()
    run = fit(late, callbacks=[watch], schedulers=LinearScheduler(alpha_f=0.5))
    assert policy_of(late)["first_loss"] == pytest.approx(sum(first) / 2, rel=0.02)
    assert policy_of(late)["highest_rate"] == 0.05
    assert watch.subsets[:16] == watch.pools[:16] == [64] * 16
    scored = logged(run, "edba/samples_scored")
    assert scored[:16] == [64] + [128] * 15
    assert scored[16] > scored[15]
    assert len(logged(run, "edba/margin")) == len(watch.pools) - 16
    assert late.batch_size > 64


def test_with_cached_scores_it_is_the_training_loss_and_nothing_is_kept():
    edba, watch = EDBA(**BY_LOSS, start=0.5, scoring="cached"), Watch()
    run = fit(edba, callbacks=[watch])
    assert policy_of(edba)["first_loss"] == pytest.approx(sum(logged(run, "loss/train/total")[:2]) / 2, rel=1e-5)
    assert edba.score_cache.steps.min() >= 16
    assert watch.pools[:16] == [64] * 16
    assert logged(run, "edba/samples_scored")[-1] == 0


def test_other_policies_need_no_reference():
    edba = EDBA.paper(start=0.5)
    assert logged(fit(edba), "edba/samples_scored")[:16] == [0] * 16


# ---- the highest learning rate


def lower_fits(folder, load=None):
    edba = EDBA(**BY_LOSS)
    run = trainer(
        [edba],
        loader=points_loader(),
        max_duration="2ep",
        load_path=load,
        save_folder=str(folder),
        save_filename="ba{batch}.pt",
        save_interval="1ba",
        save_overwrite=True,
    )
    run.fit()
    if load is None:
        assert policy_of(edba)["highest_rate"] == 0.05
    run.fit(duration="4ep", schedulers=ConstantScheduler(alpha=0.1))
    return run, edba


def test_a_second_fit_has_a_highest_rate_of_its_own(tmp_path):
    _, edba = lower_fits(tmp_path)
    assert policy_of(edba)["highest_rate"] == pytest.approx(0.005)
    assert edba.batch_size > 64  # the lower rate alone would have held it


def test_a_second_ignite_run_has_one_too():
    model = net()
    optimizer = sgd(model)
    engine, data = create_supervised_trainer(model, optimizer, LOSS), loader()
    handler = EDBAHandler(model, LOSS, optimizer, **BY_LOSS)
    handler.attach(engine, data)
    for rate in (0.05, 0.005):
        optimizer.param_groups[0]["lr"] = rate
        engine.run(data, max_epochs=2)
        assert policy_of(handler)["highest_rate"] == rate


def test_a_resumed_fit_keeps_its_own(tmp_path):
    schedule = LinearScheduler(alpha_f=0.2)
    saving = {"save_folder": str(tmp_path), "save_filename": "ba{batch}.pt", "save_interval": "5ba"}
    whole, again = EDBA(**BY_LOSS), EDBA(**BY_LOSS)
    expected = fit(whole, schedulers=schedule, **saving)
    run = fit(again, schedulers=schedule, load_path=str(tmp_path / "ba10.pt"))
    assert policy_of(again) == policy_of(whole)
    assert policy_of(again)["highest_rate"] == 0.05
    for a, b in zip(expected.state.model.state_dict().values(), run.state.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)
