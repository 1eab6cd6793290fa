"""Facts about one model that say how far the results of attacks on it can be believed, and the remedy it needs.

The facts are measured on about a hundred images in one norm; :mod:`harness.health` draws the conclusions. They follow
the warning signs of Athalye, Carlini & Wagner 2018 (section 3.1) and of Carlini et al. 2019 (sections 3.2 and 5): a
model whose gradients vanish, lie or depend on chance looks robust without being so.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import torch
from torch import Tensor, nn

from . import identity
from .errors import UserError
from .remedy import VOTES, Remedy
from .survey import PlainPgd, Survey, are_probabilities, cross_entropy, is_flat, margin
from .threat import Threat
from .victim import Victim

CALLS: Final = 8
"""Calls under different seeds that show whether a model draws random numbers."""

WAVER: Final = 1e-4
"""Relative change of logits from call to call that is more than rounding."""

DRAWS: Final = 16
"""Draws to average over for a model that varies."""

REACHES: Final = (4 / 255, 0.06, 0.2)
"""L-infinity eps at which :func:`diagnose` looks for saturation: on any data one of them breaks some images."""

SILENT: Final = 0.05
"""Share of images whose cross-entropy may have no gradient where the margin has one."""

GAIN: Final = 0.05
"""What dividing the logits may gain the plain attack, as a share of the images."""


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
) -> dict[str, Any]:
    """Measure a model.

    It is copied and never altered; the caller's random generators stay where they are. Same arguments, same facts,
    but for ``"seconds"``.

    Args:
        model: Classifier of images in [0, 1].
        x: Images (N, C, H, W) in [0, 1]; those misclassified are left out.
        y: Labels (N,).
        threat: Norm (not ``"l0"``) and eps.
        classes: Number of logits K.
        device: Where to run.
        remedy: What attacks on the model are given.
        seed: Of all random numbers.

    Returns:
        Plain JSON values: ``norm, eps, n, remedy, votes`` (calls behind a label, None if it is declared
        deterministic), ``seconds, forwards, backwards, stochastic`` and ``seen``: the same measurements on the model as
        it is (``"raw"``) and as attacks see it (``"attacked"``), see :meth:`Survey.facts`.

    Raises:
        UserError: No gradient attack in that norm, no eps, or the remedy names what the model does not have.
        VictimError: A plain forward pass gives no finite (N, K) logits. Whatever else it raises comes through.
    """
    if threat.norm == "l0" or not threat.eps:
        raise UserError(f"a probe needs an eps above 0 in linf, l2 or l1, got {threat}")
    remedy = remedy or Remedy()
    start = time.perf_counter()
    with identity.isolated(seed, device):
        judge = Victim(model, classes=classes, device=device)
        x, y = x.to(judge.device), y.to(judge.device)
        varies = stochastic(judge, x, seed)
        judge.votes = remedy.calls or (VOTES if wavers(varies) else None)
        right = judge.predict(x) == y
        x, y = x[right], y[right]
        view = replace(remedy, votes=None)  # what changes for attacks
        victims = [judge, Victim(model, classes=classes, device=device, remedy=view)] if view else [judge]
        seen = [Survey(victim, judge, x, y, threat, seed).facts() for victim in victims]
    return {
        "norm": threat.norm,
        "eps": threat.eps,
        "n": len(x),
        "remedy": str(view),
        "votes": remedy.calls,
        "seconds": time.perf_counter() - start,
        "forwards": sum(victim.cost.forwards for victim in victims),
        "backwards": sum(victim.cost.backwards for victim in victims),
        "stochastic": varies,
        "seen": {"raw": seen[0], "attacked": seen[-1]},
    }


def diagnose(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    classes: int,
    device: torch.device | str = "cpu",
    stand_ins: Sequence[tuple[str, str]] = (),
) -> Remedy:
    """The remedy that attacks on a model need, from cheap measurements; beyond the stand-ins none for an honest one.

    Probabilities are seen by their logarithm; outputs that vary from call to call are averaged; logits that saturate
    the cross-entropy are divided. What stands in for a part without a gradient cannot be found: it is given.

    Args:
        model: Classifier of images in [0, 1]; it is copied.
        x: Images (N, C, H, W) in [0, 1], about a hundred.
        y: Labels (N,).
        classes: Number of logits K.
        device: Where to run.
        stand_ins: As in :class:`~harness.remedy.Remedy`.

    Raises:
        UserError: A stand-in does not fit the model.
        VictimError: A plain forward pass gives no finite (N, K) logits.
    """
    with identity.isolated(0, device):
        judge = Victim(model, classes=classes, device=device)
        x, y = x.to(judge.device), y.to(judge.device)
        varies = wavers(stochastic(judge, x, 0))
        judge.votes = VOTES if varies else None
        right = judge.predict(x) == y
        with torch.no_grad():
            probabilities = are_probabilities(judge.sparing(len(x), lambda: judge(x)))
        remedy = Remedy(probabilities=probabilities, draws=DRAWS if varies else 1, stand_ins=tuple(stand_ins))
        seen = Victim(model, classes=classes, device=device, remedy=remedy)
        return replace(remedy, temperature=_temperature(seen, judge, x[right], y[right]))


def _temperature(seen: Victim, judge: Victim, x: Tensor, y: Tensor) -> float:
    """The typical gap between the two largest logits where the cross-entropy saturates, 1 where it does not."""
    if not len(x):
        return 1.0
    surveys = [Survey(seen, judge, x, y, Threat("linf", eps)) for eps in REACHES]
    gap = -float(margin(surveys[0].logits(x), y).median())

    def saturated() -> bool:
        return _silent(surveys[0]) > SILENT or any(_gain(survey) > GAIN for survey in surveys)

    try:
        saturates = seen.sparing(len(x), saturated)
    except (UserError, torch.OutOfMemoryError):
        raise
    except Exception:  # no gradient reaches the images: dividing cannot help
        return 1.0
    return float(f"{gap:.0e}") if saturates and gap > 1 else 1.0


def _silent(survey: Survey) -> float:
    """Share of images whose cross-entropy has no gradient where the margin has one."""
    return float((is_flat(survey.slope(cross_entropy)) & ~is_flat(survey.slope(margin))).double().mean())


def _gain(survey: Survey) -> float:
    """Share of images that the plain attack breaks more when the logits are divided by 20."""
    plain, divided = (survey.stand(PlainPgd(factor=factor, steps=10)) for factor in (1.0, 0.05))
    return float((plain.double() - divided.double()).mean())


@torch.no_grad()
def stochastic(victim: Victim, x: Tensor, seed: int) -> dict[str, Any]:
    """How outputs change among :data:`CALLS` calls under different seeds.

    Returns:
        ``draws``: the calls; ``labels``: share of images whose label changed; ``logits``: the largest change of a
        logit over the largest logit.
    """

    def ask(call: int) -> Tensor:
        with identity.isolated(identity.derive_seed(seed, "call", call), victim.device):
            logits: Tensor = victim(x)
        return logits

    # all of them with as many images at once: else rounding would look like chance
    outputs = victim.sparing(len(x), lambda: torch.stack([ask(call) for call in range(CALLS)]))
    labels = outputs.argmax(2)
    change = outputs.amax(0) - outputs.amin(0)
    return {
        "draws": CALLS,
        "labels": float((labels != labels[0]).any(0).double().mean()) if len(x) else 0.0,
        "logits": float(change.max() / outputs.abs().max().clamp_min(1e-30)) if len(x) else 0.0,
    }


def wavers(varies: dict[str, Any]) -> bool:
    """Whether what :func:`stochastic` measured is more than rounding; near a boundary labels then change too."""
    return bool(varies["labels"] > 0 or varies["logits"] > WAVER)
