"""On PYTHONPATH it makes every fit of a learner's process take as long as a small model does, asleep.

Four nodes that share this machine otherwise commit twenty rounds a second, and leave commands no processor.
"""

from __future__ import annotations

import sys
import time

FIT_S = 0.4

if "p2pfl.node.learner_child" in sys.orig_argv:
    from p2pfl.events import Train, Trained
    from p2pfl.learn.jobs import Workshop

    _train = Workshop.train

    def _slowly(workshop: Workshop, job: Train) -> Trained:
        time.sleep(FIT_S)
        return _train(workshop, job)

    Workshop.train = _slowly  # type: ignore[method-assign,assignment]
