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

from dataclasses import dataclass
from enum import IntEnum
from typing import Literal, Protocol, TypeAlias, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from p2pfl.ids import PeerId
from p2pfl.knowledge.bodies import Body, encode
from p2pfl.knowledge.packets import Packet, PacketKind
from p2pfl.work import Job, Result

__all__ = ["Phase", "Heading", "Offer", "Reason", "REASONS", "Exchange"]

Reason: TypeAlias = Literal["kind", "not-accepted", "round", "size", "repeated"]
REASONS: tuple[str, ...] = get_args(Reason)


class Phase(IntEnum):
    """Which half of a round it is."""

    A = 1
    B = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Heading:
    """What of an offered message's header concerns the exchange.   size: of the body, bytes."""

    sender: PeerId
    round: int
    kind: PacketKind
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A packet for each of `recipients`, in PeerId order."""

    recipients: tuple[PeerId, ...]
    kind: PacketKind
    round: int
    packet: Packet

    @property
    def body(self) -> NDArray[np.uint8]:
        """The packet's bytes, made anew each time: offers are looked at more often than sent."""
        return encode(self.packet)


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
