"""What an agreement says under [gossip]: the topology, the averaging, the compression.

Every site reads the same options, so they hold only what all of them must agree on.  A field that does not
apply to the chosen kind is refused rather than ignored.
"""

from typing import Annotated

import msgspec

from p2pfl.errors import ConfigError

__all__ = [
    "TOPOLOGY_FIELDS",
    "AVERAGING_KINDS",
    "COMPRESSION_KINDS",
    "TopologyOptions",
    "AveragingOptions",
    "CompressionOptions",
]

# The kinds of graph, and which options each one understands.
TOPOLOGY_FIELDS: dict[str, tuple[str, ...]] = {
    "complete": (),
    "ring": ("directed",),
    "torus": ("rows",),
    "star": (),
    "exponential": (),
    "one-peer-exponential": (),
    "random-regular": ("degree", "seed", "redraw"),
    "erdos-renyi": ("p", "seed", "redraw"),
    "watts-strogatz": ("degree", "p", "seed", "redraw"),
    "one-way": ("degree", "p", "seed", "redraw"),
    "base": ("degree",),
    "simple-base": ("degree",),
    "d-equistatic": ("degree", "seed", "redraw"),
    "u-equistatic": ("degree", "seed", "redraw"),
    "od-equidyn": ("seed",),
    "ou-equidyn": ("seed",),
    "random-matching": ("seed",),
    "el-oracle": ("degree", "seed"),
    "el-local": ("degree", "seed"),
    "explicit": ("edges", "directed"),
    "custom": ("function",),
}
# Those that are another graph every round, which need not join everybody by itself.
_ALWAYS_REDRAWN = ("od-equidyn", "ou-equidyn", "random-matching", "el-oracle", "el-local", "custom")
# Those in which some send, or may send, to whom they do not hear.
_ONE_SIDED = (
    "exponential",
    "one-peer-exponential",
    "one-way",
    "d-equistatic",
    "od-equidyn",
    "el-local",
    "custom",
)
# Those whose peers do with one neighbour; a lasting graph of such would join two peers.
_PAIRED = ("base", "simple-base", "d-equistatic", "u-equistatic", "el-oracle", "el-local")
AVERAGING_KINDS = ("push-sum", "push-pull", "d-psgd", "none")
COMPRESSION_KINDS = ("none",)

_TopologyKind = Annotated[str, msgspec.Meta(extra_json_schema={"enum": list(TOPOLOGY_FIELDS)})]
_AveragingKind = Annotated[str, msgspec.Meta(extra_json_schema={"enum": list(AVERAGING_KINDS)})]
_CompressionKind = Annotated[str, msgspec.Meta(extra_json_schema={"enum": list(COMPRESSION_KINDS)})]
# A seed enters numpy's SeedSequence, which takes non-negative integers; 63 bits fit TOML and MessagePack.
_LARGEST_SEED = 2**63 - 1


class TopologyOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Who sends to whom.  A field left out (None) takes the kind's default.

    kind      default, and what else it takes
    complete, star, exponential, one-peer-exponential: nothing
    ring      directed (false)
    torus     rows (the most square shape; a prime number of peers makes a ring)
    random-regular   degree (4), seed, redraw (false: one graph for the run; true: a new one every round)
    erdos-renyi      p (2 ln n / n, at most 1), seed, redraw
    watts-strogatz   degree (4, even), p (.3), seed, redraw
    one-way          degree (4, even), p (.5), seed, redraw
    base, simple-base           degree (1): the k of Base-(k+1)
    d-equistatic, u-equistatic  degree (2 ceil ln n): basis graphs drawn, M; seed, redraw
    od-equidyn, ou-equidyn, random-matching     seed; drawn anew every round
    el-oracle, el-local         degree (4): the s of epidemic learning; seed; drawn anew every round
    explicit  edges, pairs of positions in the roster's PeerId order; directed (false: each pair both ways)
    custom    function, "module:attribute" of the user's own: see custom.py

    `seed` replaces the run's seed for the graph alone.
    Raises ConfigError on a kind that does not exist, a field the kind lacks, or a value out of range.
    """

    kind: _TopologyKind = "exponential"
    directed: bool | None = None
    rows: int | None = None
    degree: int | None = None
    p: float | None = None
    edges: tuple[tuple[int, int], ...] | None = None
    function: str | None = None
    redraw: bool | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        """Refuse what could not be built on any number of peers."""
        if self.kind not in TOPOLOGY_FIELDS:
            raise ConfigError(
                f"gossip.topology.kind is {self.kind!r}; choose one of {_listed(TOPOLOGY_FIELDS)}"
            )
        understood = TOPOLOGY_FIELDS[self.kind]
        for field in ("directed", "rows", "degree", "p", "edges", "function", "redraw", "seed"):
            if getattr(self, field) is not None and field not in understood:
                takes = _listed(understood) or "no options"
                raise ConfigError(
                    f"gossip.topology.{field} does not apply to kind {self.kind!r}, which takes {takes}"
                )
        if self.rows is not None and self.rows < 1:
            raise ConfigError(f"gossip.topology.rows is {self.rows}, expected at least 1")
        if self.kind == "custom" and ":" not in (self.function or ""):
            raise ConfigError(
                f"gossip.topology.function is {self.function!r}; kind 'custom' needs the user's own"
                ' "module:attribute", such as "mine:plan"'
            )
        self._check_random()
        self._check_edges()

    @property
    def is_redrawn(self) -> bool:
        """Whether every round has a graph of its own, that never comes again."""
        return bool(self.redraw) or self.kind in _ALWAYS_REDRAWN

    @property
    def is_joined_by_rounds(self) -> bool:
        """Whether a round's graph may be unconnected by itself."""
        return self.kind in _ALWAYS_REDRAWN

    @property
    def is_finite_time(self) -> bool:
        """Whether the average is exact after some rounds, provided that everybody takes them in step."""
        return self.kind in ("base", "simple-base")

    @property
    def is_mutual(self) -> bool:
        """Whether who sends also hears, on any number of peers."""
        if self.kind == "explicit" and self.directed:
            return set(self.edges or ()) == {(j, i) for i, j in self.edges or ()}
        return not (self.directed or self.kind in _ONE_SIDED)

    def _check_random(self) -> None:
        least = 1 if self.kind in _PAIRED else 2
        if self.degree is not None and self.degree < least:
            why = ": one link joins two peers" if least == 2 else ""
            raise ConfigError(f"gossip.topology.degree is {self.degree}, expected at least {least}{why}")
        if self.kind in ("watts-strogatz", "one-way") and self.degree is not None and self.degree % 2:
            raise ConfigError(
                f"gossip.topology.degree is {self.degree}; {self.kind} starts from a ring of even degree"
            )
        if self.p is not None and not 0 <= self.p <= 1:
            raise ConfigError(f"gossip.topology.p is {self.p}, expected a probability from 0 to 1")
        if self.kind == "erdos-renyi" and self.p == 0:
            raise ConfigError("gossip.topology.p is 0: an erdos-renyi graph without edges joins nobody")
        if self.seed is not None and not 0 <= self.seed <= _LARGEST_SEED:
            raise ConfigError(f"gossip.topology.seed is {self.seed}, expected 0 to {_LARGEST_SEED}")

    def _check_edges(self) -> None:
        if self.kind == "explicit" and self.edges is None:
            raise ConfigError(
                "gossip.topology.edges is missing: kind 'explicit' lists its pairs, such as [[0, 1], [1, 2]]"
            )
        for i, j in self.edges or ():
            if i < 0 or j < 0:
                raise ConfigError(f"gossip.topology.edges has [{i}, {j}]; positions in the roster start at 0")
            if i == j:
                raise ConfigError(
                    f"gossip.topology.edges has [{i}, {j}]; every peer keeps its own part without being told"
                )


class AveragingOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How models mix: `push-sum` (any strongly connected graph, conserved), `push-pull` (that with gradient
    tracking, for graphs that starve some peers of weight; twice the bytes), `d-psgd` (latest states), or
    `none`, where sites exchange knowledge alone and their models may differ.

    Raises ConfigError on another kind.
    """

    kind: _AveragingKind = "push-sum"

    def __post_init__(self) -> None:
        """Refuse a kind that does not exist."""
        if self.kind not in AVERAGING_KINDS:
            raise ConfigError(
                f"gossip.averaging.kind is {self.kind!r}; choose one of {_listed(AVERAGING_KINDS)}"
            )


class CompressionOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How parameters are made smaller on the wire: `none`, they travel as float32.

    Raises ConfigError on another kind.
    """

    kind: _CompressionKind = "none"

    def __post_init__(self) -> None:
        """Refuse a kind that does not exist."""
        if self.kind not in COMPRESSION_KINDS:
            raise ConfigError(
                f"gossip.compression.kind is {self.kind!r}; parameters travel as they are: choose 'none'"
            )


def _listed(names: object) -> str:
    return ", ".join(names) if isinstance(names, tuple | dict) else str(names)
