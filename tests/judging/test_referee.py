from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from defenses.standard import Standard
from harness.api import evaluate
from harness.attacks.base import Attack
from harness.attacks.fast_gradient import Gradient, adv_loss
from harness.attacks.noise import Noise
from harness.attacks.transfer import Transfer
from harness.attacks.unclipped import Unclipped
from harness.datasets.registry import Dataset
from harness.errors import UserError
from harness.judging.proposal import Bench, Proposal
from harness.judging.referee import BOX_TOLERANCE, as_images, judge
from harness.judging.shard import ShardOutcome, craft, run_shard
from harness.metrics.pairs import DISTANCES, FLAGS, SAMPLE_COLUMNS, Pair, broken, nearest, summary, worst_case
from harness.planning.suite import Suite
from harness.records.results import pair_from_outcomes
from harness.selftest.linear_victim import LinearVictim
from harness.threat import NORMS, Norm, Threat, magnitude
from harness.victims.adaptation import Remedy
from harness.victims.victim import Victim, VictimError
from tests.helpers.boards import declared

CONVEX: tuple[Norm, ...] = ("linf", "l2", "l1")
N = 12


@pytest.fixture
def victim() -> LinearVictim:
    return LinearVictim.random(4, (1, 4, 4))


@pytest.fixture
def bench(victim: LinearVictim) -> Bench:
    return Bench.of(victim.model, 4, "cpu")


@pytest.fixture
def images(victim: LinearVictim) -> tuple[Tensor, Tensor]:
    return victim.images(N)


def run(bench: Bench, attack: Attack, threat: Threat, x: Tensor, y: Tensor, **more: Any) -> ShardOutcome:
    return run_shard(bench, attack, threat, index=torch.arange(len(x)), x=x, y=y, **({"seed": 0} | more))


