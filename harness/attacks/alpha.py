"""The nearest linearised class boundary: the alpha attack of Huang et al. (2015)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..attack import Attack, Kind
from ..errors import UserError, unknown
from ..threat import EXPONENT, Norm, Threat, dual_exponent, magnitude, per_sample, steepest
from ..victim import Victim
from .jacobian import chunk_size, class_gradients
from .line import diameter, first_crossing

Outputs = Literal["softmax", "logits"]


def alpha_perturbation(victim: Victim, x: Tensor, y: Tensor, norm: Norm, outputs: Outputs = "softmax") -> Tensor:
    """The shortest perturbation across a boundary of the linearised outputs, in closed form.

    With alpha the outputs and T their Jacobian at x, the boundary between y and j is reached by
    r_j = (alpha_y - alpha_j) / ||T_j - T_y||_* times the steepest direction of T_j - T_y (Huang et al. 2015,
    proposition 2.1); the shortest r_j is the answer (proposition 2.2, algorithm 1). As in the paper it is not clipped.

    The softmax Jacobian is put together from that of the logits in float64, without cancellation, so that it survives
    probabilities down to 1e-300. Where it still vanishes or the step is infinite, the logits are linearised instead.

    Args:
        victim: The model.
        x: Images (N, C, H, W) in [0, 1].
        y: Labels (N,).
        norm: ``"linf"``, ``"l2"`` or ``"l1"``.
        outputs: Linearise the softmax, as the paper does, or the logits.

    Returns:
        Perturbations like ``x``, at most as long as the diagonal of the box; zero where every class gradient is equal.
        Images outside class y get a perturbation along which their outputs move away from y.
    """
    parts = zip(torch.split(x, chunk_size(victim)), torch.split(y, chunk_size(victim)), strict=True)
    return torch.cat([_perturbation(victim, images, labels, norm, outputs) for images, labels in parts])


def _perturbation(victim: Victim, x: Tensor, y: Tensor, norm: Norm, outputs: Outputs) -> Tensor:
    logits, jacobian = class_gradients(victim, x)
    label = y.unsqueeze(1)
    flat = jacobian.flatten(2).double()
    normals = flat - flat.gather(1, label.unsqueeze(2).expand(-1, 1, flat.shape[2]))  # of the logits' boundaries
    margins = logits.double().gather(1, label) - logits.double()
    step, distance = _nearest(margins, normals, norm, y)
    if outputs == "softmax":
        alpha = logits.double().softmax(1)
        own = alpha.gather(1, label)
        # T_j - T_y = alpha_j (n_j - m) + alpha_y m with m = sum_k alpha_k n_k and n_k the normals above
        mean = (alpha.unsqueeze(2) * normals).sum(1, keepdim=True)
        normals = alpha.unsqueeze(2) * (normals - mean) + own.unsqueeze(2) * mean
        paper, paper_distance = _nearest(own - alpha, normals, norm, y)
        finite = paper_distance.isfinite().unsqueeze(1)
        step, distance = torch.where(finite, paper, step), torch.where(finite.squeeze(1), paper_distance, distance)
    length = distance.abs().clamp(max=diameter(x, norm)).nan_to_num(0.0)
    return (length.unsqueeze(1) * step).to(x.dtype).view_as(x)


def _nearest(margins: Tensor, normals: Tensor, norm: Norm, y: Tensor) -> tuple[Tensor, Tensor]:
    """Unit direction (N, D) towards the nearest boundary and the distance (N,), infinite if there is none."""
    p = EXPONENT[norm]
    slope = torch.linalg.vector_norm(normals, ord=dual_exponent(p), dim=2)
    distance = torch.where(slope > 0, margins.abs() / slope, torch.inf)
    distance = distance.scatter(1, y.unsqueeze(1), torch.inf)
    shortest = distance.min(1)
    rows = torch.arange(len(y), device=y.device)
    return steepest(normals[rows, shortest.indices], p), shortest.values


@dataclass(frozen=True, kw_only=True)
class Alpha(Attack):
    """A single step to the nearest class boundary of the linearised network (Huang et al. 2015, section 2).

    K backward passes an image. The step is clipped to the box, which the paper does not do.

    Attributes:
        mode: ``"budget"`` scales the perturbation to eps (the paper's Adv_Alpha, and section 3.1.2). ``"minimal"``
            looks for the shortest one.
        length: Length of a minimal step: ``"search"`` goes along the direction to the first place where the victim is
            wrong, ``"closed"`` takes the length that the linear model predicts.
        overshoot: Share by which a ``"closed"`` step is lengthened, >= 0.
        outputs: What is linearised: the ``"softmax"``, as in the paper, or the ``"logits"``. Both agree on the
            boundary itself; far from it the softmax is flat and predicts too long a step.
    """

    name: ClassVar[str] = "alpha"
    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2", "l1")

    mode: Kind = "budget"
    length: Literal["search", "closed"] = "search"
    overshoot: float = 0.02
    outputs: Outputs = "softmax"

    def __post_init__(self) -> None:
        for field, choices in (
            ("mode", ("budget", "minimal")),
            ("length", ("search", "closed")),
            ("outputs", ("softmax", "logits")),
        ):
            if getattr(self, field) not in choices:
                raise unknown(field, getattr(self, field), choices)
        if not self.overshoot >= 0:
            raise UserError(f"overshoot must be >= 0, got {self.overshoot}")

    @property
    def kind(self) -> Kind:
        """As :attr:`mode` says."""
        return self.mode

    def run(self, victim: Victim, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
        """Propose one image for each; a minimal attack returns misclassified images as they are."""
        if not len(x):
            return x
        r = alpha_perturbation(victim, x, y, threat.norm, self.outputs)
        if self.mode == "minimal" and self.length == "closed":
            right = victim(x).argmax(1) == y
            return (x + per_sample(right.to(x.dtype), x) * (1 + self.overshoot) * r).clamp(0, 1)
        size = per_sample(magnitude(r, threat.norm), x)
        direction = r / torch.where(size > 0, size, 1)
        if self.mode == "minimal":
            return first_crossing(victim, x, y, direction, diameter(x, threat.norm))
        assert threat.eps is not None
        return (x + threat.eps * direction).clamp(0, 1)
