"""Whom this site tells, and whom it believes: two local lists, each one way, neither ever sent to anyone.

`share_with` is about confidentiality (who may receive what this site's model holds), `accept_from` about
integrity (whose updates are mixed here).  An edge from A to B exists when A shares with B and B accepts from
A; the way back is another edge.  A ban is deny in both directions and beats every level.

Levels are for weights, and hold for soft labels and features, too, unless a peer has others for these; but
nobody is told features, which show single rows, unless a level for features or this site's node.toml says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Literal, TypeAlias, get_args

from p2pfl import encoding
from p2pfl.errors import ConfigError, RemoteError, StoreError
from p2pfl.ids import PeerId

__all__ = [
    "MAX_OVERRIDES",
    "TASKS",
    "Task",
    "Level",
    "Relations",
    "parse_level",
    "share_level",
    "accept_level",
    "may_share",
    "accepts",
    "weight_limit",
    "set_level",
    "ban",
    "forget",
    "rename",
    "to_bytes",
    "from_bytes",
]

# As many as a run has members.
MAX_OVERRIDES = 4096
_MAX_BYTES = 7 * MAX_OVERRIDES * 40 + 64

# Kinds of message that a level may be for.
Task: TypeAlias = Literal["weights", "features", "labels"]
TASKS: tuple[Task, ...] = get_args(Task)
# The lists of `Relations.only`, in the order in which they are stored.
_ONLY: tuple[tuple[Task, str], ...] = (
    ("features", "share"),
    ("features", "accept"),
    ("labels", "share"),
    ("labels", "accept"),
)


class Level(IntEnum):
    """How far a peer is trusted, in one direction.

    DENY and QUARANTINE carry nothing: a denied peer is not heard at all, a quarantined one is heard (its
    statements, its notices) and not mixed.  LIMITED may bring little weight, see `weight_limit`.  PINNED is
    kept whatever its reputation, and is screened like everybody.
    """

    DENY = 0
    QUARANTINE = 1
    LIMITED = 2
    NORMAL = 3
    PINNED = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Relations:
    """The two lists: a level for members not named, levels of those who are, and the banned.

    only: levels for one kind of message alone, by kind and way ("share", "accept").   features_to: who is
    told features without a level of their own, by node.toml; not stored.
    """

    share_default: Level = Level.NORMAL
    accept_default: Level = Level.NORMAL
    share_with: Mapping[PeerId, Level] = field(default_factory=dict)
    accept_from: Mapping[PeerId, Level] = field(default_factory=dict)
    banned: frozenset[PeerId] = frozenset()
    only: Mapping[tuple[Task, str], Mapping[PeerId, Level]] = field(default_factory=dict)
    features_to: frozenset[PeerId] = frozenset()


def parse_level(word: str) -> Level:
    """The level called `word`, in any case.  Raises ConfigError."""
    try:
        return Level[word.strip().upper()]
    except KeyError:
        names = ", ".join(level.name.lower() for level in Level)
        raise ConfigError(f"not a level: {word[:40]!r}; the levels are {names}") from None


def share_level(relations: Relations, peer: PeerId, task: Task = "weights") -> Level:
    """How far `peer` may be told what is of `task`."""
    if peer in relations.banned:
        return Level.DENY
    if relations.only and (level := relations.only.get((task, "share"), {}).get(peer)) is not None:
        return level
    if task == "features":
        return Level.NORMAL if peer in relations.features_to else Level.DENY
    return relations.share_with.get(peer, relations.share_default)


def accept_level(relations: Relations, peer: PeerId, task: Task = "weights") -> Level:
    """How far `peer` is believed in what is of `task`."""
    if peer in relations.banned:
        return Level.DENY
    if relations.only and (level := relations.only.get((task, "accept"), {}).get(peer)) is not None:
        return level
    return relations.accept_from.get(peer, relations.accept_default)


def may_share(relations: Relations, peer: PeerId) -> bool:
    """Whether this site's updates may go to `peer`."""
    return share_level(relations, peer) >= Level.LIMITED


def accepts(relations: Relations, peer: PeerId) -> bool:
    """Whether updates of `peer` are mixed here."""
    return accept_level(relations, peer) >= Level.LIMITED


def weight_limit(level: Level, *, total: float, n: int) -> float:
    """The most weight that one share from a peer of `level` may bring, of the run's `total` over `n` members.

    A limited peer may bring half of a member's fair part, total / (2n); one not accepted, nothing.
    """
    if level < Level.LIMITED:
        return 0.0
    return total / (2 * n) if level is Level.LIMITED else total


