"""Blurring of every image that a model is shown (Gu & Rigazio 2014, section 3.1, table 2)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Self

from torch import Tensor, nn

from harness.datasets.registry import DatasetInfo
from harness.errors import UserError
from harness.models.purifier import Purified
from harness.training.defense import require
from harness.training.on_trained import Wrapper


class Blur(nn.Module):
    """Gaussian blur of each channel, with images reflected at their borders.

    Args:
        kernel: Side of the kernel in pixels, odd.
        sigma: Standard deviation in pixels.
    """

    def __init__(self, kernel: int, sigma: float) -> None:
        super().__init__()
        self.kernel = kernel
        self.sigma = sigma

    def forward(self, x: Tensor) -> Tensor:
        """Blurred images (N, C, H, W)."""
        from torchvision.transforms.v2.functional import gaussian_blur_image

        blurred: Tensor = gaussian_blur_image(x, [self.kernel] * 2, [self.sigma] * 2)
        return blurred


@dataclass(frozen=True, kw_only=True)
class GaussianBlur(Wrapper):
    """A blur before a trained model, for attacks to see through.

    Attributes:
        kernel: Side of the kernel in pixels, odd; the paper has 5 and 11.
        sigma: Standard deviation in pixels. The paper gives the kernel alone; ``None`` is OpenCV's rule for it,
            0.3 ((kernel - 1) / 2 - 1) + 0.8: 1.1 for 5 and 2.0 for 11.
    """

    name = "gaussian-blur"
    summary = "Gaussian blur before a trained model"
    source = "Gu & Rigazio 2014, section 3.1"

    kernel: int = 5
    sigma: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "kernel", self.kernel >= 3 and self.kernel % 2 == 1, "odd and at least 3")
        require(self, "sigma", self.sigma is None or self.sigma > 0, "positive")

    @property
    def usual_sigma(self) -> float:
        """OpenCV's standard deviation for the kernel, in pixels."""
        return round(0.3 * ((self.kernel - 1) * 0.5 - 1) + 0.8, 6)

    def resolve(self, info: DatasetInfo) -> Self:
        """Fill in sigma."""
        return self if self.sigma is not None else dataclasses.replace(self, sigma=self.usual_sigma)

    def label(self, info: DatasetInfo) -> str:
        """Name for people; a sigma that follows from the kernel is left out."""
        shown = [f"kernel={self.kernel}"] if self.kernel != type(self)().kernel else []
        shown += [f"sigma={self.sigma}"] if self.sigma not in (None, self.usual_sigma) else []
        return f"{self.name}({', '.join(shown)})" if shown else self.name

    def around(self, base: nn.Module, info: DatasetInfo) -> Purified:
        """The blur before the base.

        Raises:
            UserError: Images too small to be reflected over half a kernel.
        """
        if self.kernel // 2 >= min(info.shape[1:]):
            raise UserError(f"{self.name}: a kernel of {self.kernel} is too large for images of {info.shape[1:]}")
        assert self.sigma is not None
        return Purified(Blur(self.kernel, self.sigma), base)
