"""Architectures, each a sequence of named stages shaped by the data set.

A stage is addressable: a defense may observe, perturb or penalise what leaves it without knowing the model.
"""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Final

import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError, unknown
from . import maxout
from .allconv import classifier
from .stages import Shape, Stages, Standardize


def mlp(shape: Shape, classes: int, widths: tuple[int, ...], activation: Callable[[], nn.Module] = nn.ReLU) -> Stages:
    """Fully connected network, e.g. 784-200-200-10 (Gu & Rigazio 2014, table 1); softmax regression for no widths."""
    stages: OrderedDict[str, nn.Module] = OrderedDict()
    fan_in = math.prod(shape)
    stages["flatten"] = nn.Flatten()
    for number, width in enumerate(widths, start=1):
        stages[f"hidden{number}"] = nn.Sequential(nn.Linear(fan_in, width), activation())
        fan_in = width
    stages["logits"] = nn.Linear(fan_in, classes)
    return Stages(stages, tuple(name for name in stages if name.startswith("hidden")))


def softmax(shape: Shape, classes: int) -> Stages:
    """Softmax regression: the image and one dense layer."""
    return mlp(shape, classes, ())


def autoencoder(shape: Shape, classes: int) -> Stages:
    """Sigmoid encoder of 400 units trained without labels, softmax on top (Szegedy et al. 2014, AE400-10)."""
    stages: OrderedDict[str, nn.Module] = OrderedDict()
    stages["flatten"] = nn.Flatten()
    stages["hidden1"] = nn.Sequential(nn.Linear(math.prod(shape), 400), nn.Sigmoid())
    stages["logits"] = nn.Linear(400, classes)
    return Stages(stages, ("hidden1",), unsupervised=("hidden1",))


def lenet(shape: Shape, classes: int) -> Stages:
    """Two convolutions with max-pooling, one dense layer, softmax (LeCun et al. 1998, with ReLU)."""
    return _convnet("lenet", shape, classes, maps=(20, 50), units=500)


class Thumbnail(nn.Module):
    """The image averaged over windows, so that no side is longer than 32 pixels; a side that is not stays as it is."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        channels, *sides = shape
        self.window = (-(-sides[0] // 32), -(-sides[1] // 32))
        self.shape: Shape = (channels, -(-sides[0] // self.window[0]), -(-sides[1] // self.window[1]))

    def forward(self, x: Tensor) -> Tensor:
        """Smaller images (N, C, h, w) in the same range; windows that reach over the edge average what they hold."""
        return F.avg_pool2d(x, self.window, ceil_mode=True) if max(self.window) > 1 else x


def convnet_gu(shape: Shape, classes: int) -> Stages:
    """The same layers as lenet, fewer units (Gu & Rigazio 2014, ConvNet; the paper gives no widths)."""
    return _convnet("convnet-gu", shape, classes, maps=(16, 32), units=128)


def _convnet(name: str, shape: Shape, classes: int, *, maps: tuple[int, int], units: int) -> Stages:
    """Two convolutions with max-pooling, one dense layer, softmax.

    Convolutions are 5x5 without padding where the image allows it, 3x3 with padding on images under 16 pixels.

    Raises:
        UserError: Images under 4 pixels, of which two poolings leave nothing.
    """
    channels, height, width = shape
    if min(height, width) < 4:
        raise UserError(f"{name} needs images of at least 4x4 pixels, got {height}x{width}")
    small = min(height, width) < 16
    kernel, padding = (3, 1) if small else (5, 0)

    def side(length: int) -> int:
        for _ in range(2):
            length = (length + 2 * padding - kernel + 1) // 2
        return length

    stages: OrderedDict[str, nn.Module] = OrderedDict()
    fan_in = channels
    for number, fan_out in enumerate(maps, start=1):
        convolution = nn.Conv2d(fan_in, fan_out, kernel, padding=padding)
        stages[f"conv{number}"] = nn.Sequential(convolution, nn.ReLU(), nn.MaxPool2d(2))
        fan_in = fan_out
    stages["flatten"] = nn.Flatten()
    stages["hidden1"] = nn.Sequential(nn.Linear(fan_in * side(height) * side(width), units), nn.ReLU())
    stages["logits"] = nn.Linear(units, classes)
    return Stages(stages, ("conv1", "conv2", "hidden1"))


class BasicBlock(nn.Module):
    """Two convolutions around which the input is passed on (He et al. 2016, figure 2); parameters as torchvision's.

    To import torchvision would take each worker 4 s.
    """

    def __init__(self, fan_in: int, fan_out: int, stride: int) -> None:
        super().__init__()
        downsample: nn.Module = nn.Identity()
        if stride != 1 or fan_in != fan_out:
            downsample = nn.Sequential(nn.Conv2d(fan_in, fan_out, 1, stride, bias=False), nn.BatchNorm2d(fan_out))
        self.conv1 = nn.Conv2d(fan_in, fan_out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(fan_out)
        self.conv2 = nn.Conv2d(fan_out, fan_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(fan_out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, fan_in, H, W) to (N, fan_out, H / stride, W / stride)."""
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(out + self.downsample(x))  # type: ignore[no-any-return]


