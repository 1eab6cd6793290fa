from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from defenses.learning_with_adversary import LearningWithAdversary, LearningWithAdversaryRepresentation
from defenses.standard import Standard
from harness.attacks.line_search import log_odds
from harness.datasets.registry import DATASETS, Dataset
from harness.determinism import seed_everything
from harness.errors import UserError
from harness.models.registry import build_model
from harness.models.stages import Stages
from harness.threat import EXPONENT, magnitude, steepest

SHAPE = (1, 8, 8)
NORMS = ("l2", "linf", "l1")
ADVERSARIES = ("likelihood", "misclassification")
EPS = 0.3


@pytest.fixture
def model() -> Stages:
    seed_everything(0)
    return build_model("mlp-12-9", SHAPE, 10).train()


@pytest.fixture
def batch(digits: Dataset) -> tuple[Tensor, Tensor]:
    _, (x, y) = digits.train_sample(20)
    return x, y


def softmax_jacobian(model: Stages, x: Tensor) -> tuple[Tensor, Tensor]:
    """alpha (N, K) and T (N, K, D), image by image in double precision."""
    model = model.double()

    def alpha(image: Tensor) -> Tensor:
        return model(image[None])[0].softmax(0)

    rows = [torch.autograd.functional.jacobian(alpha, image) for image in x.double()]
    values = torch.stack([alpha(image) for image in x.double()]).detach()
    model.float()
    return values, torch.stack(rows).flatten(2)  # type: ignore[arg-type]


# ---------------------------------------------------------------- algorithm 2


@pytest.mark.parametrize("norm", NORMS)
def test_the_likelihood_adversary_maximises_the_linearised_loss(norm: Any, model: Stages, batch: Any) -> None:
    x, y = batch
    r = LearningWithAdversary(norm=norm, eps=EPS).perturbation(model, x, y).flatten(1).double()
    torch.testing.assert_close(magnitude(r, norm), torch.full((20,), EPS, dtype=torch.float64), rtol=1e-5, atol=0)
    _, jacobian = softmax_jacobian(model, x)
    own = jacobian[torch.arange(20), y]
    lowered = (own * r).sum(1)
    dual = {"l2": own.norm(dim=1), "linf": own.abs().sum(1), "l1": own.abs().amax(1)}[norm]
    torch.testing.assert_close(lowered, -EPS * dual, rtol=1e-4, atol=0)  # section 3.1.1: c times the dual norm
    others = torch.randn(500, 20, own.shape[1], dtype=torch.float64)
    others[:250] = r + 0.05 * EPS * others[:250]  # half of them close by
    others = others / torch.linalg.vector_norm(others, ord=EXPONENT[norm], dim=2, keepdim=True)
    assert ((own * EPS * others).sum(2) > lowered).all()


