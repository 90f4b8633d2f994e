"""The sites of a demo: an agreement, and for each a folder with key, settings and rows."""

from __future__ import annotations

import glob
import socket
import time
import tomllib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from p2pfl.errors import ConfigError, StoreError
from p2pfl.ids import PeerId

from . import home as homes

if TYPE_CHECKING:
    from p2pfl.learn.options import PartitionOptions
    from p2pfl.run import KnowledgeOptions, RunSpec
    from p2pfl.simulations.attacks import AttackOptions
    from p2pfl.simulations.workload import Workload
    from p2pfl.trust.identity import Identity

__all__ = ["DemoSite", "Plan", "partition_of", "plan", "prepare"]

# Nodes on one machine answer within milliseconds; one that is killed is waited for this long at the end.
_DEADLINE_S = 30.0
# Rows at least at each site of a skewed demo, so that none has next to nothing to learn from.
_MIN_ROWS = 16
# A third of them is one at least, and there is one to be cut off in.
_ECLIPSED_ROUNDS = 3


@dataclass(slots=True, kw_only=True)
class Plan:
    """What a demo runs.

    spec: the agreement without founders, by which baselines train.   joined: what the nodes agree on, once
    their keys are known.   workload, sources: of the honest; sources where the rows are in files already.
    """

    spec: RunSpec
    joined: RunSpec
    workload: Workload
    sources: tuple[str, ...]
    attack: AttackOptions

    @property
    def honest(self) -> int:
        """How many sites are honest: the first."""
        return len(self.workload.datasets)

    @property
    def is_eclipse(self) -> bool:
        """Whether an honest site, VICTIM, is to be cut off."""
        return self.attack.kind == "eclipse" and self.attack.byzantine > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoSite:
    """One node's folder and name."""

    home: Path
    peer_id: PeerId


def plan(
    *,
    run_file: Path | None,
    peers: int | None,
    rounds: int | None,
    data: str | None,
    label: str | None,
    target: str | None,
    model: str | None,
    partition: str | None,
    seed: int | None,
    attack: str | None,
    settings: Sequence[str],
) -> Plan:
    """The agreement and the rows that the flags ask for.  Raises ConfigError."""
    import msgspec

    from p2pfl import run as runs
    from p2pfl.simulations.scenario import set_key
    from p2pfl.simulations.workload import cut

    table = _table(run_file)
    run, learner = table.setdefault("run", {}), table.setdefault("learner", {})
    rows = learner.setdefault("data", {})
    run.setdefault("name", "demo")
    run.setdefault("deadline_s", _DEADLINE_S)
    if rounds is not None or "rounds" not in run:
        run["rounds"] = rounds or 20
    if seed is not None:
        run["seed"] = seed
    rows |= {key: value for key, value in (("source", data), ("label", label), ("target", target)) if value}
    if "source" not in rows:
        # A fifth of the digits, 359, for the test; scenarios/digits.toml has the same recipe.
        rows |= {"source": "sklearn:digits", "test_fraction": rows.get("test_fraction", 0.2)}
    if not learner.get("module"):
        learner["model"] = {**learner.get("model", {"kind": "mlp"}), **({"kind": model} if model else {})}
    for setting in settings:
        set_key(table, setting)
    # Of a scenario's table only who plays which role means anything to real nodes.
    roles = tuple(table.pop("simulation", {}).get("roles", ()))
    # The demo makes keys of its own.
    for key in ("founders", "quorum"):
        table.get("trust", {}).pop(key, None)
    files = _files(str(rows["source"]))
    options = partition_of(
        partition or ("by-file" if len(files) > 1 else "dirichlet:0.5"), of_dirichlet=_MIN_ROWS
    )
    sources = tuple(f"csv:{file}" for file in files) if options.kind == "by-file" else ()
    lies = _attack(attack)
    n = peers or (len(sources) + lies.byzantine if sources else 4)
    honest = n - lies.byzantine
    run["members_at_start"] = n
    spec = runs.decode(table, str(run_file or "demo"))
    lies = _fitted(lies, n, spec.run.rounds)
    if spec.learner.module or any(role.module for role in spec.learner.roles.values()):
        raise ConfigError("the demo splits rows itself and needs a built-in model; leave learner.module out")
    workload = cut(spec, honest, options, sources=sources, roles=roles)
    assert workload.pooled is not None, "the learner is built in"
    if sources and not spec.learner.data.target and not spec.learner.data.classes:
        # A site may lack a class that another has: all number them alike.
        rows = msgspec.structs.replace(spec.learner.data, classes=workload.pooled.classes)
        spec = msgspec.structs.replace(spec, learner=msgspec.structs.replace(spec.learner, data=rows))
        workload = cut(spec, honest, options, sources=sources, roles=roles)
    return Plan(spec=spec, joined=spec, workload=workload, sources=sources, attack=lies)


