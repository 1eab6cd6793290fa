"""ResNet-18 (He et al. 2016) as ``--victim`` takes it, at two sizes of image; images float32 (N, 3, H, W) in [0, 1]."""

from __future__ import annotations

from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

import torch
from torch import Tensor, nn

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)


class Normalised(nn.Module):
    """A network behind the normalisation of CIFAR-10."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, 10)."""
        return self.network((x - self.mean) / self.std)  # type: ignore[no-any-return]


def pretrained() -> nn.Module:
    """The ResNet-18 that comes with the reference AutoAttack, with its weights: trained plainly, for 32x32 pixels.

    Raises:
        ModuleNotFoundError: pyautoattack is not installed.
    """
    spec = find_spec("pyautoattack")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("pyautoattack is not installed: pip install 'pyautoattack>=0.2'")
    folder = Path(spec.origin).parent / "examples"
    code = spec_from_file_location("pyautoattack_resnet", folder / "resnet.py")
    assert code is not None
    assert code.loader is not None
    module = module_from_spec(code)
    code.loader.exec_module(module)
    model: nn.Module = module.ResNet18()
    model.load_state_dict(torch.load(folder / "model_test.pt", weights_only=True, map_location="cpu"))
    return model


def small() -> nn.Module:
    """For 32x32 pixels: the first convolution is 3x3, nothing is pooled after it."""
    from torchvision.models import resnet18  # 4 s, which the other one does without

    network = resnet18(num_classes=10)
    network.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    network.maxpool = nn.Identity()
    return Normalised(network)


def large() -> nn.Module:
    """For 224x224 pixels, as torchvision has it."""
    from torchvision.models import resnet18

    return Normalised(resnet18(num_classes=10))
