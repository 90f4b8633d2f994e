"""Megabytes a second between two processes over loopback: ours beside what else there is, in one run.

    python benchmarks/transport.py            1, 16, 64 and 256 MB, medians of 5, about a minute
    python benchmarks/transport.py --quick    1 and 16 MB, medians of 3

The child process sends, this one receives.  Stacks take turns, so that a busy machine slows all of them; what
counts is the ratios, at the largest size.  With digests there are three busy threads: on two cores the
two processes and the digest get in each other's way, which the raw socket does not notice.
"""

import argparse
import hashlib
import os
import socket
import ssl
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import trio
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_new_x25519_key_pair
from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE_ID
from libp2p.security.noise.transport import Transport as Noise
from multiaddr import Multiaddr

from p2pfl.ids import parse_peer_id
from p2pfl.net.bulk import BulkPlane
from p2pfl.net.libp2p import Libp2pTransport
from p2pfl.net.limits import Limits
from p2pfl.net.transfers import Reception
from p2pfl.net.transport import Frame, Gate, Offer, Standing

MB = 1_000_000
KIB = 1024
PLAIN_64K, PLAIN_1M = "/benchmark/64k", "/benchmark/1m"
LOOPBACK = ("/ip4/127.0.0.1/tcp/0",)


async def no_petition(_peer: object, _frame: bytes) -> bytes:
    """Answer nothing: all here are members."""
    return b""


def transport(number: int, *, bulk: bool) -> Libp2pTransport:
    """One of ours, with or without a bulk port."""
    return Libp2pTransport(
        seed=bytes((number,)) * 32,
        listen=LOOPBACK,
        bulk_listen="127.0.0.1:0" if bulk else "",
        gate=Gate(standing=lambda _: Standing.MEMBER, petition=no_petition),
    )


# A fit as a learner's process does it, until killed; it says when it has begun.
FIT = """
import torch
torch.set_num_threads(1)
net = torch.nn.Sequential(torch.nn.Linear(784, 512), torch.nn.ReLU(), torch.nn.Linear(512, 10))
x, y = torch.randn(256, 784), torch.randint(0, 10, (256,))
optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
print("begun", flush=True)
while True:
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(net(x), y).backward()
    optimizer.step()
"""


def plain_host(number: int) -> Any:
    """py-libp2p as its own documentation has it, with Noise and Yamux."""
    key_pair = create_new_key_pair(bytes((number,)) * 32)
    noise = Noise(key_pair, noise_privkey=create_new_x25519_key_pair().private_key)
    return new_host(key_pair=key_pair, sec_opt={NOISE_ID: noise}, muxer_preference="YAMUX")


def pieces(body: memoryview, step: int) -> list[memoryview]:
    """`body` in views of `step` bytes."""
    return [body[start : start + step] for start in range(0, len(body), step)]


# --- the sender ----------------------------------------------------------------------------------------


async def send_all_day(largest: int) -> None:
    """The child: serve every stack, print where, until killed."""
    body = memoryview(os.urandom(MB) * (largest // MB))
    raw = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=_serve_raw, args=(raw, body), daemon=True).start()
    plane = BulkPlane(listen="", limits=Limits())
    bulk, fallback, plain = transport(1, bulk=True), transport(2, bulk=False), plain_host(3)
    tls_listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    context = plane._identity.context((), is_server=True)
    context.verify_mode = ssl.CERT_NONE

    async def serve_tls(stream: trio.SocketStream) -> None:
        async with trio.SSLStream(stream, context, server_side=True) as secure:
            for piece in pieces(body[: int.from_bytes(await _exactly(secure.receive_some, 8))], 64 * KIB):
                await secure.send_all(piece)

    async def serve_plain(step: int, stream: Any) -> None:
        for piece in pieces(body[: int.from_bytes(await _exactly(stream.read, 8))], step):
            await stream.write(piece.tobytes())
        await stream.close()

    async def serve_frames(served: Libp2pTransport) -> None:
        async for event in served.incoming:
            if isinstance(event, Frame) and event.data:
                size = int.from_bytes(event.data)
                await served.offer(event.peer, b"", body[:size])
            elif isinstance(event, Frame):
                await served.send(event.peer, b"")

    plain.set_stream_handler(TProtocol(PLAIN_64K), partial(serve_plain, 64 * KIB))
    plain.set_stream_handler(TProtocol(PLAIN_1M), partial(serve_plain, KIB * KIB))
    async with plain.run([Multiaddr(LOOPBACK[0])]), trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, serve_tls, tls_listeners)
        for served in (bulk, fallback):
            await nursery.start(served.run)
            nursery.start_soon(serve_frames, served)
        ports = raw.getsockname()[1], tls_listeners[0].socket.getsockname()[1]
        print(*ports, *plain.get_addrs(), *bulk.addresses(), *fallback.addresses(), flush=True)


