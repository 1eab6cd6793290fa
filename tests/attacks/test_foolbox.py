from __future__ import annotations

import importlib.util
import inspect
import pickle
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from harness.attacks.toolkits.base import load
from harness.attacks.toolkits.capability import FoolboxCapability
from harness.attacks.toolkits.foolbox import Foolbox, capabilities
from harness.determinism import seed_everything
from harness.errors import UserError
from harness.identity import key
from harness.threat import NORMS, Norm, Threat
from harness.victims.victim import Victim, VictimError

EPS: dict[Norm, float] = {"linf": 0.1, "l2": 1.0, "l1": 4.0, "l0": 5.0}
WORKING = [entry for entry in capabilities() if not entry.refused]
REFUSED = [entry for entry in capabilities() if entry.refused]


@pytest.fixture(scope="module")
def case() -> tuple[Victim, Tensor, Tensor]:
    """16 images of 8x8 pixels, ten classes; the first image is misclassified."""
    seed_everything(0)
    x = torch.rand(16, 1, 8, 8)
    x[:, :, 0], x[:, :, 1] = 0, 1  # the box's faces
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    victim = Victim(net, classes=10)
    y = victim.predict(x)
    y[0] = (y[0] + 1) % 10
    return victim, x, y


def smoke_cases() -> list[object]:
    cases = []
    for entry in WORKING:
        missing = [module for module in entry.needs if importlib.util.find_spec(module) is None]
        skip = pytest.mark.skipif(bool(missing), reason=f"{entry.attack} needs {', '.join(missing)}")
        marks = [skip, *((pytest.mark.slow, pytest.mark.long) if "numba" in entry.needs else ())]
        norms = Foolbox(entry.attack, **entry.smoke).supported_norms
        # an attack that measures no norm does the same under each
        for norm in norms[:1] if norms == NORMS and not entry.distance else norms:
            cases.append(pytest.param(entry, norm, id=f"{entry.short}-{norm}", marks=marks))
    return cases


@pytest.mark.parametrize(("entry", "norm"), smoke_cases())
def test_every_attack_runs_keeps_the_contract_and_repeats(
    entry: FoolboxCapability, norm: Norm, case: tuple[Victim, Tensor, Tensor], capfd: pytest.CaptureFixture[str]
) -> None:
    victim, x, y = case
    attack = Foolbox(entry.attack, **entry.smoke)
    threat = Threat(norm, EPS[norm] if attack.kind == "budget" else None)
    before = x.clone()

    results = []
    with torch.no_grad():  # an attack has to switch gradients on by itself
        for _ in range(2):
            seed_everything(0)
            with victim.counted() as cost:
                results.append(attack(victim, x, y, threat))
        assert not torch.is_grad_enabled()

    x_adv = results[0]
    assert x_adv.shape == x.shape
    assert x_adv.dtype == torch.float32
    assert x_adv.isfinite().all()
    assert x_adv.min() >= -1e-6
    assert x_adv.max() <= 1 + 1e-6
    assert threat.within(x, x_adv).all()
    assert torch.equal(*results)
    assert not torch.equal(x_adv, x)
    assert (cost.forwards > 0) == (entry.access != "none")
    assert (cost.backwards > 0) == (entry.access == "gradients")
    assert torch.equal(x, before)
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in victim.parameters())
    output = capfd.readouterr()
    assert output.out == output.err == ""


def test_the_table_knows_every_class_and_every_argument() -> None:
    foolbox = load("foolbox", "foolbox")
    classes = {
        kind.__name__: kind
        for kind in vars(foolbox.attacks).values()
        if inspect.isclass(kind) and kind is not foolbox.attacks.Attack
    }
    assert set(classes) == {entry.attack for entry in capabilities()}
    for entry in WORKING:
        for alias in entry.aliases:
            assert getattr(foolbox.attacks, alias, classes[entry.attack]) is classes[entry.attack]
        parameters = inspect.signature(classes[entry.attack].__init__).parameters
        arguments = set(parameters) - {"args", "kwargs", "self", "tensorboard"}
        filled = {"channel_axis"}  # found out by Foolbox from the model
        filled |= {"distance"} if entry.distance else set()
        filled |= {"constraint"} if entry.constraint else set()
        filled |= (
            {"init_attack", "binary_search_steps"} if "FMN" in entry.attack else set()
        )  # only with starting points
        assert set(entry.options) <= arguments, entry.attack
        assert arguments - set(entry.options) <= filled, entry.attack


