"""The first look: a few minutes on two cores, every kind of attack, three toolkits.

What an attack costs here has to buy images. APGD towards each of nine classes is what the others leave a gap without:
on MLPs on digits trained with PGD at 0.2 they overstate by 4 points what the exact optimum leaves, and twenty steps a
class close it. It is paid for by attacks that break nothing alone (Foolbox's PGD, ART's Square) and by fewer steps.
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
