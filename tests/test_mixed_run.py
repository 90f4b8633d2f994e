"""Virtual peers behind one node among real ones: processes, signals, disks, libp2p on loopback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from daemons import Daemons
from safetensors.numpy import load_file

from p2pfl import ledger
from p2pfl.learn import data
from p2pfl.learn.factory import build, resolve
from p2pfl.learn.learner import Site
from p2pfl.learn.options import DataOptions
from p2pfl.node.store import Store
from p2pfl.run import run_id

pytestmark = pytest.mark.slow

FRONT, VIRTUAL = 3, 500
# Three real sites have fifty digits each, of four or three classes; the virtual ones some 1,200 of all.
REAL_ROWS, CLASSES = 50, ((0, 1, 2, 3), (4, 5, 6), (7, 8, 9))
LEARNER = {
    "module": "",
    "model": {"kind": "logistic"},
    "local_steps": 20,
    "batch_size": 16,
    "optimizer": {"lr": 0.3, "momentum": 0.0},
}
AGREEMENT: dict[str, Any] = {
    # With a quorum of all, nobody goes far without the one that is killed.
    "run": {
        "rounds": 24,
        "members_at_start": 4,
        "deadline_s": 10.0,
        "weights": "samples",
        "quorum": 1.0,
        "evaluate_every": 24,
    },
    "learner": LEARNER,
    "gossip": {"topology": {"kind": "complete"}},
}


def deal(folder: Path) -> list[Path]:
    """Digits for four sites, the last with all that the first three do not have."""
    whole = data.load("sklearn:digits", msgspec.convert({"test_fraction": 0.2}, DataOptions))
    rng = np.random.default_rng(3)
    dealt = [
        rng.choice(np.flatnonzero(np.isin(whole.y_train, classes)), REAL_ROWS, replace=False)
        for classes in CLASSES
    ]
    dealt.append(np.setdiff1d(np.arange(len(whole.y_train)), np.concatenate(dealt)))
    paths = [folder / f"rows{i}.npz" for i in range(4)]
    for path, rows in zip(paths, dealt, strict=True):
        data.save(path, data.part(whole, np.sort(rows)))
    return paths


def accuracy_alone(net: Daemons, source: Path) -> float:
    """What a site reaches on the common test rows without the others, with as many steps."""
    site = Site(data=f"npz:{source}", seed=net.spec.run.seed, options=net.spec.learner)
    learner = build(resolve(net.spec.learner), site)
    model = learner.parameters()
    for number in range(net.spec.run.rounds):
        model = learner.fit(model, np.random.default_rng(number)).parameters
    return float(learner.evaluate(model)["accuracy"])


def test_three_real_sites_and_five_hundred_virtual_ones_make_one_run(tmp_path: Path) -> None:
    rows = deal(tmp_path)
    sources = [f"npz:{path}" for path in rows]
    with Daemons(tmp_path, 4, "", invited=1, data=sources, **AGREEMENT) as net:
        front = ["simulate", str(net.run_file), "--join", net.ticket(FRONT), "--yes"]
        front += ["--peers", str(VIRTUAL), "--partition", "iid"]
        net.start(0, 1, 2)
        net.start(FRONT, words=front)
        # Killed early: a run of small models takes seconds.
        net.until_round(0, 2)
        net.kill(FRONT)
        # To the others it is a member as they are, with one key.
        members = net.p2pfl(0, "peers")["peers"]
        assert {member["peer_id"] for member in members} == set(net.names) - {net.names[0]}
        net.start(FRONT, words=front)
        net.finish(0, 1, 2, FRONT, within_s=120)

        (started, *_) = net.said(FRONT)
        assert (started["event"], started["virtual_peers"]) == ("starting", VIRTUAL)
        fits = [
            row["fields"]["metrics"].get("fits")
            for row in net.events(FRONT)
            if row["event"] == "round committed" and row["fields"]["stage"] == "training"
        ]
        # Both halves of the agreed steps, by every one of them, before and after it was killed.
        assert fits[0] == fits[-1] == 2.0 * VIRTUAL
        assert len(fits) > 8

        audit = net.mass()
        sizes = [len(data.load(source).x_train) for source in sources]
        assert sizes[:3] == [REAL_ROWS] * 3
        assert audit.expected == pytest.approx(sum(sizes), rel=1e-12)
        assert audit.error < 1e-9
        for i, size in enumerate(sizes):
            with Store.open(net.homes[i]) as store:
                snapshot = store.load(run_id(net.spec))
            assert snapshot is not None
            assert ledger.read(snapshot)[0].entered == size

        models, accuracies = [], []
        for i in range(4):
            net.p2pfl(i, "run", "export", "-o", str(tmp_path / f"model{i}.safetensors"))
            models.append(load_file(tmp_path / f"model{i}.safetensors"))
            accuracies.append(list(net.said(i))[-1]["per_peer"]["metrics"]["accuracy"])
        for name, tensor in models[0].items():
            for other in models[1:]:
                np.testing.assert_allclose(tensor, other[name], atol=2e-3)
        alone = [accuracy_alone(net, path) for path in rows[:3]]
        assert max(alone) < 0.5, alone
        assert min(accuracies) > 0.9, accuracies
