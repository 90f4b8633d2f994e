"""Two models that share one cut (FedGKT): an edge's, small and whole, and a hub's, large, on what it gives.

The edge's `extractor` turns a row into hidden values H, its `head` classifies them; the hub classifies H with
a larger network.  Both are modules for TorchLearner, and every step of the exchange is a call of it:

- the edge gives `features(theta, x)`, H of each of its rows in eval mode, (n, d), and `answer(theta, x)`;
- the hub learns them by `distill(theta, H, softmax(z_edge), rng, labels=y)`, the rows of all edges in one
  array and so shuffled together, and then gives `answer(theta, H)`;
- the edge learns those by `distill(theta, x, softmax(z_hub), rng, labels=y)`, and by `fit` before the first.

Rows and beliefs stand side by side in the arrays, so a teacher's answer stays with its sample however the
rows are shuffled inside.  A row is classified by both together: the hub's answer to the edge's features.
Source: He, Annavaram & Avestimehr 2020, arXiv:2007.14513, equations (8) to (11); blocks of He et al. 2016,
arXiv:1512.03385, figure 5 on the left.
"""

from collections import OrderedDict

from torch import Tensor, nn, relu

__all__ = ["HEAD", "edge_network", "hidden_shape", "hub_network"]

# The module whose input is H: TorchLearner's `embedding` for an edge.
HEAD = "head"

# Maps of H, and of the hub's three stages.
_CHANNELS = 16
_STAGES = (32, 64, 128)


def hidden_shape(image: tuple[int, int, int]) -> tuple[int, int, int]:
    """(channels, height, width) of H for images (channels, height, width), both halved and rounded down."""
    return _CHANNELS, image[1] // 2, image[2] // 2


def edge_network(image: tuple[int, int, int], n_classes: int) -> nn.Sequential:
    """The edge's model: (n, k) rows of flattened images to (n, n_classes) logits.

    extractor: a 3 x 3 convolution, batch normalisation, ReLU and 2 x 2 max-pooling.   head: two residual
    blocks, the mean over each map, a linear layer.   One channel and ten classes: 9,690 parameters.
    """
    extractor = nn.Sequential(
        nn.Unflatten(1, image),
        nn.Conv2d(image[0], _CHANNELS, 3, padding=1, bias=False),
        nn.BatchNorm2d(_CHANNELS),
        nn.ReLU(),
        nn.MaxPool2d(2),
    )
    head = nn.Sequential(
        *(_Basic(_CHANNELS, _CHANNELS) for _ in range(2)), *_classifier(_CHANNELS, n_classes)
    )
    return nn.Sequential(OrderedDict[str, nn.Module]([("extractor", extractor), (HEAD, head)]))


def hub_network(image: tuple[int, int, int], n_classes: int) -> nn.Sequential:
    """The hub's model for edges of such images: (n, d) rows of H to (n, n_classes) logits.

    Three stages of two residual blocks, the maps halved between them.   Ten classes: 691,658 parameters.
    """
    layers: list[nn.Module] = []
    width = _CHANNELS
    for stage, out in enumerate(_STAGES):
        layers += [_Basic(width, out, stride=2 if stage else 1), _Basic(out, out)]
        width = out
    return nn.Sequential(nn.Unflatten(1, hidden_shape(image)), *layers, *_classifier(width, n_classes))


def _classifier(width: int, n_classes: int) -> tuple[nn.Module, ...]:
    return nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, n_classes)


class _Basic(nn.Module):
    """ReLU(x + f(x)), f of two 3 x 3 convolutions; x is projected where its shape changes."""

    def __init__(self, width: int, out: int, stride: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, out, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(out),
            nn.ReLU(),
            nn.Conv2d(out, out, 3, padding=1, bias=False),
            nn.BatchNorm2d(out),
        )
        self.short: nn.Module = nn.Identity()
        if width != out:
            self.short = nn.Sequential(nn.Conv2d(width, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        """(n, width, h, w) to (n, out, h / stride, w / stride)."""
        return relu(self.short(x) + self.body(x))
