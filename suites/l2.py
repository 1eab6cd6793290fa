"""The worst case in L2; see :mod:`suites.linf` for why each kind of attack is there.

Minimum-norm attacks count for more here: L-BFGS (Szegedy et al. 2014) and alpha (Huang et al. 2015) are those of the
papers that Gauntlet reproduces, FMN and DDN those of today. Carlini and Wagner's is left out for its cost: thousands of
passes an image where these take hundreds. Targeted APGD takes 50 steps, and more only where it came near (``near``):
on three LeNets of MNIST at two eps it so left a point less, all together, than with 100 steps throughout, and the
battery cost five sixths.
"""

from __future__ import annotations

from defenses.standard import Standard
from harness.attacks.alpha import Alpha
from harness.attacks.apgd import APGD
from harness.attacks.fast_gradient import Gradient
from harness.attacks.fmn import MinimumNorm
from harness.attacks.lbfgs import LBFGS
from harness.attacks.noise import Noise
from harness.attacks.square import Square
from harness.attacks.toolkits.art import Art
from harness.attacks.toolkits.foolbox import Foolbox
from harness.attacks.transfer import Transfer
from harness.planning.suite import Suite

SUITE = Suite(
    name="l2",
    summary="the worst case in L2, after every kind of attack that experts ask for",
    attacks={
        "l2": (
            Noise(),
            Gradient(),
            Transfer(attack=APGD(steps=20), defense=Standard(), seed_offset=1),
            Alpha(mode="minimal"),
            MinimumNorm(),
            APGD(),
            APGD(loss="dlr", targets=9, steps=50, near=0.05),
            Foolbox("DDNAttack"),
            Art("AutoProjectedGradientDescent", loss_type="difference_logits_ratio", max_iter=50, nb_random_init=1),
            LBFGS(),
            Square(queries=1000),
            Foolbox("HopSkipJumpAttack", steps=4),
        ),
    },
)
