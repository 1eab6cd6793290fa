from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import gauntlet
from harness.attacks.apgd import APGD
from harness.attacks.noise import Noise
from harness.datasets.registry import Dataset
from harness.errors import UserError
from harness.judging.proposal import Bench
from harness.judging.shard import run_shard
from harness.metrics.class_order import better_order
from harness.planning.suite import Suite
from harness.schema.models import Agreement
from harness.selftest.masked_gradients import ZeroGradient
from harness.threat import Threat
from harness.trust.inspection import inspect
from harness.victims.adaptation import Remedy
from harness.victims.agreement import agreement
from harness.victims.victim import Victim, input_gradient
from tests.helpers.zoo.masked import Cache, Noisy, Table

SUITE = Suite(name="two", summary="", attacks={"linf": (Noise(), APGD(steps=5))}, budgets={"linf": (0.05,)})


class Around(nn.Module):
    """A trained network behind code of a user's."""

    def __init__(self, model: nn.Module, do: Callable[[Around, Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.do, self.calls = copy.deepcopy(model), do, 0
        self.register_buffer("out", torch.zeros(300, 10), persistent=False)

    def __call__(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().__call__(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.do(self, x)


@pytest.fixture
def sample(digits: Dataset) -> tuple[Tensor, Tensor]:
    _, (x, y) = digits.test_sample(100)
    return x, y


# -- what the model is given belongs to the judge ---------------------------------------------------------------------


def clamp(self: Around, x: Tensor) -> Tensor:
    with torch.no_grad():
        x.clamp_(0, 0.8)
    return self.model(x)


def clamp_data(self: Around, x: Tensor) -> Tensor:
    x.data.clamp_(0, 0.8)
    return self.model(x)


def clamp_numpy(self: Around, x: Tensor) -> Tensor:
    shared = x.detach().numpy()
    np.clip(shared, 0, 0.8, out=shared)
    return self.model(x)


def normalise(self: Around, x: Tensor) -> Tensor:
    x -= 0.1
    x.mul_(1.1)
    return self.model(x)


def on_a_copy(self: Around, x: Tensor) -> Tensor:
    return self.model(x + (x.clamp(0, 0.8) - x).detach())


def normalise_a_copy(self: Around, x: Tensor) -> Tensor:
    return self.model((x - 0.1) * 1.1)


@pytest.mark.parametrize(
    ("writes", "same"),
    [(clamp, on_a_copy), (clamp_data, on_a_copy), (clamp_numpy, on_a_copy), (normalise, normalise_a_copy)],
)
def test_a_model_that_writes_is_served_like_one_that_copies(
    writes: Any, same: Any, trained: nn.Module, sample: tuple[Tensor, Tensor]
) -> None:
    x, y = sample
    mine = x.clone()
    usual: dict[str, Any] = {"health": False, "remedy": Remedy()}
    frames = [gauntlet.evaluate(Around(trained, do), mine, y, SUITE, **usual) for do in (writes, same)]
    assert torch.equal(mine, x)
    assert frames[0]["robust_accuracy"].tolist() == frames[1]["robust_accuracy"].tolist()
    assert any("it writes into the images it is given" in note for note in frames[0].attrs["notes"])
    assert not frames[1].attrs["notes"]


def test_a_model_that_keeps_its_input_changes_nothing_of_ours(
    trained: nn.Module, sample: tuple[Tensor, Tensor]
) -> None:
    kept: list[Tensor] = []

    def keep(self: Around, x: Tensor) -> Tensor:
        for one in kept:
            one.data.zero_()
        kept.append(x)
        return self.model(x)

    x = sample[0].clone()
    victim = Victim(Around(trained, keep))
    victim(x)
    _, grad, _ = input_gradient(victim, x, lambda z: z[:, 0])
    victim(x)
    assert torch.equal(x, sample[0])
    assert grad.abs().sum() > 0


def test_logits_given_before_stay_as_they_were(trained: nn.Module, sample: tuple[Tensor, Tensor]) -> None:
    def reuse(self: Around, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.out[: len(x)] = self.model(x)
        return self.out[: len(x)]

    victim, (x, _) = Victim(Around(trained, reuse)), sample
    first = victim(x)
    kept = first.clone()
    victim(x.flip(0))
    assert torch.equal(first, kept)


def test_a_model_sees_one_memory_layout(trained: nn.Module, sample: tuple[Tensor, Tensor]) -> None:
    def strides(self: Around, x: Tensor) -> Tensor:
        return self.model(x.view(len(x), -1).view_as(x)) + (0 if x.is_contiguous() else 100 * torch.randn(10))

    x = sample[0]
    turned = x.transpose(2, 3).contiguous().transpose(2, 3)
    assert not turned.is_contiguous()
    victim = Victim(Around(trained, strides))
    assert torch.equal(victim(turned), victim(x))


@pytest.mark.parametrize("cut", ["none", "detached", "no grad"])
def test_a_gradient_that_does_not_reach_the_images_is_told(
    cut: str, trained: nn.Module, sample: tuple[Tensor, Tensor]
) -> None:
    class Hard(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.round(decimals=1)

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> None:
            return None

    def forward(self: Around, x: Tensor) -> Tensor:
        if cut == "none":
            return self.model(Hard.apply(x))
        with torch.set_grad_enabled(cut != "no grad"):
            return self.model(x.detach() if cut == "detached" else x)

    found = inspect(Around(trained, forward), *sample, 10)
    assert not found.facts.gradients
    assert any("no gradient reaches the images" in note for note in found.notes)


# -- the same answer, however it is asked -----------------------------------------------------------------------------


def other_above(limit: int) -> Callable[[Around, Tensor], Tensor]:
    return lambda self, x: self.model(x if len(x) <= limit else x.flip(3))


def by_place(self: Around, x: Tensor) -> Tensor:
    return self.model(x) + 30 * torch.eye(10)[torch.arange(len(x)) % 10]


def for_gradients(self: Around, x: Tensor) -> Tensor:
    return self.model(x.flip(2) if x.requires_grad else x)


def in_recording(self: Around, x: Tensor) -> Tensor:
    return self.model(x.flip(2) if torch.is_grad_enabled() else x)


def of_the_batch(self: Around, x: Tensor) -> Tensor:
    return self.model(x) * 3 - self.model(x).mean(0) * 3


def tiring(self: Around, x: Tensor) -> Tensor:
    return self.model(x if self.calls < 6 else x.flip(2))


@pytest.mark.parametrize(
    ("do", "said"),
    [
        (other_above(16), "in a larger batch"),
        (other_above(40), "in a larger batch"),
        (other_above(1), "alone"),
        (by_place, "alone"),
        (of_the_batch, "alone"),
        (for_gradients, "with gradients recorded"),
        (in_recording, "with gradients recorded"),
        (tiring, "keeps state from call to call"),
    ],
)
def test_a_model_that_answers_otherwise_is_refused_at_both_doors(
    do: Any, said: str, trained: nn.Module, sample: tuple[Tensor, Tensor]
) -> None:
    with pytest.raises(UserError, match=said) as raised:
        inspect(Around(trained, do), *sample, 10)
    assert "\n" not in str(raised.value)
    with pytest.raises(UserError, match=said):
        gauntlet.evaluate(Around(trained, do), *sample, SUITE)


def test_train_and_eval_may_do_no_more_than_set_a_mode(trained: nn.Module, sample: tuple[Tensor, Tensor]) -> None:
    class Spoiled(Around):
        def train(self, mode: bool = True) -> Spoiled:
            if mode:
                self.do = lambda self, x: self.model(x.flip(2))
            return super().train(mode)

    with pytest.raises(UserError, match=r"after train\(\) and eval\(\) .*: its train\(\) or eval\(\) does more"):
        inspect(Spoiled(trained, lambda self, x: self.model(x)), *sample, 10)


@pytest.mark.parametrize(
    ("do", "who"),
    [
        (other_above(80), "in other batches"),
        (lambda self, x: self.model(x if self.calls < 40 else x.flip(2)), "the copy that was attacked"),
    ],
    ids=["batches above 80", "after 40 calls"],
)
def test_what_admission_cannot_see_costs_the_grade_after_the_run(
    do: Any, who: str, trained: nn.Module, sample: tuple[Tensor, Tensor]
) -> None:
    suite = Suite(name="one", summary="", attacks={"linf": (APGD(steps=60),)}, budgets={"linf": (0.05,)})
    frame = gauntlet.evaluate(Around(trained, do), *sample, suite, health=False)
    grade, reasons = frame.attrs["trust"]["linf"]
    assert grade == "D"
    assert any(who in reason for reason in reasons), reasons


@pytest.mark.usefixtures("few_questions")
def test_a_model_of_eight_bits_is_served_and_graded(trained: nn.Module, sample: tuple[Tensor, Tensor]) -> None:
    """Its activations are scaled by the largest of the batch, so that an image's logits depend on its neighbours."""

    def eight_bits(self: Around, x: Tensor) -> Tensor:
        logits = self.model(x)
        step = logits.detach().abs().max() / 127
        return logits + ((logits / step).round() * step - logits).detach()

    found = inspect(Around(trained, eight_bits), *sample, 10)
    assert found.facts.answers["alone"].differ > 0
    frame = gauntlet.evaluate(Around(trained, eight_bits), *sample, SUITE, health=False)
    grade, reasons = frame.attrs["trust"]["linf"]
    assert grade in ("C", "D")
    assert any("otherwise" in reason for reason in reasons)


def test_an_honest_shard_agrees_with_itself(trained: nn.Module, sample: tuple[Tensor, Tensor]) -> None:
    x, y = sample
    bench = Bench.of(trained, 10, "cpu")
    outcome = run_shard(bench, APGD(steps=5), Threat("linf", 0.05), index=torch.arange(100), x=x, y=y, seed=1)
    answers = outcome.facts.answers
    assert answers["referee"].model_dump() | {"change": 0} == {"images": 100, "differ": 0, "labels": 0, "change": 0}
    assert answers["attacked"].images == 16
    assert answers["referee"].change < 1e-5
    assert outcome.facts.unsteady == 0


def test_clean_images_are_asked_about_once_and_later_only_if_shown(
    trained: nn.Module, sample: tuple[Tensor, Tensor]
) -> None:
    x, y = sample
    bench = Bench.of(trained, 10, "cpu")
    asked: list[int] = []
    bench.referee.model.register_forward_pre_hook(lambda _, given: asked.append(len(given[0])))
    how: dict[str, Any] = {"index": torch.arange(100), "x": x, "y": y, "seed": 1}
    first = run_shard(bench, Noise(), Threat("linf", 0.05), **how)
    assert sum(asked) == 100 + 2 * 94 + 100  # the clean ones, the noisy ones and on the grid, the clean ones again
    asked.clear()
    few = torch.arange(100) < 10
    second = run_shard(bench, Noise(), Threat("linf", 0.01), standing=few, **how)
    shown = int(first.samples["clean_correct"][:10].sum())
    assert sum(asked) == 2 * shown + 10
    assert second.facts.answers["referee"].images == 10
    asked.clear()
    third = run_shard(bench, Noise(), Threat("linf", 0.01), standing=few & False, **how)
    assert not asked
    assert third.facts.answers == {}
    for one in (second, third):
        assert one.samples["clean_pred"].tolist() == first.samples["clean_pred"].tolist()


def test_what_changes_after_a_cell_shows_in_the_next(trained: nn.Module, sample: tuple[Tensor, Tensor]) -> None:
    x, y = sample
    bench = Bench.of(Around(trained, lambda self, x: self.model(x if self.calls < 1000 else x.flip(2))), 10, "cpu")
    how: dict[str, Any] = {"index": torch.arange(100), "x": x, "y": y, "seed": 1}
    first = run_shard(bench, Noise(), Threat("linf", 0.05), **how)
    assert first.facts.answers["referee"].labels == 0
    bench.referee.model.calls = 1000  # type: ignore[assignment]
    second = run_shard(bench, Noise(), Threat("linf", 0.01), **how)
    assert second.facts.answers["referee"].labels > 40


@pytest.mark.parametrize(("own", "asked"), [(False, [10, 5, 0]), (True, [10, 10, 10])])
def test_every_draw_of_a_model_that_no_seed_reaches_counts(
    own: bool, asked: list[int], trained: nn.Module, sample: tuple[Tensor, Tensor]
) -> None:
    """What a seed reaches is asked once more in a cell that attacks, and not where nothing is left to attack."""
    x, y = sample
    generator = torch.Generator() if own else None

    def noisy(self: Around, x: Tensor) -> Tensor:
        return self.model(x + 0.01 * torch.randn(x.shape, generator=generator))  # no label differs

    bench = Bench.of(Around(trained, noisy), 10, "cpu", Remedy(votes=5))
    calls: list[int] = []
    bench.referee.model.register_forward_pre_hook(lambda *_: calls.append(1))
    how: dict[str, Any] = {"index": torch.arange(100), "x": x, "y": y, "seed": 1}
    everything, nothing = torch.ones(100).bool(), torch.zeros(100).bool()
    found = []
    for standing in (nothing, everything, nothing):
        outcome = run_shard(bench, Noise(), Threat("linf", 0.05), standing=standing, **how)
        found.append(len(calls) - (10 if standing.any() else 0))  # the noisy images, as they are and on the grid
        assert outcome.facts.unsteady == 0
        calls.clear()
    assert found == asked


def test_images_on_which_votes_differ_count_as_wrong(trained: nn.Module, sample: tuple[Tensor, Tensor]) -> None:
    """A generator of the model's own, which no seed reaches."""
    private = torch.Generator()

    def noisy(self: Around, x: Tensor) -> Tensor:
        return self.model(x + 0.45 * torch.randn(x.shape, generator=private))

    x, y = sample
    found = inspect(Around(trained, noisy), x, y, 10)
    assert found.remedy.draws == 16
    bench = Bench.of(Around(trained, noisy), 10, "cpu", Remedy(draws=2, votes=5))
    outcome = run_shard(bench, Noise(), Threat("linf", 0.05), index=torch.arange(100), x=x, y=y, seed=1)
    assert 0 < outcome.facts.unsteady < 60
    assert int((~outcome.samples["clean_correct"]).sum()) >= outcome.facts.unsteady
    frame = gauntlet.evaluate(Around(trained, noisy), x, y, SUITE, health=False, remedy=Remedy(draws=2, votes=5))
    assert any("which count as wrong" in reason for reason in frame.attrs["trust"]["linf"][1])


def test_agreement_tells_rounding_from_another_answer() -> None:
    first = torch.tensor([[4.0, 1.0], [2.0, 2.0005], [0.0, 3.0]])
    assert agreement(first, first.clone()) == Agreement(images=3, differ=0, labels=0, change=0.0)
    second = first + torch.tensor([[0.003, 0.0], [0.001, 0.0], [0.0, 0.0]])  # the second label changes by rounding
    assert agreement(first, second).model_dump() | {"change": 0} == {"images": 3, "differ": 0, "labels": 0, "change": 0}
    third = first + torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.4, 0.0]])
    assert agreement(first, third).model_dump() == {"images": 3, "differ": 2, "labels": 1, "change": 0.25}
    assert agreement(first.bfloat16(), second.bfloat16()).differ == 0
    third[0, 0], third[2] = torch.nan, torch.tensor([2.0, torch.inf])
    assert agreement(first, third).model_dump() == {"images": 3, "differ": 3, "labels": 1, "change": 1.0}


def test_a_model_that_answers_nothing_where_gradients_are_recorded_is_refused(
    trained: nn.Module, sample: tuple[Tensor, Tensor]
) -> None:
    class Shy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = trained(x)
            return logits * torch.nan if x.requires_grad else logits

    with pytest.raises(UserError, match="otherwise with gradients recorded"):
        inspect(Shy(), *sample, 10)


# -- classes ----------------------------------------------------------------------------------------------------------


def test_another_order_of_the_classes_is_found() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 12, 144)
    order = np.array([0, 1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9])
    found = better_order(np.argsort(order)[labels], labels, 12)
    assert found is not None
    assert found.otherwise == 1.0
    assert dict(found.moved)[2] == order[2]
    assert "instead of" in str(found)
    noisy = np.where(rng.random(144) < 0.3, rng.integers(0, 12, 144), np.argsort(order)[labels])
    assert better_order(noisy, labels, 12) is not None


def test_a_partly_wrong_order_is_found_above_chance() -> None:
    labels = np.arange(200) % 10
    said = labels.copy()
    said[labels == 3], said[labels == 8] = 8, 3  # two classes of ten are exchanged
    found = better_order(said, labels, 10)
    assert found is not None
    assert (found.accuracy, found.otherwise, found.moved) == (0.8, 1.0, ((3, 8), (8, 3)))


@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_no_order_is_found_where_there_is_none(classes: int) -> None:
    rng = np.random.default_rng(classes)
    labels = rng.integers(0, classes, 256)
    right = np.where(rng.random(256) < 0.4, labels, rng.integers(0, classes, 256))
    for said in (labels, right, rng.integers(0, classes, 256), np.zeros(256, int)):
        assert better_order(said, labels, classes) is None
    assert better_order([], [], classes) is None


def test_images_brought_class_by_class_are_looked_at_across_classes(digits: Dataset, trained: nn.Module) -> None:
    x, y = digits.test
    order = y.argsort(stable=True)
    found = inspect(trained, x[order], y[order], 10)
    assert found.notes == ()
    assert found.facts.clean_accuracy > 0.8


def test_a_plan_asks_less(trained: nn.Module, sample: tuple[Tensor, Tensor]) -> None:
    quick, thorough = (inspect(trained, *sample, 10, thorough=so) for so in (False, True))
    assert quick.facts.passes < thorough.facts.passes / 1.1
    assert quick.facts.answers == {}
    assert (quick.remedy, quick.interface) == (thorough.remedy, thorough.interface)


def test_gradients_that_are_of_no_use_are_left_alone_unless_somebody_says_otherwise(
    trained: nn.Module, sample: tuple[Tensor, Tensor]
) -> None:
    cut = ZeroGradient(trained)
    quick, thorough = (inspect(cut, *sample, 10, thorough=so) for so in (False, True))
    assert quick.remedy == thorough.remedy == Remedy(gradients="missing")
    assert quick.facts.gradient_fault == thorough.facts.gradient_fault
    assert f"{thorough.facts.gradient_fault}: more attacks that need none are asked" in thorough.notes
    assert thorough.notes[-1] == "attacks see it through more questions about its answers, for gradients are missing"
    assert inspect(cut, *sample, 10, remedy=Remedy()).remedy == Remedy()
    known = inspect(cut, *sample, 10, stand_ins=(("front", "identity"),))
    assert (known.remedy, known.facts.gradient_fault) == (Remedy(stand_ins=(("front", "identity"),)), "")


def test_what_follows_gradients_is_left_out_of_no_model_that_has_them(
    trained: nn.Module, sample: tuple[Tensor, Tensor]
) -> None:
    missing = Remedy(gradients="missing")
    with pytest.raises(UserError, match="gradients=wrong leaves nothing out"):
        inspect(trained, *sample, 10, remedy=missing)
    assert inspect(ZeroGradient(trained), *sample, 10, remedy=missing).remedy == missing


def test_a_memory_of_images_is_refused(trained: nn.Module, digits: Dataset) -> None:
    x, y = digits.test_sample(64)[1]
    with pytest.raises(UserError, match=r"after images next to them.*keeps what it was asked"):
        inspect(Cache(trained).eval(), x, y)


def test_what_a_table_of_images_hides_is_asked_beside_them(trained: nn.Module, digits: Dataset) -> None:
    """Sure of its test images, it draws everywhere else."""
    x, y = digits.test_sample(64)[1]
    hidden = Table(Noisy(trained, torch.randn_like, 0.2), 1e-6).eval()
    assert torch.equal(hidden(x), hidden(x))
    assert inspect(hidden, x, y).remedy.draws > 1
