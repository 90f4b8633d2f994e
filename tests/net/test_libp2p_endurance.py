"""What takes longer: many reconnects, many hosts, simultaneous dials by the hundred, a process killed."""

import gc
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import trio
from transports import Community, connect, expect, offered, running

from p2pfl.errors import UnreachableError
from p2pfl.ids import PeerId
from p2pfl.net.limits import Limits
from p2pfl.net.transport import Closed, Frame, Opened, Transport

pytestmark = pytest.mark.slow

CHILD = """
import sys, trio
sys.path.insert(0, sys.argv[1])
from transports import Community
async def main():
    community = Community()
    one, two = community.transport(1), community.transport(2, listen=(sys.argv[2],))
    async with trio.open_nursery() as nursery:
        await nursery.start(two.run)
        print(*two.addresses(), flush=True)
        async for event in two.incoming:
            print(type(event).__name__, flush=True)
trio.run(main)
"""


async def test_300_reconnects_leave_descriptors_and_tasks_where_they_were() -> None:
    community = Community()
    one, two = community.transport(1), community.transport(2)

    def count() -> tuple[int, int]:
        gc.collect()
        return psutil.Process().num_fds(), len(_all_tasks())

    async with running(one, two, within_s=120):
        before = count()
        for number in range(300):
            await connect(one, two)
            await (one if number % 2 else two).hang_up((two if number % 2 else one).peer_id)
            await expect(one, Closed)
            await expect(two, Closed)
        with trio.move_on_after(5):  # the library ends its own tasks of a connection a moment later
            while len(_all_tasks()) != before[1]:
                await trio.lowlevel.checkpoint()
        assert count() == before


async def test_simultaneous_dials_by_the_hundred_leave_one_connection_each() -> None:
    community = Community()
    one, two = community.transport(1), community.transport(2)
    async with running(one, two, within_s=120):
        for number in range(150):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(one.dial, two.peer_id, two.addresses())
                for _ in range(number % 30):
                    await trio.lowlevel.checkpoint()
                nursery.start_soon(two.dial, one.peer_id, one.addresses())
            await expect(one, Opened)
            await expect(two, Opened)
            await one.send(two.peer_id, b"there")
            await two.send(one.peer_id, b"back")
            await expect(two, Frame)
            await expect(one, Frame)
            await (one if number % 2 else two).hang_up((two if number % 2 else one).peer_id)
            await expect(one, Closed)
            await expect(two, Closed)


async def test_50_hosts_in_one_process_form_a_ring_and_exchange_a_body() -> None:
    community = Community()
    hosts = [community.transport(number + 1) for number in range(50)]
    async with running(*hosts, within_s=120):
        for left, right in zip(hosts, hosts[1:] + hosts[:1], strict=True):
            await connect(left, right)
        assert all(len(host.peers()) == 2 for host in hosts)
        for left, right in zip(hosts, hosts[1:] + hosts[:1], strict=True):
            offer = await offered(left, right, bytes(100_000))
            into = bytearray(offer.size)
            await right.fetch(offer, memoryview(into), deadline=trio.current_time() + 5)


async def test_a_killed_process_is_missed_at_once_and_welcome_again() -> None:
    community = Community()
    one = community.transport(1)
    two = community.transport(2)
    support = str(Path(__file__).parents[1] / "support")

    def start(listen: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-c", CHILD, support, listen], stdout=subprocess.PIPE, text=True
        )

    async def line(child: "subprocess.Popen[str]") -> str:
        assert child.stdout is not None
        return (await trio.to_thread.run_sync(child.stdout.readline, abandon_on_cancel=True)).strip()

    listen = "/ip4/127.0.0.1/tcp/0"
    async with running(one, within_s=60):
        for _ in range(2):
            child = start(listen)
            try:
                address = await line(child)
                await one.dial(two.peer_id, (address,))
                await expect(one, Opened)
                assert await line(child) == "Opened"
                child.send_signal(signal.SIGKILL)
                killed_at = time.monotonic()
                await expect(one, Closed)
                assert time.monotonic() - killed_at < 1
            finally:
                child.kill()
                child.wait()
                assert child.stdout is not None
                child.stdout.close()
            listen = address.partition("/p2p/")[0]  # the same port


async def test_a_stopped_process_costs_a_deadline_and_no_more() -> None:
    community = Community()
    limits = Limits(send_s=0.5, keepalive_s=0.2, silence_s=1.0)
    one, two = community.transport(1, limits=limits), community.transport(2)
    support = str(Path(__file__).parents[1] / "support")
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, support, "/ip4/127.0.0.1/tcp/0"], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    try:
        async with running(one, within_s=60):
            address = (await trio.to_thread.run_sync(child.stdout.readline)).strip()
            await one.dial(two.peer_id, (address,))
            await expect(one, Opened)
            child.send_signal(signal.SIGSTOP)
            started_at = trio.current_time()
            with pytest.raises(UnreachableError):
                await _send_for_ever(one, two.peer_id)
            assert trio.current_time() - started_at < 3
            closed = await expect(one, Closed)
            assert "0.5 s" in closed.reason or "silent" in closed.reason or "broken" in closed.reason
            with pytest.raises(UnreachableError):
                await one.send(two.peer_id, b"late")
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


async def _send_for_ever(transport: Transport, peer: PeerId) -> None:
    while True:
        await transport.send(peer, bytes(60_000))


def _all_tasks() -> list[object]:
    tasks: list[object] = []
    todo = [trio.lowlevel.current_root_task()]
    while todo:
        task = todo.pop()
        if task is not None:
            tasks.append(task)
            for nursery in task.child_nurseries:
                todo.extend(nursery.child_tasks)
    return tasks
