"""``gauntlet.evaluate`` and ``gauntlet.attack``: models and images that are handed over in Python."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from .. import determinism
from ..attacks.transfer import Ensemble, Source
from ..datasets.registry import Dataset, DatasetInfo
from ..errors import UserError
from ..execution.in_process import Here, Processes, Strict
from ..execution.jobs import Context, Job, Judge
from ..execution.process_pool import Engine
from ..execution.progress import Display
from ..execution.runner import Watch, deliver, exclusive, run
from ..goal import parse_goal
from ..judging.shard import Kept
from ..metrics.pairs import Board, Pair
from ..models.ensemble import Average
from ..planning.plan import Plan, plan
from ..planning.suite import Suite
from ..records.boards import boards_from_home
from ..records.home import Home
from ..records.merge import merge
from ..threat import Norm, Threat, norm_named
from ..tracking.connection import store_uri
from ..tracking.tracker import Tracker
from ..victims.adaptation import Remedy
from ..victims.victim import Victim
from .adversarial import worst_images
from .inputs import budgets, device_of, given
from .result import Evaluation
from .sources import Held, Images, Model, admitted, published

Eps = float | str | Mapping[Norm, float | str | Sequence[float | str]]
Adversarial = dict[tuple[Norm, float], Tensor]
"""By norm and eps, images (N, C, H, W)."""


@overload
def evaluate(
    model: nn.Module, x: Any, y: Any = ..., suite: str | Suite = ..., *, return_adversarial: Literal[True], **rest: Any
) -> tuple[Evaluation, Adversarial]: ...


@overload
def evaluate(
    model: nn.Module,
    x: Any,
    y: Any = ...,
    suite: str | Suite = ...,
    *,
    return_adversarial: Literal[False] = ...,
    **rest: Any,
) -> Evaluation: ...


def evaluate(  # type: ignore[misc]  # of all its options the two say only the one that they differ by
    model: nn.Module,
    x: Any,
    y: Any = None,
    suite: str | Suite = "quick",
    *,
    eps: Eps | None = None,
    targets: str | int | None = None,
    dataset: Dataset | DatasetInfo | None = None,
    cascade: bool = False,
    sampled: bool = False,
    device: torch.device | str = "cpu",
    jobs: int = 1,
    name: str | None = None,
    remedy: Remedy | None = None,
    batch: int | None = None,
    health: bool = True,
    certify: int | None = None,
    surrogates: Sequence[nn.Module | Source] = (),
    average: Average = "logits",
    progress: bool = True,
    return_adversarial: bool = False,
    track: bool | str = False,
    report: str | Path | None = None,
    home: str | Path | None = None,
) -> Evaluation | tuple[Evaluation, Adversarial]:
    """Attack a model with a suite, and judge every returned image.

    What ``gauntlet run`` does with a model that it loads, with one that is handed over: the same admission
    (:mod:`harness.trust.inspection`), the same jobs, the same numbers.

    The model is copied, frozen and put in eval mode; the one passed in is left as it is, and so are the caller's
    thread count and random generators. Every image given is judged, whatever the suite's own number.

    Args:
        model: Takes float32 images (N, C, H, W) in [0, 1], gives logits (N, K), or one of the other answers that
            :mod:`harness.external.interface` can read. Normalisation belongs inside.
        x: Images, (N, C, H, W) in [0, 1]; or a data set or its name, of whose test part the suite's number of images is
            taken; or a :class:`torch.utils.data.DataLoader` of images and labels.
        y: True labels, (N,), whole numbers in [0, K); none beside a data set.
        suite: Name of a suite, ``FILE.py:NAME`` of one, or one made by hand. Transfers from other models are left out,
            as ``gauntlet run --no-surrogate`` does, unless ``surrogates`` are given, and the grade is B at best where
            the suite has them.
        eps: Budgets in place of the data set's: a number, also as ``"8/255"``, of the suite's norm (of L-infinity where
            it has several), or by norm, one or several. Norms that it says nothing of are left out.
        targets: ``"next"``, ``"random"`` or a class, by number or name: an image counts as broken only where it is
            classified as its target (:class:`harness.goal.Goal`). That is another battery, under a name that says so.
        dataset: Says the budgets, if they are not the suite's; by default MNIST's for gray images and CIFAR's for
            colour, with L1 and L2 budgets scaled to the number of pixels. A whole data set also has the training images
            that some attacks prepare on, as ``gauntlet run`` does; without, they look at the images given.
        cascade: Attack only what may still fall, as ``gauntlet run --cascade`` (:mod:`harness.planning.cascade`): no
            pair has an accuracy of its own then.
        sampled: A cascade whose black-box attacks and second opinions meet a tenth of what stands first, as
            ``gauntlet run --sampled``.
        device: Where to run.
        jobs: Processes; 1 does everything in this one. Numbers do not depend on it.
        name: What to call the model in tables; "model" if it is None.
        remedy: How attacks are to see the model; None finds out (saturated logits, probabilities, random predictions).
            Where gradients turn out to be missing or wrong, more attacks that need none are asked, among them one with
            networks that are trained on the model's own answers (:mod:`harness.planning.gradient_free`).
        batch: Images that the model takes at once; None finds out.
        health: Probe the model, and plant adversarials in it that the suite's attacks have to find; without, no grade
            is better than B. Takes as long as a few strong attacks on
            :data:`harness.planning.specs.PROBE_SAMPLES` images.
        certify: How many of the images to certify in L-infinity and L2, the first ones; None: one in eight, at less
            cost than the attacks; 0: none.
        surrogates: What transfers are crafted on in place of the suite's: models, or a :class:`Source` of one that is
            trained for it, which takes a whole data set. Several are one source, an ensemble.
        average: What is averaged over several surrogates, see :class:`harness.attacks.transfer.Ensemble`.
        progress: Show how far it is, on the standard error stream: live on a terminal or in a notebook, elsewhere
            a line now and then.
        return_adversarial: Return the worst images as well, see :func:`harness.api.adversarial.worst_images`.
        track: Deliver the results to MLflow: True to ``MLFLOW_TRACKING_URI`` or a database in the home, a text to the
            store of that address.
        report: Folder to write leaderboard, tables and pages to.
        home: Folder in which results are kept, and found again by the same call with the same images; by default that
            of ``gauntlet run`` (``GAUNTLET_HOME``, ``gauntlet-runs``) where they are tracked, and none where they are
            not.

    Returns:
        A frame, a row per pair and eps. In its ``attrs``: ``goal``, ``trust`` (by norm, ``[grade, reasons]``, see
        :mod:`harness.trust.grade`), ``worst_case`` (for each norm and eps the ``accuracy`` that all attacks together
        leave, with ``low`` and ``high``, ``n``, ``success_on_correct``, the ``strongest`` attack and, of a sampled
        cascade, how many of the images that stand were ``unseen`` by its black-box attacks), ``certified`` (for each
        norm and eps what is proved to stand and what no attack broke, the fields of
        :class:`harness.metrics.certificates.Band`), ``planted`` (by norm, what :mod:`harness.trust.planting` found),
        ``remedy`` (in words), ``notes`` (what was noticed, a line each), ``left_out`` (labels of attacks). With
        ``return_adversarial`` a pair of that and a mapping of ``(norm, eps)`` to images like ``x``: the worst for each,
        float32 on the CPU, clean where nothing broke them.

    Raises:
        UserError: Images, labels or the model's output are not as described, or the model cannot be judged; unknown
            suite, device or class; no attack is left.
    """
    if isinstance(suite, str):
        from suites import suite as find  # the one place in the core that knows suites by name

        suite = find(suite)
    if eps is not None:
        suite = suite.at(budgets(eps, list(suite.attacks)))
    if jobs < 1:
        raise UserError(f"jobs must be at least 1, got {jobs}")
    where = device_of(device)
    x, y, whole = given(x, y, suite.samples)
    with determinism.as_a_worker(where):
        asked = _Asked.of(model, x, y, whole, dataset, where, name or "model", remedy, batch)
        if surrogates:
            suite = suite.crafted_on(asked.ensemble(surrogates, average))
        if targets is not None:
            suite = suite.towards(parse_goal(targets, asked.mine.info.classes))
        suite = suite.in_samples() if sampled else suite
        info, spec = asked.source.info(), asked.mine.spec
        made = plan(
            suite,
            [spec],
            {info.name: info},
            samples=None if whole is not None else len(x),
            cascade=cascade,
            transfers=bool(surrogates),
            certify=certify,
        )
        made = made if health else dataclasses.replace(made, probes=(), plantings=())
        kept_home = home or (os.environ.get("GAUNTLET_HOME", "gauntlet-runs") if track else None)
        with _homes(kept_home, fresh=return_adversarial) as (place, kept):
            found = asked.run(made, place, jobs=jobs, progress=progress, keep=return_adversarial)
            notes = [*asked.mine.found.notes, *made.notes]
            if kept is not None and kept != place:
                with exclusive(kept, lambda _: None):
                    notes += merge(place, kept).refused
            last = kept or place
            tracker = Tracker(last, store_uri(last, track if isinstance(track, str) else None)) if track else None
            if tracker is not None:
                tracker.mark_untracked(made.key, (cell.key for cell in made.cells))
                tracker.reopen()
                if trouble := deliver(tracker):
                    notes.append(f"not tracked yet: {trouble}; the next command with home {last.path} delivers it")
            board = _board(last, made, tracker.store if tracker is not None else None)
            if report is not None:
                import reports

                reports.write([board], Path(report))
            from reports.overview.notebook import fragment

            key = asked.mine.spec.key
            if of_target := max(pair.result.of_target for pair in board.by_model[key]):
                notes.append(f"left out: {of_target} images of the target's own class")
            remedy_said = str(asked.mine.found.remedy)
            frame = Evaluation.of(board, key, page=fragment(board), remedy=remedy_said, notes=notes)
        if not return_adversarial:
            return frame
        return frame, asked.adversarial(made, found)


def attack(
    model: nn.Module,
    x: Any,
    y: Any,
    norm: Norm = "linf",
    eps: float | str = "8/255",
    *,
    suite: str | Suite | None = None,
    targets: str | int | None = None,
    **options: Any,
) -> Any:
    """The worst images within a budget that a suite's attacks find together, judged by the referee.

    Args:
        model: As for :func:`evaluate`.
        x: Images, (N, C, H, W) in [0, 1].
        y: True labels, (N,).
        norm: Of the budget.
        eps: The budget, also as ``"8/255"``.
        suite: What attacks; None: the quick one, or the norm's own where that has nothing in it.
        targets: As for :func:`evaluate`: images are to be taken for their target.
        **options: Others of :func:`evaluate`.

    Returns:
        Images like ``x``, float32: of those that break one the one that the model gets wrong by the largest margin;
        clean where nothing breaks it, and where it is broken as it is. A tensor on the device of ``x``, or an array for
        one.

    Raises:
        UserError: As :func:`evaluate`.
    """
    from suites import suite as find

    norm = norm_named(norm)
    if suite is None:
        suite = "quick" if norm in find("quick").attacks else norm
    told = {"eps": {norm: eps}, "targets": targets, "health": False, "certify": 0} | options
    _, found = evaluate(model, x, y, suite, return_adversarial=True, **told)
    (x_adv,) = found.values()
    if isinstance(x, np.ndarray):
        return x_adv.numpy()
    return x_adv.to(x.device) if isinstance(x, Tensor) else x_adv


@dataclass(frozen=True)
class _Asked:
    """What a call hands over.

    Attributes:
        x: The images that are judged, in their order.
        others: Models that transfers are crafted on.
    """

    mine: Model
    x: Tensor
    y: Tensor
    source: Held
    device: torch.device
    others: list[Model] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        whole: Dataset | None,
        dataset: Dataset | DatasetInfo | None,
        device: torch.device,
        name: str,
        remedy: Remedy | None,
        batch: int | None,
    ) -> _Asked:
        """Look at the model, and at what its images are of."""
        told = dataset if dataset is not None else whole
        declared = told.info if isinstance(told, Dataset) else told
        mine = admitted(model, x, y, declared, device=device, name=name, remedy=remedy, batch=batch)
        if whole is not None and dataset is None and published(whole):
            return cls(mine, x, y, Held(whole), device)
        # what is kept in a home, or crafted for one model, is of these very images: their name says which
        if whole is not None and dataset is None:
            source = Held(dataclasses.replace(whole, info=_named(mine.info, whole)))
        else:
            learned = told if isinstance(told, Dataset) else None
            found = Images.of(dataclasses.replace(mine.info, test_size=len(x)), x, y, learned)
            source = Held(dataclasses.replace(found, info=_named(found.info, found)))
        spec = dataclasses.replace(mine.spec, dataset=source.name)
        return cls(dataclasses.replace(mine, info=source.info(), spec=spec), x, y, source, device)

    def ensemble(self, surrogates: Sequence[nn.Module | Source], average: Average) -> Ensemble:
        """What transfers are crafted on."""
        members: list[Any] = []
        for number, one in enumerate(surrogates):
            if isinstance(one, Source):
                if not isinstance(self.source.data, Images) or self.source.data.learned is not None:
                    members.append(one)
                    continue
                raise UserError("a surrogate that is to be trained needs training images: evaluate(..., dataset=DATA)")
            called = f"surrogate {number + 1}"
            found = admitted(one, self.x, self.y, self.mine.info, device=self.device, name=called)
            self.others.append(found)
            members.append(found.spec)
        return Ensemble(members=tuple(members), average=average)

    def run(self, made: Plan, place: Home, *, jobs: int, progress: bool, keep: bool) -> dict[str, list[Kept]]:
        """Carry a plan out; by key of the cell the adversarial images, if they are to be kept."""
        models = [self.mine, *self.others]
        for one in models:
            one.register(place)
        found: dict[str, list[Kept]] = {}

        def take(job: Job, value: Any) -> None:
            if isinstance(job, Judge) and value is not None:
                found.setdefault(job.cell.key, []).append(value)

        context = Context(
            place,
            {self.source.name: self.source},
            str(self.device),
            models={one.spec.key: one.judged for one in models},
            keep=keep,
        )
        with contextlib.ExitStack() as stack:
            engine: Engine = stack.enter_context(Processes(jobs, context)) if jobs > 1 else Here(context)
            observe: Callable[[Watch], None] = lambda watch: None  # noqa: E731
            if progress:
                observe = stack.enter_context(Display(made, place, Console(stderr=True), patient=True))
            said = f"gauntlet.evaluate(..., suite={made.suite.name!r})"
            how: dict[str, Any] = {"jobs": jobs, "command": said, "observe": observe, "beside": jobs > 1}
            ended = run(made, context, engine=Strict(engine, take), **how)
        if ended.failures:
            raise UserError(ended.failures[0])
        return found

    def adversarial(self, made: Plan, found: Mapping[str, Sequence[Kept]]) -> Adversarial:
        """The worst images at every norm and eps of a plan."""
        remedy = self.mine.found.remedy
        referee = Victim(self.mine.judged, classes=self.mine.found.classes, device=self.device, votes=remedy.calls)
        places, _ = self.source.data.test_sample(len(self.x))
        goal, target = made.suite.goal, None
        if goal is not None:
            aims = goal.targets(self.y.numpy(), range(len(self.y)), self.mine.found.classes)
            target = torch.from_numpy(aims)
        every = [one for kept in found.values() for one in kept]
        grid = made.suite.grid(self.source.info())
        return {
            (norm, eps): worst_images(referee, self.x, self.y, target, places, every, Threat(norm, eps))
            for norm in grid
            for eps in grid[norm]
        }


def _named(info: DatasetInfo, data: Dataset) -> DatasetInfo:
    """With a digest of the images in the name, as data sets that users make have it."""
    return dataclasses.replace(info, name=data.digest_name(info.name))


@contextlib.contextmanager
def _homes(kept: str | Path | None, *, fresh: bool) -> Iterator[tuple[Home, Home | None]]:
    """Where to work, and where results are kept, if they are. A ``fresh`` place has no results yet."""
    keep = Home(Path(kept)).create() if kept is not None else None
    if keep is not None and not fresh:
        yield keep, keep
        return
    with tempfile.TemporaryDirectory(prefix="gauntlet-") as folder:
        yield Home(Path(folder)), keep


def _board(home: Home, made: Plan, store: str | None) -> Board:
    """The board of a plan, with its pictures in memory."""
    mine = {cell.key for cell in made.cells}

    def held(pair: Pair) -> Pair:
        return dataclasses.replace(pair, gallery=dict(pair.gallery))

    for board in boards_from_home(home, store):
        if board.suite == made.suite.name and any(pair.result.cell in mine for pair in board.pairs):
            return dataclasses.replace(board, pairs=[held(pair) for pair in board.pairs])
    raise UserError("no attack was run")
