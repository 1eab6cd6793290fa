"""Accuracies, intervals, distances, worst cases and curves from per-image outcomes.

Everything here works on plain frames (:data:`SAMPLE_COLUMNS`), so a table can be rebuilt from records alone.
An image counts as broken at eps if the victim errs on the clean image, or if some attack returned a valid
image at distance <= eps that the victim gets wrong; with targets, if it says the target of either
(:func:`harness.goal.reached`). Images whose adversarial was never found have no distance:
they are censored, never zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from ..errors import UserError
from ..goal import reached
from ..schema.certificates import CertificateFacts
from ..schema.eps import limit
from ..schema.goals import UNTARGETED
from ..schema.models import KnownModel
from ..schema.pairs import Result
from ..schema.probes import ProbeFacts

NO_TARGET: Final = -1
"""Target of images for which any wrong label will do."""

FLAGS: Final = ("over_budget", "out_of_box", "non_finite", "wrong_shape", "crashed")
"""Ways for a returned image to be invalid. An invalid image never counts as a success."""

DISTANCES: Final = ("l0", "l1", "l2", "linf", "rms")

SAMPLE_COLUMNS: Final = (
    "index", "label", "target", "clean_pred", "clean_correct", "attacked", "adv_pred", "adversarial", "wrong_share",
    "survives_rounding", *FLAGS, *DISTANCES, "shard",
)  # fmt: skip
"""Columns of ``samples.parquet``, a row per image: position in the test set, true label, target
(:data:`NO_TARGET`: any wrong label will do), prediction on the clean image, whether that is right, whether the attack
was called, prediction on the returned image (-1: none), whether that is a valid adversarial (never, if the attack may
leave [0, 1]), share of the judge's draws that got it wrong, or said the target (0 or 1 for a deterministic model, NaN
where nothing was judged), whether an adversarial is still one after rounding to 8 bits, the flags, its distances (NaN
unless adversarial; of an unclipped attack, which has no adversarials, unless misclassified), its shard."""

COLUMN_TYPES: Final[Mapping[str, type]] = {
    **dict.fromkeys(SAMPLE_COLUMNS, bool),
    **dict.fromkeys(("index", "label", "target", "clean_pred", "adv_pred", "shard"), int),
    **dict.fromkeys(("wrong_share", *DISTANCES), float),
}
"""What the columns hold."""

PAIR_COLUMNS: Final = (
    "dataset", "architecture", "defense", "seed", "suite", "goal", "attack", "toolkit", "norm", "eps", "source", "n",
    "clean_accuracy", "success_rate", "success_on_correct", "robust_accuracy", "robust_accuracy_low",
    "robust_accuracy_high", "median_l2", "median_linf", "mean_rms", "survives_rounding", "forwards", "backwards",
    "seconds", "invalid", "status", "run_id",
)  # fmt: skip
"""Columns of ``pairs.csv``: a row per model, attack and eps. A minimal attack runs once and has a row for every
eps of the suite, with the same ``run_id``; passes are per attacked image, seconds for the whole cell. ``goal`` is
"untargeted", or says which targets images had: ``robust_accuracy`` is then the share of images that were not taken for
theirs, and no robust accuracy in the usual sense. ``success_on_correct`` is the share of correctly classified images
that the attack broke within eps; ``success_rate`` that of all attacked ones, at any distance."""

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Samples = pd.DataFrame | Mapping[str, npt.NDArray[Any]]
"""Per-sample records by column (:data:`SAMPLE_COLUMNS`)."""


@dataclass(frozen=True)
class Pair:
    """One model-attack pair as recorded: what a cell's directory or its MLflow run holds.

    Attributes:
        result: ``result.json``: the declaration and the counts.
        records: What became of each image, by column (:data:`SAMPLE_COLUMNS`); see :attr:`samples`, :attr:`columns`.
        gallery: First images: ``index (M,)``, ``x`` and ``x_adv`` float32 (M, C, H, W), ``label``,
            ``clean_pred``, ``adv_pred`` (M,). Empty if none were kept.
        run_id: MLflow run, empty if not tracked.
        run_url: Where that run can be looked at, empty if unknown.
    """

    result: Result
    records: Samples
    gallery: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    run_id: str = ""
    run_url: str = ""

    @cached_property
    def samples(self) -> pd.DataFrame:
        """The records as a frame."""
        return self.records if isinstance(self.records, pd.DataFrame) else pd.DataFrame(self.records)

    @cached_property
    def columns(self) -> Mapping[str, npt.NDArray[Any]]:
        """The records as arrays: a report looks at each a dozen times, and a frame takes its time each time."""
        return {name: np.asarray(self.records[name], kind) for name, kind in COLUMN_TYPES.items()}

    @cached_property
    def stands(self) -> Bools:
        """See :func:`stands`."""
        return stands(self.columns)

    @cached_property
    def summary(self) -> Mapping[str, float]:
        """What does not depend on eps; see :func:`summary`."""
        return summary(self.columns)

    @property
    def n(self) -> int:
        """Images."""
        return len(self.records["index"])


@dataclass(frozen=True)
class Board:
    """Pairs that were run as one suite, with the eps values it is judged at.

    Attributes:
        budgets: Per data set and norm, ascending eps values in pixel units of [0, 1].
        pairs: The records. A pair may belong to several boards.
        missing: Labels of pairs that were asked for and have no record (not run, or failed before the attack), by
            model key.
        models: What is known of each model, by key.
        health: Facts of the probe by model key and norm; see :mod:`harness.trust.grade`.
        unasked: Labels of the suite's other pairs, which no command asked for (``--attack`` selects some), by model
            key. No failure, but no rank either.
        left_out: Labels of attacks of the suite that were left out of a model's battery on purpose, such as transfers,
            which need another model; by model key. They cost no rank.
        certificates: What is proved, by model key and norm; see :mod:`harness.metrics.certificates`.
        screens: Likewise what was proved before a cascade, which did not attack it then.
    """

    suite: str
    budgets: Mapping[str, Mapping[str, Sequence[float]]]
    pairs: Sequence[Pair]
    missing: Mapping[str, Sequence[str]] = field(default_factory=dict)
    models: Mapping[str, KnownModel] = field(default_factory=dict)
    health: Mapping[str, Mapping[str, ProbeFacts]] = field(default_factory=dict)
    unasked: Mapping[str, Sequence[str]] = field(default_factory=dict)
    left_out: Mapping[str, Sequence[str]] = field(default_factory=dict)
    certificates: Mapping[str, Mapping[str, CertificateFacts]] = field(default_factory=dict)
    screens: Mapping[str, Mapping[str, CertificateFacts]] = field(default_factory=dict)

    @cached_property
    def by_model(self) -> Mapping[str, list[Pair]]:
        """Pairs by key of their model, in order of appearance."""
        return by_model(self.pairs)

    @cached_property
    def goal(self) -> str:
        """What all of its attacks are after, see :class:`harness.goal.Goal`.

        Raises:
            UserError: They are not after the same: such numbers cannot be ranked together.
        """
        goals = sorted({pair.result.goal for pair in self.pairs})
        if len(goals) > 1:
            raise UserError(
                f"suite {self.suite} has results of different goals ({'; '.join(goals)}), which are not ranked "
                "together: give the suites names of their own"
            )
        return goals[0] if goals else UNTARGETED

    @property
    def targeted(self) -> bool:
        """Whether images count as broken only where they are taken for their target."""
        return self.goal != UNTARGETED


def wilson(successes: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a proportion; (NaN, NaN) for n = 0. ``successes`` may be a mean over seeds."""
    from scipy.special import ndtri

    if n == 0:
        return math.nan, math.nan
    z = float(ndtri(0.5 + confidence / 2))
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def interval(left: float, n: int, doubt: float = 0.0) -> tuple[float, float]:
    """:func:`wilson` of images that stand, its lower end that of as many less as may have fallen unseen."""
    return wilson(max(left - doubt, 0.0), n)[0], wilson(left, n)[1]