def _serve_raw(listener: socket.socket, body: memoryview) -> None:
    while True:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(body[: int.from_bytes(connection.recv(8))])


async def _exactly(read: Callable[[int], Awaitable[bytes | bytearray]], size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += await read(size - len(data))
    return data


# --- the receiver --------------------------------------------------------------------------------------


async def receive_raw(port: int, into: memoryview) -> None:
    """Over a blocking socket, in a thread of its own."""

    def receive() -> None:
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(len(into).to_bytes(8))
            position = 0
            while position < len(into):
                position += connection.recv_into(into[position:])

    await trio.to_thread.run_sync(receive)


async def receive_tls(port: int, into: memoryview, *, digest: bool) -> None:
    """Over trio's own TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    secure = trio.SSLStream(await trio.open_tcp_stream("127.0.0.1", port), context)
    sha256 = hashlib.sha256()
    await secure.send_all(len(into).to_bytes(8))
    position = 0
    while position < len(into):
        data = await secure.receive_some(64 * KIB)
        if digest:
            sha256.update(data)
        into[position : position + len(data)] = data
        position += len(data)
    await trio.aclose_forcefully(secure)


async def hash_alone(into: memoryview) -> None:
    """No network at all: the digest of what is there, which no stack with a digest can beat on one thread."""
    hashlib.sha256(into).digest()


async def receive_plain(host: Any, peer: ID, protocol: str, step: int, into: memoryview) -> None:
    """Over a stream of py-libp2p."""
    stream = await host.new_stream(peer, [TProtocol(protocol)])
    await stream.write(len(into).to_bytes(8))
    position = 0
    while position < len(into):
        data = await stream.read(step)
        into[position : position + len(data)] = data
        position += len(data)
    await stream.close()


async def receive_body(receiver: Libp2pTransport, sender: str, into: memoryview) -> None:
    """As a node does: an offer, a fetch, a digest."""
    await receiver.send(parse_peer_id(sender.rpartition("/")[2]), len(into).to_bytes(8))
    async for event in receiver.incoming:
        if isinstance(event, Offer):
            await receiver.fetch(event, into, deadline=trio.current_time() + 300)
            return


async def receive_undigested(receiver: Libp2pTransport, sender: str, into: memoryview) -> None:
    """The bulk plane alone, to compare with what else has no digest."""
    peer = parse_peer_id(sender.rpartition("/")[2])
    await receiver.send(peer, len(into).to_bytes(8))
    async for event in receiver.incoming:
        if isinstance(event, Offer):
            link = event.handle.link
            await receiver._plane.pull(peer, link.bulk_addresses, event.handle.token(), Reception(into))
            receiver.refuse(event)
            return


@asynccontextmanager
async def loop_lag_ms() -> AsyncIterator[list[float]]:
    """How late a task that wants every turn gets it, in ms."""
    lags: list[float] = []

    async def watch() -> None:
        while True:
            due = time.perf_counter() + 0.001
            await trio.sleep(0.001)
            lags.append(max(0.0, (time.perf_counter() - due) * 1000))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        yield lags
        nursery.cancel_scope.cancel()


async def measure(where: list[str], sizes: list[int], rounds: int) -> None:
    """Let the stacks take turns, and print the table."""
    raw_port, tls_port = int(where[0]), int(where[1])
    plain_address, bulk_address, fallback_address = where[2:5]
    plain, ours, ours_too = plain_host(4), transport(5, bulk=True), transport(6, bulk=False)
    plain_peer = ID.from_string(plain_address.rpartition("/")[2])
    async with plain.run([Multiaddr(LOOPBACK[0])]), trio.open_nursery() as nursery:
        await nursery.start(ours.run)
        await nursery.start(ours_too.run)
        await plain.get_network().dial_addr(Multiaddr(plain_address), plain_peer)
        echo_ms = await _dial_and_echo(ours, bulk_address)
        await ours_too.dial(parse_peer_id(fallback_address.rpartition("/")[2]), (fallback_address,))
        stacks: dict[str, Callable[[memoryview], Awaitable[None]]] = {
            "raw blocking socket": partial(receive_raw, raw_port),
            "bulk plane": partial(receive_undigested, ours, bulk_address),
            "bulk plane, SHA-256": partial(receive_body, ours, bulk_address),
            "trio SSLStream": partial(receive_tls, tls_port, digest=False),
            "trio SSLStream, SHA-256": partial(receive_tls, tls_port, digest=True),
            "fallback stream, SHA-256": partial(receive_body, ours_too, fallback_address),
            "SHA-256 alone": hash_alone,
            "libp2p stream, 1 MiB": partial(receive_plain, plain, plain_peer, PLAIN_1M, KIB * KIB),
            "libp2p stream, 64 KiB": partial(receive_plain, plain, plain_peer, PLAIN_64K, 64 * KIB),
        }
        rates: dict[tuple[str, int], float] = {}
        worst_lag_ms = 0.0
        for size in sizes:
            into = memoryview(bytearray(size))
            times: dict[str, list[float]] = {name: [] for name in stacks}
            for _ in range(rounds):
                for name, receive in stacks.items():
                    started_at = time.perf_counter()
                    await receive(into)
                    times[name].append(time.perf_counter() - started_at)
            async with loop_lag_ms() as lags:
                await stacks["bulk plane, SHA-256"](into)
            worst_lag_ms = max(lags, default=0.0)
            for name in stacks:
                rates[name, size] = size / MB / statistics.median(times[name])
        beside_fit = await _beside_a_fit(stacks["bulk plane, SHA-256"], memoryview(bytearray(sizes[-1])))
        _report(rates, list(stacks), sizes, worst_lag_ms, echo_ms)
        print(f"{'bulk beside a torch fit':30}{beside_fit:5.0f} MB/s >= 50  {_verdict(beside_fit >= 50)}")
        nursery.cancel_scope.cancel()


async def _beside_a_fit(receive: Callable[[memoryview], Awaitable[None]], into: memoryview) -> float:
    """MB/s of the bulk plane while another process here trains with torch on one thread."""
    with subprocess.Popen([sys.executable, "-c", FIT], stdout=subprocess.PIPE) as fit:
        try:
            assert fit.stdout is not None
            await trio.to_thread.run_sync(fit.stdout.readline)
            started_at = time.perf_counter()
            await receive(into)
            return len(into) / MB / (time.perf_counter() - started_at)
        finally:
            fit.kill()


def _verdict(is_met: bool) -> str:
    return "met" if is_met else "MISSED"


async def _dial_and_echo(receiver: Libp2pTransport, address: str) -> float:
    started_at = time.perf_counter()
    peer = parse_peer_id(address.rpartition("/")[2])
    await receiver.dial(peer, (address,))
    await receiver.send(peer, b"")
    async for event in receiver.incoming:
        if isinstance(event, Frame):
            break
    return (time.perf_counter() - started_at) * 1000


def _report(
    rates: dict[tuple[str, int], float], names: list[str], sizes: list[int], lag_ms: float, echo_ms: float
) -> None:
    print(f"\nMB/s, median{'':18}" + "".join(f"{f'{size // MB} MB':>10}" for size in sizes) + "    of raw")
    for name in names:
        cells = "".join(f"{rates[name, size]:10.0f}" for size in sizes)
        print(f"{name:30}{cells}{rates[name, sizes[-1]] / rates[names[0], sizes[-1]]:10.2f}")
    largest = sizes[-1]
    ours = rates["bulk plane, SHA-256", largest]
    print(f"\nat {largest // MB} MB{'':24}measured    target")
    targets = [
        ("bulk / raw blocking socket", ours / rates["raw blocking socket", largest], 0.25),
        (
            "bulk / SSLStream, no digests",
            rates["bulk plane", largest] / rates["trio SSLStream", largest],
            1.3,
        ),
        ("bulk / SSLStream, digests", ours / rates["trio SSLStream, SHA-256", largest], 2.0),
        ("bulk / libp2p 64 KiB", ours / rates["libp2p stream, 64 KiB", largest], 4.0),
        ("bulk / libp2p 1 MiB", ours / rates["libp2p stream, 1 MiB", largest], 3.0),
        (
            "fallback / libp2p 64 KiB",
            rates["fallback stream, SHA-256", largest] / rates["libp2p stream, 64 KiB", largest],
            1.2,
        ),
    ]
    for name, ratio, target in targets:
        print(f"{name:30}{ratio:8.2f}  >= {target:5.2f}  {_verdict(ratio >= target)}")
    for name, ms, target in (
        ("loop lag, worst", lag_ms, 10.0),
        ("dial, control stream, echo", echo_ms, 50.0),
    ):
        print(f"{name:30}{ms:5.1f} ms  <= {target:4.0f} ms  {_verdict(ms <= target)}")


def main() -> None:
    """Start the sender, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="1 and 16 MB only")
    parser.add_argument("--sender", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    sizes = [MB, 16 * MB] if arguments.quick else [MB, 16 * MB, 64 * MB, 256 * MB]
    if arguments.sender:
        trio.run(send_all_day, sizes[-1])
        return
    command = [sys.executable, __file__, "--sender", *(["--quick"] if arguments.quick else [])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as sender:
        try:
            assert sender.stdout is not None
            trio.run(measure, sender.stdout.readline().split(), sizes, 3 if arguments.quick else 5)
        finally:
            sender.kill()


if __name__ == "__main__":
    main()
