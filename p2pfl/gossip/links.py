"""Delivery of shares, exactly once: a durable outbox on one side, a watermark on the other.

Theory of operation.  An edge is a pair of incarnations.  The sender numbers its shares 1, 2, 3, ... and
keeps each in its outbox until the receiver has *settled* it: absorbed it into a committed state, or refused
it.  The receiver settles in order; `absorbed` is the watermark below which everything is settled, and
`refused` and `taken` name the exceptions: what goes back whole, and of what only a part was taken.
Acknowledgements are cumulative and go out after the commit that made them true, so a crash between any two
steps loses neither a share nor its answer: the next HELLO tells both sides where they stand.

Invariants, each checked from committed states alone:
  * a share is in flight iff it is in an outbox and above the receiver's watermark, or refused there; of one
    that was taken in part, the rest is;
  * sum of w over states and shares in flight = sum of (entered - written off) over living incarnations;
  * an outbox holds at most WINDOW shares per edge.

Two shares, not one, may be unresolved per edge.  A share of round t is acknowledged by the commit of round
t + 1, which in lockstep happens when the sender commits t + 1 itself; with one, every edge of a static graph
would rest every second round (docs/decisions.md has the figures).

Source: the outbox is the usual exactly-once construction; push-sum's need for it: Hadjicostis, Vaidya and
Dominguez-Garcia 2016 (running sums), from which this differs so that a receiver can refuse.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from p2pfl.events import Ack, Header, Hello
from p2pfl.gossip.capped import fraction_taken

__all__ = ["WINDOW", "Arrival", "Entry", "InEdge", "Links", "Meeting", "OutEdge", "Place", "Returned"]

# Unresolved shares per edge: the one just sent and the one whose acknowledgement is on its way.
WINDOW = 2
# Verdicts kept below the watermark; a sender holds at most WINDOW open ones, so twice that always suffices.
_VERDICTS = 2 * WINDOW
# Closed incarnations remembered of one neighbour; each costs its site a lost disk or a restored backup.
_RETIRED = 64


class Entry(msgspec.Struct, frozen=True):
    """One unresolved share: its header as first sent (a resend is the same bytes)."""

    header: Header

    @property
    def seq(self) -> int:
        """Its number on the edge."""
        return self.header.edge_seq

    @property
    def w(self) -> float:
        """Its weight."""
        return self.header.weights[0]


class OutEdge(msgspec.Struct):
    """What I sent to one incarnation of a neighbour.  `sent_w` is net of what was refused."""

    incarnation: int = 0
    base: int = 0
    sent: int = 0
    acked: int = 0
    sent_w: float = 0.0
    accepting: bool = True
    entries: list[Entry] = []
    # By how much less went out than came in, over incarnations whose books are closed: 0 or below.
    carried: float = 0.0
    # Incarnations whose books are closed: one that comes back is a restored backup.
    retired: list[int] = []


class InEdge(msgspec.Struct):
    """What I settled of one incarnation of a neighbour."""

    incarnation: int = 0
    absorbed: int = 0
    absorbed_w: float = 0.0
    refused: dict[int, str] = {}
    # Of which shares only a part was taken: the fraction, between 0 and 1.
    taken: dict[int, float] = {}


class Meeting(Enum):
    """What a HELLO says about an edge pair."""

    UP = "up"  # consistent: exchange may go on
    AGAIN = "again"  # they still speak to an earlier me: wait for the HELLO that answers mine
    THEY_ROLLED_BACK = "they rolled back"  # they will notice, and come back as a new incarnation
    RETIRED = "retired"  # an incarnation whose books are closed: it must begin anew
    I_ROLLED_BACK = "i rolled back"  # my disk is older than what they remember of me


class Place(Enum):
    """Where an offered share falls in the sequence."""

    NEW = "new"
    HAVE = "have"
    AHEAD = "window"


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """A share that waits for the next commit; `reason` is set when it will be refused.

    taken: the fraction that is merged, once it is settled.
    """

    header: Header
    body: NDArray[np.uint8] | None
    reason: str = ""
    taken: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Returned:
    """A share of which `fraction` was not taken, and is its sender's again."""

    header: Header
    fraction: float

    @property
    def seq(self) -> int:
        """Its number on the edge."""
        return self.header.edge_seq


