"""What noise let out of a data set: what learners say of a fit, and what accounts of privacy add up."""

from dataclasses import dataclass

__all__ = ["Release"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """`steps` releases with noise multiplier `sigma`, each of a random share `q` of the rows (1: of all)."""

    sigma: float
    q: float
    steps: int
