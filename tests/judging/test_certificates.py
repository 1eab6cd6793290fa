"""What is proved of a model: which images are asked about, at what cost, and whose word counts."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from defenses.noise_injection import NoiseInjection
from defenses.standard import Standard
from harness.certify import Certificate
from harness.datasets.registry import Dataset
from harness.determinism import seed_everything
from harness.external.external import External
from harness.judging import certificates
from harness.judging.certificates import cost, prove
from harness.models.registry import build_model
from harness.planning.specs import CERTIFIED_SHARD, Certification, ModelSpec
from harness.schema.certificates import CertificateFacts, together
from harness.threat import Threat
from harness.training.defense import Defense

GRID = (0.01, 0.02, 0.04)


def asked(n: int = 40, passes: int | None = None, defense: Defense | None = None, **more: Any) -> Certification:
    model = ModelSpec(dataset="digits", architecture="mlp-32", defense=defense or Standard(epochs=1), **more)
    return Certification(model=model, norm="linf", grid=GRID, n=n, passes=passes)


def proved(what: Certification, model: nn.Module, digits: Dataset, shard: int = 0) -> CertificateFacts:
    index, (x, y) = digits.test_sample(what.n, what.shard_slice(shard))
    (facts,) = prove([what], shard, model, index, x, y, classes=10)
    return facts


class Oracle:
    """Certifies what it is told, image by image and eps by eps, and remembers what it was asked."""

    def __init__(self, answers: Any, uncovered: str = "") -> None:
        self.answers, self.uncovered = answers, uncovered
        self.calls: list[tuple[float, int]] = []
        self.tried = 0
        self.seen: set[bytes] = set()

    def __call__(self, model: nn.Module, x: Tensor) -> Oracle:
        return self

    def hopeful(self, x: Tensor, y: Tensor, threat: Threat) -> bool:
        self.tried += len(x)
        return any(self.answers(image, threat.eps) for image in x)

    def bounds(self, x: Tensor, y: Tensor, threat: Threat, *, lines: bool, again: bool = False) -> Certificate:
        self.calls.append((threat.eps or 0.0, len(x)))
        images = {image.numpy().tobytes() for image in x}
        assert not again or images <= self.seen  # else nobody looked whether the model is what was traced
        self.seen |= images
        flags = torch.tensor([self.answers(image, threat.eps) for image in x], dtype=torch.bool)
        return Certificate(flags, torch.where(flags, 0.5, -0.5).double(), self.uncovered)


@pytest.mark.parametrize(("holds", "sizes"), [(False, []), (True, [38, 38, 38])])
def test_intervals_that_hold_nothing_are_given_up_after_a_few(
    trained: nn.Module, digits: Dataset, monkeypatch: pytest.MonkeyPatch, holds: bool, sizes: list[int]
) -> None:
    oracle = Oracle(lambda *_: holds)
    monkeypatch.setattr(certificates, "prepare", oracle)
    (_, (x, y)) = digits.test_sample(40)
    assert int((trained(x).argmax(1) == y).sum()) == 38
    what = dataclasses.replace(asked(passes=40 * certificates.INTERVAL_PASSES), intervals=True)
    facts = proved(what, trained, digits)
    assert (oracle.tried, [count for _, count in oracle.calls]) == (8, sizes)
    assert sum(facts.levels[-1].certified) == (38 if holds else 0)
    assert len(facts.index) == 40


def test_what_a_few_gradient_steps_break_is_not_taken_apart(
    trained: nn.Module, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Hidden(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return trained(x).detach()  # type: ignore[no-any-return]

    oracle = Oracle(lambda *_: False)
    monkeypatch.setattr(certificates, "prepare", oracle)

    class Wrong(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return -trained(x)  # type: ignore[no-any-return]

    for eps, model, tried in ((0.3, trained, 0), (0.01, trained, 8), (0.3, Hidden(), 8), (0.3, Wrong(), 0)):
        oracle.tried = 0
        what = dataclasses.replace(asked(passes=40 * certificates.INTERVAL_PASSES), intervals=True, grid=(eps, 0.5))
        facts = proved(what, model, digits)
        assert oracle.tried == tried
        assert not any(any(level.certified) for level in facts.levels)
        assert facts.uncovered == (certificates.BROKEN if (eps, model) == (0.3, trained) else "")


def test_only_what_is_right_is_asked_and_then_what_was_certified_before(
    trained: nn.Module, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, (x, y) = digits.test_sample(40)
    right = trained(x).argmax(1) == y
    assert not right.all()
    bright = x.flatten(1).mean(1)
    limit = float(bright[right].median())
    oracle = Oracle(lambda image, eps: float(image.mean()) > limit or eps < 0.02)
    monkeypatch.setattr(certificates, "prepare", oracle)
    facts = proved(asked(), trained, digits)
    kept = right & (bright > limit)
    totals = {eps: sum(count for at, count in oracle.calls if at == eps) for eps in GRID}
    assert totals == {0.01: int(right.sum()), 0.02: int(right.sum()), 0.04: int(kept.sum())}
    assert [level.certified for level in facts.levels] == [tuple(part.tolist()) for part in (right, kept, kept)]
    margins = facts.levels[2].margins
    assert [margin == margin for margin in margins] == kept.tolist()  # no number where nothing was asked
    assert facts.index == tuple(index.tolist())
    assert facts.alpha is None


def test_a_costly_certificate_is_of_fewer_images(trained: nn.Module, digits: Dataset) -> None:
    whole = proved(asked(), trained, digits)
    price = cost(trained, digits.test.x[:1])
    assert whole.cost == price
    some = proved(asked(passes=7 * price + price // 2), trained, digits)
    assert some.index == whole.index[:7]
    assert some.levels[0].certified == whole.levels[0].certified[:7]
    none = proved(asked(passes=price - 1), trained, digits)
    assert (none.n, none.index, none.uncovered) == (40, (), "")


def test_a_model_is_taken_apart_once(trained: nn.Module, digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, real = [], certificates.prepare

    def counted(model: nn.Module, x: Tensor) -> Any:
        calls.append(len(x))
        return real(model, x)

    monkeypatch.setattr(certificates, "prepare", counted)
    both = [asked(), replace(asked(), norm="l2", grid=(0.05,))]
    index, (x, y) = digits.test_sample(40)
    linf, l2 = prove(both, 0, trained, index, x, y, classes=10)
    assert (linf.norm, l2.norm, len(calls)) == ("linf", "l2", 1)
    assert repr(linf.levels) == repr(proved(both[0], trained, digits).levels)  # no number equals itself
    calls.clear()
    prove([asked(passes=0)], 0, trained, index, x, y, classes=10)
    assert calls == []  # nor for nothing


def test_shards_are_the_whole(trained: nn.Module, digits: Dataset) -> None:
    price = cost(trained, digits.test.x[:1])
    what = asked(n=CERTIFIED_SHARD + 30, passes=(CERTIFIED_SHARD + 10) * price)
    assert what.shards == 2
    found = together(tuple(proved(what, trained, digits, shard) for shard in (0, 1)))
    assert len(found.index) == CERTIFIED_SHARD + 10
    index, (x, y) = digits.test_sample(CERTIFIED_SHARD + 10)
    assert found.index == tuple(index.tolist())
    right = trained(x).argmax(1) == y
    assert (~torch.tensor(found.levels[0].certified) | right).all()
    assert any(found.levels[0].certified[CERTIFIED_SHARD:])


def test_a_cost_counts_the_bounds_below(monkeypatch: pytest.MonkeyPatch) -> None:
    seed_everything(0)
    x = torch.rand(1, 1, 8, 8)
    assert cost(build_model("softmax", (1, 8, 8), 10), x) == 1
    # each of ten hidden units is bounded through the first layer: 10 x 640 of 640 + 100 multiplications, four times
    assert cost(build_model("mlp-10", (1, 8, 8), 10), x) == 1 + math.ceil(4 * 10 * 640 / 740)
    assert cost(build_model("lenet", (1, 8, 8), 10).eval(), x) > 10 * cost(build_model("mlp-32", (1, 8, 8), 10), x)


def test_what_has_no_bound_certifies_nothing_and_says_why(
    trained: nn.Module, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificates, "prepare", Oracle(lambda image, eps: True, uncovered="aten.sort"))
    facts = proved(asked(), trained, digits)
    assert facts.uncovered == "aten.sort"
    assert not any(any(level.certified) for level in facts.levels)


def test_a_failing_bound_certifies_nothing_and_says_why(
    trained: nn.Module, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Certificate:
        raise RuntimeError("no export of this")

    monkeypatch.setattr(certificates, "prepare", fail)
    facts = proved(asked(), trained, digits)
    assert facts.uncovered == "RuntimeError: no export of this"
    assert not any(any(level.certified) for level in facts.levels)


def test_what_draws_has_no_bounds(trained: nn.Module, digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificates, "prepare", Oracle(lambda image, eps: True))
    what = asked(defense=NoiseInjection(), base=asked().model)
    assert proved(what, trained, digits).uncovered == "it draws at random"


class Boaster(nn.Module):
    """Says of itself that nothing can break it."""

    alpha = 0.001
    certificate_passes = 10

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.base(x)
        return out

    def certificates(
        self, x: Tensor, y: Tensor, threats: Sequence[Threat], *, quick: bool = False
    ) -> list[Certificate]:
        drawn = torch.rand(len(x)).double() + 1
        return [Certificate(torch.ones(len(x), dtype=torch.bool), drawn) for _ in threats]


def test_a_models_own_certificate_counts_where_it_is_right_and_draws_the_same_again(
    trained: nn.Module, digits: Dataset
) -> None:
    before = torch.get_rng_state()
    facts = proved(asked(), Boaster(trained), digits)
    _, (x, y) = digits.test_sample(40)
    assert facts.levels[0].certified == tuple((trained(x).argmax(1) == y).tolist())
    assert (facts.alpha, facts.cost) == (0.001, 10)
    assert torch.equal(torch.get_rng_state(), before)
    assert proved(asked(), Boaster(trained), digits).levels == facts.levels


def test_a_users_model_is_not_believed_when_it_speaks_of_itself(trained: nn.Module, digits: Dataset) -> None:
    facts = proved(asked(defense=External(weights="0")), Boaster(trained), digits)
    assert facts.alpha is None  # what is proved is proved by bounds on its network
    bounds = proved(asked(defense=External(weights="0")), trained, digits)
    assert [level.certified for level in facts.levels] == [level.certified for level in bounds.levels]


def test_the_model_given_stays_as_it_is(trained: nn.Module, digits: Dataset) -> None:
    model = nn.Sequential(trained).train()
    proved(asked(), model, digits)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
