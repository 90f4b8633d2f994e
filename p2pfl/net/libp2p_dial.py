"""Dialling a peer: the first of its addresses that answers."""

from functools import partial

import trio
from multiaddr import Multiaddr

from p2pfl.errors import UnreachableError
from p2pfl.ids import PeerId
from p2pfl.net.libp2p_addresses import dialable
from p2pfl.net.libp2p_host import Connection, Host

__all__ = ["first_connection"]

# Twice the head start of RFC 8305 (250 ms): on a LAN the first address answers in 10 ms and stays alone.
_STAGGER_S = 0.5


async def first_connection(
    host: Host, peer: PeerId, addresses: tuple[str, ...], *, within_s: float
) -> Connection:
    """A connection to `peer`: addresses are tried in order, each with half a second's start on the next.

    Raises UnreachableError with what became of each.
    """
    candidates = dialable(peer, addresses)
    if not candidates:
        raise UnreachableError(f"no address to dial among {list(addresses[:4])}", peer)
    reasons: list[str] = []
    winners: list[Connection] = []

    async def attempt(address: Multiaddr, over: trio.Event, nursery: trio.Nursery) -> None:
        try:
            connection = await host.dial(peer, address)
        except Exception as error:  # the library's own, OSError, and what a hostile answer makes it raise
            reasons.append(f"{address}: {error.__cause__ or error}")
            over.set()
            return
        if winners:
            await host.close(connection)
        winners.append(connection)
        nursery.cancel_scope.cancel()

    try:
        async with trio.open_nursery() as nursery:
            nursery.cancel_scope.deadline = trio.current_time() + within_s
            for address in candidates:
                over = trio.Event()
                nursery.start_soon(partial(attempt, address, over, nursery))
                with trio.move_on_after(_STAGGER_S):
                    await over.wait()
    except BaseException:
        if winners:
            await host.close(winners[0])
        raise
    if winners:
        return winners[0]
    raise UnreachableError("; ".join(reasons) or f"no answer within {within_s:g} s", peer)
