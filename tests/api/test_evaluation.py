from __future__ import annotations

import copy
import functools
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import gauntlet
from defenses.standard import Standard
from harness import api
from harness.api import External, digest
from harness.attacks.apgd import APGD
from harness.attacks.base import Attack, Kind
from harness.attacks.distilled import Distilled
from harness.attacks.square import Square
from harness.attacks.transfer import Transfer
from harness.datasets.registry import DATASETS, Dataset
from harness.determinism import seed_everything
from harness.errors import UserError
from harness.judging.proposal import Bench
from harness.judging.shard import run_shard
from harness.metrics.pairs import PAIR_COLUMNS, Board, pair_rows
from harness.planning import gradient_free
from harness.planning.plan import plan
from harness.planning.specs import ModelSpec
from harness.planning.suite import Suite
from harness.records.results import pair_from_outcomes
from harness.selftest.masked_gradients import BROKEN, RandomInput
from harness.threat import EXPONENT, Threat, magnitude, per_sample, steepest
from harness.victims.adaptation import Remedy
from harness.victims.victim import Victim, VictimError, input_gradient
from tests.helpers.boards import declared

N = 40

evaluate = functools.partial(gauntlet.evaluate, remedy=Remedy(), health=False)
"""Without the looks at the model, which have tests of their own below."""


