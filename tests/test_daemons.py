"""Nodes as people run them, and what is promised of them: processes, signals, disks, libp2p on loopback."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from daemons import Daemons

from p2pfl import ledger, settings
from p2pfl.cli.client import ControlClient
from p2pfl.cli.exits import Exit
from p2pfl.node.store import Store
from p2pfl.run import run_id

pytestmark = pytest.mark.slow

# Seconds of a fit that takes time but no processor, as eight processes share this machine's.
FIT_S = 0.5
# What a busy machine may add to any wait.
SLACK_S = 5.0
# Rounds, each at least a fit long, that may pass while an invited node becomes part of a network of four.
JOIN_ROUNDS = 12
LEARNER = f"""
import time
import numpy as np
import p2pfl

class Learner:
    def __init__(self, site):
        self.site, self.fits = site, 0
        self.target = np.full(1000, float(site.data), np.float32)

    def parameters(self):
        return np.zeros(1000, np.float32)

    def fit(self, parameters, rng):
        self.fits += 1
        self.before_fit()
        time.sleep({FIT_S})
        moved = parameters + np.float32(0.2) * (self.target - parameters)
        return p2pfl.Update(parameters=moved, samples=1, metrics={{"loss": 1.0}})

    def evaluate(self, parameters):
        return {{"mean": float(parameters.mean())}}

    def before_fit(self):
        pass

def learner(site):
    return Learner(site)
"""


def own_ledger(net: Daemons, i: int) -> ledger.Ledger:
    with Store.open(net.homes[i]) as store:
        snapshot = store.load(run_id(net.spec))
    assert snapshot is not None
    return ledger.read(snapshot)[0]


def check_survivors(net: Daemons, *nodes: int) -> None:
    """No round of these took longer than the deadline and a fit, and the mass is where it should be."""
    for i in nodes:
        longest = max(net.rounds(i), key=lambda row: float(row["seconds"]))
        assert longest["seconds"] <= net.spec.run.deadline_s + FIT_S + SLACK_S, longest


def committed(net: Daemons, i: int) -> list[int]:
    return [row["fields"]["round"] for row in net.events(i) if row["event"] == "round committed"]


def test_nodes_that_are_killed_at_any_moment_resume_and_no_mass_is_lost(tmp_path: Path) -> None:
    rng = np.random.default_rng(20)
    # Long enough that nobody is through while the last victim starts, on a slow machine, too.
    with Daemons(tmp_path, 4, LEARNER, run={"rounds": 60}) as net:
        net.start(0, 1, 2, 3)
        victims = [1, 2, 1, 0]
        at_rounds = [2, 4, 6, 8]
        for victim, at_round in zip(victims, at_rounds, strict=True):
            net.until_round((victim + 1) % 4, at_round)
            net.pass_time(rng.uniform(0, 1.5 * FIT_S))
            net.kill(victim)
            before = own_ledger(net, victim)
            net.start(victim)
            net.until_running(victim)
            assert net.status(victim)["incarnation"] == before.incarnation
            assert net.status(victim)["round"] >= before.round
        net.finish(0, 1, 2, 3, within_s=120)
        for i in range(4):
            # Each round once, none again, and the last one by all.
            assert committed(net, i) == sorted(set(committed(net, i)))
            assert committed(net, i)[-1] == 61
            assert not [row for row in net.events(i) if "began anew" in row["event"]]
        check_survivors(net, 0, 1, 2, 3)
        audit = net.mass()
        assert audit.expected == pytest.approx(4, rel=1e-12)
        assert audit.error < 1e-9


def test_a_lost_disk_and_a_restored_backup_are_written_off_and_come_back(tmp_path: Path) -> None:
    with Daemons(tmp_path, 4, LEARNER) as net:
        net.start(0, 1, 2, 3)
        net.until_round(0, 2)
        net.p2pfl(2, "node", "backup", "-o", str(tmp_path / "yesterday.tar"))

        net.until_round(0, 4)
        net.kill(1)
        lost = own_ledger(net, 1)
        net.lose_disk(1)
        net.start(1)
        net.until_running(1)
        assert net.status(1)["incarnation"] != lost.incarnation

        net.until_round(0, 9)
        net.kill(2)
        old = own_ledger(net, 2)
        net.homes[2].rename(tmp_path / "broken")
        net.p2pfl(2, "node", "restore", str(tmp_path / "yesterday.tar"))
        assert own_ledger(net, 2).round < old.round
        net.start(2)
        net.until_running(2)
        net.until(lambda: net.status(2).get("incarnation") != old.incarnation, 10, "node 2 begins anew")

        net.finish(0, 1, 2, 3, within_s=60)
        check_survivors(net, 0, 3)
        audit = net.mass()
        # The two incarnations that are gone took with them what they held.
        assert 1 < audit.expected < 4
        assert audit.error < 1e-9
        means = [list(net.said(i))[-1]["per_peer"]["metrics"]["mean"] for i in range(4)]
        assert max(means) - min(means) < 0.25


HOSTILE = LEARNER.replace(
    """    def before_fit(self):
        pass
