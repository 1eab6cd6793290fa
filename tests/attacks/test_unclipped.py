from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from defenses.standard import Standard
from harness.attacks.alpha import Alpha, adv_alpha
from harness.attacks.fast_gradient import Gradient, adv_loss
from harness.attacks.noise import Noise
from harness.attacks.transfer import Transfer
from harness.attacks.unclipped import Unclipped
from harness.errors import UserError
from harness.identity import key
from harness.judging.proposal import Bench
from harness.judging.shard import run_shard
from harness.metrics.pairs import broken
from harness.selftest.linear_victim import LinearVictim
from harness.threat import Threat, magnitude
from tests.helpers.linear import worst_loss

EPS = 0.4
THE_THREE = {
    "Adv_Alpha": adv_alpha(),
    "Adv_Loss": adv_loss(),
    "Adv_Loss_Sign": Gradient(p=math.inf, objective="probability"),
}


@pytest.mark.parametrize("name", THE_THREE)
@pytest.mark.parametrize("clip", [False, True])
def test_the_optimum_on_linear_logits(name: str, clip: bool) -> None:
    """Of the L2 ball for the two gradients, of the cube inscribed in it for the sign; the box is not touched."""
    victim = LinearVictim.random(2, seed=3)
    x, y = victim.images(25)
    attack = THE_THREE[name] if clip else Unclipped(attack=THE_THREE[name])
    x_adv = attack(victim, x, y, Threat("l2", EPS))
    torch.testing.assert_close(magnitude(x_adv - x, "l2"), torch.full((25,), EPS), rtol=1e-4, atol=0)
    norm, eps = ("linf", EPS / math.sqrt(16)) if name == "Adv_Loss_Sign" else ("l2", EPS)
    loss = F.cross_entropy(victim(x_adv), y, reduction="none")
    torch.testing.assert_close(loss, worst_loss(victim, x, y, norm, eps), rtol=1e-4, atol=1e-6)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", THE_THREE)
def test_beyond_the_box_the_length_is_kept(name: str) -> None:
    victim = LinearVictim.random(4)
    x = torch.rand(30, 1, 4, 4).round()
    y = victim.predict(x)
    free = Unclipped(attack=THE_THREE[name])(victim, x, y, Threat("l2", EPS))
    assert free.min() < 0
    assert free.max() > 1
    torch.testing.assert_close(magnitude(free - x, "l2"), torch.full((30,), EPS), rtol=1e-4, atol=0)
    torch.testing.assert_close(THE_THREE[name](victim, x, y, Threat("l2", EPS)), free.clamp(0, 1))


def test_no_direction_and_no_images() -> None:
    victim = LinearVictim(torch.zeros(3, 16), torch.tensor([1.0, 0.0, 0.0]), (1, 4, 4))
    x, y = victim.images(4)
    for attack in THE_THREE.values():
        assert torch.equal(Unclipped(attack=attack)(victim, x, y, Threat("l2", EPS)), x)
        assert Unclipped(attack=attack)(victim, x[:0], y[:0], Threat("l2", EPS)).shape == (0, 1, 4, 4)


def test_the_declaration() -> None:
    attack = Unclipped(attack=adv_loss())
    assert attack.label == "unclipped:gradient(p=2, objective=probability)"
    assert (attack.kind, attack.family, attack.access) == ("budget", "one-step", "gradients")
    assert not attack.boxed
    assert adv_loss().boxed
    assert key(attack) != key(adv_loss())
    transfer = Transfer(attack=attack, defense=Standard())
    assert not transfer.boxed
    assert Transfer(attack=adv_loss(), defense=Standard()).boxed
    assert transfer.label == "transfer:unclipped:gradient(p=2, objective=probability)"


@pytest.mark.parametrize("bad", [Alpha(mode="minimal"), Noise(), None])
def test_only_what_follows_a_direction_can_go_unclipped(bad: Any) -> None:
    with pytest.raises(UserError, match="unclipped: attack must be a Gradient, or an Alpha with mode='budget', got"):
        Unclipped(attack=bad)


def test_it_needs_an_eps() -> None:
    victim = LinearVictim.random(3)
    with pytest.raises(ValueError, match="needs an eps"):
        Unclipped(attack=adv_loss())(victim, *victim.images(2), Threat("l2"))


def test_the_first_crossing_may_lie_outside_the_box() -> None:
    victim = LinearVictim.random(2, seed=3)
    x, y = victim.images(25)
    x = x.round()  # at the corners of the box every direction leads out of it
    y = victim.predict(x)
    attack = Unclipped(attack=Gradient(mode="minimal"))
    assert attack.kind == "minimal"
    bench = Bench.of(victim.model, 2, "cpu")
    outcome = run_shard(bench, attack, Threat("l2"), index=torch.arange(25), x=x, y=y, seed=0)
    frame = outcome.samples
    optimum = victim.distance(x, y, "l2").numpy()
    near = optimum < 3.9  # the search ends at the diagonal of the box
    assert near.sum() > 10
    assert not frame["adversarial"].any()
    np.testing.assert_allclose(frame["l2"].to_numpy()[near], optimum[near], rtol=2e-3)
    assert frame["out_of_box"].to_numpy()[near].any()
    assert not broken(frame, "l2", 100.0).any()
    clipped = run_shard(bench, attack.attack, Threat("l2"), index=torch.arange(25), x=x, y=y, seed=0).samples
    both = clipped["adversarial"].to_numpy(bool) & near
    assert (clipped["l2"][both] >= frame["l2"][both] * 0.998).all()
