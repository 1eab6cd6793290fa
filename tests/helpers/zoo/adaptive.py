"""Attacks by somebody who read a model's code: what a good evaluation should leave."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from harness import determinism
from harness.attacks.apgd import APGD
from harness.attacks.base import Attack
from harness.attacks.losses import objective
from harness.attacks.square import Square
from harness.threat import Threat
from harness.victims.adaptation import VOTES, Remedy
from harness.victims.victim import Victim

from .masked import LEVELS, Mechanism


def stands(mechanism: Mechanism, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, *, steps: int = 60) -> Tensor:
    """Images (N,) that stand against everything here, those that are wrong as they are not among them.

    Every candidate is put to a copy of the model that nobody has asked anything before, in the way that it is used.
    """
    left = _right(mechanism, model, x, y)

    def put(x_adv: Tensor) -> None:
        for candidate in (x_adv, *([snapped(x, x_adv, threat)] if mechanism.snap else [])):
            if left.any():
                assert bool(threat.within(x[left], candidate[left]).all())
                left[left.clone()] = _right(mechanism, model, candidate[left], y[left])

    with determinism.as_a_worker(), determinism.isolated(0):
        for view in mechanism.views(model):
            victim = Victim(view, remedy=Remedy(draws=mechanism.draws))
            _climb(victim, x, y, threat, put, steps)
            if mechanism.draws == 1:
                for attack in (APGD(steps=steps), APGD(loss="dlr", targets=9, steps=steps // 2)):
                    _propose(attack, victim, x, y, threat, put)
        if not mechanism.votes:
            _propose(Square(queries=20 * steps), Victim(model), x, y, threat, put)
    return left


def snapped(x: Tensor, x_adv: Tensor, threat: Threat) -> Tensor:
    """The nearest image of multiples of 1/255 within a threat in L-infinity."""
    assert threat.eps is not None
    low, high = ((x - threat.eps) * LEVELS).ceil(), ((x + threat.eps) * LEVELS).floor()
    return torch.minimum(torch.maximum((x_adv * LEVELS).round(), low), high).clamp(0, LEVELS) / LEVELS


def _right(mechanism: Mechanism, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    judge = Victim(model, votes=VOTES if mechanism.votes else None)
    parts = x.split(1) if mechanism.alone else (x,)  # type: ignore[no-untyped-call]
    return torch.cat([judge.predict(part) for part in parts]) == y


def _propose(
    attack: Attack, victim: Victim, x: Tensor, y: Tensor, threat: Threat, put: Callable[[Tensor], None]
) -> None:
    x_adv = attack(victim, x, y, threat)
    put(threat.project(x, torch.where(x_adv.isfinite(), x_adv, x)))


def _climb(
    victim: Victim, x: Tensor, y: Tensor, threat: Threat, put: Callable[[Tensor], None], steps: int, starts: int = 2
) -> None:
    """Signed steps along the margin that shrink; every third is put to the model, not only the last."""
    assert threat.eps is not None
    for start in range(starts):
        moved = threat.project(x, x + bool(start) * threat.eps * (2 * torch.rand_like(x) - 1))
        for step in range(steps):
            with torch.enable_grad():
                moved = moved.detach().requires_grad_()
                value = objective("margin", victim(moved), y).sum()
                (slope,) = torch.autograd.grad(value, moved)
            size = threat.eps * (0.5 if step < steps // 3 else 0.15 if step < 2 * steps // 3 else 0.05)
            moved = threat.project(x, moved.detach() + size * slope.nan_to_num().sign())
            if step % 3 == 2:
                put(moved)