def prepare(folder: Path, plan: Plan) -> list[DemoSite]:
    """Make the folders, and agree.  Raises StoreError when nodes live there already."""
    import msgspec

    from p2pfl import run as runs
    from p2pfl.learn import data
    from p2pfl.learn.data import Dataset
    from p2pfl.learn.options import DataOptions
    from p2pfl.simulations.placement import quorum_of
    from p2pfl.simulations.poisoning import byzantine_site
    from p2pfl.trust import identity

    honest, count = plan.honest, plan.honest + plan.attack.byzantine
    ports = _free_ports(2 * count)
    keys = []
    for i in range(count):
        home = folder / f"site-{i}"
        if home.exists():
            raise StoreError(f"{home} exists; choose another --home, or remove it")
        homes.make_home(home)
        keys.append(identity.create(home / homes.KEY))
    founders = keys[:honest] if plan.attack.kind == "sybil" else keys
    trust = msgspec.structs.replace(
        plan.spec.trust,
        founders=tuple(key.peer_id for key in founders),
        quorum=quorum_of(len(founders)),
    )
    learner = plan.spec.learner
    if not plan.sources:
        # The rows come as npz files, scaled and split; how they were read before is nobody's business.
        learner = msgspec.structs.replace(learner, data=DataOptions())
    knowledge = _with_probe_beside(folder, plan.spec) if not plan.sources else plan.spec.knowledge
    plan.joined = msgspec.structs.replace(plan.spec, trust=trust, learner=learner, knowledge=knowledge)
    (folder / homes.RUN).write_text(runs.write_toml(msgspec.to_builtins(plan.joined)), encoding="utf-8")
    addresses = [
        f"/ip4/127.0.0.1/tcp/{port}/p2p/{key.peer_id}" for port, key in zip(ports, keys, strict=False)
    ]
    for i in range(count):
        home = folder / f"site-{i}"
        if i < honest:
            site = plan.workload.site(i, plan.spec)
        else:
            site = byzantine_site(plan.workload, plan.attack, plan.spec, i - honest)
        source = site.data
        if not plan.sources:
            assert isinstance(site.dataset, Dataset), "the learner is built in"
            source = f"npz:{home / 'rows.npz'}"
            data.save(home / "rows.npz", site.dataset)
        settings: dict[str, dict[str, Any]] = {
            "node": {
                "name": f"site-{i}",
                "listen": [f"/ip4/127.0.0.1/tcp/{ports[i]}"],
                "bulk_listen": f"127.0.0.1:{ports[count + i]}",
                "bootstrap": [address for j, address in enumerate(addresses) if j != i],
                "data": source,
                "role": site.role,
            }
        }
        if plan.spec.knowledge.exchange.share_features:
            # Each of them belongs to who runs the demo, and this is what each site says of its hubs.
            settings["trust"] = {"share_features": [key.peer_id for j, key in enumerate(keys) if j != i]}
        homes.write_private(home / homes.SETTINGS, runs.write_toml(settings))
    for i, ticket in enumerate(_tickets(plan, founders, keys[len(founders) :], addresses), len(founders)):
        homes.write_private(folder / f"site-{i}" / homes.TICKET, ticket + "\n")
    return [DemoSite(home=folder / f"site-{i}", peer_id=key.peer_id) for i, key in enumerate(keys)]


def _with_probe_beside(folder: Path, spec: RunSpec) -> KnowledgeOptions:
    """The agreement on knowledge, its probe set as an npz in `folder`: rows as they are after reading."""
    import msgspec
    import numpy as np

    from p2pfl.learn import probes

    probe = spec.knowledge.probe
    if probe is None:
        return spec.knowledge
    path = folder / "probe.npz"
    np.savez(path, x=probes.read(probe.source, spec.learner.data))
    beside = msgspec.structs.replace(probe, source=f"npz:{path}")
    return msgspec.structs.replace(spec.knowledge, probe=beside)


