"""Inspection of a user's model before it is attacked: can it be judged, and how must it be called.

One way in for every model, from the command line and from Python: :func:`inspect`. Cheap questions come first, and are
put on as few images as decide them.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from .. import determinism
from ..datasets.sampling import stratified_order
from ..errors import UserError, said
from ..external.external import add_to_digest, bare, digest
from ..external.interface import TRIED, Interface, find
from ..metrics.class_order import better_order
from ..schema.models import Admission, Agreement
from ..victims.adaptation import Remedy
from ..victims.agreement import agreement
from ..victims.victim import SURE, PassCount, Victim, VictimError
from .answer_checks import AFTER_OTHERS
from .measurements import neighbours
from .probe import diagnose, gradient_fault, stochastic, wavers

LOOK: Final = 256
"""Most images that are asked: so many where the first are answered badly."""

ALONE: Final = 4
"""Images that are asked one by one."""


@dataclass(frozen=True)
class Inspection:
    """What was found.

    Attributes:
        classes: Logits that the model returns.
        notes: A line for each thing that its owner should read.
    """

    classes: int
    interface: Interface
    remedy: Remedy
    facts: Admission
    notes: tuple[str, ...]


_CUT: Final = (
    "no gradient reaches the images, so only attacks that need none can find anything: name the module that cuts it "
    "with --stand-in MODULE=identity"
)

_WAYS: Final[Mapping[str, str]] = {
    "asked again": "it keeps state from call to call",
    AFTER_OTHERS: "it keeps what it was asked, and an attack would be answered out of that",
    "alone": "does it use statistics of the batch?",
    "in a larger batch": "it is another function for batches of another size",
    "in another order": "it looks at the place of an image in its batch",
    "with gradients recorded": "attacks would meet another function than the one that is judged",
    "after train() and eval()": "its train() or eval() does more than set a mode",
}
"""Ways of asking the same, with what a difference means. The first explains the others, and is asked after them."""


def inspect(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    classes: int | None = None,
    device: torch.device | str = "cpu",
    *,
    remedy: Remedy | None = None,
    stand_ins: Sequence[tuple[str, str]] = (),
    batch: int | None = None,
    thorough: bool = True,
) -> Inspection:
    """Look at a model.

    It is copied and left as it is; so are the caller's random generators.

    Args:
        model: Takes images, and returns logits in one of the ways that :mod:`harness.external.interface` knows.
        x: Images (N, C, H, W) in [0, 1]; at most :data:`LOOK` of them are used, and mostly no more than 64.
        y: True labels (N,).
        classes: Logits that it has to return; None: as many as it does.
        device: Where it will run.
        remedy: How attacks are to see it; None finds out.
        stand_ins: Gradients for parts that have none, see :class:`harness.victims.adaptation.Remedy`.
        batch: Images that it takes at once; None finds out.
        thorough: Ask in other batches, orders and modes too; if not, the first 16 images at once are enough.

    Raises:
        UserError: It cannot be judged, or has the gradients that the remedy says are missing; the line says why.
    """
    kinds = {value.dtype for value in (*model.parameters(), *model.buffers()) if value.is_floating_point()}
    dtype = ", ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds)) or "none"
    order = stratified_order(y.cpu(), None)[:LOOK]  # a caller may bring them class by class
    x, y, spent = x[order].to(device), y[order].cpu(), PassCount()
    few = x[:TRIED]
    beside = neighbours(x[:SURE])  # on test images a table, or what looks for them, may do as nowhere else
    near = beside[:TRIED]
    interface, writes = _called(model, few, classes, device, batch, dtype, spent)
    victim = _set_up(interface.around(model), classes, device)
    before = digest(victim.model)

    def ask(images: Tensor, seed: int = 0) -> Tensor:
        """Logits on the CPU, each time under random numbers of its own."""
        with determinism.isolated(seed, device), torch.no_grad():
            return _ask(victim, images, dtype).cpu()

    first = ask(near)
    classes = first.shape[1]
    if int(y.min()) < 0 or int(y.max()) >= classes:
        raise UserError(f"labels run from {int(y.min())} to {int(y.max())}, the model has {classes} classes")
    drawn = [ask(near, seed) for seed in (1, 2)]
    if digest(victim.model) != before:
        raise UserError("the model changes its own buffers when it is asked: batch normalisation in train mode?")
    varies = any(agreement(first, again).differ for again in drawn)
    recorded, reached = _with_gradients(victim, near)
    answers: dict[str, Agreement] = {}
    labels = ask(x[: SURE if thorough else TRIED]).argmax(1)
    if thorough:
        answers = {} if varies else _agreement(victim, near, first, ask(beside), recorded, ask)
        if answers:
            later = _set_up(interface.around(model), classes, device)
            answers[AFTER_OTHERS] = agreement(first, _after_others(later, few, near, dtype))
            spent.forwards += later.cost.forwards
        if any(found.differ for found in answers.values()):
            varies = wavers(stochastic(victim, beside, 0))  # then it was chance, not the way of asking
        if not varies:
            _refuse(answers)
    if thorough and len(x) > len(labels) and 2 * int((labels == y[: len(labels)]).sum()) <= len(labels):
        labels = torch.cat([labels, ask(x[len(labels) :]).argmax(1)])
    fault = ""
    if remedy is None:
        wrapped = interface.around(model)
        remedy = diagnose(
            wrapped, x, y, classes=classes, device=device, stand_ins=stand_ins, varies=varies, spent=spent
        )
        gradients, fault = gradient_fault(wrapped, x, y, remedy, classes=classes, device=device, spent=spent)
        remedy = dataclasses.replace(remedy, gradients=gradients)
    elif remedy.gradients == "missing":
        given = dataclasses.replace(remedy, gradients="sound")
        gradients, _ = gradient_fault(interface.around(model), x, y, given, classes=classes, device=device, spent=spent)
        if gradients != "missing":
            raise UserError(
                "gradients=missing leaves out what follows gradients, and gradients reach the images: "
                "gradients=wrong leaves nothing out"
            )
    spent.forwards += victim.cost.forwards
    spent.backwards += victim.cost.backwards
    facts = Admission(
        outputs=_outputs(first.double()),
        dtype=dtype,
        train_mode=bare(model).training,
        images=len(labels),
        changed_labels=int((torch.stack([first, *drawn]).argmax(2) != first.argmax(1)).any(0).sum()),
        clean_accuracy=float((labels == y[: len(labels)]).double().mean()),
        writes=writes,
        gradients=reached,
        gradient_fault=fault,
        answers={} if varies else answers,
        passes=spent.forwards + spent.backwards,
    )
    notes = [
        *_words(interface, kinds, dtype, first, writes=writes),
        *([] if reached or any(remedy.stand_ins) else [_CUT]),
        *([f"{fault}: more attacks that need none are asked"] if fault else []),
        *(f"{_said(way, said)}: {_WAYS[way]}" for way, said in answers.items() if said.differ and not varies),
        *_labels(labels, y[: len(labels)], classes),
    ]
    if remedy:
        notes.append(f"attacks see it through {remedy}")
    return Inspection(classes, interface, remedy, facts, tuple(notes))


def _called(
    model: nn.Module,
    few: Tensor,
    classes: int | None,
    device: torch.device | str,
    batch: int | None,
    dtype: str,
    spent: PassCount,
) -> tuple[Interface, bool]:
    """How the model is called, and whether it writes into its images."""
    bare_copy = _set_up(model, None, device).model
    given = few[:2].clone()
    try:
        with determinism.isolated(0, device), torch.no_grad():
            interface = find(bare_copy, few, classes, batch)
            interface.around(bare_copy)(given)
    except UserError:
        raise
    except Exception as error:  # whatever the model raises
        raise _unable(few, dtype, error) from error
    spent.forwards += len(few) + len(given)
    return interface, not torch.equal(given, few[:2])


def _set_up(model: nn.Module, classes: int | None, device: torch.device | str) -> Victim:
    try:
        return Victim(model, classes=classes, device=device)
    except UserError:
        raise
    except Exception as error:  # copying runs code of the model's own
        raise UserError(f"the model cannot be set up on {device}: {said(error)}") from error


def _with_gradients(victim: Victim, few: Tensor) -> tuple[Tensor | None, bool]:
    """Logits where gradients are recorded, and whether one reaches the images; None where the model raises then."""
    with determinism.isolated(5, victim.device), torch.enable_grad():
        x = few.clone().requires_grad_()
        try:
            logits = victim.sparing(len(x), lambda: victim(x))
        except (UserError, torch.OutOfMemoryError):
            raise
        except Exception:
            return None, False
        try:
            (grad,) = torch.autograd.grad(logits.sum(), x, allow_unused=True)
        except RuntimeError:
            grad = None
    return logits.detach().cpu(), grad is not None


def _agreement(
    victim: Victim,
    few: Tensor,
    first: Tensor,
    logits: Tensor,
    recorded: Tensor | None,
    ask: Callable[[Tensor, int], Tensor],
) -> dict[str, Agreement]:
    """The same images, asked in other ways: each under other random numbers."""
    found = {}
    if len(few) > 1:
        ones = torch.cat([ask(one, 3) for one in few[:ALONE].split(1)])  # type: ignore[no-untyped-call]
        found["alone"] = agreement(first[:ALONE], ones)
        found["in another order"] = agreement(first, ask(few.flip(0), 4).flip(0))
    if len(logits) > len(first):
        found["in a larger batch"] = agreement(first, logits[: len(first)])
    if recorded is not None:
        found["with gradients recorded"] = agreement(first, recorded)
    found["asked again"] = agreement(first, ask(few, 6))
    victim.model.train()
    victim.model.eval()
    found["after train() and eval()"] = agreement(first, ask(few, 7))
    return {way: found[way] for way in _WAYS if way in found}


def _after_others(victim: Victim, few: Tensor, near: Tensor, dtype: str) -> Tensor:
    """Logits of neighbours from a model that was asked for their images first, and for nothing else."""
    with determinism.isolated(0, victim.device), torch.no_grad():
        _ask(victim, few, dtype)
        return _ask(victim, near, dtype).cpu()


def _refuse(answers: Mapping[str, Agreement]) -> None:
    """Refuse a model that answers most images otherwise."""
    for way, found in answers.items():
        if 2 * found.differ > found.images and (found.change > REFUSED or way == AFTER_OTHERS):
            raise UserError(f"{_said(way, found)}: {_WAYS[way]}")


REFUSED: Final = 0.1
"""Relative change of a logit with which a model is not let in, if most images show any: statistics of a batch change
logits by a half and more. What changes less, as weights and activations of eight bits do, is let in and graded."""


def _said(way: str, found: Agreement) -> str:
    changed = f"logits differ by up to {found.change:.1%}"
    changed += f", labels of {found.labels}" if found.labels else ""
    return f"the model answers {found.differ} of {found.images} images otherwise {way} ({changed})"


def _words(interface: Interface, kinds: set[torch.dtype], dtype: str, logits: Tensor, *, writes: bool) -> list[str]:
    """Notes on how it is called, and in which precision it answers."""
    notes = [f"it is taken with {interface}"] if interface else []
    if writes:
        notes.append("it writes into the images it is given: it gets a copy at every call")
    if kinds - {torch.float32} or logits.dtype != torch.float32:
        returned = str(logits.dtype).removeprefix("torch.")
        notes.append(f"the model holds {dtype} and returns {returned}; images are float32")
    return notes


def _labels(labels: Tensor, y: Tensor, classes: int) -> list[str]:
    """Notes on whether labels and classes fit together."""
    if order := better_order(labels.numpy(), y.numpy(), classes):
        return [str(order)]
    accuracy = float((labels == y).double().mean())
    if accuracy <= max(1 / classes, int(y.bincount().max()) / len(y)):
        hint = "are labels and normalisation (mean, std) those of its training?"
        return [f"clean accuracy is {accuracy:.1%} on {len(y)} images, no better than chance: {hint}"]
    return []


def _ask(victim: Victim, x: Tensor, dtype: str = "") -> Tensor:
    """Logits, or one line that says why there are none."""
    try:
        logits: Tensor = victim.sparing(len(x), lambda: victim(x))
    except UserError:
        raise
    except Exception as error:  # whatever the model raises
        raise _unable(x, dtype, error) from error
    bad = int((~torch.isfinite(logits)).any(1).sum())
    if bad:
        raise VictimError(f"the model returned NaN or infinite logits for {bad} of {len(x)} images")
    return logits


def _unable(x: Tensor, dtype: str, error: Exception) -> UserError:
    if dtype not in ("", "float32", "none"):
        return UserError(f"the model computes in {dtype}, images are float32: call its .float() first")
    return UserError(f"the model does not take {len(x)} images of shape {tuple(x.shape[1:])}: {said(error)}")


def _outputs(values: Tensor) -> str:
    """What kind of numbers a model returns, by their values; float64 (N, K)."""
    if float(values.min()) >= 0 and bool(((values.sum(1) - 1).abs() < 1e-3).all()):
        return "probabilities"
    return "log-probabilities" if bool((values.logsumexp(1).abs() < 1e-3).all()) else "logits"


def fingerprint(model: nn.Module, shape: tuple[int, int, int], classes: int) -> str:
    """SHA-256 of what a model does: logits, and gradients of their sum, on fixed pseudo-random images, on the CPU.

    Computed with one thread; a model that draws, draws from a fixed seed. It tells code that weights and files do not
    show. A fact of provenance, not of identity: another machine may round differently.

    Raises:
        UserError: The model does not take such images; see :func:`inspect`.
    """
    x = torch.rand((TRIED, *shape), generator=torch.Generator().manual_seed(TRIED))
    with determinism.as_a_worker(), determinism.isolated(0), torch.enable_grad():
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
