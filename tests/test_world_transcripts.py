"""Stories a reviewer can read; with P2PFL_WRITE_TRANSCRIPTS=1 this file writes them anew."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from transcript import record
from worlds import agreement, tiny_world

from p2pfl.net.link_model import LinkModel
from p2pfl.simulations.world import World

_FOLDER = Path(__file__).parent / "transcripts"


def _two(rounds: int = 2) -> tuple[World, list[str]]:
    spec = agreement(2, rounds=rounds, closing_rounds=0)
    world = tiny_world(2, spec=spec, link=LinkModel(latency_s=(0.1, 0.1)), inline_bytes=1000)
    return world, record(world)


def _two_peer_run() -> list[str]:
    world, lines = _two()
    assert world.run(until_s=1000)
    return lines


def _crash_and_resume() -> list[str]:
    world, lines = _two()
    # A dies after the commit of round 0, before its share is offered.
    world.run(until_s=1.05)
    world.crash_between(0, 1)
    while world.machines[0].is_up:
        world.step()
    world.boot_at(world.now + 0.5, 0)
    assert world.run(until_s=1000)
    assert world.mass().sum == pytest.approx(2, abs=1e-12)
    return lines


def _refused_share() -> list[str]:
    world, lines = _two(rounds=3)
    # The share of round 0 is on its way.
    world.run(until_s=1.15)
    world.command(1, "set", peer=world.names[0], accept="deny")
    assert world.run(until_s=1000)
    assert world.mass().sum == pytest.approx(2, abs=1e-12)
    return lines


@pytest.mark.parametrize(
    ("name", "story"),
    [
        ("two-peer-run", _two_peer_run),
        ("crash-and-resume", _crash_and_resume),
        ("refused-share", _refused_share),
    ],
)
def test_a_story_is_as_written(name: str, story: Callable[[], list[str]]) -> None:
    path = _FOLDER / f"{name}.txt"
    text = "\n".join(story()) + "\n"
    if os.environ.get("P2PFL_WRITE_TRANSCRIPTS"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")
