"""What a round costs beyond training: four real nodes on loopback, 10 MB models.

    python benchmarks/round_overhead.py              10 rounds of 2 s, about a minute
    python benchmarks/round_overhead.py --fit 1 --rounds 5

A round is the time between two commits of one node.  Taken off are the slowest fit of that round (the wall
time of the user's own function, which the learner reports as a metric) and the wire's own time: what plain
TCP on this machine takes for a round's bytes, measured while the nodes train.  The rest is ours: merging,
splitting, hashing, encryption, the disk, and the learner's process.  Target: a share under 10 per cent.

The fit waits instead of computing, as each site has a machine of its own and four of them share this one.
"""

from __future__ import annotations

import argparse
import socket
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from daemons import Daemons

NODES = 4
PARAMETERS = 2_500_000
BODY_BYTES = 4 * PARAMETERS
# The share of a round that may be ours.
TARGET = 0.10
LEARNER = """
import time
import numpy as np
import p2pfl

class Learner:
    def __init__(self, site):
        self.target = np.random.default_rng(int(site.data)).normal(size={d}).astype(np.float32)

    def parameters(self):
        return np.zeros({d}, np.float32)

    def fit(self, parameters, rng):
        began = time.perf_counter()
        moved = parameters + np.float32(0.1) * (self.target - parameters)
        time.sleep(max(0.0, {fit_s} - (time.perf_counter() - began)))
        return p2pfl.Update(parameters=moved, samples=1, metrics={{"fit_s": time.perf_counter() - began}})

    def evaluate(self, parameters):
        return {{"norm": float(np.linalg.norm(parameters))}}

def learner(site):
    return Learner(site)
"""


def raw_transfer_s(bodies: int) -> float:
    """Seconds that plain TCP on loopback takes for so many bodies, one connection each, all at once."""
    body = memoryview(bytes(BODY_BYTES))

    def send(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(body)

    def receive(port: int) -> None:
        into = memoryview(bytearray(BODY_BYTES))
        with socket.create_connection(("127.0.0.1", port)) as connection:
            position = 0
            while position < BODY_BYTES:
                position += connection.recv_into(into[position:])

    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(bodies)]
    threads = [threading.Thread(target=send, args=(one,)) for one in listeners]
    threads += [threading.Thread(target=receive, args=(one.getsockname()[1],)) for one in listeners]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.perf_counter() - began
    for one in listeners:
        one.close()
    return took


def measure(folder: Path, rounds: int, fit_s: float) -> tuple[list[float], list[float], float, float]:
    """(seconds of every round on every node, its slowest fit, seconds on the raw wire, bytes a round)."""
    learner = LEARNER.format(d=PARAMETERS, fit_s=fit_s)
    wire: list[float] = []
    with Daemons(folder, NODES, learner, run={"rounds": rounds, "deadline_s": 60.0}) as net:
        net.start(*range(NODES))
        net.until_round(0, 1)
        sent = 0.0
        while net.processes[0].poll() is None:
            # Bodies a node sends in a round of the exponential graph over four.
            wire.append(raw_transfer_s(2 * NODES))
            time.sleep(fit_s)
        net.finish(*range(NODES), within_s=120)
        rows = [[row for row in net.rounds(i) if row["fields"]["stage"] == "training"] for i in range(NODES)]
    spans, fits = [], []
    for number in range(1, rounds):
        slowest = max(rows[i][number]["fields"]["metrics"]["fit_s"] for i in range(NODES))
        for i in range(NODES):
            spans.append(rows[i][number]["at"] - rows[i][number - 1]["at"])
            fits.append(slowest)
        sent += sum(rows[i][number]["bytes_sent"] for i in range(NODES)) / NODES
    return spans, fits, statistics.median(wire), sent / (rounds - 1)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--fit", type=float, default=2.0, help="seconds of a fit")
    parser.add_argument("--keep", type=Path, help="leave the nodes' homes in this folder")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = chosen.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        spans, fits, wire_s, sent = measure(folder, chosen.rounds, chosen.fit)
    beyond_fit = [span - fit for span, fit in zip(spans, fits, strict=True)]
    ours = [max(0.0, extra - wire_s) for extra in beyond_fit]
    shares = [extra / span for extra, span in zip(ours, spans, strict=True)]
    print(f"{NODES} nodes, {BODY_BYTES / 1e6:g} MB models, {len(spans)} rounds")
    print(f"a round                  {statistics.median(spans):7.3f} s  (worst {max(spans):.3f})")
    print(f"  slowest fit            {statistics.median(fits):7.3f} s")
    print(f"  beyond it              {statistics.median(beyond_fit):7.3f} s  (worst {max(beyond_fit):.3f})")
    print(f"    the wire             {wire_s:7.3f} s  ({sent / 1e6:.1f} MB sent by each node)")
    print(f"    ours                 {statistics.median(ours):7.3f} s  (worst {max(ours):.3f})")
    share = statistics.median(shares)
    verdict = "met" if share < TARGET else "MISSED"
    print(f"share of a round         {share:7.1%}    target under {TARGET:.0%}: {verdict}")


if __name__ == "__main__":
    main()
