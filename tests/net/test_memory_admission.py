"""Who gets in on the in-memory network: members, strangers with one petition, and the banned, who do not."""

import pytest
import trio
from memory_transports import A, B, gate, running, taken
from trio.testing import MockClock

from p2pfl.errors import LocalError, RefusedError, UnreachableError
from p2pfl.ids import PeerId, peer_id_of
from p2pfl.net.link_model import LinkModel
from p2pfl.net.memory import MemoryNetwork, MemoryTransport
from p2pfl.net.transport import (
    MAX_PETITION_BYTES,
    Standing,
)


@pytest.mark.parametrize(
    ("standing", "seen"), [(Standing.STRANGER, RefusedError), (Standing.BANNED, UnreachableError)]
)
async def test_who_is_not_a_member_is_not_connected_whichever_side_says_so(
    standing: Standing, seen: type[Exception], autojump_clock: MockClock
) -> None:
    network = MemoryNetwork(seed=1)
    a, b = network.attach(A, gate()), network.attach(B, gate(standing))
    async with running(network, a, b):
        with pytest.raises(seen):
            await a.dial(B, b.addresses())
        with pytest.raises(RefusedError):
            await b.dial(A, a.addresses())
        assert await taken(a) == await taken(b) == []


async def test_a_stranger_may_petition_and_gets_one_answer(autojump_clock: MockClock) -> None:
    network = MemoryNetwork(seed=1, link=LinkModel(latency_s=(0.2, 0.2)))
    a, b = network.attach(A, gate()), network.attach(B, gate(Standing.STRANGER))
    async with running(network, a, b):
        assert await a.petition(B, b.addresses(), b"ticket") == b"hello ticket"
        assert a.peers() == b.peers() == frozenset()
        with pytest.raises(LocalError, match="4096"):
            await a.petition(B, b.addresses(), bytes(MAX_PETITION_BYTES + 1))


async def test_the_banned_are_not_heard(autojump_clock: MockClock) -> None:
    network = MemoryNetwork(seed=1)
    a, b = network.attach(A, gate()), network.attach(B, gate(Standing.BANNED))
    async with running(network, a, b):
        with pytest.raises(RefusedError, match="banned"):
            await a.petition(B, b.addresses(), b"ticket")


async def test_the_lobby_has_eight_places_for_five_seconds(autojump_clock: MockClock) -> None:
    async def slow(peer: PeerId, frame: bytes) -> bytes:
        await trio.sleep(3600)
        return b""

    network = MemoryNetwork(seed=1)
    b = network.attach(B, gate(Standing.STRANGER, slow))
    strangers = [network.attach(peer_id_of(bytes([n]) * 32), gate()) for n in range(10, 19)]
    outcomes: list[str] = []

    async def ask(stranger: MemoryTransport) -> None:
        try:
            await stranger.petition(B, b.addresses(), b"")
        except UnreachableError as error:
            outcomes.append(str(error))

    async with running(network, b, *strangers):
        start = trio.current_time()
        async with trio.open_nursery() as nursery:
            for stranger in strangers:
                nursery.start_soon(ask, stranger)
        places = ["no place in its lobby" in text for text in outcomes]
        assert places == [True] + [False] * 8
        assert trio.current_time() - start == pytest.approx(5.0)
