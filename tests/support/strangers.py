"""Strangers who flood one node: `python strangers.py MULTIADDR BULK_PORT`, until killed.

Each line of output is a count of what they did: connections of garbage, handshakes, petitions.
"""

from __future__ import annotations

import os
import sys

import trio

from p2pfl.errors import P2PFLError
from p2pfl.ids import parse_peer_id
from p2pfl.net.libp2p import Libp2pTransport
from p2pfl.net.transport import Gate, Standing

__all__ = ["main"]

# Connections of garbage at a time, to each of the two ports, and libp2p peers with keys of their own.
_RAW, _PEERS = 16, 6


async def _no_petition(peer: object, frame: bytes) -> bytes:
    return b""


async def main(address: str, bulk_port: int) -> None:
    """Flood the node at `address`, and print every second what was done."""
    where, _, name = address.partition("/p2p/")
    port = int(where.rpartition("/")[2])
    counts = {"garbage": 0, "dials": 0, "petitions": 0}

    async def garbage(to: int) -> None:
        while True:
            try:
                stream = await trio.open_tcp_stream("127.0.0.1", to)
                counts["garbage"] += 1
                async with stream:
                    for _ in range(50):
                        await stream.send_all(os.urandom(8192))
            except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
                # A flood gets in again as soon as it can, a hundred times a second at most.
                await trio.sleep(0.01)

    async def stranger(number: int) -> None:
        gate = Gate(standing=lambda _: Standing.MEMBER, petition=_no_petition)
        transport = Libp2pTransport(
            seed=bytes((200 + number,)) * 32,
            listen=("/ip4/127.0.0.1/tcp/0",),
            bulk_listen="",
            gate=gate,
        )
        async with trio.open_nursery() as nursery:
            await nursery.start(transport.run)
            while True:
                try:
                    counts["petitions"] += 1
                    await transport.petition(parse_peer_id(name), (address,), os.urandom(4000))
                except P2PFLError:
                    await trio.sleep(0.05)
                try:
                    counts["dials"] += 1
                    await transport.dial(parse_peer_id(name), (address,))
                except P2PFLError:
                    await trio.sleep(0.05)

    async with trio.open_nursery() as nursery:
        for _ in range(_RAW):
            nursery.start_soon(garbage, port)
            nursery.start_soon(garbage, bulk_port)
        for number in range(_PEERS):
            nursery.start_soon(stranger, number)
        while True:
            await trio.sleep(1)
            print(counts["garbage"], counts["dials"], counts["petitions"], flush=True)  # noqa: T201


if __name__ == "__main__":
    trio.run(main, sys.argv[1], int(sys.argv[2]))
