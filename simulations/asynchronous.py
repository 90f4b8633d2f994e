"""An asynchronous population from a scenario: how long fits take, what lies between peers, who is down."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from p2pfl.learn import descent

from . import classes
from .holdings import Holdings
from .kernels import Kernels
from .push_gossip import Pushes, PushGossip, expected_places
from .scenario import Scenario
from .slots import Course, Links, Schedule, clocks, contacts, downtimes, microseconds

__all__ = ["course_of", "push_gossip"]


def course_of(scenario: Scenario) -> Course:
    """When what happens in a scenario whose schedule is asynchronous.  Raises ConfigError.

    A round is as long as the shortest fit that `fit_s` names, or as the deadline allows.  One that only mixes
    is as long as it takes to learn that a share was lost: the greatest latency, there and back.
    """
    spec, options = scenario.spec, scenario.simulation
    run, n = spec.run, options.peers
    fits = options.fit_s if isinstance(options.fit_s, tuple) else (options.fit_s,)
    latency = options.network.latency_s
    least, most = map(microseconds, latency if isinstance(latency, tuple) else (latency, latency))
    round_s = min(*fits, run.deadline_s)
    clock = clocks(
        np.resize(np.array(fits, np.float64), n) * classes.factors(options.speed, n, run.seed),
        deadline_s=run.deadline_s,
        steps=spec.learner.local_steps,
        rounds=run.rounds,
        round_s=round_s,
        closing_rounds=run.closing_rounds,
        closing_us=2 * most,
        down=downtimes(options.churn, n, run.rounds * round_s, run.seed),
        seed=run.seed,
    )
    return Course(
        clocks=clock,
        contacts=contacts(spec.gossip.topology, n, run.seed),
        links=Links(least, most - least, int(options.network.loss * 2**32), 2 * most),
        width=min(least, int(clock.fits.min())),
        seed=run.seed,
    )


def push_gossip(
    scenario: Scenario,
    held: Holdings,
    course: descent.Course,
    theta: NDArray[np.float32],
    kernels: Kernels,
) -> PushGossip:
    """The population, before anything has happened; its schedule is compiled where its kernels are.

    Raises ConfigError.
    """
    plan = course_of(scenario)
    places = expected_places(plan)
    timetable: Schedule
    pushes: Pushes
    if kernels.name == "numba":
        from .compiled_pushes import CompiledPushes
        from .compiled_slots import Wheel

        timetable, pushes = Wheel(plan, places), CompiledPushes()
    else:
        from .plain_push import PlainPushes
        from .slot_calendar import Calendar

        timetable, pushes = Calendar(plan, places), PlainPushes()
    return PushGossip(
        scenario.spec,
        held,
        course,
        theta,
        plan=plan,
        timetable=timetable,
        kernels=kernels,
        pushes=pushes,
        threads=scenario.simulation.threads,
    )
