"""Events and ticks a second of asynchronous populations: clocks alone, and clocks with what is learned.

    python benchmarks/slots.py                         1,000, 10,000 and 100,000 peers; about two minutes
    python benchmarks/slots.py --peers 1000000         6 GB

A third of the peers is up to five times slower, a tenth of all shares is lost, latency is 20 to 200 ms, and
half of the peers crash once.  An event is a tick or an arrival; a tick takes in shares, ends a step on 16
rows of digits, and sends half.  Processor time of one thread, after a few rounds in which memory is touched
first; beside it a synchronous round of the same model, because other programs slow both alike.
"""

from __future__ import annotations

import argparse
import os
import time

from p2pfl.simulations.asynchronous import course_of
from p2pfl.simulations.compiled_slots import Wheel
from p2pfl.simulations.fleet_trial import mustered
from p2pfl.simulations.push_gossip import expected_places
from p2pfl.simulations.scenario import load
from p2pfl.simulations.slot_calendar import Calendar
from p2pfl.simulations.slots import Schedule

# Rounds that are timed, and those before them.
TIMED, FIRST = 8, 3
SETTINGS = ("run.closing_rounds=0", "simulation.threads=1")


def schedule_rate(timetable: Schedule, until: int) -> float:
    """Events a second of a schedule."""
    events = 0
    began = time.process_time()
    while (batch := timetable.until(until, 2**16)) is not None:
        events += batch.events
    return events / (time.process_time() - began)


def rates(peers: int, *settings: str, name: str = "asynchronous") -> tuple[float, float]:
    """(peer-rounds a second, bytes a peer of the matrices) of a population."""
    population, _ = mustered(load(name, peers=peers, rounds=FIRST + TIMED, settings=[*SETTINGS, *settings]))
    for _ in range(FIRST):
        population.step()
    done = population.peer_rounds
    began = time.process_time()
    for _ in range(TIMED):
        population.step()
    took = time.process_time() - began
    held = [getattr(population, field, None) for field in ("held", "_next", "shares")]
    return (population.peer_rounds - done) / took, sum(m.nbytes for m in held if m is not None) / peers


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", type=int, nargs="*", default=[1000, 10_000, 100_000])
    chosen = parser.parse_args()
    print(f"1 thread, load {os.getloadavg()[0]:.1f}")
    print(
        f"{'peers':>9} {'wheel ev/s':>12} {'calendar ev/s':>14} {'asynchronous/s':>15} {'synchronous/s':>14}"
        f" {'B a peer':>9}"
    )
    for peers in chosen.peers:
        churn = f"simulation.churn.crashes={peers // 2}"
        plan = course_of(load("asynchronous", peers=peers, rounds=TIMED, settings=[*SETTINGS, churn]))
        places = expected_places(plan)
        Wheel(plan, places).until(1, 1)
        wheel = schedule_rate(Wheel(plan, places), plan.clocks.ends)
        calendar = schedule_rate(Calendar(plan, places), plan.clocks.ends)
        own, held = rates(peers, churn)
        together, _ = rates(peers, name="million")
        print(
            f"{peers:>9,} {wheel:>12,.0f} {calendar:>14,.0f} {own:>15,.0f} {together:>14,.0f} {held:>9,.0f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
