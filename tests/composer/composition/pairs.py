"""The pairs of the composition matrix: each of Composer's algorithms, how it runs beside EDBA, and what is checked."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import composer.algorithms
from composer.algorithms import (
    EMA,
    SAM,
    SWA,
    Alibi,
    AugMix,
    BlurPool,
    ChannelsLast,
    ColOut,
    CutMix,
    CutOut,
    Factorize,
    GatedLinearUnits,
    GhostBatchNorm,
    GradientClipping,
    GyroDropout,
    LabelSmoothing,
    LayerFreezing,
    LowPrecisionGroupNorm,
    LowPrecisionLayerNorm,
    MixUp,
    NoOpModel,
    ProgressiveResizing,
    RandAugment,
    SelectiveBackprop,
    SeqLengthWarmup,
    SqueezeExcite,
    StochasticDepth,
    WeightStandardization,
)
from composer.core import Algorithm

from tests.composer.composition import setups

# What an algorithm says of itself whether EDBA is there or not: messages, as regular expressions, with the reason.
OWN_WARNINGS = {
    "SAM has known issues of weight mismatch": "SAM says so whenever it is made",
    "SWA has known issues when resuming": "SWA says so whenever it is made",
    "GyroDropout is not implemented in a way": "GyroDropout says so whenever it is made",
    "'mode' parameter is deprecated": "Pillow, of torchvision's FakeData, which makes its images that way",
    "Low Precision .*Norm only applies to AMP": "the Trainer is in float32, the only precision it takes on a CPU",
}


@dataclass(frozen=True)
class Pair:
    """One of Composer's algorithms beside EDBA.

    Attributes:
        make: makes the algorithm.
        setup: gives the model and the loader, from :mod:`setups`.
        refused: what EDBA's error says, as a regular expression; None: the pair runs.
        edba: EDBA's arguments.
        changes_batch: the algorithm itself changes the batch after EDBA's choice.
        samples_factor: how many samples the algorithm makes of one of EDBA's.
        microbatches: whether it is run in microbatches too.
        trainer: further arguments of the Trainer.
        leaves: class, or attribute, of a module that the algorithm's surgery leaves in the model.
        note: shown in the table.
    """

    make: Callable[[], Algorithm]
    setup: Callable[[], tuple[Any, Any]] = setups.images
    refused: str | None = None
    edba: dict[str, Any] = field(default_factory=dict)
    changes_batch: bool = False
    samples_factor: int = 1
    microbatches: bool = True
    leaves: str | None = None
    trainer: dict[str, Any] = field(default_factory=dict)
    note: str = ""

    @property
    def name(self) -> str:
        """Name of the algorithm's class."""
        return type(self.make()).__name__


