"""Models that answer files otherwise than the floats beside them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from defenses.pgd import Pgd
from defenses.standard import Standard
from harness.api import evaluate
from harness.attacks.apgd import APGD
from harness.attacks.square import Square
from harness.datasets.registry import Dataset
from harness.planning.suite import Suite
from harness.threat import Threat
from harness.trust.inspection import inspect
from harness.trust.measurements import GradientDiagnostics
from harness.victims.adaptation import Remedy
from harness.victims.victim import Victim, rounded

BATTERY = Suite(
    name="two", summary="", attacks={"linf": (APGD(steps=20), Square(queries=200))}, budgets={"linf": (0.1,)}
)


class OnTheGrid(nn.Module):
    """One network for files of 8 bits, another for all else."""

    def __init__(self, files: nn.Module, floats: nn.Module) -> None:
        super().__init__()
        self.files, self.floats = files, floats

    def forward(self, x: Tensor) -> Tensor:
        on = (x * 255 - (x * 255).round()).abs().flatten(1).amax(1, keepdim=True) < 1e-3
        out: Tensor = torch.where(on, self.files(x), self.floats(x))
        return out


class LookUp(nn.Module):
    """Another network for images that it knows by their exact values."""

    def __init__(self, known: Tensor, there: nn.Module, elsewhere: nn.Module) -> None:
        super().__init__()
        self.there, self.elsewhere = there, elsewhere
        self.register_buffer("known", known)

    def forward(self, x: Tensor) -> Tensor:
        at_home = (x[:, None] == self.known).flatten(2).all(2).any(1)[:, None]  # type: ignore[operator]
        out: Tensor = torch.where(at_home, self.there(x), self.elsewhere(x))
        return out


@pytest.fixture(scope="module")
def nets(digits: Dataset) -> tuple[nn.Module, nn.Module]:
    """A plain network and a robust one."""
    torch.manual_seed(0)
    return (
        Standard(epochs=30).fit("mlp-100-100", digits).model,
        Pgd(epochs=30, eps=0.1).fit("mlp-100-100", digits).model,
    )


def files(digits: Dataset, n: int) -> tuple[Tensor, Tensor]:
    _, (x, y) = digits.test_sample(n)
    return rounded(x), y


def jumps(model: nn.Module, x: Tensor, y: Tensor, remedy: Remedy | None = None) -> float:
    victim = Victim(model, remedy=remedy)
    return float(GradientDiagnostics(victim, victim, x, y, Threat("linf", 0.1)).jumps().double().mean())


@pytest.mark.parametrize("architecture", ["mlp-100-100", "mlp-sigmoid-32", "conv-maxout-small", "allconv", "resnet"])
def test_networks_do_not_jump(architecture: str, digits: Dataset) -> None:
    torch.manual_seed(0)
    model = Standard(epochs=2).fit(architecture, digits).model
    assert jumps(model, *files(digits, 64)) == 0


def test_a_model_of_two_networks_jumps_unless_it_is_asked_about_files(
    nets: tuple[nn.Module, nn.Module], digits: Dataset
) -> None:
    model = OnTheGrid(*nets)
    x, y = files(digits, 64)
    assert jumps(model, x, y) > 0.9
    assert jumps(model, x, y, Remedy(grid=255)) == 0
    found = inspect(model, x, y)
    assert found.remedy.grid == 255
    assert "images rounded to steps of 1/255" in found.notes[-1]
    assert inspect(nets[0], x, y).remedy == Remedy()


def test_a_look_up_jumps_at_the_images_it_knows(nets: tuple[nn.Module, nn.Module], digits: Dataset) -> None:
    x, y = files(digits, 64)
    model = LookUp(x, *nets)
    assert jumps(model, x, y) > 0.9
    assert inspect(model, x, y).remedy.grid == 255  # beside them it is one network again


def test_gradients_pass_a_rounding_and_the_value_is_the_files(nets: tuple[nn.Module, nn.Module]) -> None:
    x = torch.rand(4, 1, 8, 8, requires_grad=True)
    victim = Victim(nets[0], remedy=Remedy(grid=255))
    logits = victim(x)
    assert torch.equal(logits, Victim(nets[0])(rounded(x)))
    logits[:, 0].sum().backward()
    at = rounded(x.detach()).requires_grad_()
    nets[0](at)[:, 0].sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, at.grad)


def test_the_lower_of_floats_and_files_counts(nets: tuple[nn.Module, nn.Module], digits: Dataset) -> None:
    plain, robust = nets
    x, y = files(digits, 60)

    def left(model: nn.Module) -> tuple[float, str]:
        found = evaluate(model, x, y, BATTERY, dataset=digits)
        return found.worst_case("linf", 0.1), found.attrs["trust"]["linf"][0]

    weak, strong = left(plain)[0], left(robust)[0]
    assert strong > weak + 0.2
    accuracy, grade = left(OnTheGrid(plain, robust))
    assert accuracy <= weak + 0.02
    assert grade in "CD"
    assert left(LookUp(x, robust, plain)) <= (weak + 0.02, "D")
