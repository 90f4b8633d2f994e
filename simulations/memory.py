"""Memory planned before it is allocated: a population that cannot fit is refused, not killed half way."""

from __future__ import annotations

from pathlib import Path

from p2pfl.errors import ConfigError

__all__ = ["available_bytes", "needed_bytes", "refuse_if_beyond", "refuse_if_too_large"]

# Arrays of all models: the one held, the one sent, the last models, and the copy that is judged.
_OF_POPULATION = 4
# A learner's own: parameters, gradient, momentum and a step in a stack; a site's by itself has one more.
_OF_LEARNER = 5
# What comes and goes within a round: pieces of 64 MiB and their float64 sums.
_PASSING_BYTES = 2**28


def needed_bytes(n: int, d: int) -> int:
    """What n peers with d parameters take at most, without their rows: 36 bytes a parameter."""
    return 4 * n * d * (_OF_POPULATION + _OF_LEARNER) + _PASSING_BYTES


def available_bytes() -> int | None:
    """What this process can still be given by the kernel and its control group; None where neither says."""
    kernel = [line for line in _lines("/proc/meminfo") if line.startswith("MemAvailable:")]
    found = [int(line.split()[1]) * 1024 for line in kernel]
    limit, used = (_lines(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current"))
    if limit and used and limit[0].isdecimal():
        found.append(int(limit[0]) - int(used[0]))
    return min(found, default=None)


def refuse_if_too_large(n: int, d: int, available: int | None = None) -> None:
    """Raises ConfigError when n peers with d parameters do not fit in `available` bytes (None: look)."""
    refuse_if_beyond(needed_bytes(n, d), f"{n} peers with {d} parameters each", available)


def refuse_if_beyond(needed: int, what: str, available: int | None = None) -> None:
    """Raises ConfigError when `needed` bytes, which `what` need, are more than `available` (None: look)."""
    available = available_bytes() if available is None else available
    if available is not None and needed > available:
        raise ConfigError(
            f"{what} need {needed / 1e9:.1f} GB, and {available / 1e9:.1f} GB are free;"
            " lower simulation.peers or choose a smaller learner.model"
        )


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="ascii").splitlines()
    except OSError:
        return []
