"""Small worlds of tiny learners, and what tests ask of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tiny_learner import tiny

from p2pfl import run
from p2pfl.events import Fact
from p2pfl.learn.learner import LearnerFactory, Site
from p2pfl.run import RunSpec
from p2pfl.simulations.machine import SimulatedSite
from p2pfl.simulations.world import World

__all__ = ["agreement", "facts", "tiny_world"]


def agreement(n: int, **options: Any) -> RunSpec:
    """An agreement of `n` members for tests; `options` are those of [run], or whole tables by name."""
    tables: dict[str, Any] = {
        key: options.pop(key) for key in ("gossip", "learner", "trust", "knowledge") if key in options
    }
    table: dict[str, Any] = {
        "rounds": 6,
        "members_at_start": n,
        "closing_rounds": 2,
        "deadline_s": 8.0,
        **options,
    }
    return run.decode({"run": table, **tables}, "test")


def tiny_world(
    n: int,
    *,
    spec: RunSpec | None = None,
    factory: LearnerFactory = tiny,
    fit_s: float | Sequence[float] = 1.0,
    starts_at_s: Sequence[float] = (),
    aims: Sequence[float | str] = (),
    listener: Callable[[float, int, Fact], None] | None = None,
    memory_bytes: int = 10**9,
    publish_edges: Sequence[int] = (),
    **world: Any,
) -> World:
    """A world of `n` tiny learners, site i aiming at i, or at `aims[i]`, its data.

    publish_edges: the sites that say whom they trust.
    """
    fits = [fit_s] * n if isinstance(fit_s, (int, float)) else list(fit_s)
    starts = list(starts_at_s) or [0.0] * n
    sites = [
        SimulatedSite(
            factory=factory,
            site=Site(data=str(aims[i] if aims else i)),
            fit_s=fits[i],
            starts_at_s=starts[i],
            memory_bytes=memory_bytes,
            publishes_edges=i in publish_edges,
        )
        for i in range(n)
    ]
    return World(spec or agreement(n), sites, listener=listener, **world)


def facts(world: World, index: int, event: str) -> list[Fact]:
    """What a machine noted under `event`, in order."""
    return [fact for _, fact in world.machines[index].facts if fact.event == event]
