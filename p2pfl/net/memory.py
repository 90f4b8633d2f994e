"""The Transport in memory: a seeded network for tests, under trio's real or mock clock.

What it promises and what it takes liberties with:

- A `LinkModel` decides the fate of every frame, offer and fetch, from (seed, sender, recipient, n) alone, n
  counting what that sender sent to that recipient; so one link's traffic never changes another's draws, and
  equal arrival times are resolved by (sender, order), not by which task ran first.
- Frames of a connection arrive in order unless the model reorders them.  A lost frame is simply gone: the
  connection stays, which is harsher than TCP and is what the layers above must survive.
- A lost fetch raises UnreachableError once its bytes would have come, like a connection that breaks; a fetch
  across a partition, like one from a stalled sender, waits for its deadline.
- Dials, petitions and refusals are not subject to loss; dials and petitions take two greatest latencies.
- `partition` is silent: what is sent vanishes, connections stay open, dials time out.  `cut` breaks one
  connection at once on both sides; `kill` breaks all of a peer's, as does the end of its `run`.
- A peer that hangs up is gone at once on its side; the other hears of it after what was sent before.
"""

from __future__ import annotations

import math
from collections import defaultdict

import numpy as np
import trio

from p2pfl.errors import LocalError, RefusedError, UnreachableError
from p2pfl.ids import PeerId, short
from p2pfl.net.limits import Limits
from p2pfl.net.link_model import PERFECT, LinkModel, message_rng
from p2pfl.net.memory_link import Arrival, End, Handle, Inbox, connect
from p2pfl.net.transport import (
    INLINE_BODY_BYTES,
    MAX_FRAME_BYTES,
    MAX_PETITION_BYTES,
    Frame,
    Gate,
    Incoming,
    Offer,
    Standing,
)

__all__ = ["MemoryNetwork", "MemoryTransport"]


