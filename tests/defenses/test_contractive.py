"""The contractive defense against its formula; see tests/training/test_jacobian_penalty.py for the norms themselves."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from defenses import defenses
from defenses.contractive import Contractive
from defenses.standard import Standard
from harness.cli.parsing import parse_defense
from harness.datasets.registry import DATASETS, Dataset
from harness.determinism import seed_everything
from harness.errors import UserError
from harness.models.registry import build_model
from harness.models.stages import Stages
from harness.training.jacobian_penalty import exact, trace
from harness.training.pretraining import Decoder, autoencoder_loss

SHAPE = (1, 8, 8)


@pytest.fixture
def batch(digits: Dataset) -> tuple[Tensor, Tensor]:
    _, (x, y) = digits.train_sample(8)
    return x, y


def net(name: str, seed: int = 0) -> Stages:
    seed_everything(seed)
    return build_model(name, SHAPE, 10).train()


def layer_norms(model: Stages, x: Tensor, *, softmax: bool = True) -> list[Tensor]:
    """Squared Frobenius norms (N,) of each layer's Jacobian by the layer below, all from autograd."""
    _, layers = trace(model, x, leaf=True)
    norms = []
    for layer in layers:
        after = layer.after.softmax(1) if softmax and layer is layers[-1] else layer.after
        rows = [
            torch.autograd.grad(unit.sum(), layer.before, create_graph=True)[0] for unit in after.flatten(1).unbind(1)
        ]
        norms.append(torch.stack(rows, 1).flatten(1).square().sum(1))
    return norms


