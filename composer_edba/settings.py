"""Every argument of EDBA, once, in :class:`Settings`: signatures, ``help()``, range checks, the check of YAML files and
the documentation's table are made from it. Imports no torch: a YAML file is checked before that is loaded.
"""

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from typing_extensions import TypedDict

from composer_edba.method.sizing import BatchSizePolicy, check_policy_options, policy_word
from composer_edba.spelling import nearest

if TYPE_CHECKING:
    from torch import Tensor, nn

    from composer_edba.method.averages import Averages

    Layer = nn.Module | str | None
    CriterionObject = Callable[[Tensor, float, Averages], Tensor]
else:
    Layer = CriterionObject = Any

__all__ = ["SETTINGS", "Setting", "Settings", "as_markdown", "checked", "documented", "signature_of", "table_of"]

PolicyObject = BatchSizePolicy | Callable[[int, int, int], BatchSizePolicy]
Check = Callable[[str, Any], None]
_Class = TypeVar("_Class", bound=type)
_LOOPS = ("composer", "ignite", "lightning", "transformers", "accelerate", "plain")


@dataclass(frozen=True)
class Setting:
    """One argument.

    Attributes:
        default: its default.
        check: ``check(name, value)`` raises a ValueError or TypeError; None: anything goes, or the named choices alone.
        paper: its value in the preset ``"paper"``, said even where it is the default, which may change; ``...``: no
            matter of the method, so the default.
        loops: where it can be set, of ``_LOOPS``.
        others: what else may stand in place of one of the type's names: how to tell, and words for it.
        type: from the table's annotation.
        text: what it means, and its range: the string under the table's entry.
    """

    default: Any
    check: Check | None = None
    paper: Any = ...
    loops: tuple[str, ...] = _LOOPS
    others: tuple[Callable[[Any], bool], str] | None = None
    type: Any = None
    text: str = ""

    @property
    def choices(self) -> tuple[str, ...]:
        """The names that its type allows; empty if it has none."""
        parts = [part for part in _alternatives(self.type) if get_origin(part) is Literal]
        return tuple(choice for part in parts for choice in get_args(part))


def _alternatives(annotation: Any) -> list[Any]:
    if get_origin(annotation) is Union or type(annotation).__name__ == "UnionType":
        return [part for option in get_args(annotation) for part in _alternatives(option)]
    return [annotation]


# ---- ranges


def _number(is_right: Callable[[float], bool], wanted: str, kind: Any = int | float, words: str = "") -> Check:
    def check(name: str, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, kind):
            raise TypeError(f"{name} is {value!r}: it must be {words or f'a number, {wanted}'}")
        if not is_right(value):
            raise ValueError(f"{name} is {value}: it must be {wanted}")

    return check


def _whole(least: int) -> Check:
    return _number(lambda v: v >= least, f"at least {least}", int, f"an integer >= {least}")


_SHARE = _number(lambda v: 0 <= v <= 1, "between 0 and 1")


def _is_share(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, (int, float)) and 0 < value <= 1


def _makes_policy(value: Any) -> bool:
    return callable(value) or isinstance(value, BatchSizePolicy)


def _layer(name: str, value: Any) -> None:
    torch = sys.modules.get("torch")  # without it there is no module to give
    if value is not None and not isinstance(value, str) and not (torch and isinstance(value, torch.nn.Module)):
        raise TypeError(f"{name} is {value!r}: it must be a module of the model, its name, or None")


def _interrupt(name: str, value: Any) -> None:
    _whole(0)(name, value)
    if value == 1:
        raise ValueError(f"{name} is 1: every batch would be a plain step. Use 0 for none, or 2 or more")


def _flag(name: str, value: Any) -> None:
    if value is not None and not isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}: it must be True, False or None")


def _seed(name: str, value: Any) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63):
        raise ValueError(f"{name} is {value!r}: it must be an integer from 0 to 2**63 - 1, or None for torch's own")


# ---- the table