class MemoryNetwork:
    """The wires between `MemoryTransport`s, and the ways to break them."""

    def __init__(self, *, seed: int, link: LinkModel = PERFECT, limits: Limits | None = None) -> None:
        """`link` is what every direction of every pair does, unless `set_link` says otherwise."""
        self.limits = limits or Limits()
        self._seed = seed
        self._link = link
        self._links: dict[tuple[PeerId, PeerId], LinkModel] = {}
        self._partitions: set[frozenset[PeerId]] = set()
        self._sent: defaultdict[tuple[PeerId, PeerId], int] = defaultdict(int)
        self._listeners: dict[str, MemoryTransport] = {}
        self._transports: dict[PeerId, MemoryTransport] = {}

    def attach(self, peer_id: PeerId, gate: Gate, addresses: tuple[str, ...] = ()) -> MemoryTransport:
        """A transport for `peer_id`, which listens at `addresses` (some of its own if empty) once it runs.

        Raises LocalError when the peer or an address is taken; both are free again after `kill`.
        """
        if peer_id in self._transports:
            raise LocalError(f"{short(peer_id)} is attached already; kill it first")
        where = addresses or (f"/ip4/127.0.0.1/tcp/{4001 + len(self._listeners)}",)
        suffix = f"/p2p/{peer_id}"
        full = tuple(address if address.endswith(suffix) else address + suffix for address in where)
        if taken := [address for address in full if _place(address) in self._listeners]:
            raise LocalError(f"something listens at {taken[0]} already")
        transport = MemoryTransport(self, peer_id, gate, full)
        self._transports[peer_id] = transport
        self._listeners |= {_place(address): transport for address in full}
        return transport

    def set_link(self, sender: PeerId, recipient: PeerId, link: LinkModel) -> None:
        """From now on, what `sender` sends to `recipient` meets `link`."""
        self._links[sender, recipient] = link

    def partition(self, a: PeerId, b: PeerId) -> None:
        """Nothing passes between the two, silently, until `heal`."""
        self._partitions.add(frozenset((a, b)))

    def heal(self, a: PeerId, b: PeerId) -> None:
        """Undo `partition`; what was sent meanwhile stays lost."""
        self._partitions.discard(frozenset((a, b)))

    def cut(self, a: PeerId, b: PeerId) -> None:
        """Break the connection between the two: `Closed` on both sides, nothing under way arrives."""
        transport = self._transports.get(a)
        if transport and (end := transport._inbox.ends.get(b)):
            end.tear("the connection broke")

    def kill(self, peer: PeerId) -> None:
        """End `peer` as SIGKILL would: its `run` returns, every connection breaks, its addresses are free.

        Its `incoming` ends (trio.EndOfChannel); `attach` starts it again.
        """
        if transport := self._transports.pop(peer, None):
            self._listeners = {
                place: other for place, other in self._listeners.items() if other is not transport
            }
            for end in list(transport._inbox.ends.values()):
                end.tear("the peer is gone")
            transport._stop()

    def _link_of(self, sender: PeerId, recipient: PeerId) -> LinkModel:
        return self._links.get((sender, recipient), self._link)

    def _is_partitioned(self, a: PeerId, b: PeerId) -> bool:
        return frozenset((a, b)) in self._partitions

    def _round_trip_s(self, a: PeerId, b: PeerId) -> float:
        return self._link_of(a, b).latency_s[1] + self._link_of(b, a).latency_s[1]

    def _arrivals(self, end: End, size_bytes: int) -> tuple[float, ...]:
        """When copies of something of `size_bytes` arrive that the other side sends to `end` now."""
        sender, recipient = end.peer, end.inbox.me
        rng = self._next_rng(sender, recipient)
        if self._is_partitioned(sender, recipient):
            return ()
        times, end.floor = self._link_of(sender, recipient).arrivals(
            rng, now=trio.current_time(), floor=end.floor, size_bytes=size_bytes
        )
        return times

    def _fetch_s(self, end: End, size_bytes: int) -> float | None:
        """Seconds until a body asked for now is at `end`; None when it is lost on the way."""
        link = self._link_of(end.peer, end.inbox.me)
        fates = link.fates(self._next_rng(end.peer, end.inbox.me))
        return 2 * fates[0] + link.transfer_s(size_bytes) if fates else None

    def _next_rng(self, sender: PeerId, recipient: PeerId) -> np.random.Generator:
        n = self._sent[sender, recipient]
        self._sent[sender, recipient] = n + 1
        return message_rng(self._seed, sender, recipient, n)


