"""A ReLU network on one flat vector, with its gradient in closed form.

`layers` is (k, hidden..., o): k features, o logits.  o = 1 is the logit of class 1 of two, o >= 2 softmax.
With no hidden layer it is logistic regression.  Weights are (out, in) as in torch.nn.Linear.

Gradient (`b` rows a batch, z the logits, one-hot Y, H_l the input of layer l):
dZ = (softmax(z) - Y) / b,   dW_l = dZ_l' H_l,   db_l = 1' dZ_l,   dZ_(l-1) = (dZ_l W_l) * [H_l > 0].
Source: Goodfellow, Bengio & Courville 2016, Deep Learning, section 6.5 (algorithm 6.4).
"""

from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from p2pfl.errors import LearnerError
from p2pfl.events import Vector
from p2pfl.learn.flat import Schema, Spec, schema_of_specs, unflatten

__all__ = ["Perceptron", "initial", "layer_schema", "logits", "probabilities", "mean_loss"]

_Matrix = NDArray[np.float32]
_Labels = NDArray[np.int64]

# Smallest float32 probability whose logarithm is taken, so that a sure mistake costs 87 nats, not infinity.
_TINY = np.finfo(np.float32).tiny


def layer_schema(layers: tuple[int, ...]) -> Schema:
    """The Schema of the whole network: layer1.weight (h, k), layer1.bias (h,), layer2.weight, ..."""
    specs: list[Spec] = []
    for number, (fan_in, fan_out) in enumerate(pairwise(layers), start=1):
        specs.append((f"layer{number}.weight", (fan_out, fan_in), "float32"))
        specs.append((f"layer{number}.bias", (fan_out,), "float32"))
    return schema_of_specs(specs)


def initial(
    layers: tuple[int, ...], rng: np.random.Generator, init: Literal["uniform", "he"] = "uniform"
) -> Vector:
    """First parameters, (d,): all uniform within 1 / sqrt(fan_in), as torch.nn.Linear draws them; or, `he`,
    weights normal with deviation sqrt(2 / fan_in), and biases 0.

    Source: He et al. 2015, arXiv:1502.01852, equation (10); `uniform` has the slope a = sqrt(5) that torch
    passes.
    """
    parts = []
    for fan_in, fan_out in pairwise(layers):
        if init == "he":
            parts += [rng.normal(0, np.sqrt(2 / fan_in), fan_out * fan_in), np.zeros(fan_out)]
            continue
        bound = 1 / np.sqrt(fan_in)
        parts.append(rng.uniform(-bound, bound, fan_out * fan_in + fan_out))
    return np.concatenate(parts).astype(np.float32)


def logits(theta: Vector, layers: tuple[int, ...], x: _Matrix) -> _Matrix:
    """The last layer's output.   x: (n, k).   returns: (n, o)."""
    tensors = list(unflatten(theta, layer_schema(layers)).values())
    h = x
    for number, (W, b) in enumerate(zip(tensors[0::2], tensors[1::2], strict=True)):
        h = (np.maximum(h, 0) if number else h) @ W.T + b
    return h


def probabilities(z: _Matrix) -> NDArray[np.float64]:
    """Class probabilities, (n, C), from logits (n, o); a single logit is that of class 1 of two."""
    z = z.astype(np.float64)
    if z.shape[1] == 1:
        z = np.concatenate([np.zeros_like(z), z], axis=1)
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return np.asarray(e / e.sum(axis=1, keepdims=True))


def mean_loss(z: _Matrix, y: _Labels) -> float:
    """The mean cross-entropy in nats of logits (n, o) and labels (n,), finite for finite logits."""
    z = z.astype(np.float64)
    if z.shape[1] == 1:
        z = np.concatenate([np.zeros_like(z), z], axis=1)
    top = z.max(axis=1)
    return float(np.mean(top + np.log(np.exp(z - top[:, None]).sum(axis=1)) - z[np.arange(len(y)), y]))


