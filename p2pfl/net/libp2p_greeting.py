"""Who greets whom: from an authenticated connection to a link that both sides agree on.

The dialler of a connection opens its control stream and says hello; the other side answers with its own.

- Both dial at once.  While its own hello is under way, the peer with the smaller PeerId (as text) answers
  "busy" to the other's; the larger one accepts, gives its own dial up, and names it in its answer as
  abandoned in case that hello is still travelling.  So the one that the smaller dialled stays, in any order.
- The old connection is half dead.  A peer says hello only when it has no link, so a hello on a second
  connection means that the first one is over for it: the newest wins, after the old one has been closed.  The
  boot id in the hello tells a restart from a redial.
"""

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import trio

from p2pfl.errors import RefusedError, RemoteError, UnreachableError
from p2pfl.ids import PeerId, short
from p2pfl.net import libp2p_wire as wire
from p2pfl.net.libp2p_host import Connection, Host
from p2pfl.net.libp2p_link import Link, PacketStream
from p2pfl.net.libp2p_wire import Hello, Tag
from p2pfl.net.limits import Limits

__all__ = ["Dial", "Greeter"]

_LINK_ID_BYTES = 16
_BUSY = "busy"


class Dial:
    """An attempt under way to reach one peer; `opened` when a link to it surfaced, by whatever way."""

    def __init__(self) -> None:
        self.link = secrets.token_bytes(_LINK_ID_BYTES)
        self.has_said_hello = False
        self.scope = trio.CancelScope()
        self.opened = trio.Event()
        self.ended = trio.Event()


class Greeter:
    """The dials under way and, for each peer, the link that greeted last."""

    def __init__(
        self, *, peer_id: PeerId, own_hello: Callable[[bytes, tuple[bytes, ...]], Hello], limits: Limits
    ) -> None:
        """own_hello: of a link's name and the names of abandoned dials."""
        self.dials: dict[PeerId, Dial] = {}
        self.newest: dict[PeerId, Link] = {}
        self._peer_id = peer_id
        self._own_hello = own_hello
        self._limits = limits

    @contextmanager
    def dialling(self, peer: PeerId) -> Iterator[Dial]:
        """A new dial, known to those who greet us meanwhile."""
        dial = self.dials[peer] = Dial()
        try:
            yield dial
        finally:
            del self.dials[peer]
            dial.ended.set()

    def retire(self, link: Link) -> None:
        """The link has ended, or never became one."""
        if self.newest.get(link.peer) is link:
            del self.newest[link.peer]

    async def call(self, host: Host, connection: Connection, peer: PeerId, dial: Dial) -> Link | None:
        """Say hello on a connection we dialled; None when the peer prefers the one it is dialling.

        Raises RefusedError, UnreachableError; RemoteError when the answer is no hello.
        """
        try:
            stream = await host.open_stream(connection, wire.CONTROL_PROTOCOL)
        except Exception as error:  # the library raises a dozen types
            raise UnreachableError(
                f"does not speak {wire.CONTROL_PROTOCOL} with us: {error}", peer
            ) from error
        packets = PacketStream(peer, stream)
        dial.has_said_hello = True
        await packets.send(wire.pack_hello(self._own_hello(dial.link, ())))
        tag, payload = await packets.receive()
        if tag is Tag.REFUSED:
            dial.has_said_hello = False
            if payload == _BUSY.encode():
                return None
            raise RefusedError(f"{short(peer)} refused us: {payload[:64].decode('ascii', 'replace')}", peer)
        hello = wire.unpack_hello(payload) if tag is Tag.HELLO else None
        if hello is None or hello.link != dial.link:
            raise RemoteError("answered a hello with something else", peer)
        link = self.newest[peer] = self._link(host, connection, peer, packets, hello)
        return link

    async def answer(
        self, host: Host, connection: Connection, peer: PeerId, packets: PacketStream
    ) -> Link | None:
        """Read the hello on a connection of theirs and answer it; None when ours or another one stays.

        Raises UnreachableError when the connection ends, RemoteError when what came is no hello.
        """
        with trio.move_on_after(self._limits.hello_s):
            tag, payload = await packets.receive()
            if tag is not Tag.HELLO:
                raise RemoteError(f"spoke {tag.name} before its hello", peer)
            hello = wire.unpack_hello(payload)
            newest, dial = self.newest.get(peer), self.dials.get(peer)
            if newest is not None and hello.link in newest.hello.abandoned:
                return None
            abandoned: tuple[bytes, ...] = ()
            if dial is not None:
                if dial.has_said_hello and self._peer_id < peer:
                    await packets.dismiss(_BUSY)
                    return None
                abandoned = (dial.link,) if dial.has_said_hello else ()
                dial.scope.cancel()
            link = self.newest[peer] = self._link(host, connection, peer, packets, hello)
            try:
                await packets.send(wire.pack_hello(self._own_hello(hello.link, abandoned)))
            except BaseException:
                self.retire(link)
                raise
            return link
        return None

    def _link(
        self, host: Host, connection: Connection, peer: PeerId, packets: PacketStream, hello: Hello
    ) -> Link:
        return Link(
            peer=peer,
            connection=connection,
            remote_host=host.remote_host(connection),
            packets=packets,
            hello=hello,
            limits=self._limits,
        )