class Cast(nn.Module):
    """Logits of another type."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.model, self.dtype = model, dtype

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x)
        return logits.to(self.dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_logits_may_be_of_any_float(dtype: torch.dtype, trained: nn.Module, digits: Dataset) -> None:
    x, y = digits.test[0][:20], digits.test[1][:20]
    pairs = evaluate(Cast(trained, dtype), x, y, "quick", certify=0, progress=False)
    assert set(pairs["status"]) == {"ok"}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model, x, y: gauntlet.evaluate(model, x, y, "sanity", eps=8), "is it 8/255"),
        (lambda model, x, y: gauntlet.evaluate(x, model), "the model comes first"),
        (lambda model, x, y: gauntlet.evaluate(model, TensorDataset(x, y)), "in a DataLoader"),
        (lambda model, x, y: gauntlet.attack(model, x, y, norm="l7"), "unknown norm 'l7'"),
    ],
)
def test_what_was_meant_is_said(
    call: Callable[[nn.Module, Tensor, Tensor], object], message: str, trained: nn.Module, digits: Dataset
) -> None:
    with pytest.raises(UserError, match=message):
        call(trained, *digits.test_sample(5)[1])


def test_images_for_transfer_go_beyond_their_models_boundary(trained: nn.Module, digits: Dataset) -> None:
    victim = Victim(trained)
    x, y = digits.test[0][:40], digits.test[1][:40]
    threat, margins = Threat("linf", 0.2), []
    for source in (victim, victim.insatiable()):
        seed_everything(0)
        x_adv = APGD(steps=20)(source, x, y, threat)
        logits = victim.logits(x_adv)
        own = logits.gather(1, y.unsqueeze(1)).squeeze(1)
        margins.append((logits.scatter(1, y.unsqueeze(1), -math.inf).amax(1) - own).median())
    assert margins[1] > margins[0] + 1


@dataclass(frozen=True, kw_only=True)
class Step(Attack):
    """One noisy steepest step."""

    name: ClassVar[str] = "step"
    noise: float = 0.1

    def run(self, victim: Victim, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
        assert threat.eps is not None
        _, grad, _ = input_gradient(victim, x, lambda z: F.cross_entropy(z, y, reduction="none"))
        delta = steepest(grad, EXPONENT[threat.norm]) + self.noise * torch.randn_like(x)
        delta = delta * (threat.eps / per_sample(magnitude(delta, threat.norm), x))
        return threat.project(x, x + delta)


@dataclass(frozen=True, kw_only=True)
class Far(Attack):
    """Another image: minimal in name alone."""

    name: ClassVar[str] = "far"

    @property
    def kind(self) -> Kind:
        return "minimal"

    def run(self, victim: Victim, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
        return x.roll(1, 0)


SUITE = Suite(name="tiny", summary="", attacks={"linf": (Step(), Far()), "l2": (Step(),)}, batch=15)


def only(attack: Attack, eps: float = 0.05) -> Suite:
    return Suite(name="one", summary="", attacks={"linf": (attack,)}, budgets={"linf": (eps,)}, batch=15)


class Returns(nn.Module):
    """A model that answers with whatever it was told to."""

    def __init__(self, answer: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: Tensor) -> Any:
        return self.answer(x)


@pytest.fixture(scope="module")
def sample(digits: Dataset) -> tuple[Tensor, Tensor]:
    _, (x, y) = digits.test_sample(N)
    return x, y


# ---------------------------------------------------------------- numbers


def test_a_row_a_pair_and_eps(trained: nn.Module, sample: Any, digits: Dataset) -> None:
    frame = evaluate(trained, *sample, SUITE, dataset=digits.info, name="mine")
    assert list(frame.columns) == list(PAIR_COLUMNS)
    rows = list(zip(frame["attack"], frame["norm"], frame["eps"], strict=True))
    budgets = DATASETS["digits"].budgets
    assert sorted(rows) == sorted(
        [(name, "linf", eps) for eps in budgets["linf"] for name in ("step", "far")]
        + [("step", "l2", eps) for eps in budgets["l2"]]
    )
    assert frame["n"].eq(N).all()
    assert frame["architecture"].eq("mine").all()
    assert frame["suite"].eq("tiny").all()
    assert frame["status"].eq("ok").all()
    assert frame["run_id"].eq("").all()
    assert (frame["robust_accuracy"] <= frame["clean_accuracy"]).all()
    assert (frame["robust_accuracy_low"] <= frame["robust_accuracy"]).all()
    step = frame[(frame["attack"] == "step") & (frame["norm"] == "linf")].sort_values("eps")
    assert step["robust_accuracy"].is_monotonic_decreasing
    assert step["robust_accuracy"].iloc[-1] < step["clean_accuracy"].iloc[-1] - 0.2
    assert step["forwards"].eq(1).all()
    assert step["backwards"].eq(1).all()
    # what is far is a success, but not within any eps
    far = frame[frame["attack"] == "far"]
    assert (far["success_rate"] > 0.5).all()
    assert far["robust_accuracy"].eq(far["clean_accuracy"]).all()


def test_the_numbers_are_those_of_the_shards(trained: nn.Module, sample: Any, digits: Dataset) -> None:
    x, y = sample
    found = evaluate(trained, x, y, SUITE, dataset=digits.info)
    (name,) = set(found["dataset"])
    info = replace(digits.info, name=name, test_size=N)
    spec = ModelSpec(dataset=name, architecture="model", defense=External(weights=digest(trained)))
    bench = Bench.of(trained, 10, "cpu")
    pairs = []
    for cell in reversed(plan(SUITE, [spec], {name: info}).cells):
        outcomes = [
            run_shard(
                bench,
                cell.attack,
                cell.threat,
                index=torch.arange(N)[cell.shard_slice(shard)],
                x=x[cell.shard_slice(shard)],
                y=y[cell.shard_slice(shard)],
                seed=cell.shard_seed(shard),
                shard=shard,
            )
            for shard in range(cell.shards)
        ]
        named = {"attack": cell.attack.label, "norm": cell.threat.norm, "eps": cell.threat.eps}
        made = declared(N, dataset=name, architecture="model", **named)
        pairs.append(pair_from_outcomes(made, outcomes))
    budgets = {name: {str(norm): eps for norm, eps in SUITE.grid(info).items()}}
    expected = pair_rows(Board(suite="tiny", budgets=budgets, pairs=pairs))
    same = [name for name in PAIR_COLUMNS if name not in {"defense", "toolkit", "seconds"}]
    pd.testing.assert_frame_equal(found[same], expected[same], check_dtype=False)


def test_the_same_again_gives_the_same(trained: nn.Module, sample: Any) -> None:
    first, second = (evaluate(trained, *sample, SUITE).drop(columns="seconds") for _ in range(2))
    pd.testing.assert_frame_equal(first, second)


@pytest.mark.parametrize("how", ["images", "labels", "declared", "data set"])
def test_a_home_has_no_results_of_other_images(
    how: str, trained: nn.Module, sample: Any, digits: Dataset, tmp_path: Path
) -> None:
    def judged(x: Tensor, y: Tensor) -> float:
        info = replace(digits.info, test_size=N)
        whole = replace(digits, info=info, x_test=(x * 16).to(torch.uint8), y_test=y)
        given = {"x": whole} if how == "data set" else {"x": x, "y": y}
        asked = given | {"suite": only(Step(noise=0.0)), "dataset": digits.info if how == "declared" else None}
        kept, fresh = evaluate(trained, **asked, home=tmp_path), evaluate(trained, **asked)
        pd.testing.assert_frame_equal(kept.drop(columns="seconds"), fresh.drop(columns="seconds"))
        return float(kept["clean_accuracy"].iloc[0])

    x, y = sample
    other = (x, (y + 1) % 10) if how == "labels" else (x.flip(3), y)
    assert judged(x, y) > judged(*other) + 0.2


def test_a_home_has_no_results_of_a_model_that_answers_these_images_otherwise(
    trained: nn.Module, sample: Any, tmp_path: Path
) -> None:
    """Neither weights nor random images tell the two apart."""
    x, y = sample

    def odd(images: Tensor) -> Tensor:
        dark = images.flatten(1).mean(1) < 0.4  # as no random image is
        return torch.where(dark.unsqueeze(1), trained(images).roll(1, 1), trained(images))

    honest, other = (
        evaluate(Returns(answer), x, y, only(Step()), home=tmp_path)["clean_accuracy"].iloc[0]
        for answer in (trained.__call__, odd)
    )
    assert honest > other + 0.5


@pytest.mark.parametrize(
    "form",
    [
        lambda x, y: (x.numpy(), y.numpy()),
        lambda x, y: (x.numpy()[::-1][::-1].astype(np.float64), y.numpy().astype(np.uint8)),
        lambda x, y: (x.double().requires_grad_(True), y.int()),
        lambda x, y: (np.flip(np.flip(x.numpy(), 3), 3), y.tolist()),
        lambda x, y: (frozen(x), frozen(y)),
    ],
    ids=["numpy", "float64", "graph", "strides", "read-only"],
)
def test_images_and_labels_in_many_forms(trained: nn.Module, sample: Any, form: Any) -> None:
    expected = evaluate(trained, *sample, only(Step())).drop(columns="seconds")
    pd.testing.assert_frame_equal(evaluate(trained, *form(*sample), only(Step())).drop(columns="seconds"), expected)


def frozen(values: Tensor) -> Any:
    array = values.numpy().copy()
    array.flags.writeable = False
    return array


def test_every_image_given_is_judged(trained: nn.Module, sample: Any) -> None:
    frame = evaluate(trained, *sample, replace(only(Step()), samples=3))
    assert frame["n"].tolist() == [N]


def test_one_image_is_enough(trained: nn.Module, sample: Any) -> None:
    x, y = sample
    assert evaluate(trained, x[:1], y[:1], only(Step()))["n"].tolist() == [1]


def test_the_package_offers_it(trained: nn.Module, sample: Any) -> None:
    assert gauntlet.evaluate is api.evaluate
    with pytest.raises(AttributeError, match="has no attribute 'evaluat'"):
        _ = gauntlet.evaluat


def test_the_quick_suite(trained: nn.Module, digits: Dataset) -> None:
    _, (x, y) = digits.test_sample(10)
    frame = evaluate(trained, x, y, suite="quick", dataset=digits.info)
    assert frame["status"].eq("ok").all()
    assert frame["invalid"].eq(0).all()
    assert {"gauntlet", "art", "foolbox"} == set(frame["toolkit"])
    worst = frame.groupby(["norm", "eps"])["robust_accuracy"].min()
    assert worst["linf", 0.15] <= 0.5
    noise = frame[frame["attack"].str.startswith("noise")]
    assert (noise["robust_accuracy"] >= 0.8).all()


# ---------------------------------------------------------------- lies


def test_a_lie_never_scores(liar: Any, trained: nn.Module, sample: Any) -> None:
    attack, flag = liar
    eps = 0.05 if flag == "over_budget" else 20.0
    frame = evaluate(trained, *sample, only(attack, eps))
    (row,) = frame.to_dict("records")
    assert row["clean_accuracy"] > 0.8
    assert math.isnan(row["robust_accuracy"])  # a failure is no robustness, nor is an attack that did nothing
    assert math.isnan(row["success_rate"])
    assert all(math.isnan(row[name]) for name in ("median_l2", "median_linf", "mean_rms"))
    attacked = round(row["clean_accuracy"] * N)
    assert row["invalid"] == (attacked if flag else 0)
    assert row["status"] == ("crashed" if flag == "crashed" else "invalid")


def test_a_lie_does_not_spoil_the_others(liar: Any, trained: nn.Module, sample: Any) -> None:
    suite = only(Step(), 0.1)
    alone = evaluate(trained, *sample, suite).drop(columns="seconds")
    together = evaluate(trained, *sample, replace(suite, attacks={"linf": (liar[0], Step())})).drop(columns="seconds")
    both = together[together["attack"] == "step"].reset_index(drop=True)
    pd.testing.assert_frame_equal(both, alone)


@dataclass(frozen=True, kw_only=True)
class Preparing(Attack):
    name: ClassVar[str] = "preparing"
    way: str
    shift: float = 0.0

    def prepare(self, victim: Victim, x: Tensor, y: Tensor) -> Attack:
        match self.way:
            case "raises":
                raise RuntimeError("no luck")
            case "mutates":
                x.zero_()
                y.zero_()
            case "zeroes the weights":
                for parameter in victim.parameters():
                    parameter.data.zero_()
        return replace(self, shift=1.0)

    def run(self, victim: Victim, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
        return threat.project(x, x + self.shift)


def test_a_prepared_attack_runs_as_prepared(trained: nn.Module, sample: Any) -> None:
    (row,) = evaluate(trained, *sample, only(Preparing(way=""), 1.0)).to_dict("records")
    assert row["success_rate"] > 0.5


@pytest.mark.parametrize(
    ("way", "status"), [("raises", "crashed"), ("zeroes the weights", "crashed"), ("mutates", "ok")]
)
def test_preparations_that_go_wrong(trained: nn.Module, sample: Any, way: str, status: str) -> None:
    x, y = sample
    kept = x.clone(), y.clone()
    suite = replace(only(Preparing(way=way), 0.0), attacks={"linf": (Preparing(way=way), Step())})
    frame = evaluate(trained, x, y, suite).set_index("attack")
    assert torch.equal(x, kept[0])
    assert torch.equal(y, kept[1])
    row = frame.loc[f"preparing(way={way})"]
    assert row["status"] == status
    assert row["clean_accuracy"] > 0.8
    assert math.isnan(row["success_rate"]) == (status != "ok")
    assert math.isnan(row["robust_accuracy"]) == (status == "crashed")
    assert frame.loc["step", "status"] == "ok"


# ---------------------------------------------------------------- manners


def test_the_callers_things_are_left_alone(trained: nn.Module, sample: Any) -> None:
    x, y = sample
    model = nn.Sequential(copy.deepcopy(trained), nn.Dropout(0.5), nn.BatchNorm1d(10)).train()
    model.zero_grad()
    parameters = {name: value.clone() for name, value in model.state_dict().items()}
    images, labels = x.clone(), y.clone()
    seed_everything(11)
    expected = (random.random(), float(np.random.rand()), float(torch.rand(1)))
    seed_everything(11)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        evaluate(model, x, y, SUITE)
        assert torch.get_num_threads() == 2
        with pytest.raises(UserError):
            evaluate(model, x, y + 100, SUITE)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert (random.random(), float(np.random.rand()), float(torch.rand(1))) == expected
    assert model.training
    assert model[1].training
    assert all(parameter.requires_grad for parameter in model[2].parameters())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, parameters[name]) for name, value in model.state_dict().items())
    assert torch.equal(x, images)
    assert torch.equal(y, labels)
    assert torch.is_grad_enabled()


def test_the_digest_is_that_of_the_weights(trained: nn.Module) -> None:
    model = nn.BatchNorm1d(3)
    first = digest(model)
    assert digest(nn.BatchNorm1d(3)) == first
    model.running_mean.add_(1)  # type: ignore[union-attr]
    assert digest(model) != first
    assert digest(nn.BatchNorm1d(3).to(torch.bfloat16)) != first
    assert len(digest(trained)) == 16


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda x, y: (x + 0.5, y), r"images must lie in \[0, 1\], got values from 0.5 to 1.5"),
        (lambda x, y: (x - 1e-3, y), r"images must lie in \[0, 1\]"),
        (lambda x, y: (torch.where(x == x.max(), torch.nan, x), y), r"images must be finite, \d+ of 40 hold NaN"),
        (lambda x, y: (torch.where(x == x.max(), torch.inf, x), y), "images must be finite"),
        (lambda x, y: ((x * 255).to(torch.uint8), y), "images must be floats in .*uint8; divide 8-bit images by 255"),
        (lambda x, y: (x[:, 0], y), r"images must be \(N, C, H, W\), got \(40, 8, 8\): x\[:, None\] has the"),
        (lambda x, y: (x[0], y), r"images must be \(N, C, H, W\), got \(1, 8, 8\): x\[None\] has the dimension"),
        (lambda x, y: (x.permute(0, 2, 3, 1), y), r"channels last: use x.permute\(0, 3, 1, 2\)"),
        (lambda x, y: (x * 255, y), r"images must lie in \[0, 1\], got values up to 255; divide 8-bit images by 255"),
        (lambda x, y: (x[:0], y[:0]), "images must have shape .* N >= 1"),
        (lambda x, y: (x.to(torch.complex64), y), "images must be floats"),
        (lambda x, y: ([["a"]], y), "images must be a tensor or an array of numbers"),
        (lambda x, y: (x, y + 5), "labels run from 5 to 14, the model has 10 classes"),
        (lambda x, y: (x, y - 1), "labels run from -1 to 8"),
        (lambda x, y: (x, y.float()), r"labels must be whole numbers .* say so with y.long\(\)"),
        (lambda x, y: (x, y + 0.5), r"labels must be whole numbers of shape \(N,\), got torch.float32 \(40,\)$"),
        (lambda x, y: (x, y[:, None]), r"labels must be whole numbers .*: use y.flatten\(\)"),
        (lambda x, y: (x, torch.randn(40, 10)), r"labels must be .* scores of classes\? use y.argmax\(1\)"),
        (lambda x, y: (x, y > 3), "labels must be whole numbers"),
        (lambda x, y: (x, F.one_hot(y)), r"labels must be whole numbers .*: one-hot, use y.argmax\(1\)"),
        (lambda x, y: (x, [str(label) for label in y]), "labels must be a tensor or an array of numbers"),
        (lambda x, y: (x, y[:-1]), "40 images, but 39 labels"),
        (lambda x, y: (x[..., :-1], y), r"the model does not take 16 images of shape \(1, 8, 7\): RuntimeError"),
    ],
)
def test_bad_images_and_labels(trained: nn.Module, sample: Any, spoil: Any, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint) as raised:
        evaluate(trained, *spoil(*sample), SUITE)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (lambda x: x.flatten(1).sum(1), r"one score an image, shape \(16,\); return logits"),
        (lambda x: x.flatten(1).sum(1, keepdim=True), r"one score an image, shape \(16, 1\); return logits"),
        (lambda x: x.flatten(), r"shape \(1024,\) for 16 images"),
        (lambda x: x.flatten(1)[:1], r"shape \(1, 64\) for 16 images"),
        (lambda x: x.flatten(1).argmax(1), r"shape \(16,\)"),
        (lambda x: [x.flatten(1), x.flatten(1)], r"the model returned list.* which of \[0\], \[1\] are they"),
        (lambda x: x.flatten(1) * torch.nan, "NaN or infinite logits for 16 of 16 images"),
        (lambda x: x.flatten(1) / 0, "NaN or infinite logits"),
        (lambda x: x[0, 0, 0, 0, 0], r"does not take 16 images of shape \(1, 8, 8\): IndexError"),
    ],
)
def test_models_that_return_no_logits(sample: Any, answer: Any, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint) as raised:
        evaluate(Returns(answer), *sample, SUITE)
    assert "\n" not in str(raised.value)


def test_a_model_that_breaks_later_is_named_as_such(sample: Any) -> None:
    """Fine on clean images, NaN on what an attack finds: neither robust nor broken, it cannot be judged."""
    x, y = sample

    def answer(images: Tensor) -> Tensor:
        strange = ((images * 16) % 1 > 1e-3).flatten(1).any(1, keepdim=True)
        logits = F.one_hot(torch.zeros_like(y[: len(images)]), 10) + 0 * images.flatten(1)[:, :10]
        return torch.where(strange & torch.tensor(not torch.is_grad_enabled()), torch.nan, logits)

    with pytest.raises(VictimError, match="NaN or infinite logits"):
        evaluate(Returns(answer), x[:15], torch.zeros_like(y[:15]), only(Step()))


def test_a_model_that_raises_later_is_named_as_such(sample: Any) -> None:
    """Fine on clean images and beside them, an exception of its own on what an attack finds."""
    x, y = sample

    def answer(images: Tensor) -> Tensor:
        if not torch.is_grad_enabled() and bool(((16 * images).round() / 16 - images).abs().max() > 0.02):
            raise ValueError("no digit")
        return F.one_hot(torch.zeros_like(y[: len(images)]), 10) + images.flatten(1)[:, :10] - 1

    with pytest.raises(VictimError, match=r"raises on some images in \[0, 1\], .*: ValueError: no digit"):
        evaluate(Returns(answer), x[:15], torch.zeros_like(y[:15]), only(Step()))


def test_what_is_no_model(sample: Any) -> None:
    with pytest.raises(UserError, match=r"the model must be a torch.nn.Module, got function"):
        evaluate(lambda x: x, *sample, SUITE)  # type: ignore[arg-type]


def test_an_unknown_suite(trained: nn.Module, sample: Any) -> None:
    with pytest.raises(UserError, match="unknown suite 'quik'; did you mean quick"):
        evaluate(trained, *sample, "quik")


def test_a_suite_that_needs_other_models(trained: nn.Module, sample: Any) -> None:
    suite = only(Transfer(attack=Step(), defense=Standard()))
    with pytest.raises(UserError, match="suite one holds nothing but transfers, and these are to be left out"):
        evaluate(trained, *sample, suite)


def test_a_data_set_of_other_images(trained: nn.Module, sample: Any) -> None:
    with pytest.raises(UserError, match=r"mnist has images \(1, 28, 28\) and 10 classes, got \(1, 8, 8\) and 10"):
        evaluate(trained, *sample, SUITE, dataset=DATASETS["mnist"])


def test_what_attacks_must_know_is_found_out_and_trust_is_said(
    trained: nn.Module, sample: tuple[Tensor, Tensor], digits: Dataset
) -> None:
    plain = gauntlet.evaluate(trained, *sample, only(Step()), dataset=digits.info)
    assert plain.attrs["remedy"] == ""
    grade, reasons = plain.attrs["trust"]["linf"]
    assert (grade == "A") == (not reasons)
    assert plain.worst_case("linf", 0.05) == plain["robust_accuracy"].iloc[0]
    loud = nn.Sequential(trained, BROKEN["scaled-logits"].wrap(nn.Identity()))
    found = gauntlet.evaluate(loud, *sample, only(Step()), dataset=digits.info)
    assert "logits /" in found.attrs["remedy"]
    grade, reasons = found.attrs["trust"]["linf"]
    assert grade in ("C", "D")
    assert any("logits" in reason for reason in reasons), reasons


def test_where_gradients_are_of_no_use_answers_are_asked_for(
    trained: nn.Module, sample: tuple[Tensor, Tensor], digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = (Distilled(queries=35, updates=40), Square(queries=40))
    monkeypatch.setattr(gradient_free, "BESIDES", more)
    suite = Suite(name="led", summary="", attacks={"linf": (Step(), APGD(steps=5), Square(queries=9))})
    frame = gauntlet.evaluate(BROKEN["zero-gradient"].wrap(trained), *sample, suite, eps=0.1, dataset=digits.info)
    statuses = dict(zip(frame["attack"], frame["status"], strict=True))
    assert statuses == {"step": "crashed"} | {
        one.label: "ok" for one in more
    }  # a user's own is asked whatever it needs
    assert frame.attrs["remedy"] == "more questions about its answers, for gradients are missing"
    why, what = frame.attrs["notes"][-3], frame.attrs["notes"][-1]
    assert why.startswith("no gradient reaches the images (RuntimeError")
    assert what == (
        "model: its gradients are missing; asked besides: square(queries=40), distilled(queries=35, updates=40); "
        "not asked: apgd(steps=5)"
    )
    left = frame.set_index("attack")["robust_accuracy"]
    assert left["distilled(queries=35, updates=40)"] <= left["square(queries=40)"] < frame["clean_accuracy"].iloc[0]
    assert frame.attrs["trust"]["linf"][0] == "D"
    blind = gauntlet.evaluate(trained, *sample, suite, eps=0.1, dataset=digits.info, health=False)
    assert set(blind["attack"]) == {attack.label for attack in suite.attacks["linf"]}


def test_a_stochastic_model_is_judged_by_what_it_says_most_often(
    trained: nn.Module, sample: tuple[Tensor, Tensor], digits: Dataset
) -> None:
    with pytest.raises(VictimError, match="vary from call to call"):  # so loud that it shows under any seed
        evaluate(RandomInput(trained, sigma=1.0), *sample, only(Step()), dataset=digits.info)
    noisy = RandomInput(trained)
    first = gauntlet.evaluate(noisy, *sample, only(Step()), dataset=digits.info, health=False)
    again = gauntlet.evaluate(noisy, *sample, only(Step()), dataset=digits.info, health=False)
    assert "averaged over" in first.attrs["remedy"]
    pd.testing.assert_frame_equal(first.drop(columns="seconds"), again.drop(columns="seconds"))


def test_what_is_proved_stands_beside_what_was_attacked(trained: nn.Module, digits: Dataset) -> None:
    _, (x, y) = digits.test_sample(40)
    asked = {"linf": (Step(),), "l2": (Step(),)}
    steps = Suite(name="two", summary="", attacks=asked, budgets={"linf": (0.001, 0.002, 0.5), "l2": (0.01,)})
    found = evaluate(trained, x, y, steps, dataset=digits.info).attrs
    bands = {(band["norm"], band["eps"]): band for band in found["certified"]}
    assert set(bands) == {(case["norm"], case["eps"]) for case in found["worst_case"]}
    assert {band["n"] for band in bands.values()} == {32}
    small, _, large = (bands["linf", eps] for eps in (0.001, 0.002, 0.5))
    right = float((trained(x[:32]).argmax(1) == y[:32]).float().mean())
    assert 0.5 < small["certified"] <= small["attacked"] <= right
    assert large["certified"] == 0
    assert evaluate(trained, x, y, steps, dataset=digits.info, certify=40).attrs["certified"][0]["n"] == 40
    assert evaluate(trained, x, y, steps, dataset=digits.info, certify=0).attrs["certified"] == []


def test_a_data_set_and_budgets_of_ones_own(digits: Dataset) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    suite = Suite(name="one", summary="", attacks={"linf": (Step(),), "l2": (Step(),)}, samples=20)
    frame = evaluate(model, digits, suite=suite, eps="8/255")
    assert set(zip(frame["norm"], frame["eps"], frame["n"], strict=True)) == {("linf", 8 / 255, 20)}
    assert set(frame["suite"]) == {"one at linf 8/255"}
    _, (x, y) = digits.test_sample(20)
    again = evaluate(model, x, y, suite, eps={"linf": 8 / 255}, dataset=digits)
    assert frame["robust_accuracy"].tolist() == again["robust_accuracy"].tolist()
    both = evaluate(model, digits, suite=suite, eps={"l2": (0.5, 0.25), "linf": 0.1})
    assert sorted(zip(both["norm"], both["eps"], strict=True)) == [("l2", 0.25), ("l2", 0.5), ("linf", 0.1)]
    alone = evaluate(model, digits, suite=replace(suite, attacks={"l2": (Step(),)}), eps=1.5)
    assert list(zip(alone["norm"], alone["eps"], strict=True)) == [("l2", 1.5)]
    for wrong, said in ((0, "eps must be positive"), ("8/0", "eps must be positive"), ({"l1": 1}, "not in l1")):
        with pytest.raises(UserError, match=said):
            evaluate(model, digits, suite=suite, eps=wrong)
    with pytest.raises(UserError, match="labels come with the data set"):
        evaluate(model, digits, y, suite=suite)
    with pytest.raises(UserError, match="which labels have the images"):
        evaluate(model, x, suite=suite)
