"""What Gu & Rigazio 2014 measure of a network: errors, distortion, and frequencies of its adversarial noise."""

from __future__ import annotations

import math
from dataclasses import replace

from defenses.gaussian_blur import GaussianBlur
from harness.studies.study import Measure

from .attacks import LBFGS_GU, LBFGS_STACK, MINIMAL
from .networks import blur


def adv(quantity: str, model: str, source: str = "") -> Measure:
    """Read off the attack on a model, or off a model that is shown what the attack on another, ``source``, made."""
    attack = LBFGS_STACK if model.startswith(("AE(", "DAE(")) and not source else LBFGS_GU
    return Measure(quantity=quantity, model=model, attack=attack, threat=MINIMAL, source=source)


def tested(model: str) -> Measure:
    """Error on the whole test set."""
    return Measure(quantity="test_error", model=model)


def blurred(quantity: str, net: str, kernel: int) -> Measure:
    """Read off a network's adversarials behind a blur; for a kernel of 0, without one."""
    return adv(quantity, blur(kernel, net), net) if kernel else adv(quantity, net)


def halved(kernel: int) -> float:
    """The frequency, in cycles a pixel, that a blur by the usual rule passes at half its amplitude."""
    return math.sqrt(math.log(2) / 2) / (math.pi * GaussianBlur(kernel=kernel).usual_sigma)


def frequent(net: str, kernel: int, of: str = "noise") -> Measure:
    """The share of a network's adversarial noise, or of the images, above the frequency that a blur halves."""
    return replace(adv("high_frequency", net), settings=(("above", round(halved(kernel), 4)), ("of", of)))
