"""Knowledge between nodes as people run them: what the simulator learns, and a hub that is killed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import seeded_node
import tiny_splitter
import torch
from daemons import Daemons
from numpy.typing import NDArray

from p2pfl import ledger
from p2pfl.events import Header, Kind
from p2pfl.ids import PeerId
from p2pfl.knowledge.packets import Coding, features_bytes, hub_model_bytes, soft_labels_bytes
from p2pfl.learn import data
from p2pfl.learn.factory import resolve
from p2pfl.learn.options import DataOptions, PartitionOptions, at_role
from p2pfl.net.messages import encode_header
from p2pfl.node.store import Store
from p2pfl.run import RunSpec, decode, run_id
from p2pfl.simulations.machine import SimulatedSite, identities
from p2pfl.simulations.workload import Workload, cut
from p2pfl.simulations.world import World

pytestmark = pytest.mark.slow

APART = {"topology": {"kind": "complete"}, "averaging": {"kind": "none"}}
HUB = {"exchange": {"kind": "hub", "share_features": True}}
N = 6
ROLES = ("hub", "hub", "edge", "edge", "edge", "edge")
ROUNDS = 3
# What a busy machine may add to a wait.
SLACK_S = 6.0
# A header's length goes before it, an Ed25519 signature after it.
SIGNED_BYTES = 2 + 64
# Fits of the splitter take no processor, but time enough to kill a hub between them.
SLOW_FIT = """
import time
_fit = TinySplitter.fit_taught

def _slowly(self, *args, **how):
    time.sleep(0.3)
    return _fit(self, *args, **how)

TinySplitter.fit_taught = _slowly
"""


def of_world(spec: RunSpec, workload: Workload) -> World:
    """The same run in virtual time."""
    sites = [
        SimulatedSite(
            factory=resolve(at_role(spec.learner, role)),
            site=replace(workload.site(i, spec), options=at_role(spec.learner, role)),
        )
        for i, role in enumerate(ROLES)
    ]
    world = World(spec, sites, crypto=True)
    for i, name in ((i, name) for i in range(N) for name in world.names if name != world.names[i]):
        # After everybody has started, before anybody is connected.
        grant = partial(world.command, i, "set", peer=name, share="normal", **{"for": "features"})
        world.at(0.005, i, grant)
    assert world.run(until_s=1000)
    return world


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    # As the nodes have: sums in another order are other bits.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def entropy(i: int) -> bytes:
    """The secret of site i in a world of seed 0, as simulations/machine.py draws it for a first life."""
    return hashlib.sha256(hashlib.sha256(f"0/{i}/1".encode()).digest()).digest()


def frame_bytes(net: Daemons, i: int, to: int, kind: Kind, size: int) -> int:
    """What an offer of `size` bytes from node i takes on the wire: header, signature and body."""
    with Store.open(net.homes[i]) as store:
        snapshot = store.load(run_id(net.spec))
    assert snapshot is not None
    header = Header(
        run=run_id(net.spec),
        sender=net.names[i],
        recipient=net.names[to],
        incarnation=ledger.read(snapshot)[0].incarnation,
        # 63 random bits: one in 2^31 is shorter on the wire.
        boot_session=2**62,
        kind=kind,
        round=1,
        edge_seq=2,
        size=size,
        raw_size=size,
        digest=bytes(32),
        issued_at=0.5,
    )
    return SIGNED_BYTES + len(encode_header(header)) + size


def model(net: Daemons, i: int) -> NDArray[np.float32]:
    """The model on node i's disk."""
    with Store.open(net.homes[i]) as store:
        snapshot = store.load(run_id(net.spec))
    assert snapshot is not None
    book, x, kept, _ = ledger.read(snapshot)
    return (x.astype(np.float64) / book.w).astype(np.float32) if kept is None else kept


def outbound(net: Daemons, i: int) -> dict[str, dict[PeerId, tuple[int, int]]]:
    """Messages and bytes by kind and recipient, as `p2pfl trust audit outbound` says at node i."""
    found: dict[str, dict[PeerId, tuple[int, int]]] = {}
    for row in net.p2pfl(i, "trust", "audit", "outbound")["outbound"]:
        found.setdefault(row["kind"], {})[row["peer"]] = (row["messages"], row["bytes"])
    return found


def chosen(net: Daemons, i: int) -> list[PeerId]:
    """The hubs that node i has had."""
    return [row["fields"]["hub"] for row in net.events(i) if row["event"] == "hub chosen"]


def told(net: Daemons, i: int) -> list[str]:
    """What node i found worth a warning."""
    return [row["event"] for row in net.events(i) if row["level"] in ("warning", "error")]


def metrics(net: Daemons, i: int) -> dict[str, float]:
    """What node i printed last."""
    found: dict[str, float] = list(net.said(i))[-1]["per_peer"]["metrics"]
    return found


