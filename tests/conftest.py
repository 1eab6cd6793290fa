"""What many tests share: the embedded data, one small trained model, and attacks that lie."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from harness.attacks.base import Attack
from harness.attacks.distilled import Distilled
from harness.attacks.rays import RayS
from harness.attacks.square import Square
from harness.datasets.registry import Dataset, load_dataset
from harness.determinism import seed_everything
from harness.models.registry import USER_ARCHITECTURES
from harness.planning import gradient_free
from harness.threat import Threat
from harness.training.trainer import Trainer
from harness.user_code import plugins
from harness.victims.victim import Victim


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slow ones first, so that nobody waits for them alone at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """As workers compute: small tensors are slower on many threads, and numbers depend on how many there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def digits() -> Dataset:
    return load_dataset("digits")


@dataclass(frozen=True, kw_only=True)
class Plain(Trainer):
    name: ClassVar[str] = "plain"


@pytest.fixture(scope="session")
def trained_once(digits: Dataset) -> nn.Module:
    """A small model that has learned the digits, for fixtures that serve many tests; do not change it."""
    seed_everything(0)
    return Plain(epochs=15, lr=5e-3).fit("mlp-32", digits).model


@pytest.fixture
def trained(trained_once: nn.Module) -> nn.Module:
    """The same, a test's own."""
    return copy.deepcopy(trained_once)


@dataclass(frozen=True, kw_only=True)
class Liar(Attack):
    """Returns what is no fair success: images of other classes, disguised in some way."""

    name: ClassVar[str] = "liar"
    way: str

    def run(self, victim: Victim, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
        other = x.roll(1, 0)  # images of other classes: misclassified for sure, if only they were allowed
        match self.way:
            case "nan pixel":
                other[:, 0, 0, 0] = torch.nan
            case "all inf":
                other.fill_(torch.inf)
            case "over budget":
                pass
            case "int dtype":
                return other.round().long()
            case "out of box":
                return x + 8 * (other - x).sign()
            case "just out of box":
                return x.clone().index_fill_(3, torch.tensor([0]), 1 + 1e-4)
            case "too few images":
                return other[:-1]
            case "too many images":
                return torch.cat([other, other])
            case "too few pixels":
                return other[..., :-1]
            case "flattened":
                return other.flatten(1)
            case "list":
                return list(other)  # type: ignore[return-value]
            case "numpy":
                return other.numpy()  # type: ignore[return-value]
            case "complex":
                return other.to(torch.complex64)
            case "sparse":
                return other.to_sparse()
            case "none":
                return None  # type: ignore[return-value]
            case "raises":
                raise RuntimeError("no luck\nand a second line")
            case "raises without a word":
                raise AssertionError
            case "mutates its input":
                x.copy_(other)
                y.add_(1)
                return x
            case "zeroes the weights":
                for parameter in victim.parameters():
                    parameter.data.zero_()
                return x
            case "grad mode off":
                torch.set_grad_enabled(False)
                return x
            case "train mode":
                for module in victim.model.modules():
                    module.training = True
                victim.requires_grad_(True)
                victim(x).sum().backward()
                return x
            case "clean":
                return x
            case _:
                raise KeyError(self.way)
        return other


LIARS = {
    "nan pixel": "non_finite",
    "all inf": "non_finite",
    "over budget": "over_budget",
    "int dtype": "over_budget",
    "out of box": "out_of_box",
    "just out of box": "out_of_box",
    "too few images": "wrong_shape",
    "too many images": "wrong_shape",
    "too few pixels": "wrong_shape",
    "flattened": "wrong_shape",
    "list": "wrong_shape",
    "numpy": "wrong_shape",
    "complex": "wrong_shape",
    "sparse": "wrong_shape",
    "none": "crashed",
    "raises": "crashed",
    "raises without a word": "crashed",
    "mutates its input": "over_budget",
    "zeroes the weights": "crashed",
    "grad mode off": None,
    "train mode": None,
    "clean": None,
}
"""Ways to lie, and the flag that each must get; None where what comes back is honest, and no success."""


@pytest.fixture(params=LIARS, ids=lambda way: way.replace(" ", "-"))
def liar(request: pytest.FixtureRequest) -> tuple[Liar, str | None]:
    """A lying attack, and the one flag that all of its images must get."""
    return Liar(way=request.param), LIARS[request.param]


@pytest.fixture(autouse=True)
def _networks_that_were_named() -> Iterator[None]:
    """Forget networks of files and packages with the test that named them: every run in this process loads them."""
    known = (plugins._ARCHITECTURES, USER_ARCHITECTURES)
    before = [dict(each) for each in known]
    yield
    for each, kept in zip(known, before, strict=True):
        each.clear()
        each.update(kept)  # type: ignore[arg-type]


@pytest.fixture
def few_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where gradients are left alone few questions are asked; how many are worth it is measured elsewhere."""
    few = (Distilled(queries=35, updates=20), Square(queries=300), RayS(queries=200))
    monkeypatch.setattr(gradient_free, "BESIDES", few)
