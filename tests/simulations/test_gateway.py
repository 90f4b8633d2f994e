"""A gateway in the attackers' hands: who is cut off, in both directions, and for how long."""

from __future__ import annotations

import pytest
import trio
from memory_transports import A, B, C, gate, running
from trio.testing import MockClock

from p2pfl.errors import UnreachableError
from p2pfl.net.memory import MemoryNetwork
from p2pfl.net.transport import Closed, Frame, Opened
from p2pfl.simulations.gateway import Gateway

VICTIM, HONEST, OWNER = A, B, C


async def test_a_shut_gateway_cuts_everybody_off_but_its_owners_and_lets_all_back(
    autojump_clock: MockClock,
) -> None:
    network = MemoryNetwork(seed=1)
    is_shut = False
    victim = Gateway(
        lambda gate: network.attach(VICTIM, gate),
        gate(),
        owners=frozenset([OWNER]),
        is_shut=lambda: is_shut,
    )
    honest, owner = network.attach(HONEST, gate()), network.attach(OWNER, gate())
    async with running(network, honest, owner) as nursery:
        await nursery.start(victim.run)
        await victim.dial(HONEST, honest.addresses())
        await owner.dial(VICTIM, victim.addresses())
        assert victim.peers() == {HONEST, OWNER}
        assert [await honest.incoming.receive(), await owner.incoming.receive()] == [Opened(peer=VICTIM)] * 2

        is_shut = True
        with pytest.raises(UnreachableError):
            await victim.send(HONEST, b"help")
        await trio.sleep(1)
        assert victim.peers() == {OWNER}
        assert isinstance(await honest.incoming.receive(), Closed)
        for call in (
            victim.dial(HONEST, honest.addresses()),
            victim.petition(HONEST, honest.addresses(), b"help"),
            honest.dial(VICTIM, victim.addresses()),
        ):
            with pytest.raises(UnreachableError):
                await call
        await victim.send(OWNER, b"are you there?")
        assert await owner.incoming.receive() == Frame(peer=VICTIM, data=b"are you there?")
        assert victim.peers() == {OWNER}

        is_shut = False
        await honest.dial(VICTIM, victim.addresses())
        assert victim.peers() == {HONEST, OWNER}
