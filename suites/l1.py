"""The worst case in L1; see :mod:`suites.linf` for why each kind of attack is there.

The toolkits are weak here (ART's steps move a single pixel, Foolbox's FMN finds nothing for many images), so that ours
carry the number: APGD with its projection onto ball and box together (Croce & Hein 2021), FMN and Square.
"""

from __future__ import annotations

from defenses.standard import Standard
from harness.attacks.apgd import APGD
from harness.attacks.fast_gradient import Gradient
from harness.attacks.fmn import MinimumNorm
from harness.attacks.noise import Noise
from harness.attacks.square import Square
from harness.attacks.toolkits.art import Art
from harness.attacks.toolkits.foolbox import Foolbox
from harness.attacks.transfer import Transfer
from harness.planning.suite import Suite

SUITE = Suite(
    name="l1",
    summary="the worst case in L1, after every kind of attack that experts ask for",
    attacks={
        "l1": (
            Noise(),
            Gradient(),
            Transfer(attack=APGD(steps=20), defense=Standard(), seed_offset=1),
            MinimumNorm(),
            APGD(),
            APGD(loss="dlr", targets=9, near=0.05),
            Foolbox("SparseL1DescentAttack"),
            Foolbox("EADAttack", binary_search_steps=9, steps=100),
            Art("AutoProjectedGradientDescent", max_iter=50, nb_random_init=1),
            Square(queries=1000),
        ),
    },
)
