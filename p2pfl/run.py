"""run.toml: the agreement that every site of a run holds, word for word.

Its canonical form is JSON with sorted keys and every default spelled out, so that two files that say the
same thing hash to the same RunId however they are laid out.
"""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from p2pfl.errors import ConfigError
from p2pfl.gossip.edge_lists import parse_edges
from p2pfl.gossip.options import AveragingOptions, CompressionOptions, TopologyOptions
from p2pfl.ids import RunId, parse_peer_id
from p2pfl.knowledge.options import KnowledgeOptions
from p2pfl.learn.learner import DpSgd
from p2pfl.learn.options import LearnerOptions
from p2pfl.trust.options import TrustOptions

__all__ = [
    "AMENDABLE",
    "GossipOptions",
    "KnowledgeOptions",
    "RunOptions",
    "RunSpec",
    "amend",
    "canonical",
    "decode",
    "differing_keys",
    "dp_sgd_of",
    "exchange_of",
    "load",
    "parse",
    "resolved",
    "run_id",
    "self_contained",
    "write_toml",
]

# An agreement travels in every HELLO, whose frame has 64 KiB; larger ones belong in the learner's own files.
MAX_AGREEMENT_BYTES = 32 * 1024
# Differing keys named to a person; one is usually enough to see what happened.
MAX_DIFFERING = 16
# What founders may change in a run that is under way: how long it lasts, how long a round waits and for whom,
# and whom it believes.  Everything else shapes the model, the graph or the data, and is another run.
AMENDABLE = (
    "run.rounds",
    "run.deadline_s",
    "run.quorum",
    "run.evaluate_every",
    "trust.aggregator",
    "trust.reputation",
    "trust.max_norm",
)
_KEY = re.compile(r"[A-Za-z0-9_.-]{1,80}")


class RunOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[run]`: its name, its length, and when a round ends."""

    name: str = "run"
    rounds: int = 100
    seed: int = 0
    members_at_start: int = 1
    closing_rounds: int = 3
    deadline_s: float = 120.0
    # Share of the plan's in-neighbours that must be heard from, over three rounds.
    quorum: float = 0.5
    weights: str = "uniform"
    evaluate_every: int = 1

    def __post_init__(self) -> None:
        checks = (
            (0 < len(self.name) <= 64, "run.name has 1 to 64 characters"),
            (0 <= self.rounds <= 1_000_000, "run.rounds is 0 to 1,000,000"),
            (0 <= self.seed < 2**63, "run.seed is 0 to 2^63 - 1"),
            (1 <= self.members_at_start <= 4096, "run.members_at_start is 1 to 4096"),
            (0 <= self.closing_rounds <= 10_000, "run.closing_rounds is 0 to 10,000"),
            (0 < self.deadline_s <= 7 * 86_400, "run.deadline_s is more than 0 and at most a week"),
            (0 <= self.quorum <= 1, "run.quorum is a fraction, 0 to 1"),
            (self.weights in ("uniform", "samples"), 'run.weights is "uniform" or "samples"'),
            (self.evaluate_every >= 1, "run.evaluate_every is at least 1"),
        )
        for holds, rule in checks:
            if not holds:
                raise ValueError(rule)


class GossipOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[gossip]`: who talks to whom, and how models mix."""

    topology: TopologyOptions = msgspec.field(default_factory=TopologyOptions)
    averaging: AveragingOptions = msgspec.field(default_factory=AveragingOptions)
    compression: CompressionOptions = msgspec.field(default_factory=CompressionOptions)


class RunSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole agreement."""

    run: RunOptions = msgspec.field(default_factory=RunOptions)
    learner: LearnerOptions = msgspec.field(default_factory=LearnerOptions)
    gossip: GossipOptions = msgspec.field(default_factory=GossipOptions)
    knowledge: KnowledgeOptions = msgspec.field(default_factory=KnowledgeOptions)
    trust: TrustOptions = msgspec.field(default_factory=TrustOptions)

    def __post_init__(self) -> None:
        rule, averaging = self.trust.aggregator.kind, self.gossip.averaging.kind
        mixing = f"trust.aggregator {rule!r}" if rule != "none" else f"gossip.averaging {averaging!r}"
        if rule == "capped-share" and not (averaging == "push-sum" and self.gossip.topology.is_mutual):
            raise ValueError(
                'trust.aggregator "capped-share" takes back on an edge what it gave on it: it needs'
                ' gossip.averaging "push-sum" and a topology in which who sends also hears, such as'
                ' "complete", "ring" or "random-regular"'
            )
        if self.run.weights == "samples" and (
            rule not in ("none", "capped-share") or averaging != "push-sum"
        ):
            raise ValueError(
                f'run.weights = "samples" is for push-sum, and {mixing} counts all sites alike; use "uniform"'
            )
        if rule != "none" and self.learner.standardise == "federation":
            raise ValueError(
                f'learner.standardise = "federation" adds up what every site says, which {mixing} cannot'
                ' check; use "site" or "none"'
            )
        self._check_privacy(mixing)
        self._check_knowledge()

    def _check_knowledge(self) -> None:
        """Refuse an exchange that would tell what the agreement protects, or that has nobody to talk to."""
        kind, averaging = self.knowledge.exchange.kind, self.gossip.averaging.kind
        if averaging == "none":
            if kind in ("none", "proxy"):
                raise ValueError(
                    f'gossip.averaging.kind = "none" and knowledge.exchange.kind = {kind!r}: nothing would'
                    ' travel; choose "push-sum", or an exchange of knowledge'
                )
            if self.trust.aggregator.kind != "none" or self.trust.reputation.kind != "none":
                raise ValueError(
                    'trust.aggregator and trust.reputation judge models, which gossip.averaging.kind = "none"'
                    " does not send; leave them out"
                )
            if self.learner.standardise == "federation":
                raise ValueError(
                    'learner.standardise = "federation" pools sums as weights travel, and'
                    ' gossip.averaging.kind is "none"; use "site" or "none"'
                )
        if kind == "none":
            return
        is_covered = kind == "probe" and self.trust.privacy.kind == "dp-sgd"
        if self.trust.privacy.kind != "none" and not is_covered:
            raise ValueError(
                f"knowledge.exchange {kind!r} tells of single rows what trust.privacy"
                f" {self.trust.privacy.kind!r} does not cover; leave one of them out, or exchange predictions"
                ' of models that "dp-sgd" has trained: kind = "probe"'
            )
        if is_covered and self.knowledge.exchange["keep"] < 1:
            raise ValueError(
                "knowledge.exchange.keep below 1 tells how sure a model is of a site's own rows, which"
                ' trust.privacy "dp-sgd" does not cover; leave it out'
            )
        if kind == "hub" and not self.gossip.topology.is_mutual:
            raise ValueError(
                f'knowledge.exchange "hub" answers whom it hears, and topology {self.gossip.topology.kind!r}'
                ' is one-way; use "complete", or another that goes both ways'
            )

    def _check_privacy(self, mixing: str) -> None:
        """Refuse what would leave beside the noise, or what a spent budget cannot end."""
        privacy, standardise = self.trust.privacy, self.learner.standardise
        if privacy.kind == "none":
            return
        if self.run.weights == "samples":
            raise ValueError(
                f'run.weights = "samples" tells numbers of rows, which trust.privacy {privacy.kind!r} does'
                ' not protect; use "uniform"'
            )
        if standardise == "federation":
            raise ValueError(
                f'learner.standardise = "federation" shares sums that trust.privacy {privacy.kind!r} does not'
                ' protect; use "none"'
            )
        if self.trust.reputation.kind != "none":
            raise ValueError(
                "trust.reputation measures models on a site's rows and mixes accordingly, which trust.privacy"
                f' {privacy.kind!r} does not protect; use a robust rule (trust.aggregator), or kind = "none"'
            )
        if privacy.kind == "dp-sgd" and standardise == "site":
            raise ValueError(
                'learner.standardise = "site" lets each row change all others, which trust.privacy "dp-sgd"'
                ' does not protect; use "none", with learner.data.scale'
            )
        if privacy.max_epsilon is not None and "push-pull" in mixing:
            raise ValueError(
                f"{mixing} follows a site's last gradient, even one that trust.privacy.max_epsilon stopped;"
                ' leave max_epsilon out, or use "push-sum"'
            )


def decode(table: object, where: str) -> RunSpec:
    """`table`, as read from TOML or JSON, as a RunSpec.  Raises ConfigError that says where."""
    try:
        spec = msgspec.convert(table, RunSpec)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {error}") from error
    for founder in spec.trust.founders:
        try:
            parse_peer_id(founder)
        except ConfigError as error:
            raise ConfigError(f"{where}: trust.founders: {error}") from error
    if len(canonical(spec)) > MAX_AGREEMENT_BYTES:
        raise ConfigError(f"{where}: the agreement is larger than {MAX_AGREEMENT_BYTES // 1024} KiB")
    return spec


def parse(text: str, where: str = "run.toml") -> RunSpec:
    """A RunSpec from TOML text.  Raises ConfigError."""
    try:
        return decode(tomllib.loads(text), where)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{where}: not TOML: {error}") from error


def load(path: Path) -> RunSpec:
    """A RunSpec from a file, with the edges of a file that it names.  Raises ConfigError."""
    return decode(_table_of(path), str(path))


def self_contained(path: Path) -> str:
    """The text of an agreement, word for word, or written anew where it names a file of edges.

    Raises ConfigError.
    """
    text = _text_of(path)
    is_whole = _file_of_edges(tomllib.loads(text)) is None
    return text if is_whole else write_toml(msgspec.to_builtins(load(path)))