def set_level(
    relations: Relations,
    peer: PeerId,
    *,
    share: Level | None = None,
    accept: Level | None = None,
    task: Task = "weights",
) -> Relations:
    """`relations` with `peer` at these levels for `task`; None leaves one as it is.  A ban stays in force.

    Raises ConfigError when a list is full.
    """
    if task not in TASKS:
        raise ConfigError(f"no kind of message: {str(task)[:40]!r}; the kinds are {', '.join(TASKS)}")
    lists = dict(relations.only) | {
        ("weights", "share"): relations.share_with,
        ("weights", "accept"): relations.accept_from,
    }
    for way, level in (("share", share), ("accept", accept)):
        if level is not None:
            lists[task, way] = {**lists.get((task, way), {}), peer: level}
    if max(map(len, lists.values())) > MAX_OVERRIDES:
        raise ConfigError(f"{MAX_OVERRIDES} peers have levels of their own; `p2pfl trust forget` some")
    share_with, accept_from = lists.pop(("weights", "share")), lists.pop(("weights", "accept"))
    return replace(relations, share_with=share_with, accept_from=accept_from, only=lists)


def ban(relations: Relations, peer: PeerId) -> Relations:
    """`relations` with `peer` denied both ways, whatever its levels, until `forget`.

    Raises ConfigError when the list is full.
    """
    banned = relations.banned | {peer}
    if len(banned) > MAX_OVERRIDES:
        raise ConfigError(f"{MAX_OVERRIDES} peers are banned; `p2pfl trust forget` some")
    return replace(relations, banned=banned)


def forget(relations: Relations, peer: PeerId) -> Relations:
    """`relations` without any ban or level of `peer`'s own."""
    return replace(
        relations,
        share_with={name: level for name, level in relations.share_with.items() if name != peer},
        accept_from={name: level for name, level in relations.accept_from.items() if name != peer},
        banned=relations.banned - {peer},
        only={
            key: {name: level for name, level in levels.items() if name != peer}
            for key, levels in relations.only.items()
        },
    )


def rename(relations: Relations, old: PeerId, new: PeerId) -> Relations:
    """`relations` with what is said of `old` said of `new` instead, unless `new` has levels of its own."""
    return replace(
        relations,
        share_with=_renamed(relations.share_with, old, new),
        accept_from=_renamed(relations.accept_from, old, new),
        banned=frozenset(new if name == old else name for name in relations.banned),
        only={key: _renamed(levels, old, new) for key, levels in relations.only.items()},
        features_to=frozenset(new if name == old else name for name in relations.features_to),
    )


def to_bytes(relations: Relations) -> bytes:
    """The canonical bytes, for this node's own disk."""
    return encoding.pack(
        {
            1: int(relations.share_default),
            2: int(relations.accept_default),
            3: _levels_out(relations.share_with),
            4: _levels_out(relations.accept_from),
            5: b"".join(sorted(encoding.key_of(name) for name in relations.banned)),
            **{6 + i: _levels_out(relations.only.get(key, {})) for i, key in enumerate(_ONLY)},
        }
    )


def from_bytes(data: bytes) -> Relations:
    """What `to_bytes` wrote, or what it wrote before levels had kinds: keys 1 to 5.  Raises StoreError."""
    try:
        keys = range(1, 6) if data[:1] == b"\x85" else range(1, 6 + len(_ONLY))
        document = encoding.unpack(data, "their document", keys=keys, limit=_MAX_BYTES)
        lists = {key: _levels_in(document.get(6 + i, b"")) for i, key in enumerate(_ONLY)}
        return Relations(
            share_default=_level(document[1]),
            accept_default=_level(document[2]),
            share_with=_levels_in(document[3]),
            accept_from=_levels_in(document[4]),
            banned=frozenset(encoding.peer(key, "banned") for key in _cut(document[5], 32)),
            only={key: levels for key, levels in lists.items() if levels},
        )
    except RemoteError as error:
        raise StoreError(f"the stored relations are damaged: {error}; run `p2pfl node restore`") from error


def _renamed(levels: Mapping[PeerId, Level], old: PeerId, new: PeerId) -> dict[PeerId, Level]:
    rest = {name: level for name, level in levels.items() if name != old}
    return {new: levels[old], **rest} if old in levels else rest


def _levels_out(levels: Mapping[PeerId, Level]) -> bytes:
    return b"".join(sorted(encoding.key_of(name) + bytes([level]) for name, level in levels.items()))


def _levels_in(value: object) -> dict[PeerId, Level]:
    return {encoding.peer(row[:32], "peer"): _level(row[32]) for row in _cut(value, 33)}


def _level(value: object) -> Level:
    return Level(encoding.integer(value, "level", most=max(Level)))


def _cut(value: object, size_bytes: int) -> list[bytes]:
    return encoding.rows(value, "a list", size_bytes=size_bytes, most=MAX_OVERRIDES)
