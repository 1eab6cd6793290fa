from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from harness.attacks.alpha import Alpha, alpha_perturbation
from harness.attacks.class_jacobian import chunk_size, class_gradients
from harness.models.registry import build_model
from harness.selftest.linear_victim import LinearVictim
from harness.threat import EXPONENT, Threat, dual_exponent, magnitude
from harness.victims.victim import Victim
from tests.helpers.linear import worst_loss

NORMS = ("linf", "l2", "l1")


@pytest.mark.parametrize("name", ["mlp-20-20", "lenet", "resnet"])
@pytest.mark.parametrize("outputs", ["logits", "softmax"])
def test_class_gradients_are_the_jacobian(name, outputs):
    torch.manual_seed(0)
    victim = Victim(build_model(name, (1, 8, 8), 5), classes=5)
    x = torch.rand(3, 1, 8, 8)
    with victim.counted() as cost:
        values, jacobian = class_gradients(victim, x, outputs)
    assert (cost.forwards, cost.backwards) == (3, 15)
    assert values.shape == (3, 5)
    assert jacobian.shape == (3, 5, 1, 8, 8)

    def single(image):
        z = victim(image[None])[0]
        return z.softmax(0) if outputs == "softmax" else z

    for i in range(3):
        torch.testing.assert_close(values[i], single(x[i]), rtol=1e-4, atol=1e-5)
        exact = torch.autograd.functional.jacobian(single, x[i])
        torch.testing.assert_close(jacobian[i], exact, rtol=1e-3, atol=1e-5)


def test_class_gradients_across_chunks_and_without_vectorisation():
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(ctx, grad):
            (x,) = ctx.saved_tensors
            assert float(grad.sum()) == float(grad.sum())  # reading a value has no batching rule
            return 2 * x * grad

    class Stubborn(nn.Module):
        def forward(self, x):
            z = Square.apply(x).flatten(1)
            return torch.stack((z.sum(1), z[:, 0], -z.sum(1)), 1)

    victim = Victim(Stubborn(), classes=3)
    n = chunk_size(victim) + 5
    x = torch.rand(n, 1, 2, 2)
    with victim.counted() as cost:
        _, jacobian = class_gradients(victim, x)
    assert cost.backwards == 3 * n
    torch.testing.assert_close(jacobian[:, 0], 2 * x)
    torch.testing.assert_close(jacobian[:, 2], -2 * x)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("classes", [2, 5])
def test_minimal_reaches_the_nearest_boundary_of_linear_logits(norm, classes):
    victim = LinearVictim.random(classes, seed=2)
    x, y = victim.images(40)
    x_adv = Alpha(mode="minimal", outputs="logits")(victim, x, y, Threat(norm))
    inside = (x_adv - x).flatten(1).abs().amax(1) < 0.44  # an L1 step moves one pixel: it has to stay in the box
    assert inside.sum() > 10
    assert (victim.predict(x_adv) != y)[inside].all()
    ratio = (Threat(norm).distance(x, x_adv) / victim.distance(x, y, norm).double())[inside]
    assert (ratio - 1).abs().max() < 0.01


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_minimal_with_the_softmax_is_exact_for_two_classes(norm):
    victim = LinearVictim.random(2, seed=2)
    x, y = victim.images(40)
    x_adv = Alpha(mode="minimal")(victim, x, y, Threat(norm))
    assert (victim.predict(x_adv) != y).all()
    assert (Threat(norm).distance(x, x_adv) / victim.distance(x, y, norm) - 1).abs().max() < 0.01


@pytest.mark.parametrize("norm", NORMS)
def test_closed_length_is_the_linear_prediction(norm):
    victim = LinearVictim.random(4, seed=7)
    x, y = victim.images(30, spread=0.02)
    r = alpha_perturbation(victim, x, y, norm, "logits")
    torch.testing.assert_close(magnitude(r, norm), victim.distance(x, y, norm), rtol=1e-4, atol=1e-5)
    x_adv = Alpha(mode="minimal", length="closed", outputs="logits", overshoot=0.01)(victim, x, y, Threat(norm))
    assert (victim.predict(x_adv) != y).all()
    torch.testing.assert_close(x_adv, x + 1.01 * r, rtol=0, atol=1e-6)


