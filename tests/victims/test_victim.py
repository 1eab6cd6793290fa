from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.models.registry import build_model
from harness.victims.victim import ModelChangedError, PassCount, Victim, VictimError, input_gradient


class Fickle(nn.Module):
    """Dropout and batch norm: whoever leaves eval mode changes the numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class Returns(nn.Module):
    """A model that answers with whatever it was told to."""

    def __init__(self, answer: object) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: Tensor) -> object:
        return self.answer(x) if callable(self.answer) else self.answer


@pytest.fixture
def model() -> Fickle:
    torch.manual_seed(0)
    return Fickle().train()


@pytest.fixture
def x() -> Tensor:
    return torch.rand(5, 1, 4, 4, generator=torch.Generator().manual_seed(1))


def test_the_users_model_is_left_alone(model: Fickle, x: Tensor) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    victim = Victim(model)
    victim(x)
    next(victim.parameters()).data.zero_()
    assert model.training
    assert model.body[2].training
    assert all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_own_takes_the_model_over(model: Fickle) -> None:
    assert Victim(model, own=True).model is model
    assert not model.training


def test_eval_mode_is_locked_and_parameters_are_frozen(model: Fickle, x: Tensor) -> None:
    victim = Victim(model)
    first = victim(x)
    assert victim.train() is victim
    victim.train(True)
    assert not any(module.training for module in victim.modules())
    assert torch.equal(victim(x), first)
    assert not any(p.requires_grad for p in victim.parameters())
    x = x.requires_grad_(True)
    victim(x).sum().backward()
    assert x.grad is not None
    assert all(p.grad is None for p in victim.parameters())


def test_children_are_not_to_be_walked(model: Fickle) -> None:
    assert not isinstance(Victim(model), nn.Sequential)


def test_double_precision_images_are_taken(model: Fickle, x: Tensor) -> None:
    victim = Victim(model)
    assert torch.equal(victim(x.double()), victim(x))
    double = x.double().requires_grad_(True)
    victim(double).sum().backward()
    assert double.grad is not None
    assert double.grad.dtype == torch.float64


def test_passes_are_counted_a_sample(model: Fickle, x: Tensor) -> None:
    victim = Victim(model)
    with victim.counted() as outer:
        victim(x)
        with victim.counted() as inner:
            victim(x[:2])
            leaf = x.clone().requires_grad_(True)
            logits = victim(leaf)
            for k in range(3):
                torch.autograd.grad(logits[:, k].sum(), leaf, retain_graph=True)
        victim(x)
    assert inner == PassCount(forwards=7, backwards=15)
    assert outer == PassCount(forwards=17, backwards=15)
    assert victim.cost == outer


def test_a_backward_pass_through_a_shifted_image_counts(model: Fickle, x: Tensor) -> None:
    victim = Victim(model)
    delta = torch.zeros_like(x).requires_grad_(True)
    (victim(x + delta).sum() + victim(x - delta).sum()).backward()
    assert victim.cost == PassCount(forwards=10, backwards=10)


def test_no_backward_pass_without_a_gradient(model: Fickle, x: Tensor) -> None:
    victim = Victim(model)
    with torch.no_grad():
        victim(x.requires_grad_(True))
    assert victim.cost == PassCount(forwards=5, backwards=0)


def test_what_an_attack_spent_before_it_raised_is_counted(model: Fickle, x: Tensor) -> None:
    victim = Victim(model)
    seen: list[PassCount] = []

    def fail() -> None:
        with victim.counted() as cost:
            seen.append(cost)
            victim(x)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert seen[0].forwards == 5


def test_predicting_is_free_of_charge(model: Fickle, x: Tensor) -> None:
    victim = Victim(model)
    labels = victim.predict(x)
    assert labels.dtype == torch.int64
    assert torch.equal(labels, victim(x).argmax(1))
    assert victim.cost.forwards == 5


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (lambda x: torch.zeros(len(x)), r"shape \(5,\) for 5 images, expected logits \(5, K\)"),
        (lambda x: torch.zeros(len(x), 1), r"shape \(5, 1\)"),
        (lambda x: torch.zeros(len(x) + 1, 3), r"shape \(6, 3\)"),
        (lambda x: torch.zeros(3), r"shape \(3,\)"),
        (lambda x: torch.zeros(len(x), 3, 1), r"shape \(5, 3, 1\)"),
        (lambda x: torch.zeros(len(x), 4), "4 logits, the data set has 3 classes"),
        (lambda x: torch.zeros(len(x), 3, dtype=torch.int64), "torch.int64, expected floating-point logits"),
        (lambda x: (torch.zeros(len(x), 3),), "the model returned tuple"),
        ("no tensor", "the model returned str"),
    ],
)
def test_a_model_that_returns_no_logits(answer: object, complaint: str, x: Tensor) -> None:
    with pytest.raises(VictimError, match=complaint) as raised:
        Victim(Returns(answer), classes=3)(x)
    assert "\n" not in str(raised.value)


def test_what_a_model_raises_is_its_own_fault_but_for_memory(x: Tensor) -> None:
    for error, expected in ((KeyError("pixel"), VictimError), (torch.OutOfMemoryError("full"), torch.OutOfMemoryError)):

        def answer(images: Tensor, error: Exception = error) -> Tensor:
            raise error

        for ask in (Victim(Returns(answer)).predict, Victim(Returns(answer)).logits):
            with pytest.raises(expected):
                ask(x[:1])


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_logits_that_are_not_finite_are_no_prediction(value: float, x: Tensor) -> None:
    def answer(images: Tensor) -> Tensor:
        logits = torch.zeros(len(images), 3)
        logits[1, 2] = value
        return logits

    victim = Victim(Returns(answer))
    with pytest.raises(VictimError, match="NaN or infinite logits for 1 of 5 images"):
        victim.predict(x)
    assert victim.cost.forwards == 0


def test_gradients_do_not_depend_on_the_batch(x: Tensor) -> None:
    torch.manual_seed(0)
    victim = Victim(build_model("mlp-8", (1, 4, 4), 3))
    y = torch.tensor([0, 1, 2, 0, 1])
    values, grad, logits = input_gradient(victim, x, lambda z: F.cross_entropy(z, y, reduction="none"))
    assert victim.cost == PassCount(forwards=5, backwards=5)
    assert not any(tensor.requires_grad for tensor in (values, grad, logits, x))
    for i in range(len(x)):
        label = y[i : i + 1]
        value, alone, _ = input_gradient(
            victim, x[i : i + 1], lambda z, label=label: F.cross_entropy(z, label, reduction="none")
        )
        torch.testing.assert_close(alone[0], grad[i], rtol=1e-5, atol=1e-8)
        torch.testing.assert_close(value[0], values[i])


def test_gradients_are_there_when_the_caller_switched_them_off(model: Fickle, x: Tensor) -> None:
    with torch.no_grad():
        _, grad, _ = input_gradient(Victim(model), x, lambda z: z[:, 0])
    assert grad.abs().sum() > 0


@pytest.mark.parametrize("name", ["body.1.weight", "body.2.running_mean"])
def test_a_guarded_model_comes_back_whole(model: Fickle, x: Tensor, name: str) -> None:
    victim = Victim(model)
    before = victim(x)

    def meddle() -> None:
        with victim.guarded():
            victim.model.state_dict()[name].add_(1)
            assert not torch.equal(victim(x), before)

    with pytest.raises(ModelChangedError, match=f"changed the model it was given .{name}"):
        meddle()
    assert torch.equal(victim(x), before)


def test_a_guarded_model_is_put_back_also_when_the_block_raises(model: Fickle, x: Tensor) -> None:
    victim = Victim(model)
    before = victim(x)

    def meddle() -> None:
        with victim.guarded():
            next(victim.parameters()).data.zero_()
            raise KeyError

    with pytest.raises(KeyError):
        meddle()
    assert torch.equal(victim(x), before)


def test_modes_are_put_back_in_silence(model: Fickle, x: Tensor) -> None:
    victim = Victim(model)
    with victim.guarded():
        victim.model.eval()
        for module in victim.model.modules():
            module.training = isinstance(module, nn.Dropout)
        victim.requires_grad_(True)
        victim(x).sum().backward()
    assert not any(module.training for module in victim.modules())
    assert not any(p.requires_grad or p.grad is not None for p in victim.parameters())


def test_nan_in_an_unused_buffer_is_no_change(model: Fickle) -> None:
    model.register_buffer("unused", torch.full((2,), torch.nan))
    with Victim(model).guarded():
        pass