def test_values_are_the_librarys_except_where_the_table_says_so() -> None:
    foolbox = load("foolbox", "foolbox")
    ours = {
        ("L2CarliniWagnerAttack", "steps"),
        ("L2CarliniWagnerAttack", "stepsize"),
        ("EADAttack", "steps"),
        ("VirtualAdversarialAttack", "steps"),
        ("VirtualAdversarialAttack", "xi"),
    }
    found = set()
    for entry in WORKING:
        parameters = inspect.signature(getattr(foolbox.attacks, entry.attack).__init__).parameters
        found |= {
            (entry.attack, name)
            for name, value in entry.options.items()
            if name != "init_attack" and parameters[name].default != value
        }
    assert found == ours


@pytest.mark.parametrize("entry", REFUSED, ids=lambda entry: entry.attack)
def test_a_broken_attack_is_refused_with_its_reason(entry: FoolboxCapability) -> None:
    with pytest.raises(UserError) as caught:
        Foolbox(entry.attack)
    assert entry.defect in str(caught.value)
    assert entry.instead in str(caught.value)


def test_bad_declarations_name_the_choices() -> None:
    with pytest.raises(UserError, match="did you mean DDNAttack"):
        Foolbox("DDNAtack")
    with pytest.raises(UserError, match="unknown option of foolbox DDNAttack 'epsilons'"):
        Foolbox("DDNAttack", epsilons=0.3)
    with pytest.raises(UserError, match="it has no options"):
        Foolbox("InversionAttack", steps=3)
    with pytest.raises(UserError, match="choose from LinearSearchBlendedUniformNoiseAttack"):
        Foolbox("BoundaryAttack", init_attack="DDNAttack")
    with pytest.raises(UserError, match="must be a str"):
        Foolbox("L2DeepFoolAttack", loss=3)


def test_identity_is_what_it_does() -> None:
    plain, other = Foolbox("LinfPGD"), Foolbox("PGD", steps=20)
    assert plain == Foolbox("LinfProjectedGradientDescentAttack", steps=40.0)
    assert key(plain) != key(other)
    assert key(plain) != key(Foolbox("L2PGD"))
    assert pickle.loads(pickle.dumps(other)) == other
    assert replace(other) == other
    assert plain.label == "pgd-linf"
    assert other.label == "pgd-linf(steps=20)"
    assert Foolbox("L2DeepFoolAttack", candidates=None).label == "deepfool-l2(candidates=None)"


def test_kind_and_norms_follow_the_declaration() -> None:
    assert (Foolbox("LinfPGD").kind, Foolbox("LinfPGD").supported_norms) == ("budget", ("linf",))
    assert (Foolbox("DDN").kind, Foolbox("DDN").supported_norms) == ("minimal", ("l2",))
    assert Foolbox("EADAttack").supported_norms == ("l1", "l2")
    assert Foolbox("EADAttack", decision_rule="L1").supported_norms == ("l1",)
    assert Foolbox("HopSkipJumpAttack").access == "decisions"


class Bright(nn.Module):
    """Class 1 above a mean of 0.9, else class 0: uniform noise is always class 0."""

    def forward(self, x: Tensor) -> Tensor:
        margin = 100 * (x.flatten(1).mean(1) - 0.9)
        return torch.stack([-margin, margin], dim=1)


@pytest.mark.parametrize("attack", ["HopSkipJumpAttack", "BoundaryAttack", "PointwiseAttack"])
def test_an_image_without_a_starting_point_does_not_stop_the_others(attack: str) -> None:
    entry = next(entry for entry in WORKING if entry.attack == attack)
    options = {**entry.smoke, "init_attack": "LinearSearchBlendedUniformNoiseAttack"}
    x = torch.stack([torch.full((1, 8, 8), value) for value in (0.5, 0.95, 0.97, 0.98)])
    victim, y = Victim(Bright(), classes=2), torch.tensor([0, 1, 1, 0])
    seed_everything(0)
    x_adv = Foolbox(attack, **options)(victim, x, y, Threat("l2"))
    assert torch.equal(x_adv[0], x[0])  # nothing found
    assert torch.equal(x_adv[3], x[3])  # misclassified already: Foolbox would divide by its distance of 0
    assert (victim.predict(x_adv[1:3]) == 0).all()
    only_failures = Foolbox(attack, **options)(victim, x[:1], y[:1], Threat("l2"))
    assert torch.equal(only_failures, x[:1])


