"""A member whose software is not ours: what it sends is a fault of its own, and never ours."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import trio
from memory_nodes import WALL, Sites, agreement, keys

from p2pfl.errors import UnreachableError
from p2pfl.events import Body, Header, Kind, Message, Notice, Statement
from p2pfl.ids import RunId
from p2pfl.net import messages
from p2pfl.net.memory import MemoryTransport
from p2pfl.net.transport import Gate, Standing
from p2pfl.run import run_id
from p2pfl.trust.envelope import signer_of

# The hostile member's place among the keys.
EVE = 3


@asynccontextmanager
async def beside_eve(tmp_path: Path) -> AsyncIterator[tuple[Sites, MemoryTransport]]:
    """Three sites in a run, and Eve connected to the first; in the end the three must have done their run."""
    spec = agreement(keys(4), run={"members_at_start": 3, "rounds": 3, "deadline_s": 3.0})
    sites = Sites(tmp_path, spec, keys(4))

    async def no_petition(peer: object, frame: bytes) -> bytes:
        return b""

    gate = Gate(standing=lambda _: Standing.MEMBER, petition=no_petition)
    eve = sites.network.attach(sites.name(EVE), gate, (sites.address(EVE),))
    with trio.fail_after(1000):
        async with trio.open_nursery() as nursery:
            await nursery.start(eve.run)
            for i in range(3):
                await nursery.start(partial(sites.live, i, bootstrap=[j for j in range(3) if j != i]))
            await sites.until(lambda: bool(sites.said(0, "run began")))
            await eve.dial(sites.name(0), (sites.address(0),))
            yield sites, eve
            await sites.until(lambda: len(sites.outcomes) == 3)
            nursery.cancel_scope.cancel()
    assert {outcome.reason for outcome in sites.outcomes.values()} == {"done"}
    for i in range(3):
        assert max(row["seconds"] for row in sites.rounds(i)) <= spec.run.deadline_s
    assert sum(node.view.w for node in sites.nodes.values()) == pytest.approx(3, rel=1e-12)


def header(sites: Sites, kind: Kind, **changed: object) -> Header:
    fields: dict[str, object] = {
        "run": run_id(sites.spec),
        "sender": sites.name(EVE),
        "recipient": sites.name(0),
        "incarnation": 5,
        "boot_session": 6,
        "kind": kind,
        "round": 0,
        "issued_at": WALL,
    }
    return Header(**(fields | changed))  # type: ignore[arg-type]


def sealed(sites: Sites, head: Header, body: Body, signed_by: int = EVE) -> bytes:
    return messages.seal(Message(header=head, body=body), signer_of(sites.identities[signed_by]))


def share(sites: Sites, size: int = 12, **changed: object) -> tuple[bytes, bytes]:
    """A frame that offers a share, and its body."""
    body = np.zeros(size, np.uint8)
    digest = hashlib.sha256(body.tobytes()).digest()
    head = header(
        sites,
        Kind.SHARE,
        edge_seq=1,
        schema_hash=bytes(32),
        size=size,
        raw_size=size,
        digest=digest,
        weights=(1.0,),
        **changed,
    )
    return sealed(sites, head, body), body.tobytes()


def faults(sites: Sites) -> list[str]:
    return [str(fields["fault"]) for fields in sites.said(0, "fault of a peer")]


async def test_frames_that_are_none_are_faults(tmp_path: Path, autojump_clock: object) -> None:
    async with beside_eve(tmp_path) as (sites, eve):
        good = sealed(sites, header(sites, Kind.NOTICE), Notice(code="accepted"))
        frames = [
            b"",
            bytes(500),
            good[:-1],
            good[:20] + b"\x00" + good[21:],
            sealed(sites, header(sites, Kind.NOTICE), Notice(code="accepted"), signed_by=1),
        ]
        for n, frame in enumerate(frames, 1):
            await eve.send(sites.name(0), frame)
            await sites.until(lambda n=n: len(faults(sites)) == n)  # type: ignore[misc]


async def test_what_others_signed_is_not_passed_on(tmp_path: Path, autojump_clock: object) -> None:
    async with beside_eve(tmp_path) as (sites, eve):
        head = header(sites, Kind.STATEMENT, sender=sites.name(1))
        await eve.send(sites.name(0), sealed(sites, head, Statement(content=b"x"), signed_by=1))
        await sites.until(lambda: len(faults(sites)) == 1)
        assert "somebody else" in faults(sites)[0]
        head = header(sites, Kind.STATEMENT, recipient=sites.name(1))
        await eve.send(sites.name(0), sealed(sites, head, Statement(content=b"x")))
        await sites.until(lambda: faults(sites)[1:] == ["misaddressed"])


async def test_a_message_of_another_run_is_a_fault(tmp_path: Path, autojump_clock: object) -> None:
    async with beside_eve(tmp_path) as (sites, eve):
        head = header(sites, Kind.STATEMENT, run=RunId("ab" * 32))
        await eve.send(sites.name(0), sealed(sites, head, Statement(content=b"x")))
        await sites.until(lambda: faults(sites) == ["other-run"])
        frame, body = share(sites, run=RunId("ab" * 32))
        await eve.offer(sites.name(0), frame, memoryview(body))
        await trio.sleep(1)
        assert sites.name(EVE) not in sites.fetched[0]


async def test_bodies_that_were_not_asked_for_are_not_read(tmp_path: Path, autojump_clock: object) -> None:
    async with beside_eve(tmp_path) as (sites, eve):
        frame, body = share(sites)
        # Well signed, but before any HELLO.
        await eve.offer(sites.name(0), frame, memoryview(body))
        # Smaller than its header says; no body at all; a body where none belongs.
        await eve.offer(sites.name(0), frame, memoryview(body[:-1]))
        await eve.send(sites.name(0), frame)
        notice = sealed(sites, header(sites, Kind.NOTICE), Notice(code="accepted"))
        await eve.offer(sites.name(0), notice, memoryview(body))
        await sites.until(lambda: len(faults(sites)) == 3)
        assert sites.name(EVE) not in sites.fetched[0]


async def test_sixteen_faults_end_a_connection(tmp_path: Path, autojump_clock: object) -> None:
    async with beside_eve(tmp_path) as (sites, eve):
        for _ in range(15):
            await eve.send(sites.name(0), b"nonsense")
        await trio.sleep(0.5)
        assert sites.name(EVE) in sites.nodes[0].transport.peers()
        await eve.send(sites.name(0), b"nonsense")
        await sites.until(lambda: sites.name(EVE) not in sites.nodes[0].transport.peers(), 0.5)


async def test_a_member_that_does_not_read_is_hung_up(tmp_path: Path, autojump_clock: object) -> None:
    async with beside_eve(tmp_path) as (sites, eve):
        began = trio.current_time()
        ping = sealed(sites, header(sites, Kind.NOTICE), Notice(code="ping", text="x"))
        for _ in range(500):
            await eve.send(sites.name(0), ping)
        await sites.until(lambda: sites.name(EVE) not in sites.nodes[0].transport.peers())
        # Long before the transport loses its patience with a frame that cannot be written.
        assert trio.current_time() - began < sites.network.limits.send_s / 2
        with pytest.raises(UnreachableError, match="is not connected"):
            await sites.nodes[0].wires.ping(sites.name(EVE))


async def test_a_body_that_is_not_the_one_that_was_signed_is_not_mixed(
    tmp_path: Path, autojump_clock: object
) -> None:
    sites = Sites(tmp_path, agreement(keys(2), run={"rounds": 3, "deadline_s": 3.0}), keys(2))
    async with trio.open_nursery() as nursery:
        for i in range(2):
            await nursery.start(sites.live, i)
        wires = sites.nodes[1].wires
        offer = wires.transport.offer
        changed = [0]

        async def forged(peer: object, frame: bytes, body: memoryview) -> None:
            if not changed[0]:
                changed[0] += 1
                body = memoryview(bytes(len(body)))
            await offer(peer, frame, body)  # type: ignore[arg-type]

        wires.transport.offer = forged  # type: ignore[method-assign]
    assert changed == [1]
    assert {outcome.reason for outcome in sites.outcomes.values()} == {"done"}
    assert sites.mass().error < 1e-12
    assert sites.mass().expected == 2
