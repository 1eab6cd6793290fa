"""Figures 1 to 3 of Gu & Rigazio 2014: errors under noise at inference, and grids of adversarials."""

from __future__ import annotations

from typing import Final

from harness.studies.study import Item, Picture, Value

from .measures import adv
from .networks import NETS, PLACES, SIGMAS, dcn, noise, stack

_X = ("0", *map(str, SIGMAS))


def _figure_1(quantity: str, name: str, title: str) -> Item:
    def point(net: str, place: str, x: str) -> Value:
        model = net if x == "0" else noise(place, float(x), net)
        measure = adv(quantity, model, "" if x == "0" else net)
        return Value(row=f"{net} {place}", column=x, metric=title, quantity=measure, unit="%")

    return Item(
        name=name,
        title=f"Gaussian noise at inference, averaged over 20 runs: {title}",
        where="section 3.1, page 4",
        kind="lines",
        axes=("standard deviation of the noise", f"{title} (%)"),
        note="L1: noise at the input; L*: at the input and every hidden layer. The paper's figure prints no numbers.",
        values=tuple(point(net, place, x) for net in NETS for place in PLACES for x in _X),
    )


def _grid(name: str, where: str, title: str, second: str) -> Item:
    original = adv("distortion", "N100-100-10")
    defended = adv("distortion", second)
    return Item(
        name=name,
        title=title,
        where=where,
        kind="grid",
        pictures=(
            Picture(title="original", measure=original, shows="original"),
            Picture(title="adversarial, plain", measure=original, shows="adversarial"),
            Picture(title="noise, plain", measure=original, shows="noise"),
            Picture(title=f"adversarial, {second}", measure=defended, shows="adversarial"),
            Picture(title=f"noise, {second}", measure=defended, shows="noise"),
        ),
    )


FIGURE_1_CLEAN: Final = _figure_1("clean_error", "figure-1-clean", "error on clean images")
FIGURE_1_ADVERSARIAL: Final = _figure_1("error", "figure-1-adversarial", "error on adversarials")

FIGURE_2: Final = _grid(
    "figure-2",
    "section 3.2, page 6",
    "Adversarials of the plain network and of the stack, with their noise",
    stack("N100-100-10", "N100-100-10"),
)

FIGURE_3: Final = _grid(
    "figure-3",
    "section 4.3, page 9",
    "Adversarials of the plain and of the contractive network, with their noise",
    dcn("N100-100-10"),
)
