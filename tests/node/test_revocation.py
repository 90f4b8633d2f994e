"""Whom a quorum has revoked, and who sends again what was sent before: nothing of theirs is read."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio
from memory_nodes import Sites, agreement, keys

from p2pfl.errors import P2PFLError, RefusedError
from p2pfl.net.memory import MemoryTransport
from p2pfl.net.transport import Gate, Standing
from p2pfl.node.desk import Desk
from p2pfl.node.node import inline

EVE = 3
HONEST = (0, 1, 2)


def hostile(sites: Sites, i: int) -> MemoryTransport:
    """A transport with site i's key and none of its manners; its own process is to be gone."""

    async def no_petition(peer: object, frame: bytes) -> bytes:
        return b""

    gate = Gate(standing=lambda _: Standing.MEMBER, petition=no_petition)
    return sites.network.attach(sites.name(i), gate, (sites.address(i),))


class Tape:
    """Every frame that a site's node sends to another, with its body, in order."""

    def __init__(self, sites: Sites, i: int, to: int) -> None:
        self.frames: list[tuple[bytes, bytes | None]] = []
        transport = sites.nodes[i].transport
        send, offer, name = transport.send, transport.offer, sites.name(to)

        async def sent(peer: Any, frame: bytes) -> None:
            if peer == name:
                self.frames.append((frame, None))
            await send(peer, frame)

        async def offered(peer: Any, frame: bytes, body: memoryview) -> None:
            if peer == name:
                self.frames.append((frame, bytes(body)))
            await offer(peer, frame, body)

        transport.send, transport.offer = sent, offered  # type: ignore[method-assign]

    async def replay(self, transport: MemoryTransport, to: Any) -> int:
        """Send it all again; how many frames went out before the other side had enough."""
        for number, (frame, body) in enumerate(self.frames):
            try:
                if body is None:
                    await transport.send(to, frame)
                else:
                    await transport.offer(to, frame, memoryview(body))
            except P2PFLError:
                return number
        return len(self.frames)


@pytest.mark.slow
async def test_within_one_round_of_the_last_vote_nobody_reads_a_byte_of_a_revoked_member(
    tmp_path: Path, autojump_clock: object
) -> None:
    sites = Sites(tmp_path, agreement(keys(4), run={"rounds": 12}), keys(4))
    async with trio.open_nursery() as nursery:
        for i in range(4):
            await nursery.start(sites.live, i)
        tapes = {i: Tape(sites, EVE, to=i) for i in HONEST}
        await sites.until(lambda: len(sites.rounds(0)) == 4)
        for i in HONEST:
            desk = Desk(sites.nodes[i], name=f"site{i}", run_sync=inline)
            await desk.command("ban", {"peer": sites.name(EVE), "reason": "it lies"})
        voted_in = max(len(sites.rounds(i)) for i in HONEST)
        read = {i: Counter(sites.fetched[i])[sites.name(EVE)] for i in HONEST}
        await sites.until(lambda: max(len(sites.rounds(i)) for i in HONEST) == voted_in + 1)
        assert not any(sites.name(EVE) in sites.nodes[i].transport.peers() for i in HONEST)
        # Its process does not take no for an answer.
        if EVE not in sites.outcomes:
            sites.kill(EVE)
        await trio.sleep(0.5)
        eve = hostile(sites, EVE)
        await nursery.start(eve.run)
        for i in HONEST:
            assert len(tapes[i].frames) > 4
            with pytest.raises(RefusedError):
                await eve.dial(sites.name(i), (sites.address(i),))
            assert await tapes[i].replay(eve, sites.name(i)) == 0
        await sites.until(lambda: set(HONEST) <= set(sites.outcomes))
        sites.network.kill(sites.name(EVE))
    assert {i: Counter(sites.fetched[i])[sites.name(EVE)] for i in HONEST} == read
    assert {sites.outcomes[i].reason for i in HONEST} == {"done"}
    assert all(len(sites.rounds(i)) == 14 for i in HONEST)
    views = [sites.nodes[i].view for i in HONEST]
    expected = sum(view.entered - view.written_off for view in views)
    assert sum(view.w for view in views) == pytest.approx(expected, rel=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("is_restarted", [False, True])
async def test_what_was_sent_before_is_not_read_again_nor_after_a_restart(
    tmp_path: Path, autojump_clock: object, is_restarted: bool
) -> None:
    spec = agreement(keys(3), run={"rounds": 30, "deadline_s": 4.0, "quorum": 0.0})
    sites = Sites(tmp_path, spec, keys(3))
    victim, sender = 0, 1
    async with trio.open_nursery() as nursery:
        # The victim's dialler leaves the replayer alone: who connects is the replayer.
        await nursery.start(partial(sites.live, victim, bootstrap=[2]))
        for i in (sender, 2):
            await nursery.start(sites.live, i)
        tape = Tape(sites, sender, to=victim)
        await sites.until(lambda: len(sites.rounds(victim)) == 6)
        sites.kill(sender)
        if is_restarted:
            sites.kill(victim)
        await trio.sleep(0.5)
        if is_restarted:
            await nursery.start(partial(sites.live, victim, bootstrap=[2]))
        state = sites.nodes[victim].peer.state
        await sites.until(lambda: state.links.edge_from(sites.name(sender)).incarnation != 0)
        edge = state.links.edge_from(sites.name(sender))
        absorbed, read = edge.absorbed, Counter(sites.fetched[victim])[sites.name(sender)]
        assert read >= absorbed >= 4
        replayer = hostile(sites, sender)
        await nursery.start(replayer.run)
        await replayer.dial(sites.name(victim), (sites.address(victim),))
        shares = sum(body is not None for _, body in tape.frames)
        assert shares >= absorbed
        assert await tape.replay(replayer, sites.name(victim)) == len(tape.frames)
        await trio.sleep(3.0)
        after = state.links.edge_from(sites.name(sender))
        assert (after.incarnation, after.absorbed) == (edge.incarnation, absorbed)
        assert Counter(sites.fetched[victim])[sites.name(sender)] == read
        sites.network.kill(sites.name(sender))
        await nursery.start(sites.live, sender)
        await sites.until(lambda: len(sites.outcomes) == 3)
    assert {outcome.reason for outcome in sites.outcomes.values()} == {"done"}
    assert sites.mass().expected == 3
    assert sites.mass().error < 1e-12
    assert np.isfinite(sites.nodes[victim].peer.model()).all()