class Perceptron:
    """`m` networks of one shape with their buffers: `theta` and `gradient` are (m, d), written in place.

    A site has one network, a simulation as many as it has sites; each gets the bits it would get alone.
    Built once for a batch size, so that a step allocates nothing of the size of the model.
    """

    def __init__(self, layers: tuple[int, ...], batch_size: int, m: int = 1) -> None:
        if len(layers) < 2 or min(layers) < 1:
            raise LearnerError(f"a network of layers {layers} has no input or no output")
        self.layers = layers
        self.schema = layer_schema(layers)
        d = self.schema.size
        self.theta: _Matrix = np.zeros((m, d), np.float32)
        self.gradient: _Matrix = np.zeros((m, d), np.float32)
        views = [
            [
                vectors[:, where].reshape(m, *shape)
                for where, shape in zip(self.schema.slices(), self.schema.shapes, strict=True)
            ]
            for vectors in (self.theta, self.gradient)
        ]
        self._W, self._b = views[0][0::2], [b[:, None] for b in views[0][1::2]]
        self._dW, self._db = views[1][0::2], views[1][1::2]
        self._transposed = [W.swapaxes(1, 2) for W in self._W]
        # Z[l] holds layer l's output, then its ReLU, then nothing of use; dZ[l] its derivative.
        self._Z = [np.empty((m, batch_size, width), np.float32) for width in layers[1:]]
        self._dZ = [np.empty((m, batch_size, width), np.float32) for width in layers[1:]]
        self._transposed_dZ = [dZ.swapaxes(1, 2) for dZ in self._dZ]
        self._live = [np.empty((m, batch_size, width), np.bool_) for width in layers[1:]]
        self._first_cell = (np.arange(m * batch_size) * layers[-1]).reshape(m, batch_size)

    def backward(self, x: _Matrix, y: _Labels) -> NDArray[np.float64]:
        """The mean loss of one batch a network at `theta`, (m,); leaves the derivatives in `gradient`.

        x: (m, b, k), y: (m, b), with the m and b this was built for.
        """
        loss = self._output_derivative(self.forward(x), self._dZ[-1], y)
        self._propagate(x)
        return loss

    def forward(self, x: _Matrix) -> _Matrix:
        """The logits of one batch a network, (m, b, o): a buffer that the next call overwrites."""
        last = len(self._W) - 1
        h = x
        for layer, (Wt, bias, Z) in enumerate(zip(self._transposed, self._b, self._Z, strict=True)):
            np.matmul(h, Wt, out=Z)
            Z += bias
            if layer < last:
                np.maximum(Z, 0, out=Z)
            h = Z
        return h

    def hidden(self) -> _Matrix:
        """The last hidden layer of the batch that went forward, (m, b, h); there has to be one."""
        return self._Z[-2]

    def backward_from(
        self, x: _Matrix, dz: NDArray[np.floating], d_hidden: NDArray[np.floating] | None = None
    ) -> None:
        """The gradient of any loss of the batch that went forward, by logits and last hidden layer.

        dz: (m, b, o) the loss's derivative.   d_hidden: (m, b, h) what it adds there.
        """
        self._dZ[-1][:] = dz
        self._propagate(x, d_hidden)

    def _propagate(self, x: _Matrix, d_hidden: NDArray[np.floating] | None = None) -> None:
        last = len(self._W) - 1
        for layer in range(last, -1, -1):
            dZ = self._dZ[layer]
            below = self._Z[layer - 1] if layer else x
            np.matmul(self._transposed_dZ[layer], below, out=self._dW[layer])
            np.add.reduce(dZ, axis=1, out=self._db[layer])
            if layer:
                np.matmul(dZ, self._W[layer], out=self._dZ[layer - 1])
                if layer == last and d_hidden is not None:
                    self._dZ[layer - 1] += d_hidden
                np.greater(below, 0, out=self._live[layer - 1])
                np.multiply(self._dZ[layer - 1], self._live[layer - 1], out=self._dZ[layer - 1])

    def _output_derivative(self, Z: _Matrix, dZ: _Matrix, y: _Labels) -> NDArray[np.float64]:
        """Fills dZ from the logits Z, which are overwritten; gives the mean losses."""
        b = y.shape[1]
        if Z.shape[2] == 1:
            z = Z[..., 0]
            # sigmoid as tanh: it neither overflows nor warns for any finite logit.
            dZ[..., 0] = ((np.tanh(z / 2) + 1) / 2 - y) / b
            return np.asarray(np.add.reduce(np.logaddexp(0, z) - y * z, axis=1) / b)
        np.subtract(Z, np.maximum.reduce(Z, axis=2, keepdims=True), out=Z)
        np.exp(Z, out=dZ)
        dZ /= np.add.reduce(dZ, axis=2, keepdims=True)
        cell = self._first_cell + y
        flat = dZ.reshape(-1)
        picked = flat[cell]
        flat[cell] = picked - 1
        dZ /= b
        return np.asarray(np.add.reduce(-np.log(np.maximum(picked, _TINY)), axis=1) / b, np.float64)