def stands(samples: Samples) -> Bools:
    """Which images are not lost as they are: classified correctly or, with targets, not as their target."""
    target, clean = np.asarray(samples["target"], int), np.asarray(samples["clean_pred"], int)
    any_label = target == NO_TARGET
    lost = np.where(any_label, ~np.asarray(samples["clean_correct"], bool), reached(clean, clean, target))
    result: Bools = ~lost
    return result


def broken(samples: Samples, norm: str, eps: float) -> Bools:
    """Which images are lost at (norm, eps): as they are, see :func:`stands`, or a valid adversarial lies within eps."""
    return ~stands(samples) | found_within(samples, norm, eps)


def success_on_correct(samples: Samples, norm: str, eps: float) -> float:
    """Share of correctly classified images for which a valid adversarial lies within eps; NaN without such images."""
    correct = np.asarray(samples["clean_correct"], bool)
    return float(found_within(samples, norm, eps)[correct].mean()) if correct.any() else math.nan


def found_within(samples: Samples, norm: str, eps: float) -> Bools:
    """For which images a valid adversarial lies within eps."""
    near = np.asarray(samples[norm], float) <= limit(eps)  # NaN compares False
    result: Bools = np.asarray(samples["adversarial"], bool) & near
    return result


def rounding(samples: Samples, norm: str, eps: float) -> float:
    """Share of the adversarials within eps that are still misclassified as an 8-bit image; NaN if there are none."""
    found = found_within(samples, norm, eps)
    return float(np.asarray(samples["survives_rounding"], bool)[found].mean()) if found.any() else math.nan


