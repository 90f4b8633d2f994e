from __future__ import annotations

import json
import os
import socket
import stat
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import trio
from control_target import BETA, FakeTarget

from p2pfl.errors import (
    ConfigError,
    LearnerError,
    LocalError,
    NotRunningError,
    P2PFLError,
    RefusedError,
    RemoteError,
    StoreError,
    UnreachableError,
)
from p2pfl.events import Fact
from p2pfl.node import control
from p2pfl.node.sockets import socket_path

# Nothing here takes a second; a hang becomes a failure.
LIMIT_S = 20


@asynccontextmanager
async def control_client(target: FakeTarget, home: Path, port: int = 0) -> AsyncIterator[httpx.AsyncClient]:
    with trio.fail_after(LIMIT_S):
        async with trio.open_nursery() as nursery:
            await nursery.start(control.serve, target, home, port)
            transport = httpx.AsyncHTTPTransport(uds=str(socket_path(home)))
            async with httpx.AsyncClient(transport=transport, base_url="http://node") as client:
                yield client
            nursery.cancel_scope.cancel()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("/v1/status", "peer_id"),
        ("/v1/peers", "peers"),
        ("/v1/rounds?since=2", "rounds"),
        ("/v1/topology", "edges"),
        ("/v1/audit/decisions?since=2", "part"),
        ("/v1/run", "agreement"),
        ("/v1/trust", "trust"),
        ("/healthz", "healthy"),
        ("/readyz", "ready"),
    ],
)
async def test_every_question_is_answered_with_its_version(tmp_path: Path, path: str, key: str) -> None:
    async with control_client(FakeTarget(), tmp_path) as client:
        answer = await client.get(path)
    assert answer.status_code == 200
    assert answer.json()["v"] == 1
    assert key in answer.json()


async def test_a_nan_becomes_null_and_numpy_becomes_numbers(tmp_path: Path) -> None:
    target = FakeTarget()
    target.now = {"loss": float("nan"), "w": np.float64(2.5), "digest": b"\x01\xff", "peers": (1, 2)}
    async with control_client(target, tmp_path) as client:
        answer = (await client.get("/v1/status")).json()
    assert answer == {"v": 1, "loss": None, "w": 2.5, "digest": "01ff", "peers": [1, 2]}


async def test_rounds_begin_where_they_are_asked_to(tmp_path: Path) -> None:
    async with control_client(FakeTarget(), tmp_path) as client:
        answer = (await client.get("/v1/rounds", params={"since": 3})).json()
        wrong = await client.get("/v1/rounds", params={"since": "-1"})
    assert [row["round"] for row in answer["rounds"]] == [3, 4]
    assert wrong.status_code == 400
    assert wrong.json()["error"]["code"] == "config"


async def test_the_socket_is_for_its_owner_only_and_goes_with_the_server(tmp_path: Path) -> None:
    path = socket_path(tmp_path)
    before = os.umask(0)
    try:
        async with control_client(FakeTarget(), tmp_path):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
    finally:
        os.umask(before)
    assert not path.exists()


async def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(socket_path(tmp_path)))
    async with control_client(FakeTarget(), tmp_path) as client:
        assert (await client.get("/healthz")).status_code == 200


async def test_a_socket_that_somebody_serves_is_not_taken(tmp_path: Path) -> None:
    async with control_client(FakeTarget(), tmp_path):
        with pytest.raises(StoreError, match="served by another process"):
            await control.serve(FakeTarget(), tmp_path)
        assert socket_path(tmp_path).is_socket()


async def test_a_file_in_the_sockets_place_is_left_alone(tmp_path: Path) -> None:
    socket_path(tmp_path).write_text("mine")
    with pytest.raises(StoreError, match="not a socket"):
        await control.serve(FakeTarget(), tmp_path)
    assert socket_path(tmp_path).read_text() == "mine"


def test_a_home_too_deep_for_a_socket_is_refused_with_the_cure(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="shorter --home"):
        socket_path(tmp_path / ("x" * 120))