def assert_same_update(mine: Tensor, expected: Tensor, model: nn.Module) -> None:
    torch.testing.assert_close(mine, expected)
    weights = [p for p in model.parameters() if p.requires_grad]
    found = torch.autograd.grad(mine, weights, allow_unused=True)
    wanted = torch.autograd.grad(expected, weights, allow_unused=True)
    for a, b, weight in zip(found, wanted, weights, strict=True):
        zero = torch.zeros_like(weight)
        torch.testing.assert_close(zero if a is None else a, zero if b is None else b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("output", ["softmax", "logits"])
@pytest.mark.parametrize("squared", [True, False])
@pytest.mark.parametrize("name", ["mlp-12-9", "convnet-gu"])
def test_the_objective_is_equation_6(name: str, squared: bool, output: Any, batch: Any) -> None:
    x, y = batch
    model = net(name)
    count = len(trace(model, x)[1])
    weights = tuple(0.3 / (number + 1) for number in range(count))
    mine = Contractive(epochs=1, weight=weights, squared=squared, output=output).loss(model, x, y)
    norms = layer_norms(model, x, softmax=output == "softmax")
    if not squared:
        norms = [norm.sqrt() for norm in norms]
    penalty = sum(weight * norm.mean() for weight, norm in zip(weights, norms, strict=True))
    assert_same_update(mine.value, F.cross_entropy(model(x), y) + penalty, model)
    assert torch.equal(mine.logits, model(x))


@pytest.mark.parametrize("output", ["softmax", "logits"])
@pytest.mark.parametrize("squared", [True, False])
def test_the_exact_penalty_is_equation_5(squared: bool, output: Any, batch: Any) -> None:
    x, y = batch
    model = net("mlp-12-9")
    mine = Contractive(epochs=1, weight=0.2, squared=squared, penalty="exact", output=output).loss(model, x, y)
    leaf = x.clone().requires_grad_(True)
    logits = model(leaf)
    norms = exact(leaf, logits.softmax(1) if output == "softmax" else logits)
    assert_same_update(
        mine.value, F.cross_entropy(logits, y) + 0.2 * (norms if squared else norms.sqrt()).mean(), model
    )


def test_one_weight_is_the_same_for_every_layer(batch: Any) -> None:
    x, y = batch
    model = net("mlp-12-9")
    one, each = (Contractive(epochs=1, weight=weight).loss(model, x, y).value for weight in (0.2, (0.2,) * 3))
    assert torch.equal(one, each)


@pytest.mark.parametrize("penalty", ["layers", "exact"])
def test_no_weight_is_plain_training(penalty: Any, batch: Any) -> None:
    x, y = batch
    model = net("mlp-12-9")
    mine = Contractive(epochs=1, weight=0.0, penalty=penalty).loss(model, x, y)
    assert_same_update(mine.value, F.cross_entropy(model(x), y), model)


def test_an_unsquared_norm_of_zero_has_a_gradient(batch: Any) -> None:
    """All units off: the norms are zero, where the root has no slope."""
    x, y = batch
    model = net("mlp-6")
    with torch.no_grad():
        model.stages["hidden1"][0].bias.fill_(-1e3)  # type: ignore[index]
    mine = Contractive(epochs=1, weight=1.0, squared=False).loss(model, x, y)
    mine.value.backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_the_estimated_penalty_of_a_residual_network(batch: Any) -> None:
    """Its mean over draws is the penalty from whole Jacobians; eval mode, so that no batch statistics move."""
    x, y = batch
    model = net("resnet").eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    plain = F.cross_entropy(model(x), y)
    trainer = Contractive(epochs=1, weight=(0.0, 0.0, 0.0, 0.0, 1.0), draws=300)
    mine = trainer.loss(model, x, y).value - plain
    _, layers = trace(model, x)
    after = layers[-1].after.softmax(1)
    rows = [torch.autograd.grad(unit.sum(), layers[-1].before, retain_graph=True)[0] for unit in after.unbind(1)]
    expected = torch.stack(rows, 1).flatten(1).square().sum(1).mean()
    torch.testing.assert_close(mine.detach(), expected, rtol=0.1, atol=0)


@pytest.mark.parametrize("where", ["input", "all"])
def test_noise_enters_the_layers_and_the_norms_are_taken_there(where: Any, batch: Any) -> None:
    x, y = batch
    model = net("mlp-12-9")
    trainer = Contractive(epochs=1, weight=0.3, sigma=0.5, where=where)
    torch.manual_seed(7)
    mine = trainer.loss(model, x, y)
    torch.manual_seed(7)
    images = x + 0.5 * torch.randn_like(x)
    h1 = model.stages["hidden1"](images.flatten(1))
    into2 = h1 + 0.5 * torch.randn_like(h1) if where == "all" else h1
    h2 = model.stages["hidden2"](into2)
    into3 = h2 + 0.5 * torch.randn_like(h2) if where == "all" else h2
    z = model.stages["logits"](into3)
    torch.testing.assert_close(mine.logits, z)
    # the norms by hand, from weights and gates
    w1, w2, w3 = (p for p in model.parameters() if p.dim() == 2)
    p = z.softmax(1)
    jacobian = (torch.diag_embed(p) - p[:, :, None] * p[:, None, :]) @ w3
    norms = (h1 > 0).float() @ w1.square().sum(1) + (h2 > 0).float() @ w2.square().sum(1)
    norms = norms + jacobian.square().sum((1, 2))
    assert_same_update(mine.value, F.cross_entropy(z, y) + 0.3 * norms.mean(), model)


@pytest.mark.parametrize("squared", [True, False])
def test_the_encoder_is_a_contractive_autoencoders(squared: bool, batch: Any) -> None:
    """Eq. 4, with the norm of a sigmoid layer as Rifai et al. (2011) write it: sum (h (1 - h))^2 sum w^2."""
    x, _ = batch
    model = net("ae-400")
    stage, flat = model.stages["hidden1"], x.flatten(1)
    decoder = Decoder(stage, flat)
    mine = Contractive(epochs=1, weight=(0.3, 0.7), squared=squared).reconstruction(model, "hidden1", decoder, flat)
    h = stage(flat)
    norms = ((h * (1 - h)).square() * stage[0].weight.square().sum(1)).sum(1)  # type: ignore[index]
    penalty = 0.3 * (norms if squared else norms.sqrt()).mean()
    assert_same_update(mine, autoencoder_loss(decoder, h, flat) + penalty, nn.ModuleList([stage, decoder]))


def test_a_frozen_layer_is_not_penalised_again(batch: Any) -> None:
    x, y = batch
    model = net("ae-400")
    mine = Contractive(epochs=1, weight=0.5).loss(model, x, y)
    assert_same_update(
        mine.value, F.cross_entropy(model(x), y) + 0.5 * layer_norms(model, x)[1].mean(), model.stages["logits"]
    )


def test_a_fine_tuned_layer_is_penalised_as_the_others_are(batch: Any) -> None:
    """Eq. 6 sums over all layers that are trained."""
    x, y = batch
    model = net("ae-400")
    mine = Contractive(epochs=1, weight=0.5, fine_tuned=True).loss(model, x, y)
    both = sum(norms.mean() for norms in layer_norms(model, x))
    assert_same_update(mine.value, F.cross_entropy(model(x), y) + 0.5 * both, model)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"weight": -1e-3}, "contractive: weight must be at least 0, got -0.001"),
        ({"weight": (0.1, -0.1)}, "contractive: weight must be at least 0"),
        ({"weight": (0.1, math.nan)}, "contractive: weight must be at least 0"),
        ({"weight": (0.1, math.inf)}, "contractive: weight must be at least 0"),
        ({"weight": math.nan}, "contractive: weight must be finite"),
        ({"weight": (0.1, 0.1), "penalty": "exact"}, "contractive: weight must be one number for the exact penalty"),
        ({"draws": 0}, "contractive: draws must be at least 1"),
        ({"sigma": -0.1}, "contractive: sigma must be at least 0"),
        ({"penalty": "layer"}, "unknown penalty for contractive 'layer'; did you mean layers.*choose from"),
        ({"output": "logit"}, "unknown output for contractive 'logit'; did you mean logits"),
        ({"where": "hidden"}, "unknown where for contractive 'hidden'; choose from input, all"),
    ],
)
def test_hyperparameters_out_of_range(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint) as raised:
        Contractive(**settings)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("name", "layers"), [("mlp-12-9", 3), ("ae-400", 2)])
