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
    K passes          1.123  0.126  0.071  0.055   5.74   2.51   2.40   2.75
    K copies          0.457  0.107  0.092  0.102   4.46   3.55   4.58   6.38
    batched, at once  0.353  0.069  0.056  0.052   4.28   2.51   2.41   3.34
    batched, by 32    0.365  0.069  0.058  0.063   4.82   2.62   2.51   2.49
    ================  =====  =====  =====  =====  =====  =====  =====  =====

    A vectorised backward pass is the faster way in small batches, by a factor of 3 for one image of the MLP, and loses
    to K separate ones only where a large batch of a convolutional net leaves the cache. In chunks of ROWS / K images it
    is within a fifth of the best everywhere. So it is always used, whatever the machine: a choice by the clock would
    make numbers depend on it. A model whose backward cannot be vectorised gets K passes.

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
        except torch.OutOfMemoryError:  # whoever called knows what to do about it
            raise
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