def test_other_exceptions_come_through() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    with pytest.raises(VictimError, match="expected logits"):
        Foolbox("DDN")(Victim(Broken()), torch.rand(2, 1, 8, 8), torch.tensor([0, 1]), Threat("l2"))


def test_images_a_hair_outside_the_box_are_clamped(case: tuple[Victim, Tensor, Tensor]) -> None:
    victim, x, y = case
    x_adv = Foolbox("FGSM")(victim, x - 1e-7, y, Threat("linf", 0.1))
    assert x_adv.min() >= 0


@pytest.mark.parametrize("attack", ["LinfAdditiveUniformNoiseAttack", "SparseL1DescentAttack"])
def test_attacks_that_overshoot_are_clipped(attack: str, case: tuple[Victim, Tensor, Tensor]) -> None:
    victim, x, y = case
    declared = Foolbox(attack)
    (norm,) = declared.supported_norms
    threat = Threat(norm, EPS[norm])
    for seed in range(20):
        seed_everything(seed)
        assert threat.within(x, declared(victim, x, y, threat)).all()


def linear_victim() -> tuple[Victim, Tensor, Tensor, dict[str, Tensor]]:
    """Two classes split by a plane; images in the middle of the box, with their exact distances."""
    seed_everything(3)
    layer = nn.Linear(64, 2)
    x = 0.5 + 0.02 * torch.randn(16, 1, 8, 8)
    with torch.no_grad():
        weight = layer.weight[1] - layer.weight[0]
        layer.bias[1] = layer.bias[0] - weight.sum() / 2 + 0.1
    victim = Victim(nn.Sequential(nn.Flatten(), layer), classes=2)
    y = victim.predict(x)
    gap = victim(x).diff(dim=1).flatten().abs()
    return victim, x, y, {"l2": gap / weight.norm(), "linf": gap / weight.abs().sum()}


@pytest.mark.parametrize(
    ("attack", "norm", "slack"),
    [
        ("L2DeepFoolAttack", "l2", 1.025),
        ("LinfDeepFoolAttack", "linf", 1.03),
        ("DDNAttack", "l2", 1.05),
        ("LInfFMNAttack", "linf", 1.05),
        ("L2CarliniWagnerAttack", "l2", 1.1),
    ],
)
def test_minimal_attacks_find_the_plane(attack: str, norm: Norm, slack: float) -> None:
    victim, x, y, optimum = linear_victim()
    options = {"confidence": 0.0, "initial_const": 1.0} if attack.startswith("L2Carlini") else {}
    seed_everything(0)
    x_adv = Foolbox(attack, **options)(victim, x, y, Threat(norm))
    ratio = Threat(norm).distance(x, x_adv) / optimum[norm]
    assert (victim.predict(x_adv) != y).all()
    assert ratio.min() > 0.999
    assert ratio.max() < slack


@pytest.mark.parametrize("attack", ["L2CarliniWagnerAttack", "EADAttack"])
def test_a_failure_is_not_a_black_image(attack: str, case: tuple[Victim, Tensor, Tensor]) -> None:
    victim, x, y = case
    x_adv = Foolbox(attack, binary_search_steps=1, steps=1)(victim, x[1:], y[1:], Threat("l2"))
    assert not (x_adv == 0).flatten(1).all(1).any()
    assert (x_adv == x[1:]).flatten(1).all(1).any(), "one step was meant to fail somewhere"


def test_families_are_told_apart() -> None:
    for attack, family in (
        ("LinfFastGradientAttack", "one-step"),
        ("LinfMomentumIterativeFastGradientMethod", "iterated"),
        ("LinfPGD", "iterated"),
        ("LinfAdditiveUniformNoiseAttack", "noise"),
        ("SpatialAttack", "transformation"),
        ("DDNAttack", "minimum-norm"),
        ("BoundaryAttack", "decision"),
    ):
        assert Foolbox(attack).family == family, attack