CALLS: list[tuple[str, str, dict[str, Any]]] = [
    ("leave", "/v1/run/leave", {}),
    ("pause", "/v1/run/pause", {}),
    ("resume", "/v1/run/resume", {}),
    ("ban", "/v1/trust/ban", {"peer": BETA, "reason": "poison"}),
    ("admit", "/v1/trust/admit", {"ticket": "p2pfl1abc"}),
    ("renew", "/v1/trust/renew", {"peer": BETA, "lasts_s": 60.0}),
    ("amend", "/v1/run/amend", {"changes": {"quorum": 0.4}, "at": 9, "sign": True}),
    ("set", "/v1/trust/set", {"peer": BETA, "share": "deny"}),
    ("forget", "/v1/trust/forget", {"peer": BETA}),
    ("ping", "/v1/ping", {"peer": BETA}),
    ("backup", "/v1/backup", {"path": "/dev/null"}),
    ("export", "/v1/export", {"path": "/dev/null"}),
]


@pytest.mark.parametrize(("verb", "path", "arguments"), CALLS)
async def test_every_verb_reaches_the_node(
    tmp_path: Path, verb: str, path: str, arguments: dict[str, Any]
) -> None:
    target = FakeTarget()
    target.answer = {"done": True}
    async with control_client(target, tmp_path) as client:
        answer = await client.post(path, json=arguments)
    assert target.commands == [(verb, arguments)]
    assert answer.json() == {"v": 1, "done": True}


def test_every_verb_of_the_table_is_tested_and_documented() -> None:
    assert {verb for verb, _, _ in CALLS} == set(control.VERBS)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"not json", "not JSON"),
        (b"[1]", "not an object"),
        (b"[" * 20_000, "not JSON"),
        (b'{"peer": "x", "colour": "red"}', "no argument 'colour'"),
        (b'{"peer": 7}', "must be of type str"),
        (b"{}", "needs peer"),
    ],
)
async def test_a_malformed_request_is_refused_and_never_reaches_the_node(
    tmp_path: Path, body: bytes, reason: str
) -> None:
    target = FakeTarget()
    async with control_client(target, tmp_path) as client:
        answer = await client.post("/v1/trust/ban", content=body)
    assert answer.status_code == 400
    assert reason in answer.json()["error"]["message"]
    assert target.commands == []


async def test_a_request_past_the_limit_is_refused(tmp_path: Path) -> None:
    target = FakeTarget()
    async with control_client(target, tmp_path) as client:
        within = await client.post("/v1/ping", content=json.dumps({"peer": "x" * 60_000}))
        beyond = await client.post("/v1/ping", content=json.dumps({"peer": "x" * 70_000}))
    assert (within.status_code, beyond.status_code) == (200, 413)
    assert beyond.json()["error"]["code"] == "too-large"
    assert len(target.commands) == 1


@pytest.mark.parametrize(
    ("error", "code", "status"),
    [
        (ConfigError("bad; do this"), "config", 400),
        (RefusedError("no"), "refused", 403),
        (UnreachableError("gone"), "unreachable", 504),
        (RemoteError("odd"), "remote", 502),
        (NotRunningError("over"), "not-running", 409),
        (LearnerError("nan"), "learner", 500),
        (StoreError("full"), "store", 500),
        (LocalError("hm"), "failed", 500),
        (RuntimeError("a fault of ours"), "failed", 500),
    ],
)
async def test_an_error_keeps_its_word_and_its_hint(
    tmp_path: Path, error: P2PFLError, code: str, status: int
) -> None:
    target = FakeTarget()
    target.fails = error
    async with control_client(target, tmp_path) as client:
        answer = await client.post("/v1/ping", json={"peer": BETA})
        assert (await client.get("/healthz")).status_code == 200
    assert answer.status_code == status
    said = answer.json()["error"]
    assert said["code"] == code
    assert said["message"] == str(error).partition("; ")[0]
    assert said["hint"] == str(error).partition("; ")[2]


async def test_an_unknown_path_and_a_wrong_method_are_answered_in_json(tmp_path: Path) -> None:
    async with control_client(FakeTarget(), tmp_path) as client:
        missing, wrong = await client.get("/v1/nothing"), await client.get("/v1/ping")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not-found")
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (405, "not-allowed")


