"""What a peer keeps of its exchange of knowledge while it runs; nothing of it survives a restart."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from p2pfl.errors import LearnerError
from p2pfl.events import Kind, Send, Vector
from p2pfl.ids import PeerId, RunId
from p2pfl.knowledge.exchange import Exchange
from p2pfl.knowledge.hub_state import HubState
from p2pfl.knowledge.packets import PacketKind
from p2pfl.knowledge.samples import sample_ids
from p2pfl.trust.relations import Task
from p2pfl.work import Expected, Ids

__all__ = ["KINDS", "TASKS", "Knowing"]

# The messages that carry packets, and the relation each of them needs: what shows single rows needs one of
# its own, and a hub's model is weights.
KINDS: Mapping[Kind, PacketKind] = {
    Kind.FEATURES: PacketKind.FEATURES,
    Kind.SOFT_LABELS: PacketKind.SOFT_LABELS,
    Kind.PROBE: PacketKind.PROBE,
    Kind.PROTOTYPES: PacketKind.PROTOTYPES,
    Kind.HUB_MODEL: PacketKind.HUB_MODEL,
}
TASKS: Mapping[Kind, Task] = {
    Kind.FEATURES: "features",
    Kind.SOFT_LABELS: "labels",
    Kind.PROBE: "labels",
    Kind.PROTOTYPES: "labels",
    Kind.HUB_MODEL: "weights",
}
# Rows that a site may name: a second's work.
_MOST_ROWS = 1_000_000


@dataclass(slots=True, kw_only=True)
class Knowing:
    """One peer's exchange.

    state: the policy's.   secret: names the site's samples.   theta: the model as the jobs of this round
    left it; None outside the two phases.   number: of the next job, `is_waiting` for the last one's answer.
    failed: kinds of job that failed in this round.   turn_at: when phase A ends at the latest.   told: what
    was sent, by (recipient, kind, round).   words: the messages themselves, to be said again.   heard: how
    many packets were taken in.
    """

    exchange: Exchange[Any]
    state: Any
    expected: Expected
    secret: bytes
    names: Ids = field(default_factory=lambda: np.zeros(0, np.uint64))
    theta: Vector | None = None
    number: int = 0
    is_waiting: bool = False
    failed: set[type] = field(default_factory=set)
    fault: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    learner_state: bytes = b""
    turn_at: float = 0.0
    told: set[tuple[PeerId, PacketKind, int]] = field(default_factory=set)
    words: list[Send] = field(default_factory=list)
    heard: int = 0
    hub: PeerId | None = None

    def name(self, run: RunId, rows: Ids) -> Ids:
        """The names of `rows`, numbers of the learner's own.  Raises LearnerError beyond a million."""
        most = int(rows.max(initial=0))
        if most >= _MOST_ROWS:
            raise LearnerError(f"features of row {most}; a site has at most {_MOST_ROWS} to exchange")
        if most >= self.names.size:
            self.names = sample_ids(hashlib.sha256(b"samples" + self.secret).digest(), run, most + 1)
        return self.names[rows.astype(np.int64)]

    def held_bytes(self) -> int:
        """Bytes of others' packets that are kept from round to round: a hub's cache, and what hubs told."""
        if not isinstance(self.state, HubState):
            return 0
        told = sum(model.values.nbytes for model in self.state.models.values())
        believed = sum(held.log_p.nbytes for held in self.state.beliefs.values())
        return sum(group.size for group in self.state.cache.groups) + told + believed
