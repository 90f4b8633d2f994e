"""What a peer knows of the others right now: who is connected, where they stand, who is not awaited.

Nothing here survives a restart but `head`; HELLO and the next statement bring it back.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from p2pfl.events import Header
from p2pfl.ids import PeerId
from p2pfl.trust.audit import Head

__all__ = ["Neighbour", "Neighbours"]

# A neighbour in step leads by at most two rounds (the window of gossip/links.py); beyond that we were left
# behind, and go on from where the others are.
SKIP_AFTER_ROUNDS = 3


@dataclass(slots=True, kw_only=True)
class Neighbour:
    """One other member.

    `up`: its HELLO and mine agree on our edges.  `late`: it missed a deadline and has not spoken since.
    `greeting`: boot session and number of its last HELLO; an earlier one that comes late says nothing new.
    `round` is the first it has not committed, `sent` the last share it announced to us, `state` its latest
    model where models travel as states.
    """

    connected: bool = False
    up: bool = False
    met: bool = False
    late: bool = False
    begun: bool = False
    counted: bool = False
    over: bool = False
    incarnation: int = 0
    greeting: tuple[int, int] = (0, 0)
    round: int = 0
    sent: int = 0
    seen_at: float = 0.0
    state: tuple[int, NDArray[np.uint8]] | None = None
    # Its header, and the last model of its that was refused, and why: for the audit log.
    state_header: Header | None = None
    refusal: tuple[Header, str] | None = None
    # The edges it published, and those of ours that it was told on this connection; see edges.py.
    edges: str = ""
    edges_told: str = ""
    head: Head | None = None
    # The share it offered last, to be held against what it states to everyone.
    offer: Header | None = None
    fetching: dict[tuple[int, int], Header] = field(default_factory=dict)


class Neighbours:
    """Everyone this peer has heard of."""

    def __init__(self) -> None:
        self._all: dict[PeerId, Neighbour] = {}
        self._sorted: tuple[tuple[PeerId, Neighbour], ...] = ()

    def __getitem__(self, peer: PeerId) -> Neighbour:
        """What is known of `peer`; an empty record when nothing is."""
        one = self._all.get(peer)
        if one is None:
            one = self._all[peer] = Neighbour()
        return one

    def items(self) -> tuple[tuple[PeerId, Neighbour], ...]:
        """All of them, by PeerId."""
        # Asked several times an event; nobody is ever forgotten.
        if len(self._sorted) != len(self._all):
            self._sorted = tuple(sorted(self._all.items()))
        return self._sorted

    def up(self) -> list[PeerId]:
        """Those with whom exchange may go on, by PeerId."""
        return [peer for peer, one in self.items() if one.up]

    def connected(self) -> list[PeerId]:
        """Those with an open connection, by PeerId."""
        return [peer for peer, one in self.items() if one.connected]

    def lost(self, peer: PeerId) -> None:
        """Its connection is gone."""
        one = self[peer]
        one.connected = one.up = False
        one.edges_told = ""
        one.fetching.clear()

    def heard(self, peer: PeerId, round_: int, now: float) -> None:
        """It spoke: it is not late any more."""
        one = self[peer]
        one.late = False
        one.seen_at = now
        if round_ > one.round:
            one.round = round_

    def is_awaited(self, peer: PeerId, *, patiently: bool = False) -> bool:
        """Whether a round waits for it: connected, or not yet met since we started; and not late.

        patiently: a late one that is connected is waited for all the same, up to the deadline, because the
        round is for nothing but mixing: without it, such rounds would pass in no time on a slow network.
        """
        one = self[peer]
        if one.over:
            return False
        return (one.up and (patiently or not one.late)) or not (one.met or one.late)

    def round_of_others(self, voices: int) -> int:
        """The round in which those that are up wait for each other; 0 when fewer than `voices` are.


        It is the earliest round within a stride of the lower median.  A median, so that a single peer cannot
        send the others to the end of the run.  The earliest, because who comes back ahead of a neighbour
        waits for it while it waits, in turn, for the round that was passed over, both until the deadline.
        """
        rounds = [one.round for _, one in self.items() if one.up and one.begun]
        if len(rounds) < max(1, voices):
            return 0
        middle = statistics.median_low(rounds)
        return min(number for number in rounds if number >= middle - SKIP_AFTER_ROUNDS)

    def next_round(self, mine: int, voices: int) -> int:
        """The round to go on with after committing `mine`: the next, or the others' when left behind."""
        others = self.round_of_others(voices)
        return others if others > mine + 1 + SKIP_AFTER_ROUNDS else mine + 1

    def fetching_bytes(self) -> int:
        """Bytes asked for and not yet here."""
        return sum(header.size for _, one in self.items() for header in one.fetching.values())
