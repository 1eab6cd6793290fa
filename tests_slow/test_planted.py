"""Which planted adversarials the suites find: on honest networks at least 95 %, on others only with a remedy."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from defenses.fast_gradient import FastGradient
from defenses.pgd import Pgd
from defenses.standard import Standard
from harness.datasets.registry import Dataset, load_dataset
from harness.determinism import seed_everything
from harness.metrics.pairs import wilson
from harness.planning.plan import plan
from harness.planning.specs import ModelSpec
from harness.schema.probes import PlantedFacts
from harness.selftest.masked_gradients import BROKEN
from harness.selftest.victims import hardened_network, plain_network
from harness.threat import Norm
from harness.training.trainer import Trainer
from harness.trust.planting import plant
from harness.trust.probe_checks import KNOWN
from harness.victims.adaptation import Remedy
from suites import l1, l2, linf, quick

SUITES: dict[str, tuple[Norm, ...]] = {"quick": ("linf", "l2"), "linf": ("linf",), "l2": ("l2",), "l1": ("l1",)}
BATTERIES = {"quick": quick.SUITE, "linf": linf.SUITE, "l2": l2.SUITE, "l1": l1.SUITE}
CASES = [(suite, norm) for suite, norms in SUITES.items() for norm in norms]


class Residual(nn.Module):
    """Two dense layers that are added to what they are given."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        change: Tensor = self.outer(F.relu(self.inner(x)))
        return x + change


class Attention(nn.Module):
    """One transformer block on patches of 2x2 pixels."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 2, 2)
        self.places = nn.Parameter(0.1 * torch.randn(1, 16, width))
        self.mix = nn.MultiheadAttention(width, 4, batch_first=True)
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.dense = nn.Sequential(nn.Linear(width, 64), nn.GELU(), nn.Linear(64, width))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches((x - 0.3) / 0.35).flatten(2).transpose(1, 2) + self.places
        seen = self.before(tokens)
        tokens = tokens + self.mix(seen, seen, seen, need_weights=False)[0]
        tokens = tokens + self.dense(self.after(tokens))
        logits: Tensor = self.head(tokens.mean(1))
        return logits


def normalised() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.AdaptiveAvgPool2d(2)),
        *(nn.Flatten(), nn.Linear(128, 10)),
    )


def dropping() -> nn.Module:
    hidden = (nn.Linear(64, 100), nn.ReLU(), nn.Dropout(0.5), nn.Linear(100, 100), nn.ReLU(), nn.Dropout(0.5))
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(100, 10))


def residual() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), Residual(64), Residual(64), nn.ReLU(), nn.Linear(64, 10))


@cache
def digits() -> Dataset:
    return load_dataset("digits")


def trained(make: Callable[[], nn.Module], epochs: int) -> nn.Module:
    """A network of no registered architecture."""
    seed_everything(0)
    model = make()
    x, y = digits().train_sample(len(digits().x_train))[1]
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
    return model.eval()


def fitted(trainer: Trainer, architecture: str) -> nn.Module:
    seed_everything(0)
    return trainer.resolve(digits().info).fit(architecture, digits()).model


HONEST: dict[str, Callable[[], nn.Module]] = {
    "plain": plain_network,
    "hardened to single steps": hardened_network,
    "pgd": lambda: fitted(Pgd(epochs=20), "mlp-100-100"),
    "fast-gradient": lambda: fitted(FastGradient(epochs=20), "mlp-100-100"),
    "batch normalisation": lambda: trained(normalised, 15),
    "dropout": lambda: trained(dropping, 30),
    "sigmoid": lambda: fitted(Standard(epochs=60, lr=5e-3), "mlp-sigmoid-64-64"),
    "maxout": lambda: fitted(Standard(epochs=20), "maxout"),
    "attention": lambda: trained(Attention, 40),
    "lenet": lambda: fitted(Standard(epochs=8), "lenet"),
    "residual": lambda: trained(residual, 30),
    "resnet": lambda: fitted(Standard(epochs=6), "resnet"),
    "softmax": lambda: fitted(Standard(epochs=20), "softmax"),
}
HIDDEN = ("zero-gradient", "rounded-inputs", "random-input")


@cache
def honest(name: str) -> nn.Module:
    with torch.random.fork_rng():
        return HONEST[name]()


def judged(name: str, model: nn.Module, suite: str, norm: Norm, remedy: Remedy | None = None) -> PlantedFacts:
    """What is found of what is planted, as the suite's plan declares it; a line of the table."""
    torch.set_num_threads(1)
    spec = ModelSpec(dataset="digits", architecture="mlp-8", defense=Standard().resolve(digits().info))
    made = plan(BATTERIES[suite], [spec], {"digits": digits().info}, samples=100, transfers=False)
    (look,) = (one for one in made.plantings if one.threat.norm == norm)
    x, y = digits().test_sample(look.n)[1]
    found = plant(model, x, y, look.threat, look.attacks, classes=10, remedy=remedy, seed=look.seed)
    shares = [
        f"{getattr(part, side)}/{part.planted}"
        for side in ("gradients", "black_box")
        for part in (found.floats, found.grid)
    ]
    noise = found.floats.noise + found.grid.noise
    called = f"{name} with remedy" if remedy else name
    print(f"\n| {called} | {suite} {norm} | {found.place} | {' | '.join(shares)} | {noise} |")
    return found


def concluded(found: PlantedFacts) -> bool:
    """Whether it is certain that less than 95 % are found, on floats, on the grid or in all."""
    counts = [(part.gradients, part.planted) for part in (found.floats, found.grid)]
    counts.append((sum(hit for hit, _ in counts), found.planted))
    return any(n - hit >= 5 and wilson(hit, n)[1] < KNOWN for hit, n in counts)


@pytest.mark.parametrize(("suite", "norm"), CASES)
@pytest.mark.parametrize("name", HONEST)
def test_an_honest_networks_are_found(name: str, suite: str, norm: Norm) -> None:
    found = judged(name, honest(name), suite, norm)
    assert found.asked
    share = found.share("gradients")
    assert share is not None
    assert share >= KNOWN


@pytest.mark.parametrize(("suite", "norm"), CASES)
@pytest.mark.parametrize("name", HIDDEN)
def test_hidden_ones_are_found_with_the_remedy_alone(name: str, suite: str, norm: Norm) -> None:
    if name == "random-input" and (suite, norm) != ("quick", "linf"):
        pytest.skip("planting in a model that draws takes minutes")
    broken = BROKEN[name]
    model = broken.wrap(honest("plain"))
    assert concluded(judged(name, model, suite, norm))
    remedied = judged(name, model, suite, norm, broken.remedy)
    assert remedied.asked
    share = remedied.share("gradients")
    assert share is not None
    assert share >= KNOWN
