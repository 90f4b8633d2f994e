"""Where a peer of a hub exchange stands, as an edge and as a hub."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from p2pfl.ids import PeerId
from p2pfl.knowledge.cache import Cache
from p2pfl.knowledge.consensus import Held
from p2pfl.knowledge.exchange import Phase
from p2pfl.knowledge.packets import Features, HubModel, SoftLabels
from p2pfl.knowledge.ranking import Capability

__all__ = ["HubState", "Upload"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """The own samples as a hub sees them, and which of them the edge does not fit on, (n,) bool."""

    features: Features
    is_held_out: np.ndarray[tuple[int], np.dtype[np.bool_]]


@dataclass(frozen=True, slots=True, kw_only=True)
class HubState:
    """Where a peer stands, as an edge and as a hub.

    hubs: what hubs of our split announced.   sent: to whom `upload` was offered, and in which round first.
    heard: the round of the last soft labels that came; taught: the last that were worth listening to.
    losses: of the senders, once judged.   answers: this round's soft labels by sender, once learned.
    model: the own hub model, once learned.   models: those of other hubs that came, with their rounds.
    is_kept: whether the last hub model is the learner's.   belief: the own hub's predictions on the probe set
    as the others hold them, beliefs: those of other hubs; both of a tier of predictions alone.
    """

    round: int = -1
    phase: Phase = Phase.A
    hears: frozenset[PeerId] = frozenset()
    tells: frozenset[PeerId] = frozenset()
    done: frozenset[type] = frozenset()
    hubs: Mapping[PeerId, Capability] = field(default_factory=dict)
    upload: Upload | None = None
    sent: Mapping[PeerId, int] = field(default_factory=dict)
    heard: int = -1
    taught: tuple[int, SoftLabels] | None = None
    cache: Cache
    losses: Mapping[PeerId, float] = field(default_factory=dict)
    answers: Mapping[PeerId, SoftLabels] = field(default_factory=dict)
    model: NDArray[np.float32] | None = None
    models: Mapping[PeerId, HubModel] = field(default_factory=dict)
    is_kept: bool = False
    belief: Held | None = None
    beliefs: Mapping[PeerId, Held] = field(default_factory=dict)