class Links:
    """All edges of one peer in one run, by neighbour.

    `out`, `into`, `entered` and `written_off` are durable; arrivals are not: a sender sends them again.
    """

    def __init__(
        self,
        *,
        out: dict[str, OutEdge] | None = None,
        into: dict[str, InEdge] | None = None,
        entered: float = 0.0,
        written_off: float = 0.0,
    ) -> None:
        self.out = {} if out is None else out
        self.into = {} if into is None else into
        self.entered = entered
        self.written_off = written_off
        self._arrivals: dict[str, dict[int, Arrival]] = {}

    # --- where we stand ------------------------------------------------------------------------------

    def edge_to(self, peer: str) -> OutEdge:
        """The out-edge, made when first asked for."""
        return self.out.get(peer) or self.out.setdefault(peer, OutEdge())

    def edge_from(self, peer: str) -> InEdge:
        """The in-edge, made when first asked for."""
        return self.into.get(peer) or self.into.setdefault(peer, InEdge())

    def meet(
        self, peer: str, incarnation: int, hello: Hello, mine: int
    ) -> tuple[Meeting, list[Returned], bool]:
        """Compare a HELLO with this side.  Returns (verdict, what is to be taken back, pairing changed).

        incarnation: the neighbour's, from the HELLO's header.   mine: this peer's.
        """
        out, into = self.edge_to(peer), self.edge_from(peer)
        knows_me = hello.their_incarnation == mine
        changed = False
        if incarnation in out.retired:
            return Meeting.RETIRED, [], False
        if knows_me and hello.absorbed > out.sent:
            return Meeting.I_ROLLED_BACK, [], False
        if out.incarnation != incarnation:
            changed = out.incarnation != 0
            if not changed:
                out.incarnation, out.base, out.acked = incarnation, out.sent, out.sent
            else:
                self.write_off(peer, incarnation)
                out, into = self.edge_to(peer), self.edge_from(peer)
        elif (hello.absorbed < out.acked) if knows_me else (out.acked > out.base):
            return Meeting.THEY_ROLLED_BACK, [], False

        if into.incarnation != incarnation:
            if knows_me and hello.acked > hello.base:
                return Meeting.I_ROLLED_BACK, [], changed
            into.incarnation = incarnation
            into.absorbed = hello.base if knows_me else hello.sent
            into.absorbed_w, into.refused, into.taken = 0.0, {}, {}
        elif knows_me and hello.acked > into.absorbed:
            return Meeting.I_ROLLED_BACK, [], changed
        elif hello.sent < into.absorbed:
            return Meeting.THEY_ROLLED_BACK, [], changed
        elif not knows_me:
            into.absorbed = hello.sent

        out.accepting = hello.accepts
        if not knows_me:
            return (Meeting.UP if hello.their_incarnation == 0 else Meeting.AGAIN), [], changed
        return Meeting.UP, self._settle(out, hello.absorbed, hello.refused, hello.taken), changed

    def greet(self, peer: str) -> dict[str, Any]:
        """The edge fields of my HELLO to `peer`."""
        out, into = self.edge_to(peer), self.edge_from(peer)
        return {
            "their_incarnation": into.incarnation,
            "absorbed": into.absorbed,
            "refused": tuple(sorted(into.refused)),
            "taken": dict(into.taken),
            "sent": out.sent,
            "acked": out.acked,
            "base": out.base,
        }

    def is_open(self, peer: str) -> bool:
        """Whether there are books on an incarnation of `peer`."""
        return peer in self.out and self.out[peer].incarnation != 0

    def write_off(self, peer: str, incarnation: int = 0) -> float:
        """Close the books on the neighbour's present incarnation and open them for `incarnation`.

        What was sent and what was absorbed stay as scalars in `written_off`; pending entries and arrivals
        are dropped.  Returns the weight written off (negative when more came than went).
        """
        out, into = self.edge_to(peer), self.edge_from(peer)
        lost = out.sent_w - into.absorbed_w
        self.written_off += lost
        retired = [*out.retired, out.incarnation][-_RETIRED:] if out.incarnation else out.retired
        self.out[peer] = OutEdge(
            incarnation=incarnation,
            base=out.sent,
            sent=out.sent,
            acked=out.sent,
            carried=min(0.0, out.carried + lost),
            retired=retired,
        )
        self.into[peer] = InEdge()
        self.discard(peer)
        return lost

    # --- sending -------------------------------------------------------------------------------------

    def is_free(self, peer: str) -> bool:
        """Whether another share may be sent on the edge to `peer` now."""
        return len(self.edge_to(peer).entries) < WINDOW

    def push(self, peer: str, header: Header) -> None:
        """Record a share: `header.edge_seq` is the edge's next number, `header.weights[0]` its weight."""
        out = self.edge_to(peer)
        assert header.edge_seq == out.sent + 1
        assert len(out.entries) < WINDOW
        out.sent += 1
        out.sent_w += header.weights[0]
        out.entries = [*out.entries, Entry(header)]

    def acknowledged(self, peer: str, ack: Ack, mine: int) -> list[Returned]:
        """Apply an acknowledgement.  Returns what the caller takes back."""
        out = self.edge_to(peer)
        if ack.their_incarnation != mine or ack.absorbed > out.sent:
            return []
        if "not-accepted" in ack.refused.values():
            out.accepting = False
        return self._settle(out, ack.absorbed, ack.refused, ack.taken)

    def _settle(
        self, out: OutEdge, absorbed: int, refused: Container[int], taken: Mapping[int, float]
    ) -> list[Returned]:
        returned = [
            Returned(header=e.header, fraction=1.0 if e.seq in refused else 1.0 - taken[e.seq])
            for e in out.entries
            if e.seq <= absorbed and (e.seq in refused or e.seq in taken)
        ]
        out.entries = [entry for entry in out.entries if entry.seq > absorbed]
        out.acked = max(out.acked, absorbed)
        out.sent_w -= sum(back.fraction * back.header.weights[0] for back in returned)
        return returned

    def unresolved(self) -> Iterable[tuple[str, Entry]]:
        """Every share not yet settled, by neighbour and number."""
        return ((peer, entry) for peer in sorted(self.out) for entry in self.out[peer].entries)

    def in_flight_w(self) -> float:
        """The weight in my outbox."""
        return sum(entry.w for _, entry in self.unresolved())

    # --- receiving -----------------------------------------------------------------------------------

    def place(self, peer: str, seq: int) -> Place:
        """Where number `seq` from `peer` falls: wanted, already here, or further ahead than a window."""
        absorbed = self.edge_from(peer).absorbed
        if seq <= absorbed or seq in self._arrivals.get(peer, {}):
            return Place.HAVE
        return Place.NEW if seq <= absorbed + WINDOW else Place.AHEAD

    def arrive(self, peer: str, arrival: Arrival) -> None:
        """Hold a share, or the decision to refuse it, until the next commit."""
        self._arrivals.setdefault(peer, {}).setdefault(arrival.header.edge_seq, arrival)

    def senders(self) -> list[str]:
        """Those of whom something waits for the next commit, sorted."""
        return sorted(peer for peer, held in self._arrivals.items() if held)

    def held(self, peer: str, upto: Mapping[str, int] | None = None) -> list[Arrival]:
        """The shares of `peer` that will be merged, by number.   upto: as in `collect`."""
        arrivals, last = self._arrivals.get(peer, {}), _last(upto, peer)
        return [arrivals[seq] for seq in sorted(arrivals) if seq <= last and not arrivals[seq].reason]

    def refuse(self, peer: str, reason: str, upto: Mapping[str, int] | None = None) -> None:
        """Refuse, for `reason`, every share of `peer` that would be merged.   upto: as in `collect`."""
        for arrival in self.held(peer, upto):
            self._arrivals[peer][arrival.header.edge_seq] = replace(arrival, body=None, reason=reason)

    def has(self, peer: str, seq: int) -> bool:
        """Whether everything up to `seq` from `peer` is settled or held."""
        absorbed, held = self.edge_from(peer).absorbed, self._arrivals.get(peer, {})
        return seq <= absorbed or all(number in held for number in range(absorbed + 1, seq + 1))

    def room(self, peer: str, credit: float) -> float:
        """How much weight may still come from `peer` before more has come than went (gossip/capped.py).

        Of what is on its way to it, as much as one share, `credit`, counts as gone; and who began without any
        mass is lent a share by each neighbour, or it would never have any.
        """
        out = self.edge_to(peer)
        under_way = sum(entry.w for entry in out.entries)
        lent = credit if self.entered == 0 else 0.0
        gone = out.sent_w - under_way + min(under_way, credit)
        return gone + lent + out.carried - self.edge_from(peer).absorbed_w

    def reach(self) -> dict[str, int]:
        """The highest number that is held, of each of `senders`."""
        return {peer: max(held) for peer, held in self._arrivals.items() if held}

    def collect(
        self, credit: Mapping[str, float] | None = None, upto: Mapping[str, int] | None = None
    ) -> tuple[list[tuple[str, Arrival]], list[str]]:
        """Settle what can be, in (peer, seq) order.

        upto: an earlier `reach`; what came since waits.
        credit: the weight of one share to each neighbour, where `room` caps what comes; None takes all whole.
        Returns (arrivals settled, those with a reason refused and the others to be merged; peers whose
        watermark moved).  The caller commits, then acknowledges.
        """
        settled: list[tuple[str, Arrival]] = []
        moved: list[str] = []
        for peer in sorted(self._arrivals):
            held, edge = self._arrivals[peer], self.edge_from(peer)
            before, last = edge.absorbed, _last(upto, peer)
            while edge.absorbed < last and (arrival := held.pop(edge.absorbed + 1, None)) is not None:
                edge.absorbed += 1
                w = arrival.header.weights[0] if arrival.header.weights else 0.0
                if credit is not None and not arrival.reason:
                    one = credit.get(peer, 0.0)
                    taken = fraction_taken(w, self.room(peer, one), one)
                    arrival = replace(arrival, taken=taken, reason="" if taken else "capped")
                    if 0 < taken < 1:
                        edge.taken = {**edge.taken, edge.absorbed: taken}
                if arrival.reason:
                    edge.refused = {**edge.refused, edge.absorbed: arrival.reason}
                else:
                    edge.absorbed_w += arrival.taken * w
                settled.append((peer, arrival))
            if edge.absorbed > before:
                moved.append(peer)
                edge.refused = {s: r for s, r in edge.refused.items() if s > edge.absorbed - _VERDICTS}
                edge.taken = {s: f for s, f in edge.taken.items() if s > edge.absorbed - _VERDICTS}
        return settled, moved

    def ack(self, peer: str) -> Ack:
        """My acknowledgement to `peer`, as of the last commit."""
        edge = self.edge_from(peer)
        return Ack(
            their_incarnation=edge.incarnation,
            absorbed=edge.absorbed,
            refused=dict(edge.refused),
            taken=dict(edge.taken),
        )

    def held_bytes(self) -> int:
        """Bytes of bodies that wait for the next commit."""
        return sum(
            arrival.body.nbytes
            for held in self._arrivals.values()
            for arrival in held.values()
            if arrival.body is not None
        )

    def discard(self, peer: str) -> None:
        """Forget what `peer` sent on a connection that is gone; it will send it again."""
        self._arrivals.pop(peer, None)


def _last(upto: Mapping[str, int] | None, peer: str) -> float:
    return math.inf if upto is None else upto.get(peer, 0)
