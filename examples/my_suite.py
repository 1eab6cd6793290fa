"""A battery of your own.

    gauntlet run examples/my_suite.py:SUITE --dataset mnist --data-root DATA --defense standard

Attacks stand in the order of what they cost. Without ``budgets`` it is judged at the data set's.
"""

from __future__ import annotations

import gauntlet

SUITE = gauntlet.Suite(
    name="toolkits-only",
    summary="what ART and Foolbox make of a model, in L-infinity",
    attacks={
        "linf": (
            gauntlet.Foolbox("LinfAdditiveUniformNoiseAttack"),
            gauntlet.Foolbox("LinfPGD"),
            gauntlet.Art("AutoProjectedGradientDescent", max_iter=20, nb_random_init=1),
            gauntlet.Art("SquareAttack", max_iter=300),
        ),
    },
    samples=200,
)