def summary(samples: Samples) -> dict[str, float]:
    """What does not depend on eps: n, accuracies, success, distances of the successful, invalid counts.

    ``success_rate`` is the share of attacked images with a valid adversarial at any distance. Medians and
    means are over the successful and NaN where there is none.
    """
    correct, found = np.asarray(samples["clean_correct"], bool), np.asarray(samples["adversarial"], bool)
    n = len(found)
    attacked = int(np.asarray(samples["attacked"], bool).sum())
    flags = {flag: np.asarray(samples[flag], bool) for flag in FLAGS}
    values = {
        "n": float(n),
        "clean_accuracy": float(correct.mean()) if n else math.nan,
        "success_rate": int(found.sum()) / attacked if attacked else math.nan,
        "invalid": float(np.logical_or.reduce(list(flags.values())).sum()),
    }
    values |= {f"invalid_{flag}": float(raised.sum()) for flag, raised in flags.items()}
    for name in DISTANCES:
        distances = np.asarray(samples[name], float)[found]
        distances = distances[~np.isnan(distances)]
        values[f"median_{name}"] = float(np.median(distances)) if len(distances) else math.nan
        values[f"mean_{name}"] = float(distances.mean()) if len(distances) else math.nan
    return values


def pair_rows(board: Board) -> pd.DataFrame:
    """The frame behind ``pairs.csv``: :data:`PAIR_COLUMNS`, sorted, a row per pair and eps."""
    rows = [row for pair in board.pairs for row in rows_of(board, pair)]
    frame = pd.DataFrame(rows, columns=list(PAIR_COLUMNS))
    order = ["dataset", "architecture", "defense", "seed", "norm", "eps", "attack", "source"]
    return frame.sort_values(order, kind="stable", ignore_index=True)


