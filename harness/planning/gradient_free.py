"""Batteries for models whose gradients are missing or wrong: attacks that need none take the place of the others.

What gradient attacks cost goes to more questions by score and by label, and to networks that are trained on the
victim's own answers. Our iterated ones stay: they say what the gradients are worth after all, as the bound on the
accuracy's error has to know (:attr:`harness.trust.checks.Evidence.bound`), and a gradient that is wrong may still lead
uphill. Where there is none they end at once. Measured in docs/health/gradients-match-differences.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Final

from ..attacks.base import Attack
from ..attacks.distilled import Distilled
from ..attacks.rays import RayS
from ..attacks.square import Square
from ..attacks.transfer import Transfer
from ..threat import Norm

Shape = tuple[int, int, int]

INSTEAD: Final[tuple[Attack, ...]] = (Distilled(), Square(queries=1000, restarts=3), RayS(queries=2000))
"""What is asked at least, the cheapest first. Of 100 digits behind a step that gives nothing but the label (linf 0.1)
RayS left 50 with 500 questions and 42 with 2000; gradients behind the step leave 40. Of rounded logits Square left 57
with 1000 questions, 55 with one run of 5000, and 51 with three of 1000."""

DENSE: Final = "mlp-200-200"
"""Another network that images are transferred from, beside the one that a suite's transfers are crafted on. Of digits
behind a step that gives nothing but the label it broke 3 of 43 that all of :data:`INSTEAD` had left, a convolutional
one none; of three other victims no image was broken by transfers alone."""

DENSE_SIDE: Final = 32
"""Pixels a side up to which it is trained: its first layer grows with the image."""


def without_gradients(attacks: Sequence[Attack], norm: Norm, shape: Shape) -> list[tuple[Attack, Attack]]:
    """Attacks of a suite as declared and as they are asked: of those that follow gradients our iterated ones alone.

    Attacks of :data:`INSTEAD` stand where the suite has one of their sort, if it asks less, or at the end. Transfers
    stay, for they follow another model's gradients, and each comes from a second network too. A suite that follows no
    gradients is asked as it is.

    Args:
        attacks: Those of the suite in a norm.
        norm: That norm.
        shape: Of an image, (C, H, W).
    """
    led = [attack for attack in attacks if attack.access == "gradients"]
    if not led:
        return [(attack, attack) for attack in attacks]
    stay = [attack for attack in led if (attack.family, attack.toolkit) == ("iterated", "gauntlet")] or led[:1]
    found = [(attack, attack) for attack in attacks if attack in stay or attack.access != "gradients"]
    if max(shape[1:]) <= DENSE_SIDE:
        crafted = [attack for attack in attacks if isinstance(attack, Transfer) and attack.architecture is None]
        found += [(attack, dataclasses.replace(attack, architecture=DENSE)) for attack in crafted]
    for more in INSTEAD:
        if norm not in more.supported_norms:
            continue
        place = next((n for n, (attack, _) in enumerate(found) if type(attack) is type(more)), None)
        if place is None:
            found.append((more, more))
        elif _asks(found[place][0]) < _asks(more):
            found[place] = (found[place][0], more)
    return found


def replaced(attacks: Mapping[Norm, Sequence[Attack]], shape: Shape) -> str:
    """What :func:`without_gradients` puts in place of what, all norms together, in words; "" where nothing is."""
    out, new = dict[str, None](), dict[str, None]()
    for norm, declared in attacks.items():
        asked = without_gradients(declared, norm, shape)
        kept = [attack.label for attack, _ in asked]
        out |= {attack.label: None for attack in declared if attack.label not in kept}
        new |= {attack.label: None for _, attack in asked if attack not in declared}
    return f"{', '.join(new)} in place of {', '.join(out)}" if out else ""


def _asks(attack: Attack) -> int:
    """Questions about an image."""
    return int(getattr(attack, "queries", 0) * getattr(attack, "restarts", 1))
