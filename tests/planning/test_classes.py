"""Few classes and many: suites adapt to what their attacks need, and leave no pair that cannot run."""

from __future__ import annotations

import dataclasses
import itertools
import re
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import gauntlet
from defenses.standard import Standard
from harness import determinism, identity
from harness.attacks.alpha import CANDIDATES, Alpha, alpha_perturbation
from harness.attacks.apgd import APGD
from harness.attacks.base import Attack
from harness.attacks.class_jacobian import candidate_gradients, class_gradients
from harness.attacks.fast_gradient import Gradient
from harness.attacks.noise import Noise
from harness.attacks.toolkits.art import Art
from harness.attacks.toolkits.base import Foreign
from harness.attacks.toolkits.foolbox import Foolbox
from harness.attacks.transfer import Transfer
from harness.attacks.unclipped import Unclipped
from harness.datasets.registry import DATASETS, DatasetInfo, default_info
from harness.errors import UserError
from harness.judging.referee import judge
from harness.planning.plan import plan, specs
from harness.planning.suite import Suite
from harness.selftest.linear_victim import LinearVictim
from harness.threat import Norm, Threat
from harness.victims.victim import Victim
from suites import suites
from tests.helpers.commands import call

SHAPE: Final = (3, 9, 8)
EPS: Final[dict[Norm, float]] = {"linf": 0.05, "l2": 0.5, "l1": 3.0}
FEW: Final[dict[str, Any]] = {"steps": 3, "queries": 5, "draws": 3, "searches": 2, "max_evaluations": 5}
"""Fields that only say how long an attack runs."""

DLR: Final = {"loss_type": "difference_logits_ratio", "max_iter": 7, "nb_random_init": 1}


def inner(attack: Attack) -> Attack:
    return attack.attack if isinstance(attack, Transfer) else attack


def short(attack: Attack) -> Attack:
    """The same attack, over in no time."""
    if isinstance(attack, Foreign):
        return dataclasses.replace(
            attack, options=tuple((dict(attack.options) | dict(attack.capability.smoke)).items())
        )
    names = {field.name for field in dataclasses.fields(attack)}
    return dataclasses.replace(attack, **{name: value for name, value in FEW.items() if name in names})


def declared() -> list[Any]:
    """What every suite runs or crafts with, each once."""
    found: dict[str, tuple[Attack, Norm]] = {}
    for suite in suites().values():
        for norm, attacks in suite.attacks.items():
            for attack in map(inner, attacks):
                found.setdefault(identity.key(short(attack), norm), (attack, norm))
    return [pytest.param(attack, norm, id=f"{attack.label}-{norm}") for attack, norm in found.values()]


def victim(classes: int) -> tuple[Victim, Tensor, Tensor]:
    """A small network and images of two of its classes at most, all of them right."""
    determinism.seed_everything(classes)
    net = nn.Sequential(nn.Flatten(), nn.Linear(216, 12), nn.ReLU(), nn.Linear(12, classes))
    made, x = Victim(net, classes=classes), torch.rand(64, *SHAPE)
    y = made.predict(x)
    common = y.bincount(minlength=classes).topk(2).indices
    rows = torch.isin(y, common).nonzero().squeeze(1)[:5]
    return made, x[rows], y[rows]


def info(classes: int) -> DatasetInfo:
    return default_info("small", SHAPE, tuple(map(str, range(classes))), 40)


def planned(attacks: Any, classes: int, **more: Any) -> Any:
    suite = Suite(name="small", summary="for tests", attacks=attacks)
    here = info(classes)
    return plan(suite, specs([here], ["mlp-8"], [Standard(epochs=1)], [0]), {here.name: here}, **more)


# ---------------------------------------------------------------- every attack of every suite


