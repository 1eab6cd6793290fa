"""The first look: a few minutes on two cores, every kind of attack, three toolkits.

What an attack costs here has to buy images. Without APGD towards each of nine classes the others overstated what an
exact optimum leaves of small MLPs trained with PGD; twenty steps per class close that gap
(tests/suites/test_quick.py). They are paid for by attacks that broke nothing alone (Foolbox's PGD, ART's Square, DDN)
and by fewer steps of others.
"""

from __future__ import annotations

from harness.attacks.alpha import Alpha
from harness.attacks.apgd import APGD
from harness.attacks.fast_gradient import Gradient
from harness.attacks.lbfgs import LBFGS
from harness.attacks.noise import Noise
from harness.attacks.square import Square
from harness.attacks.toolkits.art import Art
from harness.attacks.toolkits.foolbox import Foolbox
from harness.planning.suite import Suite

SUITE = Suite(
    name="quick",
    summary="a first look: every kind of attack in L-infinity and L2, from three toolkits",
    attacks={
        "linf": (
            Noise(distribution="uniform"),
            Gradient(),
            Alpha(mode="minimal"),
            Art("AutoProjectedGradientDescent", max_iter=20, nb_random_init=1),
            Foolbox("LInfFMNAttack"),
            Square(queries=300),
            APGD(loss="dlr", targets=9, steps=20),
        ),
        "l2": (
            Noise(),
            Gradient(),
            Alpha(mode="minimal"),
            Art("AutoProjectedGradientDescent", max_iter=20, nb_random_init=1),
            Foolbox("L2DeepFoolAttack"),
            LBFGS(),
            Square(queries=100),
            APGD(loss="dlr", targets=9, steps=20),
        ),
    },
)
