from __future__ import annotations

import importlib.util
import inspect
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from harness.attacks.toolkits import foolbox as foolbox_door
from harness.attacks.toolkits.art import Art, capabilities
from harness.attacks.toolkits.base import load, rivals
from harness.attacks.toolkits.capability import ArtCapability
from harness.determinism import seed_everything
from harness.errors import UserError
from harness.identity import key
from harness.threat import NORMS, Norm, Threat
from harness.victims.victim import Victim

EPS: dict[Norm, float] = {"linf": 0.1, "l2": 1.0, "l1": 4.0, "l0": 5.0}
WORKING = [entry for entry in capabilities() if not entry.refused]
REFUSED = [entry for entry in capabilities() if entry.refused]


LONG = ("apgd-deepfool-square",)
"""Beside those that numba compiles for half a minute."""


def threat_for(attack: Art, norm: Norm) -> Threat:
    return Threat(norm, EPS[norm] if attack.kind == "budget" else None)


@pytest.fixture(scope="module")
def case() -> tuple[Victim, torch.Tensor, torch.Tensor]:
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
        marks = [skip, *((pytest.mark.slow, pytest.mark.long) if entry.short in LONG or "numba" in entry.needs else ())]
        norms = Art(entry.attack, **entry.smoke).supported_norms
        # an attack that measures no norm does the same under each
        for norm in norms[:1] if norms == NORMS and entry.short != "brendel-bethge-art" else norms:
            cases.append(pytest.param(entry, norm, id=f"{entry.short}-{norm}", marks=marks))
    return cases


