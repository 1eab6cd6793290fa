"""The worst images of all that attacks found, for whoever wants to look at them or train on them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ..goal import reached
from ..judging.shard import Kept
from ..threat import Threat, per_sample
from ..victims.victim import Victim


def worst_images(
    referee: Victim, x: Tensor, y: Tensor, target: Tensor | None, places: Tensor, found: Iterable[Kept], threat: Threat
) -> Tensor:
    """For each image the adversarial within a budget that the model gets wrong by the largest margin.

    The margin is that of the logits or, of a model that draws, of its votes. In the end the referee is asked about the
    whole batch that is returned: what it does not get wrong there is as good as not found.

    Args:
        referee: The model.
        x: Clean images, float32 (N, C, H, W) in [0, 1].
        y: True labels, int64 (N,).
        target: Classes (N,) that images have to be taken for; None: any wrong label will do.
        places: Their positions in the test set, (N,).
        found: Adversarial images of every attack that count, at any distance.
        threat: The budget.

    Returns:
        Images like ``x``, on the CPU; the clean ones where none was found, and where they are broken as they are.
    """
    x, y = x.to(referee.device), y.to(referee.device)
    target = None if target is None else target.to(referee.device)
    row_of = {int(place): row for row, place in enumerate(places)}
    best, least = x.clone(), x.new_full((len(x),), -torch.inf)
    for kept in found:
        rows = torch.tensor([row_of[int(place)] for place in kept.places], device=x.device, dtype=torch.int64)
        if not len(rows):
            continue
        trial = x.clone()
        trial[rows] = torch.from_numpy(kept.x_adv).to(x)
        better = threat.within(x, trial) & (trial != x).flatten(1).any(1)
        margin = _margin(referee, trial, y, target)
        better &= margin > least
        best = torch.where(per_sample(better, x), trial, best)
        least = torch.where(better, margin, least)
    asked = torch.where(per_sample(torch.isfinite(least), x), best, x)
    broken = reached(referee.predict(asked), y, target) & torch.isfinite(least)
    return torch.where(per_sample(broken, x), asked, x).cpu()


def _margin(referee: Victim, x: Tensor, y: Tensor, target: Tensor | None) -> Tensor:
    """By how much images (N, C, H, W) are broken, (N,): below zero for those that are not."""
    values: Tensor = referee.logits(x) if referee.votes is None else referee.ballots(x).to(x.dtype)
    aim = (y if target is None else target).unsqueeze(1)
    own = values.gather(1, aim).squeeze(1)
    other = values.scatter(1, aim, -torch.inf).amax(1)
    return other - own if target is None else own - other
