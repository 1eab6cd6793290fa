"""Gradients of every class output with respect to the input."""

from __future__ import annotations

from typing import Final, Literal

import torch
from torch import Tensor

from ..victim import Victim

ROWS: Final = 320
"""Gradient rows (images times classes) of one batched backward pass."""


def chunk_size(victim: Victim) -> int:
    """Images of one chunk: :data:`ROWS` over the number of classes, ten of them if that is unknown."""
    return max(1, ROWS // (victim.classes or 10))


def class_gradients(
    victim: Victim, x: Tensor, outputs: Literal["logits", "softmax"] = "logits"
) -> tuple[Tensor, Tensor]:
    """Outputs of a victim and their Jacobian, counted as one forward and K backward passes an image.

    Measured on one core, milliseconds an image for K = 10, against K backward passes over the whole batch and one
    pass over K copies of each image (``benchmarks/bench_alpha.py`` repeats it):

    ================  =====  =====  =====  =====  =====  =====  =====  =====
    images                1     16     64    500      1     16     64    500
    model               MLP    MLP    MLP    MLP  LeNet  LeNet  LeNet  LeNet
    ================  =====  =====  =====  =====  =====  =====  =====  =====
    K passes           1.29   0.13   0.07   0.07   6.05   2.67   2.49   2.86
    K copies           0.34   0.10   0.10   0.11   4.53   3.59   4.52   6.08
    batched, at once   0.32   0.07   0.06   0.05   4.62   2.53   3.12   3.69
    batched, by 32     0.32   0.07   0.07   0.07   4.62   2.53   2.92   2.54
    ================  =====  =====  =====  =====  =====  =====  =====  =====

    Vectorised backward passes lose to K separate ones only on convolutional nets in large batches, by leaving the
    cache; in chunks of ROWS / K images they lose nowhere by more than the noise. So they are always used, whatever the
    machine. A model whose backward cannot be vectorised gets K passes.

    Args:
        victim: The model.
        x: Images (N, C, H, W) in [0, 1].
        outputs: Differentiate the logits or their softmax.

    Returns:
        ``(outputs (N, K), jacobian (N, K, C, H, W))``, detached.
    """
    values, jacobians = [], []
    for part in torch.split(x, chunk_size(victim)):
        try:
            value, jacobian = _chunk(victim, part, outputs, vectorised=True)
        except RuntimeError:
            # an operation without a batching rule; an error of another kind comes again from the plain passes
            value, jacobian = _chunk(victim, part, outputs, vectorised=False)
        values.append(value)
        jacobians.append(jacobian)
    return torch.cat(values), torch.cat(jacobians)


def _chunk(victim: Victim, x: Tensor, outputs: str, *, vectorised: bool) -> tuple[Tensor, Tensor]:
    before = victim.cost.backwards
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        value = victim(x)
        if outputs == "softmax":
            value = value.softmax(1)
    n, classes = value.shape
    if vectorised:
        basis = torch.eye(classes, dtype=value.dtype, device=value.device).unsqueeze(1).expand(classes, n, classes)
        (jacobian,) = torch.autograd.grad(value, x, basis, is_grads_batched=True)
    else:
        rows = [torch.autograd.grad(value[:, k].sum(), x, retain_graph=k + 1 < classes)[0] for k in range(classes)]
        jacobian = torch.stack(rows)
    # the victim's own counter sees one call however many rows it carries
    victim.cost.backwards = before + classes * n
    return value.detach(), jacobian.transpose(0, 1)
