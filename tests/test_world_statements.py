"""What a peer tells everyone of its shares is held against the shares it offers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from worlds import agreement, facts, tiny_world

from p2pfl.ids import PeerId
from p2pfl.simulations.world import World
from p2pfl.trust import audit

HONEST = audit.commit


def faults(world: World, i: int) -> set[str]:
    return {str(fact.fields["fault"]) for fact in facts(world, i, "fault of a peer")}


def test_honest_peers_offer_what_they_state() -> None:
    world = tiny_world(3, spec=agreement(3, rounds=5))
    assert world.run(until_s=100)
    assert [faults(world, i) for i in range(3)] == [set(), set(), set()]


def test_a_share_that_everyone_else_was_told_otherwise_of_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def lying(
        salt: bytes, recipient: PeerId, edge_seq: int, digest: bytes, weights: Sequence[float]
    ) -> bytes:
        return HONEST(salt, recipient, edge_seq, digest, [2 * w for w in weights])

    def opened(statement: audit.RoundStatement, *, salt: bytes, **share: Any) -> bool:
        return HONEST(salt, **share) in statement.commitments

    monkeypatch.setattr(audit, "commit", lying)
    monkeypatch.setattr(audit, "open_commitment", opened)
    world = tiny_world(3, spec=agreement(3, rounds=5))
    assert world.run(until_s=100)
    assert [faults(world, i) for i in range(3)] == [{"commitment"}] * 3
    assert world.mass().error <= 1e-12