def rows_of(board: Board, pair: Pair) -> list[dict[str, Any]]:
    """What ``pairs.csv`` says of one pair, a row per eps, ascending.

    A pair that crashed or returned invalid images has no robust accuracy (NaN), whatever its images say. Nor has a
    pair of a cascade: it met only the images that the attacks before it had left.
    """
    result, n = pair.result, pair.n
    common: dict[str, Any] = {name: getattr(result, name) for name in PAIR_COLUMNS if name in Result.model_fields}
    common |= {**pair.summary, "suite": board.suite, "run_id": pair.run_id, "n": n}
    common["invalid"] = int(pair.summary["invalid"])
    rows = []
    for eps in board.budgets[result.dataset][result.norm] if result.eps is None else [result.eps]:
        left = n - int(broken(pair.columns, result.norm, eps).sum())
        low, high = wilson(left, n)
        accuracy, success = left / n if n else math.nan, success_on_correct(pair.columns, result.norm, eps)
        if result.failed:  # what a failed attack left standing is no accuracy
            accuracy = low = high = success = common["success_rate"] = math.nan
        if result.cascade:
            accuracy = low = high = success = math.nan
        robust = {"robust_accuracy": accuracy, "robust_accuracy_low": low, "robust_accuracy_high": high}
        robust |= {"success_on_correct": success}
        rows.append(common | robust | {"eps": eps, "survives_rounding": rounding(pair.columns, result.norm, eps)})
    return rows


