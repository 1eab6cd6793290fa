"""Probe a model: gradient diagnostics, randomness, and the remedy that attacks need.

The facts are measured on about a hundred images in one norm; :mod:`harness.trust.grade` draws the conclusions. They
follow the warning signs of Athalye, Carlini & Wagner 2018 (section 3.1) and of Carlini et al. 2019 (sections 3.2 and
5): a model whose gradients vanish, lie or depend on chance looks robust without being so.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import determinism, identity
from ..attacks.losses import objective
from ..errors import UserError, said
from ..schema.probes import ProbeFacts, Views, Wavering
from ..threat import Threat
from ..victims.adaptation import VOTES, Gradients, Remedy
from ..victims.victim import SURE, PassCount, Victim, input_gradient
from .measurements import GradientDiagnostics, are_probabilities, cross_entropy, is_flat, margin, neighbours
from .slopes import SlopeComparison

CALLS: Final = 8
"""Calls under different seeds that show whether a model draws random numbers."""

WAVER: Final = 1e-4
"""Relative change of logits from call to call that is more than rounding."""

JUMPY: Final = 0.05
"""Share of images beside which logits may jump before attacks see files of 8 bits."""

DRAWS: Final = 16
"""Draws to average over for a model that varies."""

FEW: Final = 16
"""Images that decide whether logits saturate, unless they are divided."""

SATURATED: Final = 0.25
"""Share of images on which the cross-entropy may have another direction than the log-odds."""

PARALLEL: Final = 0.99
"""Cosine of the angle between the two that is put down to rounding."""

MOST: Final = 0.5
"""Share of images on which gradients have to be zero or wrong before more attacks that need none are asked. Sound: 0;
gradients that are cut, zero, flipped, of another network, or drowned: 0.56 and more."""

STEPPED: Final = Threat("linf", 8 / 255)
"""Threat whose steps, a twentieth and a fifth of it, gradients are held against: small on any images."""

GAP: Final = 8.0
"""Gap of logits at which float32 keeps four digits of the other classes' probability, and the nearest of them counts
most."""


def probe(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    classes: int,
    device: torch.device | str = "cpu",
    remedy: Remedy | None = None,
    seed: int = 0,
) -> ProbeFacts:
    """Measure a model.

    It is copied and never altered; the caller's random generators stay where they are. Same arguments, same facts, but
    for ``"seconds"``. Images (N, C, H, W) in [0, 1] that the model gets wrong are left out; the threat's norm is not
    ``"l0"``. What attacks on the model are given is its remedy.

    Raises:
        UserError: No gradient attack in that norm, no eps, or the remedy names what the model does not have.
        VictimError: A plain forward pass gives no finite (N, K) logits. Whatever else it raises comes through.
    """
    if threat.norm == "l0" or not threat.eps:
        raise UserError(f"a probe needs an eps above 0 in linf, l2 or l1, got {threat}")
    remedy = remedy or Remedy()
    start = time.perf_counter()
    with determinism.isolated(seed, device):
        judge = Victim(model, classes=classes, device=device)
        x, y = x.to(judge.device), y.to(judge.device)
        varies = stochastic(judge, neighbours(x, seed), seed)
        judge.votes = remedy.calls or (VOTES if wavers(varies) else None)
        right = judge.predict(x) == y
        x, y = x[right], y[right]
        view = replace(remedy, votes=None, gradients="sound")  # what changes for attacks
        victims = [judge, Victim(model, classes=classes, device=device, remedy=view)] if view else [judge]
        seen = [GradientDiagnostics(victim, judge, x, y, threat, seed).facts() for victim in victims]
    return ProbeFacts(
        norm=threat.norm,
        eps=threat.eps,
        n=len(x),
        remedy=str(replace(remedy, votes=None)),
        votes=remedy.calls,
        seconds=time.perf_counter() - start,
        forwards=sum(victim.cost.forwards for victim in victims),
        backwards=sum(victim.cost.backwards for victim in victims),
        stochastic=varies,
        seen=Views(raw=seen[0], attacked=seen[-1]),
    )


def diagnose(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    classes: int,
    device: torch.device | str = "cpu",
    stand_ins: Sequence[tuple[str, str]] = (),
    varies: bool | None = None,
    spent: PassCount | None = None,
) -> Remedy:
    """The remedy that attacks on a model need, from cheap measurements; beyond the stand-ins none for an honest one.

    Probabilities are seen by their logarithm; outputs that vary from call to call are averaged; logits that saturate
    the cross-entropy are divided; a model that answers files otherwise than the floats beside them is asked about
    files. What stands in for a part without a gradient cannot be found: it is given. At most
    :data:`harness.victims.victim.SURE` images are used; where ``varies`` is None it is found out, and passes are added
    to ``spent``.

    Raises:
        UserError: A stand-in does not fit the model.
        VictimError: A plain forward pass gives no finite (N, K) logits.
    """
    with determinism.isolated(0, device):
        judge = Victim(model, classes=classes, device=device)
        x, y = x[:SURE].to(judge.device), y[:SURE].to(judge.device)
        if varies is None:
            varies = wavers(stochastic(judge, neighbours(x), 0))
        probabilities = are_probabilities(judge.logits(x[:FEW]))
        remedy = Remedy(probabilities=probabilities, draws=DRAWS if varies else 1, stand_ins=tuple(stand_ins))
        # one draw shows saturation as well as many
        seen = Victim(model, classes=classes, device=device, remedy=replace(remedy, draws=1))
        temperature = _temperature(seen, x, y)
        if not varies and _jumps(judge, x[:FEW], y[:FEW]) > JUMPY:
            files = Victim(model, classes=classes, device=device, remedy=Remedy(grid=255))
            remedy = replace(remedy, grid=255 if _jumps(files, x[:FEW], y[:FEW]) <= JUMPY else None)
            judge.cost.forwards += files.cost.forwards
        if spent is not None:
            spent.forwards += judge.cost.forwards + seen.cost.forwards + len(x[:FEW])
            spent.backwards += seen.cost.backwards
        return replace(remedy, temperature=temperature)


def gradient_fault(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    remedy: Remedy,
    *,
    classes: int,
    device: torch.device | str = "cpu",
    spent: PassCount | None = None,
) -> tuple[Gradients, str]:
    """Whether attacks can follow the gradients that they see, and what is wrong with them, a clause or "".

    Asked of at most :data:`FEW` images that the model gets right, at the images themselves: whether the gradient of the
    margin is there and not zero; and, where random numbers do not stand in the way and no stand-in was given for it,
    whether it says what the outputs do (:meth:`.slopes.SlopeComparison.wrong`). Missing is what no batch has, of any of
    the images: where one has a gradient attacks may have one too.
    """
    kind: Gradients = "sound"
    fault = ""
    with determinism.isolated(0, device):
        victim = Victim(model, classes=classes, device=device, remedy=replace(remedy, draws=1))
        all_images, x, y = x.to(victim.device), x[:FEW].to(victim.device), y[:FEW].to(victim.device)
        right = victim.predict(x) == y
        survey = GradientDiagnostics(victim, victim, x[right], y[right], STEPPED)
        n = len(survey.x)
        try:
            zero = victim.sparing(n, lambda: is_flat(survey.slope(margin))) if n else torch.zeros(0, dtype=torch.bool)
        except (UserError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            kind, fault = "missing", f"no gradient reaches the images ({said(error)})"
            if _reaches(victim, all_images):
                kind, fault = "wrong", f"a gradient reaches the images in some batches alone ({said(error)})"
        else:
            wrong, what = zero, "zero"
            if n and not _most(zero) and not remedy.stochastic and not remedy.stand_ins:
                compared = SlopeComparison(victim, survey.x, survey.y, STEPPED)
                wrong, what = victim.sparing(n, compared.wrong), "not that of the outputs"
            if n and _most(wrong):
                kind, fault = "wrong", f"the gradient is {what} on {int(wrong.sum())} of {n} images"
        if spent is not None:
            spent.forwards += victim.cost.forwards + len(x)
            spent.backwards += victim.cost.backwards
    return kind, fault


def _reaches(victim: Victim, x: Tensor) -> bool:
    """Whether there is a gradient in a batch of all images, in smaller ones, or for one of them by itself."""

    def asked(part: Tensor) -> bool:
        try:
            victim.sparing(len(part), lambda: input_gradient(victim, part, lambda logits: logits.amax(1)))
        except (UserError, torch.OutOfMemoryError):
            raise
        except Exception:
            return False
        return True

    batches = (len(x), SURE, 2, 1)
    return any(asked(part) for size in batches if size <= len(x) for part in x[: max(size, FEW)].split(size))  # type: ignore[no-untyped-call]


def _most(mask: Tensor) -> bool:
    return float(mask.double().mean()) > MOST


def _jumps(victim: Victim, x: Tensor, y: Tensor) -> float:
    """Share of images beside which logits jump."""
    return float(GradientDiagnostics(victim, victim, x, y, Threat("linf", 1.0)).jumps().double().mean())


def _temperature(victim: Victim, x: Tensor, y: Tensor) -> float:
    """What brings the typical gap between the two largest logits down to :data:`GAP`; 1 where nothing saturates.

    The gradient of the cross-entropy is that of the log-odds times a probability. In float32 it is not where that
    probability is lost in rounding, at gaps above 16: then it points elsewhere or is zero. A few images decide, more
    where they are divided.
    """
    share = gap = 0.0
    for images in (FEW, len(x)):
        survey = GradientDiagnostics(victim, victim, x[:images], y[:images], Threat("linf", 1.0))
        gaps = -margin(survey.logits(survey.x), survey.y)
        right = gaps > 0
        if not right.any():
            continue
        survey = replace(survey, x=survey.x[right], y=survey.y[right])
        try:
            turned = victim.sparing(len(survey.x), lambda: _turned(survey))  # noqa: B023
        except (UserError, torch.OutOfMemoryError):
            raise
        except Exception:  # no gradient reaches the images: dividing cannot help
            return 1.0
        share, gap = float(turned.double().mean()), float(gaps[right].median())
        if not 0 < share < 0.5:
            break
    return float(f"{gap / GAP:.0e}") if share > SATURATED and gap > 1.5 * GAP else 1.0


def _turned(survey: GradientDiagnostics) -> Tensor:
    """Where the cross-entropy has another direction than the log-odds, bool (N,)."""
    entropy, odds = survey.slope(cross_entropy), survey.slope(lambda logits, y: objective("ce", logits, y))
    return (_cosine(entropy, odds) < PARALLEL) & ~is_flat(odds)


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of the angle between gradients (N, ...), however small; 0 where one is zero or not finite."""
    a, b = (g.double().flatten(1).nan_to_num(0, 0, 0) for g in (a, b))
    a, b = (g / g.abs().amax(1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny) for g in (a, b))
    return F.cosine_similarity(a, b, dim=1)


@torch.no_grad()
def stochastic(victim: Victim, x: Tensor, seed: int) -> Wavering:
    """How outputs change among :data:`CALLS` calls under different seeds."""

    def ask(call: int) -> Tensor:
        with determinism.isolated(identity.derive_seed(seed, "call", call), victim.device):
            logits: Tensor = victim(x)
        return logits

    # all of them with as many images at once: else rounding would look like chance
    outputs = victim.sparing(len(x), lambda: torch.stack([ask(call) for call in range(CALLS)]))
    labels = outputs.argmax(2)
    change = outputs.amax(0) - outputs.amin(0)
    return Wavering(
        draws=CALLS,
        labels=float((labels != labels[0]).any(0).double().mean()) if len(x) else 0.0,
        logits=float(change.max() / outputs.abs().max().clamp_min(1e-30)) if len(x) else 0.0,
    )


def wavers(varies: Wavering) -> bool:
    """Whether what :func:`stochastic` measured is more than rounding; near a boundary labels then change too."""
    return varies.labels > 0 or varies.logits > WAVER
