"""Threat models: the one definition of a norm and its ball."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Final, Literal, get_args

import torch
from torch import Tensor

from .errors import unknown
from .schema.eps import eps_text, limit

Norm = Literal["linf", "l2", "l1", "l0"]

NORMS: Final[tuple[Norm, ...]] = get_args(Norm)
"""Every norm the project measures, strongest constraint on a single pixel first."""

EXPONENT: Final[dict[str, float]] = {"linf": math.inf, "l2": 2.0, "l1": 1.0, "l0": 0.0}

BOX_TOLERANCE: Final = 1e-6
"""Absolute slack on [0, 1]. Images inside it are clamped before they are judged, images beyond it are invalid."""


def norm_named(text: str) -> Norm:
    """A norm, in whatever case.

    Raises:
        UserError: There is none of that name, with every choice.
    """
    found = next((norm for norm in NORMS if norm == text.lower()), None)
    if found is None:
        raise unknown("norm", text, NORMS)
    return found


def magnitude(delta: Tensor, norm: Norm) -> Tensor:
    """Norm of each sample's perturbation (N, ...); ``"l0"`` counts components (pixel channels) that are not zero.

    Returns:
        Shape (N,), the dtype of ``delta``.
    """
    flat = delta.flatten(1)
    if norm == "linf":
        return flat.abs().amax(1) if flat.shape[1] else flat.new_zeros(len(flat))
    if norm == "l2":
        size: Tensor = torch.linalg.vector_norm(flat, dim=1)
        return size
    if norm == "l1":
        return flat.abs().sum(1)
    return (flat != 0).sum(1).to(flat.dtype)


def root_mean_square(delta: Tensor) -> Tensor:
    """Distortion as printed by Szegedy et al. (2014) and Gu & Rigazio (2014), shape (N,).

    The papers' formula omits the root, their printed values (0.05 to 0.15) only make sense with it.
    """
    flat = delta.flatten(1)
    size: Tensor = torch.linalg.vector_norm(flat, dim=1)
    return size / math.sqrt(flat.shape[1])


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """Reshape (N,) so that it broadcasts over ``like`` of shape (N, ...)."""
    return values.view(-1, *[1] * (like.dim() - 1))


@dataclass(frozen=True, slots=True)
class Threat:
    """What an adversary may do: move a [0, 1] image by at most ``eps`` in ``norm``.

    Attributes:
        norm: One of :data:`NORMS`.
        eps: Radius in pixel units of [0, 1] inputs (a count of components for ``"l0"``). ``None`` sets no
            bound: the threat of an attack that looks for the nearest adversarial.

    Raises:
        ValueError: Unknown norm; eps negative, infinite or NaN.
    """

    name: ClassVar[str] = "Threat"

    norm: Norm
    eps: float | None = None

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise ValueError(f"unknown norm {self.norm!r}; choose from {', '.join(NORMS)}")
        if self.eps is not None and not (math.isfinite(self.eps) and self.eps >= 0):
            raise ValueError(f"eps must be a finite number >= 0, got {self.eps}")

    def __str__(self) -> str:
        return self.norm if self.eps is None else f"{self.norm} {eps_text(self.eps)}"

    def distance(self, x: Tensor, x_adv: Tensor) -> Tensor:
        """Distance of each sample, shape (N,), measured in float64 so that rounding cannot hide an overshoot."""
        return magnitude(x_adv.double() - x.double(), self.norm)

    def within(self, x: Tensor, x_adv: Tensor) -> Tensor:
        """Which samples keep the budget, up to the slack of :func:`~harness.schema.eps.limit`; shape (N,), bool."""
        distance = self.distance(x, x_adv)
        if self.eps is None:
            return torch.ones_like(distance, dtype=torch.bool)
        return distance <= limit(self.eps)

    def project(self, x: Tensor, x_adv: Tensor) -> Tensor:
        """Bring ``x_adv`` into the ball around ``x``, (N, ...) in [0, 1], and into the box.

        The ball projection is Euclidean; clipping to the box afterwards cannot leave the ball, because ``x``
        lies in the box and clipping only shrinks components.

        Returns:
            A feasible point for every sample, same shape and dtype.
        """
        if self.eps is None:
            return x_adv.clamp(0, 1)
        return (x + project_ball(x_adv - x, self.norm, self.eps)).clamp(0, 1)


def project_ball(delta: Tensor, norm: Norm, eps: float) -> Tensor:
    """Euclidean projection of perturbations, shape (N, ...), onto the ``norm`` ball of radius ``eps``."""
    if norm == "linf":
        return delta.clamp(-eps, eps)
    if norm == "l2":
        size = per_sample(magnitude(delta, "l2"), delta)
        return torch.where(size > eps, delta * (eps / size.clamp_min(1e-30)), delta)
    flat = delta.flatten(1)
    if norm == "l1":
        return _project_l1(flat, eps).view_as(delta)
    keep = min(int(eps), flat.shape[1])
    kept = torch.zeros_like(flat)
    index = flat.abs().topk(keep, dim=1).indices
    kept.scatter_(1, index, flat.gather(1, index))
    return kept.view_as(delta)


def _project_l1(flat: Tensor, eps: float) -> Tensor:
    """Projection onto the L1 ball by sorting (Duchi et al., 2008, figure 1), all rows at once."""
    if eps == 0:
        return torch.zeros_like(flat)
    size = flat.abs()
    ordered = size.sort(dim=1, descending=True).values
    excess = ordered.cumsum(1) - eps
    rank = torch.arange(1, flat.shape[1] + 1, device=flat.device, dtype=flat.dtype)
    support = (ordered * rank > excess).sum(1, keepdim=True).clamp_min(1)
    shrink = (excess.gather(1, support - 1) / support).clamp_min(0)
    return flat.sign() * (size - shrink).clamp_min(0)


def dual_exponent(p: float) -> float:
    """The exponent q with 1/p + 1/q = 1."""
    if not p >= 1:  # NaN too
        raise ValueError(f"p must be in [1, inf], got {p}")
    if p == 1:
        return math.inf
    return 1.0 if math.isinf(p) else p / (p - 1)


def steepest(grad: Tensor, p: float) -> Tensor:
    """The direction of unit p-norm along which a linear function of gradient (N, ...) grows fastest, in closed form.

    Maximises <grad, r> over ||r||_p <= 1 (Lyu et al. 2015, eq. 3 and appendix A):
    r = sign(g) (|g| / ||g||_q)^(q-1) with 1/p + 1/q = 1. p = inf is the sign (with sign(0) = 0), p = 2 the
    normalised gradient, p = 1 the largest component; components tied for the largest share it evenly.

    Returns:
        Same shape; zero where the gradient is zero.

    Raises:
        ValueError: p below 1.
    """
    q = dual_exponent(p)
    if math.isinf(p):
        return grad.sign()
    flat = grad.flatten(1)
    size = flat.abs()
    largest = size.amax(1, keepdim=True)
    if p == 1:
        top = (size == largest) & (largest > 0)
        return (flat.sign() * top / top.sum(1, keepdim=True).clamp_min(1)).view_as(grad)
    # divided by the largest component first: |g|^(q-1) under- or overflows for tiny gradients
    scaled = size / torch.where(largest > 0, largest, 1)
    # and ||g||_q^(q-1) as (sum |g|^q)^(1/p): a root taken and undone loses digits where p is near 1
    norm = (scaled**q).sum(1, keepdim=True) ** (1 / p)
    return (flat.sign() * scaled ** (q - 1) / torch.where(norm > 0, norm, 1)).view_as(grad)
