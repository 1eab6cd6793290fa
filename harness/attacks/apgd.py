"""Auto-PGD (Croce & Hein 2020, 2021): projected gradient ascent that sets its own step sizes."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import ClassVar, Final

import torch
from torch import Tensor

from ..errors import UserError
from ..options import check_choices
from ..threat import Norm, Threat
from ..victims.victim import Victim, input_gradient
from ._apgd_l1 import Sparse
from ._apgd_linf_l2 import Dense
from ._apgd_state import Front
from .base import Attack, Targeting
from .line_search import CHUNK, is_fooled, is_taken_for
from .losses import Loss, dlr_classes, likely_rivals, objective
from .per_image_rng import Draws

FAR: Final = 0.5
"""See :attr:`APGD.far`, in a cascade,"""

FEW: Final = 3
"""unless there are no more targets than these."""

AGAIN: Final = 2
"""Of a near miss: to how many of its classes it is led again, how often to each,"""

LONGER: Final = 4
"""and with how many times the steps."""


@dataclass(frozen=True, kw_only=True)
class APGD(Attack):
    """Gradient ascent with momentum within eps, whose step sizes are halved where it makes no progress.

    In L-infinity and L2: Croce & Hein 2020, section 3 and algorithm 1. Steps start at 2 eps; at each checkpoint an
    image whose loss rose in fewer than rho of the steps since the last one, or whose best has not changed while its
    step was kept, halves its step and goes on from its best point. In L1: Croce & Hein 2021, section 3, algorithm 1.
    Steps move the largest components of the gradient alike; their number follows the sparsity of the best point; the
    run begins in a ball of three times eps and ends in the true one.

    Where this departs from the papers:

    * An image that is clearly fooled is returned at once and costs nothing more: later restarts and targets see only
      what still stands. Not so on a stochastic victim (a remedy of several draws), where one success may be luck:
      there the highest loss of all runs is returned.
    * Gradient components that push a pixel out of the box are zero, or steps are spent on pixels that cannot move.
    * An image that is sent back to its best point starts again without momentum.
    * In L1 an image leaves a larger ball once it is fooled there, not only after 30 and 60 % of the steps.
    * Where the gradient is zero or not finite in every component, the step goes from the best point in a random
      direction: a dead region can be left, and where the loss varies without a gradient this is a random search
      whose reach shrinks at the checkpoints. A value that is not finite counts as the lowest.

    Every run starts at a random point of the ball: of 500 MNIST images that broke up to 3 % more in L-infinity than a
    first run from x, and as many in L2 and L1. Random numbers belong to the image, so that the batch does not matter.
    An image takes at most ``steps + 1`` forward and ``steps`` backward passes a run, and with ``targets`` one forward
    pass more; with ``near`` those of 16 runs more. Images never fooled come back at the point of the highest untargeted
    loss among the runs' best.

    Attributes:
        loss: What is climbed, see :func:`.losses.objective`: ``"ce"`` is the log-odds of the label, with the direction
            of the cross-entropy but without its saturation; ``"dlr"`` (the margin, where there are too few classes);
            ``"margin"``.
        targets: 0 for any wrong class; T > 0 for a run towards each of the T most likely wrong classes of x.
        steps: Gradient steps a run.
        restarts: Runs (of each target).
        rho: Share of steps that must raise the loss, in (0, 1); not used in L1.
        near: With targets and the difference-of-logits ratio: an image whose ratio came above minus this, in (0, 1),
            and that still stands, is led again to the two classes that it came nearest to, twice to each with four
            times the steps. Not on a stochastic victim. None: to none.
        far: With targets and the difference-of-logits ratio (at most -1 where a model is sure), in L-infinity and L2: a
            run ends after half its steps if its ratio rose above that of the clean image and yet is below minus this,
            in (0, 1), and so is the untargeted one; after a quarter if they are below minus 1.5 times this. Not on a
            stochastic victim, nor on an ensemble of averaged losses. None: no run does.

    Raises:
        UserError: A field out of range.
    """

    name: ClassVar[str] = "apgd"
    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2", "l1")
    targeting: ClassVar[Targeting] = "itself"
    averages_losses: ClassVar[bool] = True
    ends_early: ClassVar[bool] = True

    loss: Loss = "ce"
    targets: int = 0
    steps: int = 100
    restarts: int = 1
    rho: float = 0.75
    near: float | None = field(default=None, metadata={"identity": "set"})
    far: float | None = field(default=None, metadata={"identity": "set"})

    def __post_init__(self) -> None:
        check_choices(self)
        if self.targets < 0:
            raise UserError(f"targets must be >= 0, got {self.targets}")
        if min(self.steps, self.restarts) < 1:
            raise UserError(f"steps and restarts must be >= 1, got {self.steps} and {self.restarts}")
        if not 0 < self.rho < 1:
            raise UserError(f"rho must be in (0, 1), got {self.rho}")
        for name, ratio in (("near", self.near), ("far", self.far)):
            if ratio is not None and not 0 < ratio < 1:
                raise UserError(f"{name} must be in (0, 1), got {ratio}")
            if ratio is not None and (self.loss != "dlr" or not self.targets):
                raise UserError(f"{name} is of the difference-of-logits ratio with targets: loss=dlr, targets=9, say")

    def for_classes(self, count: int) -> Attack:
        """Below the classes that the difference-of-logits ratio needs, the margin, which it would climb anyway."""
        few = self.loss == "dlr" and count < dlr_classes(targeted=self.targets > 0)
        return dataclasses.replace(self, loss="margin", near=None, far=None) if few else self

    def in_cascade(self) -> Attack:
        """With many targets, runs that are :attr:`far` off end early.

        Of 90,000 runs on three MNIST LeNets and nine dense networks on digits (plain, PGD, fast-gradient; L-infinity,
        L2) 586 broke an image. After a quarter of their steps none of these was below minus 1.5 times :data:`FAR`, and
        after half none below minus :data:`FAR`; ending the others there took 0.48 of the steps. Of 731 MNIST images
        that stand on the network of AutoAttack's own examples (L-infinity 0.3) nine targets broke 12, and this the same
        number with 0.31 of the passes. Where gradients lie it costs images, 23 of 2,531 such runs of masked models;
        those are refused or graded D, or they draw, and then no run ends.
        """
        dear = self.loss == "dlr" and self.targets > FEW and self.far is None
        return dataclasses.replace(self, far=FAR) if dear else self

    @property
    def draws_as(self) -> Attack:
        """Whatever it gives up."""
        return dataclasses.replace(self, far=None)

    def run(self, victim: Victim, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
        """Propose one image for each, within eps and the box."""
        if not len(x):
            return x
        towards, rivals, begun = victim.target, None, None
        certain = not victim.remedy.stochastic  # else a ratio of one call says too little to end a run, or to insist
        if self.targets and towards is None:
            # of members no ratio of the logits is climbed
            may_end = self.far is not None and certain and not victim.members
            rivals, begun = _rivals(victim, x, y, self.targets, ratios=may_end)
        count = 1 if rivals is None else rivals.shape[1]
        out, came = x.clone(), x.new_full((len(x), count), -math.inf)
        draws = Draws(x)

        def lead(attack: APGD, rows: Tensor, aims: Tensor, runs: range) -> Tensor:
            """Some runs of images ``rows``, to the classes in their columns ``aims`` (R, M); which rows still stand."""
            several, aim = rows.repeat(len(runs)), aims.flatten()
            target = None if rivals is None else rivals[several, aim]
            own = y[several] if towards is None else towards[several]
            streams = Draws.joined([draws.fork(run).of(rows) for run in runs])
            view, images = victim.of(several), several if len(runs) > 1 else None
            least = begun[several, aim] if begun is not None and attack.far else None
            found, value = attack._climb(view, x[several], own, target, threat, streams, images, least)
            for part in torch.arange(len(several), device=x.device).split(len(rows)):  # type: ignore[no-untyped-call]
                better = value[part] > came[rows].amax(1)
                out[rows[better]] = found[part[better]]
                came[rows, aim[part]] = torch.maximum(came[rows, aim[part]], value[part])
            return rows[came[rows].amax(1) < math.inf]

        def lead_all(attack: APGD, left: Tensor, aims: Tensor, first: int) -> Tensor:
            """R runs from the ``first`` on of images ``left``, to the classes in their columns of ``aims`` (R, N)."""
            number = 0
            while number < len(aims) and len(left):
                # most of what can be broken the very first one breaks
                end = _together(left, number, len(aims)) if first + number else 1
                left = lead(attack, left, aims[number:end, left], range(first + number, first + end))
                number = end
            return left

        runs = torch.arange(self.restarts * count, device=x.device) % count
        left = lead_all(self, torch.arange(len(x), device=x.device), runs.unsqueeze(1).expand(-1, len(x)), 0)
        if rivals is not None and self.near and certain:
            left = left[came[left].amax(1) > -self.near]
            longer = dataclasses.replace(self, steps=LONGER * self.steps, far=None)
            lead_all(longer, left, came.topk(min(AGAIN, count)).indices.repeat(1, AGAIN).T, len(runs))
        return out

    def _climb(
        self,
        victim: Victim,
        x: Tensor,
        y: Tensor,
        target: Tensor | None,
        threat: Threat,
        draws: Draws,
        images: Tensor | None,
        begun: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """One run of each row: best points like ``x`` and their untargeted loss (N,), infinite where it left as fooled.

        ``y`` are labels to be left or, of a victim with targets, the targets to be reached. ``images`` (N,) says which
        image a row is of, if some are of the same: where one is fooled those after it end, with a loss of minus
        infinity. One after the other they would not have begun. ``begun`` (N,) are the ratios of the clean images that
        a run must have risen above to end as :attr:`far` off, if it may.
        """
        assert threat.eps is not None
        pace: Dense | Sparse
        if threat.norm == "l1":
            pace = Sparse.begin(x, threat.eps, self.steps)
        else:
            pace = Dense.begin(x, threat, self.steps, self.rho)
        front = Front.at(x, y, target, pace.start(x, draws))
        out, score = x.clone(), torch.full_like(front.loss, math.inf)
        bars = {} if threat.norm == "l1" else {(self.steps + 3) // 4: 1.5, (self.steps + 1) // 2: 1.0}
        for number in range(self.steps + 1):
            last = number == self.steps
            hit = self._look(victim, front, differentiate=not last)
            gone = hit & pace.valid & (not victim.remedy.stochastic)
            if gone.any():
                out[front.rows[gone]] = front.now[gone]
                ended = gone if images is None else gone | _after(front.rows, images, gone)
                score[front.rows[ended & ~gone]] = -math.inf
                left = (~ended).nonzero().squeeze(1)
                front, pace, draws, hit = front.of(left), pace.of(left), draws.of(left), hit[left]
            if begun is not None and self.far and number in bars:
                far = torch.maximum(front.best_loss, front.best_score) < -bars[number] * self.far
                far &= front.best_loss > begun[front.rows]
                out[front.rows[far]], score[front.rows[far]] = front.best[far], front.best_score[far]
                left = (~far).nonzero().squeeze(1)
                front, pace, draws, hit = front.of(left), pace.of(left), draws.of(left), hit[left]
            if last or not len(front.rows):
                break
            pace.review(number, front, hit)
            front.revive(draws, number)
            front.step(pace.move(front))
        out[front.rows], score[front.rows] = front.best, front.best_score
        return out, score

    def _look(self, victim: Victim, front: Front, *, differentiate: bool) -> Tensor:
        """Evaluate the present points; which are clearly fooled, bool (N,)."""
        losses, scores, grads, hits = [], [], [], []
        aimed = victim.target is not None
        for start in range(0, len(front.rows), CHUNK):
            rows = slice(start, start + CHUNK)
            view = victim.of(front.rows[rows])
            y, target = front.y[rows], None if front.target is None else front.target[rows]

            def climbed(logits: Tensor, y: Tensor = y, target: Tensor | None = target) -> Tensor:
                loss = objective(self.loss, logits, y, target)
                return -loss if aimed else loss

            if differentiate:
                loss, grad, logits = input_gradient(view, front.now[rows], climbed)
                grads.append(grad)
            else:
                with torch.no_grad():
                    logits = view(front.now[rows])
                    loss = climbed(logits)
            losses.append(loss)
            scores.append(loss if target is None else objective(self.loss, logits, y))
            hits.append(is_taken_for(logits, y) if aimed else is_fooled(logits, y))
        loss, score = (torch.cat(each).to(front.now) for each in (losses, scores))  # a model may answer in float64
        front.note(loss, score, torch.cat(grads) if grads else torch.zeros_like(front.now))
        return torch.cat(hits)


def _together(left: Tensor, number: int, runs: int) -> int:
    """Where the runs end that images go through side by side from ``number`` on: a step of few costs most by itself."""
    return min(runs, number + max(1, CHUNK // len(left)))


def _after(rows: Tensor, images: Tensor, gone: Tensor) -> Tensor:
    """Which rows (M,) come after one that is ``gone``, bool (M,), of the same of ``images``."""
    owner = images[rows]
    return ((owner.unsqueeze(1) == owner[gone]) & (rows.unsqueeze(1) > rows[gone])).any(1)


@torch.no_grad()
def _rivals(victim: Victim, x: Tensor, y: Tensor, count: int, *, ratios: bool) -> tuple[Tensor, Tensor | None]:
    """The most likely wrong classes of clean images, int64 (N, C), C at most ``count``; one forward pass each.

    And, if asked for, their difference-of-logits ``ratios`` towards each of the classes (N, C).
    """
    parts = zip(victim.split(x, CHUNK), torch.split(x, CHUNK), strict=True)
    logits = torch.cat([view(images) for view, images in parts])
    rivals = likely_rivals(logits, y, count)
    if not ratios:
        return rivals, None
    return rivals, torch.stack([objective("dlr", logits, y, rival) for rival in rivals.unbind(1)], 1)
