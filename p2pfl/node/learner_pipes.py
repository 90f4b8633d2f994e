"""One learner's child process as the daemon holds it: the process, its pipes, and the shared memory.

The memory is an anonymous file, so nothing is left behind however either side dies; its size is sealed,
so a child that shrinks it cannot make the daemon fault.  The child leads a process group of its own, so
that what it started (data loader workers) goes with it.
"""

import contextlib
import fcntl
import mmap
import os
import select
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Self

import msgspec
import numpy as np
import trio

from p2pfl.events import Vector
from p2pfl.node.learner_child import PAGE_BYTES, slots
from p2pfl.node.learner_messages import MAX_MESSAGE_BYTES, Reply

__all__ = ["LINE_BYTES", "Child", "last_words"]

# A line of output is cut here; a progress bar without line ends is one long line.
LINE_BYTES = 2_000
# Seconds that a killed process may take to go; it can hang in the kernel on a dead network disk.
_REAP_S = 5.0
# One read of the child's output: the size of a pipe.
_READ_BYTES = 65_536
# What a dead child left in its output pipe is read up to this, which is more than a pipe holds by default.
_LEFT_BYTES = 1 << 20
# Linear algebra libraries start a thread per core unless told otherwise; several sites may share a machine.
_THREAD_LIMITS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class Child:
    """A started process; `start` makes one, and `end` must follow, in whatever way it goes."""

    def __init__(
        self, process: subprocess.Popen[bytes], requests: int, replies: int, output: int, memory: int
    ) -> None:
        self.pid = process.pid
        self.late = False
        self._process = process
        self._exit = os.pidfd_open(process.pid)
        self._requests = trio.lowlevel.FdStream(requests)
        self._replies = trio.lowlevel.FdStream(replies)
        self._output = trio.lowlevel.FdStream(output)
        self._line = b""
        self._memory = memory
        self._map = mmap.mmap(memory, PAGE_BYTES)
        self._slots: tuple[Vector, Vector] | None = None

    @classmethod
    def start(cls, program: Sequence[str]) -> Self:
        """Start `python -m` with `program`, a module and its arguments, which come last.

        Raises OSError when the machine refuses.

        It gets the two pipes and the memory, and no other descriptor of the daemon.  It is started from the
        calling thread, not from a worker: the kernel takes the end of the thread that started a process for
        the death of its parent, and trio's worker threads end when they are idle.
        """
        opened: list[int] = []
        try:
            child_reads, requests = _pipe(opened)
            replies, child_writes = _pipe(opened)
            output, child_prints = _pipe(opened)
            memory = os.memfd_create("p2pfl-learner", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            opened.append(memory)
            os.ftruncate(memory, PAGE_BYTES)
            passed = (child_reads, child_writes, memory)
            process = subprocess.Popen(
                [sys.executable, "-m", program[0], *map(str, (*passed, os.getpid())), *program[1:]],
                stdin=subprocess.DEVNULL,
                stdout=child_prints,
                stderr=child_prints,
                pass_fds=passed,
                start_new_session=True,
                env=dict.fromkeys(_THREAD_LIMITS, "1") | dict(os.environ) | {"PYTHONUNBUFFERED": "1"},
            )
        except BaseException:
            for descriptor in opened:
                os.close(descriptor)
            raise
        for descriptor in (child_reads, child_writes, child_prints):
            os.close(descriptor)
        return cls(process, requests, replies, output, memory)

    # --- vectors and the flag -------------------------------------------------------------------------

    def share(self, d: int) -> None:
        """Size the memory for two vectors of d float32, and seal it.  Raises OSError, ValueError."""
        if d < 1:
            raise ValueError("a learner shares at least one parameter")
        size = PAGE_BYTES + 8 * d
        os.ftruncate(self._memory, size)
        fcntl.fcntl(self._memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        self._map = mmap.mmap(self._memory, size)
        self._slots = slots(self._map, d)

    def give(self, parameters: Vector) -> None:
        """Put (d,) float32 where the learner reads."""
        assert self._slots is not None
        self._slots[0][:] = parameters

    def answer(self) -> Vector:
        """A copy of what the learner wrote, (d,) float32."""
        assert self._slots is not None
        return np.array(self._slots[1])

    def raise_flag(self) -> None:
        """Tell the learner to stop: `site.should_stop()` is true from now on."""
        self._map[0] = 1

    def lower_flag(self) -> None:
        """Let the next job run."""
        self._map[0] = 0

    # --- messages and output --------------------------------------------------------------------------

    async def exchange(self, request: bytes) -> Reply | None:
        """Send a framed request and return the reply, None when it is nonsense.

        When the child closes its end this waits to be cancelled: that is how a death begins, and `gone`
        tells of it.
        """
        try:
            await self._requests.send_all(request)
            (size,) = struct.unpack("<I", await self._receive(4))
            if size > MAX_MESSAGE_BYTES:
                return None
            reply: Reply = msgspec.msgpack.decode(await self._receive(size), type=Reply)
        except (trio.BrokenResourceError, trio.EndOfChannel):
            await trio.sleep_forever()
        except msgspec.MsgspecError:
            return None
        return reply

    async def _receive(self, size: int) -> bytearray:
        data = bytearray()
        while len(data) < size:
            part = await self._replies.receive_some(size - len(data))
            if not part:
                raise trio.EndOfChannel
            data += part
        return data

    async def listen(self, hear: Callable[[str], None]) -> None:
        """Pass on every line that the child prints, until it is cancelled or the output ends."""
        while part := await self._output.receive_some(_READ_BYTES):
            self._split(part, hear)

    def drain(self, hear: Callable[[str], None]) -> None:
        """Pass on what has been printed already, without waiting."""
        left = _LEFT_BYTES
        with contextlib.suppress(BlockingIOError):
            while left > 0 and (part := os.read(self._output.fileno(), _READ_BYTES)):
                self._split(part, hear)
                left -= len(part)
        if self._line and self.is_gone():
            self._split(b"\n", hear)

    def _split(self, part: bytes, hear: Callable[[str], None]) -> None:
        *lines, self._line = (self._line + part).split(b"\n")
        if len(self._line) > LINE_BYTES:
            lines.append(self._line)
            self._line = b""
        for line in lines:
            hear(line[:LINE_BYTES].decode(errors="replace").rstrip("\r"))

    # --- the end --------------------------------------------------------------------------------------

    def is_gone(self) -> bool:
        """Whether the process has ended."""
        poll = select.poll()
        poll.register(self._exit, select.POLLIN)
        return bool(poll.poll(0))

    async def gone(self) -> None:
        """Return when the process has ended."""
        await trio.lowlevel.wait_readable(self._exit)

    def kill(self) -> None:
        """Kill the process and all that it started."""
        # It has not been waited for, so its number cannot be another process's yet.
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)

    async def leave(self) -> None:
        """Ask it to end by closing its pipe, and wait until it has."""
        await self._requests.aclose()
        await self.gone()

    async def end(self, hear: Callable[[str], None]) -> int | None:
        """Kill it and what it started, read its last output, and give everything back.

        Returns its exit status when it ended by itself, None when it had to be killed.
        """
        by_itself = self.is_gone()
        self.kill()
        with trio.CancelScope(shield=True):
            with trio.move_on_after(_REAP_S):
                await self.gone()
            status = self._process.poll()
            self.drain(hear)
            for stream in (self._requests, self._replies, self._output):
                await stream.aclose()
        self._slots = None
        self._map.close()
        os.close(self._memory)
        os.close(self._exit)
        return status if by_itself else None


def last_words(log: Iterable[str]) -> str:
    """The end of the output; of a fatal error, what it was and the line of code it happened in."""
    lines = [line.strip() for line in log if line.strip()]
    fatal = [n for n, line in enumerate(lines) if line.startswith("Fatal Python error")]
    if fatal:
        code = [line for line in lines[fatal[-1] :] if line.startswith("File ")]
        lines = [lines[fatal[-1]], *code[:1]]
    return f"; last output: {' | '.join(line[:160] for line in lines[-3:])}" if lines else ""


def _pipe(opened: list[int]) -> tuple[int, int]:
    """The reading and the writing end of a new pipe."""
    ends = os.pipe2(os.O_CLOEXEC)
    opened.extend(ends)
    return ends
