"""A Byzantine peer whose peer inside takes two steps at once, as one does that was behind."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest
from ears import Ear
from worlds import agreement, facts, tiny_world

from p2pfl.events import Effect, Event, Message, Send, Statement
from p2pfl.participant import Participant
from p2pfl.peer import Peer
from p2pfl.simulations.attacks import AttackOptions
from p2pfl.simulations.byzantine import ByzantinePeer
from p2pfl.trust import audit

LIAR = 4


class TwoAtOnce(Ear):
    """An honest peer that says what it has to say of two rounds together."""

    def __init__(self, inner: Peer) -> None:
        super().__init__(inner, [])
        self._kept: list[Effect] = []

    def handle(self, event: Event, now: float) -> list[Effect]:
        return self._together(super().handle(event, now))

    def expire(self, now: float) -> list[Effect]:
        return self._together(super().expire(now))

    def _together(self, effects: list[Effect]) -> list[Effect]:
        said = statements(effects)
        if said and said == statements(self._kept):
            # Said again, because nobody answers.
            return [effect for effect in effects if not isinstance(effect, Send)]
        if said and not self._kept:
            self._kept = effects
            return []
        if said:
            effects, self._kept = self._kept + effects, []
        return effects


def statements(effects: Iterable[Effect]) -> set[bytes]:
    bodies = [effect.message.body for effect in effects if isinstance(effect, Send)]
    return {body.content for body in bodies if isinstance(body, Statement)}


@pytest.mark.parametrize("averaging", ["push-sum", "d-psgd"])
def test_each_round_that_is_said_together_with_another_is_stated_as_what_went_out(averaging: str) -> None:
    attack = AttackOptions(kind="sign-flip", byzantine=1)
    gossip = {"averaging": {"kind": averaging}, "topology": {"kind": "complete"}}
    world = tiny_world(5, spec=agreement(5, gossip=gossip), crypto=True)
    liar = world.names[LIAR]
    heard: list[Message] = []

    def lying(peer: Peer) -> Participant:
        return ByzantinePeer(TwoAtOnce(peer), attack, is_byzantine=lambda name: name == liar)

    def listening(peer: Peer) -> Participant:
        return Ear(peer, heard)

    for machine, around in ((world.machines[LIAR], lying), (world.machines[0], listening)):
        machine.site = replace(machine.site, around=around)
    assert world.run(until_s=1e4)
    stated = [audit.read(message.body.content) for message in heard if isinstance(message.body, Statement)]
    heads = {statement.round: (statement, head) for statement, head in stated if statement.sender == liar}
    assert {0, 1} <= heads.keys()
    assert audit.check_link(heads[0][1], *heads[1]) == "next"
    assert not [fact for i in range(LIAR) for fact in facts(world, i, "fault of a peer")]
