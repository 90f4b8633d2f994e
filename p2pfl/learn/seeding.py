"""The global random generators of user code, seeded for a while and put back."""

import random
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np

__all__ = ["seeded"]


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, `random`, `numpy.random` and torch, if it is imported, draw from `seed`; afterwards as before.

    seed: 0..2**64-1.   Our own code draws from explicit generators; this is for models, dropout and
    augmentation that cannot be told.  Generators are per process: two threads must not be inside at once.
    """
    python_state = random.getstate()
    numpy_state = np.random.get_state()  # noqa: NPY002  (the legacy generator is what user code calls)
    torch = sys.modules.get("torch")
    with ExitStack() as stack:
        stack.callback(random.setstate, python_state)
        stack.callback(np.random.set_state, numpy_state)
        if torch is not None:
            devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
            stack.enter_context(torch.random.fork_rng(devices=list(devices)))
            torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        yield
