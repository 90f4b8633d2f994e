"""Disks of a world that keep the audit log, too, and everything that was ever stated in it."""

from __future__ import annotations

from typing import Any

from p2pfl import ledger
from p2pfl.events import Commit, Received, Statement
from p2pfl.ids import RunId
from p2pfl.simulations.world import World
from p2pfl.trust.decisions import Decision, LogHead, Row, extend, row_of

__all__ = ["Logs", "log_entries"]


class Logs:
    """The logs of a world's machines: made before anything has happened, kept as their disks are."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.entries: dict[int, list[bytes]] = {m.index: [] for m in world.machines}
        self.proofs: dict[int, list[tuple[str, bytes]]] = {m.index: [] for m in world.machines}
        # Every statement frame that anybody was told.
        self.frames: set[bytes] = set()
        self._tell, self._do = world._tell, world._do
        world._tell, world._do = self._telling, self._doing  # type: ignore[method-assign]

    def rows(self, i: int) -> list[Row]:
        """Machine i's log, as many rows as its disk says there are."""
        disk = self.world.machines[i].disk
        assert disk is not None
        known = ledger.decode(disk.ledger).log.rows
        # Rows that a restored backup does not know of are gone with the disk that held them.
        del self.entries[i][known:]
        return [row_of(entry) for entry in self.entries[i]]

    def on_disk(self, i: int) -> ledger.Ledger:
        """Machine i's last ledger."""
        disk = self.world.machines[i].disk
        assert disk is not None
        return ledger.decode(disk.ledger)

    def _telling(self, machine: Any, event: Any) -> None:
        if isinstance(event, Received) and isinstance(event.message.body, Statement) and event.frame:
            self.frames.add(event.frame)
        self._tell(machine, event)

    def _doing(self, machine: Any, effect: Any) -> None:
        if isinstance(effect, Commit):
            if machine.disk is None:
                self.entries[machine.index] = []
            else:
                self.rows(machine.index)
            self.entries[machine.index] += effect.decisions
            self.proofs[machine.index] += effect.proofs
        self._do(machine, effect)


def log_entries(run: RunId, count: int) -> list[bytes]:
    """The entries of a log of `count` rows, as a Commit carries them."""
    head, entries = LogHead(), []
    for i in range(1, count + 1):
        distance = None if i % 2 else i / 7
        made = Decision(
            i=i, at=i / 3, round=i, type="share", peer=f"P{i}", rule="push-sum", verdict="absorbed",
            weight=1 / i, distance=distance, seq=i, digest=bytes([i % 256]) * 32,
        )  # fmt: skip
        head, entry = extend(run, head, made)
        entries.append(entry)
    return entries
