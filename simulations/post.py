"""What carries messages between simulated machines: offers first, bodies when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from p2pfl.errors import RemoteError
from p2pfl.events import Event, Faulted, Header, Kind, Message, Offered, Received
from p2pfl.ids import PeerId
from p2pfl.net import messages
from p2pfl.trust.envelope import signer_of, verify_signed

from .machine import Machine
from .network import Network
from .wire_size import frame_bytes

__all__ = ["Hear", "Post"]

# Seconds after which a fetch without an answer has failed.
_FETCH_TIMEOUT_S = 10.0


class Hear(Protocol):
    """Tells a machine's peer an event, unless its life or the connection to `other` is over."""

    def __call__(self, machine: Machine, life: int, event: Event, session: int, other: int) -> None:
        """See the class."""
        ...


class Post:
    """The mail of one world."""

    def __init__(
        self,
        machines: Sequence[Machine],
        network: Network,
        *,
        now: Callable[[], float],
        at: Callable[[float, int, Callable[[], None]], None],
        hear: Hear,
        crypto: bool,
        inline_bytes: int,
    ) -> None:
        """crypto: seal and open every message with real keys.   inline_bytes: bodies up to this size ride in
        their offer.   now, at, hear: the world's clock, its queue, and how it tells a peer something.
        """
        self._machines, self._network = machines, network
        self._now, self._at, self._hear = now, at, hear
        self._crypto, self._inline_bytes = crypto, inline_bytes

    def send(self, machine: Machine, j: int, message: Message) -> None:
        """Carry `message` from `machine` to machine `j`; of a vector only the header, as an offer."""
        i = machine.index
        session = self._network.session(i, j)
        if not session:
            return
        header, body = message.header, message.body
        inline = False
        if isinstance(body, np.ndarray):
            inline = header.size <= self._inline_bytes
            if header.kind is not Kind.SHARE:
                # Of what the latest replaces only the last two may still be asked for.
                machine.offers.pop((j, header.kind, header.edge_seq - 2), None)
            machine.offers[(j, header.kind, header.edge_seq)] = body
        frame = messages.seal(message, signer_of(machine.identity)) if self._crypto else b""
        size = len(frame) or frame_bytes(message)
        machine.bytes_sent += size + (header.size if inline else 0)
        other = self._machines[j]
        times = self._network.arrivals(i, j, self._now(), size)
        if not times:
            return
        event = _opened(machine.name, frame) if frame else _heard(machine.name, message)
        for time in times:
            self._at(time, j, partial(self._hear, other, other.life, event, session, i))

    def fetch(self, machine: Machine, j: int, header: Header) -> None:
        """Bring the body under `header` from machine `j`, or the news that it did not come."""
        i, session = machine.index, self._network.session(machine.index, j)
        if not session:
            return
        asked = (
            (self._now(),)
            if header.size <= self._inline_bytes
            else self._network.arrivals(i, j, self._now(), header.size // 1024)
        )
        if asked:
            self._at(asked[0], j, partial(self._serve, self._machines[j], i, session, header))
        else:
            self._fail(machine, j, session, header)

    def _serve(self, machine: Machine, i: int, session: int, header: Header) -> None:
        """Answer machine `i`, which asked for the body under `header`."""
        j, asker = machine.index, self._machines[i]
        if self._network.session(i, j) != session:
            return
        body = machine.offers.get((i, header.kind, header.edge_seq))
        if body is None or body.nbytes != header.size:
            self._fail(asker, j, session, header)
            return
        if header.size <= self._inline_bytes:
            times: tuple[float, ...] = (self._now(),)
        else:
            machine.bytes_sent += header.size
            times = self._network.arrivals(j, i, self._now(), header.size)
        event = Received(peer=machine.name, message=Message(header=header, body=_read_only(body)))
        for time in times:
            self._at(time, i, partial(self._hear, asker, asker.life, event, session, j))
        if not times:
            self._fail(asker, j, session, header)

    def _fail(self, machine: Machine, j: int, session: int, header: Header) -> None:
        event = Faulted(peer=self._machines[j].name, reason="timeout", header=header)
        self._at(
            self._now() + _FETCH_TIMEOUT_S,
            machine.index,
            partial(self._hear, machine, machine.life, event, session, j),
        )


def _heard(name: PeerId, message: Message) -> Event:
    """What a message from the peer `name` is to its receiver."""
    if isinstance(message.body, np.ndarray):
        return Offered(peer=name, header=message.header)
    return Received(peer=name, message=message)


def _opened(name: PeerId, frame: bytes) -> Event:
    """What a sealed frame from the peer `name` is to its receiver."""
    try:
        header, body = messages.open_frame(frame, verify_signed)
        if header.kind in messages.VECTOR_KINDS:
            return Offered(peer=name, header=header)
        message = Message(header=header, body=messages.decode_body(header, body))
        return Received(peer=name, message=message, frame=frame if header.kind is Kind.STATEMENT else b"")
    except RemoteError as error:
        return Faulted(peer=name, reason=str(error))


def _read_only(body: NDArray[np.uint8]) -> NDArray[np.uint8]:
    view = body.view()
    view.flags.writeable = False
    return view
