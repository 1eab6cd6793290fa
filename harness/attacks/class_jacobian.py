"""Gradients of every class output with respect to the input."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Final, Literal

import torch
from torch import Tensor

from ..victims.victim import Victim
from .losses import likely_rivals

ROWS: Final = 320
"""Gradient rows (images times classes) of one batched backward pass."""


def load_vmap() -> None:
    """Let torch import what a vectorised backward pass needs, which takes seconds."""
    x = torch.zeros(1, requires_grad=True)
    torch.autograd.grad(x * 1, x, torch.ones(1, 1), is_grads_batched=True)


def chunk_size(victim: Victim, candidates: int | None = None) -> int:
    """Images of one chunk: :data:`ROWS` over the rows of an image, ten of them if the number of classes is unknown."""
    rows = victim.classes or 10
    return max(1, ROWS // (rows if candidates is None else min(rows, candidates + 2)))


def class_gradients(
    victim: Victim, x: Tensor, outputs: Literal["logits", "softmax"] = "logits"
) -> tuple[Tensor, Tensor]:
    """Outputs of a victim and their Jacobian, counted as one forward and K backward passes per image.

    A vectorised backward pass is the faster way in small batches, by a factor of 3 for one image of an MLP, and loses
    to K separate ones only where a large batch of a convolutional net leaves the cache. In chunks of ROWS / K images it
    is within a fifth of the best everywhere (``benchmarks/bench_alpha.py`` has the table). So it is always used,
    whatever the machine: a choice by the clock would make numbers depend on it. A model whose backward cannot be
    vectorised gets K passes.

    Returns:
        ``(outputs (N, K), jacobian (N, K, C, H, W))``, detached.
    """

    def wanted(logits: Tensor) -> Tensor:
        return logits.softmax(1) if outputs == "softmax" else logits

    size = chunk_size(victim)
    parts = zip(victim.split(x, size), torch.split(x, size), strict=True)
    return _joined(_rows(view, part, wanted) for view, part in parts)


def candidate_gradients(victim: Victim, x: Tensor, y: Tensor, candidates: int) -> tuple[Tensor, Tensor]:
    """Logits and their Jacobian for the label, the most likely wrong classes, and all others as if they were one.

    The one has the logarithm of their summed exponentials as its logit, so that the softmax of the others is what it
    is with all K classes. It is no class: its boundary with the label is not one of the model's. ``candidates`` >= 1.

    Returns:
        ``(logits (N, candidates + 2), jacobian (N, candidates + 2, C, H, W))``, detached, the label's first; K rows of
        all classes, and none of others, where K is no more than ``candidates + 1``.
    """

    def merged(logits: Tensor, labels: Tensor) -> Tensor:
        chosen = torch.cat((labels.unsqueeze(1), likely_rivals(logits.detach(), labels, candidates)), 1)
        if chosen.shape[1] == logits.shape[1]:
            return logits.gather(1, chosen)
        others = logits.scatter(1, chosen, -torch.inf).logsumexp(1, keepdim=True)
        return torch.cat((logits.gather(1, chosen), others), 1)

    size = chunk_size(victim, candidates)
    parts = zip(victim.split(x, size), torch.split(x, size), torch.split(y, size), strict=True)
    return _joined(_rows(view, part, partial(merged, labels=labels)) for view, part, labels in parts)


def _joined(parts: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    values, jacobians = zip(*parts, strict=True)
    return torch.cat(values), torch.cat(jacobians)


def _rows(victim: Victim, x: Tensor, outputs: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """A function of the logits of one chunk, and its Jacobian."""
    try:
        return _chunk(victim, x, outputs, vectorised=True)
    except torch.OutOfMemoryError:  # whoever called knows what to do about it
        raise
    except RuntimeError:
        # an operation without a batching rule; an error of another kind comes again from the plain passes
        return _chunk(victim, x, outputs, vectorised=False)


def _chunk(
    victim: Victim, x: Tensor, outputs: Callable[[Tensor], Tensor], *, vectorised: bool
) -> tuple[Tensor, Tensor]:
    before = victim.cost.backwards
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        value = outputs(victim(x))
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
