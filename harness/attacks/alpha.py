"""The nearest linearised class boundary: the alpha attack of Huang et al. (2015)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Final, Literal

import torch
from torch import Tensor

from ..errors import UserError
from ..options import check_choices
from ..threat import EXPONENT, Norm, Threat, dual_exponent, magnitude, per_sample, steepest
from ..victims.victim import Victim
from .base import Attack, Kind, Targeting
from .class_jacobian import candidate_gradients, chunk_size, class_gradients, load_vmap
from .line_search import diameter, first_crossing

Outputs = Literal["softmax", "logits"]

CANDIDATES: Final = 100
"""Most likely wrong classes that suites look at where there are more. On a network with 1,000 classes the nearest
boundary was that of one of the first 100 for all of 150 images, of the first 10 for 95 %."""


def alpha_perturbation(
    victim: Victim, x: Tensor, y: Tensor, norm: Norm, outputs: Outputs = "softmax", candidates: int | None = None
) -> Tensor:
    """The shortest perturbation across a boundary of the linearised outputs, in closed form.

    With alpha the outputs and T their Jacobian at x, the boundary between y and j is reached by
    r_j = (alpha_y - alpha_j) / ||T_j - T_y||_* times the steepest direction of T_j - T_y (Huang et al. 2015,
    proposition 2.1); the shortest r_j is the answer (proposition 2.2, algorithm 1). As in the paper it is not clipped.

    The softmax Jacobian is put together from that of the logits in float64, without cancellation, so that it survives
    probabilities down to 1e-300. Where it still vanishes or the step is infinite, the logits are linearised instead.
    The norm is not ``"l0"``. With ``candidates``, only the boundaries of so many most likely wrong classes are looked
    at.

    Returns:
        Perturbations like ``x``, at most as long as the diagonal of the box; zero where every class gradient is equal.
        Images outside class y get a perturbation along which their outputs move away from y.
    """
    # short of a whole chunk: its gradients and their differences would have to be mapped anew by malloc each time,
    # which costs a convolutional net a fifth
    size = max(1, chunk_size(victim, candidates) * 3 // 4)
    parts = zip(victim.split(x, size), torch.split(x, size), torch.split(y, size), strict=True)
    return torch.cat([_perturbation(*part, norm, outputs, candidates) for part in parts])


def _perturbation(victim: Victim, x: Tensor, y: Tensor, norm: Norm, outputs: Outputs, candidates: int | None) -> Tensor:
    if candidates is None:
        step, distance = nearest_boundary(*class_gradients(victim, x), y, norm, outputs)
    else:
        made = candidate_gradients(victim, x, y, candidates)
        step, distance = nearest_boundary(*made, torch.zeros_like(y), norm, outputs, candidates + 1)
    length = distance.abs().clamp(max=diameter(x, norm)).nan_to_num(0.0)
    return (length.unsqueeze(1) * step).to(x.dtype).view_as(x)


def nearest_boundary(
    logits: Tensor, jacobian: Tensor, y: Tensor, norm: Norm, outputs: Outputs = "softmax", classes: int | None = None
) -> tuple[Tensor, Tensor]:
    """Where the nearest boundary of linearised outputs lies; see :func:`alpha_perturbation`.

    For logits (N, K), their gradients (N, K, ...) with respect to whatever is perturbed, and labels (N,). Of outputs
    only the boundaries of the first ``classes`` count, where that is given; the others weigh in the softmax alone.

    Returns:
        ``(direction (N, D), distance (N,))`` in float64: directions of unit length in ``norm``, or zero where every
        class gradient is equal; there the distance is infinite.
    """
    label = y.unsqueeze(1)
    flat = jacobian.flatten(2).double()
    normals = flat - flat.gather(1, label.unsqueeze(2).expand(-1, 1, flat.shape[2]))  # of the logits' boundaries
    margins = logits.double().gather(1, label) - logits.double()
    if outputs == "logits":
        return _nearest(margins[:, :classes], normals[:, :classes], norm, y)
    alpha = logits.double().softmax(1)
    own = alpha.gather(1, label)
    # T_j - T_y = alpha_j (n_j - m) + alpha_y m with m = sum_k alpha_k n_k and n_k the normals above
    mean = (alpha.unsqueeze(2) * normals).sum(1, keepdim=True)
    tangents = (normals - mean).mul_(alpha.unsqueeze(2)).add_(own.unsqueeze(2) * mean)
    step, distance = _nearest((own - alpha)[:, :classes], tangents[:, :classes], norm, y)
    finite = distance.isfinite()
    if not finite.all():
        other, other_distance = _nearest(margins[:, :classes], normals[:, :classes], norm, y)
        step, distance = torch.where(finite.unsqueeze(1), step, other), torch.where(finite, distance, other_distance)
    return step, distance


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

    K backward passes per image. The step is clipped to the box, which the paper does not do: for that there is
    :class:`~harness.attacks.unclipped.Unclipped`.

    Attributes:
        mode: ``"budget"`` scales the perturbation to eps (the paper's Adv_Alpha, and section 3.1.2). ``"minimal"``
            looks for the shortest one.
        length: Length of a minimal step: ``"search"`` goes along the direction to the first place where the victim is
            wrong, ``"closed"`` takes the length that the linear model predicts.
        overshoot: Share by which a ``"closed"`` step is lengthened, >= 0.
        outputs: What is linearised: the ``"softmax"``, as in the paper, or the ``"logits"``. Both agree on the
            boundary itself; far from it the softmax is flat and predicts too long a step.
        candidates: Look at the boundaries of so many most likely wrong classes only, at one backward pass each and two
            more; None: at those of all. Suites take :data:`CANDIDATES` where there are more classes.
    """

    name: ClassVar[str] = "alpha"
    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2", "l1")
    targeting: ClassVar[Targeting] = "rows"

    mode: Kind = "budget"
    length: Literal["search", "closed"] = "search"
    overshoot: float = 0.02
    outputs: Outputs = "softmax"
    candidates: int | None = dataclasses.field(default=None, metadata={"identity": "set"})

    @property
    def loads(self) -> tuple[Callable[[], None], ...]:
        """What the Jacobian is computed with."""
        return (load_vmap,)

    def __post_init__(self) -> None:
        check_choices(self)
        if not self.overshoot >= 0:
            raise UserError(f"overshoot must be >= 0, got {self.overshoot}")
        if self.candidates is not None and self.candidates < 1:
            raise UserError(f"candidates must be >= 1, got {self.candidates}")

    @property
    def kind(self) -> Kind:
        """As :attr:`mode` says."""
        return self.mode

    def for_classes(self, count: int) -> Alpha:
        """With the most likely classes alone where there are many, unless it says itself how many."""
        many = self.candidates is None and count - 1 > CANDIDATES
        return dataclasses.replace(self, candidates=CANDIDATES) if many else self

    def run(self, victim: Victim, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
        """Propose one image for each; a minimal attack returns misclassified images as they are."""
        if not len(x):
            return x
        r = alpha_perturbation(victim, x, y, threat.norm, self.outputs, self.candidates)
        if self.mode == "minimal" and self.length == "closed":
            right = victim(x).argmax(1) == y
            return (x + per_sample(right.to(x.dtype), x) * (1 + self.overshoot) * r).clamp(0, 1)
        direction = _unit(r, threat.norm)
        if self.mode == "minimal":
            return first_crossing(victim, x, y, direction, diameter(x, threat.norm))
        assert threat.eps is not None
        return (x + threat.eps * direction).clamp(0, 1)

    def direction(self, victim: Victim, x: Tensor, y: Tensor, norm: Norm) -> Tensor:
        """Towards the nearest linearised boundary, like ``x``, of length 1 in ``norm``, or zero if there is none."""
        return _unit(alpha_perturbation(victim, x, y, norm, self.outputs, self.candidates), norm)


def _unit(r: Tensor, norm: Norm) -> Tensor:
    size = per_sample(magnitude(r, norm), r)
    return r / torch.where(size > 0, size, 1)


def adv_alpha() -> Alpha:
    """Adv_Alpha of Huang et al. 2015, section 4.1: towards the nearest boundary of the linearised softmax."""
    return Alpha()