class MemoryTransport:
    """One peer's end of a `MemoryNetwork`; `net.transport.Transport` says what its methods promise.

    Made by `MemoryNetwork.attach`; does nothing before `run`.
    """

    def __init__(
        self, network: MemoryNetwork, peer_id: PeerId, gate: Gate, addresses: tuple[str, ...]
    ) -> None:
        self._network = network
        self._peer_id = peer_id
        self._gate = gate
        self._addresses = addresses
        self._limits = network.limits
        self._inbox = Inbox(peer_id)
        self._sending, self._incoming = trio.open_memory_channel[Incoming](self._limits.incoming_events)
        self._scope = trio.CancelScope()
        self._is_running = False
        self._in_lobby = 0
        self._transfers = 0

    @property
    def peer_id(self) -> PeerId:
        """Who this end is."""
        return self._peer_id

    @property
    def incoming(self) -> trio.MemoryReceiveChannel[Incoming]:
        """Everything that comes in; ends after `kill`."""
        return self._incoming

    def addresses(self) -> tuple[str, ...]:
        """Where others can dial this end, while it runs."""
        return self._addresses if self._is_running else ()

    def peers(self) -> frozenset[PeerId]:
        """The members connected now."""
        return frozenset(self._inbox.ends)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled or killed, once."""
        if self._is_running or self._scope.cancel_called:
            raise LocalError("a transport runs once; attach another")
        self._is_running = True
        task_status.started()
        try:
            with self._scope:
                await self._inbox.deliver(self._sending)
        finally:
            if self._network._transports.get(self._peer_id) is self:
                self._network.kill(self._peer_id)

    async def dial(self, peer: PeerId, addresses: tuple[str, ...]) -> None:
        """Connect; at once when connected already.

        Raises RefusedError when one of the two is a stranger to the other, and UnreachableError when it is
        banned: like a full lobby, that looks no different from a peer that is not there.
        """
        if peer in self._inbox.ends:
            await trio.lowlevel.checkpoint()
            return
        other = await self._reach(peer, addresses)
        if peer in self._inbox.ends:
            return
        if self._gate.standing(peer) is not Standing.MEMBER:
            raise RefusedError(f"{short(peer)} is not a member here", peer)
        match other._gate.standing(self._peer_id):
            case Standing.STRANGER:
                raise RefusedError(f"{short(peer)} does not take us for a member; join first", peer)
            case Standing.BANNED:
                raise UnreachableError(f"{short(peer)} cut the connection after the handshake", peer)
            case Standing.MEMBER:
                pass
        if stale := other._inbox.ends.get(self._peer_id):
            stale.shut("the peer connected anew")
        connect(self._inbox, other._inbox)

    async def petition(self, peer: PeerId, addresses: tuple[str, ...], frame: bytes) -> bytes:
        """Present `frame` in `peer`'s lobby.  Raises RefusedError when banned, UnreachableError when full."""
        if len(frame) > MAX_PETITION_BYTES:
            raise LocalError(f"a petition of {len(frame)} bytes, the limit is {MAX_PETITION_BYTES}")
        other = await self._reach(peer, addresses)
        if other._gate.standing(self._peer_id) is Standing.BANNED:
            raise RefusedError(f"{short(peer)} has banned us", peer)
        if other._in_lobby >= self._limits.lobby_places:
            raise UnreachableError(f"{short(peer)} has no place in its lobby; try again in a while", peer)
        other._in_lobby += 1
        try:
            with trio.move_on_after(self._limits.lobby_s):
                return await other._gate.petition(self._peer_id, frame)
        finally:
            other._in_lobby -= 1
        raise UnreachableError(
            f"{short(peer)} did not answer the petition within {self._limits.lobby_s:.0f} s", peer
        )

    async def send(self, peer: PeerId, frame: bytes) -> None:
        """Put `frame` on its way; waits while the backlog is full, and cuts the peer if it stays so."""
        end = self._end(peer, frame)
        await self._put(end, Frame(peer=self._peer_id, data=bytes(frame)), len(frame))

    async def offer(self, peer: PeerId, frame: bytes, body: memoryview) -> None:
        """Offer `body`; a small one is copied and rides along, a large one is kept, not copied."""
        end = self._end(peer, frame)
        flat = memoryview(body).cast("B")
        self._transfers += 1
        is_inline = flat.nbytes <= INLINE_BODY_BYTES and len(frame) + flat.nbytes <= MAX_FRAME_BYTES
        if not is_inline:
            end.offers[self._transfers] = flat
            if len(end.offers) > self._limits.offers_per_peer:
                del end.offers[min(end.offers)]
        handle = Handle(end=end.other, transfer=self._transfers, inline=bytes(flat) if is_inline else None)
        item = Offer(peer=self._peer_id, frame=bytes(frame), size=flat.nbytes, handle=handle)
        await self._put(end, item, len(frame) + (flat.nbytes if is_inline else 0))

    async def fetch(self, offer: Offer, into: memoryview, *, deadline: float) -> None:
        """Fill `into`: at once from an offer that brought its body, else over a connection still open.

        Raises RefusedError when the sender has the body no more, else UnreachableError.
        """
        handle: Handle = offer.handle
        flat = memoryview(into).cast("B")
        if flat.nbytes != offer.size:
            raise LocalError(f"a body of {offer.size} bytes into a buffer of {flat.nbytes}")
        await trio.lowlevel.checkpoint()
        end, peer = handle.end, offer.peer
        if handle.inline is not None:
            flat[:] = handle.inline
            return
        seconds = self._network._fetch_s(end, offer.size)
        lost_s = self._network._round_trip_s(self._peer_id, peer)
        arrival = trio.current_time() + (lost_s if seconds is None else seconds)
        with trio.move_on_at(min(arrival, deadline)):
            await end.broken.wait()
        if end.is_open and self._network._is_partitioned(self._peer_id, peer):
            arrival = math.inf
            with trio.move_on_at(deadline):
                await end.broken.wait()
        if not end.is_open:
            raise UnreachableError(f"the connection to {short(peer)} broke during a fetch", peer)
        if arrival > deadline:
            raise UnreachableError(f"{offer.size} bytes from {short(peer)} did not come in time", peer)
        if seconds is None:
            raise UnreachableError(f"a body from {short(peer)} was lost on the way", peer)
        body = end.other.offers.pop(handle.transfer, None)
        if body is None:
            raise RefusedError(f"{short(peer)} no longer offers that body", peer)
        flat[:] = body

    def refuse(self, offer: Offer) -> None:
        """Tell the sender that it may forget the body."""
        handle: Handle = offer.handle
        handle.end.other.offers.pop(handle.transfer, None)

    async def hang_up(self, peer: PeerId) -> None:
        """Close the connection: `Closed` here now, there after what was sent before."""
        await trio.lowlevel.checkpoint()
        if end := self._inbox.ends.get(peer):
            there = end.other
            end.shut("hung up")
            if there.is_open and not self._network._is_partitioned(self._peer_id, peer):
                latency_s = self._network._link_of(self._peer_id, peer).latency_s[1]
                time = max(there.floor, trio.current_time() + latency_s)
                there.inbox.schedule(time, Arrival(end=there, item=None))

    def _end(self, peer: PeerId, frame: bytes) -> End:
        if len(frame) > MAX_FRAME_BYTES:
            raise LocalError(f"a frame of {len(frame)} bytes, the limit is {MAX_FRAME_BYTES}")
        if end := self._inbox.ends.get(peer):
            return end
        raise UnreachableError(f"{short(peer)} is not connected", peer)

    async def _put(self, end: End, item: Frame | Offer, size_bytes: int) -> None:
        with trio.move_on_after(self._limits.send_s) as patience:
            await end.room(self._limits.backlog_frames)
        if patience.cancelled_caught:
            end.tear("the peer does not read")
        if not end.is_open:
            raise UnreachableError(f"the connection to {short(end.peer)} is gone", end.peer)
        there = end.other
        for copy, time in enumerate(self._network._arrivals(there, size_bytes)):
            if copy == 0:
                end.frame_sent()
            there.inbox.schedule(time, Arrival(end=there, item=item, frees_room=copy == 0))

    async def _reach(self, peer: PeerId, addresses: tuple[str, ...]) -> MemoryTransport:
        """The running transport of `peer`, after the time that a handshake takes."""
        if not self._is_running:
            raise UnreachableError("this end does not run", peer)
        if peer == self._peer_id:
            raise LocalError("a peer does not dial itself")
        await trio.lowlevel.checkpoint()
        network = self._network
        found = [network._listeners.get(_place(address)) for address in addresses]
        other = next((one for one in found if one and one._is_running and one._peer_id == peer), None)
        if other is None:
            raise UnreachableError(
                f"{short(peer)} does not answer at any of {len(addresses)} addresses", peer
            )
        if not network._is_partitioned(self._peer_id, peer):
            await trio.sleep(network._round_trip_s(self._peer_id, peer))
        if network._is_partitioned(self._peer_id, peer):
            await trio.sleep(self._limits.dial_s)
            raise UnreachableError(f"{short(peer)} did not answer within {self._limits.dial_s:.0f} s", peer)
        if not (self._is_running and other._is_running):
            raise UnreachableError(f"{short(peer)} went away", peer)
        return other

    def _stop(self) -> None:
        self._is_running = False
        self._scope.cancel()
        self._sending.close()


def _place(address: str) -> str:
    return address.partition("/p2p/")[0]
