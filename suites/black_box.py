"""Without a look inside: what is left when an adversary may ask for scores or labels, or bring another model's images.

Not a worst case: a model that stands here and falls to ``linf`` is no more robust for it. The difference says how much
an adversary gains by knowing the weights.
"""

from __future__ import annotations

from defenses.fast_gradient import FastGradient
from defenses.standard import Standard
from harness.attacks.apgd import APGD
from harness.attacks.noise import Noise
from harness.attacks.rays import RayS
from harness.attacks.square import Square
from harness.attacks.toolkits.art import Art
from harness.attacks.toolkits.foolbox import Foolbox
from harness.attacks.transfer import Transfer
from harness.planning.suite import Suite

SUITE = Suite(
    name="black-box",
    summary="scores, labels and other models' images only: what an adversary can do without the weights",
    attacks={
        "linf": (
            Noise(distribution="signs", draws=50),
            Transfer(attack=APGD(steps=20), defense=Standard(), seed_offset=1),
            Transfer(attack=APGD(steps=20), defense=FastGradient(), seed_offset=1),
            Square(queries=2000),
            Art("SquareAttack", max_iter=300),
            RayS(queries=1000),
            Foolbox("HopSkipJumpAttack", steps=4),
        ),
        "l2": (
            Noise(draws=50),
            Transfer(attack=APGD(steps=20), defense=Standard(), seed_offset=1),
            Transfer(attack=APGD(steps=20), defense=FastGradient(), seed_offset=1),
            Square(queries=2000),
            Art("SquareAttack", max_iter=300),
            Foolbox("HopSkipJumpAttack", steps=4),
            Foolbox("BoundaryAttack", steps=1000),
        ),
    },
    samples=500,
)
