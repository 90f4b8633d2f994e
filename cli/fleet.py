"""Several nodes as child processes: started, listened to, killed, and never left behind."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

__all__ = ["Fleet", "FleetNode"]

# Seconds that nodes have to save and stop before they are killed: a commit, and the end of a learner.
_STOP_S = 10.0
# A line of a node's output is a fact as JSON; larger ones are dropped.
_LINE_BYTES = 1024 * 1024
_ERRORS = "node.err"


@dataclass(slots=True)
class FleetNode:
    """One node's process.   code: its exit code, None while it runs.   starts: how often it was started."""

    home: Path
    process: subprocess.Popen[bytes] | None = None
    code: int | None = None
    starts: int = 0
    bytes_sent: int = 0
    unread: bytearray = field(default_factory=bytearray)


class Fleet:
    """Nodes in their homes under one agreement.  A context manager: when it ends, no process is left."""

    def __init__(
        self, homes: list[Path], agreement: Path, *, programs: Mapping[int, Sequence[str]] | None = None
    ) -> None:
        """programs: what some of the nodes run instead of `p2pfl node start`, as arguments of Python."""
        self.nodes = [FleetNode(home) for home in homes]
        self._agreement, self._programs = agreement, programs or {}
        self._selector = selectors.DefaultSelector()

    def __enter__(self) -> Fleet:
        try:
            for index in range(len(self.nodes)):
                self.start(index)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def start(self, index: int) -> None:
        """Start a node, the first time or again."""
        node = self.nodes[index]
        start = ["-m", "p2pfl.cli.main", "--home", str(node.home), "--json"]
        start += ["node", "start", "--run", str(self._agreement)]
        command = [sys.executable, *self._programs.get(index, start)]
        # Many nodes share this machine's cores: one thread each, or they only wait for each other.
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        with (node.home / _ERRORS).open("ab") as errors:
            # A session of its own, so that everything it starts can be ended with it.
            node.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
                start_new_session=True,
            )
        assert node.process.stdout is not None
        os.set_blocking(node.process.stdout.fileno(), False)
        node.code, node.starts, node.unread = None, node.starts + 1, bytearray()
        self._selector.register(node.process.stdout, selectors.EVENT_READ, index)

    def kill(self, index: int) -> None:
        """End a node and all its processes at once, as a power cut would."""
        process = self.nodes[index].process
        if process is not None:
            _signal(process, signal.SIGKILL)

    def lines(self, *, timeout_s: float) -> Iterator[tuple[int, dict[str, Any]]]:
        """What the nodes say within `timeout_s`, as (node, object); ended nodes are noted on the way."""
        for key, _ in self._selector.select(timeout_s):
            index: int = key.data
            yield from ((index, line) for line in self._read(self.nodes[index], key.fileobj))

    def last_words(self, index: int) -> str:
        """The end of what a node wrote to stderr."""
        try:
            text = (self.nodes[index].home / _ERRORS).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return "it wrote nothing"
        return " ".join(text.split())[-400:] or "it wrote nothing"

    def _read(self, node: FleetNode, stream: Any) -> Iterator[dict[str, Any]]:
        try:
            chunk = os.read(stream.fileno(), 65536)
        except BlockingIOError:
            return
        if not chunk:
            self._selector.unregister(stream)
            stream.close()
            assert node.process is not None
            # Its output is closed: it has exited, or is about to.
            node.code, node.process = node.process.wait(), None
            return
        node.unread += chunk
        *lines, rest = bytes(node.unread).split(b"\n")
        node.unread = bytearray(rest[-_LINE_BYTES:])
        for line in lines:
            with contextlib.suppress(ValueError):
                value = json.loads(line)
                if isinstance(value, dict):
                    if value.get("event") == "round committed":
                        node.bytes_sent += int(value.get("bytes_sent") or 0)
                    yield value

    def _end(self) -> None:
        running = [node.process for node in self.nodes if node.process is not None]
        for process in running:
            _signal(process, signal.SIGTERM)
        give_up = time.monotonic() + _STOP_S
        for process in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, give_up - time.monotonic()))
            _signal(process, signal.SIGKILL)
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
        self._selector.close()
        for node in self.nodes:
            node.process = None


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    # The group has the process's number, because it leads its session; it may be gone already.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
