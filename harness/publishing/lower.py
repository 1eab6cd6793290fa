"""Images of somebody's that lower a number: judged by the referee, attributed, and counted like an attack's.

A submission is a pair of its own in the board's battery, whose attack is who handed it in. Worst cases are minima, so
it can lower them and do nothing else. Images that break nothing leave no trace but a line.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..datasets.registry import Dataset
from ..determinism import full_float32
from ..errors import UserError
from ..judging.referee import Verdict, judge
from ..metrics.pairs import DISTANCES, Board, reference, worst_case
from ..planning.specs import ModelSpec
from ..records.home import Home
from ..schema.eps import limit
from ..schema.models import ModelEntry
from ..schema.plans import PlanRecord
from ..threat import BOX_TOLERANCE, Threat
from .images import Submitted
from .judging import AT_ONCE, referee
from .submission import Submission


@dataclass
class Lowered:
    """What came of a submission.

    Attributes:
        refused: Lines, one an image that did nothing.
        counted: Images that break the model within a budget.
        pairs: Plan and cell of each pair that was made.
        moved: Suite, norm and eps with the accuracy before and after, of those that fell.
    """

    refused: list[str] = field(default_factory=list)
    counted: int = 0
    pairs: list[tuple[str, str]] = field(default_factory=list)
    moved: list[tuple[str, str, float, float, float]] = field(default_factory=list)


def lower(
    home: Home,
    boards: Sequence[Board],
    plans: Sequence[PlanRecord],
    spec: ModelSpec,
    entry: ModelEntry,
    data: Dataset,
    given: Sequence[Submitted],
    *,
    by: str,
    source: str = "",
    device: str = "cpu",
    command: str = "",
) -> Lowered:
    """Judge images and let those that break a model count. Only while no other process works on the home.

    Args:
        home: Whose numbers fall.
        boards: What it holds.
        plans: Its plans.
        spec: The model.
        entry: What the plans know of it.
        data: Its data set.
        given: The images.
        by: Who handed them in.
        source: Where they are from, in words.
        device: Where the model is asked.
        command: For the record.

    Raises:
        UserError: The model cannot be loaded, or nothing of it was judged.
    """
    full_float32()
    done = Lowered()
    mine = [board for board in boards if entry.model in board.by_model and entry.dataset in board.budgets]
    mine = [board for board in mine if not board.targeted]
    if not mine:
        raise UserError(f"nothing of {entry.architecture} {entry.defense} was judged: there is no number to lower")
    n = max(reference(board.by_model[entry.model]).n for board in mine)
    index, (x, y) = data.test_sample(n)
    rows = _valid(given, index, x, done)
    if not rows:
        return done
    victim = referee(home, spec, data.info, device)
    at = torch.tensor([row for row, _ in rows])
    images = torch.stack([image for _, image in rows])
    x, y = x[at], y[at]
    parts = [
        judge(victim, some.to(device), labels.to(device), adv.to(device), Threat("linf"))
        for some, labels, adv in zip(*(torch.split(each, AT_ONCE) for each in (x, y, images)), strict=True)
    ]
    verdict = _joined(parts)
    places = index[at].tolist()
    for place, good, wrong in zip(places, verdict.stands.tolist(), verdict.adversarial.tolist(), strict=True):
        if not good:
            done.refused.append(f"image {place}: the model gets the clean image wrong, which counts as lost already")
        elif not wrong:
            done.refused.append(f"image {place}: the model gives it the true label")
    broken = (verdict.adversarial & verdict.stands).cpu().numpy()
    sizes = {name: verdict.distances[name].cpu().numpy() for name in DISTANCES}
    within: npt.NDArray[np.bool_] = np.zeros(len(rows), bool)
    for board in mine:
        grids = {norm: max(grid) for norm, grid in board.budgets[entry.dataset].items()}
        inside = {norm: broken & (sizes[norm] <= limit(eps)) for norm, eps in grids.items()}
        near = np.logical_or.reduce(list(inside.values()))
        pairs = board.by_model[entry.model]
        judged = reference(pairs).columns
        near &= np.isin(index[at].numpy(), judged["index"][judged["clean_correct"]])
        within |= near
        if not near.any():
            continue
        norm = max(inside, key=lambda name: int((inside[name] & near).sum()))
        made = Submission(board, entry, norm, by, source, command, index[at].numpy(), x, y, verdict, near)
        plan, cell = made.write(home, spec, plans)
        done.pairs.append((plan, cell))
    done.counted = int(within.sum())
    for at_row in np.flatnonzero(broken & ~within):
        far = ", ".join(f"{norm} {sizes[norm][at_row]:.4g}" for norm in mine[0].budgets[entry.dataset])
        done.refused.append(f"image {places[at_row]}: it lies outside every budget ({far})")
    return done


def _joined(parts: Sequence[Verdict]) -> Verdict:
    """Verdicts of one batch after another as one, on the CPU."""
    fields = [each.name for each in dataclasses.fields(Verdict) if each.name != "distances"]
    whole: dict[str, Any] = {name: torch.cat([getattr(part, name) for part in parts]).cpu() for name in fields}
    distances = {name: torch.cat([part.distances[name] for part in parts]).cpu() for name in parts[0].distances}
    return Verdict(**whole, distances=distances)


def _valid(given: Sequence[Submitted], index: Tensor, x: Tensor, done: Lowered) -> list[tuple[int, Tensor]]:
    """Rows of those images that can be judged, with the images; a line for each of the others.

    Raises:
        UserError: All have one other shape: whoever wrote the file meant another layout.
    """
    shape, shapes = tuple(x.shape[1:]), {tuple(image.shape) for _, image in given}
    if shape not in shapes and len(shapes) == 1:
        (other,) = shapes
        last = other == (*shape[1:], shape[0])
        how = f", channels last: transpose to (N, {', '.join(map(str, shape))})" if last else ""
        raise UserError(f"images have to be of shape {shape}, got {other}{how}")
    position = {place: row for row, place in enumerate(index.tolist())}
    found: dict[int, Tensor] = {}
    for place, image in given:
        row = position.get(place)
        said = ""
        if row is None:
            said = f"it is none of the {len(index)} images that were judged"
        elif tuple(image.shape) != shape:
            said = f"its shape is {tuple(image.shape)}, and has to be {shape}"
        elif image.is_complex():
            said = f"it holds {image.dtype}"
        elif row in found:
            said = "it is given twice; the first counts"
        else:
            plain = image.to(torch.float32) / 255 if image.dtype == torch.uint8 else image.to(torch.float32)
            if not torch.isfinite(plain).all():
                said = "some value is NaN or infinite"
            elif float(plain.min()) < -BOX_TOLERANCE or float(plain.max()) > 1 + BOX_TOLERANCE:
                said = f"its values go from {float(plain.min()):.4g} to {float(plain.max()):.4g}, outside [0, 1]"
            elif torch.equal(plain, x[row]):
                said = "it is the clean image"
            else:
                found[row] = plain
        if said:
            done.refused.append(f"image {place}: {said}")
    return list(found.items())


def moved(before: Sequence[Board], after: Sequence[Board], model: str) -> list[tuple[str, str, float, float, float]]:
    """Suite, norm, eps, and a model's worst case before and after, where it is another."""
    found = []
    for old, new in zip(before, after, strict=True):
        if model not in old.by_model:
            continue
        dataset = new.by_model[model][0].result.dataset
        for norm, grid in new.budgets[dataset].items():
            for eps in grid:
                was, now = (worst_case(board.by_model[model], norm, eps).accuracy for board in (old, new))
                if was != now:
                    found.append((new.suite, norm, eps, was, now))
    return found