_CRITERION, _POLICY = ((test, "an object (docs/extending.md)") for test in (callable, _makes_policy))
_SHARE_OF_POOL = (_is_share, "a share in (0, 1]")
_IN_TRAINERS = tuple(loop for loop in _LOOPS if loop not in ("accelerate", "plain"))  # which know how long they train
_BY_INPUTS = tuple(loop for loop in _LOOPS if loop not in ("lightning", "transformers"))  # which know a batch's inputs


class Settings(TypedDict, total=False):
    """The arguments of EDBA, the same in every loop; the text under an entry goes into the documentation."""

    preset: Annotated[Literal["default", "paper"], Setting("default")]
    """`paper`: the paper's literal settings in place of the defaults, whatever those become."""
    criterion: Annotated[
        Literal["margin", "difference", "random", "gradient_mass", "random_mass"] | CriterionObject,
        Setting("gradient_mass", paper="margin", others=_CRITERION),
    ]
    """How a subset is chosen. `gradient_mass`: the samples that carry the pool's gradient, all but at most `left_out`
    of the sum of their last-layer gradient norms; `random_mass`, its control: as many, with random members. Or the best
    of random candidates, judged by `margin`, equation 1; `difference`, the same without its pole; a function of the
    user's (docs/extending.md); `random`, the control: subsets of the sizes that the margin would choose, with random
    members."""
    left_out: Annotated[float, Setting(0.1, _number(lambda v: 0 <= v < 1, "at least 0 and below 1"))]
    """With `gradient_mass`: the share of a pool's gradient norms, in [0, 1), that the samples which are left out may
    carry; 0: none are."""
    recheck: Annotated[int, Setting(3, _whole(1))]
    """With `gradient_mass` and remembered norms: a sample that was left out so often in a row is trained on again,
    >= 1."""
    refill: Annotated[bool | None, Setting(None, _flag)]
    """With `gradient_mass`: whether batches are refilled to the loader's size from the samples that come next, which
    makes fewer updates of a pass. If not, the step keeps the size that the whole pool's would have. None: where norms
    are remembered."""
    size_multiple: Annotated[int, Setting(8, _whole(1))]
    """With `gradient_mass` and batches that are not refilled: their sizes are rounded up to a multiple of this, >= 1,
    so that kernels see few shapes."""
    num_candidates: Annotated[int, Setting(1024, _whole(1), paper=1024)]
    """Least number of candidate subsets a step, >= 1."""
    subset_size_law: Annotated[
        Literal["uniform", "upper_half", "power_set"] | float,
        Setting("upper_half", paper="uniform", others=_SHARE_OF_POOL),
    ]
    """Law of the candidates' sizes: `uniform` from the smallest subset to the pool; `upper_half`, the same from half
    the pool; `power_set`, every subset equally likely; or a share of the pool in (0, 1]."""
    min_subset_size: Annotated[int, Setting(10, _whole(1), paper=10)]
    """Smallest subset, in samples a rank, >= 1; a pool no larger is trained on whole."""
    ema_decay: Annotated[float, Setting(0.9, _number(lambda v: 0 <= v < 1, "at least 0 and below 1"), paper=0.9)]
    """Decay of both running averages in one batch, in [0, 1); from one scored batch to the next it is
    `ema_decay**interval`."""
    batch_size_policy: Annotated[
        Literal["loss", "margin", "noise_scale", "fixed"] | PolicyObject,
        Setting("fixed", paper="margin", others=_POLICY),
    ]
    """The rule that sizes the batch: `fixed`, none: it keeps the loader's size; by the loss, the margin or the gradient
    noise scale; or a rule of the user's (docs/extending.md)."""
    policy_options: Annotated[Mapping[str, Any] | None, Setting(None, paper=None)]
    """Constants of `batch_size_policy` in place of its own, such as `{'largest_growth': 4}` for `loss`: keyword
    arguments of its class in composer_edba/method/sizing.py."""
    min_batch_size: Annotated[int, Setting(10, _whole(1), paper=10)]
    """Smallest batch, in samples a rank, >= 1."""
    max_batch_size: Annotated[int, Setting(1000, _whole(1), paper=1000)]
    """Largest batch, in samples a rank. Training starts at the loader's own batch size."""
    scoring: Annotated[Literal["auto", "forward", "cached"], Setting("auto", paper="forward")]
    """Where gradients come from. `forward`: an extra forward pass over the pool. `cached`: none; what a sample was
    scored at is kept from when it was last trained on, in N x (F + C + 1) float32 numbers for N samples, F features and
    C classes, with `gradient_mass` in one, and only what is chosen is loaded (docs/method.md). `auto`: with
    `gradient_mass` cached where the loader's samples have indices and no MixUp or CutMix mixes them, else batches stay
    whole, as a forward pass costs what it spares; with other criteria forward."""
    scale_factor: Annotated[
        float, Setting(1.0, _number(lambda v: 0 < v <= 1, "above 0 and at most 1"), paper=1.0, loops=_BY_INPUTS)
    ]
    """Side length of the images in the scoring forward relative to the real ones, in (0, 1]."""
    scoring_batch_norm: Annotated[Literal["pool", "running"], Setting("pool", paper="pool")]
    """What batch normalisation works with in the scoring forward: the pool's own statistics, as in training, or its
    running ones, as in evaluation."""
    interval: Annotated[int, Setting(1, _whole(1), paper=1)]
    """A subset is chosen of one batch in `interval`, the others are trained on whole; 1: of every batch."""
    interrupt: Annotated[int, Setting(0, _interrupt, paper=0)]
    """Every `interrupt`-th batch of training is trained on whole and not scored, also where `interval` would have it
    scored; 0: none."""
    start: Annotated[float, Setting(0.0, _SHARE, paper=0.0, loops=_IN_TRAINERS)]
    """Fraction of training, in [0, 1], from which on subsets are chosen. Before it, and from `end` on, whole batches
    are trained on and their size stays. For the loss that `batch_size_policy="loss"` compares with, training's first,
    its first window is scored even before `start`: ten forward passes, none with `scoring="cached"`."""
    end: Annotated[float, Setting(1.0, _SHARE, paper=1.0, loops=_IN_TRAINERS)]
    """Fraction of training until which subsets are chosen, > `start`."""
    last_layer: Annotated[Layer, Setting(None, _layer)]
    """The layer whose gradient is measured, a module or its name in the model (of a ComposerClassifier: `'module.fc'`):
    a Linear or a 1x1 convolution. None: the one that is called last."""
    seed: Annotated[int | None, Setting(None, _seed, loops=_LOOPS[1:])]
    """Of the random candidates, in [0, 2**63). None: torch's own seed, that of rank 0; in Composer always the
    Trainer's."""
    input_key: Annotated[Any, Setting(None, loops=("composer",))]
    """Where the batch keeps the model's input, needed only for `scale_factor`; as in Composer's algorithms. None: 0, or
    the first floating-point tensor of a mapping."""
    target_key: Annotated[Any, Setting(None, loops=("composer",))]
    """Where the batch keeps the targets; their number is the number of samples. None: 1, or `labels`, `label`,
    `targets`, `target` in a mapping; without it all tensors must have the same first dimension."""