def resolved(table: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """`table` of an agreement with the edges of the file that its `gossip.topology.file` names, if it does.

    folder: where that file is looked for.   Raises ConfigError.
    """
    name = _file_of_edges(table)
    if name is None:
        return dict(table)
    topology = {key: value for key, value in table["gossip"]["topology"].items() if key != "file"}
    if topology.setdefault("kind", "explicit") != "explicit" or "edges" in topology:
        raise ConfigError("gossip.topology.file is for kind 'explicit', and instead of edges; keep one")
    path = folder / Path(name).expanduser()
    try:
        pairs = parse_edges(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}; check gossip.topology.file") from error
    return {**table, "gossip": {**table["gossip"], "topology": {**topology, "edges": pairs}}}


def _file_of_edges(table: Mapping[str, Any]) -> str | None:
    gossip = table.get("gossip")
    topology = gossip.get("topology") if isinstance(gossip, Mapping) else None
    name = topology.get("file") if isinstance(topology, Mapping) else None
    return name if isinstance(name, str) else None


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}; `p2pfl run new` writes one") from error


def _table_of(path: Path) -> dict[str, Any]:
    try:
        return resolved(tomllib.loads(_text_of(path)), path.parent)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error


def canonical(spec: RunSpec) -> bytes:
    """The one spelling of an agreement: UTF-8 JSON, keys sorted, no spaces, defaults included."""
    return json.dumps(
        msgspec.to_builtins(spec), sort_keys=True, separators=(",", ":"), ensure_ascii=False
    ).encode()


def amend(spec: RunSpec, changes: Mapping[str, str]) -> RunSpec:
    """`spec` with `changes`, dotted keys to JSON; null leaves a key out.

    Raises ConfigError on a key that is not AMENDABLE, and on a value that it cannot have.
    """
    table = msgspec.to_builtins(spec)
    for key, text in changes.items():
        if not any(key == known or key.startswith(f"{known}.") for known in AMENDABLE):
            raise ConfigError(f"{key} cannot be amended; what can is {', '.join(AMENDABLE)}")
        *path, last = key.split(".")
        inner = table
        for step in path:
            inner = inner.get(step)
            if not isinstance(inner, dict):
                raise ConfigError(f"{key}: {step} is no table; see docs/configuration.md")
        try:
            inner[last] = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{key}: {text[:80]!r} is not JSON") from error
    return decode(table, "the amended agreement")


def run_id(spec: RunSpec) -> RunId:
    """SHA-256 of the canonical form, in hex."""
    return RunId(hashlib.sha256(canonical(spec)).hexdigest())


def _leaves(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        return {k: v for key, item in value.items() for k, v in _leaves(item, f"{path}.{key}").items()}
    return {path.removeprefix("."): value}


def dp_sgd_of(spec: RunSpec) -> DpSgd | None:
    """What the agreement asks of a learner's steps; None where it does not protect single rows."""
    options = spec.trust.privacy
    if options.kind != "dp-sgd" or options.clip is None or options.noise_multiplier is None:
        return None
    return DpSgd(clip=options.clip, noise_multiplier=options.noise_multiplier)


def exchange_of(spec: RunSpec) -> dict[str, Any]:
    """What a learner is told of the exchange, as fields of its Site: the kind, and the probe set."""
    told: dict[str, Any] = {"exchange": spec.knowledge.exchange.kind}
    if (probe := spec.knowledge.probe) is not None:
        told |= {"probe_source": probe.source, "probe_digest": probe.digest, "probe_samples": probe.samples}
    return told


def differing_keys(ours: bytes, theirs: bytes) -> tuple[str, ...]:
    """The dotted keys in which two canonical forms differ, at most MAX_DIFFERING of them.

    Theirs comes from a peer: what cannot be read, or is no key of an agreement, is shown as "?".
    """
    try:
        mine, other = _leaves(json.loads(ours)), _leaves(json.loads(theirs))
    except (ValueError, RecursionError):
        return ("?",)
    missing = object()
    differing = (k for k in mine.keys() | other.keys() if mine.get(k, missing) != other.get(k, missing))
    shown = sorted({key if _KEY.fullmatch(key) else "?" for key in differing})
    return tuple(shown[:MAX_DIFFERING])


def write_toml(value: Any) -> str:
    """`value`, tables of tables, scalars and lists of scalars, as TOML; empty tables and None left out."""
    tables: list[str] = []

    def scalar(item: Any) -> str:
        if isinstance(item, dict):
            return "{ " + ", ".join(f"{k} = {scalar(v)}" for k, v in item.items() if v is not None) + " }"
        if isinstance(item, (list, tuple)):
            return "[" + ", ".join(scalar(v) for v in item) + "]"
        if isinstance(item, bool):
            return "true" if item else "false"
        # JSON's string escapes are TOML's basic-string escapes.
        return json.dumps(item) if isinstance(item, str) else repr(item)

    for name, table in value.items():
        lines = [f"{key} = {scalar(item)}" for key, item in table.items() if item is not None and item != {}]
        tables.append(f"[{name}]\n" + "\n".join(lines) + ("\n" if lines else ""))
    return "\n".join(tables)
