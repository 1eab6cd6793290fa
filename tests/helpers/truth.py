"""What a battery leaves, what certificates prove, and what is true."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from harness.attacks.apgd import APGD
from harness.attacks.base import Attack
from harness.attacks.fmn import MinimumNorm
from harness.attacks.square import Square
from harness.certify import prepare
from harness.determinism import seed_everything
from harness.judging.referee import judge
from harness.threat import Threat
from harness.victims.victim import Victim
from tests.helpers.exact import TimeOut, breaking

ATTACKS: tuple[Attack, ...] = (
    APGD(),
    APGD(loss="dlr", targets=9, steps=50),
    MinimumNorm(),
    Square(queries=1000),
)

NEAR = 1e-3
"""Images whose nearest adversarial is nearer to eps than this share of it are left out."""


@dataclass(frozen=True)
class Truth:
    """Rows of images: broken by the battery, certified, missed by the battery, not decided in time."""

    broken: Tensor
    certified: Tensor
    missed: list[int]
    undecided: list[int]


def compared(model: nn.Module, x: Tensor, y: Tensor, eps: float, seconds: float = 60.0) -> Truth:
    """Correctly classified images, the battery first, then the exact program on what it leaves and nothing proves."""
    victim = Victim(model, classes=10)
    threat = Threat("linf", eps)
    broken = torch.zeros_like(y, dtype=torch.bool)
    for attack in ATTACKS:
        seed_everything(0)
        broken |= judge(victim, x, y, attack(victim, x.clone(), y, threat), threat).adversarial
    network = prepare(model, x)
    certified = network.bounds(x, y, threat).certified
    missed, undecided = [], []
    for row in (~broken & ~certified).nonzero().flatten().tolist():
        image, label = x[row : row + 1], y[row : row + 1]
        try:
            found = breaking(network, image, int(label), Threat("linf", eps * (1 - NEAR)), seconds)
        except TimeOut:
            undecided.append(row)
            continue
        if found is not None:
            assert judge(victim, image, label, found, threat).adversarial.all(), "the program's image is none"
            missed.append(row)
    return Truth(broken, certified, missed, undecided)
