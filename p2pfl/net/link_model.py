"""What a network does to a message, drawn from a seed: the in-memory transport and the simulator share it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from p2pfl.errors import ConfigError
from p2pfl.ids import PeerId

__all__ = ["LinkModel", "PERFECT", "message_rng"]

# Bits in a megabit.
_MEGABIT = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkModel:
    """One direction of a link.

    latency_s: least and greatest delay, drawn uniformly.   loss, duplication, reorder: probabilities, 0..1,
    of a message vanishing, arriving twice, or being held up by one to two further greatest delays, so that
    those sent later overtake it.   bandwidth_mbit_s: 0 is unlimited; each message has it for itself, there
    is no queueing.   Raises ConfigError on values outside these ranges.
    """

    latency_s: tuple[float, float] = (0.0, 0.0)
    loss: float = 0.0
    duplication: float = 0.0
    reorder: float = 0.0
    bandwidth_mbit_s: float = 0.0

    def __post_init__(self) -> None:
        low, high = self.latency_s
        if not 0.0 <= low <= high < float("inf"):
            raise ConfigError(f"latency_s is {self.latency_s}, expected 0 <= least <= greatest")
        for name in ("loss", "duplication", "reorder"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected a fraction in 0..1")
        if not 0.0 <= self.bandwidth_mbit_s < float("inf"):
            raise ConfigError(f"bandwidth_mbit_s is {self.bandwidth_mbit_s}, expected 0 or more")

    def fates(self, rng: np.random.Generator) -> tuple[float, ...]:
        """The delay in seconds of each copy that arrives: none when lost, two when duplicated.

        The first copy is late beyond the greatest latency only when it is reordered.  Always takes six
        numbers from `rng`, so that changing one rate leaves the other draws as they were.
        """
        lost, first, reordered, hold_up, duplicated, second = rng.random(6)
        low, high = self.latency_s
        if lost < self.loss:
            return ()
        delay = low + (high - low) * first
        if reordered < self.reorder:
            delay += high * (1.0 + hold_up)
        if duplicated >= self.duplication:
            return (float(delay),)
        return (float(delay), float(low + (high - low) * second))

    def transfer_s(self, size_bytes: int) -> float:
        """Seconds that `size_bytes` occupy the link, beyond the latency."""
        return 8 * size_bytes / (self.bandwidth_mbit_s * _MEGABIT) if self.bandwidth_mbit_s else 0.0

    def arrivals(
        self, rng: np.random.Generator, *, now: float, floor: float, size_bytes: int
    ) -> tuple[tuple[float, ...], float]:
        """When each copy of a message sent at `now` arrives, and the next message's floor.

        A connection keeps its order: no copy arrives before `floor`, the latest arrival so far of messages
        that were not reordered; a reordered one does not hold up those behind it.
        """
        _, high = self.latency_s
        transfer_s = self.transfer_s(size_bytes)
        times, next_floor = [], floor
        for copy, delay in enumerate(self.fates(rng)):
            time = max(floor, now + delay + transfer_s)
            times.append(time)
            if copy == 0 and delay <= high:
                next_floor = time
        return tuple(times), next_floor


# Every message arrives at once, once and in order.
PERFECT = LinkModel()


def message_rng(seed: int, sender: PeerId, recipient: PeerId, n: int) -> np.random.Generator:
    """The randomness of the n-th message from `sender` to `recipient`, whatever else is being sent."""
    edge = hashlib.sha256(f"{sender}>{recipient}".encode()).digest()
    return np.random.default_rng([seed, int.from_bytes(edge[:8], "big"), n])
