"""The kernels of a fused population in torch, for matrices that lie in a GPU's memory.

The same rounds as the other sets, equal to 1e-5: products of a batch are summed in another order.  A GPU is
kept at work by large pieces, so one thread hands them over, tens of thousands of peers at a time.
`n` peers, `d` parameters, `m` of them in a piece, `b` rows a batch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from p2pfl.errors import ConfigError
from p2pfl.gossip.mixing import Floats, Vectors

from .kernels import Drill, Links, Rows
from .plain import edges_of, orders

__all__ = ["OnDevice", "available_bytes"]

# Peers in a piece: 16 rows of 784 columns for each are 3.3 GB on a GPU; on a CPU, which only tests use, few
# keep arrays in the cache.
_PEERS = {"cuda": 2**16, "cpu": 2**9}
# Smallest probability whose logarithm is taken, as in learn/perceptron.py.
_TINY = float(np.finfo(np.float32).tiny)


def available_bytes(device: str) -> int | None:
    """What the device can still give; None for the CPU, which memory.py knows."""
    if device == "cpu":
        return None
    free, _ = torch.cuda.mem_get_info()
    return int(free)


class OnDevice:
    """Kernels of kernels.py on matrices in the memory of `device`."""

    def __init__(self, device: str) -> None:
        """Raises ConfigError where there is no such device."""
        if device == "cuda" and not torch.cuda.is_available():
            raise ConfigError('simulation.device is "cuda", and torch finds no GPU; use "cpu"')
        self.name = f"torch on {device}"
        self._device, self._height = torch.device(device), _PEERS[device]
        # Arrays that every round needs, where they were brought to the device; each keeps its array alive.
        self._brought: dict[int, tuple[NDArray[Any], Tensor]] = {}

    def make(self, n: int, d: int) -> Tensor:
        """A matrix (n, d) with nothing in it yet."""
        return torch.empty((n, d), dtype=torch.float32, device=self._device)

    def fill(self, X: Tensor, lo: int, hi: int, weight: Floats, theta: Floats) -> None:
        """Let rows lo..hi-1 be their weight times `theta`."""
        X[lo:hi] = self._sent(weight[lo:hi])[:, None].mul(self._sent(theta)).float()

    def take(self, X: Tensor, peers: NDArray[np.integer]) -> Vectors:
        """A copy of some rows."""
        found: Vectors = X[self._sent(np.asarray(peers, np.int64))].cpu().numpy()
        return found

    def advance(
        self,
        X: Tensor,
        Y: Tensor,
        lo: int,
        hi: int,
        links: Links,
        scale: NDArray[np.float32],
        gain: NDArray[np.float32],
        drill: Drill,
        rows: Rows,
        rate: float,
        seed: int,
        number: int,
        losses: NDArray[np.float32],
    ) -> None:
        """A training round of rows lo..hi-1."""
        for start in range(lo, hi, self._height):
            end = min(start + self._height, hi)
            z = X[start:end] * self._sent(scale[start:end])[:, None]
            moved = torch.zeros_like(z)
            for count in np.unique(rows.counts[start:end]).tolist():
                those = np.flatnonzero(rows.counts[start:end] == count)
                at = slice(None) if len(those) == end - start else self._sent(those)
                moved[at], losses[start + those] = self._fit(
                    z[at], start + those, count, drill, rows, rate, seed, number
                )
            self.blend(X, Y, start, end, links)
            Y[start:end] += moved.mul_(self._sent(gain[start:end])[:, None])

    def blend(self, X: Tensor, Y: Tensor, lo: int, hi: int, links: Links) -> None:
        """A round of rows lo..hi-1 that only mixes."""
        n = len(X)
        for start in range(lo, hi, self._height):
            end = min(start + self._height, hi)
            own, out = self._sent(links.own), Y[start:end]
            torch.mul(X[start:end], (own[start:end] if len(own) > 1 else own)[:, None], out=out)
            if len(links.common):
                out += self._sent(links.common)
            for offset, part in zip(links.offsets.tolist(), links.weights.tolist(), strict=False):
                first = (start - offset) % n
                straight = min(n - first, end - start)
                out[:straight].add_(X[first : first + straight], alpha=part)
                out[straight:].add_(X[: end - start - straight], alpha=part)
            for receivers, edges in edges_of(links, np.arange(start, end)):
                parts = self._sent(links.weights[edges])[:, None]
                senders = self._sent(links.senders[edges].astype(np.int64))
                out.index_add_(0, self._sent(receivers), parts * X[senders])

    def total(self, X: Tensor, lo: int, hi: int, scale: NDArray[np.float32]) -> Floats:
        """The sum of the models of rows lo..hi-1, (d,)."""
        found: Floats = (self._sent(scale[lo:hi]).double() @ X[lo:hi].double()).cpu().numpy()
        return found

    def spread(self, X: Tensor, lo: int, hi: int, scale: NDArray[np.float32], mean: Floats) -> float:
        """The sum of their squared distances from `mean`."""
        gap = X[lo:hi].double() * self._sent(scale[lo:hi]).double()[:, None] - self._sent(mean)
        return float(gap.square_().sum())

    def _sent(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._device)

    def _kept(self, array: NDArray[Any]) -> Tensor:
        """The array on the device, where it stays for the next round."""
        if id(array) not in self._brought:
            self._brought[id(array)] = array, self._sent(array)
        return self._brought[id(array)][1]

    def _fit(
        self,
        z: Tensor,
        peers: NDArray[np.int64],
        count: int,
        drill: Drill,
        rows: Rows,
        rate: float,
        seed: int,
        number: int,
    ) -> tuple[Tensor, NDArray[np.float64]]:
        """How far the fits move `z`, (m, d), zeros where they diverge; and the mean losses, NaN there."""
        batch = min(drill.batch_size, count)
        x, y, table = (
            self._kept(rows.x),
            self._kept(rows.y),
            self._kept(rows.table)[self._sent(peers), :count],
        )
        places = orders(rows.ids[peers], count, batch, drill.steps, seed, number)
        theta, v = z.clone(), torch.zeros_like(z)
        losses = torch.zeros(len(z), dtype=torch.float64, device=self._device)
        for place in places:
            chosen = table if batch == count else table.gather(1, self._sent(place))
            loss, g = _gradient(theta, x[chosen.long()], y[chosen.long()], drill)
            losses += loss
            if drill.decay:
                g.add_(theta, alpha=float(drill.decay))
            v.mul_(float(drill.momentum)).add_(g)
            theta.sub_(v, alpha=float(np.float32(rate)))
        lost = ~theta.isfinite().all(dim=1)
        losses = losses.div_(max(drill.steps, 1)).masked_fill_(lost, np.nan)
        moved = theta.sub_(z).masked_fill_(lost[:, None], 0.0)
        return moved, losses.cpu().numpy()


def _gradient(theta: Tensor, x: Tensor, y: Tensor, drill: Drill) -> tuple[Tensor, Tensor]:
    """The mean losses of a batch of each peer, (m,), and their gradients, (m, d).

    theta: (m, d).   x: (m, b, k).   y: (m, b).   See learn/perceptron.py for the formulas.
    """
    m, b = y.shape
    layers, places = drill.layers.tolist(), drill.places.tolist()
    last = len(layers) - 2
    g = torch.empty_like(theta)

    def part(of: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        fan_in, fan_out = layers[layer], layers[layer + 1]
        first, bias, end = places[2 * layer : 2 * layer + 3]
        return of[:, first:bias].view(m, fan_out, fan_in), of[:, bias:end].view(m, 1, fan_out)

    inputs = [x]
    for layer in range(last + 1):
        W, beta = part(theta, layer)
        z = torch.baddbmm(beta, inputs[-1], W.transpose(1, 2))
        inputs.append(z if layer == last else z.clamp_min(0))
    logits = inputs.pop()
    if layers[-1] == 1:
        z, one = logits[..., 0], y.to(logits.dtype)
        losses = (torch.logaddexp(torch.zeros_like(z), z) - one * z).mean(dim=1)
        dz = ((torch.sigmoid(z) - one) / b)[..., None]
    else:
        p = torch.softmax(logits, dim=2)
        picked = p.gather(2, y[..., None])
        losses = picked[..., 0].clamp_min(_TINY).log().neg().mean(dim=1)
        dz = p.scatter_add_(2, y[..., None], -torch.ones_like(picked)).div_(b)
    for layer in range(last, -1, -1):
        below = inputs[layer]
        dW, db = part(g, layer)
        dW.copy_(torch.bmm(dz.transpose(1, 2), below))
        db.copy_(dz.sum(dim=1, keepdim=True))
        if layer:
            dz = torch.bmm(dz, part(theta, layer)[0]).mul_(below > 0)
    return losses.double(), g
