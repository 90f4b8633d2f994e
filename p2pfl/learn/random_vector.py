"""No model at all: numbers drawn at random, to see how fast a topology mixes them."""

import numpy as np

from p2pfl.errors import LearnerError
from p2pfl.events import Metrics, Vector
from p2pfl.learn.learner import Update

__all__ = ["RandomVector"]


class RandomVector:
    """`size` zeros; every fit adds standard normal numbers, of its own at each site.

    With one training round every site holds a random vector, and the rounds after it only mix.
    """

    def __init__(self, size: int) -> None:
        self._size = size

    def parameters(self) -> Vector:
        """Zeros, (size,) float32."""
        return np.zeros(self._size, np.float32)

    def fit(self, parameters: Vector, rng: np.random.Generator) -> Update:
        """`parameters` and as many normal numbers, added up."""
        if parameters.shape != (self._size,):
            raise LearnerError(f"parameters have shape {parameters.shape}, expected ({self._size},)")
        drawn = rng.standard_normal(self._size, dtype=np.float32)
        return Update(parameters=parameters + drawn, samples=1)

    def evaluate(self, parameters: Vector) -> Metrics:
        """`rms`, the root mean square: 1 at a site alone, 1/sqrt(n) when n sites agree."""
        return {"rms": float(np.sqrt(np.mean(np.square(parameters, dtype=np.float64))))}
