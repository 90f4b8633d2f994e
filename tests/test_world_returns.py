"""A peer that goes for a moment, at any moment, and comes back: nobody sits out a deadline for it."""

from __future__ import annotations

import pytest
from worlds import agreement, facts, tiny_world

# Fits take a twentieth of a second and a deadline is a minute, so that a peer which was away for a second
# comes back to neighbours twenty rounds ahead, and a round that somebody waited through in vain stands out.
DEADLINE_S = 60.0
FITS_S = [0.05, 0.053, 0.047, 0.051]
# A second away, up to five of listening for the others, and some more for what was lost on the way.
PATIENCE_S = 10.0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["exponential", "complete"])
@pytest.mark.parametrize("effects", [0, 1, 2, 5])
def test_a_peer_that_stops_between_any_two_effects_and_returns_stalls_nobody(kind: str, effects: int) -> None:
    topology = {"kind": kind}
    spec = agreement(4, rounds=150, closing_rounds=2, deadline_s=DEADLINE_S, gossip={"topology": topology})
    world = tiny_world(4, spec=spec, fit_s=FITS_S)
    for moment in (0.73, 2.1, 3.6, 5.2):
        world.run(until_s=moment)
        world.crash_between(1, effects)
        while world.machines[1].is_up and world.step():
            pass
        world.boot_at(world.now + 1.0, 1)
    assert world.run(until_s=400)
    assert world.mass().error <= 1e-12
    for i in range(4):
        rounds = facts(world, i, "round committed")
        assert rounds
        assert max(fact.fields["seconds"] for fact in rounds) < PATIENCE_S
