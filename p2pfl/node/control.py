"""HTTP over a unix socket in the home, and the metrics port on loopback: how people ask a running node.

Possession of the socket is permission: it is made with mode 0600.  The loopback port, if any, answers
only `/metrics`, `/healthz` and `/readyz`, and refuses a foreign `Host`, so that no web page is rebound to it.
Every answer is JSON with `"v": 1`, an error is `{"v": 1, "error": {"code", "message", "hint"}}`.
"""

from __future__ import annotations

import json
import math
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import ExitStack, aclosing
from pathlib import Path
from typing import Any, Protocol

import trio
from hypercorn.config import Config
from hypercorn.trio import serve as serve_http
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from p2pfl.errors import (
    ConfigError,
    LearnerError,
    NotRunningError,
    P2PFLError,
    RefusedError,
    RemoteError,
    StoreError,
    UnreachableError,
)
from p2pfl.events import Fact
from p2pfl.node.plain import plain
from p2pfl.node.sockets import bound, remove_stale, socket_path

__all__ = [
    "VERBS",
    "ControlTarget",
    "Hub",
    "control_app",
    "metrics_app",
    "serve",
]

# The largest request is a ticket (4 KiB) or a path (4 KiB); this leaves room for both.
_MAX_BODY_BYTES = 64 * 1024
# Seconds before a stream that is open when the node stops is cut.
_GRACEFUL_S = 0.5

# Each verb of `command`: where it is posted, its arguments and their types; those marked `!` must be given.
VERBS: dict[str, tuple[str, dict[str, type]]] = {
    "leave": ("/v1/run/leave", {}),
    "pause": ("/v1/run/pause", {}),
    "resume": ("/v1/run/resume", {}),
    "ban": ("/v1/trust/ban", {"peer!": str, "reason": str}),
    "admit": ("/v1/trust/admit", {"ticket!": str}),
    "amend": ("/v1/run/amend", {"changes!": dict, "at": int, "sign": bool}),
    "renew": ("/v1/trust/renew", {"peer": str, "lasts_s": float}),
    "set": ("/v1/trust/set", {"peer!": str, "share": str, "accept": str, "for": str}),
    "forget": ("/v1/trust/forget", {"peer!": str}),
    "ping": ("/v1/ping", {"peer!": str}),
    "backup": ("/v1/backup", {"path!": str}),
    "export": ("/v1/export", {"path!": str}),
}
# The first that fits gives an error its word and its HTTP status; cli/client.py reads the words back.
_ERRORS: tuple[tuple[type[P2PFLError], str, int], ...] = (
    (ConfigError, "config", 400),
    (UnreachableError, "unreachable", 504),
    (RefusedError, "refused", 403),
    (RemoteError, "remote", 502),
    (NotRunningError, "not-running", 409),
    (LearnerError, "learner", 500),
    (StoreError, "store", 500),
)


class Hub(Protocol):
    """Where facts are published: `telemetry.EventHub`."""

    @property
    def last(self) -> int:
        """The number of the last fact."""

    def subscribe(self, since: int) -> AsyncIterator[tuple[int, Fact]]:
        """Facts numbered above `since`, first the remembered ones, then as they come."""