@pytest.mark.parametrize("classes", [2, 3, 4, 1000])
@pytest.mark.parametrize(("attack", "norm"), declared())
def test_every_declared_attack_runs_with_few_classes_and_with_many(attack: Attack, norm: Norm, classes: int) -> None:
    fitted = attack.for_classes(classes)
    assert fitted is not None
    assert (fitted.toolkit, fitted.kind, fitted.family) == (attack.toolkit, attack.kind, attack.family)
    threat = Threat(norm, EPS[norm] if fitted.kind == "budget" else None)
    if fitted.family == "transformation":
        threat = Threat(norm, 1.0)
    seen, x, y = victim(classes)
    determinism.seed_everything(0)
    verdict = judge(seen, x, y, short(fitted)(seen, x.clone(), y.clone(), threat), threat)
    assert verdict.valid.all()
    assert seen.cost.backwards <= 130 * len(x)  # no attack takes a pass a class


@pytest.mark.parametrize("suite", suites().values(), ids=lambda suite: suite.name)
def test_from_five_classes_on_a_suite_is_what_it_declares(suite: Suite) -> None:
    """Else the keys of everybody's results would change."""
    attacks = [attack for members in suite.attacks.values() for attack in members]
    for classes in (5, 10, CANDIDATES, CANDIDATES + 1):
        assert all(attack.for_classes(classes) is attack for attack in attacks)


@pytest.mark.parametrize("suite", suites().values(), ids=lambda suite: suite.name)
def test_two_classes_cost_a_suite_no_toolkit_and_no_pair(suite: Suite) -> None:
    for members in suite.attacks.values():
        fitted = [attack.for_classes(2) for attack in members]
        assert [attack and inner(attack).toolkit for attack in fitted] == [inner(attack).toolkit for attack in members]
        assert len({attack.label for attack in fitted if attack}) == len(members)


# ---------------------------------------------------------------- what attacks declare


def test_losses_that_need_three_logits_give_way() -> None:
    art = Art("AutoProjectedGradientDescent", **DLR)
    assert art.for_classes(2) == Art("AutoProjectedGradientDescent", **DLR | {"loss_type": "cross_entropy"})
    assert art.for_classes(3) is art
    assert APGD(loss="dlr").for_classes(2) == APGD(loss="margin")
    assert APGD(loss="dlr", targets=9).for_classes(3) == APGD(loss="margin", targets=9)
    assert APGD(loss="dlr", targets=9).for_classes(4) == APGD(loss="dlr", targets=9)
    assert APGD().for_classes(2) == APGD()


@pytest.mark.parametrize(("classes", "targets"), [(2, 0), (2, 3), (3, 2)])
def test_the_margin_is_what_the_ratio_would_have_climbed(classes: int, targets: int) -> None:
    seen, x, y = victim(classes)
    attack = APGD(loss="dlr", steps=8, targets=targets)
    found = []
    for each in (attack, attack.for_classes(classes)):
        torch.manual_seed(0)
        found.append(each(seen, x, y, Threat("l2", 0.02)))
    assert torch.equal(*found)
    assert not torch.equal(found[0], x)


@pytest.mark.parametrize("name", ["SignOPTAttack", "PixelAttack", "ThresholdAttack"])
def test_what_cannot_do_with_two_classes_is_left_out_and_says_so_when_called(name: str) -> None:
    attack = Art(name)
    assert attack.for_classes(2) is None
    assert attack.for_classes(3) is attack
    norm = attack.supported_norms[0]
    seen, x, y = victim(2)
    with pytest.raises(UserError, match="needs at least 3 classes, the model has 2"):
        attack(seen, x, y, Threat(norm, EPS.get(norm) if attack.kind == "budget" else None))


def test_what_carries_an_attack_carries_its_needs() -> None:
    art, foolbox = Art("AutoProjectedGradientDescent", **DLR), Foolbox("LinfPGD")
    for carried in (art, foolbox, Alpha()):
        transfer = Transfer(attack=carried, defense=Standard(), seed_offset=1)
        for classes in (2, 10, 1000):
            assert transfer.for_classes(classes) == dataclasses.replace(transfer, attack=carried.for_classes(classes))
    assert Transfer(attack=Art("SignOPTAttack"), defense=Standard()).for_classes(2) is None
    wide = Unclipped(attack=Alpha())
    assert wide.for_classes(10) is wide
    assert wide.for_classes(1000) == Unclipped(attack=Alpha(candidates=CANDIDATES))
    assert Unclipped(attack=Gradient()).for_classes(1000) == Unclipped(attack=Gradient())