PAIRS = {
    "Alibi": Pair(
        lambda: Alibi(max_sequence_length=setups.LENGTH, train_sequence_length_scaling=0.25),
        setups.bert_tokens,
        changes_batch=True,
        samples_factor=4,
        note="cuts the chosen sentences into shorter ones",
    ),
    "AugMix": Pair(lambda: AugMix(severity=3), setups.pictures, note="scored are the augmented images"),
    "BlurPool": Pair(lambda: BlurPool(min_channels=8), leaves="BlurConv2d"),
    "ChannelsLast": Pair(ChannelsLast),
    "ColOut": Pair(ColOut, changes_batch=True, note="scored are the whole images"),
    "ColOut(batch=False)": Pair(lambda: ColOut(batch=False), setups.pictures, note="scored are the cut images"),
    "CutMix": Pair(CutMix, note="mixes within the chosen microbatches; scored is what is unmixed"),
    "CutOut": Pair(CutOut, changes_batch=True, note="scored are the whole images"),
    "EMA": Pair(
        lambda: EMA(half_life="3ba", update_interval="1ba"),
        trainer={"save_interval": "1ba"},
        note="after each checkpoint its averages are taken out of the model before scoring",
    ),
    "Factorize": Pair(
        lambda: Factorize(min_channels=16, latent_channels=4, min_features=16, latent_features=4),
        leaves="FactorizedLinear",
        note="a factorized last layer is measured by its second factor",
    ),
    "GatedLinearUnits": Pair(GatedLinearUnits, setups.bert_classifier, leaves="BERTGatedFFOutput"),
    "GhostBatchNorm": Pair(
        lambda: GhostBatchNorm(ghost_batch_size=16),
        setups.images_drop_last,
        edba={"min_subset_size": 16, "min_batch_size": 16},
        microbatches=False,
        leaves="GhostBatchNorm2d",
        note="needs min_subset_size and min_batch_size of its ghost batch, and drop_last=True; else refused",
    ),
    "GradientClipping": Pair(lambda: GradientClipping("norm", 0.1)),
    "GyroDropout": Pair(
        GyroDropout,
        refused=r"GyroDropout\(tau=16\) beside EDBA: it needs every microbatch to be a multiple of tau",
        note="needs microbatches that are multiples of tau, and epochs of equally many batches",
    ),
    "LabelSmoothing": Pair(LabelSmoothing, note="scored are the hard labels"),
    "LayerFreezing": Pair(lambda: LayerFreezing(freeze_start=0.1), note="a frozen last layer is scored all the same"),
    "LowPrecisionGroupNorm": Pair(
        LowPrecisionGroupNorm,
        setups.group_norm_bf16,
        leaves="LPGroupNorm",
        note="on a CPU the Trainer takes float32 only: surgery made beforehand, the network under autocast",
    ),
    "LowPrecisionLayerNorm": Pair(
        LowPrecisionLayerNorm,
        setups.bert_bf16,
        leaves="LPLayerNorm",
        note="on a CPU the Trainer takes float32 only: surgery made beforehand, the network under autocast",
    ),
    "MixUp": Pair(MixUp, note="mixes within the chosen microbatches; scored is what is unmixed"),
    "NoOpModel": Pair(
        NoOpModel, refused="NoOpModel replaces the network by a single weight", note="leaves no layer to measure"
    ),
    "ProgressiveResizing": Pair(
        lambda: ProgressiveResizing(delay_fraction=0.2, size_increment=1),
        changes_batch=True,
        note="scored are the images of full size",
    ),
    "RandAugment": Pair(lambda: RandAugment(severity=3), setups.pictures, note="scored are the augmented images"),
    "SAM": Pair(SAM),
    "SelectiveBackprop": Pair(
        SelectiveBackprop,
        refused=r"SelectiveBackprop\(keep=0.5\) beside EDBA would prune the chosen subset a second time",
        note="would prune the chosen subset a second time",
    ),
    "SeqLengthWarmup": Pair(
        lambda: SeqLengthWarmup(duration=0.8, min_seq_length=8, max_seq_length=setups.LENGTH, step_size=4),
        setups.bert_tokens,
        changes_batch=True,
        note="scored are the whole sentences",
    ),
    "SeqLengthWarmup(truncate=False)": Pair(
        lambda: SeqLengthWarmup(
            duration=1.0, min_seq_length=8, max_seq_length=setups.LENGTH, step_size=8, truncate=False
        ),
        setups.bert_tokens,
        changes_batch=True,
        samples_factor=2,
        note="cuts the chosen sentences into shorter ones",
    ),
    "SqueezeExcite": Pair(lambda: SqueezeExcite(latent_channels=4, min_channels=8), leaves="SqueezeExciteConv2d"),
    "StochasticDepth": Pair(
        lambda: StochasticDepth("ResNetBottleneck", drop_rate=0.4),
        setups.bottlenecks,
        leaves="drop_rate",
        note="scored without drops",
    ),
    "StochasticDepth(sample)": Pair(
        lambda: StochasticDepth("ResNetBottleneck", stochastic_method="sample", drop_rate=0.4),
        setups.bottlenecks,
        leaves="drop_rate",
        note="scored without drops",
    ),
    "SWA": Pair(lambda: SWA(swa_start="0.3dur", swa_end="0.7dur", update_interval="1ba")),
    "WeightStandardization": Pair(WeightStandardization, leaves="ParametrizedConv2d"),
}


def composer_algorithms() -> set[str]:
    """Names of all algorithm classes in ``composer.algorithms``."""
    members = (getattr(composer.algorithms, name) for name in composer.algorithms.__all__)
    return {member.__name__ for member in members if isinstance(member, type) and issubclass(member, Algorithm)}
