"""Reputation on real nodes over a network in memory: asked of the learner, kept, shown, forgotten."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from memory_nodes import Sites, agreement, keys

from p2pfl.errors import ConfigError
from p2pfl.node.desk import Desk
from p2pfl.node.node import inline
from p2pfl.trust import relations
from p2pfl.trust.relations import Level


async def test_nodes_score_each_other_and_show_and_forget_it(tmp_path: Path, autojump_clock: object) -> None:
    spec = agreement(keys(3), run={"rounds": 8}, trust={"reputation": {"kind": "beta"}})
    sites = Sites(tmp_path, spec, keys(3))
    async with trio.open_nursery() as nursery:
        for i in range(3):
            await nursery.start(sites.live, i)
        await sites.until(lambda: len(sites.rounds(0)) == 4)
        desk = Desk(sites.nodes[0], name="site0", run_sync=inline)
        shown = {row["peer_id"]: row for row in desk.trust()}
        other = shown[sites.name(1)]
        assert other["level"] == other["accept"] == "normal"
        assert other["reputation"]["rounds"] >= 2
        assert other["reputation"]["faults"] == {}
        assert other["reputation"]["last"]["distance"] >= 0
        assert shown[sites.name(0)]["reputation"] is None

        await desk.command("set", {"peer": sites.name(1), "share": "normal", "for": "features"})
        held = sites.nodes[0].peer.state.consortium.relations
        assert relations.share_level(held, sites.name(1), "features") is Level.NORMAL
        assert {r["peer_id"]: r["only"] for r in desk.trust()}[sites.name(1)] == {"share features": "normal"}
        with pytest.raises(ConfigError, match="no kind of message"):
            await desk.command("set", {"peer": sites.name(1), "share": "normal", "for": "gradients"})

        before = other["reputation"]["rounds"]
        await desk.command("forget", {"peer": sites.name(1)})
        row = {r["peer_id"]: r for r in desk.trust()}[sites.name(1)]
        assert row["only"] == {}
        assert row["reputation"] is None or row["reputation"]["rounds"] < before
    assert {outcome.reason for outcome in sites.outcomes.values()} == {"done"}
    assert sites.mass().error < 1e-12
