"""Batteries for models whose gradients are missing or wrong: attacks that need none join those that a suite declares.

More questions by score and by label, networks that are trained on the victim's own answers, and transfers from a second
network. Where gradients are wrong nothing that is declared is left out: they may still lead uphill, and what they lead
to bounds the accuracy's error (:attr:`harness.trust.checks.Evidence.bound`). Where there is none, attacks that follow
it would raise. Measured in docs/gradient-free.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Final

from ..attacks.base import Attack
from ..attacks.distilled import Distilled
from ..attacks.rays import RayS
from ..attacks.square import Square
from ..attacks.toolkits import unlisted
from ..attacks.transfer import Ensemble, Transfer
from ..threat import Norm
from ..victims.adaptation import Gradients
from .suite import Suite

Shape = tuple[int, int, int]

BESIDES: Final[tuple[Attack, ...]] = (Distilled(), Square(queries=1000, restarts=3, near=0.5), RayS(queries=2000))
"""What is asked at least, the cheapest first. Of 100 digits behind a step that gives nothing but the label (linf 0.1)
RayS left 50 with 500 questions and 42 with 2000; gradients behind the step leave 40. Of rounded logits Square left 57
with 1000 questions, 55 with one run of 5000, and 51 with three of 1000."""

DENSE: Final = "mlp-200-200"
"""Another network that images are transferred from, beside the one that a suite's transfers are crafted on. Of digits
behind a step that gives nothing but the label it broke 3 of 43 that all of :data:`BESIDES` had left, a convolutional
one none; of three other victims no image was broken by transfers alone."""

DENSE_SIDE: Final = 32
"""Pixels a side up to which it is trained: its first layer grows with the image."""


def answerable(
    attacks: Sequence[Attack], norm: Norm, shape: Shape, gradients: Gradients
) -> list[tuple[Attack, Attack]]:
    """Attacks of a suite as declared and as they are asked of a model.

    Those of :data:`BESIDES` stand where the suite has one of their sort, if it asks less, or at the end. Each transfer
    comes from a second network too. A suite that follows no gradients is asked as it is. What users bring is
    always asked.

    Args:
        attacks: Those of the suite in a norm.
        norm: That norm.
        shape: Of an image, (C, H, W).
        gradients: What the model has of them.
    """
    found = [(one, one) for one in attacks if not (gradients == "missing" and _follows(one))]
    if gradients == "sound" or all(attack.access != "gradients" for attack in attacks):
        return found
    if max(shape[1:]) <= DENSE_SIDE:
        crafted = [
            attack
            for attack in attacks
            if isinstance(attack, Transfer) and attack.architecture is None and not isinstance(attack.defense, Ensemble)
        ]
        found += [(attack, dataclasses.replace(attack, architecture=DENSE)) for attack in crafted]
    for more in BESIDES:
        if norm not in more.supported_norms:
            continue
        place = next((n for n, (attack, _) in enumerate(found) if type(attack) is type(more)), None)
        if place is None:
            found.append((more, more))
        elif _asks(found[place][0]) < _asks(more):
            found[place] = (found[place][0], more)
    return found


def changes(attacks: Mapping[Norm, Sequence[Attack]], shape: Shape, gradients: Gradients) -> str:
    """What :func:`answerable` adds to attacks and leaves out of them, all norms together; "" where it does neither."""
    out, new = dict[str, None](), dict[str, None]()
    for norm, own in attacks.items():
        asked = answerable(own, norm, shape, gradients)
        new |= {attack.label: None for _, attack in asked if attack not in own}
        out |= {attack.label: None for attack in own if all(attack != declared for declared, _ in asked)}
    said = [f"asked besides: {', '.join(new)}"] if new else []
    return "; ".join([*said, *([f"not asked: {', '.join(out)}"] if out else [])])


def besides() -> Suite:
    """What is asked besides of such models, as a suite."""
    norms = dict.fromkeys(norm for attack in BESIDES for norm in attack.supported_norms)
    attacks = {norm: tuple(attack for attack in BESIDES if norm in attack.supported_norms) for norm in norms}
    return Suite(name="besides", summary="asked besides where gradients are wrong or missing", attacks=attacks)


def _follows(attack: Attack) -> bool:
    """Whether it certainly follows gradients: what others declare of theirs may be the default."""
    module = type(attack).__module__
    return attack.access == "gradients" and module.startswith("harness.") and module != unlisted.__name__


def _asks(attack: Attack) -> int:
    """Questions about an image."""
    return int(getattr(attack, "queries", 0) * getattr(attack, "restarts", 1))
