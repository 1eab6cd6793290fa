"""Distilled: answers alone lead nearly as far as gradients, in few questions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from harness.attacks import distilled
from harness.attacks.apgd import APGD
from harness.attacks.base import Attack
from harness.attacks.distilled import FIRST, Answers, Distilled
from harness.attacks.per_image_rng import Draws
from harness.attacks.square import Square
from harness.datasets.registry import Dataset
from harness.determinism import seed_everything
from harness.errors import UserError
from harness.selftest.linear_victim import LinearVictim
from harness.selftest.masked_gradients import ZeroGradient
from harness.threat import Norm, Threat
from harness.victims.adaptation import Remedy
from harness.victims.victim import Victim

LINF = Threat("linf", 0.1)
FEW = Distilled(queries=FIRST + 6, updates=5, steps=4)


class Label(nn.Module):
    """Nothing but the label of another model."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.one_hot(self.inner(x).argmax(1), 10).float()


def run(attack: Attack, victim: Victim, x: Tensor, y: Tensor, threat: Threat = LINF) -> Tensor:
    seed_everything(0)
    return attack(victim, x, y, threat)


@pytest.fixture(scope="module")
def right(trained_once: nn.Module, digits: Dataset) -> tuple[Tensor, Tensor]:
    x, y = digits.test
    keep = (trained_once(x).argmax(1) == y).nonzero().squeeze(1)[:60]
    return x[keep], y[keep]


def test_without_gradients_it_leaves_hardly_more_than_gradients_do(
    trained: nn.Module, right: tuple[Tensor, Tensor]
) -> None:
    x, y = right
    victim = Victim(ZeroGradient(trained), classes=10)
    with victim.counted() as cost:
        x_adv = run(Distilled(), victim, x, y)
    left = int((victim.predict(x_adv) == y).sum())
    gradients = int((victim.predict(run(APGD(loss="dlr", targets=9, steps=20), Victim(trained), x, y)) == y).sum())
    scores = int((victim.predict(run(Square(queries=100), victim, x, y)) == y).sum())
    assert left <= gradients + 3
    assert left < scores
    assert cost.backwards == 0
    assert FIRST * len(x) < cost.forwards < 100 * len(x)  # whoever is fooled is asked no more


def test_labels_alone_teach_more_than_a_search_by_scores_finds(
    trained: nn.Module, right: tuple[Tensor, Tensor]
) -> None:
    victim = Victim(Label(trained), classes=10)
    left = [int((victim.predict(run(a, victim, *right)) == right[1]).sum()) for a in (Distilled(), Square(queries=100))]
    assert left[0] <= left[1] - 5


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 6), (2, 1, 2), (1, 40, 33)])
def test_every_proposal_is_in_ball_and_box(norm: Norm, shape: tuple[int, int, int]) -> None:
    victim = LinearVictim.random(3, shape=shape, seed=1, scale=8.0)
    x = torch.rand(6, *shape, generator=torch.Generator().manual_seed(0)).mul(1.5).sub(0.25).clamp(0, 1)
    y = victim.predict(x)
    for eps in (0.0, 0.1, 100.0):
        x_adv = run(FEW, victim, x, y, Threat(norm, eps))
        assert x_adv.min() >= 0
        assert x_adv.max() <= 1
        assert bool(Threat(norm, eps).within(x, x_adv).all())
        assert eps > 0 or torch.equal(x_adv, x)


def test_what_is_wrong_as_it_is_comes_back_and_a_draw_is_no_proof() -> None:
    victim = LinearVictim.random(3, shape=(1, 8, 8))
    x, y = victim.images(5)
    with victim.counted() as cost:
        assert torch.equal(run(FEW, victim, x, (y + 1) % 3), x)
    assert cost.forwards == FIRST * len(x)
    drawn = Victim(victim.model, remedy=Remedy(draws=2))
    with drawn.counted() as cost:
        run(FEW, drawn, x, (y + 1) % 3)
    assert cost.forwards == 2 * FEW.queries * len(x)


def test_old_answers_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    victim = LinearVictim.random(3, shape=(1, 8, 8))
    x, y = victim.images(5)
    monkeypatch.setattr(distilled, "ROOM", 3 * x.numel())
    known = Answers(victim, x, y, LINF)
    known.look_around(Draws(x))
    assert len(known.points) == len(known.logits) == 3
    assert bool(LINF.within(x, run(FEW, victim, x, y)).all())


@pytest.mark.parametrize("fields", [{"queries": FIRST}, {"steps": 0}, {"updates": 0}, {"batch_size": 0}, {"lr": 0.0}])
def test_bad_fields(fields: dict[str, float]) -> None:
    with pytest.raises(UserError, match=r"must be >= \d+|and lr positive"):
        Distilled(**fields)  # type: ignore[arg-type]