class Shift(Attack):
    """Adds a given perturbation."""

    name = "shift"
    kind = "minimal"

    def __init__(self, delta: Tensor) -> None:
        object.__setattr__(self, "delta", delta)

    def run(self, victim: Any, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
        return x + self.delta  # type: ignore[attr-defined, no-any-return]


class Function(Attack):
    """Any function as an attack that minds its own result."""

    name = "function"

    def __init__(self, function: Any) -> None:
        object.__setattr__(self, "function", function)

    def run(self, victim: Any, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
        raise NotImplementedError

    def __call__(self, victim: Any, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
        return self.function(victim, x, y, threat)  # type: ignore[attr-defined, no-any-return]


# ---------------------------------------------------------------- honest images


@pytest.mark.parametrize("norm", CONVEX)
def test_distances_of_the_shortest_perturbations_are_exact(norm: Norm, victim: LinearVictim, images: Any) -> None:
    x, y = images
    x_adv = x + victim.perturbation(x, y, norm) * (1 + 1e-3)
    verdict = judge(victim, x, y, x_adv, Threat(norm))
    assert verdict.adversarial.all()
    assert verdict.valid.all()
    expected = victim.distance(x, y, norm).double() * (1 + 1e-3)
    torch.testing.assert_close(verdict.distances[norm], expected, rtol=2e-4, atol=0)
    delta = (x_adv.double() - x.double()).flatten(1).numpy()
    for name, order in {"linf": np.inf, "l2": 2, "l1": 1, "l0": 0}.items():
        exact = np.array([np.linalg.norm(row, ord=order) for row in delta])
        np.testing.assert_allclose(verdict.distances[name].numpy(), exact, rtol=1e-12)
    np.testing.assert_allclose(verdict.distances["rms"].numpy(), np.sqrt((delta**2).mean(1)), rtol=1e-12)


@pytest.mark.parametrize("norm", CONVEX)
def test_nothing_short_of_the_boundary_is_adversarial(norm: Norm, victim: LinearVictim, images: Any) -> None:
    x, y = images
    verdict = judge(victim, x, y, x + victim.perturbation(x, y, norm) * (1 - 1e-3), Threat(norm))
    assert not (verdict.adversarial & ~verdict.as_file).any()  # as a file it may lie beyond
    assert verdict.valid.all()
    assert torch.equal(verdict.adv_pred[~verdict.as_file], y[~verdict.as_file])
    assert verdict.adversarial.equal(verdict.as_file)
    assert all(values[~verdict.as_file].isnan().all() for values in verdict.distances.values())


def test_an_image_that_is_misclassified_as_a_file_alone_counts_as_that_file() -> None:
    class Files(nn.Module):
        """Class 1 for images of which each value is one of 8 bits, and none is that of a clean one."""

        def forward(self, x: Tensor) -> Tensor:
            on = (x == (x * 255).round() / 255).flatten(1).all(1) & (x > 0.5).flatten(1).all(1)
            return torch.stack([(~on).float(), on.float()], 1)

    x = torch.full((3, 1, 2, 2), 127 / 255)
    x_adv = x + torch.tensor([1.2, 0.3, 1.7]).view(3, 1, 1, 1) / 255
    verdict = judge(Victim(Files()), x, torch.zeros(3, dtype=torch.int64), x_adv, Threat("linf", 1.5 / 255))
    assert verdict.as_file.tolist() == [True, False, False]  # the second is the clean file, the third beyond the budget
    assert verdict.adversarial.tolist() == verdict.survives_rounding.tolist() == [True, False, False]
    assert verdict.distances["linf"][0] == pytest.approx(1 / 255, rel=1e-4)
    assert verdict.adv_pred.tolist()[:2] == [1, 0]
    # an image that would leave the budget as the nearest file is taken as one that leans to the clean image
    inside = judge(Victim(Files()), x, torch.zeros(3, dtype=torch.int64), x + 1.6 / 255, Threat("linf", 1.7 / 255))
    assert inside.as_file.all()
    torch.testing.assert_close(
        inside.distances["linf"], torch.full((3,), 1 / 255, dtype=torch.float64), rtol=1e-4, atol=0
    )


@pytest.mark.parametrize("norm", CONVEX)
def test_the_budget_decides_image_by_image(norm: Norm, victim: LinearVictim, images: Any) -> None:
    x, y = images
    distance = victim.distance(x, y, norm) * 1.001
    eps = float(distance.median())
    verdict = judge(victim, x, y, x + victim.perturbation(x, y, norm) * 1.001, Threat(norm, eps))
    near = distance <= eps * (1 + 1e-4)
    assert 0 < near.sum() < N
    assert torch.equal(verdict.adversarial, near)
    assert torch.equal(verdict.over_budget, ~near)
    assert (verdict.adv_pred[~near] == -1).all()
    assert verdict.distances[norm][~near].isnan().all()


def test_a_sparse_perturbation_is_counted_in_components(victim: LinearVictim, images: Any) -> None:
    x, y = images
    x_adv = x.clone()
    x_adv[:, 0, 0, :3] = 1
    verdict = judge(victim, x, y, x_adv, Threat("l0", 3))
    assert not verdict.over_budget.any()
    assert judge(victim, x, y, x_adv, Threat("l0", 2)).over_budget.all()
    assert set(verdict.distances["l0"][verdict.adversarial].tolist()) <= {3.0}


def test_rounding_at_the_box_is_forgiven_by_clamping(victim: LinearVictim, images: Any) -> None:
    x, y = images
    x_adv = x.clone()
    x_adv[:, 0, 0, 0] = 1 + BOX_TOLERANCE / 2
    verdict = judge(victim, x, y, x_adv, Threat("linf", 0.6))
    assert verdict.valid.all()
    # judged as it was clamped
    clamped = judge(victim, x, y, x_adv.clamp(0, 1), Threat("linf", 0.6))
    assert torch.equal(verdict.adv_pred, clamped.adv_pred)
    assert judge(victim, x, y, x_adv + BOX_TOLERANCE, Threat("linf", 0.6)).out_of_box.all()


def test_double_precision_and_graphs_are_taken(victim: LinearVictim, images: Any) -> None:
    x, y = images
    x_adv = (x + victim.perturbation(x, y, "l2") * 1.01).double().requires_grad_(True)
    verdict = judge(victim, x, y, x_adv, Threat("l2"))
    assert verdict.adversarial.all()
    assert not any(values.requires_grad for values in verdict.distances.values())


def test_a_bad_image_does_not_taint_its_neighbours(victim: LinearVictim, images: Any) -> None:
    x, y = images
    x_adv = x + victim.perturbation(x, y, "l2") * 1.01
    x_adv[0, 0, 0, 0], x_adv[1, 0, 0, 0], x_adv[2] = torch.nan, 1.5, 1 - x_adv[2].round()
    verdict = judge(victim, x, y, x_adv, Threat("l2", float(victim.distance(x, y, "l2").max()) * 1.02))
    assert verdict.non_finite.nonzero().flatten().tolist() == [0]
    assert verdict.out_of_box.nonzero().flatten().tolist() == [1]
    assert verdict.over_budget.nonzero().flatten().tolist() == [2]
    assert verdict.adversarial.tolist() == [False] * 3 + [True] * (N - 3)


def test_the_referee_is_not_on_the_bill(victim: LinearVictim, images: Any) -> None:
    x, y = images
    judge(victim, x, y, 1 - x, Threat("linf"))
    assert (victim.cost.forwards, victim.cost.backwards) == (0, 0)


def test_no_images_at_all(victim: LinearVictim) -> None:
    x, y = torch.zeros(0, 1, 4, 4), torch.zeros(0, dtype=torch.int64)
    verdict = judge(victim, x, y, x, Threat("linf", 0.1))
    assert verdict.adversarial.shape == (0,)


def test_nan_logits_on_a_valid_image_are_the_models_fault(images: Any) -> None:
    class Breaks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([x.flatten(1).sum(1), 0 / (x[:, 0, 0, 0] - 1)], dim=1)

    x, y = images
    bench = Bench.of(Breaks(), None, "cpu")
    x_adv = x.clone()
    x_adv[3, 0, 0, 0] = 1
    with pytest.raises(VictimError, match="NaN or infinite logits for 1 of"):
        judge(bench.referee, x, y, x_adv, Threat("linf"))


@pytest.mark.parametrize("value", [None, [1], np.zeros((2, 1, 4, 4)), torch.zeros(1, 1, 4, 4), torch.zeros(2, 1, 4)])
def test_what_is_no_batch_of_images(value: object) -> None:
    assert as_images(value, torch.zeros(2, 1, 4, 4)) is None


# ---------------------------------------------------------------- shards


def test_a_lie_never_scores(liar: Any, bench: Bench, images: Any) -> None:
    attack, flag = liar
    x, y = images
    y = y.clone()
    y[:3] = (y[:3] + 1) % 4  # the model gets these wrong as they are
    kept = x.clone(), y.clone()
    outcome = run(bench, attack, Threat("linf", 0.01 if flag == "over_budget" else 50), x, y)
    samples = outcome.samples

    assert torch.equal(x, kept[0])
    assert torch.equal(y, kept[1])
    assert list(samples.columns) == list(SAMPLE_COLUMNS)
    assert samples["clean_correct"].tolist() == [False] * 3 + [True] * (N - 3)
    assert samples["attacked"].tolist() == [False] * 3 + [True] * (N - 3)
    assert not samples["adversarial"].any()
    for name in FLAGS:
        assert samples.loc[3:, name].eq(name == flag).all(), name
        assert not samples.loc[:2, name].any()
    assert samples[list(DISTANCES)].isna().all(axis=None)  # censored, never zero
    assert samples["adv_pred"].tolist()[:3] == [-1] * 3
    if flag is not None:
        assert (samples["adv_pred"] == -1).all()
    assert broken(samples, "linf", 50).tolist() == [True] * 3 + [False] * (N - 3)
    assert bool(outcome.facts.errors) == (flag == "crashed")

    pair = pair_from_outcomes(declared(N), [outcome])
    assert pair.result.status == ("crashed" if flag == "crashed" else "invalid")
    if flag is not None:
        assert pair.summary[f"invalid_{flag}"] == N - 3
    else:
        assert pair.result.errors == ("the attack returned every image unchanged",)
    facts = summary(samples)
    assert facts["clean_accuracy"] == (N - 3) / N
    assert facts["success_rate"] == 0
    assert np.isnan(facts["median_l2"])
    assert np.isfinite(outcome.gallery["x_adv"]).all()


def test_a_lie_leaves_nothing_behind_for_the_next_attack(
    liar: Any, bench: Bench, victim: LinearVictim, images: Any
) -> None:
    x, y = images
    run(bench, liar[0], Threat("linf", 50), x, y)
    assert torch.is_grad_enabled()
    assert not any(module.training for module in bench.attacked.modules())
    assert not any(p.requires_grad or p.grad is not None for p in bench.attacked.parameters())
    for mine, theirs in zip(bench.attacked.parameters(), bench.referee.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    honest = run(bench, Shift(victim.perturbation(x, y, "l2") * 1.01), Threat("l2"), x, y)
    assert honest.samples["adversarial"].all()


def test_why_an_attack_crashed_is_noted(bench: Bench, images: Any) -> None:
    def fail(*_: Any) -> Tensor:
        raise RuntimeError("no luck\nand a second line")

    outcome = run(bench, Function(fail), Threat("l2"), *images)
    assert outcome.facts.errors == ("RuntimeError: no luck",)
    assert run(bench, Function(lambda *_: None), Threat("l2"), *images).facts.errors == (
        "TypeError: the attack returned None",
    )

    def tamper(victim: Any, x: Tensor, *_: Any) -> Tensor:
        next(victim.parameters()).data.zero_()
        return x

    (error,) = run(bench, Function(tamper), Threat("l2"), *images).facts.errors
    assert error.startswith("ModelChangedError: the attack changed the model it was given (1.weight")


def test_a_result_with_a_graph_is_judged(bench: Bench, victim: LinearVictim, images: Any) -> None:
    x, y = images
    delta = (victim.perturbation(x, y, "l2") * 1.01).requires_grad_(True)
    outcome = run(bench, Function(lambda _victim, x, *_: x + delta), Threat("l2"), x, y)
    assert outcome.samples["adversarial"].all()


def test_only_what_the_model_gets_right_is_attacked(bench: Bench, images: Any) -> None:
    x, y = images
    wrong = torch.arange(N) % 3 == 0
    y = torch.where(wrong, (y + 1) % 4, y)
    seen: list[Tensor] = []

    def look(victim: Any, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
        seen.append(x)
        return 1 - x.round()

    samples = run(bench, Function(look), Threat("linf"), x, y).samples
    assert torch.equal(seen[0], x[~wrong])
    assert samples["attacked"].tolist() == (~wrong).tolist()
    # rows stay with their images: the distance is that of this very image
    expected = (1 - x.round() - x).abs().flatten(1).amax(1)
    found = samples[samples["adversarial"]]
    np.testing.assert_allclose(found["linf"], expected[torch.tensor(found.index.to_numpy())], rtol=1e-5)


def test_a_model_that_is_always_wrong_is_not_attacked(bench: Bench, images: Any) -> None:
    x, y = images
    outcome = run(bench, Function(lambda *_: pytest.fail("called")), Threat("linf", 0.1), x, (y + 1) % 4)
    assert not outcome.samples["attacked"].any()
    assert not outcome.samples["adversarial"].any()
    assert broken(outcome.samples, "linf", 0).all()
    assert (outcome.facts.forwards, outcome.facts.seconds, outcome.facts.errors) == (0, 0.0, ())
    assert np.isnan(summary(outcome.samples)["success_rate"])


def test_the_bill_is_the_attacks(bench: Bench, images: Any) -> None:
    def spend(victim: Any, x: Tensor, *_: Any) -> Tensor:
        leaf = x.clone().requires_grad_(True)
        for _ in range(3):
            victim(leaf).sum().backward()
        victim(x)
        return x

    facts = run(bench, Function(spend), Threat("l2"), *images).facts
    assert (facts.forwards, facts.backwards) == (4 * N, 3 * N)


def test_a_seed_fixes_every_generator(bench: Bench, images: Any) -> None:
    def noise(victim: Any, x: Tensor, *_: Any) -> Tensor:
        return (x + 0.5 * torch.rand_like(x) * random.random() * np.random.rand()).clamp(0, 1)

    def draw(seed: int) -> pd.DataFrame:
        return run(bench, Function(noise), Threat("linf"), *images, seed=seed).gallery["x_adv"]

    np.testing.assert_array_equal(draw(3), draw(3))
    assert not np.array_equal(draw(3), draw(4))


def test_shards_of_any_size_find_the_same(bench: Bench, victim: LinearVictim) -> None:
    x, y = victim.images(24)
    delta = victim.perturbation(x, y, "l2") * 1.01
    whole = run(bench, Shift(delta), Threat("l2"), x, y).samples
    assert whole["adversarial"].all()
    for size in (1, 5, 24):
        parts = [
            run_shard(
                bench,
                Shift(delta[part]),
                Threat("l2"),
                index=torch.arange(24)[part],
                x=x[part],
                y=y[part],
                seed=0,
            ).samples
            for part in (slice(i, i + size) for i in range(0, 24, size))
        ]
        pd.testing.assert_frame_equal(pd.concat(parts, ignore_index=True), whole)


def test_crafted_images_are_judged_as_they_are(bench: Bench, victim: LinearVictim, images: Any) -> None:
    x, y = images
    x_adv = x + victim.perturbation(x, y, "l2") * 1.01
    y = y.clone()
    y[:2] = (y[:2] + 1) % 4
    never = Function(lambda *_: pytest.fail("called"))
    outcome = run(bench, never, Threat("l2"), x, y, crafted=Proposal(x_adv, 1.5, 24, 12))
    samples = outcome.samples
    assert samples["attacked"].tolist() == [False] * 2 + [True] * (N - 2)
    assert samples["adversarial"].tolist() == [False] * 2 + [True] * (N - 2)
    assert samples.loc[:1, list(DISTANCES)].isna().all(axis=None)
    assert (outcome.facts.seconds, outcome.facts.forwards, outcome.facts.backwards) == (1.5, 24, 12)


@pytest.mark.parametrize(("x_adv", "flag"), [(None, "crashed"), (torch.zeros(3, 1, 4, 4), "wrong_shape")])
def test_crafting_that_failed_breaks_nothing(x_adv: object, flag: str, bench: Bench, images: Any) -> None:
    samples = run(bench, Function(None), Threat("l2"), *images, crafted=Proposal(x_adv, 0.0, 0, 0, ("E: x",))).samples
    assert samples[flag].all()
    assert not samples["adversarial"].any()


def test_the_gallery_shows_the_attacked_images(bench: Bench, images: Any) -> None:
    x, y = images
    y = torch.where(torch.arange(N) < 2, (y + 1) % 4, y)
    gallery = run(bench, Function(lambda _victim, x, *_: 1 - x), Threat("linf"), x, y).gallery
    assert gallery["index"].tolist() == list(range(2, N))
    np.testing.assert_array_equal(gallery["x"], x[2:].numpy())
    np.testing.assert_array_equal(gallery["x_adv"], (1 - x[2:]).numpy())
    assert {len(values) for values in gallery.values()} == {N - 2}


@pytest.mark.parametrize("norm", NORMS)
def test_an_attack_asked_for_what_it_cannot_do_is_a_crash(norm: Norm, bench: Bench, images: Any) -> None:
    class Narrow(Shift):
        name = "narrow"
        kind = "budget"
        norms = ("l2",)

    outcome = run(bench, Narrow(torch.zeros(1)), Threat(norm, 1.0), *images)
    assert outcome.samples["crashed"].all() == (norm != "l2")
    assert run(bench, Narrow(torch.zeros(1)), Threat("l2"), *images).facts.errors == (
        "ValueError: narrow needs an eps",
    )


def test_what_an_attack_imports_is_no_cost_of_it(bench: Bench, images: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("harness.judging.shard.time.perf_counter", lambda: clock[0])

    class Slow(Function):
        def warm_up(self) -> None:
            clock[0] += 100

    def work(victim: Any, x: Tensor, *_: Any) -> Tensor:
        clock[0] += 1
        return x

    class Missing(Function):
        def warm_up(self) -> None:
            raise UserError("art is not installed")

    assert run(bench, Slow(work), Threat("l2"), *images).facts.seconds == 1
    outcome = run(bench, Missing(work), Threat("l2"), *images)
    assert outcome.samples["crashed"].all()
    assert "art is not installed" in outcome.facts.errors[0]


def test_a_model_at_fault_is_not_the_attacks_crash(images: Any) -> None:
    class Wide(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, : 2 if torch.is_grad_enabled() else 3]

    x, y = images
    bench = Bench.of(Wide(), 3, "cpu")
    attack = Function(lambda victim, x, *_: victim(x) and x)
    with pytest.raises(VictimError, match="2 logits, the data set has 3"):
        craft(bench.attacked, attack, Threat("l2"), x, y, 0)


def test_crafting_works_on_copies(bench: Bench, images: Any) -> None:
    def meddle(victim: Any, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
        x.zero_()
        y.zero_()
        return x

    x, y = images
    kept = x.clone(), y.clone()
    proposal = craft(bench.attacked, Function(meddle), Threat("linf"), x, y, 0)
    assert torch.equal(x, kept[0])
    assert torch.equal(y, kept[1])
    assert isinstance(proposal.x_adv, Tensor)
    assert not proposal.x_adv.any()


def test_an_attack_that_does_nothing_is_no_robustness(trained: nn.Module, digits: Dataset) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Idle(Attack):
        name = "idle"

        def run(self, victim: Victim, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
            return x

    suite = Suite(name="idle", summary="", attacks={"linf": (Idle(),)}, budgets={"linf": (0.1,)}, samples=20)
    _, (x, y) = digits.test_sample(20)
    frame = evaluate(trained, x, y, suite, dataset=digits.info)
    assert frame["status"].tolist() == ["invalid"]
    assert frame["robust_accuracy"].isna().all()


def test_a_model_that_changes_its_mind_is_refused(digits: Dataset) -> None:
    class Moody(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.randn(len(x), 10)

    _, (x, y) = digits.test_sample(20)
    suite = Suite(name="noise", summary="", attacks={"linf": (Noise(),)}, budgets={"linf": (0.1,)}, samples=20)
    with pytest.raises(UserError, match="vary from call to call"):
        evaluate(Moody(), x, y, suite, dataset=digits.info, remedy=Remedy(), health=False)


# ---------------------------------------------------------------- attacks without a box


@pytest.fixture
def corners(victim: LinearVictim) -> tuple[Tensor, Tensor]:
    """Black and white images: every step leaves the box."""
    x = torch.rand(N, 1, 4, 4, generator=torch.Generator().manual_seed(5)).round()
    return x, victim.predict(x)


def test_out_of_the_box_an_answer_is_noted_and_nothing_is_won(victim: LinearVictim, corners: Any) -> None:
    x, y = corners
    x_adv = x + victim.perturbation(x, y, "l2") * 1.01
    threat = Threat("l2", float(magnitude(x_adv - x, "l2").max()))
    strict, free = judge(victim, x, y, x_adv, threat), judge(victim, x, y, x_adv, threat, boxed=False)
    assert strict.out_of_box.all()
    assert torch.equal(free.out_of_box, strict.out_of_box)
    assert (strict.adv_pred == -1).all()
    assert torch.equal(free.adv_pred, victim.predict(x_adv))  # as they are: clamped they would be other images
    assert (free.adv_pred != y).all()
    assert (free.wrong_share == 1).all()
    assert not free.adversarial.any()
    assert not free.valid.any()
    assert not free.survives_rounding.any()
    torch.testing.assert_close(free.distances["l2"], magnitude((x_adv - x).double(), "l2"))


def test_the_budget_holds_without_a_box_too(victim: LinearVictim, corners: Any) -> None:
    x, y = corners
    x_adv = x + victim.perturbation(x, y, "l2") * 1.01
    distance = magnitude(x_adv - x, "l2")
    free = judge(victim, x, y, x_adv, Threat("l2", float(distance.median())), boxed=False)
    far = distance > distance.median()
    assert torch.equal(free.over_budget, far)
    assert torch.equal(free.adv_pred == -1, far)
    # clamped, this image would keep the budget
    assert judge(victim, x, y, x + 3 * (2 * x - 1), Threat("linf", 1.0), boxed=False).over_budget.all()
    assert not judge(victim, x, y, x + 3 * (2 * x - 1), Threat("linf", 3.0), boxed=False).over_budget.any()


def test_inside_the_box_an_unclipped_attack_wins_nothing_either(victim: LinearVictim, images: Any) -> None:
    x, y = images
    free = judge(victim, x, y, x + victim.perturbation(x, y, "l2") * 1.01, Threat("l2"), boxed=False)
    assert free.valid.all()
    assert (free.adv_pred != y).all()
    assert not free.adversarial.any()


def test_a_lie_is_a_lie_without_a_box_as_well(liar: Any, bench: Bench, images: Any) -> None:
    attack, flag = liar
    x, y = images

    class Free(Function):
        boxed = False

    eps = 0.01 if flag == "over_budget" else 50
    outcome = run(bench, Free(attack), Threat("linf", eps), x, y)
    state = pair_from_outcomes(declared(N), [outcome]).result.status
    assert not outcome.samples["adversarial"].any()
    expected = {"crashed": "crashed", "out_of_box": "unclipped"}.get(str(flag), "invalid")
    assert state == expected  # what does nothing is invalid as well


def pair_of(outcome: ShardOutcome, attack: Attack) -> Pair:
    return pair_from_outcomes(declared(N, attack=attack.label, norm="l2", eps=2.0), [outcome])


@pytest.mark.parametrize("crafted_elsewhere", [False, True])
def test_unclipped_pairs_are_in_no_worst_case(crafted_elsewhere: bool, bench: Bench, corners: Any) -> None:
    x, y = corners
    attack: Attack = Unclipped(attack=adv_loss())
    threat, crafted = Threat("l2", 2.0), None
    if crafted_elsewhere:  # the paper's fixed set
        source = Bench.of(LinearVictim.random(4, (1, 4, 4), scale=5.0).model, 4, "cpu")
        crafted = craft(source.attacked, attack, threat, x, y, 0)
        attack = Transfer(attack=attack, defense=Standard())
    free = run(bench, attack, threat, x, y, crafted=crafted)
    assert free.samples["out_of_box"].all()
    assert (free.samples["adv_pred"] != free.samples["label"]).all()
    free_pair = pair_of(free, attack)
    assert free_pair.result.status == "unclipped"
    assert free_pair.summary["invalid_out_of_box"] == N
    assert not broken(free.samples, "l2", 100).any()  # so no cascade drops an image for it
    assert nearest([free_pair], "l2")["distance"].eq(np.inf).all()
    clipped = run(bench, Gradient(), Threat("l2", 0.3), x, y)
    alone = worst_case([pair_of(clipped, Gradient())], "l2", 2.0)
    both = worst_case([pair_of(clipped, Gradient()), free_pair], "l2", 2.0)
    assert (both.accuracy, both.strongest) == (alone.accuracy, alone.strongest)
    assert both.broken_by[attack.label] == 0


def test_a_suite_with_an_unclipped_attack_says_so(trained: nn.Module, digits: Dataset) -> None:
    def worst(*attacks: Attack) -> tuple[pd.DataFrame, float]:
        suite = Suite(name="study", summary="", attacks={"l2": attacks}, budgets={"l2": (1.0,)}, samples=40)
        _, (x, y) = digits.test_sample(40)
        frame = evaluate(trained, x, y, suite, dataset=digits.info, health=False)
        return frame, frame.worst_case("l2", 1.0)

    weak = Gradient(p=1.0)
    both, accuracy = worst(weak, Unclipped(attack=Gradient()))
    _, alone = worst(weak)
    row = both.set_index("attack").loc["unclipped:gradient"]
    assert row["status"] == "unclipped"
    assert np.isnan(row["robust_accuracy"])
    assert row["invalid"] > 0
    assert accuracy == alone > worst(Gradient())[1]


class Undecided(nn.Module):
    """Says class 0 and class 1 in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return torch.eye(3)[self.calls % 2].expand(len(x), 3)


@pytest.mark.parametrize(("y", "target", "broken"), [(0, None, 1), (1, None, 0), (2, 1, 1), (2, 0, 0)])
def test_as_many_votes_for_another_class_break_an_image(y: int, target: int | None, broken: int) -> None:
    x, label = torch.rand(4, 1, 2, 2), torch.full((4,), y)
    aim = None if target is None else torch.full((4,), target)
    verdict = judge(Victim(Undecided(), classes=3, votes=2), x, label, x, Threat("linf", 0.1), label, target=aim)
    assert verdict.adversarial.all()
    assert (verdict.adv_pred == broken).all()
