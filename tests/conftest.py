"""What all tests share: one thread of linear algebra, Ctrl-C, and one worker for what starts processes."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped,import-not-found,unused-ignore]

# As a learner's process has it (node/learner_pipes.py): sums in another order are other bits, and two
# workers with a thread a core each wait for each other.  Read when numpy and torch are loaded.
os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")

# A shell that starts tests in the background has them ignore Ctrl-C, and what is ignored is inherited: a
# process that a test interrupts would not notice.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Slow tests that start several processes of their own, each of which would slow the others' down.
_REAL = (
    "net",
    "node",
    "cli",
    "test_daemons.py",
    "test_deploy.py",
    "test_docs.py",
    "test_knowledge_daemons.py",
    "test_mixed_run.py",
    "test_packaging.py",
)
# These start processes, too, but each computes and none has a deadline: one at a time beside those is enough.
_COMPUTING = (
    "cli/test_simulate_as_run.py",
    "simulations/test_ray.py",
    "simulations/test_report_in_chromium.py",
    "simulations/test_sweep.py",
    "test_simulate_guide.py",
)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling | None:
    """With `--dist loadgroup`, what is in _REAL runs one after the other on one worker, all else anywhere."""
    return _RealTogether(config, log) if config.getoption("dist") == "loadgroup" else None


class _RealTogether(LoadScopeScheduling):  # type: ignore[misc]
    # Marks of a group do nothing under pytest 9: xdist 3.8 appends them to names that are no longer read.
    def _split_scope(self, nodeid: str) -> str:
        place = nodeid.removeprefix("tests/")
        if place.startswith(_COMPUTING):
            return "computing"
        return "real" if place.startswith(_REAL) else nodeid
