"""The seam between a peer and what it exchanges beside weights: what a policy is asked, and what it asks for.

A policy decides who gets what and when, what is fetched, kept and believed, and which jobs the learner has.
It has no state of its own: each call takes a frozen state and gives the next.  It trains nothing.

A round has two phases.  In phase A the learner fits and says what the fit gave; that is offered.  In phase B,
when what others offered is in or the deadline has passed, the learner works on it, and the answer is offered.
The peer drives it so, for a policy `x` and a state `s`:

    s = x.begin(s, round, hears=..., tells=...)                 phase A
    while jobs := x.jobs(s):      carry them out in order;      s = x.made(s, result) for each
    send x.offers(s)
    on a header: x.verdict(s, heading);     on its body: s = x.absorb(s, heading, body)
    when x.awaited(s) is empty, or at the deadline:             s = x.turn(s)     phase B
    the same again: jobs, offers, arrivals;                     then the next begin

Invariants.  `jobs` and `offers` are functions of the state: asked twice they say the same, and what was made
is no longer asked for.  `offers` may name more recipients after `peer_gone`, so a peer asks again and sends
what (recipient, kind, round) it has not sent.  Only `absorb` raises, RemoteError, and then the state stands.
What a state holds of others is not durable: a restart begins with `start`, and fills up from what comes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal, Protocol, TypeAlias, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from p2pfl.ids import PeerId
from p2pfl.knowledge.bodies import Body
from p2pfl.knowledge.packets import Features, PacketKind
from p2pfl.knowledge.samples import Ids

__all__ = [
    "Phase",
    "Expected",
    "Heading",
    "Offer",
    "Reason",
    "REASONS",
    "Floats",
    "Teacher",
    "Pull",
    "Mutual",
    "Fit",
    "Answer",
    "Extract",
    "Summarise",
    "Judge",
    "Learn",
    "Distill",
    "Job",
    "Fitted",
    "Answered",
    "Extracted",
    "Summarised",
    "Judged",
    "Learned",
    "Distilled",
    "Result",
    "Exchange",
]

Floats: TypeAlias = NDArray[np.floating]

Reason: TypeAlias = Literal["kind", "not-accepted", "round", "size", "repeated"]
REASONS: tuple[str, ...] = get_args(Reason)


class Phase(IntEnum):
    """Which half of a round it is."""

    A = 1
    B = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What the agreement and the local learner say of packets.

    classes: K.   width: values of a sample's features (hub), or of an embedding (proto); 0 where none travel.
    split: SHA-256 of what the extractor gives (hub), as hubs announce it.
    """

    classes: int
    width: int = 0
    split: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heading:
    """What of an offered message's header concerns the exchange.   size: of the body, bytes."""

    sender: PeerId
    round: int
    kind: PacketKind
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A body for each of `recipients`, in PeerId order."""

    recipients: tuple[PeerId, ...]
    kind: PacketKind
    round: int
    body: NDArray[np.uint8]


# --- what the learner is asked for -------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Teacher:
    """Soft labels to learn from: ids (n,), log_p (n, K), and the weight of the distillation against CE."""

    ids: Ids
    log_p: Floats
    alpha: float
    temperature: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Pull:
    """Embeddings are drawn to their class's centre: centres (K, h), is_known (K,), strength the lambda."""

    centres: NDArray[np.float32]
    is_known: NDArray[np.bool_]
    strength: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutual:
    """Two models teach each other: the proxy by (1 - alpha) CE + alpha KL, the private one so with beta."""

    alpha: float
    beta: float
    temperature: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """The round's fit on the own samples; answer Fitted.   is_frozen: the extractor stays as it is."""

    teacher: Teacher | None = None
    pull: Pull | None = None
    mutual: Mutual | None = None
    is_frozen: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Predict on the probe set; answer Answered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Extract:
    """Features and predictions of the own samples, at most `most` of them; answer Extracted.

    Without augmentation, dropout or gradients, and with batch statistics as they stand.
    """

    most: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Summarise:
    """Embeddings of the own training samples; answer Summarised."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """The hub model's cross-entropy on each sender's features, before it learns from them; answer Judged."""

    features: Mapping[PeerId, tuple[Features, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Learn:
    """Train the hub model on all samples of all senders, mixed; then predict every one; answer Learned.

    By CE + alpha T^2 KL against each sample's `z`.   only_answer: senders not to be learned from, whose
    samples are predicted all the same.
    """

    features: Mapping[PeerId, tuple[Features, ...]]
    only_answer: Mapping[PeerId, tuple[Features, ...]]
    alpha: float
    temperature: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Distill:
    """Train on the probe set's rows where `is_used`, towards `p` (n, K); answer Distilled."""

    p: Floats
    is_used: NDArray[np.bool_]
    alpha: float
    temperature: float
    epochs: int


Job: TypeAlias = Fit | Answer | Extract | Summarise | Judge | Learn | Distill


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """The fit is done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """logits: (n, K) on the probe set.   confidence: (m,) largest probabilities on own held-out samples."""

    logits: Floats
    confidence: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Extracted:
    """ids (n,), hidden (n, d) float32, logits (n, K), labels (n,), in any order of samples.

    is_held_out: (n,) bool, the samples that the edge does not fit on; by them it judges its teacher.
    """

    ids: Ids
    hidden: NDArray[np.float32]
    logits: Floats
    labels: NDArray[np.integer]
    is_held_out: NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Summarised:
    """embeddings: (n, h).   labels: (n,)."""

    embeddings: Floats
    labels: NDArray[np.integer]


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """Nats a sender."""

    losses: Mapping[PeerId, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """The hub model's logits, (n, K), for the samples of each sender in the order that they were given."""

    logits: Mapping[PeerId, Floats]


@dataclass(frozen=True, slots=True, kw_only=True)
class Distilled:
    """The distillation is done."""


Result: TypeAlias = Fitted | Answered | Extracted | Summarised | Judged | Learned | Distilled

_State = TypeVar("_State")


class Exchange(Protocol[_State]):
    """One kind of exchange; the module's docstring says how it is driven."""

    def start(self) -> _State:
        """The state before the first round."""

    def begin(
        self, state: _State, round_: int, *, hears: frozenset[PeerId], tells: frozenset[PeerId]
    ) -> _State:
        """Phase A of `round_`.   hears, tells: connected members, accepted from and shared with."""

    def jobs(self, state: _State) -> tuple[Job, ...]:
        """What the learner does now, one after another; none when this phase has no more."""

    def made(self, state: _State, result: Result) -> _State:
        """`result` is in.  A job that failed has none, and the phase goes on without it."""

    def offers(self, state: _State) -> tuple[Offer, ...]:
        """What may travel now."""

    def verdict(self, state: _State, heading: Heading) -> Reason | None:
        """Why a body is not to be fetched, or None."""

    def absorb(self, state: _State, heading: Heading, body: Body) -> _State:
        """`body` is in, under a heading that passed.  Raises RemoteError, and then `state` stands."""

    def awaited(self, state: _State) -> frozenset[PeerId]:
        """Whose packets this phase waits for, until the deadline."""

    def turn(self, state: _State) -> _State:
        """From phase A to phase B."""

    def peer_gone(self, state: _State, peer: PeerId) -> _State:
        """`peer` is disconnected or no longer trusted: nothing of it counts, nothing goes to it."""
