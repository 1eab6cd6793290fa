"""Looks at a loaded model of a user: whether it can be judged, and what it does."""

from __future__ import annotations

import hashlib
from typing import Any, Final

import torch
from torch import Tensor, nn

from . import identity, registry
from .errors import UserError
from .external import add_to_digest, bare, digest
from .victim import Victim, VictimError

FINGERPRINT: Final = 16
"""Images behind a fingerprint."""


def fingerprint(model: nn.Module, shape: tuple[int, int, int], classes: int) -> str:
    """SHA-256 of what a model does: logits, and gradients of their sum, on fixed pseudo-random images, on the CPU.

    Computed with one thread; a model that draws, draws from a fixed seed. It tells code that weights and files do not
    show. A fact of provenance, not of identity: another machine may round differently.

    Args:
        model: Left as it is.
        shape: (C, H, W).
        classes: Expected number of logits.

    Raises:
        UserError: The model does not take such images; see :func:`inspect`.
    """
    x = torch.rand((FINGERPRINT, *shape), generator=torch.Generator().manual_seed(FINGERPRINT))
    with identity.as_a_worker(), identity.isolated(0), torch.enable_grad():
        victim = Victim(model, classes=classes)
        logits = _ask(victim, x.requires_grad_())
        try:
            grad = torch.autograd.grad(logits.sum(), x, allow_unused=True)[0]
        except RuntimeError:  # there is none
            grad = None
    total = hashlib.sha256()
    add_to_digest(total, logits.detach())
    add_to_digest(total, grad)
    return total.hexdigest()


def inspect(model: nn.Module, x: Tensor, y: Tensor, classes: int, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Find out whether a model can be judged, and what has to be known of it.

    Args:
        model: Left as it is.
        x: Images (N, C, H, W) in [0, 1]; a hundred will do.
        y: True labels (N,).
        classes: Classes of the data set.
        device: Where it will run.

    Returns:
        Plain values: ``outputs`` (``"logits"``, ``"probabilities"`` or ``"log-probabilities"``), ``dtype`` of weights
        and buffers, ``train_mode`` (whether it came in that mode; it is judged in eval mode), ``changed_labels`` (how
        many labels varied over three calls; 0 for a deterministic model), ``clean_accuracy``, ``notes`` (one line
        each).

    Raises:
        UserError: It cannot be judged; the line says why.
    """
    inner = bare(model)
    kinds = {value.dtype for value in (*model.parameters(), *model.buffers()) if value.is_floating_point()}
    dtype = ", ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds)) or "none"
    try:
        victim = Victim(model, classes=classes, device=device)
    except Exception as error:  # copying runs code of the model's own
        raise UserError(f"the model cannot be set up on {device}: {registry.said(error)}") from error
    before = digest(victim.model)
    with identity.isolated(0, device), torch.no_grad():
        calls = [_ask(victim, x, dtype) for _ in range(3)]
        alone = torch.cat([_ask(victim, one, dtype) for one in x[:8].split(1)])  # type: ignore[no-untyped-call]
    if digest(victim.model) != before:
        raise UserError("the model changes its own buffers when it is asked: batch normalisation in train mode?")
    labels = torch.stack([logits.argmax(1).cpu() for logits in calls])
    changed = int((labels != labels[0]).any(0).sum())
    scale = float(calls[0].abs().max())
    apart = ((alone - calls[0][:8]).abs().amax(1) > 0.01 * scale).sum()
    noise = float((calls[1] - calls[0]).abs().max())
    if noise <= 1e-4 * scale and 2 * int(apart) > len(alone):
        raise UserError(
            f"what the model says of an image depends on the images beside it ({int(apart)} of {len(alone)} alone "
            "differ): does it use statistics of the batch?"
        )
    accuracy = float((labels[0] == y.cpu()).double().mean())
    chance = max(1 / classes, int(y.bincount().max()) / len(y))
    notes = []
    if kinds - {torch.float32} or calls[0].dtype != torch.float32:
        returned = str(calls[0].dtype).removeprefix("torch.")
        notes.append(f"the model holds {dtype} and returns {returned}; images are float32")
    if accuracy <= chance:
        hint = "are labels and normalisation (mean, std) those of its training?"
        notes.append(f"clean accuracy is {accuracy:.1%} on {len(y)} images, no better than chance: {hint}")
    return {
        "outputs": _outputs(calls[0].double()),
        "dtype": dtype,
        "train_mode": inner.training,
        "changed_labels": changed,
        "clean_accuracy": accuracy,
        "notes": notes,
    }


def _ask(victim: Victim, x: Tensor, dtype: str = "") -> Tensor:
    """Logits, or one line that says why there are none."""
    try:
        logits: Tensor = victim.sparing(len(x), lambda: victim(x))
    except UserError:
        raise
    except Exception as error:  # whatever the model raises
        if dtype not in ("", "float32", "none"):
            raise UserError(f"the model computes in {dtype}, images are float32: call its .float() first") from error
        what = f"{len(x)} images of shape {tuple(x.shape[1:])}"
        raise UserError(f"the model does not take {what}: {registry.said(error)}") from error
    bad = int((~torch.isfinite(logits)).any(1).sum())
    if bad:
        raise VictimError(f"the model returned NaN or infinite logits for {bad} of {len(x)} images")
    return logits


def _outputs(values: Tensor) -> str:
    """What kind of numbers a model returns, by their values; float64 (N, K)."""
    if float(values.min()) >= 0 and bool(((values.sum(1) - 1).abs() < 1e-3).all()):
        return "probabilities"
    return "log-probabilities" if bool((values.logsumexp(1).abs() < 1e-3).all()) else "logits"
