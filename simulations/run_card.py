"""What a trial is: the first event of its file, from the agreement to the processor."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import numpy as np

from p2pfl.aggregation import is_robust, mixer_of
from p2pfl.gossip import mixing_time, topology
from p2pfl.gossip.mixing import Kind
from p2pfl.run import run_id
from p2pfl.schedule import Schedule

from .placement import honest_count
from .scenario import Scenario

__all__ = ["evenly", "run_card"]

# Peers and links that are drawn.
_DRAWN_PEERS = 128
_LINKS = 3000


def evenly(count: int, most: int) -> list[int]:
    """At most `most` of the numbers 0..count-1, evenly spaced, with both ends.

    >>> evenly(10, 4)
    [0, 3, 6, 9]
    """
    if count <= most:
        return list(range(count))
    return sorted({round(i * (count - 1) / (most - 1)) for i in range(most)})


def run_card(scenario: Scenario, cell: Mapping[str, str], rounds: Schedule) -> dict[str, Any]:
    """The fields of `run began`: the agreement in short, the graph, what it runs on."""
    spec, options = scenario.spec, scenario.simulation
    honest = honest_count(options.attack, options.peers)
    robust, mixer = is_robust(spec), mixer_of(spec)
    kind = Kind.DOUBLY if Kind.DOUBLY in mixer.requires else Kind.COLUMN
    drawn, links, in_all = _graph(scenario)
    is_mixed = not robust and options.control == "none"
    gap = (
        mixing_time.gap_per_round(spec.gossip.topology, options.peers, spec.run.seed, kind)
        if is_mixed and honest == options.peers == spec.run.members_at_start
        else None
    )
    return {
        "scenario": scenario.name,
        "cell": dict(cell),
        "seed": spec.run.seed,
        "run": spec.run.name,
        "run_id": run_id(spec),
        "engine": options.engine,
        "peers": options.peers,
        "honest": honest,
        "opening": rounds.opening,
        "training": rounds.training,
        "closing": rounds.closing,
        "averaging": mixer.name,
        "aggregator": spec.trust.aggregator.kind,
        "control": options.control,
        "attack": options.attack.kind if options.attack.byzantine else "none",
        "topology": spec.gossip.topology.kind,
        "spectral_gap": gap,
        "graph": {"peers": drawn, "links": links, "links_in_all": in_all},
        "versions": {
            "p2pfl": metadata.version("p2pfl-node"),
            "python": platform.python_version(),
            "numpy": np.__version__,
        },
        "machine": _machine(),
    }


def _graph(scenario: Scenario) -> tuple[list[int], list[tuple[int, int]], int]:
    """(peers drawn, links among them, links in all) of a period of plans; a link is (sender, receiver)."""
    spec, n = scenario.spec, scenario.simulation.active or scenario.simulation.peers
    options, seed = spec.gossip.topology, spec.run.seed
    graph = topology.union(*(topology.plan(options, t, n, seed) for t in range(topology.period(options, n))))
    drawn = evenly(n, _DRAWN_PEERS)
    among = set(drawn)
    links = [(i, j) for i in drawn for j in graph.out_neighbours(i) if j in among]
    is_even = graph.offsets is not None
    in_all = n * len(graph.offsets or ()) if is_even else sum(map(len, graph.out_edges))
    return drawn, [links[at] for at in evenly(len(links), _LINKS)], in_all


def _machine() -> dict[str, Any]:
    """What it runs on: the figures of time are worth nothing without."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123, one line of a long file
            return next(
                (line.partition(":")[2].strip() for line in file if line.startswith("model name")), ""
            )
    except OSError:
        return platform.processor()