@pytest.mark.parametrize(("entry", "norm"), smoke_cases())
def test_every_attack_runs_keeps_the_contract_and_repeats(
    entry: ArtCapability,
    norm: Norm,
    case: tuple[Victim, torch.Tensor, torch.Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    victim, x, y = case
    attack = Art(entry.attack, **entry.smoke)
    threat = threat_for(attack, norm)
    monkeypatch.chdir(tmp_path)
    before, random_state = x.clone(), np.random.RandomState
    load("art.attacks.evasion", "adversarial-robustness-toolbox")
    capfd.readouterr()

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
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    assert threat.within(x, x_adv).all()
    assert torch.equal(*results)
    assert not torch.equal(x_adv, x) or entry.short in {"ead-art", "zoo"}  # which need more steps than this
    assert cost.forwards > 0
    assert (cost.backwards > 0) == (entry.access == "gradients") or entry.short == "universal-targeted"
    assert torch.equal(x, before)
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in victim.parameters())
    assert np.random.RandomState is random_state
    assert not hasattr(np, "mat")
    assert list(tmp_path.iterdir()) == []
    output = capfd.readouterr()
    assert output.out == output.err == ""


def test_declaring_and_listing_import_no_toolkit_and_running_leaves_the_logging_alone() -> None:
    program = """
import logging, sys
from harness.attacks.toolkits import art, foolbox
for door, kind in ((art, art.Art), (foolbox, foolbox.Foolbox)):
    for entry in door.capabilities():
        if not entry.refused:
            assert kind(entry.attack).label
assert not {"art", "foolbox", "eagerpy"} & set(sys.modules)
handler = logging.StreamHandler()
from harness.attacks.toolkits.base import load
load("art.attacks.evasion", "adversarial-robustness-toolbox")
assert any(known() is handler for known in logging._handlerList)
assert not logging.getLogger("tests").handlers
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_table_knows_every_class_and_every_argument() -> None:
    evasion = load("art.attacks.evasion", "adversarial-robustness-toolbox")
    classes = {name: kind for name, kind in vars(evasion).items() if inspect.isclass(kind)}
    table = {name: entry for entry in capabilities() for name in (entry.attack, *entry.aliases)}
    if importlib.util.find_spec("numba") is None:
        table.pop("BrendelBethgeAttack")
        classes.pop("BrendelBethgeAttack", None)
    assert set(classes) <= set(table)
    ours = {"step_ratio", "scale"}
    # set by the door, or without a meaning here
    theirs = {"self", "estimator", "classifier", "summary_writer", "adv_criterion", "loss", "attacks", "estimator_orig"}
    theirs |= {"parallel_pool_size", "attacker", "attacker_params", "patch_shape", "patch_location", "eval_perform"}
    theirs |= {"distortion_scale_max", "init_size"}
    for entry in WORKING:
        if entry.attack not in classes:
            continue
        arguments = set(inspect.signature(classes[entry.attack].__init__).parameters)
        known = (set(entry.options) - ours) | set(entry.fills)
        assert known <= arguments, entry.attack
        assert arguments - known <= theirs, entry.attack


def test_short_names_are_unique_over_both_doors_and_find_the_attack() -> None:
    entries = [entry for entry in (*capabilities(), *foolbox_door.capabilities()) if not entry.refused]
    assert len({entry.short for entry in entries}) == len(entries)
    assert Art("apgd-art") == Art("AutoProjectedGradientDescent")
    assert Art("ProjectedGradientDescentPyTorch").attack == "ProjectedGradientDescent"


@pytest.mark.parametrize("entry", REFUSED, ids=lambda entry: entry.attack)
def test_a_broken_attack_is_refused_with_its_reason(entry: ArtCapability) -> None:
    with pytest.raises(UserError) as caught:
        Art(entry.attack)
    message = str(caught.value)
    assert entry.defect in message
    assert entry.instead in message
    assert "\n" not in message


def test_bad_declarations_name_the_choices() -> None:
    with pytest.raises(UserError, match="did you mean SquareAttack"):
        Art("SquareAtack")
    with pytest.raises(UserError, match="did you mean max_iter"):
        Art("SquareAttack", max_iters=3)
    with pytest.raises(UserError, match="unknown option of art SquareAttack 'eps'"):
        Art("SquareAttack", eps=0.3)  # budgets belong to the suite
    with pytest.raises(UserError, match="whole number"):
        Art("SquareAttack", max_iter=1.5)
    with pytest.raises(UserError, match="must be true or false"):
        Art("FastGradientMethod", minimal=1)
    with pytest.raises(UserError, match="choose from cross_entropy, difference_logits_ratio"):
        Art("apgd-art", loss_type="dlr")
    with pytest.raises(UserError, match="leaves the ball"):
        Art("FrameSaliencyAttack", method="iterative_saliency_refresh")
    with pytest.raises(UserError, match="not reproducible"):
        Art("PixelAttack", es=0)
    with pytest.raises(UserError, match="must be a number, a string"):
        Art("SquareAttack", p_init=object())


def test_identity_is_what_it_does() -> None:
    plain, stated, other = (
        Art("apgd-art"),
        Art("apgd-art", max_iter=100.0, nb_random_init=5),
        Art("apgd-art", max_iter=50),
    )
    assert plain == stated
    assert hash(plain) == hash(stated)
    assert key(plain) == key(stated) != key(other)
    assert key(plain) != key(Art("square-art"))
    for attack in (plain, other):
        assert pickle.loads(pickle.dumps(attack)) == attack
        assert replace(attack) == attack
    assert replace(plain, options={"max_iter": 50}) == other
    assert plain.label == "apgd-art"
    assert other.label == "apgd-art(max_iter=50)"
    assert Art("apgd-art", step_ratio=1 / 3).label != Art("apgd-art", step_ratio=0.333333).label
    assert eval(repr(other), {"Art": Art}) == other


def test_kind_and_norms_follow_the_options() -> None:
    assert Art("FastGradientMethod").kind == "budget"
    assert Art("FastGradientMethod", minimal=True).kind == "minimal"
    assert Art("ElasticNet").supported_norms == ("l1", "l2")
    assert Art("ElasticNet", decision_rule="L1").supported_norms == ("l1",)
    with pytest.raises(ValueError, match="has no l1 form"):
        Art("SquareAttack").check(Threat("l1", 1.0))
    with pytest.raises(ValueError, match="needs an eps"):
        Art("SquareAttack").check(Threat("linf"))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs the module multiprocess"):
        Art("AutoAttack").check(Threat("linf", 0.1))


def test_a_ball_of_radius_zero_and_an_empty_batch(case: tuple[Victim, torch.Tensor, torch.Tensor]) -> None:
    victim, x, y = case
    assert torch.equal(Art("apgd-art")(victim, x, y, Threat("linf", 0.0)), x)
    assert Art("apgd-art")(victim, x[:0], y[:0], Threat("linf", 0.1)).shape == (0, 1, 8, 8)


def test_small_images_are_named(case: tuple[Victim, torch.Tensor, torch.Tensor]) -> None:
    victim, x, y = case
    with pytest.raises(UserError, match="at least 8 pixels"):
        Art("SquareAttack")(victim, x[..., :4], y, Threat("linf", 0.1))


@pytest.mark.parametrize("attack", ["HopSkipJump", "BoundaryAttack"])
def test_the_global_seed_rules_generators_that_were_unseeded(
    attack: str, case: tuple[Victim, torch.Tensor, torch.Tensor]
) -> None:
    victim, x, y = case
    declared = Art(attack, **next(entry for entry in WORKING if entry.attack == attack).smoke)
    found = []
    for seed in (0, 1):
        seed_everything(seed)
        found.append(declared(victim, x, y, Threat("l2")))
    assert not torch.equal(*found)


def test_rivals_are_the_most_likely_wrong_classes(case: tuple[Victim, torch.Tensor, torch.Tensor]) -> None:
    victim, x, y = case
    target = rivals(victim, x, y)
    ranked = victim(x).argsort(1, descending=True)
    assert torch.equal(target[1:], ranked[1:, 1])
    assert target[0] == ranked[0, 0]  # misclassified: the wrong class it has already


def linear_victim() -> tuple[Victim, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two classes split by a plane; images in the middle of the box, with their exact L2 and L-infinity distances."""
    seed_everything(3)
    layer = nn.Linear(64, 2)
    x = 0.5 + 0.02 * torch.randn(16, 1, 8, 8)
    with torch.no_grad():
        weight = layer.weight[1] - layer.weight[0]
        layer.bias[1] = layer.bias[0] - weight.sum() / 2 + 0.1
    victim = Victim(nn.Sequential(nn.Flatten(), layer), classes=2)
    y = victim.predict(x)
    gap = victim(x).diff(dim=1).flatten().abs()
    return victim, x, y, gap / weight.norm(), gap / weight.abs().sum()


@pytest.mark.parametrize("attack", ["apgd-art", "pgd-art", "bim-art", "mim-art", "fgm-art"])
def test_budget_attacks_flip_a_linear_victim_exactly_beyond_its_distance(attack: str) -> None:
    victim, x, y, _, distance = linear_victim()
    for image in range(4):
        rows = slice(image, image + 1)
        for factor, falls in ((0.98, False), (1.02, True)):
            seed_everything(0)
            threat = Threat("linf", factor * float(distance[image]))
            x_adv = Art(attack)(victim, x[rows], y[rows], threat)
            assert bool((victim.predict(x_adv) != y[rows]).all()) is falls


def test_deepfool_reaches_the_plane() -> None:
    victim, x, y, distance, _ = linear_victim()
    x_adv = Art("DeepFool", nb_grads=2)(victim, x, y, Threat("l2"))
    assert (victim.predict(x_adv) != y).all()
    torch.testing.assert_close(Threat("l2").distance(x, x_adv).float(), 1.02 * distance, rtol=2e-3, atol=0)


@pytest.mark.parametrize("size", [(9, 8), (8, 9), (8, 20), (9, 9), (11, 11), (32, 32)], ids=str)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_square_takes_images_of_any_shape(norm: Norm, size: tuple[int, int]) -> None:
    seed_everything(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * size[0] * size[1], 4))
    victim, x = Victim(net, classes=4), torch.rand(6, 3, *size)
    threat = Threat(norm, EPS[norm])
    x_adv = Art("SquareAttack", max_iter=10)(victim, x, victim.predict(x), threat)
    assert threat.within(x, x_adv).all()
    assert not torch.equal(x_adv, x)
