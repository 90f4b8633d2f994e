"""What all tests share: one thread of linear algebra, Ctrl-C, and one worker for what starts processes."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

# As a learner's process has it (node/learner_pipes.py): sums in another order are other bits, and two
# workers with a thread a core each wait for each other.  Read when numpy and torch are loaded.
os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")

# A shell that starts tests in the background has them ignore Ctrl-C, and what is ignored is inherited: a
# process that a test interrupts would not notice.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

_HERE = Path(__file__).parent
# Slow tests that start several processes of their own, each of which would slow the others' down.
_REAL = (
    "net",
    "node",
    "cli",
    "simulations/test_ray.py",
    "simulations/test_report_in_chromium.py",
    "simulations/test_sweep.py",
    "test_daemons.py",
    "test_deploy.py",
    "test_docs.py",
    "test_knowledge_daemons.py",
    "test_mixed_run.py",
    "test_packaging.py",
    "test_simulate_guide.py",
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With `--dist loadgroup` slow tests of real processes run one after the other, on one worker."""
    for item in items:
        place = item.path.relative_to(_HERE).as_posix()
        if item.get_closest_marker("slow") and place.startswith(_REAL):
            item.add_marker(pytest.mark.xdist_group("real"))