def table_of(settings: Any) -> dict[str, Setting]:
    """The entries of a table like :class:`Settings`, by name, those of its bases first."""
    table: dict[str, Setting] = {}
    for base in getattr(settings, "__orig_bases__", ()):
        table |= table_of(base) if base is not TypedDict else {}
    texts = _texts_under(settings)
    for name, annotation in get_type_hints(settings, include_extras=True).items():
        if name not in table:
            kind, entry = get_args(annotation)[:2]
            table[name] = replace(entry, type=kind, text=texts.get(name, ""))
    return table


def _texts_under(settings: Any) -> dict[str, str]:
    """The string under each entry, as one line; as for the attributes of any class, only the source has it."""
    try:
        tree: Any = ast.parse(textwrap.dedent(inspect.getsource(settings)))
    except (OSError, TypeError):
        return {}
    return {
        ast.unparse(entry.target): " ".join(ast.literal_eval(text.value).split())
        for entry, text in pairwise(tree.body[0].body)
        if isinstance(entry, ast.AnnAssign) and isinstance(text, ast.Expr)
    }


SETTINGS: dict[str, Setting] = table_of(Settings)
"""The arguments by name."""


# ---- what is made of it


def checked(
    given: Mapping[str, Any],
    loop: str | None = None,
    table: Mapping[str, Setting] | None = None,
    together: Callable[[Mapping[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """All settings, those that are not given at the preset's value; the preset itself is not among them.

    Args:
        given: arguments by name.
        loop: ``"composer"``, ``"ignite"``, ``"lightning"``, ``"transformers"``, ``"accelerate"`` or ``"plain"``: only
            what can be set there may be given. None: everything.
        table: None: :data:`SETTINGS`.
        together: raises an error if settings contradict each other; None: what EDBA's need.

    Raises:
        ValueError: if an argument is out of its range, or two contradict each other.
        TypeError: if one has a wrong type, or there is none of that name; names the nearest that there is.
    """
    table = SETTINGS if table is None else table
    known = [name for name, entry in table.items() if loop is None or loop in entry.loops]
    for name in given:
        if name not in known:
            raise TypeError(f"unknown argument {name!r}: {nearest(str(name), known)}")
    for name, value in given.items():
        check_value(name, value, table)
    preset = given.get("preset", table["preset"].default if "preset" in table else None)
    full = {
        name: entry.paper if preset == "paper" and entry.paper is not ... else entry.default
        for name, entry in table.items()
    } | dict(given)
    full.pop("preset", None)
    (_check_together if together is None else together)(full)
    return full


def check_value(name: str, value: Any, table: Mapping[str, Setting] | None = None) -> None:
    """Raise a ValueError or TypeError if the argument ``name`` cannot have this value."""
    entry = (SETTINGS if table is None else table)[name]
    if entry.check is not None:
        entry.check(name, value)
    if not entry.choices or (isinstance(value, str) and value in entry.choices):
        return
    is_right, words = entry.others or (lambda value: False, "")
    if not is_right(value):
        named = f"one of {', '.join(map(repr, entry.choices))}"
        raise ValueError(f"{name} is {value!r}: it must be {named}{words and f', or {words}'}")


def is_by_mass(criterion: Any) -> bool:
    """Whether this criterion leaves out what carries little of the gradient."""
    return isinstance(criterion, str) and criterion in ("gradient_mass", "random_mass")


def _check_together(full: Mapping[str, Any]) -> None:
    _check_mass(full)
    if full["scoring"] == "cached" or (full["scoring"] == "auto" and is_by_mass(full["criterion"])):
        factor, norm = full["scale_factor"], full["scoring_batch_norm"]
        lacks = f"{full['scoring']!r}, which has no scoring forward"
        if factor != 1:
            what = f"{lacks} to make smaller: use scale_factor=1, or scoring='forward'"
            raise ValueError(f"scale_factor is {factor} and scoring is {what}")
        if norm != "pool":
            what = f"{lacks}: leave scoring_batch_norm out, or use scoring='forward'"
            raise ValueError(f"scoring_batch_norm is {norm!r} and scoring is {what}")
    if not full["start"] < full["end"]:
        raise ValueError(f"start is {full['start']} and end is {full['end']}: they must satisfy 0 <= start < end <= 1")
    check_batch_bounds(full)
    check_policy_options(full["batch_size_policy"], full["policy_options"])


def _check_mass(full: Mapping[str, Any]) -> None:
    criterion, policy, by_mass = full["criterion"], full["batch_size_policy"], is_by_mass(full["criterion"])
    if full["refill"] and not by_mass:
        raise ValueError(f"refill is True and {shown({'criterion': criterion})}: only 'gradient_mass' refills batches")
    if full["refill"] and full["scoring"] == "forward":
        raise ValueError(
            "refill is True and scoring is 'forward', which scores what is loaded already: use scoring='cached', or "
            "refill=False"
        )
    if by_mass and policy in ("margin", "noise_scale"):
        raise ValueError(
            f"batch_size_policy is {policy!r} and criterion is {criterion!r}, which does not measure what it goes by: "
            "use 'fixed' or 'loss', or criterion='margin'"
        )


def check_batch_bounds(full: Mapping[str, Any]) -> None:
    """Raise a ValueError if the bounds of batch and subset contradict each other."""
    most = full["max_batch_size"]
    for name, why in (
        ("min_batch_size", "the first must not exceed it"),
        ("min_subset_size", "no batch could ever be chosen from; min_subset_size must not exceed max_batch_size"),
    ):
        if full[name] > most:
            raise ValueError(f"{name} is {full[name]} and max_batch_size is {most}: {why}")


def shown(arguments: Mapping[str, Any]) -> str:
    """``name=value, ...``, an object as the name of its type: the same at every moment of a run."""

    def word(value: Any) -> str:
        plain = value is None or isinstance(value, (bool, int, float, str, Mapping))
        return repr(value if plain else getattr(value, "__qualname__", type(value).__name__))

    return ", ".join(f"{name}={word(value)}" for name, value in arguments.items())


def as_saved(value: Any) -> Any:
    """``value`` as a checkpoint holds it: numbers, strings, lists and mappings; an object by its name or its type's."""
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, Mapping):
        return {str(name): as_saved(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_saved(part) for part in value]
    return None if value is None else policy_word(value)


def signature_of(
    callable_: Callable[..., Any], loop: str | None = None, table: Mapping[str, Setting] | None = None
) -> inspect.Signature:
    """The signature of ``callable_`` with its ``**settings`` spelt out, as keyword arguments with their defaults."""
    table = SETTINGS if table is None else table
    plain = inspect.signature(callable_)
    kind = inspect.Parameter.KEYWORD_ONLY
    parameters = {name: p for name, p in plain.parameters.items() if p.kind is not p.VAR_KEYWORD}
    for name, entry in table.items():
        if name not in parameters and (loop is None or loop in entry.loops):
            parameters[name] = inspect.Parameter(name, kind, default=entry.default, annotation=entry.type)
    return plain.replace(parameters=list(parameters.values()))


def documented(loop: str, table: Mapping[str, Setting] | None = None) -> Callable[[_Class], _Class]:
    """A decorator: the class's ``__signature__`` and docstring show each of the settings that ``loop`` takes.

    In the docstring they take the place of the line that begins with ``settings:``.
    """

    def decorate(cls: _Class) -> _Class:
        full = signature_of(cls.__init__, loop, table)  # type: ignore[misc]
        cls.__signature__ = full.replace(parameters=list(full.parameters.values())[1:])  # type: ignore[attr-defined]
        taken = {name: entry for name, entry in (SETTINGS if table is None else table).items() if loop in entry.loops}
        lines = [f"{name}: {entry.text} Default {entry.default!r}." for name, entry in taken.items()]
        place = re.compile(r"^([ \t]*)settings:.*", re.MULTILINE)
        cls.__doc__ = place.sub(lambda found: "\n".join(found[1] + line for line in lines), cls.__doc__ or "")
        return cls

    return decorate


def as_markdown(table: Mapping[str, Setting] | None = None) -> str:
    """The table for the documentation: argument, default, the paper's, meaning, where."""
    rows = ["| argument | default | paper's | meaning |", "|---|---|---|---|"]
    for name, entry in (SETTINGS if table is None else table).items():
        same = "none" if name == "preset" else "the same"
        paper = same if entry.paper in (..., entry.default) else f"`{entry.paper!r}`"
        lacking = [loop for loop in _LOOPS if loop not in entry.loops]
        word, loops = ("Not", lacking) if len(lacking) < len(entry.loops) else ("Only", entry.loops)
        where = f" *{word} in {', '.join(map(str.capitalize, loops))}.*" if lacking else ""
        rows.append(f"| `{name}` | `{entry.default!r}` | {paper} | {entry.text}{where} |")
    return "\n".join(rows) + "\n"
