"""The attack of Gu & Rigazio 2014: that of Szegedy et al. (2014) with one constant c for a model (section 2.1)."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from harness.attacks.lbfgs import LBFGS
from harness.threat import Threat

LBFGS_GU: Final = LBFGS(c="dataset", target="random", error_rate=0.995, search_images=1000)
"""Section 2.1, with one c for a model."""

LBFGS_STACK: Final = replace(LBFGS_GU, error_rate=0.95)
"""The same for an autoencoder and a network: no c fools more than 97 to 99 % of the images there."""

MINIMAL: Final = Threat("l2", None)
