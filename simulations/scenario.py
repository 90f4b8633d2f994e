"""A scenario: an agreement (run.toml) plus a `[simulation]` table, so that deleting one table deploys it."""

from __future__ import annotations

import copy
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from p2pfl import run as runs
from p2pfl.aggregation import mixer_of
from p2pfl.errors import ConfigError
from p2pfl.gossip.push_pull import PUSH_PULL
from p2pfl.learn.options import PartitionOptions
from p2pfl.net.link_model import LinkModel
from p2pfl.run import RunSpec

from . import classes, expect, false_knowledge, leakage
from . import grid as grids
from .attacks import AttackOptions
from .churn import ChurnOptions
from .classes import AccessClass, Lines, SpeedClass
from .expect import Expectation
from .grid import Axis
from .kernels import Device
from .lazy import Resume
from .limits import MOST_FUSED, MOST_PEERS, check_engine
from .network import Partition
from .placement import placed
from .population import Control
from .workload import check_roles

__all__ = [
    "Cell",
    "NetworkOptions",
    "PartitionWindow",
    "Scenario",
    "SimulationOptions",
    "load",
    "parse_seeds",
    "set_key",
    "shipped",
]

# What a study has and a trial of it does not.
_ONE_TRIAL: dict[str, Any] = {"simulation.grid": {}, "simulation.expect": (), "simulation.seeds": ""}

_Seconds = Annotated[float, Meta(ge=0)]