# ---------------------------------------------------------------- alpha's candidates


@pytest.mark.parametrize("outputs", ["softmax", "logits"])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_nearest_boundary_is_among_the_most_likely_classes(norm: Norm, outputs: Any) -> None:
    seen, x, y = victim(150)
    whole = alpha_perturbation(seen, x, y, norm, outputs)
    with seen.counted() as cost:
        some = alpha_perturbation(seen, x, y, norm, outputs, 60)
    assert (cost.forwards, cost.backwards) == (len(x), 62 * len(x))
    torch.testing.assert_close(some, whole, rtol=1e-4, atol=1e-6)


def test_fewer_candidates_are_farther_but_lead_across_a_boundary() -> None:
    seen = LinearVictim.random(classes=30)
    x, y = seen.images(20)
    one, whole = (alpha_perturbation(seen, x, y, "l2", "logits", count).flatten(1).norm(dim=1) for count in (1, None))
    assert (one >= whole * (1 - 1e-5)).all()
    assert (one > whole * 1.01).any()
    x_adv = Alpha(mode="minimal", candidates=1)(seen, x, y, Threat("l2"))
    assert (seen.predict(x_adv) != y).float().mean() > 0.9


def test_what_is_merged_keeps_the_softmax_of_the_others() -> None:
    seen, x, y = victim(50)
    logits, jacobian = candidate_gradients(seen, x, y, 7)
    whole, slopes = class_gradients(seen, x, "softmax")
    assert logits.shape == (len(x), 9)
    torch.testing.assert_close(logits.softmax(1)[:, 0], whole.gather(1, y.unsqueeze(1)).squeeze(1))
    p = logits.softmax(1)
    mean = (p[:, :, None] * jacobian.flatten(2)).sum(1)
    label = p[:, :1] * (jacobian[:, 0].flatten(1) - mean)
    torch.testing.assert_close(label, slopes[range(len(x)), y].flatten(1), rtol=1e-3, atol=1e-6)


def test_as_many_candidates_as_there_are_classes_are_all_of_them() -> None:
    seen, x, y = victim(6)
    for count in (5, 6, 100):
        some, whole = (alpha_perturbation(seen, x, y, "l2", "softmax", number) for number in (count, None))
        torch.testing.assert_close(some, whole)
    with pytest.raises(UserError, match="candidates must be >= 1, got 0"):
        Alpha(candidates=0)


# ---------------------------------------------------------------- plans


def test_a_plan_takes_attacks_as_they_are_for_the_classes() -> None:
    attacks = {"linf": (Noise(), Art("apgd-art", **DLR), APGD(loss="dlr"), Art("ThresholdAttack"))}
    labels = {n: list(dict.fromkeys(c.attack.label for c in planned(attacks, n).battery)) for n in (2, 3)}
    assert labels[3] == [attack.label for attack in attacks["linf"]]
    assert labels[2] == ["noise", "apgd-art(max_iter=7, nb_random_init=1)", "apgd(loss=margin)"]
    mixed = plan(
        Suite(name="small", summary="for tests", attacks=attacks),
        [specs([each], ["mlp-8"], [Standard(epochs=1)], [0])[0] for each in (info(2), DATASETS["digits"])],
        {"small": info(2), "digits": DATASETS["digits"]},
    )
    found = {(cell.victim.dataset, cell.attack.label) for cell in mixed.battery}
    assert found == {("small", label) for label in labels[2]} | {("digits", label) for label in labels[3]}


