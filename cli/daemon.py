"""A real daemon: its own session, no terminal, its output in a log file.

`detach` forks twice: the first child leads a new session, and the second, no session leader, can never get a
terminal again.  A pipe stays open to the daemon while it lives: it carries its process id first, and in the
end, if it fails, why.
"""

from __future__ import annotations

import json
import os
import select
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from p2pfl.errors import LocalError, StoreError

from .exits import Problem, problem_of

__all__ = ["Daemon", "detach", "wait_until_ready"]

# Longest line of the pipe: a problem's message quotes at most a path and a few values.
_PIPE_BYTES = 64 * 1024
# Between two looks at the control socket.
_POLL_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Daemon:
    """The other end of a detached process."""

    pid: int
    pipe: int
    log: Path


def detach(log: Path, body: Callable[[], int]) -> Daemon:
    """Run `body` in a daemon whose output goes to `log`, and return at once.

    The daemon exits with what `body` returns.   Raises StoreError when `log` cannot be written.
    """
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StoreError(
            f"{log} cannot be written: {error.strerror}; is there room, and is it yours?"
        ) from error
    ours, theirs = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        # Nothing of the caller's runs on in here: both children end by _exit.
        os.close(ours)
        os.setsid()
        if os.fork():
            os._exit(0)
        _become(output, theirs, body)
    os.close(theirs)
    os.close(output)
    os.waitpid(child, 0)
    first = os.read(ours, 32).decode()
    return Daemon(pid=int(first.strip() or 0), pipe=ours, log=log)


def _become(output: int, pipe: int, body: Callable[[], int]) -> None:
    code = 1
    try:
        os.write(pipe, f"{os.getpid():<31}\n".encode())
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        code = body()
    except BaseException as error:
        problem = problem_of(error)
        code = int(problem.exit)
        os.write(pipe, json.dumps(asdict(problem)).encode()[:_PIPE_BYTES])
        if problem.is_unexpected:
            traceback.print_exc()
        sys.stderr.write(f"error: {problem.message}\n")
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait_until_ready(daemon: Daemon, is_ready: Callable[[], bool], timeout_s: float) -> Problem | None:
    """Wait until `is_ready()`; None then, or why the daemon ended before.

    Raises LocalError when it is neither ready nor gone after `timeout_s`.
    """
    give_up = time.monotonic() + timeout_s
    try:
        while time.monotonic() < give_up:
            gone, _, _ = select.select([daemon.pipe], [], [], _POLL_S)
            if gone:
                return _last_words(daemon)
            if is_ready():
                return None
    finally:
        os.close(daemon.pipe)
    raise LocalError(
        f"the node (process {daemon.pid}) is still starting after {timeout_s:g} s; see {daemon.log}, "
        "or stop it with `p2pfl node stop`"
    )


def _last_words(daemon: Daemon) -> Problem:
    said = b""
    while chunk := os.read(daemon.pipe, _PIPE_BYTES):
        said += chunk
    try:
        return Problem(**json.loads(said))
    except (ValueError, TypeError):
        return Problem(
            code="failed",
            message="the node ended while it was starting",
            hint=f"the end of {daemon.log} may say why",
            exit=1,
        )