def _table(run_file: Path | None) -> dict[str, Any]:
    from p2pfl.run import resolved

    if run_file is None:
        return {}
    try:
        table = tomllib.loads(run_file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{run_file}: {error}") from error
    return resolved(table, run_file.parent)


def _files(source: str) -> list[Path]:
    """The files a csv source matches, absolute and sorted; none for other sources."""
    kind, separator, place = source.partition(":")
    if kind != "csv" or not separator:
        return []
    return sorted(Path(file).absolute() for file in glob.glob(str(Path(place).expanduser())))  # noqa: PTH207, place may be absolute


def partition_of(text: str, *, of_dirichlet: int) -> PartitionOptions:
    """`KIND`, `KIND:NUMBER` or `by-column:NAME` as options.   of_dirichlet: rows at least at a site of it.

    Raises ConfigError.
    """
    import msgspec

    from p2pfl.learn.options import PartitionOptions

    kind, separator, number = text.partition(":")
    names = {"dirichlet": "alpha", "quantity": "alpha", "shards": "shards", "by-column": "column"}
    table: dict[str, Any] = {"kind": kind}
    if separator:
        if kind not in names:
            raise ConfigError(
                f"--partition {text!r}: {kind} takes no number; such as dirichlet:0.5 or shards:2"
            )
        table[names[kind]] = number
    try:
        return msgspec.convert(
            {**table, "min_rows": of_dirichlet if kind == "dirichlet" else 2}, PartitionOptions, strict=False
        )
    except msgspec.ValidationError as error:
        raise ConfigError(f"--partition {text!r}: {error}; such as iid, dirichlet:0.5 or by-file") from error


def _attack(text: str | None) -> AttackOptions:
    import msgspec

    from p2pfl.simulations.attacks import AttackOptions

    kind, separator, number = (text or "none:0").partition(":")
    table = {"kind": kind, "byzantine": number if separator else 1}
    try:
        return msgspec.convert(table, AttackOptions, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(f"--attack {text!r}: {error}; write it like alie:1") from error


def _fitted(attack: AttackOptions, peers: int, rounds: int) -> AttackOptions:
    """The attack among so many nodes, and over so many rounds.  Raises ConfigError when it makes no sense."""
    import msgspec

    from p2pfl.simulations.placement import quorum_of
    from p2pfl.trust.certificates import MAX_SIGNATURES

    text, honest = f"--attack {attack.kind}:{attack.byzantine}", peers - attack.byzantine
    if honest < 1:
        raise ConfigError(f"{text} leaves nobody honest among {peers} nodes; raise --peers, or let fewer lie")
    founders = honest if attack.kind == "sybil" else peers
    if quorum_of(founders) > MAX_SIGNATURES:
        most = 2 * MAX_SIGNATURES - 1
        raise ConfigError(f"{founders} founders, a demo has at most {most}; lower --peers")
    if attack.kind != "eclipse" or not attack.byzantine:
        return attack
    if honest < 2:
        raise ConfigError(
            f"{text} among {peers} nodes leaves its victim no honest site to be cut off from; "
            "raise --peers, or let fewer attack"
        )
    if rounds < _ECLIPSED_ROUNDS:
        raise ConfigError(
            f"{text} begins after a third of the rounds, and there are {rounds}; "
            f"take --rounds {_ECLIPSED_ROUNDS} or more"
        )
    # Cut off before the run has begun, the victim would only keep it from beginning.
    return msgspec.structs.replace(attack, starts_at=rounds // 3)


def _tickets(
    plan: Plan, founders: Sequence[Identity], guests: Sequence[Identity], addresses: Sequence[str]
) -> list[str]:
    """The tickets that Sybils were talked into; none where all found the run.   addresses: of all nodes."""
    from p2pfl import run as runs
    from p2pfl.simulations.placement import talked_in
    from p2pfl.trust.tickets import MAX_ADDRESSES, write_ticket

    names = [guest.peer_id for guest in guests]
    certificates = talked_in(runs.run_id(plan.joined), founders, names, now=time.time())
    known = addresses[: min(len(founders), MAX_ADDRESSES)]
    return [write_ticket(certificate, known) for certificate in certificates]


def _free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on now."""
    with ExitStack() as stack:
        sockets = [
            stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) for _ in range(count)
        ]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
