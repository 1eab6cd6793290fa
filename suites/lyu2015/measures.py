"""What Lyu et al. 2015 measure: errors with and without Gaussian noise, and distances along the gradient."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from harness.attacks.fast_gradient import Gradient
from harness.attacks.noise import Gaussian
from harness.attacks.unclipped import Unclipped
from harness.studies.study import Derived, Measure
from harness.threat import Threat

NOISE: Final = ("0.1", "0.3")
NATURAL: Final = 0.01
ANY: Final = Threat("l2", None)
WHOLE: Final = 60_000
"""Images a measure takes: all that there are of a smaller part."""

LINE: Final = Unclipped(attack=Gradient(p=2.0, mode="minimal"))
"""Section V.A: the shortest step along the gradient that changes the prediction. Not clipped: see the choices."""

CLIPPED_LINE: Final = Gradient(p=2.0, mode="minimal")


def tested(model: str) -> Measure:
    """Error on the whole test set."""
    return Measure(quantity="test_error", model=model)


def noisy(model: str, std: float) -> Measure:
    """Error under Gaussian noise on the whole test set, also on images that are wrong without."""
    return Measure(quantity="error", model=model, attack=Gaussian(std=std), threat=ANY, samples=WHOLE)


def trained_on(measure: Measure) -> Measure:
    """The same on all training images, where tables VI to IX are from."""
    return replace(measure, part="train", samples=WHOLE)


def line(quantity: str, model: str, **settings: Any) -> Measure:
    """Read off the distances that the line search finds on training images."""
    measure = Measure(quantity=quantity, model=model, attack=LINE, threat=ANY, settings=tuple(sorted(settings.items())))
    return trained_on(measure)


def train_error(model: str) -> Measure:
    """Error on the whole training set."""
    return Measure(quantity="train_error", model=model)


def mean_distance(model: str) -> Measure:
    """Mean of the distances, in L2."""
    return line("distortion", model, norm="l2")


def distance_std(model: str) -> Measure:
    """Standard deviation of the distances, in L2."""
    return line("distance_std", model, norm="l2")


def shaken(model: str, std: float) -> Measure:
    """Error under Gaussian noise on all training images."""
    return trained_on(noisy(model, std))


def foretold(model: str, std: float) -> Measure:
    """The same, foretold by eq. 33 from the distances."""
    return line("gaussian_model", model, std=std)


def added(model: str) -> Derived:
    """What noise of :data:`NATURAL` adds to the error on training images."""
    under = trained_on(noisy(model, NATURAL))
    return Derived(operation="difference", of=(under, replace(under, quantity="clean_error")))
