"""Telemetry: what a node tells the people who run it, as log lines, Prometheus metrics and a live stream.

All three are fed with the same facts.  Nothing here leaves the site: lines go to a stream of this process,
metrics are read over the control socket, and the stream of facts is a bounded ring in memory.
"""

import logging
import sys
from collections import deque
from collections.abc import Mapping
from typing import Any, Self, TextIO, get_args

import numpy as np
import structlog
import trio
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from p2pfl.errors import ConfigError
from p2pfl.events import Fact
from p2pfl.trust.envelope import Refusal
from p2pfl.trust.screening import REASONS

__all__ = ["LEVELS", "FAULT_KINDS", "configure", "Telemetry", "EventHub", "Subscription"]

LEVELS: Mapping[str, int] = {"debug": 10, "info": 20, "warning": 30, "error": 40}
# The closed set of label values of p2pfl_faults_total: the words of screening and of the envelope, those of
# the peer itself, "malformed" for bytes that could not be understood, "other" for a word that is not here.
FAULT_KINDS: tuple[str, ...] = tuple(
    dict.fromkeys(
        (
            "learner",
            "malformed",
            *REASONS,
            *get_args(Refusal),
            "misaddressed",
            "other-run",
            "offer",
            "statement",
            "equivocation",
            "commitment",
            "incarnation",
            "roster",
            "notice",
            "rollback-claim",
            "address-record",
            "certificate",
            "revocation",
            "other",
        )
    )
)
# Facts that a new subscriber can look back on: at four facts a round, some 250 rounds; well below a megabyte.
_RING_FACTS = 1_000
# Upper ends of the buckets, seconds: from a loopback demo to a round of ten minutes over a WAN.
_ROUND_SECONDS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
# Longest metric name that becomes a label; the user's learner chooses the names.
_MAX_LABEL = 64
# Libraries that report every dial and every request; their errors still come through.
_CHATTY = ("libp2p", "multiaddr", "hypercorn", "httpx", "httpcore", "zeroconf")


def configure(level: str = "info", json: bool = False, stream: TextIO | None = None) -> None:
    """Send this process's log lines of `level` and above to `stream` (stderr), for people or as JSON lines.

    Lines of other libraries take the same form from "warning" on.  Arrays and long byte strings are written
    as their sizes.  May be called again; the last call holds.  Raises ConfigError on an unknown level.
    """
    if level not in LEVELS:
        raise ConfigError(f"no log level {level!r}; use one of {', '.join(LEVELS)}")
    output = sys.stderr if stream is None else stream
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _without_content,
    ]
    last: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if json
        else structlog.dev.ConsoleRenderer(colors=output.isatty(), sort_keys=False)
    )
    structlog.configure(
        processors=[*shared, structlog.processors.format_exc_info, last]
        if json
        else [*shared, structlog.processors.StackInfoRenderer(), last],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=structlog.WriteLoggerFactory(file=output),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(output)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared[:-1], structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, last],
        )
    )
    root = logging.getLogger()
    for former in root.handlers[:]:
        if isinstance(former.formatter, structlog.stdlib.ProcessorFormatter):
            root.removeHandler(former)
    root.addHandler(handler)
    root.setLevel(max(logging.WARNING, LEVELS[level]))
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)