@pytest.mark.parametrize("norm", NORMS)
def test_the_misclassification_adversary_is_algorithm_1_by_hand(norm: Any, model: Stages, batch: Any) -> None:
    x, y = batch
    y = y.clone()
    y[:10] = model(x[:10]).argmax(1)  # right and wrong ones
    r = LearningWithAdversary(adversary="misclassification", norm=norm, eps=EPS).perturbation(model, x, y)
    alpha, jacobian = softmax_jacobian(model, x)
    expected = []
    for a, t, j in zip(alpha, jacobian, y.tolist(), strict=True):
        normals = t - t[j]
        q = {"l2": 2.0, "linf": 1.0, "l1": float("inf")}[norm]
        lengths = (a[j] - a).abs() / torch.linalg.vector_norm(normals, ord=q, dim=1)
        lengths[j] = torch.inf
        expected.append(EPS * steepest(normals[lengths.argmin()][None], EXPONENT[norm])[0])
    torch.testing.assert_close(r.flatten(1).double(), torch.stack(expected), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("adversary", ADVERSARIES)
def test_the_objective_is_the_loss_at_the_pseudo_samples(adversary: Any, model: Stages, batch: Any) -> None:
    x, y = batch
    trainer = LearningWithAdversary(adversary=adversary, eps=EPS)
    kept = x.clone()
    mine = trainer.loss(model, x, y)
    assert torch.equal(x, kept)
    moved = x + trainer.perturbation(model, x, y)
    assert moved.min() < 0  # not clipped
    assert not moved.requires_grad
    expected = F.cross_entropy(model(moved), y)
    torch.testing.assert_close(mine.value, expected)
    parameters = list(model.parameters())
    for a, b in zip(
        torch.autograd.grad(mine.value, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        torch.testing.assert_close(a, b)
    assert mine.value > F.cross_entropy(model(x), y)


@pytest.mark.parametrize("adversary", ADVERSARIES)
@pytest.mark.parametrize("norm", NORMS)
def test_line_5_measures_every_direction_in_l2(norm: Any, adversary: Any, model: Stages, batch: Any) -> None:
    x, y = batch
    own = LearningWithAdversary(norm=norm, eps=EPS, adversary=adversary).perturbation(model, x, y)
    euclidean = LearningWithAdversary(norm=norm, eps=EPS, adversary=adversary, euclidean=True)
    r = euclidean.perturbation(model, x, y)
    torch.testing.assert_close(magnitude(r, "l2"), torch.full((20,), EPS))
    torch.testing.assert_close(F.cosine_similarity(r.flatten(1), own.flatten(1)), torch.ones(20))


@pytest.mark.parametrize("adversary", ADVERSARIES)
@pytest.mark.parametrize("euclidean", [False, True])
def test_flat_networks_are_left_unperturbed(adversary: Any, euclidean: bool, batch: Any) -> None:
    x, y = batch
    flat = build_model("mlp-4", SHAPE, 10)
    with torch.no_grad():
        for value in flat.parameters():
            value.zero_()
    trainer = LearningWithAdversary(adversary=adversary, eps=EPS, euclidean=euclidean)
    assert torch.equal(trainer.perturbation(flat, x, y), torch.zeros_like(x))


def test_a_saturated_network_still_has_an_adversary(model: Stages, batch: Any) -> None:
    """In float32 the gradient of the cross-entropy is rounded away long before its direction is."""
    x, _ = batch
    with torch.no_grad():
        model.stages["logits"].weight.mul_(1e6)
    y = model(x).argmax(1)
    leaf = x.clone().requires_grad_(True)
    (grad,) = torch.autograd.grad(F.cross_entropy(model(leaf), y), leaf)
    assert not grad.any()
    r = LearningWithAdversary(eps=0.01).perturbation(model, x, y)
    torch.testing.assert_close(magnitude(r, "l2"), torch.full((20,), 0.01))
    assert (log_odds(model(x + r), y) > log_odds(model(x), y)).all()


def test_with_no_room_it_is_plain_training(model: Stages, batch: Any) -> None:
    x, y = batch
    mine = LearningWithAdversary(eps=0.0).loss(model, x, y).value
    torch.testing.assert_close(mine, Standard().loss(model, x, y).value)


# ---------------------------------------------------------------- algorithm 3


def test_both_halves_get_the_gradient_of_algorithm_3(batch: Any) -> None:
    """A net of two layers, with forward and backward propagation written out."""
    x, y = batch
    seed_everything(1)
    model = build_model("mlp-15", SHAPE, 10).double()
    x = x.double()
    hidden, logits = model.stages["hidden1"][0], model.stages["logits"]  # type: ignore[index]
    loss = LearningWithAdversaryRepresentation(eps=EPS).loss(model, x, y)
    names = [hidden.weight, hidden.bias, logits.weight, logits.bias]
    mine = torch.autograd.grad(loss.value, names)

    with torch.no_grad():
        flat, onehot = x.flatten(1), F.one_hot(y, 10).double()
        before = flat @ hidden.weight.T + hidden.bias
        h = before.clamp(min=0)
        alpha = (h @ logits.weight.T + logits.bias).softmax(1)
        own = (alpha * onehot).sum(1, keepdim=True) * ((onehot - alpha) @ logits.weight)  # T_y
        r = -EPS * own / own.norm(dim=1, keepdim=True)
        z = (h + r) @ logits.weight.T + logits.bias
        delta = (z.softmax(1) - onehot) / len(x)
        lower = (delta @ logits.weight) * (before > 0)
        expected = [lower.T @ flat, lower.sum(0), delta.T @ (h + r), delta.sum(0)]
        value = -(z.log_softmax(1) * onehot).sum(1).mean()
    torch.testing.assert_close(loss.value, value)
    torch.testing.assert_close(loss.logits, z)
    for a, b in zip(mine, expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("adversary", ADVERSARIES)
@pytest.mark.parametrize(
    ("architecture", "stage", "hidden"),
    [("mlp-12-9", "first", "hidden1"), ("mlp-12-9", "hidden2", "hidden2"), ("lenet", "first", "conv1"),
     ("lenet", "hidden1", "hidden1"), ("resnet", "group1", "group1")],
)  # fmt: skip
@pytest.mark.parametrize("norm", NORMS)
def test_the_chosen_stage_is_moved_by_eps(
    architecture: str, stage: str, hidden: str, adversary: Any, norm: Any, batch: Any
) -> None:
    x, y = batch
    seed_everything(0)
    model = build_model(architecture, SHAPE, 10).eval()
    outputs: dict[str, Tensor] = {}

    def keep(name: str, output: Tensor) -> Tensor:
        outputs[name] = output
        return output

    model(x, tap=keep)
    trainer = LearningWithAdversaryRepresentation(adversary=adversary, stage=stage, norm=norm, eps=EPS)
    loss = trainer.loss(model, x, y)

    def move(name: str, output: Tensor) -> Tensor:
        return output + moved if name == hidden else output

    names = list(model.stages)

    def upper(value: Tensor) -> Tensor:
        for name in names[names.index(hidden) + 1 :]:
            value = model.stages[name](value)
        return value

    moved = trainer.perturbation(upper, outputs[hidden], y)
    torch.testing.assert_close(magnitude(moved, norm), torch.full((20,), EPS), rtol=1e-4, atol=0)
    torch.testing.assert_close(loss.logits, model(x, tap=move))


def test_the_lower_half_is_passed_once_and_the_upper_twice(model: Stages, batch: Any) -> None:
    calls: list[str] = []
    for name, stage in model.stages.items():
        stage.register_forward_hook(lambda *_, name=name: calls.append(name))
    LearningWithAdversaryRepresentation(eps=EPS).loss(model, *batch)
    assert calls == ["flatten", "hidden1", "hidden2", "logits", "hidden2", "logits"]
    calls.clear()
    LearningWithAdversary(eps=EPS).loss(model, *batch)
    assert calls == list(model.stages) * 2


@pytest.mark.parametrize("stage", ["hidden7", "logits", ""])
def test_a_stage_that_cannot_be_perturbed(stage: str, model: Stages, batch: Any) -> None:
    with pytest.raises(
        UserError, match=r"unknown stage for learning-with-adversary-rep.*choose from first, flatten, hid"
    ):
        LearningWithAdversaryRepresentation(stage=stage, eps=EPS).loss(model, *batch)


# ---------------------------------------------------------------- both


@pytest.mark.parametrize("kind", [LearningWithAdversary, LearningWithAdversaryRepresentation])
@pytest.mark.parametrize("adversary", ADVERSARIES)
def test_three_steps_lower_the_objective(kind: Any, adversary: Any, digits: Dataset) -> None:
    seed_everything(0)
    _, (x, y) = digits.train_sample(128)
    model = build_model("mlp-64", SHAPE, 10).train()
    trainer = kind(adversary=adversary, eps=EPS, lr=5e-3)
    optimizer = torch.optim.Adam(model.parameters(), lr=trainer.lr)
    losses = [trainer.step(model, optimizer, x.clone(), y).value.item() for _ in range(3)]
    losses.append(trainer.loss(model, x, y).value.item())
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.95 * losses[0]


@pytest.mark.parametrize("kind", [LearningWithAdversary, LearningWithAdversaryRepresentation])
def test_declarations(kind: Any) -> None:
    for info in DATASETS.values():
        for norm in NORMS:
            assert kind(norm=norm).resolve(info).eps == info.eps[norm]
    assert kind(eps=0.7).resolve(DATASETS["mnist"]).eps == 0.7
    for bad, complaint in (
        ({"eps": -0.1}, "eps must be at least 0"),
        ({"eps": float("nan")}, "eps must be finite"),
        ({"norm": "l0"}, "unknown norm"),
        ({"adversary": "likely"}, "unknown adversary.*did you mean likelihood"),
    ):
        with pytest.raises(UserError, match=complaint):
            kind(**bad)


def test_it_is_worth_it(digits: Dataset) -> None:
    """Against Adv_Loss on the model itself, training with adversary beats plain training by far."""
    _, (x, y) = digits.test_sample(300)
    robust = {}
    for trainer in (Standard(epochs=20, lr=5e-3), LearningWithAdversary(epochs=20, lr=5e-3, eps=1.0)):
        seed_everything(0)
        model = trainer.fit("mlp-64", digits).model
        x_adv = (x + LearningWithAdversary(eps=1.0).perturbation(model, x, y)).clamp(0, 1)
        robust[trainer.name] = float((model(x_adv).argmax(1) == y).float().mean())
    assert robust["learning-with-adversary"] > robust["standard"] + 0.2
