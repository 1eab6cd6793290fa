"""Squared Frobenius norms of Jacobians, differentiable with respect to the weights, without building a Jacobian.

Rows of a Jacobian that are a row of weights times a factor (a *gate*: the derivative of the nonlinearity, whatever
max-pooling lets through) have norms that need the weights' norms alone. Gates are differentiated where they can be,
as autograd does: a sigmoid's moves with the weights, that of a ReLU and the choice of a pooling are constants.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.stages import Stages, Tap

SILENT: Final = (nn.Flatten, nn.Identity)
"""Modules that neither change nor mix numbers."""


class Layer(NamedTuple):
    """One hidden representation, or the logits, and what it is computed from.

    Attributes:
        module: What turns ``before`` into ``after``: one stage, or several.
        before: The representation below, or the images: (N, ...).
        after: This one: (N, ...).
    """

    name: str
    module: nn.Module
    before: Tensor
    after: Tensor


def steps(model: Stages) -> dict[str, nn.Module]:
    """What turns each representation into the next, by the name of the stage that gives it; the logits come last."""
    found: dict[str, nn.Module] = {}
    waiting: list[nn.Module] = []
    last = list(model.stages)[-1]
    for name, stage in model.stages.items():
        waiting.append(stage)
        if name in model.hidden or name == last:
            found[name] = nn.Sequential(*waiting)
            waiting.clear()
    return found


def trace(model: Stages, x: Tensor, tap: Tap | None = None, *, leaf: bool = False) -> tuple[Tensor, list[Layer]]:
    """Logits of a batch and its layers: a hidden representation each, and the logits, from one forward pass.

    Args:
        model: The classifier.
        x: Images (N, C, H, W).
        tap: As in :meth:`Stages.forward`; a layer holds what entered it after the tap, and what left it before.
        leaf: Have gradients by the images, which are the first layer's ``before``, in any case. Otherwise there are
            some only where a layer has no formula, for they are a good part of a backward pass.

    Returns:
        ``(logits (N, K), layers)``.
    """
    parts = steps(model)
    *_, last = parts
    leaf = leaf or not all(has_closed_form(part, softmax=name == last) for name, part in parts.items())
    before = x = x.detach().requires_grad_(leaf)
    layers: list[Layer] = []

    def note(name: str, output: Tensor) -> Tensor:
        nonlocal before
        onward = output if tap is None else tap(name, output)
        if name in parts:
            layers.append(Layer(name, parts[name], before, output))
            before = onward
        return onward

    return model(x, tap=note), layers


def squared_norm(module: nn.Module, before: Tensor, after: Tensor, *, softmax: bool = False, draws: int = 1) -> Tensor:
    """Squared Frobenius norm of d after / d before, sample by sample: (N,).

    By :func:`closed_form` where there is one, by :func:`estimate` elsewhere: then ``before`` must require a gradient.
    With ``softmax``, ``after`` is logits (N, K) of which the softmax is taken.
    """
    closed = closed_form(module, before, after, softmax=softmax)
    return estimate(before, after.softmax(1) if softmax else after, draws) if closed is None else closed


def closed_form(module: nn.Module, before: Tensor, after: Tensor, *, softmax: bool = False) -> Tensor | None:
    """As :func:`squared_norm` for layers whose norm is a formula; None for others.

    There is one for a dense layer, alone or with ReLU, sigmoid or softmax; for a convolution (any stride, zero padding,
    dilation and groups), alone or with ReLU or sigmoid, then max-pooling or not; and for modules that only reshape.
    """
    form = _Form.of(module, softmax=softmax)
    if form is None:
        return None
    if form.affine is None:
        return after.new_full((len(after),), float(after[0].numel()))
    if softmax:
        return _softmax_norm(form.affine.weight, after.softmax(1))
    gates = _gates(form.gate, after)
    if isinstance(form.affine, nn.Linear):
        rows = form.affine.weight.square().sum(1)
        return gates @ rows if gates.dim() == 2 else (gates * rows).flatten(1).sum(1)
    gates = gates.flatten(1)
    norms = _filter_norms(form.affine, before)
    if form.pool is not None:
        norms = _pooled(norms, form, before)
    return gates @ norms.flatten() if len(norms) == 1 else (gates * norms.flatten(1)).sum(1)


def has_closed_form(module: nn.Module, *, softmax: bool = False) -> bool:
    """Whether :func:`closed_form` knows the module."""
    return _Form.of(module, softmax=softmax) is not None


def estimate(before: Tensor, after: Tensor, draws: int = 1) -> Tensor:
    """Unbiased estimate of the squared norm: E ||v^T J||^2 over random signs v is tr(J J^T) (Hutchinson 1990).

    A batch-normalised layer in training mode mixes samples: then J holds the derivatives of the whole batch's output
    by one sample's input. The variance falls with the number of draws.

    Returns:
        (N,), differentiable by double backpropagation.
    """
    total = before.new_zeros(len(before))
    for _ in range(draws):
        signs = torch.empty_like(after).bernoulli_(0.5).mul_(2).sub_(1)
        total = total + _row(after, before, signs)
    return total / draws


def exact(x: Tensor, outputs: Tensor) -> Tensor:
    """Squared norm of d outputs / d x from one backward pass for each of the K outputs.

    Returns:
        (N,), differentiable by double backpropagation.
    """
    units = torch.eye(outputs.shape[1], dtype=outputs.dtype, device=outputs.device)
    return torch.stack([_row(outputs, x, unit.expand_as(outputs)) for unit in units]).sum(0)


def _row(outputs: Tensor, x: Tensor, weights: Tensor) -> Tensor:
    (grad,) = torch.autograd.grad(outputs, x, weights, create_graph=True)
    return grad.flatten(1).square().sum(1)


class _Form(NamedTuple):
    """A layer that has a formula: an affine map (None: identity), a nonlinearity and a pooling, in this order."""

    affine: nn.Linear | nn.Conv2d | None = None
    gate: nn.ReLU | nn.Sigmoid | None = None
    pool: nn.MaxPool2d | None = None

    @classmethod
    def of(cls, module: nn.Module, *, softmax: bool) -> _Form | None:
        """None if there is no formula."""
        match _parts(module):
            case [nn.Linear() as affine]:
                return cls(affine)
            case _ if softmax:
                return None
            case []:
                return cls()
            case [nn.Linear() as affine, nn.ReLU() | nn.Sigmoid() as gate]:
                return cls(affine, gate)
            case [nn.Conv2d(padding_mode="zeros") as affine]:
                return cls(affine)
            case [nn.Conv2d(padding_mode="zeros") as affine, nn.ReLU() | nn.Sigmoid() as gate]:
                return cls(affine, gate)
            case [nn.Conv2d(padding_mode="zeros") as affine, nn.MaxPool2d() as pool]:
                return cls(affine, None, pool)
            case [nn.Conv2d(padding_mode="zeros") as affine, nn.ReLU() | nn.Sigmoid() as gate, nn.MaxPool2d() as pool]:
                return cls(affine, gate, pool)
        return None


def _parts(module: nn.Module) -> list[nn.Module]:
    if isinstance(module, nn.Sequential):
        return [part for child in module for part in _parts(child)]
    return [] if isinstance(module, SILENT) else [module]


def _gates(gate: nn.Module | None, after: Tensor) -> Tensor:
    """Squared derivative of a nonlinearity, from what leaves it; max-pooling keeps it, for both are monotonous."""
    if isinstance(gate, nn.ReLU):
        return (after > 0).to(after.dtype)
    return torch.ones_like(after) if gate is None else (after * (1 - after)).square()


def _softmax_norm(weight: Tensor, p: Tensor) -> Tensor:
    """||A W||^2 with A = diag(p) - p p^T, which is tr(A G A) with G = W W^T of K x K."""
    a = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    return ((a @ (weight @ weight.T)) * a).sum((1, 2))


def _filter_norms(convolution: nn.Conv2d, before: Tensor) -> Tensor:
    """Squared norm of the part of each filter that lies on the image, at each position: (1, C, H, W)."""
    ones = before.new_ones(1, *before.shape[1:])
    part = convolution
    squares = part.weight.square()
    return F.conv2d(ones, squares, None, part.stride, part.padding, part.dilation, part.groups)


def _pooled(norms: Tensor, form: _Form, before: Tensor) -> Tensor:
    """Those of the positions that max-pooling lets through: (1, C, h, w), or (N, C, h, w) where borders matter.

    With padding the choice matters, and what left the pooling does not tell it: the convolution is run again,
    without a graph. Without padding a filter has one norm everywhere.
    """
    assert isinstance(form.affine, nn.Conv2d)
    assert form.pool is not None
    pool = form.pool
    shape = (pool.kernel_size, pool.stride, pool.padding, pool.dilation, pool.ceil_mode)
    if not _is_padded(form.affine):
        return F.max_pool2d(norms, *shape)
    with torch.no_grad():
        z = form.affine(before)
        _, chosen = F.max_pool2d(z if form.gate is None else form.gate(z), *shape, return_indices=True)
    at = norms.flatten(2).expand(len(before), -1, -1).gather(2, chosen.flatten(2))
    return at.view(chosen.shape)


def _is_padded(convolution: nn.Conv2d) -> bool:
    padding = convolution.padding
    return padding != "valid" if isinstance(padding, str) else any(padding)
