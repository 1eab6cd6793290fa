"""The referee judges every returned image itself; it is the only source of success."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..goal import reached
from ..schema.eps import TOLERANCE
from ..threat import BOX_TOLERANCE, EXPONENT, Threat, magnitude, per_sample, root_mean_square
from ..victims.victim import Victim, rounded


@dataclass(frozen=True)
class Verdict:
    """Judgement of each image; every field has shape (N,).

    Attributes:
        clean_pred: Victim's label for the clean image, int64.
        stands: Whether the clean image is not broken as it is: the label is the true one or, with targets, not the
            target.
        adv_pred: Victim's label for the returned image, -1 where it is invalid. Of an attack without a box also for
            images outside [0, 1], as they are.
        adversarial: Valid and broken, that is misclassified or, with targets, taken for its target (see
            :func:`harness.goal.reached`); False for every image of an attack without a box.
        wrong_share: Share of the victim's votes that were wrong or, with targets, for the target, float32; NaN where
            there is no label.
        survives_rounding: Adversarial, and still so after rounding to 8 bits, as an image file would.
        as_file: Adversarial as a file of 8 bits alone, which is what label and distances are of.
        over_budget: Farther from the clean image than the threat allows.
        out_of_box: Some value outside [0, 1].
        non_finite: Some value NaN or infinite.
        wrong_shape: The attack did not return one image of the right shape for each.
        crashed: The attack raised.
        distances: Norm name (and ``"rms"``) to distance, float64, NaN unless adversarial (without a box:
            unless misclassified).
        batch: How many images were asked about together, int64.
        place: Where among them, int64.
        images: What was judged, float32 (N, C, H, W): clamped, and a file of 8 bits where that counts; the clean
            image where nothing could be judged.
    """

    clean_pred: Tensor
    stands: Tensor
    adv_pred: Tensor
    adversarial: Tensor
    wrong_share: Tensor
    survives_rounding: Tensor
    as_file: Tensor
    over_budget: Tensor
    out_of_box: Tensor
    non_finite: Tensor
    wrong_shape: Tensor
    crashed: Tensor
    distances: dict[str, Tensor]
    batch: Tensor
    place: Tensor
    images: Tensor

    @property
    def valid(self) -> Tensor:
        """Images with no flag raised."""
        return ~(self.over_budget | self.out_of_box | self.non_finite | self.wrong_shape | self.crashed)


def judge(
    victim: Victim,
    x: Tensor,
    y: Tensor,
    x_adv: object,
    threat: Threat,
    clean_pred: Tensor | None = None,
    *,
    boxed: bool = True,
    target: Tensor | None = None,
) -> Verdict:
    """Judge what an attack returned.

    An image is adversarial if it has the right shape, is finite, lies in [0, 1] and within the budget, and the
    victim, asked here and now, gives it another label than the true one; with targets, that of its target. Nothing that
    the attack or its toolkit says about success is looked at. An image that stands counts all the same if it is broken
    as a file of 8 bits, and lies within the budget as such: that image exists, the float beside it does not.

    An attack without a box is heard, and scores nothing: its images go to the victim unclamped, the labels they get
    are in ``adv_pred`` and those outside [0, 1] in ``out_of_box``, but none is adversarial, so that no worst case,
    curve or cascade that is made of verdicts can hold one.

    Args:
        victim: The model that was attacked.
        x: The referee's own copy of the clean images, float32 (N, C, H, W).
        y: True labels, int64 (N,).
        x_adv: What came back; anything. ``None`` says that the attack crashed.
        threat: What the attack was allowed.
        clean_pred: Labels of ``x`` if they are known already.
        boxed: Whether the images have to lie in [0, 1]; False for studies of papers that leave it.
        target: Classes (N,) that images have to be taken for; None: any but the true one.

    Raises:
        VictimError: The victim itself cannot be judged (NaN logits on a valid image).
    """
    n = len(x)
    no = torch.zeros(n, dtype=torch.bool, device=x.device)
    if clean_pred is None:
        clean_pred = victim.predict(x)
    returned = as_images(x_adv, x)
    images = x if returned is None else returned
    crashed = no | (x_adv is None)
    wrong_shape = no | (returned is None and x_adv is not None)

    finite = torch.isfinite(images).flatten(1).all(1)
    images = torch.where(per_sample(finite, x), images, x)
    low, high = images.flatten(1).amin(1), images.flatten(1).amax(1)
    out_of_box = (low < -BOX_TOLERANCE) | (high > 1 + BOX_TOLERANCE)
    if boxed:
        images = images.clamp(0, 1)
    outlaw = out_of_box & boxed
    over_budget = ~threat.within(x, images) & ~outlaw

    valid = finite & ~outlaw & ~over_budget & ~crashed & ~wrong_shape
    adv_pred = torch.full_like(clean_pred, -1)
    wrong_share = torch.full((n,), torch.nan, device=x.device)
    if valid.any():
        # the whole batch is asked, not the valid part of it: with another batch size the last bits of the
        # logits differ, and an image on the boundary would be judged on other numbers than the attack saw
        ballots = victim.ballots(torch.where(per_sample(valid, x), images, x))
        adv_pred = torch.where(valid, _elected(ballots, y, target), adv_pred)
        wrong_share = torch.where(valid, _wrong_share(ballots, y, target), wrong_share)
    broken = valid & reached(adv_pred, y, target)
    adversarial = broken & boxed
    survives = as_file = no
    if boxed and valid.any():
        files = torch.where(per_sample(valid, x), as_files(x, images, threat), x)
        ballots = victim.ballots(files)
        elected = _elected(ballots, y, target)
        wrong = valid & reached(elected, y, target)
        survives = adversarial & wrong
        as_file = wrong & ~adversarial & threat.within(x, files)
        if as_file.any():
            adv_pred = torch.where(as_file, elected, adv_pred)
            wrong_share = torch.where(as_file, _wrong_share(ballots, y, target), wrong_share)
            images = torch.where(per_sample(as_file, x), files, images)
            survives, adversarial, broken = survives | as_file, adversarial | as_file, broken | as_file

    delta = images.double() - x.double()
    distances = {name: magnitude(delta, name) for name in EXPONENT}  # type: ignore[arg-type]
    distances["rms"] = root_mean_square(delta)
    nan = torch.full((n,), torch.nan, dtype=torch.float64, device=x.device)
    return Verdict(
        clean_pred=clean_pred,
        stands=~reached(clean_pred, y, target),
        adv_pred=adv_pred,
        adversarial=adversarial,
        wrong_share=wrong_share,
        survives_rounding=survives,
        as_file=as_file,
        over_budget=over_budget,
        out_of_box=out_of_box,
        non_finite=~finite,
        wrong_shape=wrong_shape,
        crashed=crashed,
        distances={name: torch.where(broken, value, nan) for name, value in distances.items()},
        batch=torch.full_like(clean_pred, n),
        place=torch.arange(n, device=x.device),
        images=images,
    )


def _elected(ballots: Tensor, y: Tensor, target: Tensor | None) -> Tensor:
    """Labels (N,) with the most votes (N, K); of several the one that breaks the image: chance is no robustness."""
    weight, label = (-1, y) if target is None else (1, target)
    return (2 * ballots).scatter_add(1, label.unsqueeze(1), torch.full_like(ballots[:, :1], weight)).argmax(1)


def _wrong_share(ballots: Tensor, y: Tensor, target: Tensor | None) -> Tensor:
    """Share of the votes (N, K) that labels (N,) did not get, or that targets (N,) did, float32 (N,)."""
    share = ballots.gather(1, (y if target is None else target).unsqueeze(1)).squeeze(1) / ballots.sum(1)
    return 1 - share if target is None else share


def as_files(x: Tensor, images: Tensor, threat: Threat) -> Tensor:
    """Images (N, C, H, W) as files of 8 bits: the nearest, or, beyond the budget, those that lean to the clean ones."""
    nearest = rounded(images)
    inward = rounded(x + ((images - x) * 255).trunc() / 255)  # on a grid that the clean image is on: no pixel moves on
    return torch.where(per_sample(threat.within(x, nearest), x), nearest, inward)


def better_of(
    victim: Victim,
    x: Tensor,
    y: Tensor,
    verdict: Verdict,
    kept: Tensor,
    threat: Threat,
    *,
    nearest: bool,
    target: Tensor | None = None,
) -> tuple[Verdict, Tensor]:
    """Judge what an attack met on its way as well, where what it returned failed, or lies farther.

    What was kept is judged as any other image. Nothing is taken back: flags, and adversarials that were returned, stay.

    Args:
        victim: The model that was attacked.
        x: The referee's own copy of the clean images, float32 (N, C, H, W).
        y: True labels, int64 (N,).
        verdict: On what was returned.
        kept: Points like ``x``, NaN where there is none.
        threat: What the attack was allowed.
        nearest: Whether a nearer one is better than one that was returned, as of attacks that look for the nearest.
        target: As for :func:`judge`.

    Returns:
        The better of both verdicts for each image that stands as it is, and where it is that on the kept point,
        bool (N,).
    """
    there = verdict.stands & ~kept.flatten(1).isnan().any(1)
    size, returned = threat.distance(x, kept), verdict.distances[threat.norm]
    nearer = size < returned * (1 - TOLERANCE)  # False for NaN
    asked = there & (~verdict.adversarial | (nearer & nearest))
    if not asked.any():
        return verdict, asked
    rows = asked.nonzero().squeeze(1)  # what was kept was met in batches of any size: one of these alone is fair
    aims = None if target is None else target[rows]
    second = judge(victim, x[rows], y[rows], kept[rows], threat, verdict.clean_pred[rows], target=aims)
    rows, where = rows[second.adversarial], second.adversarial

    def best(old: Tensor, new: Tensor) -> Tensor:
        return old.index_copy(0, rows, new[where])

    names = ("adv_pred", "adversarial", "wrong_share", "survives_rounding", "as_file", "batch", "place", "images")
    changed = {name: best(getattr(verdict, name), getattr(second, name)) for name in names}
    distances = {name: best(old, second.distances[name]) for name, old in verdict.distances.items()}
    taken = torch.zeros_like(asked).index_fill(0, rows, True)
    return replace(verdict, **changed, distances=distances), taken


def as_images(x_adv: object, x: Tensor) -> Tensor | None:
    """What an attack returned as float32 images like ``x``; None if it is no plain real tensor of that shape."""
    if not isinstance(x_adv, Tensor) or x_adv.shape != x.shape:
        return None
    if x_adv.layout is not torch.strided or x_adv.is_complex():
        return None
    return x_adv.detach().to(x.device, torch.float32)