@pytest.mark.parametrize("norm", NORMS)
def test_softmax_step_solves_its_own_linear_problem(norm):
    torch.manual_seed(1)
    victim = Victim(build_model("mlp-30", (1, 4, 4), 6), classes=6)
    x = torch.rand(25, 1, 4, 4)
    y = victim.predict(x)
    r = alpha_perturbation(victim, x, y, norm)
    alpha, jacobian = class_gradients(victim, x, "softmax")
    moved = alpha + (jacobian * r.unsqueeze(1)).flatten(2).sum(2)
    own = moved.gather(1, y[:, None]).squeeze(1)
    other = moved.scatter(1, y[:, None], -torch.inf).amax(1)
    torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-5)  # on a boundary, beyond none
    normals = jacobian.flatten(2) - jacobian.flatten(2)[torch.arange(25), y].unsqueeze(1)
    margin = alpha.gather(1, y[:, None]) - alpha
    dual = torch.linalg.vector_norm(normals, ord=dual_exponent(EXPONENT[norm]), dim=2)
    shortest = (margin / dual).scatter(1, y[:, None], torch.inf).amin(1)
    torch.testing.assert_close(magnitude(r, norm), shortest, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("norm", NORMS)
def test_budget_reaches_the_largest_loss_of_two_classes(norm):
    victim = LinearVictim.random(2, seed=3)
    x, y = victim.images(20)
    eps = {"linf": 0.05, "l2": 0.2, "l1": 0.3}[norm]
    x_adv = Alpha()(victim, x, y, Threat(norm, eps))
    torch.testing.assert_close(magnitude(x_adv - x, norm), torch.full((20,), eps), rtol=1e-4, atol=0)
    loss = F.cross_entropy(victim(x_adv), y, reduction="none")
    torch.testing.assert_close(loss, worst_loss(victim, x, y, norm, eps), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("scale", [1e2, 1e4, 1e6])
def test_saturated_victims_still_fall(scale):
    victim = LinearVictim.random(2, scale=scale)
    x, y = victim.images(20)
    x_adv = Alpha(mode="minimal")(victim, x, y, Threat("l2"))
    assert (victim.predict(x_adv) != y).all()
    assert (Threat("l2").distance(x, x_adv) / victim.distance(x, y, "l2") - 1).abs().max() < 0.01


@pytest.mark.parametrize("mode", ["budget", "minimal"])
@pytest.mark.parametrize("length", ["closed", "search"])
def test_zero_gradients_give_the_image_back(mode, length):
    layer = nn.Linear(16, 3)
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.copy_(torch.tensor([2.0, 1.0, 0.0]))
    victim = Victim(nn.Sequential(nn.Flatten(), layer), classes=3)
    x, y = torch.rand(4, 1, 4, 4), torch.zeros(4, dtype=torch.int64)
    for norm in NORMS:
        threat = Threat(norm, 0.1 if mode == "budget" else None)
        assert torch.equal(Alpha(mode=mode, length=length)(victim, x, y, threat), x)


@pytest.mark.parametrize("length", ["closed", "search"])
def test_misclassified_images_are_left_alone_by_a_minimal_attack(length):
    victim = LinearVictim.random(3)
    x, y = victim.images(5)
    assert torch.equal(Alpha(mode="minimal", length=length)(victim, x, (y + 1) % 3, Threat("l2")), x)


def test_box_is_kept_and_batches_do_not_matter():
    torch.manual_seed(0)
    victim = Victim(build_model("mlp-30", (1, 4, 4), 4), classes=4)
    x = torch.rand(12, 1, 4, 4).round()
    y = victim.predict(x)
    for attack, threat in ((Alpha(), Threat("linf", 0.3)), (Alpha(mode="minimal"), Threat("l2"))):
        whole = attack(victim, x, y, threat)
        assert whole.min() >= 0
        assert whole.max() <= 1
        single = torch.cat([attack(victim, x[i : i + 1], y[i : i + 1], threat) for i in range(12)])
        torch.testing.assert_close(whole, single, rtol=0, atol=2e-3)
        assert attack(victim, x[:0], y[:0], threat).shape == (0, 1, 4, 4)


@pytest.mark.parametrize("bad", [{"mode": "x"}, {"length": "x"}, {"outputs": "x"}, {"overshoot": -1}])
def test_bad_fields_are_refused(bad):
    with pytest.raises(ValueError, match=r"unknown|overshoot"):
        Alpha(**bad)
