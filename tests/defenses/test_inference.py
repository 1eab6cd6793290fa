"""Defenses that act while a model predicts: noise that is averaged, and blur."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from defenses import noise_injection
from defenses.gaussian_blur import GaussianBlur
from defenses.noise_injection import NoiseInjection
from harness import identity
from harness.attacks.fast_gradient import Gradient
from harness.datasets.registry import DATASETS, Dataset
from harness.errors import UserError
from harness.judging.proposal import Bench
from harness.judging.shard import run_shard
from harness.models.registry import build_model
from harness.threat import Threat
from harness.trust.probe import probe
from harness.victims.victim import Victim, VictimError


def put(trainer: Any, base: nn.Module, data: Dataset) -> nn.Module:
    model: nn.Module = trainer.fit("mlp-32", data, base=base).model
    return model


# ---------------------------------------------------------------- noise


@pytest.mark.parametrize("together", [1, 30, 10_000])
def test_noise_injection_is_the_mean_of_its_runs(
    together: int, trained: nn.Module, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many runs share a pass."""
    monkeypatch.setattr(noise_injection, "TOGETHER", together)
    model = put(NoiseInjection(sigma=0.3, runs=20), trained, digits)
    x = digits.test.x[:10]
    torch.manual_seed(1)
    mine = model(x)
    torch.manual_seed(1)
    runs = [trained(x + 0.3 * torch.randn_like(x)).softmax(1) for _ in range(20)]
    torch.testing.assert_close(mine.exp(), torch.stack(runs).mean(0), rtol=1e-4, atol=1e-6)


def test_the_gradient_is_that_of_the_mean(trained: nn.Module, digits: Dataset) -> None:
    model = put(NoiseInjection(sigma=0.2, runs=5), trained, digits)
    x = digits.test.x[:4].clone().requires_grad_(True)
    torch.manual_seed(1)
    (mine,) = torch.autograd.grad(model(x)[:, 3].sum(), x)
    torch.manual_seed(1)
    mean = torch.stack([trained(x + 0.2 * torch.randn_like(x)).softmax(1) for _ in range(5)]).mean(0)
    (expected,) = torch.autograd.grad(mean[:, 3].log().sum(), x)
    torch.testing.assert_close(mine, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("where", "noisy"), [("input", set()), ("all", {"hidden1", "hidden2"})])
def test_noise_goes_where_it_is_said_to(where: Any, noisy: set[str], digits: Dataset) -> None:
    torch.manual_seed(0)
    base = build_model("mlp-30-20", digits.info.shape, 10).eval()
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    for name, stage in base.stages.items():
        stage.register_forward_hook(
            lambda _module, args, out, name=name: seen.update({name: (args[0].detach(), out.detach())})
        )
    put(NoiseInjection(sigma=0.5, where=where, runs=1), base, digits)(digits.test.x[:50])
    for name, behind in pairwise(base.stages):
        change = seen[behind][0] - seen[name][1]
        assert float(change.std()) == pytest.approx(0.5 if name in noisy else 0.0, rel=0.1)
    assert float((seen["flatten"][0] - digits.test.x[:50]).std()) == pytest.approx(0.5, rel=0.1)


def test_noise_everywhere_needs_to_know_the_layers(digits: Dataset) -> None:
    with pytest.raises(UserError, match=r"noise-injection: where=all needs a base with hidden layers.*not Sequential"):
        put(NoiseInjection(where="all"), nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), digits)


def test_no_noise_is_the_base_and_nothing_random(trained: nn.Module, digits: Dataset) -> None:
    trainer = NoiseInjection(sigma=0.0, runs=3)
    x = digits.test.x[:20]
    torch.testing.assert_close(put(trainer, trained, digits)(x), trained(x).log_softmax(1), rtol=1e-5, atol=1e-5)
    assert not trainer.remedy.stochastic


# ---------------------------------------------------------------- judged as the paper did


def test_one_mean_is_the_label_and_asking_again_gives_the_same(trained: nn.Module, digits: Dataset) -> None:
    trainer = NoiseInjection(sigma=0.6, runs=2)
    bench = Bench.of(put(trainer, trained, digits), 10, "cpu", trainer.remedy)
    x = digits.test.x[:200]
    torch.manual_seed(3)
    expected = torch.get_rng_state()
    first, second = bench.referee.ballots(x), bench.referee.ballots(x)
    assert torch.equal(torch.get_rng_state(), expected)
    assert torch.equal(first, second)
    assert (first.sum(1) == 1).all()
    assert bench.attacked.remedy.stochastic
    assert not torch.equal(bench.attacked(x).argmax(1), bench.attacked(x).argmax(1)), "meant to change its mind"


