"""Attack and judge one batch of one pair."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from .. import determinism
from ..attacks.base import Attack
from ..attacks.targeted import propose
from ..errors import describe
from ..goal import reached
from ..metrics.pairs import DISTANCES, FLAGS, NO_TARGET, SAMPLE_COLUMNS
from ..schema.base import Cost
from ..schema.pairs import Answers, Harvested, ShardFacts
from ..threat import Threat, per_sample
from ..victims.agreement import agreement
from ..victims.harvest import Harvest
from ..victims.victim import Victim, VictimError
from .proposal import Bench, Clean, Proposal
from .referee import Verdict, as_images, better_of, judge

GALLERY: Final = 16
"""Images kept of every cell for people to look at."""


AGAIN: Final = 16
"""Images in each batch that is asked once more after an attack."""


NEARER: Final = 0.01
"""Share of its distance by which an adversarial that was met has to be nearer than the returned one to be mentioned. It
counts in any case; but attacks mean to stop a little beyond the boundary, by a thousandth where they bisect."""


def craft(
    victim: Victim,
    attack: Attack,
    threat: Threat,
    x: Tensor,
    y: Tensor,
    seed: int,
    *,
    harvest: bool = False,
    target: Tensor | None = None,
) -> Proposal:
    """Call an attack on copies of the images, seeded, with its passes counted. An exception becomes a record.

    With ``harvest`` the proposal also holds what was met in forward passes, also of an attack that raised. With targets
    (N,) the attack is after these (:func:`harness.attacks.targeted.propose`).

    So does a change of the model's weights, which are put back: the attack worked on another model than the one
    that is judged, and whatever is attacked next on this copy would too. An attack that runs out of memory is begun
    anew, with the model called on fewer images at once: see :meth:`~harness.victims.victim.Victim.sparing`.

    Raises:
        VictimError: The model itself is at fault, not the attack.
    """
    try:
        return victim.sparing(len(x), lambda: _craft(victim, attack, threat, x, y, seed, harvest, target))
    except torch.OutOfMemoryError as error:
        return Proposal(None, 0.0, 0, 0, (f"out of memory, even image by image: {describe(error)}",))


def _craft(
    victim: Victim,
    attack: Attack,
    threat: Threat,
    x: Tensor,
    y: Tensor,
    seed: int,
    harvest: bool,
    target: Tensor | None,
) -> Proposal:
    determinism.seed_everything(seed)
    met = Harvest(x, y, threat, draws=victim.remedy.stochastic, target=target) if harvest else None
    errors: tuple[str, ...] = ()
    x_adv: object = None
    seconds = 0.0
    with victim.counted() as cost:
        try:
            attack.warm_up()
            with victim.guarded(), victim.harvesting(met), torch.enable_grad():
                start = time.perf_counter()
                try:
                    x_adv = propose(attack, victim, x.clone(), y.clone(), threat, target)
                finally:
                    if x.is_cuda:
                        torch.cuda.synchronize(x.device)
                    seconds = time.perf_counter() - start
            if x_adv is None:
                raise TypeError("the attack returned None")
        except (VictimError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            x_adv, errors = None, (describe(error),)
    return Proposal(x_adv, seconds, cost.forwards, cost.backwards, errors, met)


def prepare(victim: Victim, attack: Attack, x: Tensor, y: Tensor, seed: int) -> tuple[Attack, Cost]:
    """Let an attack look at images (M, C, H, W) in [0, 1]: the attack with what it learned, and what that took.

    Raises:
        VictimError: The model itself is at fault. Whatever else the attack raises comes through.
    """
    x, y = x.to(victim.device), y.to(victim.device)

    def look() -> tuple[Attack, Cost]:
        determinism.seed_everything(seed)
        start = time.perf_counter()
        with victim.counted() as cost, victim.guarded():
            ready = attack.prepare(victim, x.clone(), y.clone())
        seconds = time.perf_counter() - start
        return ready, Cost(seconds=seconds, forwards=cost.forwards, backwards=cost.backwards)

    return victim.sparing(len(x), look)


class Kept(NamedTuple):
    """Adversarial images that count: positions in the test set int64 (M,), images float32 (M, C, H, W) in [0, 1]."""

    places: npt.NDArray[Any]
    x_adv: npt.NDArray[Any]


@dataclass(frozen=True)
class ShardOutcome:
    """A judged shard.

    Attributes:
        samples: Frame of :data:`harness.metrics.pairs.SAMPLE_COLUMNS`.
        witnesses: The images that broke the model, as they were judged; see :func:`_witnesses`. Empty: not kept.
        kept: All adversarial images, if they were asked for.
    """

    samples: pd.DataFrame
    facts: ShardFacts
    gallery: dict[str, npt.NDArray[Any]]
    witnesses: dict[str, npt.NDArray[Any]] = field(default_factory=dict)
    kept: Kept | None = None


def run_shard(
    bench: Bench,
    attack: Attack,
    threat: Threat,
    *,
    index: Tensor,
    x: Tensor,
    y: Tensor,
    seed: int,
    shard: int = 0,
    crafted: Proposal | None = None,
    crafter: Victim | None = None,
    standing: Tensor | None = None,
    harvest: bool = True,
    target: Tensor | None = None,
    keep: bool = False,
) -> ShardOutcome:
    """Attack and judge one batch.

    Images that the model gets wrong as they are count as lost and are not attacked, unless the attack asks for them
    (:attr:`~harness.attacks.base.Attack.everywhere`) or ``crafted`` brings images that were made on another model for
    the whole batch. With targets those are lost that it takes for their target as they are; what it gets wrong
    otherwise stands, and is attacked.

    Whatever adversarials the attack met on its way count as well (:mod:`harness.victims.harvest`), if the referee
    agrees: not of images crafted elsewhere, which another model was asked about, nor of an attack without a box.

    Args:
        bench: The model.
        attack: What is run.
        threat: What it is allowed.
        index: Positions in the test set, int64 (N,).
        x: Clean images, float32 (N, C, H, W) in [0, 1], on the bench's device.
        y: True labels, int64 (N,).
        seed: For every random draw of the attack.
        shard: Number to note in the rows.
        crafted: Images for all of ``x`` from another model, for a transfer cell.
        crafter: A model that the attack is run on instead of the bench's, for a transfer in a cascade.
        standing: In a cascade, which images are still to be attacked, bool (N,).
        harvest: False judges what is returned alone, to be held against what is counted.
        target: Classes (N,) that images have to be taken for, each another than its label; None: any but that.
        keep: Whether the outcome holds all adversarial images.

    Raises:
        VictimError: The model cannot be judged.
    """
    # judging images that are there already costs next to nothing
    shown = torch.ones_like(y, dtype=torch.bool) if standing is None or crafted is not None else standing
    again = bool(shown.any())
    answer = bench.clean(x, lambda known: clean_labels(bench.referee, x, y, target, known), again=again)
    clean_pred = answer.labels
    stands = ~reached(clean_pred, y, target) & shown
    chosen = stands if crafted is None and not attack.everywhere else torch.ones_like(stands)
    aims = None if target is None else target[chosen]
    proposal = crafted
    if proposal is None and chosen.any():
        how: dict[str, Any] = {"harvest": harvest and attack.boxed and crafter is None, "target": aims}
        proposal = craft(crafter or bench.attacked, attack, threat, x[chosen], y[chosen], seed, **how)
    if proposal is None:
        proposal = Proposal(x[chosen], 0.0, 0, 0)
    clean = clean_pred[chosen]
    verdict = judge(bench.referee, x[chosen], y[chosen], proposal.x_adv, threat, clean, boxed=attack.boxed, target=aims)
    harvested, x_adv = None, proposal.x_adv
    if proposal.harvest is not None:
        verdict, harvested, x_adv = _with_harvest(bench.referee, attack, proposal, proposal.harvest, verdict)
    samples = _frame(verdict, index, y, clean_pred, chosen, stands, shard, target, boxed=attack.boxed)
    facts = ShardFacts(
        seconds=proposal.seconds,
        forwards=proposal.forwards,
        backwards=proposal.backwards,
        errors=proposal.errors,
        unchanged=_unchanged(proposal.x_adv, x[chosen], stands[chosen]),
        boxed=attack.boxed,
        unsteady=answer.unsteady,
        answers={} if answer.logits is None else _answers_after(bench, x[shown], answer.logits[shown]),
        harvest=harvested,
    )
    gallery = _gallery(verdict, index, x, y, chosen, x_adv)
    # one that reaches its target proves nothing of other targets, and tables of witnesses tell no targets apart
    rows = _witnesses(verdict, index, chosen) if keep or target is None else {}
    kept = Kept(rows["index"], rows["x_adv"]) if keep else None
    return ShardOutcome(samples, facts, gallery, rows if target is None else {}, kept)


def _with_harvest(
    referee: Victim, attack: Attack, proposal: Proposal, met: Harvest, verdict: Verdict
) -> tuple[Verdict, Harvested, object]:
    """The verdict with what the attack met on its way, what that changed, and the images that count."""
    if met.points is None:
        return verdict, Harvested(unattributed=met.unattributed), proposal.x_adv
    kept, (x, y) = met.points, (met.x, met.y)
    how: dict[str, Any] = {"nearest": attack.seeks_the_nearest, "target": met.target}
    better, taken = better_of(referee, x, y, verdict, kept, met.threat, **how)
    closer = better.distances[met.threat.norm] < (1 - NEARER) * verdict.distances[met.threat.norm]  # False for NaN
    facts = Harvested(
        lost=int((taken & ~verdict.adversarial).sum()),
        nearer=int((taken & closer).sum()),
        unattributed=met.unattributed,
    )
    returned = as_images(proposal.x_adv, x)
    return better, facts, torch.where(per_sample(taken, x), kept, x if returned is None else returned)


def clean_labels(
    victim: Victim, x: Tensor, y: Tensor, target: Tensor | None = None, known: Clean | None = None
) -> Clean:
    """What a victim answers to clean images; ``known`` is an answer of before that lasts.

    A model that draws is asked twice for the label that it gives most often, once if an answer is known. Where the two
    differ, for no seed reaches its random numbers, the one that breaks the image counts: an attack could choose its
    draw.
    """
    if victim.votes is None:
        logits = victim.logits(x)
        return Clean(logits.argmax(1), logits, 0, lasts=True)
    seen = hashlib.sha256(), hashlib.sha256()
    first = victim.ballots(x, seen[0]).argmax(1) if known is None else known.labels
    second = victim.ballots(x, seen[1]).argmax(1)
    labels, unsteady = torch.where(reached(first, y, target), first, second), int((first != second).sum())
    lasts = seen[0].digest() == seen[1].digest() if known is None else not unsteady
    return Clean(labels, None, unsteady, lasts)


def _answers_after(bench: Bench, x: Tensor, logits: Tensor) -> Answers:
    """Whether both copies of the model, after the attack, still answer the images as the referee's did before any.

    The referee's is asked in another order and in small batches, the attacked one on a few images. What depends on the
    images beside it, on the number of calls or on chance shows here, whichever images and batches the attack used.

    Raises:
        VictimError: The model draws at random, and was not declared to.
    """
    if not len(x):
        return {}
    turned = x.flip(0).split(AGAIN)  # type: ignore[no-untyped-call]
    later = torch.cat([bench.referee.logits(part) for part in turned]).flip(0)
    found = agreement(logits, later)
    if found.labels and not torch.equal(again := bench.referee.logits(x), logits):
        changed = int((again.argmax(1) != logits.argmax(1)).sum())
        if changed and not torch.equal(bench.referee.logits(x), again):
            raise VictimError(
                f"the model's predictions vary from call to call ({changed} of {len(x)} images): a stochastic model is "
                "judged over repeated draws, which its remedy must declare (draws=16, say)"
            )
    attacked = agreement(logits[:AGAIN], bench.attacked.logits(x[:AGAIN]))
    return {"referee": found, "attacked": attacked}


def _unchanged(x_adv: object, x: Tensor, counted: Tensor) -> int:
    """How many of the counted images came back as they were."""
    images = as_images(x_adv, x)
    return 0 if images is None else int(((images == x).flatten(1).all(1) & counted).sum())


def _frame(
    verdict: Verdict,
    index: Tensor,
    y: Tensor,
    clean_pred: Tensor,
    chosen: Tensor,
    attacked: Tensor,
    shard: int,
    target: Tensor | None,
    *,
    boxed: bool,
) -> pd.DataFrame:
    n = len(index)
    where = chosen.cpu().numpy()

    def spread(values: Tensor, fill: Any) -> npt.NDArray[Any]:
        """Values of the attacked images at their places among all images."""
        array = values.cpu().numpy()
        out = np.full(n, fill, dtype=array.dtype)
        out[where] = array
        return out

    clean = clean_pred.cpu().numpy()
    labels = y.cpu().numpy()
    adversarial = spread(verdict.adversarial & verdict.stands, False)
    found = spread(verdict.adv_pred, -1)
    # of what may lie outside the box nothing is adversarial, but a study asks how far the misclassified ones are
    far = adversarial if boxed else attacked.cpu().numpy() & (found >= 0) & (found != labels)
    columns: dict[str, Any] = {
        "index": index.cpu().numpy(),
        "label": labels,
        "target": np.full(n, NO_TARGET) if target is None else target.cpu().numpy(),
        "clean_pred": clean,
        "clean_correct": clean == labels,
        "attacked": attacked.cpu().numpy(),
        "adv_pred": found,
        "adversarial": adversarial,
        "wrong_share": spread(verdict.wrong_share, np.nan),
        "survives_rounding": spread(verdict.survives_rounding & verdict.stands, False),
        **{flag: spread(getattr(verdict, flag), False) for flag in FLAGS},
        **{name: np.where(far, spread(verdict.distances[name], np.nan), np.nan) for name in DISTANCES},
        "shard": np.full(n, shard, dtype=np.int32),
    }
    return pd.DataFrame({name: columns[name] for name in SAMPLE_COLUMNS})


def _gallery(
    verdict: Verdict, index: Tensor, x: Tensor, y: Tensor, chosen: Tensor, x_adv: object
) -> dict[str, npt.NDArray[Any]]:
    clean = x[chosen][:GALLERY]
    images = as_images(x_adv, x[chosen])
    shown = clean if images is None else images[:GALLERY]
    arrays = {
        "index": index.to(chosen.device)[chosen][:GALLERY],
        "x": clean,
        "x_adv": torch.nan_to_num(shown).clamp(0, 1),
        "label": y[chosen][:GALLERY],
        "clean_pred": verdict.clean_pred[:GALLERY],
        "adv_pred": verdict.adv_pred[:GALLERY],
    }
    return {name: np.ascontiguousarray(value.cpu().numpy()) for name, value in arrays.items()}


def _witnesses(verdict: Verdict, index: Tensor, chosen: Tensor) -> dict[str, npt.NDArray[Any]]:
    """What the referee found adversarial, a row an image: position in the test set, distances, label, and the image.

    ``batch`` and ``place`` say in how large a batch it was judged and where in it: with others the last bits of the
    logits differ, and so do draws.
    """
    found = verdict.adversarial & verdict.stands
    rows = {"index": index.to(chosen.device)[chosen][found], "adv_pred": verdict.adv_pred[found]}
    rows |= {"place": verdict.place[found], "batch": verdict.batch[found]}
    rows |= {name: verdict.distances[name][found] for name in DISTANCES}
    rows["x_adv"] = verdict.images[found]
    return {name: np.ascontiguousarray(value.cpu().numpy()) for name, value in rows.items()}
