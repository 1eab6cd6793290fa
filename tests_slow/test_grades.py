"""What the whole L-infinity battery says of victims whose weakness is known: minutes, so in a session of its own.

Broken victims must be graded C or worse, for their own fault; with their remedy the battery must leave of them no more
than of the honest network behind them; honest networks must be graded A or B.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

import gauntlet
from defenses.fast_gradient import FastGradient
from defenses.pgd import Pgd
from defenses.standard import Standard
from harness.datasets.registry import Dataset, load_dataset
from harness.determinism import seed_everything
from harness.selftest.masked_gradients import BROKEN, WRONG_GRADIENTS, RandomInput, RoundedInputs
from harness.trust.checks import BOUNDED
from harness.victims.adaptation import Remedy

EPS = 0.1
IMAGES = 150
SAME = ("scaled-logits", "probabilities", "zero-gradient")
"""Broken in their gradients alone: remedied, they are the honest network again."""


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits")


@pytest.fixture(scope="module")
def sample(digits: Dataset) -> tuple[Tensor, Tensor]:
    return digits.test_sample(IMAGES)[1]


@pytest.fixture(scope="module")
def honest(digits: Dataset) -> nn.Module:
    seed_everything(0)
    return Standard(epochs=30).fit("mlp-100-100", digits).model


@pytest.fixture(scope="module")
def base(honest: nn.Module, digits: Dataset, sample: tuple[Tensor, Tensor]) -> float:
    """What the battery leaves of the network that breakage is put around."""
    return judged(honest, digits, sample)[2]


def judged(
    model: nn.Module,
    digits: Dataset,
    sample: tuple[Tensor, Tensor],
    remedy: Remedy | None = None,
    eps: float = EPS,
) -> tuple[str, str, float]:
    """Grade, its reasons, and worst-case accuracy at an eps."""
    torch.set_num_threads(1)
    frame = gauntlet.evaluate(model, *sample, suite="linf", dataset=digits.info, remedy=remedy)
    grade, reasons = frame.attrs["trust"]["linf"]
    left = frame.worst_case("linf", eps)
    print(f"\n{grade}, {left:.3f} left at {eps}: {reasons}")
    return str(grade), str(reasons), left


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_victim_is_not_trusted(
    name: str, honest: nn.Module, digits: Dataset, sample: tuple[Tensor, Tensor]
) -> None:
    # a remedy of nothing: evaluate() would find most faults out and mend them
    remedy = Remedy(draws=2) if name == "random-input" else Remedy()
    grade, reasons, _ = judged(BROKEN[name].wrap(honest), digits, sample, remedy)
    assert grade in ("C", "D"), reasons


@pytest.mark.parametrize("name", WRONG_GRADIENTS)
def test_a_wrong_gradient_is_named_and_ranked_only_with_a_bound(
    name: str, honest: nn.Module, base: float, digits: Dataset, sample: tuple[Tensor, Tensor]
) -> None:
    model = WRONG_GRADIENTS[name](honest)
    grade, reasons, left = judged(model, digits, sample, Remedy())
    assert "the gradient is not that of the outputs" in reasons
    assert grade in ("C", "D"), reasons
    if grade == "C" and name != "detached-branch":  # that one decides otherwise too
        assert left <= base + BOUNDED


@pytest.mark.parametrize("name", [name for name, broken in BROKEN.items() if broken.remedy is not None])
def test_remedied_it_is_no_stronger_than_the_network_behind_it(
    name: str, honest: nn.Module, base: float, digits: Dataset, sample: tuple[Tensor, Tensor]
) -> None:
    grade, reasons, left = judged(BROKEN[name].wrap(honest), digits, sample, BROKEN[name].remedy)
    assert grade == "C", reasons
    assert left <= base + 0.02
    if name in SAME:
        assert left >= base - 0.02


@pytest.fixture(scope="module")
def on_grid(digits: Dataset) -> Dataset:
    """The digits at an eps of two of the levels that their pixels have."""
    info = dataclasses.replace(digits.info, budgets={"linf": (2 / 16,)})
    return dataclasses.replace(digits, info=info)


@pytest.mark.parametrize(
    ("wrap", "remedy"),
    [
        (partial(RoundedInputs, levels=17), BROKEN["rounded-inputs"].remedy),
        (partial(RandomInput, sigma=0.05), BROKEN["random-input"].remedy),
    ],
    ids=("rounded-inputs", "random-input"),
)
def test_what_hides_a_network_without_changing_it_hides_nothing_once_remedied(
    wrap: Callable[[nn.Module], nn.Module],
    remedy: Remedy,
    honest: nn.Module,
    on_grid: Dataset,
    sample: tuple[Tensor, Tensor],
) -> None:
    # rounding to levels that the images have, at an eps of whole levels, leaves an attacker every corner of the ball;
    # a little noise moves hardly a decision. Others of their kind are other networks, and weaker ones
    eps = on_grid.info.budgets["linf"][0]
    base = judged(honest, on_grid, sample, eps=eps)[2]
    _, _, left = judged(wrap(honest), on_grid, sample, remedy, eps=eps)
    assert abs(left - base) <= 0.02


@pytest.mark.parametrize("trainer", [Standard(epochs=30), FastGradient(epochs=30), Pgd(epochs=30)])
def test_an_honest_network_is_trusted(trainer: Standard, digits: Dataset, sample: tuple[Tensor, Tensor]) -> None:
    seed_everything(0)
    grade, reasons, _ = judged(trainer.resolve(digits.info).fit("mlp-100-100", digits).model, digits, sample)
    assert grade in ("A", "B"), reasons