""",
    """    def before_fit(self):
        import os, pathlib, re
        once = pathlib.Path("done" + self.site.data)
        if self.fits != 3 or once.exists():
            return
        once.touch()
        if self.site.data == "1":
            # One call that never ends and never gives the interpreter's lock back.
            re.fullmatch("(a+)+b", "a" * 64)
        if self.site.data == "2":
            os.abort()
        if self.site.data == "3":
            os.kill(os.getpid(), 9)
""",
)


def test_a_learner_that_hangs_or_dies_takes_neither_its_node_nor_the_round_with_it(tmp_path: Path) -> None:
    with Daemons(tmp_path, 4, HOSTILE, run={"rounds": 10, "deadline_s": 3.0}) as net:
        net.start(0, 1, 2, 3)
        net.finish(0, 1, 2, 3, within_s=90)
        check_survivors(net, 0, 2, 3)
        faults = {
            i: [row["fields"]["fault"] for row in net.events(i) if row["event"] == "learner failed"]
            for i in range(4)
        }
        assert not faults[0]
        assert max(row["seconds"] for row in net.rounds(1)) > net.spec.run.deadline_s
        assert "signal 6" in faults[2][0]
        assert "signal 9" in faults[3][0]
        assert all(committed(net, i)[-1] == 11 for i in range(4))
        audit = net.mass()
        assert audit.expected == pytest.approx(4, rel=1e-12)
        assert audit.error < 1e-9


def test_a_daemon_is_small_takes_in_an_invited_node_and_obeys_signals(tmp_path: Path) -> None:
    with Daemons(tmp_path, 5, LEARNER, invited=1, run={"rounds": 500}) as net:
        net.start(0, 1, 2, 3)
        net.until_round(0, 1)
        for i in range(4):
            assert "torch" not in Path(f"/proc/{net.processes[i].pid}/maps").read_text()
            assert net.rss_mb(i) < 200

        net.p2pfl(4, "run", "join", str(net.run_file), "--ticket", net.ticket(4), "--yes")
        net.start(4)
        net.until(lambda: net.status(4), 30, "node 4 answers")
        # From here on: its learner is built, it shows its certificate, meets everybody, and enters a round.
        before_it = net.status(0)["round"]
        net.until_running(4)
        assert net.status(4)["round"] - before_it <= JOIN_ROUNDS
        assert net.status(4)["peers"] == 4
        assert all(net.status(i)["members"] == 5 for i in range(5))

        incarnations = [net.status(i)["incarnation"] for i in range(4)]
        assert net.signal(1, signal.SIGTERM) == 143
        assert net.signal(2, signal.SIGINT) == 130
        before = own_ledger(net, 1), own_ledger(net, 2)
        net.start(1, 2)
        for i, saved in zip((1, 2), before, strict=True):
            net.until_running(i)
            assert net.status(i)["incarnation"] == saved.incarnation == incarnations[i]
            assert net.status(i)["round"] >= saved.round
        for i in range(5):
            assert net.signal(i, signal.SIGTERM) == 143
        audit = net.mass()
        assert audit.expected == pytest.approx(4, rel=1e-12)
        assert audit.error < 1e-9


def test_a_revoked_member_is_out_of_real_daemons_within_a_round_and_the_run_goes_on(tmp_path: Path) -> None:
    with Daemons(tmp_path, 4, LEARNER, run={"rounds": 20}) as net:
        net.start(0, 1, 2, 3)
        net.until_round(0, 3)
        for i in range(3):
            with ControlClient(net.homes[i]) as node:
                node.post("/v1/trust/ban", {"peer": net.names[3], "reason": "it lies"})
        voted_in = max(net.status(i)["round"] for i in range(3))
        net.until(lambda: net.processes[3].poll() is not None, 30, "the revoked node ends")
        assert net.processes.pop(3).returncode == Exit.REFUSED
        # It comes back with what it has, and is told in a lobby that it need not.
        net.start(3)
        net.finish(0, 1, 2, within_s=90)
        heard = 0
        for i in range(3):
            with Store.open(net.homes[i]) as store:
                rows = [row.decision for row in store.decisions(run_id(net.spec))]
            of_it = [row for row in rows if row.peer == net.names[3]]
            (end,) = [row for row in of_it if (row.type, row.verdict) == ("admission", "revoked")]
            assert end.round <= voted_in + 1
            assert [row for row in of_it if row.type == "share" and row.i > end.i] == []
            heard += sum(row.type == "share" for row in of_it)
            assert committed(net, i)[-1] == 21
        assert heard
        check_survivors(net, 0, 1, 2)
        books = [own_ledger(net, i) for i in range(3)]
        expected = sum(book.entered - book.written_off for book in books)
        assert sum(book.w for book in books) == pytest.approx(expected, rel=1e-9)


def test_strangers_who_flood_a_node_delay_no_round_beyond_its_deadline(tmp_path: Path) -> None:
    with Daemons(tmp_path, 4, LEARNER, run={"rounds": 15}) as net:
        net.start(0, 1, 2, 3)
        net.until_round(0, 1)
        before = net.rss_mb(0)
        counts = tmp_path / "strangers.txt"
        bulk_port = settings.load(net.homes[0], environ={}).node.bulk_listen.rpartition(":")[2]
        with counts.open("wb") as out:
            script = str(Path(__file__).parent / "support" / "strangers.py")
            flood = subprocess.Popen([sys.executable, script, net.addresses[0], bulk_port], stdout=out)
        try:
            largest = before
            give_up = time.monotonic() + 120
            while net.processes[0].poll() is None:
                assert time.monotonic() < give_up, net.last_words()
                with contextlib.suppress(psutil.NoSuchProcess):
                    largest = max(largest, net.rss_mb(0))
                time.sleep(0.1)
            net.finish(0, 1, 2, 3, within_s=30)
        finally:
            flood.kill()
            flood.wait()
        garbage, dials, petitions = map(int, counts.read_text().splitlines()[-1].split())
        assert min(garbage, dials, petitions) > 20
        assert largest < 250
        check_survivors(net, 0, 1, 2, 3)
        audit = net.mass()
        assert audit.expected == pytest.approx(4, rel=1e-12)
        assert audit.error < 1e-9


HELD = LEARNER.replace(
    """    def before_fit(self):
        pass
""",
    """    def before_fit(self):
        import pathlib
        if self.fits == 2:
            pathlib.Path("fitting").touch()
            while not pathlib.Path("go").exists():
                time.sleep(0.01)
""",
)


def test_a_node_answers_while_its_learner_works_in_a_thread(tmp_path: Path) -> None:
    with Daemons(tmp_path, 1, HELD, run={"rounds": 4, "deadline_s": 120.0}) as net:
        settings_file = net.homes[0] / "node.toml"
        settings_file.write_text(settings_file.read_text() + 'isolation = "thread"\n')
        net.start(0)
        net.until((tmp_path / "fitting").exists, 60, "the second fit begins")
        # It does not end before these are answered.
        answers = [net.status(0) for _ in range(10)]
        assert [(one.get("state"), one.get("round")) for one in answers] == [("running", 1)] * 10
        (tmp_path / "go").touch()
        net.finish(0, within_s=60)
        assert committed(net, 0) == list(range(6))
