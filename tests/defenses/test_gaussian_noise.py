from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from defenses.gaussian_noise import GaussianNoise
from harness.datasets.registry import Dataset
from harness.determinism import seed_everything
from harness.errors import UserError
from harness.identity import canonical, key
from harness.models.registry import build_model
from harness.training.noise import hidden_noise, noisy
from harness.training.pretraining import Decoder, autoencoder_loss

SHAPE = (1, 8, 8)


@pytest.fixture
def batch(digits: Dataset) -> tuple[Tensor, Tensor]:
    _, (x, y) = digits.train_sample(30)
    return x, y


@pytest.mark.parametrize(("where", "hidden"), [("input", 0.0), ("all", 0.3)])
def test_noise_is_as_large_on_every_layer_that_it_is_on(where: Any, hidden: float, batch: Any) -> None:
    """On the image, or on the image and what leaves each hidden stage; the logits are left alone."""
    x, y = batch
    seed_everything(0)
    model = build_model("mlp-400-300", SHAPE, 10)
    entered: dict[str, Tensor] = {}
    left: dict[str, Tensor] = {"images": x}

    def watch(name: str, stage: nn.Module) -> None:
        def note(_module: nn.Module, args: tuple[Tensor], out: Tensor) -> None:
            entered[name], left[name] = args[0], out

        stage.register_forward_hook(note)

    for name, stage in model.stages.items():
        watch(name, stage)
    mine = GaussianNoise(epochs=1, sigma=0.3, where=where).loss(model, x, y)
    for into, out_of, size in (
        ("flatten", "images", 0.3),
        ("hidden2", "hidden1", hidden),
        ("logits", "hidden2", hidden),
    ):
        noise = entered[into] - left[out_of]
        assert noise.std().item() == pytest.approx(size, rel=0.05)
        assert abs(noise.mean().item()) < 0.02
    assert torch.equal(mine.logits, left["logits"])
    torch.testing.assert_close(mine.value, F.cross_entropy(left["logits"], y))


def test_no_noise_draws_nothing(batch: Any) -> None:
    x, _ = batch
    model = build_model("mlp-4", SHAPE, 10)
    torch.manual_seed(0)
    assert noisy(x, 0.0) is x
    assert hidden_noise(model, 0.0, "all") is None
    after = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(after, torch.rand(1))


def test_noise_makes_a_denoising_autoencoder(batch: Any) -> None:
    """The encoder sees the noisy image, the decoder is to give the clean one."""
    x, _ = batch
    model = build_model("ae-400", SHAPE, 10)
    stage, flat = model.stages["hidden1"], x.flatten(1)
    decoder = Decoder(stage, flat)
    torch.manual_seed(2)
    mine = GaussianNoise(epochs=1, sigma=0.4).reconstruction(model, "hidden1", decoder, flat)
    torch.manual_seed(2)
    corrupted = flat + 0.4 * torch.randn_like(flat)
    torch.testing.assert_close(mine, autoencoder_loss(decoder, stage(corrupted), flat))


def test_the_place_counts_where_it_is_not_the_input() -> None:
    assert "where" not in canonical(GaussianNoise())
    assert key(GaussianNoise(where="all")) != key(GaussianNoise())
    with pytest.raises(UserError, match=r"unknown where for gaussian-noise 'output'; .*choose from input, all"):
        GaussianNoise(where="output")  # type: ignore[arg-type]
