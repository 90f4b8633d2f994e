"""The control socket, asked from outside the node."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

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

__all__ = ["ControlClient", "one_peer"]

# Answers are made from memory; only ping, backup and export take longer, and say so.
_TIMEOUT_S = 10.0

# The words of node/control.py, read back as errors.
_ERRORS: dict[str, type[P2PFLError]] = {
    "config": ConfigError,
    "usage": ConfigError,
    "not-found": ConfigError,
    "not-allowed": ConfigError,
    "too-large": ConfigError,
    "unreachable": UnreachableError,
    "refused": RefusedError,
    "remote": RemoteError,
    "not-running": NotRunningError,
    "learner": LearnerError,
    "store": StoreError,
}


class ControlClient:
    """A connection to the node that runs in `home`.  Every method raises NotRunningError when none does."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._socket = str(home / "control.sock")
        self._http = httpx.Client(
            transport=httpx.HTTPTransport(uds=self._socket),
            base_url="http://node",
            timeout=_TIMEOUT_S,
            trust_env=False,
        )

    def __enter__(self) -> ControlClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._http.close()

    def get(self, path: str, **query: Any) -> dict[str, Any]:
        """The answer to GET `path`.  Raises what the node says."""
        return self._ask(self._http.build_request("GET", path, params=query))

    def post(
        self, path: str, body: Mapping[str, Any] | None = None, *, timeout_s: float = _TIMEOUT_S
    ) -> dict[str, Any]:
        """The answer to POST `path` with `body`.  Raises what the node says."""
        return self._ask(self._http.build_request("POST", path, json=dict(body or {}), timeout=timeout_s))

    def events(self, since: int | None = 0, *, follow: bool = True) -> Iterator[dict[str, Any]]:
        """The node's facts numbered above `since` (None: from now on), until it stops or, unless `follow`,
        until those it remembers are told.
        """
        self._require_node()
        query = {"since": "now" if since is None else since, "follow": int(follow)}
        quiet = httpx.Timeout(_TIMEOUT_S, read=None)
        try:
            with self._http.stream("GET", "/v1/events", params=query, timeout=quiet) as stream:
                if stream.status_code != 200:
                    stream.read()
                    raise _error_of(stream)
                for line in stream.iter_lines():
                    if line.startswith("data: "):
                        yield json.loads(line.removeprefix("data: "))
        except httpx.TransportError:
            # The node stopped in the middle of a stream: the stream's natural end.
            return

    def is_running(self) -> bool:
        """Whether a node answers."""
        try:
            self.get("/healthz")
        except (NotRunningError, UnreachableError):
            return False
        return True

    def is_ready(self) -> bool:
        """Whether a node answers, listens, and has built its learner."""
        try:
            self._require_node()
            return self._http.get("/readyz").status_code == 200
        except (NotRunningError, httpx.TransportError):
            return False

    def _ask(self, request: httpx.Request) -> dict[str, Any]:
        self._require_node()
        try:
            answer = self._http.send(request)
        except httpx.TimeoutException as error:
            raise LocalError(
                f"the node in {self._home} did not answer in time; see {self._home / 'node.log'}"
            ) from error
        except httpx.TransportError as error:
            raise NotRunningError(f"the node in {self._home} stopped while it was asked: {error}") from error
        if answer.is_error:
            raise _error_of(answer)
        value: dict[str, Any] = answer.json()
        return value

    def _require_node(self) -> None:
        # Tried here first, because httpx leaks the socket of a connection that is refused.
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(self._socket)
            except OSError as error:
                cure = f"`p2pfl --home {self._home} node start` starts it"
                raise NotRunningError(f"no node runs in {self._home}; {cure}") from error


def _error_of(answer: httpx.Response) -> P2PFLError:
    try:
        error = answer.json()["error"]
        code, message, hint = str(error["code"]), str(error["message"]), str(error["hint"])
    except (ValueError, KeyError, TypeError):
        return LocalError(f"the node answered HTTP {answer.status_code} and no reason")
    return _ERRORS.get(code, LocalError)(f"{message}; {hint}" if hint else message)


def one_peer(text: str, peers: list[dict[str, Any]]) -> str:
    """The id of the one entry of `peers` named `text`: id, name, or a unique beginning or end of an id.

    A whole id need not be among them.  Raises ConfigError when none fits, or several do.
    """
    from p2pfl.ids import parse_peer_id

    try:
        return parse_peer_id(text)
    except ConfigError:
        wanted = text.strip().removeprefix("…")
    named = sorted({peer["peer_id"] for peer in peers if peer.get("name") == wanted})
    ids = sorted({str(peer["peer_id"]) for peer in peers})
    fitting = named or [i for i in ids if wanted and (i.startswith(wanted) or i.endswith(wanted))]
    match fitting:
        case [only]:
            return str(only)
        case []:
            raise ConfigError(f"no member is called {text!r}; `p2pfl peers` lists them")
        case _:
            raise ConfigError(f"{text!r} fits {len(fitting)} members: {', '.join(fitting)}; give more of it")