def test_daemons_learn_what_the_simulator_learns_and_every_edge_ends_with_its_hub_s_model(
    tmp_path: Path,
) -> None:
    learner = {
        "module": "",
        "local_steps": 3,
        "batch_size": 16,
        "model": {"kind": "gkt"},
        "roles": {"hub": {"capacity": 1.0}, "edge": {}},
    }
    rows = {"source": "sklearn:digits#0-350", "test_fraction": 0.2}
    whole = decode({"run": {"rounds": ROUNDS}, "learner": {**learner, "data": rows}}, "test")
    workload = cut(whole, N, PartitionOptions(kind="iid"), roles=ROLES)
    places = [tmp_path / f"rows{i}.npz" for i in range(N)]
    for place, part in zip(places, workload.datasets, strict=True):
        assert part is not None
        data.save(place, part)
    read = replace(workload, datasets=tuple(data.load(f"npz:{p}", DataOptions()) for p in places))
    new = data.rows_in_order("sklearn:digits#420-450", DataOptions())
    np.savez(tmp_path / "new.npz", x=new)
    with Daemons(
        tmp_path,
        N,
        "",
        data=[f"npz:{place}" for place in places],
        roles=ROLES,
        keys=identities(N, 0),
        run={"rounds": ROUNDS, "closing_rounds": 0, "deadline_s": 120.0},
        learner=learner,
        gossip=APART,
        knowledge=HUB,
    ) as net:
        for i in range(N):
            net.start(i, program=(seeded_node.__file__, entropy(i).hex()))
        net.finish(*range(N), within_s=240)
        world = of_world(net.spec, read)
        edges = {i: net.names.index(chosen(net, i)[-1]) for i in range(2, N)}
        for i in range(N):
            assert metrics(net, i) == dict(world.peer(i).view().metrics)
            # The composite's, which the edge has only with the model that its hub gave it.
            assert metrics(net, i)["hub_accuracy"] > 0.3
            assert np.array_equal(model(net, i), world.peer(i).model())
            assert told(net, i) == []

        splitter: Any = world.machines[2].workshop.learner
        shape = splitter.expected()
        i, hub = 2, edges[2]
        rows_here = read.datasets[i]
        assert rows_here is not None
        n = len(rows_here.y_train)
        up = features_bytes(n, width=shape.width, classes=shape.classes, coding=Coding.INT8)
        down = soft_labels_bytes(n, classes=shape.classes)
        whole_model = hub_model_bytes(shape.model_values)
        up_frame = frame_bytes(net, i, hub, Kind.FEATURES, up)
        down_frame = frame_bytes(net, hub, i, Kind.SOFT_LABELS, down)
        model_frame = frame_bytes(net, hub, i, Kind.HUB_MODEL, whole_model)
        mine, of_hub = outbound(net, i), outbound(net, hub)
        # Features go to the hub alone, and what else an edge says goes under other kinds.
        assert mine["features"] == {net.names[hub]: (ROUNDS, ROUNDS * up_frame)}
        assert "soft_labels" not in mine
        assert of_hub["soft_labels"][net.names[i]] == (ROUNDS, ROUNDS * down_frame)
        # To the other hub in every round, to its edges at the end.
        assert of_hub["hub_model"] == {
            net.names[1 - hub]: (ROUNDS, ROUNDS * model_frame),
            **{net.names[edge]: (1, model_frame) for edge in edges if edges[edge] == hub},
        }
        said = net.p2pfl(2, "predict", "--input", f"npz:{tmp_path / 'new.npz'}")
        assert (said["by"], said["rows"]) == ("hub", len(new))


def test_edges_of_a_killed_hub_go_to_the_standby_within_the_deadline(tmp_path: Path) -> None:
    names = [own.peer_id for own in identities(N, 0)]
    kinds = [f"{role} {i}" for i, role in enumerate(ROLES)]
    with Daemons(
        tmp_path,
        N,
        Path(tiny_splitter.__file__).read_text() + SLOW_FIT,
        data=kinds,
        keys=identities(N, 0),
        run={"rounds": 6, "closing_rounds": 0, "deadline_s": 9.0},
        learner={"module": "learner:splitter"},
        gossip=APART,
        knowledge=HUB,
    ) as net:
        net.start(*range(N))
        net.until_round(2, 2)
        hubs = {i: net.status(i)["hub"] for i in range(2, N)}
        victim = names.index(hubs[2])
        moved = [i for i, hub in hubs.items() if hub == names[victim]]
        standby = 1 - victim
        net.kill(victim)
        for i in moved:
            net.until(partial(has_hub, net, i, names[standby]), net.spec.run.deadline_s, f"node {i} moves")
        # It stays away; the run ends without it.
        net.finish(*(i for i in range(N) if i != victim), within_s=120)
        for i in range(2, N):
            assert metrics(net, i)["fits"] == 6
            # The round in which the hub died may teach nothing, and the first never does.
            assert metrics(net, i)["taught"] >= 3
            longest = max(float(row["seconds"]) for row in net.rounds(i))
            assert longest <= net.spec.run.deadline_s + SLACK_S, longest
        assert all(names[standby] in chosen(net, i) for i in moved)


def has_hub(net: Daemons, i: int, hub: PeerId) -> bool:
    """Whether node i listens to `hub` now."""
    return net.status(i).get("hub") == hub