def resnet(shape: Shape, classes: int) -> Stages:
    """Small residual network of basic blocks: 3 groups of 1 block, 16 to 64 channels."""
    channels = shape[0]
    stages: OrderedDict[str, nn.Module] = OrderedDict()
    stages["standardize"] = Standardize((0.5,) * channels, (0.25,) * channels)
    stages["stem"] = nn.Sequential(
        nn.Conv2d(channels, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True)
    )
    stages["group1"] = BasicBlock(16, 16, 1)
    stages["group2"] = BasicBlock(16, 32, 2)
    stages["group3"] = BasicBlock(32, 64, 2)
    stages["pool"] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    stages["logits"] = nn.Linear(64, classes)
    return Stages(stages, ("stem", "group1", "group2", "group3"))


def lenet_32(shape: Shape, classes: int) -> Stages:
    """The layers of lenet, on the image averaged down to 32 pixels a side at most: any size costs the same."""
    return _on_thumbnail(lenet, shape, classes)


def resnet_32(shape: Shape, classes: int) -> Stages:
    """The layers of resnet, on the image averaged down to 32 pixels a side at most: any size costs the same."""
    return _on_thumbnail(resnet, shape, classes)


def _on_thumbnail(build: Callable[[Shape, int], Stages], shape: Shape, classes: int) -> Stages:
    small = Thumbnail(shape)
    network = build(small.shape, classes)
    return Stages(OrderedDict([("thumbnail", small), *network.stages.items()]), network.hidden)


Builder = Callable[[Shape, int], nn.Module]
"""Makes an untrained network from the shape of an image, (C, H, W), and the number of classes."""

ARCHITECTURES: Final[dict[str, Callable[[Shape, int], Stages]]] = {
    "ae-400": autoencoder,
    "allconv": classifier,
    "conv-maxout": maxout.convolutional,
    "conv-maxout-small": maxout.convolutional_small,
    "convnet-gu": convnet_gu,
    "lenet": lenet,
    "lenet-32": lenet_32,
    "maxout": maxout.dense,
    "resnet": resnet,
    "resnet-32": resnet_32,
    "softmax": softmax,
}
"""Architectures by name; ``mlp-A-B-...`` and ``mlp-sigmoid-A-B-...`` are understood for any widths beside them."""

USER_ARCHITECTURES: Final[dict[str, Builder]] = {}
"""Those of users' files and packages that were named in this process (:mod:`harness.user_code.plugins`)."""

PAPER_MLPS: Final = ("mlp-100-100", "mlp-200-200", "mlp-1000-1000")

_MLP = re.compile(r"mlp(-sigmoid)?((?:-[1-9][0-9]{0,4})+)")


def architecture_names() -> tuple[str, ...]:
    """Names to show: the papers' MLPs and every entry of :data:`ARCHITECTURES`."""
    return (*PAPER_MLPS, *ARCHITECTURES)


def check_architecture(name: str, more: Iterable[str] = ()) -> None:
    """Raise ValueError, with the choices and ``more`` of them, if there is no architecture of that name."""
    if name not in ARCHITECTURES and name not in USER_ARCHITECTURES and not _MLP.fullmatch(name):
        raise unknown("model", name, (*architecture_names(), "mlp-A-B-...", *more))


def build_model(name: str, shape: Shape, classes: int) -> Stages:
    """Build an untrained model; initial weights come from torch's global generator.

    Raises:
        ValueError: Unknown name.
    """
    check_architecture(name)
    found = _MLP.fullmatch(name)
    if found:
        widths = tuple(int(width) for width in found[2].split("-")[1:])
        return mlp(shape, classes, widths, nn.Sigmoid if found[1] else nn.ReLU)
    if name in USER_ARCHITECTURES:
        return _staged(name, USER_ARCHITECTURES[name](shape, classes))
    return ARCHITECTURES[name](shape, classes)


def _staged(name: str, made: nn.Module) -> Stages:
    """A network of a user's; one that has no stages of its own is one stage, without hidden ones."""
    if isinstance(made, Stages):
        return made
    if not isinstance(made, nn.Module):
        raise UserError(f"model {name}: it returned {type(made).__name__}, expected a torch.nn.Module")
    return Stages(OrderedDict(logits=made), ())
