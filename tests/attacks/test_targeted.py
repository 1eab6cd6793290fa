"""Attacks with targets: every one goes for the class that its image was given, and the referee asks for that alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from harness.attacks.alpha import Alpha
from harness.attacks.apgd import APGD
from harness.attacks.base import Attack
from harness.attacks.fast_gradient import Gradient
from harness.attacks.fmn import MinimumNorm
from harness.attacks.lbfgs import LBFGS
from harness.attacks.learned_generator import Generator
from harness.attacks.rays import RayS
from harness.attacks.square import Square
from harness.attacks.targeted import propose
from harness.attacks.toolkits.art import Art
from harness.attacks.toolkits.foolbox import Foolbox
from harness.attacks.transfer import Transfer
from harness.attacks.unclipped import Unclipped
from harness.datasets.registry import Dataset
from harness.determinism import seed_everything
from harness.errors import UserError
from harness.judging.proposal import Bench
from harness.judging.referee import judge
from harness.judging.shard import ShardOutcome, craft, run_shard
from harness.metrics.pairs import broken, stands, success_on_correct
from harness.planning.suite import Suite
from harness.selftest.linear_victim import LinearVictim
from harness.threat import Norm, Threat, magnitude, per_sample, steepest
from harness.victims.victim import Victim
from suites import suites

N = 12
EPS = 0.008


@pytest.fixture
def victim() -> LinearVictim:
    return LinearVictim.random(4, (1, 4, 4))


def optimum(victim: LinearVictim, x: Tensor, target: Tensor, norm: Norm) -> Tensor:
    """Least distance to an image that a linear model takes for its target, beyond the box: of any attack a bound."""
    layer = next(part for part in victim.model.modules() if isinstance(part, nn.Linear))
    logits, dual = victim(x), {"linf": 1.0, "l2": 2.0}[norm]
    rows = torch.arange(len(x))
    gaps = []
    for other in range(4):
        slope = torch.linalg.vector_norm(layer.weight[target] - layer.weight[other], ord=dual, dim=1)
        gaps.append(torch.where(target == other, 0, (logits[:, other] - logits[rows, target]) / slope.clamp_min(1e-9)))
    return torch.stack(gaps).amax(0)


@pytest.mark.parametrize(
    ("attack", "norm", "within"),
    [
        (MinimumNorm(), "linf", 1.05),
        (MinimumNorm(), "l2", 1.05),
        (LBFGS(), "l2", 1.05),
        (Foolbox("DDNAttack"), "l2", 1.4),
        (Alpha(mode="minimal"), "l2", 1.5),
        (RayS(queries=400), "linf", 2.0),
        (Foolbox("HopSkipJumpAttack", steps=3, max_gradient_eval_steps=100), "l2", 4.0),
    ],
    ids=lambda value: getattr(value, "label", str(value)),
)
def test_a_minimal_attack_comes_near_the_targets_region(
    attack: Attack, norm: Norm, within: float, victim: LinearVictim
) -> None:
    x, y = victim.images(N)
    target = (y + torch.tensor([1, 2, 3]).repeat(N // 3)) % 4
    seed_everything(0)
    x_adv = propose(attack, victim, x, y, Threat(norm), target)
    found = victim.predict(x_adv) == target
    assert int(found.sum()) >= N - 2
    far = magnitude(x_adv - x, norm)[found] / optimum(victim, x, target, norm)[found]
    assert far.min() >= 0.999
    assert far.median() <= within


@pytest.mark.parametrize(
    "attack",
    [
        APGD(steps=20),
        APGD(loss="dlr", targets=3, steps=20),
        Gradient(),
        Square(queries=200),
        Foolbox("LinfPGD"),
        Art("ProjectedGradientDescent", max_iter=20),
    ],
    ids=lambda attack: attack.label,
)
def test_a_budget_attack_leads_to_the_target_and_not_away_from_the_label(attack: Attack, victim: LinearVictim) -> None:
    x, y = victim.images(N)
    target = (y + 2) % 4
    threat = Threat("linf", float(optimum(victim, x, target, "linf").max()) * 1.3)
    seed_everything(0)
    reached = victim.predict(propose(attack, victim, x, y, threat, target)) == target
    seed_everything(0)
    anywhere = victim.predict(propose(attack, victim, x, y, threat)) == target
    assert reached.sum() >= N - 3  # the box may be in the way
    assert reached.sum() > anywhere.sum()


def test_an_attack_along_the_boundary_begins_from_images_that_are_not_attacked(victim: LinearVictim) -> None:
    attack = Foolbox("HopSkipJumpAttack", steps=3, max_gradient_eval_steps=100)
    x, y = victim.images(4 * N)
    aimed = y == 0
    x, y, examples, target = x[~aimed], y[~aimed], x[aimed], torch.zeros_like(y[~aimed])
    assert len(examples)
    seed_everything(0)
    assert torch.equal(propose(attack, victim, x, y, Threat("l2"), target), x)
    x_adv = propose(attack, victim.knowing(examples), x, y, Threat("l2"), target)
    assert (victim.predict(x_adv) == target).all()
    distance = magnitude(x_adv - x, "l2")
    assert (distance < torch.cdist(x.flatten(1), examples.flatten(1)).amin(1)).all()


@dataclass(frozen=True, kw_only=True)
class Downhill(Attack):
    """An attack of a user's, which knows neither targets nor rows: one step for the whole batch."""

    name: ClassVar[str] = "downhill"

    def run(self, victim: Victim, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
        assert threat.eps is not None
        x = x.clone().requires_grad_()
        nn.functional.cross_entropy(victim(x), y, reduction="sum").backward()  # type: ignore[no-untyped-call]
        assert x.grad is not None
        return threat.project(x.detach(), x.detach() + threat.eps * steepest(x.grad, float("inf")))


def test_what_knows_nothing_of_rows_is_called_target_by_target(victim: LinearVictim) -> None:
    x, y = victim.images(N)
    target = (y + torch.tensor([1, 2, 3]).repeat(N // 3)) % 4
    threat = Threat("linf", 0.5)
    mine = propose(Downhill(), victim, x, y, threat, target)
    torch.testing.assert_close(mine, propose(Gradient(), victim, x, y, threat, target))
    assert (victim.predict(mine) == target).sum() > N // 2

    @dataclass(frozen=True, kw_only=True)
    class Careless(Downhill):
        """It says that it tells whose images it asks about, and does not."""

        name: ClassVar[str] = "careless"
        targeting: ClassVar[Any] = "rows"

        def run(self, victim: Victim, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
            return super().run(victim, x[:5], y[:5], threat)

    outcome = craft(victim, Careless(), threat, x, y, 0, target=target)
    assert outcome.x_adv is None
    assert "5 images for 12 targets" in outcome.errors[0]


@pytest.mark.parametrize(
    "attack",
    [
        Foolbox("LinfDeepFoolAttack"),
        Foolbox("SparseL1DescentAttack"),
        Art("HopSkipJump"),
        Generator(),
        LBFGS(c="dataset"),
        LBFGS(target="given", target_class=1),
        Unclipped(attack=Gradient()),
    ],
    ids=lambda attack: attack.label,
)
def test_what_has_no_targeted_form_says_so(attack: Attack, victim: LinearVictim) -> None:
    x, y = victim.images(2)
    assert attack.targeting == "no"
    with pytest.raises(UserError, match="has no targeted form"):
        propose(attack, victim, x, y, Threat("l2", 1.0), (y + 1) % 4)


def _asking() -> list[Attack]:
    """Attacks of our suites that are shown target or not for all images at once, a cheap form of each."""
    small: dict[str, Any] = {"steps": 3, "queries": 30, "max_evaluations": 5, "searches": 2}
    found: dict[str, Attack] = {}
    for suite in suites().values():
        for attack in (attack for norm in suite.attacks.values() for attack in norm):
            attack = attack.attack if isinstance(attack, Transfer) else attack
            if attack.targeting == "rows" and attack.access != "none":
                found[attack.name] = replace(attack, **{n: v for n, v in small.items() if hasattr(attack, n)})
    return list(found.values())


@pytest.mark.parametrize("attack", _asking(), ids=lambda attack: attack.name)
def test_ours_say_whose_images_they_ask_about(attack: Attack, digits: Dataset, trained: nn.Module) -> None:
    _, (x, y) = digits.test_sample(140)  # more than a chunk
    victim = Victim(trained, classes=10)
    norm = attack.supported_norms[0]
    threat = Threat(norm, 1.0 if attack.kind == "budget" else None)
    made = craft(victim, attack, threat, x, y, 0, target=(y + 1) % 10)
    assert made.errors == ()


# ---------------------------------------------------------------- the referee


def test_only_the_target_counts(victim: LinearVictim) -> None:
    x, y = victim.images(N)
    other = x.roll(1, 0)
    labels = victim.predict(other)
    wrong = (labels != y).nonzero().squeeze(1)
    target = (labels + 1) % 4  # everybody is taken for something else than the target
    target = torch.where(target == y, (target + 1) % 4, target)
    target[wrong[0]] = labels[wrong[0]]
    verdict = judge(victim, x, y, other, Threat("linf", 1.0), target=target)
    assert verdict.adversarial.nonzero().flatten().tolist() == [int(wrong[0])]
    assert verdict.adv_pred.tolist() == labels.tolist()
    assert verdict.distances["linf"].isfinite().sum() == 1
    assert judge(victim, x, y, other, Threat("linf", 1.0)).adversarial.sum() == len(wrong)


@dataclass(frozen=True, kw_only=True)
class Known(Attack):
    """Returns images of other classes as they are."""

    name: ClassVar[str] = "known"

    def run(self, victim: Victim, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
        return self.images(x)

    @staticmethod
    def images(x: Tensor) -> Tensor:
        return x.roll(1, 0)


def shard(victim: LinearVictim, x: Tensor, y: Tensor, target: Tensor, attack: Attack | None = None) -> ShardOutcome:
    bench = Bench.of(victim.model, 4, "cpu")
    attack = attack or APGD(steps=10)
    threat = Threat("linf", EPS)
    return run_shard(bench, attack, threat, index=torch.arange(len(x)), x=x, y=y, seed=0, target=target)


def test_an_error_that_is_not_the_target_stands_and_is_attacked(victim: LinearVictim) -> None:
    x, right = victim.images(N)
    y = right.clone()
    y[:4] = (right[:4] + 1) % 4  # the model errs on the first four
    target = (y + 1) % 4
    target[:2] = right[:2]  # of two of them towards the target
    samples = shard(victim, x, y, target).samples
    assert samples["clean_correct"].tolist() == [False] * 4 + [True] * (N - 4)
    assert stands(samples).tolist() == [False] * 2 + [True] * (N - 2)
    assert samples["attacked"].tolist() == [False] * 2 + [True] * (N - 2)
    assert samples["target"].tolist() == target.tolist()
    hit = samples["adv_pred"].to_numpy() == target.numpy()
    assert samples["adversarial"].tolist() == (hit & stands(samples)).tolist()
    lost = broken(samples, "linf", EPS)
    assert lost[:2].all()
    assert 2 < lost.sum() < N
    correct = samples["clean_correct"].to_numpy()
    assert success_on_correct(samples, "linf", EPS) == pytest.approx((lost & correct).sum() / correct.sum())


def test_what_is_met_on_the_way_counts_only_if_it_is_the_target(victim: LinearVictim) -> None:
    x, y = victim.images(N)
    target = (y + 2) % 4

    @dataclass(frozen=True, kw_only=True)
    class Passes(Attack):
        """Meets the target's region, or another's, and comes back to the clean image."""

        name: ClassVar[str] = "passes"
        targeting: ClassVar[Any] = "rows"
        by: int = 2

        def run(self, victim: Victim, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
            victim(propose(MinimumNorm(), guide, x, labels, Threat("linf"), (labels + self.by) % 4))
            return x + 1e-5 * per_sample(torch.ones(len(x)), x) * (x < 0.5)

    guide, labels = victim, y
    threat = {"attack": Passes(), "x": x, "y": y, "target": target}
    met = shard(victim, **threat)  # type: ignore[arg-type]
    near = optimum(victim, x, target, "linf") < EPS * 0.9
    assert met.samples["adversarial"][near.numpy()].mean() > 0.5
    assert met.facts.harvest is not None
    assert met.facts.harvest.lost == int(met.samples["adversarial"].sum()) > 0
    other = shard(victim, **threat | {"attack": Passes(by=1)})  # type: ignore[arg-type]
    assert not other.samples["adversarial"].any()
    assert other.facts.harvest is not None
    assert other.facts.harvest.lost == 0


def test_a_suite_with_targets_has_a_name_of_its_own() -> None:
    from harness.goal import Goal

    suite = Suite(name="s", summary="", attacks={"linf": (Gradient(),)}, goal=Goal(rule="next"))
    assert suite.name == "s, targeted: next"
    assert suite.at({"linf": (0.5,)}).name == "s at linf 0.5, targeted: next"
    assert replace(suite, samples=3).name == suite.name
    with pytest.raises(UserError, match="has its targets already"):
        suite.towards(Goal(rule="random"))
