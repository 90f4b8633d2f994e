"""Sites that compute too slowly, or sit behind a slow line: what they did by the deadline counts."""

import numpy as np
import pytest
from tiny_learner import TinyLearner, stepwise
from worlds import agreement, facts, tiny_world

from p2pfl.gossip import push_sum
from p2pfl.learn.learner import Site
from p2pfl.net.link_model import LinkModel

_END_S = 5000.0


def test_a_site_five_times_slower_does_four_of_twenty_steps_in_every_round() -> None:
    """Most of these rounds begin at a time t for which (t + 1) - t is not 1 in floating point."""
    spec = agreement(2, rounds=60, deadline_s=1.0, learner={"local_steps": 20})
    world = tiny_world(
        2, spec=spec, fit_s=[1.0, 5.0], factory=stepwise, link=LinkModel(latency_s=(0.013, 0.013))
    )
    assert world.run(until_s=_END_S)
    for index, steps in ((0, 20.0), (1, 4.0)):
        committed = [fact.fields for fact in facts(world, index, "round committed")]
        done = [fields["metrics"]["steps"] for fields in committed if fields["stage"] == "training"]
        assert done == [steps] * 60
        assert max(fields["seconds"] for fields in committed) <= 1.0 + 1e-9
    assert world.mass().error < 1e-12


def test_a_slow_site_adds_the_movement_of_the_steps_that_it_took_and_no_more() -> None:
    spec = agreement(1, rounds=1, closing_rounds=0, deadline_s=1.0, learner={"local_steps": 20})
    world = tiny_world(1, spec=spec, fit_s=5.0, factory=stepwise, aims=["8"])
    assert world.run(until_s=_END_S)
    np.testing.assert_allclose(world.peer(0).model(), 8.0 * (1 - 0.9**4), rtol=1e-6)
    assert world.peer(0).view().w == 1.0


def test_a_deadline_below_one_step_leaves_nothing_to_add() -> None:
    spec = agreement(1, rounds=1, closing_rounds=0, deadline_s=0.2, learner={"local_steps": 20})
    world = tiny_world(1, spec=spec, fit_s=5.0, factory=stepwise, aims=["8"])
    assert world.run(until_s=_END_S)
    assert world.peer(0).model().tolist() == [0.0] * 3


def test_a_learner_that_never_looks_at_the_clock_ends_when_it_ends() -> None:
    spec = agreement(2, rounds=2, deadline_s=2.0, learner={"local_steps": 20})
    world = tiny_world(2, spec=spec, fit_s=[1.0, 3.5])
    assert world.run(until_s=_END_S)
    seconds = [fact.fields["seconds"] for fact in facts(world, 1, "round committed")]
    assert seconds[:2] == pytest.approx([3.5, 3.5])
    assert facts(world, 1, "learner failed") == []


def test_a_learner_that_never_looks_and_is_far_too_slow_is_killed_as_a_node_kills_it() -> None:
    spec = agreement(2, rounds=2, deadline_s=10.0, learner={"local_steps": 20})
    world = tiny_world(2, spec=spec, fit_s=[1.0, 60.0])
    assert world.run(until_s=_END_S)
    assert [fact.fields["fault"] for fact in facts(world, 1, "learner failed")] == [
        "the learner did not stop by the deadline"
    ] * 2
    seconds = [fact.fields["seconds"] for fact in facts(world, 1, "round committed")]
    assert seconds[:2] == pytest.approx([15.0, 15.0])


def test_a_learner_with_fewer_steps_than_agreed_is_not_taken_for_one_that_never_looks() -> None:
    def brief(site: Site) -> TinyLearner:
        learner = stepwise(site)
        learner.steps = 3
        return learner

    spec = agreement(2, rounds=2, deadline_s=2.0, learner={"local_steps": 20})
    world = tiny_world(2, spec=spec, fit_s=[1.0, 5.0], factory=brief)
    assert world.run(until_s=_END_S)
    done = [f.fields["metrics"]["steps"] for f in facts(world, 1, "round committed") if f.fields["metrics"]]
    assert done == [3.0] * 2


def test_steps_that_a_slow_site_leaves_out_do_not_change_how_much_it_weighs() -> None:
    """The mean moves by the mean of all local steps, short ones counted as what they are."""
    spec = agreement(4, rounds=1, closing_rounds=4, deadline_s=1.0, learner={"local_steps": 10})
    world = tiny_world(4, spec=spec, fit_s=[1.0, 1.0, 1.0, 10.0], factory=stepwise, aims=[4, 4, 4, 4])
    assert world.run(until_s=_END_S)
    whole, short = 4 * (1 - 0.9**10), 4 * (1 - 0.9)
    held = [world.peer(i).state.mass.state for i in range(4)]
    np.testing.assert_allclose(sum(one.x[0] for one in held), 3 * whole + short, rtol=1e-6)
    assert push_sum.mass(held) == pytest.approx(4)


def test_messages_take_the_time_of_the_line_between_their_ends() -> None:
    slow, fast = LinkModel(latency_s=(0.5, 0.5)), LinkModel(latency_s=(0.01, 0.01))
    world = tiny_world(3, links=lambda a, b: slow if 2 in (a, b) else fast)
    assert world.run(until_s=_END_S)
    near = [fact.fields["seconds"] for fact in facts(world, 0, "round committed")]
    # Fit, the slow site's share of the round before, and again; the first round waits for nothing.
    assert near[0] == pytest.approx(1.0)
    assert near[2] == pytest.approx(1.5, abs=0.1)
