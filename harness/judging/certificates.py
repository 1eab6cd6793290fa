"""What can be proved of a model's images: its own certificate, or bounds of the network, within a limit of cost."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any, Final, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from .. import determinism, identity
from ..certify import Certificate, certify
from ..errors import describe
from ..planning.specs import Certification
from ..schema.certificates import CertificateFacts, CertifiedLevel
from ..threat import Threat
from ..victims.victim import Victim

CHUNK: Final = 32
"""Images that are bounded at once, if one costs no more than :data:`CHEAP` passes; else fewer, for want of memory."""
CHEAP: Final = 1000

_UNITS: Final = frozenset(
    {"relu", "relu_", "sigmoid", "tanh", "max_pool2d_with_indices", "amax", "maximum", "gelu", "silu", "hardtanh"}
)
"""Operations whose every output needs a linear bound of its own."""


@runtime_checkable
class Certifying(Protocol):
    """A model of ours with a certificate of its own, which holds for an image with probability 1 - alpha at least.

    It is a statement about the model's expectation, while the referee sees finitely many draws: an image may be broken
    and its certificate hold.

    Attributes:
        alpha: See above.
        certificate_passes: Passes of an image that its certificates take.
    """

    alpha: float
    certificate_passes: int

    def certificates(self, x: Tensor, y: Tensor, threats: Sequence[Threat]) -> list[Certificate]:
        """What it proves of images (N, C, H, W) with labels (N,), threat by threat; random numbers are torch's."""
        ...


def prove(
    asked: Certification,
    shard: int,
    model: nn.Module,
    index: Tensor,
    x: Tensor,
    y: Tensor,
    *,
    classes: int,
    device: torch.device | str = "cpu",
) -> CertificateFacts:
    """Certify one shard of images, at every eps of the declaration.

    Only images that the model gets right are asked about, and of those that are not certified at one eps nothing is
    asked at a larger one, whose ball holds the smaller. What goes wrong in bounding certifies nothing, and is said.

    Args:
        asked: The declaration.
        shard: Which of its shards.
        model: The model as it is judged.
        index: Positions of the shard's images in the test set, int64 (N,).
        x: They, float32 (N, C, H, W) in [0, 1].
        y: Their labels, int64 (N,).
        classes: Number of classes.
        device: Where to run.

    Raises:
        VictimError: The model cannot be judged.
    """
    start = time.perf_counter()
    remedy = asked.model.defense.remedy
    victim = Victim(model, classes=classes, device=device, votes=remedy.calls)
    model = victim.model  # a copy in eval mode: the caller's stays as it is
    # what is made elsewhere is not believed when it speaks of itself
    own = model if isinstance(model, Certifying) and asked.model.defense.trainable else None
    threats = [Threat(asked.norm, eps) for eps in asked.grid]
    uncovered = "it draws at random" if remedy.stochastic and own is None else ""
    price = 1 if own is None else own.certificate_passes
    if own is None and not uncovered:
        try:
            price = cost(model, x[:1].to(device))
        except Exception as error:  # what cannot be asked about one image is bounded by nobody
            uncovered = describe(error)
    kept = max(min(len(x), asked.affordable(price) - asked.shard_slice(shard).start), 0)
    index, x, y = index[:kept], x[:kept].to(device), y[:kept].to(device)
    found = [_nothing(kept) for _ in threats]
    if kept and not uncovered:
        right = victim.predict(x) == y
        if own is None:
            found, uncovered = _bounds(model, x, y, right, threats, max(min(CHUNK, CHUNK * CHEAP // price), 1))
        else:
            with determinism.isolated(identity.derive_seed(asked.seed, shard), device):
                each = own.certificates(x, y, threats)
            found = [Certificate(one.certified & right.cpu(), one.margins) for one in each]
    return CertificateFacts(
        norm=asked.norm,
        n=asked.n,
        index=tuple(index.tolist()),
        levels=tuple(
            CertifiedLevel(eps=eps, certified=tuple(one.certified.tolist()), margins=tuple(one.margins.tolist()))
            for eps, one in zip(asked.grid, found, strict=True)
        ),
        uncovered=uncovered,
        alpha=None if own is None else own.alpha,
        cost=price,
        seconds=time.perf_counter() - start,
    )


def _nothing(images: int) -> Certificate:
    return Certificate(torch.zeros(images, dtype=torch.bool), torch.full((images,), torch.nan, dtype=torch.float64))


def _bounds(
    model: nn.Module, x: Tensor, y: Tensor, right: Tensor, threats: Sequence[Threat], chunk: int
) -> tuple[list[Certificate], str]:
    """Bounds at ascending eps of the images that are right, and the operation that there are none for."""
    found = [_nothing(len(x)) for _ in threats]
    left = right.nonzero().squeeze(1)
    for threat, one in zip(threats, found, strict=True):
        for rows in left.split(chunk):  # type: ignore[no-untyped-call]
            try:
                proved = certify(model, x[rows], y[rows], threat)
            except Exception as error:  # a missing bound is no fault of the model, and no result is lost for it
                proved = Certificate(rows.cpu() < 0, rows.cpu() * math.nan, describe(error))
            if proved.uncovered:
                return [_nothing(len(x)) for _ in threats], proved.uncovered
            one.certified[rows.cpu()] = proved.certified.cpu()
            one.margins[rows.cpu()] = proved.margins.cpu().double()
        left = one.certified.nonzero().squeeze(1).to(left.device)
    return found, ""


class _Meter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts floating-point operations, and those of every linear bound on the way down from where it is needed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0
        self.rows = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        operation = func._overloadpacket
        if operation in flop_registry:
            self.flops += flop_registry[operation](*args, **(kwargs or {}), out_val=out)
        elif operation.__name__ in _UNITS:
            first = out[0] if isinstance(out, tuple) else out
            self.rows += first.numel() * self.flops
        return out


@torch.no_grad()
def cost(model: nn.Module, x: Tensor) -> int:
    """Passes of an image that a certificate at one eps costs, from one image (1, C, H, W); no image is certified.

    Linear bounds of every unit that one is needed of, each as much as a pass from there back to the image, twice.
    """
    with _Meter() as meter:
        model(x)
    return 1 + math.ceil(2 * meter.rows / meter.flops) if meter.flops else 1
