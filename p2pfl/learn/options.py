"""The `[learner]` table of an agreement: data, model, optimizer, and how much each round trains.

Unknown keys and values out of range are refused while the table is decoded; the message carries the path.
"""

import re
from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta, Struct

from p2pfl.errors import ConfigError

__all__ = [
    "DataOptions",
    "ModelOptions",
    "OptimizerOptions",
    "PartitionOptions",
    "RoleOptions",
    "LearnerOptions",
    "Standardise",
    "Operator",
    "Target",
    "at_role",
    "parse_target",
]

_Positive: TypeAlias = Annotated[float, Meta(gt=0)]
_Count: TypeAlias = Annotated[int, Meta(ge=1)]
_Fraction: TypeAlias = Annotated[float, Meta(ge=0, le=1)]

Standardise: TypeAlias = Literal["none", "federation", "site"]
Operator: TypeAlias = Literal["<=", ">=", "==", "!=", "<", ">"]

# A role is a key of two files and a word on the command line.
_ROLE = re.compile(r"[A-Za-z0-9_-]{1,32}")
_TARGET = re.compile(r"\s*(?P<column>[^<>=!]+?)\s*(?P<operator><=|>=|==|!=|<|>)\s*(?P<number>\S+)\s*")


class DataOptions(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where the rows come from and how a row is read.

    source: `sklearn:NAME`, `npz:PATH`, `idx:DIR` or `csv:PATH-OR-GLOB`; a site's own `data` comes before it.
    `#FIRST-LAST` behind it takes the rows FIRST to LAST - 1, from 0.
    The rest is for csv, except `test_fraction`, `split_seed`, `scale` and `pool`.
    label: the column to predict.   target: instead, a test that makes a binary label, such as `num > 0`.
    classes: the labels in class order; empty takes the sorted labels found: set it when a site may lack one.
    columns: names for a file without a header line (1, 2, ... otherwise).
    features: the columns the model sees; empty is all but the label's.
    header: whether the first line names the columns; None looks: it does when no cell of it is a number.
    missing: cells that mean "unknown".   zero_is_missing: columns where 0 means it too.
    test_fraction: share of each class, in each file, kept for evaluation.
    split_seed: instead, the last rows of numpy.random.default_rng(split_seed).permutation, whatever the run's
    seed and their classes: a split that was published, or one test set for many seeds.
    scale: factor on every feature; None is 1/16 for digits, 1/255 for idx bytes and 1 otherwise.
    pool: of images each `pool` x `pool` square is replaced by its mean.
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
    split_seed: Annotated[int, Meta(ge=0)] | None = None
    scale: _Positive | None = None
    pool: Annotated[int, Meta(ge=1, le=256)] = 1


class ModelOptions(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A model that needs no code.

    logistic: softmax regression, with one logit when there are two classes.
    mlp: ReLU layers of `hidden` units.
    cnn: two 3 x 3 convolutions of `channels` filters, each with ReLU and 2 x 2 max-pooling, then a linear
    layer; needs torch.
    gkt: FedGKT's edge on images, a convolution and two residual blocks, and where there is a hub's capacity
    its large model beside it; needs torch.
    init: of the numpy models: "uniform" within 1 / sqrt(inputs), as torch.nn.Linear has it, or "he".
    vector: none, but `size` random numbers at each site, to see how fast a topology mixes; needs no data.
    """

    kind: Literal["logistic", "mlp", "cnn", "gkt", "vector"] = "logistic"
    hidden: Annotated[tuple[_Count, ...], Meta(min_length=1)] = (64,)
    channels: tuple[_Count, _Count] = (16, 32)
    size: _Count = 64
    init: Literal["uniform", "he"] = "uniform"


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

    column: the one that says which site a row is of, for `by-column`.   rows, classes: of each site, `drawn`.
    """

    kind: Literal["iid", "dirichlet", "shards", "quantity", "by-file", "by-column", "drawn"] = "iid"
    alpha: _Positive = 0.5
    shards: _Count = 2
    min_rows: _Count = 2
    column: str = ""
    rows: _Count = 16
    classes: _Count = 2

    def __post_init__(self) -> None:
        """Refuse `by-column` without a column, and a column without it."""
        if (self.kind == "by-column") != bool(self.column):
            raise ValueError(
                'partition "by-column" takes the name of a csv column, such as column = "hospital", and other'
                " kinds take none"
            )


class RoleOptions(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[learner.roles.NAME]`: what `[learner]` says to sites of that role; unset is as for all.

    A module takes the place of a model, and a model that of a module.
    """

    module: str | None = None
    model: ModelOptions | None = None
    proxy: ModelOptions | None = None
    optimizer: OptimizerOptions | None = None
    local_steps: _Count | None = None
    batch_size: _Count | None = None
    capacity: Annotated[float, Meta(ge=0)] | None = None
    hub_epochs: _Count | None = None
    hub_batch_size: _Count | None = None
    hub_optimizer: OptimizerOptions | None = None

    def __post_init__(self) -> None:
        if self.module and self.model is not None:
            raise ValueError("a role of learner.roles has both module and model; keep one")


class LearnerOptions(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The `[learner]` table: either `module = "mine:learner"`, or `model` and `data` with no code.

    local_steps, batch_size: of one round.   share: globs of parameter names that travel; `!glob` takes away.
    standardise: columns to mean 0 and deviation 1, with the sums of all sites, of this one alone, or not.
    proxy: the small model that travels where `model` stays at its site.   capacity: what a site is worth as a
    hub, 0 for none.   hub_epochs, hub_batch_size: a hub's, over the samples of all its edges in a round.
    hub_optimizer: None is `optimizer`.   per_class: evaluate classes one by one, too.
    roles: by name, what differs; a site plays one.
    """

    module: str = ""
    local_steps: _Count = 50
    batch_size: _Count = 32
    data: DataOptions = DataOptions()
    model: ModelOptions | None = None
    optimizer: OptimizerOptions = OptimizerOptions()
    share: Annotated[tuple[str, ...], Meta(min_length=1)] = ("*",)
    standardise: Standardise = "none"
    proxy: ModelOptions | None = None
    capacity: Annotated[float, Meta(ge=0)] = 0.0
    hub_epochs: _Count = 3
    hub_batch_size: _Count = 64
    hub_optimizer: OptimizerOptions | None = None
    per_class: bool = False
    roles: dict[str, RoleOptions] = msgspec.field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.roles:
            if not _ROLE.fullmatch(name):
                raise ValueError(f"learner.roles.{name}: a role is 1 to 32 letters, digits, - or _")


class Target(Struct, frozen=True):
    """A test on one column: rows that pass are class 1, the others class 0."""

    column: str
    operator: Operator
    number: float


def at_role(options: LearnerOptions, role: str) -> LearnerOptions:
    """What `options` say to a site of `role`; the only role may be left out.  Raises ConfigError."""
    if not options.roles:
        if role:
            raise ConfigError(
                f"this site's role is {role!r} and the agreement has no learner.roles; leave node.role out"
            )
        return options
    names = ", ".join(sorted(options.roles))
    if not role and len(options.roles) > 1:
        raise ConfigError(
            f"the agreement has the roles {names}; say which one this site plays with role in node.toml"
        )
    name = role or next(iter(options.roles))
    if name not in options.roles:
        raise ConfigError(f"the agreement has no role {name!r}; it has {names}")
    chosen = options.roles[name]
    given = {field: getattr(chosen, field) for field in chosen.__struct_fields__}
    changes = {field: value for field, value in given.items() if value is not None}
    if chosen.module:
        changes["model"] = None
    elif chosen.model is not None:
        changes["module"] = ""
    return msgspec.structs.replace(options, roles={}, **changes)


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
