"""Machines that come and go: a schedule of crashes, lost disks and restored backups, drawn from a seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from msgspec import Struct

from .world import World

__all__ = ["ChurnEvent", "ChurnOptions", "apply", "draw"]

# Keeps the draw apart from every other use of a run's seed: "chrn" in ASCII.
_PURPOSE = 0x6368726E
# A crash falls between any two of the effects of one event; a round's commit has about this many.
_EFFECTS = 8

_What = Literal["crash", "lost-disk", "restored-backup"]


class ChurnOptions(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How many of each, at random times between `start_s` and `end_s` (None: the end of training).

    Each hits a random machine between two effects of its peer, and the machine is down for a time drawn from
    `down_s`.  A restored backup is what the disk held `age_s` before.   peers: the numbers of those that may
    be hit; empty is all.
    """

    crashes: int = 0
    lost_disks: int = 0
    restored_backups: int = 0
    down_s: tuple[float, float] = (1.0, 5.0)
    age_s: float = 5.0
    start_s: float = 1.0
    end_s: float | None = None
    peers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        low, high = self.down_s
        if min(self.crashes, self.lost_disks, self.restored_backups) < 0:
            raise ValueError("counts of churn are 0 or more")
        if not 0 <= low <= high or self.age_s <= 0 or self.start_s < 0:
            raise ValueError("churn.down_s is [least, most], age_s more than 0 and start_s at least 0")
        if self.peers and min(self.peers) < 0:
            raise ValueError("churn.peers are numbers from 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChurnEvent:
    """At `time` machine `index` dies after `effects` further effects; it is back `down_s` later."""

    time: float
    index: int
    what: _What
    effects: int
    down_s: float
    age_s: float = 0.0


def draw(options: ChurnOptions, machines: int, end_s: float, seed: int) -> list[ChurnEvent]:
    """The schedule for one seed, in order of time."""
    hit = options.peers or tuple(range(machines))
    rng = np.random.default_rng([seed, _PURPOSE])
    counts: dict[_What, int] = {
        "crash": options.crashes,
        "lost-disk": options.lost_disks,
        "restored-backup": options.restored_backups,
    }
    kinds = [what for what, count in counts.items() for _ in range(count)]
    last = end_s if options.end_s is None else options.end_s
    events = [
        ChurnEvent(
            time=float(rng.uniform(options.start_s, max(last, options.start_s))),
            index=hit[int(rng.integers(len(hit)))],
            what=what,
            effects=int(rng.integers(_EFFECTS)),
            down_s=float(rng.uniform(*options.down_s)),
            age_s=options.age_s,
        )
        for what in kinds
    ]
    return sorted(events, key=lambda event: event.time)


def apply(world: World, schedule: Sequence[ChurnEvent]) -> None:
    """Let `schedule` happen to `world`."""
    for event in schedule:
        if event.what == "restored-backup":
            world.at(
                max(0.0, event.time - event.age_s), event.index, partial(_back_up_then_strike, world, event)
            )
        else:
            world.at(event.time, event.index, partial(_strike, world, event))


def _back_up_then_strike(world: World, event: ChurnEvent) -> None:
    backup = world.machines[event.index].disk
    world.at(event.time, event.index, partial(_strike, world, event))
    world.at(event.time + event.down_s / 2, event.index, lambda: world.restore(event.index, backup))


def _strike(world: World, event: ChurnEvent) -> None:
    if not world.machines[event.index].is_up:
        return
    if event.what == "lost-disk":
        world.lose_disk(event.index)
    else:
        world.crash_between(event.index, event.effects)
    # A doomed machine that is asked for nothing more would not die by itself.
    world.at(event.time + event.down_s / 2, event.index, lambda: world.crash(event.index))
    world.boot_at(event.time + event.down_s, event.index)
