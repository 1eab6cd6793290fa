"""``gauntlet.evaluate``: attack a model in this process and return the pairs as a frame."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from . import determinism, environment, identity
from .attacks.base import Attack
from .datasets.registry import Dataset, DatasetInfo, default_info
from .errors import UserError, describe
from .external.external import External, bare, digest
from .judging.certificates import prove
from .judging.proposal import Bench, Proposal
from .judging.shard import prepare, run_shard
from .leaderboard import bands_of
from .metrics.certificates import Band
from .metrics.pairs import Board, Pair, pair_rows, worst_case
from .options import number
from .planning.plan import plan
from .planning.specs import Cell, Certification, ModelSpec
from .planning.suite import Suite
from .records.boards import known_model
from .records.plans import model_name, pair_record
from .records.results import pair_from_outcomes
from .schema.certificates import CertificateFacts, together
from .schema.models import Card, ModelState
from .schema.pairs import Declared
from .threat import Norm
from .trust.grade import trust
from .trust.inspection import inspect
from .trust.planting import plant
from .trust.probe import probe
from .victims.adaptation import Remedy
from .victims.victim import VictimError


def evaluate(
    model: nn.Module,
    x: Tensor | np.ndarray[Any, Any] | Dataset,
    y: Tensor | np.ndarray[Any, Any] | None = None,
    suite: str | Suite = "quick",
    *,
    eps: float | str | Mapping[Norm, float | Sequence[float]] | None = None,
    dataset: Dataset | DatasetInfo | None = None,
    device: torch.device | str = "cpu",
    name: str = "model",
    remedy: Remedy | None = None,
    batch: int | None = None,
    health: bool = True,
    certify: int | None = None,
) -> pd.DataFrame:
    """Attack a model with a suite, in this process, and judge every returned image.

    The model goes through the same admission as one that the command line names (:mod:`harness.trust.inspection`).

    The model is copied, frozen and put in eval mode; the one passed in is left as it is, and so are the caller's
    thread count and random generators. Every image given is judged, whatever the suite's own number.

    Args:
        model: Takes float32 images (N, C, H, W) in [0, 1], gives logits (N, K), or one of the other answers that
            :mod:`harness.external.interface` can read. Normalisation belongs inside.
        x: Images, (N, C, H, W) in [0, 1]; or a data set, of whose test part the suite's number of images is taken.
        y: True labels, (N,), whole numbers in [0, K); none beside a data set.
        eps: Budgets in place of the data set's: of L-infinity, also as ``"8/255"``, or by norm, one or several. Norms
            that it says nothing of are left out.
        suite: Name of a suite, ``FILE.py:NAME`` of one, or one made by hand. Transfers from other models are left out,
            as ``gauntlet run --no-surrogate`` does, and the grade is B at best where the suite has them.
        dataset: Says the budgets, if they are not the suite's; by default MNIST's for gray images and CIFAR's for
            colour, with L1 and L2 budgets scaled to the number of pixels. A whole data set also has the training images
            that some attacks prepare on, as ``gauntlet run`` does; without, they look at the images given.
        device: Where to run.
        name: What to call the model in the frame.
        remedy: How attacks are to see the model; None finds out (saturated logits, probabilities, random predictions).
            Where gradients turn out to be missing or wrong, attacks that need none take the place of those that follow
            them, among them one with networks that are trained on the model's own answers
            (:mod:`harness.planning.gradient_free`).
        batch: Images that the model takes at once; None finds out.
        health: Probe the model, and plant adversarials in it that the suite's attacks have to find; without, no grade
            is better than B. Takes as long as a few strong attacks on
            :data:`harness.planning.specs.PROBE_SAMPLES` images.
        certify: How many of the images to certify in L-infinity and L2, the first ones; None: one in eight, at less
            cost than the attacks; 0: none.

    Returns:
        A frame of :data:`harness.metrics.pairs.PAIR_COLUMNS`, a row per pair and eps. In its ``attrs``: ``trust`` (by
        norm, ``(grade, reasons)``, see :mod:`harness.trust.grade`), ``worst_case`` (by ``(norm, eps)``, the accuracy
        that all attacks together leave), ``certified`` (by ``(norm, eps)``, what is proved to stand and what no attack
        broke: a :class:`harness.metrics.certificates.Band`), ``planted`` (by norm, what :mod:`harness.trust.planting`
        found, as a mapping), ``remedy`` (in words), ``notes`` (what was noticed of the model, a line each),
        ``left_out`` (labels of attacks).

    Raises:
        UserError: Images, labels or the model's output are not as described, or the model cannot be judged; unknown
            suite; no attack is left.
    """
    if isinstance(suite, str):
        from suites import suite as find  # the one place in the core that knows suites by name

        suite = find(suite)
    if eps is not None:
        suite = suite.at(_budgets(eps))
    if isinstance(x, Dataset):
        if y is not None:
            raise UserError("labels come with the data set: leave out y")
        dataset = dataset if dataset is not None else x
        _, (x, y) = x.test_sample(min(suite.samples, len(x.x_test)))
    elif y is None:
        raise UserError("which labels have the images? evaluate(model, x, y), or a whole data set in place of both")
    if not isinstance(model, nn.Module):
        raise UserError(f"the model must be a torch.nn.Module, got {type(model).__name__}")
    x, y = _images(x), _labels(y)
    if len(x) != len(y):
        raise UserError(f"{len(x)} images, but {len(y)} labels")
    with determinism.as_a_worker(device):
        learned = dataset if isinstance(dataset, Dataset) else None
        declared = dataset.info if isinstance(dataset, Dataset) else dataset
        wanted = len(declared.classes) if declared is not None else None
        found = inspect(model, x, y, wanted, device, remedy=remedy, batch=batch)
        remedy, seen = found.remedy, found.interface.around(model)
        classes = found.classes
        info = _info(declared, x, classes)
        bench = Bench.of(seen, classes, device, remedy)
        defense = External(weights=digest(bare(model)), remedy=remedy, interface=found.interface)
        spec = ModelSpec(dataset=info.name, architecture=name, defense=defense)
        made = plan(suite, [spec], {info.name: info}, samples=info.test_size, transfers=False, certify=certify)
        pairs = [_pair(cell, bench, x.to(device), y.to(device), info, learned) for cell in made.cells]
        facts = {
            str(look.threat.norm): probe(
                seen,
                x[: look.n],
                y[: look.n],
                look.threat,
                classes=classes,
                device=device,
                remedy=remedy,
                seed=look.seed,
            )
            for look in (made.probes if health else ())
        }
        proved = _proved(made.certifications, seen, x, y, classes, device)
        for look in made.plantings if health else ():
            planted = plant(
                seen,
                x[: look.n],
                y[: look.n],
                look.threat,
                look.attacks,
                classes=classes,
                device=device,
                remedy=remedy,
                seed=look.seed,
            )
            facts[str(look.threat.norm)] = facts[str(look.threat.norm)].model_copy(update={"planted": planted})
    budgets = {str(norm): eps for norm, eps in made.suite.grid(info).items()}
    called = model_name(spec, info)
    card = Card(**dict(called), sha256="", inspection=found.facts)
    board = Board(
        suite=suite.name,
        budgets={info.name: budgets},
        pairs=pairs,
        models={spec.key: known_model(called, ModelState(card=card))},
        health={spec.key: facts},
        left_out={spec.key: made.left_out},
        certificates={spec.key: proved},
    )
    grades = {norm: trust(board, spec.key, norm) for norm in budgets}
    frame = pair_rows(board)
    frame.attrs = {
        "trust": {norm: (grade.grade, list(grade.reasons)) for norm, grade in grades.items() if grade is not None},
        "worst_case": {(norm, eps): worst_case(pairs, norm, eps).accuracy for norm in budgets for eps in budgets[norm]},
        "certified": {(one.norm, one.eps): one for one in _bands(board, spec.key)},
        "planted": {norm: one.planted.model_dump() for norm, one in facts.items() if one.planted is not None},
        "remedy": str(remedy),
        "notes": [*found.notes, *made.notes],
        "left_out": list(made.left_out),
    }
    return frame


def _proved(
    asked: Sequence[Certification], model: nn.Module, x: Tensor, y: Tensor, classes: int, device: torch.device | str
) -> dict[str, CertificateFacts]:
    """What is proved of a model by norm, shard by shard, as a run does."""
    if not asked:
        return {}
    index = torch.arange(len(x))
    parts = [
        prove(asked, shard, model, index[part], x[part], y[part], classes=classes, device=device)
        for shard, part in ((shard, asked[0].shard_slice(shard)) for shard in range(asked[0].shards))
    ]
    return {facts[0].norm: together(facts) for facts in zip(*parts, strict=True)}


def _bands(board: Board, key: str) -> list[Band]:
    """The bands of a model at every norm and eps that something was to be proved at."""
    proved = board.certificates.get(key, {})
    grid = [(norm, level.eps) for norm, facts in proved.items() for level in facts.levels]
    return [one for norm, eps in grid for one in bands_of(board, {key: board.by_model[key]}, norm, eps)]


def _budgets(eps: float | str | Mapping[Norm, float | Sequence[float]]) -> dict[Norm, tuple[float, ...]]:
    given: Mapping[Norm, Any] = eps if isinstance(eps, Mapping) else {"linf": eps}
    found: dict[Norm, tuple[float, ...]] = {}
    for norm, values in given.items():
        each = [values] if isinstance(values, str | int | float) else list(values)
        try:
            numbers = sorted({float(number(value) if isinstance(value, str) else value) for value in each})
        except (TypeError, ValueError):
            numbers = []
        if not numbers or not all(math.isfinite(value) and value > 0 for value in numbers):
            raise UserError(f"eps must be positive numbers such as 8/255, got {values!r}")
        found[norm] = tuple(numbers)
    return found


def _pair(cell: Cell, bench: Bench, x: Tensor, y: Tensor, info: DatasetInfo, learned: Dataset | None) -> Pair:
    attack, failed = _prepared(cell, bench, x, y, learned)
    outcomes = [
        run_shard(
            bench,
            attack,
            cell.threat,
            index=torch.arange(cell.n)[cell.shard_slice(shard)],
            x=x[cell.shard_slice(shard)],
            y=y[cell.shard_slice(shard)],
            seed=cell.shard_seed(shard),
            shard=shard,
            crafted=failed,
        )
        for shard in range(cell.shards)
    ]
    declared = Declared(
        **dict(pair_record(cell, info)),
        declaration=identity.canonical(cell),
        versions=environment.versions(),
        git_commit=environment.git_commit(),
    )
    return pair_from_outcomes(declared, outcomes)


def _prepared(
    cell: Cell, bench: Bench, x: Tensor, y: Tensor, learned: Dataset | None
) -> tuple[Attack, Proposal | None]:
    """The attack after its look at training images (without any, at those it attacks), or its failure to look."""
    attack = cell.attack
    if cell.prepared_key is None:
        return attack, None
    n = attack.preparation_samples
    if learned is not None:
        _, (x, y) = learned.train_sample(min(n, len(learned.x_train)))
    try:
        return prepare(bench.attacked, attack, x[:n], y[:n], identity.derive_seed(cell.prepared_key))[0], None
    except VictimError:
        raise
    except Exception as error:  # an attack's failure is recorded, and does not stop the others
        return attack, Proposal(None, 0.0, 0, 0, (describe(error),))


def _images(x: Any) -> Tensor:
    images = _tensor(x, "images")
    if images.dim() != 4 or not len(images):
        raise UserError(f"images must have shape (N, C, H, W) with N >= 1, got {tuple(images.shape)}")
    if not images.is_floating_point():
        raise UserError(f"images must be floats in [0, 1], got {images.dtype}; divide 8-bit images by 255")
    if not torch.isfinite(images).all():
        raise UserError("images must be finite, some are NaN or infinite")
    low, high = float(images.min()), float(images.max())
    if low < 0 or high > 1:
        raise UserError(
            f"images must lie in [0, 1], got values from {low:g} to {high:g}; put normalisation in the model"
        )
    return images.to(torch.float32).cpu()


def _labels(y: Any) -> Tensor:
    labels = _tensor(y, "labels")
    if labels.dim() != 1 or labels.is_floating_point() or labels.dtype == torch.bool:
        raise UserError(f"labels must be whole numbers of shape (N,), got {labels.dtype} {tuple(labels.shape)}")
    return labels.to(torch.int64).cpu()


def _tensor(values: Any, what: str) -> Tensor:
    if isinstance(values, Tensor):
        return values.detach()
    try:
        return torch.from_numpy(np.array(values))  # a copy: read-only and reversed arrays are welcome
    except (TypeError, ValueError) as error:
        raise UserError(f"{what} must be a tensor or an array of numbers: {error}") from None


def _info(dataset: DatasetInfo | None, x: Tensor, classes: int) -> DatasetInfo:
    shape = tuple(int(side) for side in x.shape[1:])
    if dataset is None:
        return default_info("user", (shape[0], shape[1], shape[2]), tuple(map(str, range(classes))), len(x))
    if shape != dataset.shape or classes != len(dataset.classes):
        raise UserError(
            f"{dataset.name} has images {dataset.shape} and {len(dataset.classes)} classes, got {shape} and {classes}"
        )
    return dataclasses.replace(dataset, test_size=len(x))