def by_model(pairs: Iterable[Pair]) -> dict[str, list[Pair]]:
    """Pairs grouped by model key, in order of appearance."""
    groups: dict[str, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(pair.result.model, []).append(pair)
    return groups


def reference(pairs: Sequence[Pair]) -> Pair:
    """The pair with most images: what a model is judged on. Pairs on fewer broke none of the rest.

    Raises:
        ValueError: No pairs.
    """
    if not pairs:
        raise ValueError("no pairs to judge a model by")
    return max(pairs, key=lambda pair: pair.n)


def lost_at(samples: Samples, norm: str, standing: Bools) -> Floats:
    """Distance at which each image was lost: 0 for one not ``standing`` as it is, inf where nothing was found."""
    distance = np.where(np.asarray(samples["adversarial"], bool), np.asarray(samples[norm], float), math.inf)
    result: Floats = np.where(standing, np.where(np.isnan(distance), math.inf, distance), 0.0)
    return result


def reach(pair: Pair, images: npt.NDArray[Any], norm: str) -> Floats:
    """Distance at which a pair lost each image: 0 for one lost as it is, inf where it found none or did not look."""
    distance = lost_at(pair.columns, norm, pair.stands)
    own, n = pair.columns["index"], len(images)
    if np.array_equal(own[:n], images):  # nearly always; looking up is slow
        return distance[:n]
    at = pd.Index(own).get_indexer(pd.Index(images))
    result: Floats = np.append(distance, math.inf)[at]  # -1, the last, where the pair does not have the image
    return result


def nearest(pairs: Sequence[Pair], norm: str) -> pd.DataFrame:
    """Per image the smallest distance at which any of a model's attacks broke it.

    An adversarial found under one norm counts under every norm, at its distance there.

    Returns:
        Index: image. Columns ``stands`` (as it is), ``distance`` (0 where it does not, inf where nothing broke it: an
        upper bound of the true distance is all an attack can give) and ``attack`` (label of the attack that came
        nearest, "" where none).
    """
    judged = reference(pairs)
    images, start = judged.columns["index"], judged.stands
    distance = np.where(start, math.inf, 0.0)
    attack = np.full(len(images), "", dtype=object)
    for pair in pairs:
        found = reach(pair, images, norm)
        closer = found < distance
        distance[closer] = found[closer]
        attack[closer] = pair.result.attack
    columns = {"stands": start, "distance": distance, "attack": attack}
    return pd.DataFrame(columns, index=pd.Index(images, name="index"))


@dataclass(frozen=True)
class WorstCase:
    """What is left of one model at (norm, eps) after every attack.

    In a cascade an attack is counted for what it broke of the images it met, so order decides who is strongest.

    Attributes:
        accuracy: Share of images that no attack broke.
        low: Lower end of its 95 % Wilson interval; lower still by what :attr:`unseen` images may hide.
        high: Upper end.
        strongest: Label of the attack with the lowest accuracy on its own, "" if none broke anything.
        broken_by: Images lost to each attack (label to count), without those lost as they are.
        alone: Images lost to that attack and no other.
        success: Share of the correctly classified images that some attack broke; NaN without such images.
        unseen: Of the images that stand, those that a sampled cascade did not show to its black-box attacks, at most.
        doubt: As many of them as may fall to those attacks, see :func:`_unseen`.
    """

    accuracy: float
    low: float
    high: float
    n: int
    strongest: str
    broken_by: Mapping[str, int]
    alone: Mapping[str, int]
    success: float
    unseen: int = 0
    doubt: float = 0.0


def worst_case(pairs: Sequence[Pair], norm: str, eps: float) -> WorstCase:
    """Per-sample worst case over a model's attacks, at one norm and eps."""
    judged = reference(pairs)
    images, start, correct = judged.columns["index"], judged.stands, judged.columns["clean_correct"]
    hits: dict[str, Bools] = {}
    for pair in pairs:
        lost = (reach(pair, images, norm) <= limit(eps)) & start
        label = pair.result.attack
        hits[label] = hits[label] | lost if label in hits else lost
    stack = np.stack(list(hits.values()))
    total = stack.sum(0)
    survived = int((start & (total == 0)).sum())
    n = len(correct)
    counts = {label: int(lost.sum()) for label, lost in hits.items()}
    alone = {label: int((lost & (total == 1)).sum()) for label, lost in hits.items()}
    strongest = max(counts, key=lambda label: (counts[label], alone[label]))
    unseen, doubt = _unseen(pairs, norm, eps, images, start & (total == 0))
    low, high = interval(survived, n, doubt)
    success = float((total > 0)[correct].mean()) if correct.any() else math.nan
    accuracy, most = survived / n if n else math.nan, strongest if counts[strongest] else ""
    return WorstCase(accuracy, low, high, n, most, counts, alone, success, unseen, doubt)


def _unseen(
    pairs: Sequence[Pair], norm: str, eps: float, images: npt.NDArray[Any], standing: Bools
) -> tuple[int, float]:
    """Images that stand and that a sampled cascade withheld from some attacks, and how many of them may fall.

    What it withheld at an eps also stands unseen at every smaller one. Of the images that all of those attacks met none
    fell to them, else nothing had been withheld: of the others at most that proportion's upper end of its 95 % interval
    (Wilson) would have; all of them where no image met every attack.
    """
    here = [pair for pair in pairs if pair.result.norm == norm and pair.result.share != "all"]
    here = [pair for pair in here if pair.result.eps is None or limit(pair.result.eps) >= eps]
    withheld = sum(pair.result.withheld for pair in here)
    if not withheld:
        return 0, 0.0
    met: dict[str, Bools] = {}
    for pair in here:
        shown = np.isin(images, pair.columns["index"][pair.columns["attacked"]])
        met[pair.result.attack] = met.get(pair.result.attack, np.zeros_like(shown)) | shown
    by_all = int((np.logical_and.reduce(list(met.values())) & standing).sum())
    unseen = min(withheld, int(standing.sum()) - by_all)
    return unseen, unseen * (wilson(0, by_all)[1] if by_all else 1.0)


def curve(distances: Iterable[float], eps: Iterable[float]) -> Floats:
    """Share of images whose smallest distance exceeds each eps: the robust-accuracy-over-eps curve.

    NaN everywhere if there are no images.
    """
    ordered = np.sort(np.asarray(list(distances), dtype=float))
    limits = np.asarray([limit(value) for value in eps], dtype=float)
    if not len(ordered):
        return np.full(limits.shape, math.nan)
    result: Floats = 1 - np.searchsorted(ordered, limits, side="right") / len(ordered)
    return result
