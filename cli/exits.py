"""What an exit code means, and which error gives which: the only place that knows."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import click

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

__all__ = ["EXIT_CODES", "Exit", "Problem", "problem_of"]


class Exit(IntEnum):
    """How a command ended."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    NOT_RUNNING = 3
    UNREACHABLE = 4
    REFUSED = 5
    EXPECTATION = 6
    INTERRUPTED = 130
    TERMINATED = 143


# As printed at the end of --help.
EXIT_CODES: dict[Exit, str] = {
    Exit.DONE: "done",
    Exit.FAILED: "failed",
    Exit.USAGE: "wrong usage or configuration",
    Exit.NOT_RUNNING: "the node is not running",
    Exit.UNREACHABLE: "no peer could be reached",
    Exit.REFUSED: "refused by trust policy, or another run",
    Exit.EXPECTATION: "an expectation was not met",
    Exit.INTERRUPTED: "stopped by SIGINT, state saved",
    Exit.TERMINATED: "stopped by SIGTERM, state saved",
}

# The first that fits decides.
_ERRORS: tuple[tuple[type[P2PFLError], str, Exit], ...] = (
    (ConfigError, "config", Exit.USAGE),
    (NotRunningError, "not-running", Exit.NOT_RUNNING),
    (UnreachableError, "unreachable", Exit.UNREACHABLE),
    (RefusedError, "refused", Exit.REFUSED),
    (RemoteError, "remote", Exit.FAILED),
    (LearnerError, "learner", Exit.FAILED),
    (StoreError, "store", Exit.FAILED),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """An error as a person and a script see it: one word, what happened, what to do, the exit code."""

    code: str
    message: str
    hint: str
    exit: int
    is_unexpected: bool = False


def problem_of(error: BaseException) -> Problem:
    """What to print and how to exit for `error`.  The house's messages read `what; what to do`."""
    what, _, hint = str(error).rpartition("; ")
    what, hint = (what, hint) if what else (hint, "")
    match error:
        case P2PFLError():
            for kind, code, exit_ in _ERRORS:
                if isinstance(error, kind):
                    return Problem(code=code, message=what, hint=hint, exit=exit_)
            return Problem(code="failed", message=what, hint=hint, exit=Exit.FAILED)
        case click.UsageError():
            path = error.ctx.command_path if error.ctx else "p2pfl"
            return Problem(
                code="usage",
                message=error.format_message(),
                hint=f"`{path} --help` shows what it takes",
                exit=Exit.USAGE,
            )
        case click.ClickException():
            return Problem(code="failed", message=error.format_message(), hint="", exit=error.exit_code)
        case click.Abort() | KeyboardInterrupt():
            return Problem(code="interrupted", message="stopped", hint="", exit=Exit.INTERRUPTED)
        case BaseExceptionGroup():
            # Tasks that failed together: the one that says what to do speaks for all.
            problems = [problem_of(each) for each in error.exceptions]
            return min(problems, key=lambda problem: problem.is_unexpected)
        case _:
            return Problem(
                code="failed",
                message=f"unexpected {type(error).__name__}: {error}",
                hint="run it again with -vv for the traceback, and report that",
                exit=Exit.FAILED,
                is_unexpected=True,
            )
