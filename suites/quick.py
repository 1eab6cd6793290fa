"""The first look: a few minutes on two cores, every kind of attack, three toolkits."""

from __future__ import annotations

from harness.attacks.art import Art
from harness.attacks.foolbox import Foolbox
from harness.plan import Suite

SUITE = Suite(
    name="quick",
    summary="a first look: every kind of attack in L-infinity and L2, from three toolkits",
    attacks={
        "linf": (
            Art("AutoProjectedGradientDescent"),
            Art("SquareAttack"),
            Foolbox("LinfPGD"),
            Foolbox("LInfFMNAttack"),
        ),
        "l2": (
            Art("AutoProjectedGradientDescent"),
            Foolbox("L2DeepFoolAttack"),
            Foolbox("DDNAttack"),
        ),
    },
)