async def test_readiness_is_told_apart_from_health(tmp_path: Path) -> None:
    target = FakeTarget()
    target.is_ready = False
    async with control_client(target, tmp_path) as client:
        assert (await client.get("/readyz")).status_code == 503
        assert (await client.get("/healthz")).status_code == 200


async def test_stop_is_passed_on_and_after_the_time_limit_it_is_at_once(tmp_path: Path) -> None:
    target = FakeTarget()
    async with control_client(target, tmp_path) as client:
        answer = await client.post("/v1/stop", json={"after_round": True, "timeout_s": 0})
        await target.stopped.wait()
        refused = await client.post("/v1/stop", json={"timeout_s": "soon"})
    assert answer.status_code == 202
    assert target.stops == [True, False]
    assert refused.status_code == 400


async def events_of(client: httpx.AsyncClient, **query: int) -> list[dict[str, object]]:
    found: list[dict[str, object]] = []
    async with client.stream("GET", "/v1/events", params=query) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        async for line in stream.aiter_lines():
            if line.startswith("data: "):
                found += [json.loads(line.removeprefix("data: "))]
    return found


async def test_events_come_from_the_past_and_then_as_they_happen(tmp_path: Path) -> None:
    target = FakeTarget()
    for number in range(3):
        target.hub.publish(Fact(event="round committed", fields={"round": number}))
    seen: list[dict[str, object]] = []
    async with control_client(target, tmp_path) as client, trio.open_nursery() as nursery:

        async def read() -> None:
            seen.extend(await events_of(client, since=1))

        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked(0.05)
        target.hub.publish(Fact(event="paused", level="warning", fields={"w": float("inf")}))
        target.hub.close()
    assert [event["seq"] for event in seen] == [2, 3, 4]
    assert seen[-1] == {"v": 1, "seq": 4, "event": "paused", "level": "warning", "fields": {"w": None}}


async def test_without_follow_the_events_end_with_the_last_known_one(tmp_path: Path) -> None:
    target = FakeTarget()
    target.hub.publish(Fact(event="run began"))
    async with control_client(target, tmp_path) as client:
        known = await client.get("/v1/events", params={"follow": 0})
        none = await client.get("/v1/events", params={"follow": 0, "since": 1})
    assert known.text.count("data: ") == 1
    assert none.text.count("data: ") == 0


async def test_an_open_stream_does_not_hold_up_the_end(tmp_path: Path) -> None:
    target = FakeTarget()
    with trio.fail_after(LIMIT_S):
        async with trio.open_nursery() as nursery:
            await nursery.start(control.serve, target, tmp_path)
            stream = await trio.open_unix_socket(str(socket_path(tmp_path)))
            await stream.send_all(b"GET /v1/events HTTP/1.1\r\nhost: node\r\n\r\n")
            assert b"200" in await stream.receive_some()
            nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await stream.aclose()
    assert not socket_path(tmp_path).exists()


async def test_the_loopback_port_answers_probes_only_and_to_loopback_names_only(tmp_path: Path) -> None:
    port = free_port()
    base = f"http://127.0.0.1:{port}"
    async with control_client(FakeTarget(), tmp_path, port), httpx.AsyncClient(base_url=base) as browser:
        metrics = await browser.get("/metrics")
        status = await browser.get("/v1/status")
        stop = await browser.post("/v1/stop", json={})
        foreign = await browser.get("/metrics", headers={"host": "evil.example"})
        local = await browser.get("/metrics", headers={"host": f"localhost:{port}"})
    assert metrics.text == "p2pfl_rounds_total 7.0\n"
    assert metrics.headers["content-type"].startswith("text/plain")
    assert (status.status_code, stop.status_code) == (404, 404)
    assert foreign.status_code == 421
    assert foreign.json()["error"]["code"] == "refused"
    assert local.status_code == 200


async def test_a_taken_metrics_port_is_said_and_leaves_nothing_behind(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(StoreError, match="cannot be bound"):
            await control.serve(FakeTarget(), tmp_path, other.getsockname()[1])
    assert not socket_path(tmp_path).exists()
    assert threading.active_count() < 10
