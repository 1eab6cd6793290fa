"""Can this model's numbers be believed? The cheapest attacks that the health checks compare with one another.

Every suite is checked; this one holds what the checks need and little more, so that a broken evaluation shows in a
minute, before a long battery is run. Trust grades are what to read here, not the accuracies.
"""

from __future__ import annotations

from defenses.standard import Standard
from harness.attacks.apgd import APGD
from harness.attacks.fast_gradient import Gradient
from harness.attacks.noise import Noise
from harness.attacks.partial_pgd import PartialPGD
from harness.attacks.rays import RayS
from harness.attacks.square import Square
from harness.attacks.toolkits.art import Art
from harness.attacks.toolkits.foolbox import Foolbox
from harness.attacks.transfer import Transfer
from harness.planning.suite import Suite

_TRANSFER = Transfer(attack=APGD(steps=10), defense=Standard(), seed_offset=1)
_ART = Art("AutoProjectedGradientDescent", max_iter=20, nb_random_init=1)

SUITE = Suite(
    name="sanity",
    summary="quick diagnosis: are gradients, losses and randomness of this model in order?",
    attacks={
        "linf": (
            Noise(distribution="uniform"),
            Gradient(),
            _TRANSFER,
            APGD(steps=30),
            APGD(steps=30, loss="dlr"),
            PartialPGD(),
            Foolbox("LinfPGD"),
            _ART,
            Square(queries=300),
            RayS(queries=300),
        ),
        "l2": (
            Noise(),
            Gradient(),
            _TRANSFER,
            APGD(steps=30),
            APGD(steps=30, loss="dlr"),
            PartialPGD(),
            Foolbox("L2PGD"),
            _ART,
            Square(queries=300),
        ),
    },
    samples=250,
)
