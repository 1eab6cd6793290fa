"""The first look: a few minutes on two cores, every kind of attack, three toolkits."""

from __future__ import annotations

from harness.attacks.alpha import Alpha
from harness.attacks.art import Art
from harness.attacks.foolbox import Foolbox
from harness.attacks.gradient import Gradient
from harness.attacks.lbfgs import LBFGS
from harness.attacks.noise import Noise
from harness.attacks.square import Square
from harness.plan import Suite

SUITE = Suite(
    name="quick",
    summary="a first look: every kind of attack in L-infinity and L2, from three toolkits",
    attacks={
        "linf": (
            Noise(distribution="uniform"),
            Gradient(),
            Alpha(mode="minimal"),
            Art("AutoProjectedGradientDescent", max_iter=50, nb_random_init=1),
            Art("SquareAttack"),
            Foolbox("LinfPGD"),
            Foolbox("LInfFMNAttack"),
        ),
        "l2": (
            Noise(),
            Gradient(),
            Alpha(mode="minimal"),
            LBFGS(),
            Art("AutoProjectedGradientDescent", max_iter=50, nb_random_init=1),
            Foolbox("L2PGD"),
            Foolbox("L2DeepFoolAttack"),
            Foolbox("DDNAttack"),
            Square(queries=300),
        ),
    },
)
