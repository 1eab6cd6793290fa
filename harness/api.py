"""``gauntlet.evaluate``: attack a model in this process and return the pairs as a frame."""

from __future__ import annotations

import dataclasses
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
from .judging.proposal import Bench, Proposal
from .judging.shard import prepare, run_shard
from .metrics.pairs import Board, Pair, pair_rows, worst_case
from .planning.plan import plan
from .planning.specs import Cell, ModelSpec
from .planning.suite import Suite
from .records.boards import known_model
from .records.plans import model_name, pair_record
from .records.results import pair_from_outcomes
from .schema.models import Card, ModelState
from .schema.pairs import Declared
from .trust.grade import trust
from .trust.inspection import inspect
from .trust.probe import probe
from .victims.adaptation import Remedy
from .victims.victim import VictimError


def evaluate(
    model: nn.Module,
    x: Tensor | np.ndarray[Any, Any],
    y: Tensor | np.ndarray[Any, Any],
    suite: str | Suite = "quick",
    *,
    dataset: Dataset | DatasetInfo | None = None,
    device: torch.device | str = "cpu",
    name: str = "model",
    remedy: Remedy | None = None,
    batch: int | None = None,
    health: bool = True,
) -> pd.DataFrame:
    """Attack a model with a suite, in this process, and judge every returned image.

    The model goes through the same admission as one that the command line names (:mod:`harness.trust.inspection`).

    The model is copied, frozen and put in eval mode; the one passed in is left as it is, and so are the caller's
    thread count and random generators. Every image given is judged, whatever the suite's own number.

    Args:
        model: Takes float32 images (N, C, H, W) in [0, 1], gives logits (N, K), or one of the other answers that
            :mod:`harness.external.interface` can read. Normalisation belongs inside.
        x: Images, (N, C, H, W) in [0, 1].
        y: True labels, (N,), whole numbers in [0, K).
        suite: Name of a suite, or one made by hand. Transfers from other models are left out, as ``gauntlet run
            --no-surrogate`` does, and the grade is B at best where the suite has them.
        dataset: Says the budgets, if they are not the suite's; by default MNIST's for gray images and CIFAR's for
            colour, with L1 and L2 budgets scaled to the number of pixels. A whole data set also has the training images
            that some attacks prepare on, as ``gauntlet run`` does; without, they look at the images given.
        device: Where to run.
        name: What to call the model in the frame.
        remedy: How attacks are to see the model; None finds out (saturated logits, probabilities, random predictions).
        batch: Images that the model takes at once; None finds out.
        health: Probe the model, without which no grade is better than B. Takes as long as a few strong attacks on
            :data:`harness.planning.specs.PROBE_SAMPLES` images.

    Returns:
        A frame of :data:`harness.metrics.pairs.PAIR_COLUMNS`, a row per pair and eps. In its ``attrs``: ``trust`` (by
        norm, ``(grade, reasons)``, see :mod:`harness.trust.grade`), ``worst_case`` (by ``(norm, eps)``, the accuracy
        that all attacks together leave), ``remedy`` (in words), ``notes`` (what was noticed of the model, a line each),
        ``left_out`` (labels of attacks).

    Raises:
        UserError: Images, labels or the model's output are not as described, or the model cannot be judged; unknown
            suite; no attack is left.
    """
    if isinstance(suite, str):
        from suites import suite as find  # the one place in the core that knows suites by name

        suite = find(suite)
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
        made = plan(suite, [spec], {info.name: info}, samples=info.test_size, transfers=False)
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
    )
    grades = {norm: trust(board, spec.key, norm) for norm in budgets}
    frame = pair_rows(board)
    frame.attrs = {
        "trust": {norm: (grade.grade, list(grade.reasons)) for norm, grade in grades.items() if grade is not None},
        "worst_case": {(norm, eps): worst_case(pairs, norm, eps).accuracy for norm in budgets for eps in budgets[norm]},
        "remedy": str(remedy),
        "notes": list(found.notes),
        "left_out": list(made.left_out),
    }
    return frame


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
        x, y = learned.preparation_sample(n)
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
