"""What a torch module can give and take beside its weights: logits, embeddings, lessons of a teacher.

`n` rows, `b` of them a batch, `K` classes, `h` values of an embedding.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax, softmax

from p2pfl.errors import ConfigError, LearnerError
from p2pfl.events import Vector
from p2pfl.learn.torch_descent import TaughtCriterion

__all__ = [
    "Criterion",
    "Lesson",
    "Pupil",
    "distillation",
    "embed",
    "embedding_layer",
    "in_batches",
    "near",
    "taught",
    "two_sided",
]

# The loss of a batch: the module's inputs and the targets of its rows.
Criterion = Callable[[Tensor, Tensor], Tensor]
# The loss of outputs (b, K) against a teacher's probabilities (b, K) at a temperature.
Lesson = Callable[[Tensor, Tensor, float], Tensor]

# Rows through the network at once outside training: 512 MNIST images keep a layer of 16 maps at 26 MB.
_ROWS = 512


def distillation(z: Tensor, p: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(log(p) / T) || softmax(z / T)), the mean over the batch; see distill.py.

    z: (b, K) logits of the student.   p: (b, K) probabilities of the teacher.
    """
    q = softmax(p.clamp_min(torch.finfo(p.dtype).tiny).log().clamp_min(-60.0) / temperature, dim=1)
    return kl_div(log_softmax(z / temperature, dim=1), q, reduction="batchmean") * temperature**2


def two_sided(z: Tensor) -> Tensor:
    """Logits (n, K) of what a module gives: itself, or (0, z) for the one logit of two classes.

    Raises LearnerError for outputs that are no classification of rows.
    """
    if z.ndim == 1 or (z.ndim == 2 and z.shape[1] == 1):
        z = z.reshape(-1, 1)
        return torch.cat([torch.zeros_like(z), z], dim=1)
    if z.ndim != 2:
        raise LearnerError(
            f"the model gives {tuple(z.shape)} for a batch; knowledge is exchanged as logits (rows, classes)"
        )
    return z


def in_batches(model: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    """`model` on all rows (n, ...), a few hundred at a time and without gradients."""
    with torch.no_grad():
        return torch.cat([model(part) for part in torch.split(inputs, _ROWS)])


def embedding_layer(model: nn.Module, name: str | None) -> nn.Module:
    """The module whose input is the embedding: the one of that name, or else the last linear one."""
    modules: dict[str, nn.Module] = dict(model.named_modules())
    if name is not None:
        if name not in modules:
            raise ConfigError(f"the model has no module {name!r}; it has {', '.join(filter(None, modules))}")
        return modules[name]
    linear = [module for module in modules.values() if isinstance(module, nn.Linear)]
    if not linear:
        raise LearnerError("the model has no linear layer to embed before; name a module as `embedding`")
    return linear[-1]


@contextmanager
def _caught(layer: nn.Module) -> Iterator[list[Tensor]]:
    """Inside, each pass through the model appends what enters `layer`, flattened to (b, h)."""
    found: list[Tensor] = []

    def catch(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found.append(inputs[0].flatten(1))

    hook = layer.register_forward_pre_hook(catch)
    try:
        yield found
    finally:
        hook.remove()


def embed(model: nn.Module, layer: nn.Module, inputs: Tensor) -> Tensor:
    """The embeddings (n, h) of rows: what enters `layer`."""
    with _caught(layer) as found:
        in_batches(model, inputs)
    return torch.cat(found)


def near(
    model: nn.Module,
    layer: nn.Module,
    loss: Criterion,
    prototypes: NDArray[np.floating],
    known: NDArray[np.bool_],
    weight: float,
    device: torch.device,
) -> Criterion:
    """`loss` plus `weight` times ||f - p_y||^2 / h, 0 for a class not known, the mean over rows.

    prototypes: (K, h).   known: (K,).   Divided by h, a weight means as much for every embedding.
    Source: Tan et al. 2022, arXiv:2105.00243, equation (4), with a squared distance.
    """
    if prototypes.ndim != 2 or known.shape != prototypes.shape[:1]:
        raise LearnerError(f"prototypes have shape {prototypes.shape}, known {known.shape}: (K, h) and (K,)")
    centres = torch.tensor(prototypes, dtype=torch.float32, device=device)
    counts = torch.tensor(known, device=device)

    def criterion(inputs: Tensor, targets: Tensor) -> Tensor:
        with _caught(layer) as found:
            outputs = model(inputs)
        (f,) = found
        if f.shape[1] != centres.shape[1]:
            raise LearnerError(
                f"prototypes have {prototypes.shape[1]} values, this model's embedding {f.shape[1]}; all"
                " sites need embeddings of one size"
            )
        distance = ((f - centres[targets]) ** 2).mean(dim=1)
        return loss(outputs, targets) + weight * (distance * counts[targets]).mean()

    return criterion


def taught(
    model: nn.Module,
    lesson: Lesson,
    *,
    temperature: float,
    alpha: float,
    loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
) -> TaughtCriterion:
    """The loss of a batch: alpha times `lesson` where there is a teacher, and `loss` where there are classes.

    The loss gets the model's outputs as they are when it is not cross-entropy.
    """

    def criterion(inputs: Tensor, p: Tensor | None, labels: Tensor | None) -> Tensor:
        outputs = model(inputs)
        z = two_sided(outputs)
        terms = []
        if p is not None:
            if z.shape[1] != p.shape[1]:
                raise LearnerError(f"the model has {z.shape[1]} classes, its teacher {p.shape[1]}")
            terms.append(alpha * lesson(z, p, temperature))
        if labels is not None:
            terms.append(loss(z if loss is cross_entropy else outputs, labels))
        return sum(terms[1:], start=terms[0])

    return criterion


class Pupil:
    """A model in training that first says what it believes of a batch, then learns what another believes.

    `vector` is what it has become, (d,), once its fit is over.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss: Callable[[Tensor, Tensor], Tensor],
        lesson: Lesson,
        inputs: Tensor,
        labels: Tensor,
    ) -> None:
        """inputs: (n, ...), of all rows.   labels: (n,)."""
        self.vector: Vector | None = None
        self._model, self._optimizer, self._loss, self._lesson = model, optimizer, loss, lesson
        self._inputs, self._labels = inputs, labels
        self._outputs: Tensor | None = None
        self._rows = labels[:0]

    def look(self, rows: Tensor) -> Tensor:
        """Probabilities, (b, K), of the rows numbered (b,)."""
        self._rows, self._outputs = rows, self._model(self._inputs[rows])
        return softmax(two_sided(self._outputs).detach(), dim=1)

    def learn(self, p: Tensor, alpha: float, temperature: float) -> float:
        """A step on (1 - alpha) times the loss plus alpha times the lesson of p (b, K), on what it looked at.

        returns: that loss.
        """
        assert self._outputs is not None, "it has looked at the rows"
        z = two_sided(self._outputs)
        if z.shape != p.shape:
            raise LearnerError(f"the models that teach each other have {z.shape[1]} and {p.shape[1]} classes")
        loss = (1 - alpha) * self._loss(self._outputs, self._labels[self._rows])
        loss = loss + alpha * self._lesson(z, p, temperature)
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        return float(loss.detach())
