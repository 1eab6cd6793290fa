"""Any attack with targets: towards one class of its own for each image."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import UserError
from ..threat import Threat
from ..victims.victim import Victim
from .base import Attack


def propose(
    attack: Attack, victim: Victim, x: Tensor, y: Tensor, threat: Threat, target: Tensor | None = None
) -> Tensor:
    """Call an attack, with or without targets.

    How it is led to them is for it to say (:attr:`.base.Attack.targeting`): one that looks at the victim's targets is
    called as ever; any other is shown a model of two answers, target or not, and attacks "not"
    (:meth:`harness.victims.victim.Victim.towards`). One that says whose images its batches hold is shown that of all
    images at once, one that does not is called for each target by itself.

    Args:
        attack: What is run.
        victim: The model.
        x: Clean images, float32 (N, C, H, W) in [0, 1].
        y: True labels, int64 (N,).
        threat: What it is allowed.
        target: Classes that images are to be taken for, int64 (N,); None: any wrong label will do.

    Raises:
        UserError: It cannot be led to targets; whatever else it raises comes through.
    """
    if target is None:
        return attack(victim, x, y, threat)
    match attack.targeting:
        case "itself":
            return attack(victim.towards(target, aimed=False), x, y, threat)
        case "rows":
            return attack(victim.towards(target, aimed=True), x, torch.zeros_like(y), threat)
        case "groups":
            return _by_target(attack, victim, x, y, threat, target)
    raise UserError(f"{attack.label} has no targeted form")


def _by_target(attack: Attack, victim: Victim, x: Tensor, y: Tensor, threat: Threat, target: Tensor) -> Tensor:
    out = x.clone()
    for one in target.unique():  # type: ignore[no-untyped-call]
        rows = (target == one).nonzero().squeeze(1)
        view = victim.of(rows).towards(one, aimed=True)
        found = attack(view, x[rows].clone(), torch.zeros_like(y[rows]), threat)
        if not isinstance(found, Tensor) or found.shape != x[rows].shape:
            return found  # what is no image is no image of the whole batch: the referee says so
        out[rows] = found.to(out)
    return out
