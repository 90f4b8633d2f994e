"""Telemetry: facts as log lines, metrics, and a stream that a slow reader cannot fill."""

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import structlog
import trio
from prometheus_client.parser import text_string_to_metric_families
from trio.testing import MockClock

from p2pfl.errors import ConfigError
from p2pfl.events import Fact
from p2pfl.node.telemetry import FAULT_KINDS, EventHub, Telemetry, configure


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield io.StringIO()
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def values(telemetry: Telemetry) -> dict[str, float]:
    text = telemetry.render().decode()
    return {
        sample.name + "".join(f"{{{v}}}" for v in sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def round_fact(**fields: Any) -> Fact:
    return Fact(event="round committed", fields={"round": 7, "seconds": 1.3, "peers": 4, **fields})


def test_a_round_is_one_json_line_with_its_data_in_fields(stream: io.StringIO) -> None:
    configure("info", json=True, stream=stream)
    Telemetry(node="st-marys").observe(round_fact(w=np.float32(0.5)))
    line = json.loads(stream.getvalue())
    timestamp = line.pop("timestamp")
    assert timestamp.endswith("Z")
    assert line == {
        "event": "round committed",
        "level": "info",
        "node": "st-marys",
        "round": 7,
        "seconds": 1.3,
        "peers": 4,
        "w": 0.5,
    }


def test_lines_for_people_carry_the_same_fields(stream: io.StringIO) -> None:
    configure("info", stream=stream)
    Telemetry().observe(round_fact())
    assert "round committed" in stream.getvalue()
    assert "seconds=1.3" in stream.getvalue()


def test_the_level_filters_and_the_last_configuration_holds(stream: io.StringIO) -> None:
    telemetry = Telemetry()
    configure("warning", json=True, stream=stream)
    telemetry.observe(round_fact())
    telemetry.observe(Fact(event="neighbour late", level="warning"))
    telemetry.observe(Fact(event="odd level", level="shout"))
    assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == ["neighbour late"]
    configure("debug", json=True, stream=stream)
    telemetry.observe(Fact(event="hello", level="debug"))
    assert stream.getvalue().count("hello") == 1
    with pytest.raises(ConfigError, match="use one of debug"):
        configure("loud")


def test_no_parameter_and_no_key_is_ever_logged(stream: io.StringIO) -> None:
    configure("info", json=True, stream=stream)
    secret = np.full(1000, 1234.5, np.float32)
    Telemetry().observe(
        Fact(event="odd", fields={"x": secret, "raw": secret.tobytes(), "deep": {"x": secret}, "id": b"\x01"})
    )
    line = json.loads(stream.getvalue())
    assert (line["x"], line["raw"], line["id"]) == ("(1000,) float32", "4000 bytes", "01")
    assert "1234" not in stream.getvalue()


def test_other_libraries_are_heard_from_warning_on_and_in_the_same_form(stream: io.StringIO) -> None:
    configure("info", json=True, stream=stream)
    configure("info", json=True, stream=stream)
    logging.getLogger("some.package").info("chatter")
    logging.getLogger("libp2p.host").warning("dial failed again")
    logging.getLogger("some.package").warning("it broke: %s", "badly")
    (line,) = map(json.loads, stream.getvalue().splitlines())
    assert (line["event"], line["logger"], line["level"]) == ("it broke: badly", "some.package", "warning")


def test_metrics_follow_the_facts(stream: io.StringIO) -> None:
    configure("error", stream=stream)
    telemetry = Telemetry()
    assert values(telemetry)["p2pfl_faults_total{duplicate}"] == 0
    telemetry.observe(
        round_fact(held=0.5, weight0=2.0, loss=0.25, bytes_sent=100, bytes_received=np.int64(50))
    )
    telemetry.observe(round_fact(round=8, w=None, loss=float("nan"), bytes_sent=-5, seconds="long"))
    telemetry.observe(Fact(event="evaluated", fields={"round": 8, "metrics": {"auc": 0.9, "x" * 99: 1.0}}))
    telemetry.observe(Fact(event="fault of a peer", fields={"fault": "duplicate", "peer": "12D3"}))
    telemetry.observe(Fact(event="fault of a peer", fields={"fault": "novelty"}))
    telemetry.observe(Fact(event="fault of a peer", fields={"fault": "a body that is too short"}))
    telemetry.observe(Fact(event="learner failed", fields={"fault": "ValueError: no rows"}))
    telemetry.connected(3)
    found = values(telemetry)
    assert found["p2pfl_rounds_total"] == 2
    assert found["p2pfl_round_number"] == 8
    assert (found["p2pfl_round_seconds_count"], found["p2pfl_round_seconds_sum"]) == (1, 1.3)
    assert (found["p2pfl_sent_bytes_total"], found["p2pfl_received_bytes_total"]) == (100, 50)
    assert (found["p2pfl_weight_ratio"], found["p2pfl_training_loss_value"]) == (0.25, 0.25)
    assert found["p2pfl_connected_peers"] == 3
    assert found["p2pfl_evaluation_value{auc}"] == 0.9
    faults = {kind: found[f"p2pfl_faults_total{{{kind}}}"] for kind in FAULT_KINDS}
    assert {kind: n for kind, n in faults.items() if n} == {
        "duplicate": 1,
        "other": 1,
        "malformed": 1,
        "learner": 1,
    }
    assert not [name for name in found if "12D3" in name or "xxx" in name]
    assert all(name.startswith("p2pfl_") for name in found)


def test_two_nodes_in_one_process_share_no_metric(stream: io.StringIO) -> None:
    configure("error", stream=stream)
    one, two = Telemetry(), Telemetry()
    one.observe(round_fact())
    assert (values(one)["p2pfl_rounds_total"], values(two)["p2pfl_rounds_total"]) == (1, 0)


# --- the stream of facts ------------------------------------------------------------------------------


async def take(hub: EventHub, since: int, count: int) -> list[int]:
    found = []
    async for number, _ in hub.subscribe(since):
        found.append(number)
        if len(found) == count:
            break
    return found


async def test_a_subscriber_gets_what_it_missed_and_then_what_comes(autojump_clock: MockClock) -> None:
    hub = EventHub()
    for n in range(3):
        assert hub.publish(Fact(event="tick", fields={"n": n})) == n + 1
    found: list[tuple[int, Any]] = []

    async def read() -> None:
        async for number, fact in hub.subscribe(1):
            found.append((number, fact.fields["n"]))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await trio.sleep(1)
        hub.publish(Fact(event="tick", fields={"n": 3}))
        await trio.sleep(1)
        hub.close()
    assert found == [(2, 1), (3, 2), (4, 3)]
    assert hub.last == 4


async def test_a_slow_subscriber_is_cut_and_the_ring_does_not_grow(autojump_clock: MockClock) -> None:
    hub = EventHub(capacity=10)
    slow = hub.subscribe()
    hub.publish(Fact(event="first"))
    assert (await anext(slow))[0] == 1
    for _ in range(10):
        hub.publish(Fact(event="tick"))
    assert (await anext(slow))[0] == 2
    hub.publish(Fact(event="tick"))
    hub.publish(Fact(event="tick"))
    with pytest.raises(StopAsyncIteration):
        await anext(slow)
    assert await take(hub, 2, 10) == list(range(4, 14))


async def test_numbers_go_on_after_a_restart_and_a_page_from_before_it_reads_the_ring(
    autojump_clock: MockClock,
) -> None:
    hub = EventHub(last=100)
    hub.publish(Fact(event="tick"))
    hub.publish(Fact(event="tick"))
    assert await take(hub, 101, 1) == [102]
    assert await take(hub, 5000, 2) == [101, 102]
    assert await take(hub, 0, 2) == [101, 102]


async def test_a_subscription_that_is_dropped_leaves_nothing_behind(autojump_clock: MockClock) -> None:
    hub = EventHub()
    hub.publish(Fact(event="tick"))
    assert await take(hub, 0, 1) == [1]
    with trio.move_on_after(5):
        await take(hub, 1, 1)
    assert hub.publish(Fact(event="tock")) == 2
