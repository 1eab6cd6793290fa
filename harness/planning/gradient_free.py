"""Batteries for models whose gradients are missing or wrong: attacks that need none take the place of the others.

What gradient attacks cost goes to more questions by score and by label, and to networks that are trained on the
victim's own answers. One of them stays: it says what the gradients are worth after all, as the bound on the accuracy's
error has to know (:attr:`harness.trust.checks.Evidence.bound`). Measured in docs/health/gradients-match-differences.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ..attacks.base import Attack
from ..attacks.distilled import Distilled
from ..attacks.rays import RayS
from ..attacks.square import Square
from ..threat import Norm

INSTEAD: Final[tuple[Attack, ...]] = (Distilled(), Square(queries=1000, restarts=3), RayS(queries=2000))
"""What is asked at least, the cheapest first. Of 100 digits behind a step that gives nothing but the label (linf 0.1)
RayS left 50 with 500 questions and 42 with 2000; gradients behind the step leave 40. Of rounded logits Square left 57
with 1000 questions, 55 with one run of 5000, and 51 with three of 1000."""


def without_gradients(attacks: Sequence[Attack], norm: Norm) -> list[tuple[Attack, Attack]]:
    """Attacks of a suite as declared and as they are asked: of those that follow gradients the first iterated alone.

    Attacks of :data:`INSTEAD` stand where the suite has one of their sort, if it asks less, or at the end. Transfers
    stay: they follow another model's gradients. A suite that follows none is asked as it is.
    """
    led = [attack for attack in attacks if attack.access == "gradients"]
    if not led:
        return [(attack, attack) for attack in attacks]
    control = next((attack for attack in led if attack.family == "iterated"), led[0])
    found = [(attack, attack) for attack in attacks if attack is control or attack.access != "gradients"]
    for more in INSTEAD:
        if norm not in more.supported_norms:
            continue
        place = next((n for n, (attack, _) in enumerate(found) if type(attack) is type(more)), None)
        if place is None:
            found.append((more, more))
        elif _asks(found[place][0]) < _asks(more):
            found[place] = (found[place][0], more)
    return found


def _asks(attack: Attack) -> int:
    """Questions about an image."""
    return int(getattr(attack, "queries", 0) * getattr(attack, "restarts", 1))