@pytest.mark.parametrize("pattern", ["*difference_logits_ratio*", "apgd-art(max_iter=7, nb_random_init=1)"])
def test_an_attack_is_chosen_by_what_the_suite_calls_it_and_by_what_it_has_become(pattern: str) -> None:
    made = planned({"linf": (Noise(), Art("apgd-art", **DLR))}, 2, only=[pattern])
    assert {cell.attack.label for cell in made.cells} == {"apgd-art(max_iter=7, nb_random_init=1)"}
    assert {cell.attack.label for cell in made.battery} > {cell.attack.label for cell in made.cells}


def test_two_attacks_that_become_one_are_one_also_in_a_cascade() -> None:
    attacks = {"linf": (Art("apgd-art", max_iter=7, nb_random_init=1), Art("apgd-art", **DLR), Noise())}
    made = planned(attacks, 2, cascade=True)
    names = [(cell.attack.label, cell.threat.eps) for cell in made.cells]
    assert len(set(names)) == len(names) == 2 * len(info(2).budgets["linf"])
    assert [cell.after for cell in made.cells] == ["", *(cell.key for cell in made.cells[:-1])]


def test_a_norm_of_which_no_attack_is_left_is_refused() -> None:
    with pytest.raises(UserError, match="sign-opt does not work with the 2 classes of small"):
        planned({"linf": (Noise(),), "l2": (Art("SignOPTAttack"),)}, 2)


# ---------------------------------------------------------------- whole runs


def pictures(root: Path, classes: tuple[str, ...], without: tuple[str, ...] = ()) -> None:
    """Gray images of 8x9 pixels, the class told by the place of a bright bar; ``without`` have no test images."""
    rng = np.random.default_rng(0)
    for split, (place, name) in itertools.product(("train", "test"), enumerate(classes)):
        if split == "test" and name in without:
            continue
        (root / split / name).mkdir(parents=True)
        for number in range(9):
            pixels = rng.integers(0, 120, (9, 8))
            pixels[2 * place : 2 * place + 2] += 100
            Image.fromarray(pixels.astype(np.uint8)).save(root / split / name / f"{number}.png")


@pytest.mark.long
@pytest.mark.parametrize(
    ("classes", "without"),
    [
        pytest.param(("cat", "dog"), (), id="two"),
        pytest.param(("ant", "bee", "fly"), ("bee",), id="one-unseen"),
    ],
)
def test_a_run_on_few_classes_ends_with_a_rank(classes: Any, without: Any, tmp_path: Path) -> None:
    pictures(tmp_path / "set", classes, without)
    words = ["run", "linf", "--dataset", f"images:{tmp_path / 'set'}", "--model", "mlp-8", "--samples", "6"]
    result = call(*words, "--defense", "standard:epochs=60", "--jobs", "1", "--home", tmp_path / "home")
    assert result.exit_code == 0, result.output
    board = pd.read_csv(tmp_path / "home" / "report" / "leaderboard.csv")
    pairs = pd.read_csv(tmp_path / "home" / "report" / "pairs.csv")
    assert board["rank"].eq(1).all()
    assert not board["trust"].eq("D").any()
    assert pairs["status"].eq("ok").all()
    assert {"art", "foolbox", "gauntlet"} == set(pairs["toolkit"])
    assert not pairs["attack"].str.contains("dlr|difference").any() or len(classes) > 2


def test_evaluate_with_two_logits_and_one_label() -> None:
    seen, x, y = victim(2)
    rows = y == y[0]
    suite = Suite(
        name="small",
        summary="for tests",
        attacks={"linf": (Noise(), APGD(loss="dlr", targets=9, steps=5), Art("apgd-art", **DLR), Foolbox("LinfPGD"))},
        budgets={"linf": (0.2,)},
    )
    frame = gauntlet.evaluate(seen.model, x[rows], y[rows], suite)
    assert frame["status"].eq("ok").all()
    assert frame.worst_case("linf", 0.2) == 0
    assert not any(re.search("dlr|difference", label) for label in frame["attack"])
