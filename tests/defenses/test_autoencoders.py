"""Autoencoders before a classifier: what they learn, what they are built upon, and what becomes of them on disk."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from defenses.adversarial_autoencoder import AdversarialAutoencoder
from defenses.denoising_autoencoder import DenoisingAutoencoder
from defenses.gaussian_blur import GaussianBlur
from defenses.stacked import Stacked
from defenses.standard import Standard
from harness.attacks.lbfgs import LBFGS
from harness.datasets.registry import Dataset
from harness.determinism import seed_everything
from harness.errors import UserError
from harness.models.purifier import Autoencoder, Purified, purifier
from harness.models.registry import build_model
from harness.planning.specs import ModelSpec
from harness.records.checkpoints import load_base, load_model, save_model
from harness.records.home import Home
from harness.threat import Threat
from harness.training.defense import Diverged, Trained
from harness.training.reconstruction import Reconstruction
from harness.victims.adaptation import Remedy
from harness.victims.victim import Victim
from tests.helpers.boards import card as made_card


def few(data: Dataset, n: int = 200) -> Dataset:
    return replace(data, x_train=data.x_train[:n], y_train=data.y_train[:n])


def fit(trainer: Reconstruction, data: Dataset, base: nn.Module, seed: int = 0, **more: Any) -> Trained:
    seed_everything(seed)
    return trainer.fit("mlp-32", data, base=base, **more)


# ---------------------------------------------------------------- the parts


def test_the_paper_s_autoencoder() -> None:
    model = Autoencoder((1, 28, 28))
    sizes = [layer.weight.shape for layer in model.layers if isinstance(layer, nn.Linear)]
    assert sizes == [(256, 784), (128, 256), (256, 128), (784, 256)]


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 7)])
def test_images_come_out_as_images(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    x = 5 * torch.randn(4, *shape)
    out = Autoencoder(shape)(x)
    assert out.shape == x.shape
    assert out.min() >= 0
    assert out.max() <= 1


def test_a_purified_model_is_one_network(trained: nn.Module, digits: Dataset) -> None:
    torch.manual_seed(0)
    front = Autoencoder(digits.info.shape)
    model = Purified(front, trained)
    x = digits.test.x[:5].clone().requires_grad_(True)
    assert torch.equal(model(x), trained(front(x)))
    (grad,) = torch.autograd.grad(model(x).sum(), x)
    assert (grad != 0).flatten(1).any(1).all()
    Victim(model, remedy=Remedy(stand_ins=(("front", "identity"),)))(x)  # the part has a name


def test_training_mode_reaches_the_front_alone(digits: Dataset) -> None:
    model = Purified(nn.Dropout(), build_model("resnet", digits.info.shape, 10))
    assert model.train() is model
    assert model.front.training
    assert not any(part.training for part in model.base.modules())
    assert not model.eval().front.training


def test_a_purifier_is_taken_from_a_purified_model(trained: nn.Module) -> None:
    front = Autoencoder((1, 8, 8))
    assert purifier(Purified(front, trained), "x") is front
    with pytest.raises(UserError, match="mlp-32 standard has no purifier to put in front"):
        purifier(trained, "mlp-32 standard")


# ---------------------------------------------------------------- training


def test_the_history_is_of_the_reconstruction(trained: nn.Module, digits: Dataset) -> None:
    told: list[tuple[int, int, dict[str, float]]] = []
    trainer = DenoisingAutoencoder(epochs=3)
    model, history = fit(trainer, few(digits), trained, progress=lambda *line: told.append(line))  # type: ignore[arg-type]
    assert [line.epoch for line in history] == [1, 2, 3]
    assert history[2].loss < history[0].loss < 0.8  # log 2 = 0.69 is that of an output of one half everywhere
    assert all(math.isnan(line.validation_loss) for line in history)
    assert told[-1] == (3, 3, {"loss": history[-1].loss, "accuracy": history[-1].accuracy})
    x, y = few(digits).train
    assert history[-1].accuracy == pytest.approx(float((model(x).argmax(1) == y).double().mean()))


@pytest.mark.parametrize("kind", [AdversarialAutoencoder, DenoisingAutoencoder])
def test_the_seed_fixes_the_autoencoder(kind: type[Reconstruction], trained: nn.Module, digits: Dataset) -> None:
    def weights(seed: int) -> Tensor:
        model = fit(kind(epochs=1), few(digits, 60), trained, seed).model
        return torch.cat([value.flatten() for value in model.state_dict().values()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_noise_is_fresh_and_of_its_size() -> None:
    torch.manual_seed(0)
    trainer, x = DenoisingAutoencoder(sigma=0.3), torch.rand(100, 1, 8, 8)
    first, second = trainer.corrupt(x) - x, trainer.corrupt(x) - x
    assert float(first.std()) == pytest.approx(0.3, rel=0.05)
    assert not torch.equal(first, second)
    assert trainer.corrupt(torch.ones(9, 1, 2, 2)).max() > 1  # not clipped


def test_what_a_denoiser_wants_is_the_clean_image(trained: nn.Module, digits: Dataset) -> None:
    seen, wanted = DenoisingAutoencoder().examples(trained, few(digits), "cpu")
    assert torch.equal(seen, few(digits).train.x)
    assert torch.equal(wanted, seen)


def test_adversarial_images_and_clean_ones_become_clean(trained: nn.Module, digits: Dataset) -> None:
    data = few(digits)
    seed_everything(0)
    seen, wanted = AdversarialAutoencoder(images=80).examples(trained, data, "cpu")
    x = data.train.x
    assert len(seen) == len(wanted) == 80 + 200
    assert torch.equal(seen[80:], x)
    assert torch.equal(wanted[80:], x)
    chosen = (wanted[:80, None] == x).flatten(2).all(2)
    assert chosen.any(1).all()  # training images, each attacked once
    assert chosen.any(0).sum() == 80
    y = data.y_train[chosen.double().argmax(1)]
    right = trained(wanted[:80]).argmax(1) == y
    assert float((trained(seen[:80]).argmax(1) != y)[right].double().mean()) > 0.95
    assert (seen >= 0).all()
    assert (seen <= 1).all()


@pytest.mark.parametrize("target", ["random", "second"])
def test_the_autoencoder_learns_from_the_adversarials_that_it_is_asked_for(
    target: Any, trained: nn.Module, digits: Dataset
) -> None:
    """Section 3.2: one procedure for training and test images, with the targets and the error rate of section 2.1."""
    data = few(digits)
    seed_everything(0)
    seen, wanted = AdversarialAutoencoder(images=40, target=target, error_rate=0.9).examples(trained, data, "cpu")
    seed_everything(0)
    chosen = torch.randperm(200)[:40]
    victim, x, y = Victim(trained, classes=10), data.train.x[chosen], data.y_train[chosen]
    attack = LBFGS(c="dataset", target=target, error_rate=0.9).prepare(victim, x, y)
    assert torch.equal(wanted[:40], x)
    assert torch.equal(seen[:40], attack.run(victim, x, y, Threat("l2", None)))


def test_more_images_than_there_are_means_all(trained: nn.Module, digits: Dataset) -> None:
    assert len(AdversarialAutoencoder().examples(trained, few(digits, 60), "cpu").seen) == 120


@pytest.mark.parametrize("kind", [AdversarialAutoencoder, DenoisingAutoencoder])
def test_most_adversarial_images_are_recovered(kind: type[Reconstruction], trained: nn.Module, digits: Dataset) -> None:
    """On images that neither network was trained on, attacked through the classifier alone (section 3.2)."""
    model = fit(kind(lr=2e-3), digits, trained).model
    _, (x, y) = digits.test_sample(200)
    victim = Victim(trained, classes=10)
    _, train = digits.train_sample(200)
    attack = LBFGS(c="dataset").prepare(victim, *train)
    x_adv = attack.run(victim, x, y, Threat("l2", None))
    wrong = trained(x_adv).argmax(1) != y
    assert wrong.double().mean() > 0.9
    assert float((model(x_adv).argmax(1) != y)[wrong].double().mean()) < 0.4
    assert float((model(x).argmax(1) == y).double().mean()) > 0.85


def test_divergence_is_reported(trained: nn.Module, digits: Dataset) -> None:
    with pytest.raises(
        Diverged, match=r"denoising-autoencoder: the reconstruction loss of epoch 1 became .*; try a lower lr"
    ):
        fit(DenoisingAutoencoder(epochs=3, lr=1e30, optimizer="sgd"), few(digits), trained)


@pytest.mark.parametrize(
    ("kind", "settings", "complaint"),
    [
        (AdversarialAutoencoder, {"images": 0}, "adversarial-autoencoder: images must be at least 1, got 0"),
        (DenoisingAutoencoder, {"sigma": -0.1}, "denoising-autoencoder: sigma must be at least 0, got -0.1"),
        (DenoisingAutoencoder, {"momentum": 0.5}, "denoising-autoencoder: momentum means nothing to adam"),
    ],
)
def test_hyperparameters_out_of_range(kind: Any, settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        kind(**settings)


# ---------------------------------------------------------------- one network's autoencoder before another


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home").create()


def test_an_autoencoder_goes_before_another_network(home: Home, digits: Dataset) -> None:
    """Table 3: trained once for one network, put in front of another, and both found again on disk."""
    info, standard = digits.info, Standard(epochs=1)
    one = ModelSpec(dataset="digits", architecture="mlp-6", defense=standard)
    two = replace(one, architecture="mlp-7")
    cleaner = replace(one, defense=DenoisingAutoencoder(epochs=1), base=one)
    stack = replace(two, defense=Stacked(), base=two, front=cleaner)
    torch.manual_seed(0)
    nets = {spec: standard.build(spec.architecture, info).eval() for spec in (one, two)}
    for spec, net in nets.items():
        save_model(home, spec, net, made_card())
    cleaned = cleaner.defense.build("mlp-6", info, nets[one]).eval()
    save_model(home, cleaner, cleaned, made_card())
    base = load_base(home, stack, info)
    stacked = stack.defense.fit("mlp-7", digits, base=base).model
    save_model(home, stack, stacked, made_card())
    x = digits.test.x[:9]
    expected = nets[two](purifier(cleaned, "")(x))
    assert torch.equal(stacked(x), expected)
    assert torch.equal(load_model(home, stack, info)(x), expected)
    with pytest.raises(UserError, match="mlp-6 standard seed 0 has no purifier to put in front"):
        load_base(home, replace(stack, front=one), info)


def test_a_blur_is_a_purifier_too(digits: Dataset, trained: nn.Module) -> None:
    blurred = GaussianBlur().fit("mlp-32", digits, base=trained).model
    model = Stacked().fit("mlp-32", digits, base=Purified(purifier(blurred, ""), trained)).model
    assert torch.equal(model(digits.test.x[:3]), blurred(digits.test.x[:3]))


def test_stacking_without_a_purifier(trained: nn.Module, digits: Dataset) -> None:
    with pytest.raises(UserError, match="stacked: the base comes without the purifier"):
        Stacked().fit("mlp-32", digits, base=trained)
