"""Figures 1 to 7 of Lyu et al. 2015: perturbed and noisy images, and histograms of distances."""

from __future__ import annotations

from typing import Final

from harness.attacks.fast_gradient import Gradient
from harness.attacks.unclipped import Unclipped
from harness.studies.study import Item, Measure, Picture, Value
from harness.threat import Threat

from .measures import NATURAL, line, noisy, trained_on
from .networks import SIGMOID, softmax


def _step(sigma: float) -> Measure:
    return Measure(
        quantity="error", model=SIGMOID, attack=Unclipped(attack=Gradient(p=2.0)), threat=Threat("l2", sigma)
    )


GALLERY: Final = Item(
    name="figures-1-to-4",
    title="Images, and the gradient perturbation of the sigmoid network with p = 2",
    where="section III.A",
    kind="grid",
    note="Not clipped to [0, 1] before the model, as in the paper; shown clipped.",
    pictures=(
        Picture(title="figure 1: original", measure=_step(1.0), shows="original"),
        Picture(title="figure 2: sigma = 1", measure=_step(1.0), shows="adversarial"),
        Picture(title="figure 3: perturbation, ten times", measure=_step(10.0), shows="noise"),
        Picture(title="figure 4: sigma = 10", measure=_step(10.0), shows="adversarial"),
    ),
)


def _histogram(name: str, title: str, end: float, bins: int) -> Item:
    width = end / bins
    return Item(
        name=name,
        title=title,
        where="section V" if name == "figure-5" else "section V.B",
        kind="histogram",
        axes=("minimum perturbation (L2)", "share of images (%)"),
        note="The paper's figure prints no numbers.",
        values=tuple(
            Value(
                row=softmax("1e-4"),
                column=f"{width * at:.4g}",
                metric=f"share of images from {width * at:.4g} to below {width * (at + 1):.4g}",
                quantity=line("distance_share", softmax("1e-4"), low=width * at, high=width * (at + 1)),
                unit="%",
            )
            for at in range(bins)
        ),
    )


FIGURE_5: Final = _histogram("figure-5", "Minimum perturbations of the softmax model with lambda = 1e-4", 1.0, 20)

_NATURAL: Final = trained_on(noisy(softmax("1e-4"), NATURAL))
FIGURE_6: Final = Item(
    name="figure-6",
    title=f"Images with Gaussian noise of {NATURAL}",
    where="section V.B",
    kind="grid",
    pictures=(
        Picture(title="original", measure=_NATURAL, shows="original"),
        Picture(title=f"noise of {NATURAL}", measure=_NATURAL, shows="adversarial"),
    ),
)

FIGURE_7: Final = _histogram("figure-7", "The same near zero", 0.1, 20)
