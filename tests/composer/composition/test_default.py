"""The default beside each of Composer's algorithms: it leaves samples out, or leaves batches whole, or refuses."""

import re
import warnings

import pytest
import torch
from composer import Callback, Trainer

from composer_edba import EDBA
from tests.composer.composition.pairs import OWN_WARNINGS, PAIRS

# They mix samples, or take them apart.
WHOLE = {"MixUp", "CutMix", "Alibi", "SeqLengthWarmup(truncate=False)"}
REFUSED = {key for key, pair in PAIRS.items() if pair.refused is not None}


class Losses(Callback):
    def __init__(self):
        self.losses = []

    def batch_end(self, state, logger):
        self.losses.append(float(state.total_loss_dict["loss/train/total"]))


@pytest.mark.slow
@pytest.mark.parametrize("edba_first", [True, False])
@pytest.mark.parametrize("key", list(PAIRS))
def test_the_default_runs_beside_each_algorithm(key, edba_first):
    pair, losses = PAIRS[key], Losses()
    model, loader = pair.setup()
    edba, other = EDBA(left_out=0.3, **{n: v for n, v in pair.edba.items() if "policy" not in n}), pair.make()

    def run():
        trainer = Trainer(
            model=model,
            train_dataloader=loader,
            max_duration="3ep",
            algorithms=[edba, other] if edba_first else [other, edba],
            optimizers=torch.optim.SGD(model.parameters(), lr=0.01),
            callbacks=[losses],
            progress_bar=False,
            seed=1,
            device_train_microbatch_size=16 if pair.microbatches and not edba_first else None,
            **pair.trainer,
        )
        trainer.fit()

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if key in REFUSED:
            with pytest.raises(ValueError, match=pair.refused):
                run()
            return
        run()
    told = [
        str(warning.message)
        for warning in caught
        if not any(re.search(own, str(warning.message)) for own in OWN_WARNINGS)
    ]
    assert all(loss < float("inf") for loss in losses.losses)
    whole = [text for text in told if "leaves all batches whole" in text]
    assert len(whole) == (key in WHOLE)
    if key not in WHOLE:
        known = ~torch.from_numpy(edba.score_cache.norms).isnan()
        assert known.float().mean() > 0.9
        assert edba._engine.samples_trained < edba._engine.samples_drawn
