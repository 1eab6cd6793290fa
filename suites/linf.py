"""The worst case in L-infinity: what an expert of today would throw at a model before believing it.

Attacks stand in the order of what they cost, for ``--cascade``. What each is there for:

* noise, one step, transfer: controls; a white-box attack that they beat is broken, or the model hides its gradients;
* DeepFool, alpha and FMN: one run each serves every eps, and gives the curve between the budgets;
* PGD of Foolbox and APGD of ART: second opinions, so that a bug of ours cannot hide;
* APGD on the log-odds, and towards every one of nine classes on the difference-of-logits ratio: the strongest. What
  comes near (``near``) is tried again at length: on three LeNets of MNIST, 200 images and three eps, this broke 4 of 5
  that reference AutoAttack broke and the battery had left, for about 2 % of its cost;
* Square asks for scores and RayS for labels alone: they do not care whether gradients are masked.
"""

from __future__ import annotations

from defenses.standard import Standard
from harness.attacks.alpha import Alpha
from harness.attacks.apgd import APGD
from harness.attacks.fast_gradient import Gradient
from harness.attacks.fmn import MinimumNorm
from harness.attacks.noise import Noise
from harness.attacks.rays import RayS
from harness.attacks.square import Square
from harness.attacks.toolkits.art import Art
from harness.attacks.toolkits.foolbox import Foolbox
from harness.attacks.transfer import Transfer
from harness.planning.suite import Suite

SUITE = Suite(
    name="linf",
    summary="the worst case in L-infinity, after every kind of attack that experts ask for",
    attacks={
        "linf": (
            Noise(distribution="uniform"),
            Gradient(),
            Transfer(attack=APGD(steps=20), defense=Standard(), seed_offset=1),
            Alpha(mode="minimal"),
            MinimumNorm(),
            APGD(),
            APGD(loss="dlr", targets=9, steps=50, near=0.05),
            Foolbox("LinfDeepFoolAttack"),
            Foolbox("LinfPGD"),
            Art("AutoProjectedGradientDescent", loss_type="difference_logits_ratio", max_iter=50, nb_random_init=1),
            Square(queries=1000),
            RayS(queries=500),
        ),
    },
)