def test_undeclared_it_is_found_out(trained: nn.Module, digits: Dataset) -> None:
    x, y = digits.test
    bench = Bench.of(put(NoiseInjection(sigma=0.6, runs=2), trained, digits), 10, "cpu")
    with pytest.raises(VictimError, match="vary from call to call"):
        run_shard(bench, Gradient(), Threat("linf", 0.1), index=torch.arange(100), x=x[:100], y=y[:100], seed=0)


def test_attacks_pay_for_every_call_of_the_model_once(trained: nn.Module, digits: Dataset) -> None:
    """The model averages by itself: no second average is put around it."""
    trainer = NoiseInjection()
    victim = Victim(put(trainer, trained, digits), classes=10, remedy=trainer.remedy)
    victim(digits.test.x[:7])
    assert victim.cost.forwards == 7


def test_the_probe_knows_that_it_draws(trained: nn.Module, digits: Dataset) -> None:
    trainer = NoiseInjection(sigma=0.4, runs=3)
    _, (x, y) = digits.test_sample(40)
    model = put(trainer, trained, digits)
    facts = probe(model, x, y, Threat("linf", 0.1), classes=10, remedy=trainer.remedy)
    assert facts.votes == 1
    assert facts.remedy == ""  # what attacks see is the model
    assert facts.stochastic.logits > 1e-3
    assert facts.seen.raw == facts.seen.attacked


# ---------------------------------------------------------------- blur


@pytest.mark.parametrize(("kernel", "sigma"), [(3, 0.8), (5, 1.1), (11, 2.0)])
def test_sigma_follows_from_the_kernel(kernel: int, sigma: float) -> None:
    info = DATASETS["mnist"]
    trainer = GaussianBlur(kernel=kernel).resolve(info)
    assert trainer.sigma == sigma
    assert identity.key(trainer) == identity.key(GaussianBlur(kernel=kernel, sigma=sigma).resolve(info))
    assert trainer.label(info) == ("gaussian-blur" if kernel == 5 else f"gaussian-blur(kernel={kernel})")
    assert GaussianBlur(kernel=kernel, sigma=0.7).label(info).endswith("sigma=0.7)")


def test_blur_is_the_gaussian_by_hand(digits: Dataset) -> None:
    """A point in the middle becomes the kernel; borders are reflected, so that a flat image stays flat."""
    model = put(GaussianBlur(kernel=5, sigma=1.1), nn.Identity(), digits)
    image = torch.zeros(1, 1, 8, 8)
    image[0, 0, 4, 4] = 1
    weights = torch.exp(-0.5 * (torch.arange(-2, 3) / 1.1) ** 2)
    weights /= weights.sum()
    blurred = model(image)
    torch.testing.assert_close(blurred[0, 0, 2:7, 2:7], weights[:, None] * weights)
    assert float(blurred.sum()) == pytest.approx(1, abs=1e-6)
    torch.testing.assert_close(model(torch.full((2, 1, 8, 8), 0.3)), torch.full((2, 1, 8, 8), 0.3))


def test_colours_are_blurred_each_for_itself(digits: Dataset) -> None:
    model = put(GaussianBlur(), nn.Identity(), digits)
    x = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(model(x)[:, 1:2], model(x[:, 1:2]))


def test_attacks_see_through_the_blur(trained: nn.Module, digits: Dataset) -> None:
    model = put(GaussianBlur(), trained, digits)
    x = digits.test.x[:5].clone().requires_grad_(True)
    (grad,) = torch.autograd.grad(model(x)[:, 0].sum(), x)
    step = 1e-3 * torch.randn_like(x)
    change = (model(x + step)[:, 0] - model(x - step)[:, 0]).detach()
    torch.testing.assert_close((2 * grad * step).flatten(1).sum(1), change, rtol=2e-2, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "settings", "complaint"),
    [
        (NoiseInjection, {"sigma": -1.0}, "noise-injection: sigma must be at least 0"),
        (NoiseInjection, {"runs": 0}, "noise-injection: runs must be at least 1"),
        (
            NoiseInjection,
            {"where": "output"},
            "unknown where for noise-injection 'output'; .*choose from input, all",
        ),
        (GaussianBlur, {"kernel": 4}, "gaussian-blur: kernel must be odd and at least 3, got 4"),
        (GaussianBlur, {"kernel": 1}, "gaussian-blur: kernel must be odd and at least 3, got 1"),
        (GaussianBlur, {"sigma": 0.0}, "gaussian-blur: sigma must be positive"),
    ],
)
def test_hyperparameters_out_of_range(kind: Any, settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        kind(**settings)


def test_a_kernel_too_large_for_the_images(trained: nn.Module, digits: Dataset) -> None:
    with pytest.raises(UserError, match=r"gaussian-blur: a kernel of 17 is too large for images of \(8, 8\)"):
        put(GaussianBlur(kernel=17), trained, digits)
