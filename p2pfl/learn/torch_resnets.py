"""Residual networks of bottleneck blocks for small images, whole or cut after the first convolution.

With the cut, a site that cannot hold the whole model computes `stem` and a short `stages`, and another the
long `stages` on what the stem gives.  For 32 x 32 images in colour and ten classes, built of the blocks that
FedML's code for FedGKT has (He et al. 2020, arXiv:2007.14513), the edge is `resnet((2,))` with 10,586
parameters, ResNet-56 `resnet((6, 6, 6))` with 591,322 and ResNet-110 `resnet((12, 12, 12))` with 1,147,738.

Source: He et al. 2016, arXiv:1512.03385, section 4.2, with the blocks of figure 5 on the right; the stride of
a stage is on its first 3 x 3 convolution.
"""

from torch import Tensor, nn, relu

__all__ = ["STEM_CHANNELS", "resnet", "stages", "stem"]

# Maps after the first convolution, each of the image's own size.
STEM_CHANNELS = 16
# What leaves a block over what it works on.
_EXPANSION = 4


def resnet(depths: tuple[int, ...], n_classes: int, channels: int = 3) -> nn.Sequential:
    """Stem and stages: (n, channels, height, width) images to (n, n_classes) logits."""
    return nn.Sequential(stem(channels), stages(depths, n_classes))


def stem(channels: int = 3) -> nn.Sequential:
    """A 3 x 3 convolution, batch normalisation and ReLU: (n, channels, h, w) to (n, STEM_CHANNELS, h, w)."""
    return nn.Sequential(
        nn.Conv2d(channels, STEM_CHANNELS, 3, padding=1, bias=False),
        nn.BatchNorm2d(STEM_CHANNELS),
        nn.ReLU(),
    )


def stages(depths: tuple[int, ...], n_classes: int) -> nn.Sequential:
    """What follows a stem: (n, STEM_CHANNELS, h, w) to (n, n_classes) logits.

    depths: blocks of each stage.   Each stage after the first halves the maps and doubles their number.
    """
    layers: list[nn.Module] = []
    width = STEM_CHANNELS
    for stage, depth in enumerate(depths):
        inner = STEM_CHANNELS << stage
        for block in range(depth):
            layers.append(_Bottleneck(width, inner, stride=2 if stage and not block else 1))
            width = inner * _EXPANSION
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, n_classes))


class _Bottleneck(nn.Module):
    """ReLU(x + f(x)), f of 1 x 1, 3 x 3 and 1 x 1 convolutions; x is projected where its shape changes."""

    def __init__(self, width: int, inner: int, stride: int) -> None:
        super().__init__()
        out = inner * _EXPANSION
        self.body = nn.Sequential(
            nn.Conv2d(width, inner, 1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(),
            nn.Conv2d(inner, inner, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(),
            nn.Conv2d(inner, out, 1, bias=False),
            nn.BatchNorm2d(out),
        )
        self.short: nn.Module = nn.Identity()
        if stride != 1 or width != out:
            self.short = nn.Sequential(nn.Conv2d(width, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        """(n, width, h, w) to (n, 4 inner, h / stride, w / stride)."""
        return relu(self.short(x) + self.body(x))
