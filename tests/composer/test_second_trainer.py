"""An algorithm that is given to a second Trainer begins anew, as if newly made; a second fit goes on."""

import pytest
import torch

from benchmarks.comparators.batch_growth import BatchGrowth
from benchmarks.comparators.infobatch import InfoBatch
from composer_edba import DBA, EDBA
from tests.support.small_runs import Watch, classifier, points_loader, trainer
from tests.support.torch_runs import Sizes

SIZES = [64, 100, 30, 17, 128, 55]


def counted():
    """A policy that is an object, of the user's own."""
    return Sizes(SIZES)


MADE = {
    "loss": lambda: EDBA(
        criterion="margin", interval=1, batch_size_policy="loss", policy_options={"window": 2, "tolerance": 1.1}
    ),
    "margin": lambda: EDBA.paper(policy_options={"window": 2, "cooldown": 1, "threshold": 0.05}),
    "cached": lambda: EDBA.paper(scoring="cached", policy_options={"window": 2, "cooldown": 1, "threshold": 0.05}),
    "policy object": lambda: EDBA.paper(batch_size_policy=counted()),
    "DBA": lambda: DBA(),
    "InfoBatch": lambda: InfoBatch(),
    "BatchGrowth": lambda: BatchGrowth(interval=0.2),
}


def run(algorithm, seed=5, fits=1, **kwargs):
    watch = Watch()
    loader = points_loader(with_index=True)
    model = kwargs.pop("model", None) or classifier(batch_norm=False)
    result = trainer([algorithm], model=model, loader=loader, callbacks=[watch], seed=seed, **kwargs)
    for fit in range(fits):
        result.fit(duration="2ep" if fit else None)
    return result, watch


def weights(result):
    return [value.clone() for value in result.state.model.state_dict().values()]


@pytest.mark.parametrize("name", list(MADE))
def test_a_second_trainer_trains_as_with_a_new_one(name):
    algorithm = MADE[name]()
    run(algorithm, max_duration="6ep")
    state_of_new = MADE[name]()
    again, seen = run(algorithm, seed=7)
    expected, watch = run(state_of_new, seed=7)
    assert seen.indices == watch.indices
    assert seen.pools == watch.pools
    assert all(map(torch.equal, weights(again), weights(expected)))
    assert algorithm.state_dict() == state_of_new.state_dict()


@pytest.mark.parametrize("name", ["margin", "policy object", "DBA"])
def test_a_second_trainer_that_resumes_goes_on_from_its_checkpoint(tmp_path, name):
    """INIT comes before the checkpoint is loaded."""
    saved = {"save_folder": str(tmp_path), "save_filename": "ba{batch}.pt", "save_interval": "3ba"}
    algorithm = MADE[name]()
    whole, watch = run(algorithm, **saved)
    again, seen = run(algorithm, load_path=str(tmp_path / "ba6.pt"))
    assert seen.indices == watch.indices[6:]
    assert all(map(torch.equal, weights(again), weights(whole)))


@pytest.mark.parametrize("name", ["loss", "policy object"])
def test_further_fits_of_one_trainer_go_on(name):
    algorithm = MADE[name]()
    _, watch = run(algorithm, fits=2)
    assert len(watch.subsets) == algorithm.state_dict()["steps"]
    assert algorithm.state_dict()["samples_trained"] == sum(watch.subsets)


def test_the_first_trainer_cannot_go_on_once_there_is_a_second():
    algorithm = EDBA.paper()
    first, _ = run(algorithm)
    second, _ = run(algorithm)
    second.fit(duration="1ep")
    with pytest.raises(ValueError, match="this EDBA was given to another Trainer since: make one EDBA for each"):
        first.fit(duration="1ep")


def test_no_hook_stays_on_the_model_of_a_trainer_that_failed():
    class Failing(Watch):
        def after_train_batch(self, state, logger):
            if int(state.timestamp.batch) == 5:
                raise RuntimeError("stop")

    algorithm, model = MADE["cached"](), classifier()
    with pytest.raises(RuntimeError, match="stop"):
        trainer([algorithm], model=model, callbacks=[Failing()]).fit()
    trainer([algorithm])
    assert not any(module._forward_hooks for module in model.modules())