class PartitionWindow(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A cut of the network: from `start_s` to `end_s` only peers of one group reach each other."""

    start_s: _Seconds
    end_s: _Seconds
    groups: tuple[tuple[int, ...], ...]


class NetworkOptions(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`network`: every link; see net/link_model.py.   latency_s: one number, or [least, greatest]."""

    latency_s: float | tuple[float, float] = 0.0
    loss: float = 0.0
    duplication: float = 0.0
    reorder: float = 0.0
    bandwidth_mbit_s: float = 0.0
    partitions: tuple[PartitionWindow, ...] = ()

    def link(self) -> LinkModel:
        """One direction of every link.  Raises ConfigError."""
        latency = self.latency_s
        return LinkModel(
            latency_s=latency if isinstance(latency, tuple) else (latency, latency),
            loss=self.loss,
            duplication=self.duplication,
            reorder=self.reorder,
            bandwidth_mbit_s=self.bandwidth_mbit_s,
        )

    def cuts(self) -> tuple[Partition, ...]:
        """The partitions there will be."""
        return tuple(Partition(start_s=c.start_s, end_s=c.end_s, groups=c.groups) for c in self.partitions)


class SimulationOptions(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[simulation]`: what a simulation needs beyond the agreement.

    partition: how one data source becomes `peers` sites; `data` instead names a source for each.
    attack: who of them lies, and how; see attacks.py.
    roles: of `[learner.roles]`, in turn for peers 0, 1, 2, ...; empty: the only one there is.
    fit_s: virtual seconds of one fit; a list gives each peer its own.   evaluate_s: of one evaluation.
    learn_s: of a hub's learning, and of a distillation; as long as a fit unless it is said.
    speed, access: peers that compute more slowly, or sit behind a line of their own; see classes.py.
    engine: "world" runs whole peers over an event queue, "population" the same arithmetic on one matrix.
    "ray" splits a population over Ray workers, always with fused kernels; see shards.py.
    kernels: of a population: "exact", the bits of whole peers; "vmap", torch learners fit together, the same
    to rounding; "fused", built-in models, equal to rounding, 2^24 peers.   device: where fused kernels work.
    schedule: "synchronous" rounds, or "asynchronous" peers on clocks of their own, with fused kernels; see
    slots.py.
    active: of a fused population, how many peers take part in a round, 0 for all; see lazy.py.
    resume: what these begin with, their "own" last model, or one "handed" on by the peer before.
    threads: of fused kernels, 0 for one a processor; they change no result.   shards: ray only, how many
    workers hold the peers; 0 is one a machine, and two on a single one; 1 does without Ray.
    control: mixes as no agreement does, to compare with; see population.py.   consensus_every: rounds between
    measurements of the consensus distance, 0 for none; population only, as all controls but shuffled-teacher.
    metric: the one judged; empty takes accuracy where there is one.   measure_every: rounds between two
    measurements of it while a run is recorded, 0 for none; see recorder.py.
    expect, grid: see those modules.
    seeds: those it is run under unless flags say otherwise, such as "0-4"; empty is run.seed alone.
    reference: "perfect-network" runs the same without faults, too, and reports its metric as `reference`.
    leakage: of hub runs, what features, predictions and prototypes tell of single rows; see leakage.py.
    compute: counts the multiply-adds of the sites' torch models; world only.
    crypto: seal and verify every message.   until_s: virtual seconds after which a run has failed.
    """

    peers: Annotated[int, Meta(ge=1, le=MOST_FUSED)] = 4
    engine: Literal["world", "population", "ray"] = "world"
    kernels: Literal["exact", "vmap", "fused"] = "exact"
    threads: Annotated[int, Meta(ge=0, le=1024)] = 0
    schedule: Literal["synchronous", "asynchronous"] = "synchronous"
    device: Device = "cpu"
    active: Annotated[int, Meta(ge=0)] = 0
    resume: Resume = "own"
    shards: Annotated[int, Meta(ge=0, le=1024)] = 0
    control: Control = "none"
    consensus_every: Annotated[int, Meta(ge=0)] = 0
    partition: PartitionOptions = PartitionOptions()
    data: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()
    network: NetworkOptions = NetworkOptions()
    speed: dict[str, SpeedClass] = msgspec.field(default_factory=dict)
    access: dict[str, AccessClass] = msgspec.field(default_factory=dict)
    churn: ChurnOptions = ChurnOptions()
    attack: AttackOptions = AttackOptions()
    fit_s: float | tuple[float, ...] = 1.0
    evaluate_s: _Seconds = 0.0
    learn_s: _Seconds | None = None
    metric: str = ""
    measure_every: Annotated[int, Meta(ge=0)] | None = None
    expect: tuple[str, ...] = ()
    grid: dict[str, Any] = msgspec.field(default_factory=dict)
    seeds: str = ""
    reference: Literal["none", "perfect-network"] = "none"
    baselines: bool = True
    leakage: bool = False
    compute: bool = False
    crypto: bool = False
    until_s: Annotated[float, Meta(gt=0)] = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A checked scenario.   axes, cells: of its grid; without one, the scenario is its only cell.

    spec: the agreement, with attackers in its topology.   written: the same without, as the file has it.
    """

    name: str
    spec: RunSpec
    simulation: SimulationOptions
    expectations: tuple[Expectation, ...]
    axes: tuple[Axis, ...] = ()
    cells: tuple[Cell, ...] = ()
    written: RunSpec | None = None

    def with_seed(self, seed: int) -> Scenario:
        """The same under another seed."""
        before = self.written or self.spec
        written = msgspec.structs.replace(before, run=msgspec.structs.replace(before.run, seed=seed))
        options = self.simulation
        return replace(self, written=written, spec=placed(written, options.attack, options.peers))


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One cell of a grid: the case it has on each axis, and the scenario without grid and expectations."""

    cases: Mapping[str, str]
    scenario: Scenario


def shipped() -> tuple[str, ...]:
    """The names of the scenarios that come with p2pfl."""
    folder = resources.files(__package__) / "scenarios"
    return tuple(sorted(f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml")))


def load(
    name: str,
    *,
    peers: int | None = None,
    rounds: int | None = None,
    seed: int | None = None,
    engine: str | None = None,
    settings: Sequence[str] = (),
) -> Scenario:
    """The scenario in file `name`, or shipped under that name, with what the flags change.

    settings: `key=value` with dotted keys and TOML values, such as `learner.optimizer.lr=0.05`.
    Raises ConfigError with the path of what is wrong.
    """
    text, where = _text_of(name)
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{where}: not TOML: {error}") from error
    flags = {"simulation.peers": peers, "simulation.engine": engine, "run.rounds": rounds, "run.seed": seed}
    given = {key: value for key, value in flags.items() if value is not None}
    for key, value in given.items():
        _put(table, key, value)
    for setting in settings:
        set_key(table, setting)
    scenario = decode(table, where, Path(name).stem)
    varied = {key for axis in scenario.axes for case in axis.cases for key in case.settings}
    for key in (*given, *(setting.partition("=")[0].strip() for setting in settings)):
        if any(f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.") for other in varied):
            raise ConfigError(
                f"{key} is varied by the grid of {where}; set simulation.grid itself,"
                " as in --set 'simulation.grid={\"learner.optimizer.lr\"=[0.1, 0.2]}'"
            )
    return scenario


def decode(table: dict[str, Any], where: str, name: str) -> Scenario:
    """The scenario in `table`, as read from TOML, with all cells of its grid.  Raises ConfigError."""
    whole = _decode(table, where, name)
    axes = grids.axes_of(whole.simulation.grid)
    expect.check(whole.expectations, {axis.name: [case.label for case in axis.cases] for axis in axes})
    cells = []
    for cases, settings in grids.combinations(axes):
        changed = copy.deepcopy(table)
        for key, value in {**settings, **_ONE_TRIAL}.items():
            _put(changed, key, value)
        cells.append(
            Cell(
                cases=cases,
                scenario=_decode(changed, f"{where}, {grids.shown(cases)}" if cases else where, name),
            )
        )
    return replace(whole, axes=axes, cells=tuple(cells))


def _decode(table: dict[str, Any], where: str, name: str) -> Scenario:
    agreement = runs.resolved({k: v for k, v in table.items() if k != "simulation"}, Path(where).parent)
    try:
        simulation = msgspec.convert(table.get("simulation", {}), SimulationOptions)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: [simulation] {error}") from error
    if simulation.engine == "ray":
        simulation = msgspec.structs.replace(simulation, kernels="fused")
    # Everybody is there from the start unless the agreement says otherwise.
    everybody = {"members_at_start": min(simulation.peers, MOST_PEERS)}
    agreement["run"] = {**everybody, **agreement.get("run", {})}
    spec = runs.decode(agreement, where)
    if spec.run.members_at_start > simulation.peers:
        raise ConfigError(
            f"{where}: run.members_at_start is {spec.run.members_at_start} and simulation.peers"
            f" {simulation.peers}: the run would never begin; leave members_at_start out"
        )
    fits = simulation.fit_s if isinstance(simulation.fit_s, tuple) else (simulation.fit_s,)
    if not fits or min(fits) < 0:
        raise ConfigError(f"{where}: simulation.fit_s is a number of seconds, or one for each peer")
    if simulation.seeds:
        parse_seeds(simulation.seeds)
    check_roles(spec, simulation.peers, simulation.roles, where)
    if max(simulation.churn.peers, default=0) >= simulation.peers:
        raise ConfigError(f"{where}: simulation.churn.peers are numbers from 0 to {simulation.peers - 1}")
    false_knowledge.check(simulation.attack, spec, where)
    leakage.check(simulation.leakage, spec, simulation.engine, where)
    try:
        classes.factors(simulation.speed, simulation.peers, 0)
        Lines(simulation.access, simulation.network.link(), simulation.peers, 0)
    except ConfigError as error:
        raise ConfigError(f"{where}: [simulation] {error}") from error
    check_engine(spec, simulation, where)
    if simulation.attack.byzantine and mixer_of(spec) is PUSH_PULL:
        raise ConfigError(
            f"{where}: simulation.attack forges models, and push-pull's shares hold a tracker as well; choose"
            " push-sum or d-psgd averaging"
        )
    return Scenario(
        name=name,
        spec=placed(spec, simulation.attack, simulation.peers),
        simulation=simulation,
        expectations=tuple(expect.parse(text) for text in simulation.expect),
        written=spec,
    )


def set_key(table: dict[str, Any], setting: str) -> None:
    """Put `key=value` (dotted key, TOML value; what is no TOML value is a string) into `table`.

    Raises ConfigError.
    """
    key, separator, text = setting.partition("=")
    if not separator or not key.strip():
        raise ConfigError(f"--set {setting!r} is not key=value, such as learner.optimizer.lr=0.05")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, KeyError):
        value = text.strip()
    _put(table, key.strip(), value)


def parse_seeds(text: str) -> tuple[int, ...]:
    """`0-4`, `7` or `1,3,5-6` as seeds.  Raises ConfigError.

    >>> parse_seeds("0-2,7")
    (0, 1, 2, 7)
    """
    seeds: list[int] = []
    for part in text.split(","):
        low, separator, high = part.strip().partition("-")
        if not low.isdecimal() or (separator and not high.isdecimal()):
            raise ConfigError(f"seeds {text!r} are not understood; write them like 0-4 or 1,3,5")
        seeds += range(int(low), int(high or low) + 1)
    if not seeds or len(set(seeds)) != len(seeds) or len(seeds) > 1000:
        raise ConfigError(f"seeds {text!r} are none, repeated or more than 1,000; write them like 0-4")
    return tuple(seeds)


def _text_of(name: str) -> tuple[str, str]:
    path = Path(name).expanduser()
    if path.suffix != ".toml" and not path.exists():
        if name not in shipped():
            raise ConfigError(f"no scenario {name!r}; give a file, or one of {', '.join(shipped())}")
        return (resources.files(__package__) / "scenarios" / f"{name}.toml").read_text(encoding="utf-8"), name
    try:
        return path.read_text(encoding="utf-8"), str(path)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}; shipped are {', '.join(shipped())}") from error


def _put(table: dict[str, Any], key: str, value: Any) -> None:
    *folders, last = key.split(".")
    for folder in folders:
        inner = table.setdefault(folder, {})
        if not isinstance(inner, Mapping):
            raise ConfigError(f"{key}: {folder} is a value, not a table")
        table = inner  # type: ignore[assignment]
    table[last] = value
