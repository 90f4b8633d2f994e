"""Connections of the in-memory network: two ends, and the queue in which things wait for their time."""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from dataclasses import dataclass

import trio

from p2pfl.ids import PeerId
from p2pfl.net.transport import Closed, Incoming, Opened

__all__ = ["End", "Arrival", "Handle", "Inbox", "connect"]


class Inbox:
    """What is under way to one peer, and its ends of the connections that are open.

    Equal times are resolved by (sender, order of sending), so the order never depends on the scheduler.
    """

    def __init__(self, me: PeerId) -> None:
        self.me = me
        self.ends: dict[PeerId, End] = {}
        self._arrivals: list[tuple[float, PeerId, int, Arrival]] = []
        self._order: defaultdict[PeerId, int] = defaultdict(int)
        self._wake = trio.Event()

    def schedule(self, time: float, arrival: Arrival) -> None:
        """Let `arrival` come at `time`."""
        sender = arrival.end.peer
        self._order[sender] += 1
        heapq.heappush(self._arrivals, (time, sender, self._order[sender], arrival))
        self._wake.set()

    async def deliver(self, into: trio.MemorySendChannel[Incoming]) -> None:
        """Hand everything over when its time has come, for ever; a full channel stops it."""
        while True:
            self._wake = trio.Event()
            due = self._arrivals[0][0] if self._arrivals else math.inf
            if due > trio.current_time():
                with trio.move_on_at(due):
                    await self._wake.wait()
                continue
            arrival = heapq.heappop(self._arrivals)[3]
            if arrival.item is None:
                arrival.end.shut("the peer hung up")
            elif arrival.end.is_open or isinstance(arrival.item, Closed | Opened):
                await into.send(arrival.item)
            if arrival.frees_room:
                arrival.end.other.frame_left()


class End:
    """One side of a connection; `other` is the other one.  Made in pairs by `connect`."""

    other: End

    def __init__(self, inbox: Inbox, peer: PeerId) -> None:
        self.inbox = inbox
        self.peer = peer
        self.is_open = True
        self.broken = trio.Event()
        # When the latest arrival here is due that was not reordered; later ones do not overtake it.
        self.floor = trio.current_time()
        # Bodies offered by this side, by transfer, oldest first.
        self.offers: dict[int, memoryview] = {}
        self._in_flight = 0
        self._waiting = trio.lowlevel.ParkingLot()

    async def room(self, backlog: int) -> None:
        """Return once fewer than `backlog` frames of this side are under way, or this side is shut."""
        await trio.lowlevel.checkpoint()
        while self.is_open and self._in_flight >= backlog:
            await self._waiting.park()

    def frame_sent(self) -> None:
        """A frame of this side is under way."""
        self._in_flight += 1

    def frame_left(self) -> None:
        """A frame of this side was handed over, or came to nothing."""
        self._in_flight -= 1
        self._waiting.unpark()

    def shut(self, reason: str) -> None:
        """Close this side only: its offers are void, whoever waits on it goes on, `Closed` follows."""
        if self.is_open:
            self.is_open = False
            self.offers.clear()
            self.broken.set()
            self._waiting.unpark_all()
            del self.inbox.ends[self.peer]
            closed = Arrival(end=self, item=Closed(peer=self.peer, reason=reason))
            self.inbox.schedule(trio.current_time(), closed)

    def tear(self, reason: str) -> None:
        """Break the connection: close both sides now."""
        self.shut(reason)
        self.other.shut(reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """Something on its way to `end`; `item` is None when the other side hung up."""

    end: End
    item: Incoming | None
    frees_room: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Handle:
    """What an Offer needs to be fetched: the receiver's end, and the body when it rode along."""

    end: End
    transfer: int
    inline: bytes | None = None


def connect(ours: Inbox, theirs: Inbox) -> None:
    """A connection between two inboxes that have none; `Opened` follows on both sides."""
    here, there = End(ours, theirs.me), End(theirs, ours.me)
    here.other, there.other = there, here
    for end in (here, there):
        end.inbox.ends[end.peer] = end
        end.inbox.schedule(trio.current_time(), Arrival(end=end, item=Opened(peer=end.peer)))
