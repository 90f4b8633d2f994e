"""The `[learner]` table of an agreement: data, model, optimizer, and how much each round trains.

Unknown keys and values out of range are refused while the table is decoded; the message carries the path.
"""

import re
from typing import Annotated, Literal, TypeAlias

from msgspec import Meta, Struct

from p2pfl.errors import ConfigError

__all__ = [
    "DataOptions",
    "ModelOptions",
    "OptimizerOptions",
    "PartitionOptions",
    "LearnerOptions",
    "Standardise",
    "Operator",
    "Target",
    "parse_target",
]

_Positive: TypeAlias = Annotated[float, Meta(gt=0)]
_Count: TypeAlias = Annotated[int, Meta(ge=1)]
_Fraction: TypeAlias = Annotated[float, Meta(ge=0, le=1)]

Standardise: TypeAlias = Literal["none", "federation", "site"]
Operator: TypeAlias = Literal["<=", ">=", "==", "!=", "<", ">"]

_TARGET = re.compile(r"\s*(?P<column>[^<>=!]+?)\s*(?P<operator><=|>=|==|!=|<|>)\s*(?P<number>\S+)\s*")


class DataOptions(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where the rows come from and how a row is read.

    source: `sklearn:NAME`, `npz:PATH`, `idx:DIR` or `csv:PATH-OR-GLOB`; a site's own `data` comes before it.
    The rest is for csv, except `test_fraction` and `scale`.
    label: the column to predict.   target: instead, a test that makes a binary label, such as `num > 0`.
    classes: the labels in class order; empty takes the sorted labels found: set it when a site may lack one.
    columns: names for a file without a header line (1, 2, ... otherwise).
    features: the columns the model sees; empty is all but the label's.
    header: whether the first line names the columns; None looks: it does when no cell of it is a number.
    missing: cells that mean "unknown".   zero_is_missing: columns where 0 means it too.
    test_fraction: share of each class, in each file, kept for evaluation.
    scale: factor on every feature; None is 1/16 for digits, 1/255 for idx bytes and 1 otherwise.
    """

    source: str = ""
    label: str = ""
    target: str = ""
    classes: tuple[str, ...] = ()
    columns: tuple[str, ...] | None = None
    features: tuple[str, ...] = ()
    header: bool | None = None
    missing: tuple[str, ...] = ("?", "", "NA", "NaN", "nan", "null")
    zero_is_missing: tuple[str, ...] = ()
    test_fraction: Annotated[float, Meta(gt=0, lt=1)] = 0.25
    scale: _Positive | None = None


class ModelOptions(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A model that needs no code.

    logistic: softmax regression, with one logit when there are two classes.
    mlp: ReLU layers of `hidden` units.
    cnn: two 3 x 3 convolutions of `channels` filters, each with ReLU and 2 x 2 max-pooling, then a linear
    layer; needs torch.
    """

    kind: Literal["logistic", "mlp", "cnn"] = "logistic"
    hidden: Annotated[tuple[_Count, ...], Meta(min_length=1)] = (64,)
    channels: tuple[_Count, _Count] = (16, 32)


class OptimizerOptions(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Stochastic gradient descent with heavy-ball momentum, as torch.optim.SGD writes it.

    schedule: over the share p of rounds done, `cosine` is lr (final + (1 - final) (1 + cos(pi p)) / 2).
    reset: momentum starts at zero in every round; False keeps it as learner state, never sent.
    """

    kind: Literal["sgd"] = "sgd"
    lr: _Positive = 0.1
    momentum: Annotated[float, Meta(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Meta(ge=0)] = 0.0
    schedule: Literal["constant", "cosine"] = "constant"
    final: _Fraction = 0.1
    reset: bool = True


class PartitionOptions(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How one data set becomes many sites; see partition.py for what each kind does with its number.

    rows, classes: of each site, `drawn`.
    """

    kind: Literal["iid", "dirichlet", "shards", "quantity", "by-file", "drawn"] = "iid"
    alpha: _Positive = 0.5
    shards: _Count = 2
    min_rows: _Count = 2
    rows: _Count = 16
    classes: _Count = 2


class LearnerOptions(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The `[learner]` table: either `module = "mine:learner"`, or `model` and `data` with no code.

    local_steps, batch_size: of one round.   share: globs of parameter names that travel; `!glob` takes away.
    standardise: columns to mean 0 and deviation 1, with the sums of all sites, of this one alone, or not.
    """

    module: str = ""
    local_steps: _Count = 50
    batch_size: _Count = 32
    data: DataOptions = DataOptions()
    model: ModelOptions | None = None
    optimizer: OptimizerOptions = OptimizerOptions()
    share: Annotated[tuple[str, ...], Meta(min_length=1)] = ("*",)
    standardise: Standardise = "none"


class Target(Struct, frozen=True):
    """A test on one column: rows that pass are class 1, the others class 0."""

    column: str
    operator: Operator
    number: float


def parse_target(text: str) -> Target:
    """`num > 0` as a Target: a column, one of < <= > >= == !=, a finite number.  Raises ConfigError.

    >>> parse_target("num > 0")
    Target(column='num', operator='>', number=0.0)
    """
    match = _TARGET.fullmatch(text)
    try:
        number = float(match["number"]) if match else float("nan")
    except ValueError:
        number = float("nan")
    if match is None or not abs(number) < float("inf"):
        raise ConfigError(
            f"target {text!r} is not a column, an operator and a number; write it like 'num > 0'"
            " with one of < <= > >= == !="
        )
    operators: dict[str, Operator] = {"<=": "<=", ">=": ">=", "==": "==", "!=": "!=", "<": "<", ">": ">"}
    return Target(match["column"], operators[match["operator"]], number)
