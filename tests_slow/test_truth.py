"""The battery's worst case in L-infinity against exact truth, image by image, on five networks; minutes."""

from __future__ import annotations

import pytest

from defenses.gradient_regularization import GradientRegularization
from defenses.pgd import Pgd
from defenses.standard import Standard
from harness.datasets.registry import load_dataset
from harness.determinism import seed_everything
from harness.training.trainer import Trainer
from tests.helpers.truth import compared

IMAGES = 100


@pytest.mark.parametrize(
    ("name", "defense", "eps"),
    [
        ("mlp-32", Pgd(eps=0.2, epochs=30), 0.2),
        ("mlp-64", Standard(epochs=30), 0.08),
        ("mlp-32-32", Standard(epochs=30), 0.08),
        ("mlp-32-32", Pgd(eps=0.1, epochs=30), 0.1),
        ("mlp-24-24-24", GradientRegularization(epochs=30), 0.08),
    ],
    ids=lambda value: value if isinstance(value, str) else getattr(value, "name", str(value)),
)
def test_the_battery_leaves_what_cannot_be_broken(name: str, defense: Trainer, eps: float) -> None:
    data = load_dataset("digits")
    seed_everything(0)
    model = defense.fit(name, data).model.eval().requires_grad_(False)
    _, (x, y) = data.test_sample(IMAGES)
    right = model(x).argmax(1) == y
    x, y = x[right], y[right]
    truth = compared(model, x, y, eps)
    print(
        f"\n{name}, {defense.name}, {eps}: {len(x)} images, {int(truth.broken.sum())} broken, "
        f"{int(truth.certified.sum())} certified, missed {truth.missed}, undecided {truth.undecided}"
    )
    assert not (truth.broken & truth.certified).any()
    assert truth.missed == []
    assert len(truth.undecided) <= 2
    assert truth.broken.any()