def test_weights_are_as_many_as_layers(name: str, layers: int, digits: Dataset) -> None:
    small = replace(digits, x_train=digits.x_train[:20], y_train=digits.y_train[:20])
    with pytest.raises(UserError, match=f"contractive: weight must be one number or {layers}, one a layer, got 4"):
        Contractive(epochs=1, weight=(0.1,) * 4).fit(name, small)


def test_weights_by_layer_from_the_command_line() -> None:
    found = parse_defense("contractive:weight=1e-3/1e-4/0,squared=false", defenses())
    assert found == Contractive(weight=(1e-3, 1e-4, 0.0), squared=False)
    assert found.label(DATASETS["digits"]) == "contractive(weight=0.001/0.0001/0, squared=False)"
    assert parse_defense("contractive:weight=0.5", defenses()) == Contractive(weight=0.5)
    with pytest.raises(UserError, match="contractive: weight must be a number, got 'x'"):
        parse_defense("contractive:weight=1/x", defenses())


@pytest.mark.parametrize("penalty", ["layers", "exact"])
def test_training_contracts(penalty: Any, digits: Dataset) -> None:
    """What is penalised falls, far below plain training's, while the digits are still learned."""
    x = digits.test.x[:100]

    def fit(trainer: Standard | Contractive) -> tuple[float, float]:
        seed_everything(0)
        model = trainer.fit("mlp-32", digits).model
        assert isinstance(model, Stages)
        leaf = x.clone().requires_grad_(True)
        slope = exact(leaf, model(leaf)).sqrt().mean()
        accuracy = (model(digits.test.x).argmax(1) == digits.test.y).float().mean()
        return slope.item(), accuracy.item()

    plain, _ = fit(Standard(epochs=15, lr=5e-3))
    contractive, accuracy = fit(
        Contractive(
            epochs=15, lr=5e-3, weight=0.01, penalty=penalty, output="logits" if penalty == "exact" else "softmax"
        )
    )
    assert contractive < 0.7 * plain
    assert accuracy > 0.9