class Telemetry:
    """One node's log lines and metrics.  Several nodes in one process do not share any of them."""

    def __init__(self, **labels: str) -> None:
        """labels: bound to every log line, for instance node="st-marys"."""
        self._log: structlog.typing.FilteringBoundLogger = structlog.get_logger(**labels)
        self._registry = CollectorRegistry()

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(name, text, registry=self._registry)

        def counter(name: str, text: str) -> Counter:
            return Counter(name, text, registry=self._registry)

        self._rounds = counter("p2pfl_rounds_total", "Rounds committed by this process.")
        self._round = gauge("p2pfl_round_number", "The last round committed.")
        self._seconds = Histogram(
            "p2pfl_round_seconds", "Duration of a round.", buckets=_ROUND_SECONDS, registry=self._registry
        )
        self._sent = counter("p2pfl_sent_bytes_total", "Bytes sent to peers.")
        self._received = counter("p2pfl_received_bytes_total", "Bytes received from peers.")
        self._connected = gauge("p2pfl_connected_peers", "Members connected now.")
        self._weight = gauge(
            "p2pfl_weight_ratio", "Push-sum weight before it is shared, over its first; alarm below .05."
        )
        self._loss = gauge("p2pfl_training_loss_value", "Training loss of the last round.")
        self._metric = Gauge(
            "p2pfl_evaluation_value", "Last evaluation at this site.", ["metric"], registry=self._registry
        )
        self._faults = Counter("p2pfl_faults_total", "Faults by kind.", ["kind"], registry=self._registry)
        for kind in FAULT_KINDS:
            self._faults.labels(kind)

    def observe(self, fact: Fact) -> None:
        """Write the fact's log line and move the metrics it is about.

        "round committed": round, seconds, w, weight0, loss; bytes_sent and bytes_received of that round.
            "evaluated": metrics.  "learner failed": a fault of the learner.
        Any other: `fault`, counted under one of FAULT_KINDS; `connected`, members connected now.
        """
        fields = fact.fields
        getattr(self._log, fact.level if fact.level in LEVELS else "info")(fact.event, **fields)
        if fact.event == "round committed":
            self._observe_round(fields)
        elif fact.event == "evaluated":
            for name, value in _mapping(fields.get("metrics")).items():
                if (number := _number(value)) is not None and len(name) <= _MAX_LABEL:
                    self._metric.labels(name).set(number)
        if "fault" in fields:
            self._faults.labels(_fault_kind(fact)).inc()
        if (connected := _number(fields.get("connected"))) is not None:
            self._connected.set(connected)

    def connected(self, peers: int) -> None:
        """Set the number of members connected now."""
        self._connected.set(peers)

    def render(self) -> bytes:
        """The metrics in Prometheus' text format, for `/metrics`."""
        return generate_latest(self._registry)

    def _observe_round(self, fields: Mapping[str, Any]) -> None:
        self._rounds.inc()
        for name, move in (
            ("round", self._round.set),
            ("seconds", self._seconds.observe),
            ("loss", self._loss.set),
            ("bytes_sent", self._sent.inc),
            ("bytes_received", self._received.inc),
        ):
            value = _number(fields.get(name))
            if value is not None and (value >= 0 or name == "loss"):
                move(value)
        w, weight0 = _number(fields.get("held")), _number(fields.get("weight0"))
        if w is not None and weight0:
            self._weight.set(w / weight0)


class EventHub:
    """The last facts of a node, numbered from 1, for any number of readers at their own pace.

    Readers hold no queue: each remembers only where it is.  One that falls behind the ring is cut, and may
    subscribe again; so a slow reader costs nothing, and memory is that of the ring.
    """

    def __init__(self, capacity: int = _RING_FACTS, last: int = 0) -> None:
        """last: the number that the fact before the first had, so that numbers go on after a restart."""
        self._ring: deque[tuple[int, Fact]] = deque(maxlen=capacity)
        self._last = last
        self._news = trio.Event()
        self._closed = False

    @property
    def last(self) -> int:
        """The number of the last fact published."""
        return self._last

    def publish(self, fact: Fact) -> int:
        """Number `fact`, wake the readers, and return the number.  Never waits."""
        self._last += 1
        self._ring.append((self._last, fact))
        self._wake()
        return self._last

    def subscribe(self, since: int = 0) -> "Subscription":
        """Facts numbered above `since` with their numbers: those still in the ring, then as they come.

        A `since` that no fact had yet (a page left open over a restart) means all that is in the ring.
        """
        return Subscription(self, since if since <= self._last else 0)

    def close(self) -> None:
        """End every subscription once it has read what there is."""
        self._closed = True
        self._wake()

    def _wake(self) -> None:
        self._news.set()
        self._news = trio.Event()


class Subscription:
    """An asynchronous iterator over (number, fact); it ends when the hub closes or its reader is too slow."""

    def __init__(self, hub: EventHub, since: int) -> None:
        self._hub = hub
        oldest = hub._ring[0][0] if hub._ring else hub._last + 1
        self._next = max(since + 1, oldest)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> tuple[int, Fact]:
        hub = self._hub
        while self._next > hub._last:
            if hub._closed:
                raise StopAsyncIteration
            await hub._news.wait()
        behind = self._next - hub._ring[0][0]
        if behind < 0:
            raise StopAsyncIteration
        entry = hub._ring[behind]
        self._next += 1
        await trio.lowlevel.checkpoint()
        return entry


def _without_content(
    logger: Any, method: str, fields: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Sizes in place of arrays and long bytes, so that no parameter, row or key is ever logged."""
    for name, value in fields.items():
        match value:
            case np.ndarray():
                fields[name] = f"{value.shape} {value.dtype}"
            case np.generic():
                fields[name] = value.item()
            case bytes() | bytearray() | memoryview():
                fields[name] = bytes(value).hex() if len(value) <= 32 else f"{len(value)} bytes"
            case Mapping():
                fields[name] = dict(_without_content(logger, method, dict(value)))
    return fields


def _fault_kind(fact: Fact) -> str:
    """The label of a fact's fault: a known word as it is, a sentence as what it always is about."""
    if fact.event == "learner failed":
        return "learner"
    kind = str(fact.fields["fault"])
    if " " in kind:
        return "malformed"
    return kind if kind in FAULT_KINDS else "other"


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _number(value: Any) -> float | None:
    """`value` as a finite float, None when it is not one."""
    if isinstance(value, int | float | np.integer | np.floating) and np.isfinite(value):
        return float(value)
    return None