class ControlTarget(Protocol):
    """What a node answers to the people who run it.  None of these may block, but `command`."""

    @property
    def hub(self) -> Hub:
        """The node's facts."""

    def status(self) -> dict[str, Any]:
        """The keys of `p2pfl status --json`."""

    def peers(self) -> list[dict[str, Any]]:
        """One entry a member: peer_id, name, state, direction, round, share, accept, addresses, w, rtt_ms."""

    def rounds(self, since: int) -> list[dict[str, Any]]:
        """The rounds from `since` on, oldest first."""

    def topology(self) -> dict[str, Any]:
        """The present plan: round, kind, peers [{peer_id, name}], edges [{source, target, weight}]."""

    def run(self) -> dict[str, Any]:
        """The agreement in canonical form and its RunId."""

    def trust(self) -> list[dict[str, Any]]:
        """One entry a peer: standing, share and accept levels, certificate expiry."""

    def audit(self, part: str, since: int) -> dict[str, Any]:
        """What `audit_answers.answer` says of a part of the audit log."""

    async def command(self, verb: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Carry out one of `VERBS`.  Raises P2PFLError."""

    def stop(self, after_round: bool) -> None:
        """Save and stop, now or once the round under way is committed."""

    def metrics(self) -> bytes:
        """The Prometheus text of this node."""

    def ready(self) -> bool:
        """Whether the node listens and its learner is built."""


def _answer(value: Mapping[str, Any], status: int = 200) -> Response:
    body = json.dumps({"v": 1, **plain(value)}, allow_nan=False, separators=(",", ":"))
    return Response(body, status, media_type="application/json")


def _error(code: str, message: str, status: int) -> Response:
    what, hint = message.rpartition("; ")[::2] if "; " in message else (message, "")
    return _answer({"error": {"code": code, "message": what, "hint": hint}}, status)


async def _failed(_: Request, error: Exception) -> Response:
    for kind, code, status in _ERRORS:
        if isinstance(error, kind):
            return _error(code, str(error), status)
    return _error("failed", str(error), 500)


async def _http_failed(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = {404: "not-found", 405: "not-allowed", 413: "too-large"}.get(error.status_code, "usage")
    return _error(code, f"{request.method} {request.url.path}: {error.detail}", error.status_code)


async def _arguments(request: Request, types: Mapping[str, type]) -> dict[str, Any]:
    """The request's JSON object, every key known and of its type.  Raises ConfigError."""
    body = bytearray()
    try:
        async with aclosing(request.stream()) as chunks:
            async for chunk in chunks:
                body += chunk
                if len(body) > _MAX_BODY_BYTES:
                    raise HTTPException(413, f"a request has at most {_MAX_BODY_BYTES} bytes")
    except ClientDisconnect:
        raise HTTPException(400, "the request ended early") from None
    try:
        arguments = json.loads(body or b"{}")
    except (ValueError, RecursionError):
        raise ConfigError("the request's body is not JSON; send one object") from None
    if not isinstance(arguments, dict):
        raise ConfigError("the request's body is not an object; send one")
    allowed = {key.rstrip("!"): expected for key, expected in types.items()}
    for key, value in arguments.items():
        if key not in allowed:
            known = ", ".join(allowed) or "none"
            raise ConfigError(f"{request.url.path} has no argument {key[:40]!r}; it has {known}")
        kind = allowed[key]
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise ConfigError(f"{request.url.path}: {key} must be of type {kind.__name__}")
    for key in types:
        if key.endswith("!") and key[:-1] not in arguments:
            raise ConfigError(f"{request.url.path} needs {key[:-1]}; send it in the request's object")
    return arguments


def _since(request: Request) -> int:
    """`?since=`, or for a browser that reconnects its Last-Event-ID."""
    text = request.query_params.get("since") or request.headers.get("last-event-id") or "0"
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise ConfigError(f"since={text[:40]!r} is not a number; give a round or an event's number")
    return int(text)


class _Events:
    """Facts as server-sent events: those known now, and with `follow` those to come.

    No generator: a stream that is cut would leave one behind, half run.
    """

    def __init__(self, hub: Hub, since: int, follow: bool) -> None:
        # Known before the subscription is read, so that without `follow` the end is reached.
        self._last: float = math.inf if follow else hub.last
        self._at = since
        self._facts = hub.subscribe(since)
        self._has_begun = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if not self._has_begun:
            self._has_begun = True
            return b": facts of this node\n\n"
        if self._at >= self._last:
            raise StopAsyncIteration
        self._at, fact = await anext(self._facts)
        said = plain({"event": fact.event, "level": fact.level, "fields": fact.fields})
        text = json.dumps({"v": 1, "seq": self._at, **said}, allow_nan=False, separators=(",", ":"))
        return f"id: {self._at}\ndata: {text}\n\n".encode()


def _reader(read: Callable[[Request], Mapping[str, Any]]) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        return _answer(read(request))

    return endpoint


def _probes(target: ControlTarget) -> list[Route]:
    async def metrics(_: Request) -> Response:
        return Response(target.metrics(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def readyz(_: Request) -> Response:
        return _answer({"ready": target.ready()}, 200 if target.ready() else 503)

    healthz = _reader(lambda _: {"healthy": True})
    return [Route("/metrics", metrics), Route("/healthz", healthz), Route("/readyz", readyz)]


def _commander(target: ControlTarget, verb: str) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        arguments = await _arguments(request, VERBS[verb][1])
        return _answer(await target.command(verb, arguments))

    return endpoint


def control_app(target: ControlTarget, nursery: trio.Nursery) -> Starlette:
    """The whole interface, for the unix socket.  `nursery` holds a stop that waits for its time limit."""

    async def events(request: Request) -> Response:
        follow = request.query_params.get("follow", "1") != "0"
        since = target.hub.last if request.query_params.get("since") == "now" else _since(request)
        return StreamingResponse(
            _Events(target.hub, since, follow),
            media_type="text/event-stream",
            headers={"cache-control": "no-store"},
        )

    async def stop_after(seconds: float) -> None:
        await trio.sleep(seconds)
        target.stop(False)

    async def stop(request: Request) -> Response:
        arguments = await _arguments(request, {"after_round": bool, "timeout_s": float})
        after_round, timeout_s = arguments.get("after_round", False), arguments.get("timeout_s")
        if timeout_s is not None and not 0 <= timeout_s < math.inf:
            raise ConfigError("timeout_s must be a number of seconds, 0 or more")

        async def stop_now() -> None:
            target.stop(after_round)
            if after_round and timeout_s is not None:
                nursery.start_soon(stop_after, float(timeout_s))

        # Stopping ends this server, so the answer goes first.
        answer = _answer({"stopping": True, "after_round": after_round}, 202)
        answer.background = BackgroundTask(stop_now)
        return answer

    routes = [
        Route("/v1/status", _reader(lambda _: target.status())),
        Route("/v1/peers", _reader(lambda _: {"peers": target.peers()})),
        Route("/v1/rounds", _reader(lambda request: {"rounds": target.rounds(_since(request))})),
        Route("/v1/topology", _reader(lambda _: target.topology())),
        Route("/v1/run", _reader(lambda _: target.run())),
        Route("/v1/trust", _reader(lambda _: {"trust": target.trust()})),
        Route("/v1/audit/{part}", _reader(lambda r: target.audit(r.path_params["part"], _since(r)))),
        Route("/v1/events", events),
        Route("/v1/stop", stop, methods=["POST"]),
        *(Route(path, _commander(target, verb), methods=["POST"]) for verb, (path, _) in VERBS.items()),
        *_probes(target),
    ]
    handlers = {P2PFLError: _failed, HTTPException: _http_failed, Exception: _failed}
    return Starlette(routes=routes, exception_handlers=handlers)


def metrics_app(target: ControlTarget) -> Callable[..., Awaitable[None]]:
    """`/metrics`, `/healthz` and `/readyz`, for the loopback port; a foreign `Host` is refused with 421."""
    app = Starlette(
        routes=_probes(target), exception_handlers={HTTPException: _http_failed, Exception: _failed}
    )

    async def guarded(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
            name = (hosts[0].rpartition(":")[0] or hosts[0]) if len(hosts) == 1 else ""
            if name not in ("127.0.0.1", "localhost", "[::1]"):
                refusal = _error("refused", "this port answers to loopback names; use http://127.0.0.1", 421)
                return await refusal(scope, receive, send)
        return await app(scope, receive, send)

    return guarded


async def serve(
    target: ControlTarget,
    home: Path,
    metrics_port: int = 0,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer on `home`/control.sock, and on 127.0.0.1:`metrics_port` unless it is 0, until cancelled.

    `task_status.started()` is called once both are bound.  Raises ConfigError (path too long) and StoreError
    (socket served by another process, port taken).
    """
    path = socket_path(home)
    remove_stale(path)
    try:
        with ExitStack() as opened:
            doors = [opened.enter_context(bound(socket.AF_UNIX, str(path), str(path)))]
            if metrics_port:
                place = ("127.0.0.1", metrics_port)
                doors.append(opened.enter_context(bound(socket.AF_INET, place, f"127.0.0.1:{metrics_port}")))
            # Hypercorn makes each descriptor its own.
            binds = [f"fd://{door.detach()}" for door in doors]
        async with trio.open_nursery() as nursery:
            apps = (control_app(target, nursery), metrics_app(target))
            for app, bind in zip(apps, binds, strict=False):
                await nursery.start(_serve_one, app, bind)
            task_status.started()
    finally:
        path.unlink(missing_ok=True)


async def _serve_one(app: Any, bind: str, *, task_status: trio.TaskStatus[list[str]]) -> None:
    config = Config()
    config.bind = [bind]
    config.accesslog = None
    config.errorlog = None
    config.graceful_timeout = _GRACEFUL_S
    config.include_server_header = False
    await serve_http(app, config, mode="asgi", task_status=task_status)
