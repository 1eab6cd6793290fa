"""Rank models by what all attacks of a suite together leave; models that do not differ significantly share a rank."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
import pandas as pd

from .metrics.certificates import Band, band
from .metrics.comparison import compare
from .metrics.pairs import Board, Pair, WorstCase, interval, reference, worst_case
from .schema.counts import plural
from .schema.models import KnownModel
from .schema.probes import Side
from .trust.grade import Trust, trust

LEADERBOARD_COLUMNS: Final = (
    "rank", "dataset", "architecture", "defense", "suite", "goal", "norm", "eps", "seeds", "n", "clean_accuracy",
    "worst_case_accuracy", "worst_case_low", "worst_case_high", "success_on_correct", "strongest_attack", "trust",
    "certified", "certified_attacked", "certified_n", "certificate", "planted_found", "planted_black_box",
)  # fmt: skip
"""Columns of ``leaderboard.csv``: a row per model (over its seeds) and eps. No rank: see :func:`leaderboard`. ``goal``
and ``success_on_correct`` are as in :data:`harness.metrics.pairs.PAIR_COLUMNS`, of all attacks together; ``certified``
to ``certificate`` are of :class:`harness.metrics.certificates.Band`."""

PLANTED_SIDES: Final[dict[str, Side]] = {"planted_found": "gradients", "planted_black_box": "black_box"}
"""Columns of planted adversarials, and whose attacks looked for them."""

EXTRA_COLUMNS: Final = ("std", "clean_std", "trust_reasons", "note", "withheld")
"""Columns that :func:`leaderboard` adds and the CSV leaves out."""

_NOTED: Final = frozenset({"battery-complete", "attacks-crashed", "invalid-results"})
"""Checks whose failures the note names anyway, seed by seed."""


@dataclass(frozen=True)
class _Model:
    """One defense of one architecture on n images, over its seeds: a row for every norm and eps."""

    dataset: str
    architecture: str
    defense: str
    n: int
    seeds: Mapping[str, Sequence[Pair]]

    @property
    def name(self) -> tuple[str, str, str]:
        """What its seeds have in common, whatever they were judged on."""
        return self.dataset, self.architecture, self.defense


def leaderboard(board: Board) -> pd.DataFrame:
    """The frame behind ``leaderboard.csv``, best first within each (data set, norm, eps, n).

    Accuracies are means over seeds; the interval is Wilson's over the images at that mean, which says how far
    other images would move it (the spread over seeds is the column ``std``). ``trust`` is the worst grade over seeds,
    "" where there is none; ``trust_reasons`` says what lowers it. ``planted_found`` and ``planted_black_box`` are the
    shares of adversarials known to be there that gradient and black-box attacks find, NaN where that was not asked.

    **Who has a rank.** A model has none (NA) while one of its pairs is missing, crashed or returned invalid images,
    while pairs of the suite were not asked for, while one of its seeds failed, with trust D in that norm, or while an
    image is both certified and broken: ``note`` says why. Models that nothing was run on, because their training
    failed, have rows without numbers (``n`` and ``seeds`` 0). Attacks that were left out on purpose, such as
    transfers, cost no rank. ``withheld`` says how many images a sampled cascade did not show to all attacks.

    **Shared ranks.** Going down from the highest accuracy, the first model opens a group, and a model that
    :mod:`harness.metrics.comparison` cannot tell from the group's first (p >= 0.05) joins it; the first that can be
    told opens the next group. Models of equal accuracy are always in one group: all of them join if one does. A rank is
    1 plus the number of models in the groups before. A shared rank says "not told apart from the best of these", on
    these images; two members of one group may well differ from each other. Where images differ, no test is made and
    accuracy alone decides.

    With targets (:attr:`~harness.metrics.pairs.Board.goal`) ``worst_case_accuracy`` is the share of images that no
    attack led to theirs.

    Returns:
        :data:`LEADERBOARD_COLUMNS` and :data:`EXTRA_COLUMNS`.

    Raises:
        UserError: The board's pairs are of different goals.
    """
    rows: list[dict[str, Any]] = []
    for model in _models(board):
        problems = _problems(board, model)
        for norm, grid in board.budgets[model.dataset].items():
            if model.seeds and not any(pair.result.norm == norm for pairs in model.seeds.values() for pair in pairs):
                continue
            grades = {key: trust(board, key, norm) for key in model.seeds}
            common: dict[str, Any] = {**_trust_columns(list(grades.values()))}
            common |= _planted_columns(board, model, norm)
            common["note"] = "; ".join([*problems, *_doubts(list(grades.values()))])
            for eps in grid:
                rows.append(_row(board, model, norm, eps) | common)
    return _ranked(pd.DataFrame(rows, columns=[*LEADERBOARD_COLUMNS, *EXTRA_COLUMNS, "_model"]))


def _models(board: Board) -> list[_Model]:
    """Models by what was judged, and those of which nothing was."""
    groups: dict[tuple[Any, ...], dict[str, list[Pair]]] = {}
    for key, pairs in board.by_model.items():
        group = (*pairs[0].result.group, reference(pairs).n)
        groups.setdefault(group, {})[key] = pairs
    found = [
        _Model(dataset, architecture, defense, n, seeds)
        for (dataset, architecture, defense, n), seeds in groups.items()
    ]
    names = {model.name for model in found}
    for known in board.models.values():
        if known.group not in names and known.dataset in board.budgets:
            names.add(known.group)
            found.append(_Model(*known.group, 0, {}))
    return found


def _row(board: Board, model: _Model, norm: str, eps: float) -> dict[str, Any]:
    worst = [worst_case(pairs, norm, eps) for pairs in model.seeds.values()]
    clean = [reference(pairs).summary["clean_accuracy"] for pairs in model.seeds.values()]
    accuracy = float(np.mean([case.accuracy for case in worst])) if worst else math.nan
    low, high = interval(accuracy * model.n, model.n, _mean([case.doubt for case in worst]))
    bands = bands_of(board, model.seeds, norm, eps)
    return {
        "dataset": model.dataset,
        "architecture": model.architecture,
        "defense": model.defense,
        "suite": board.suite,
        "goal": board.goal,
        "norm": norm,
        "eps": eps,
        "seeds": len(model.seeds),
        "n": model.n,
        "clean_accuracy": float(np.mean(clean)) if clean else math.nan,
        "clean_std": _std(clean),
        "worst_case_accuracy": accuracy,
        "std": _std([case.accuracy for case in worst]),
        "worst_case_low": low,
        "worst_case_high": high,
        "success_on_correct": _mean([case.success for case in worst]),
        "strongest_attack": _strongest(worst),
        "certified": _mean([one.certified for one in bands]),
        "certified_attacked": _mean([one.attacked for one in bands]),
        "certified_n": min((one.n for one in bands), default=0),
        "certificate": "; ".join(dict.fromkeys(one.contradiction or one.remark for one in bands)).strip("; "),
        "withheld": _withheld(worst),
        "_model": model,
    }


def _withheld(worst: Sequence[WorstCase]) -> str:
    """What a sampled cascade did not show to all attacks, and what the interval allows for; "" if nothing."""
    unseen = sum(case.unseen for case in worst)
    if not unseen:
        return ""
    stand = sum(round(case.accuracy * case.n) for case in worst)
    allowed = sum(case.doubt for case in worst)
    return (
        f"{unseen:,} of the {plural(stand, 'image')} that stand were not shown to every black-box attack and second "
        f"opinion, which broke nothing new in the sample that they met; the interval allows for {allowed:.1f} of "
        "them to fall"
    )


def bands_of(board: Board, seeds: Mapping[str, Sequence[Pair]], norm: str, eps: float) -> list[Band]:
    """The band of each seed of a model, by key of the model, that a certificate was asked for."""
    known = {key: board.certificates.get(key, {}).get(norm) for key in seeds}
    found = (band(facts, seeds[key], norm, eps) for key, facts in known.items() if facts is not None)
    return [one for one in found if one is not None]


def contradictions(board: Board, model: str) -> list[str]:
    """A line for each norm and eps in which images of a model are both certified and broken."""
    pairs = board.by_model.get(model, [])
    proved = [*board.certificates.get(model, {}).items(), *board.screens.get(model, {}).items()]
    bands = [band(facts, pairs, norm, level.eps) for norm, facts in proved for level in facts.levels]
    return list(dict.fromkeys(one.contradiction for one in bands if one is not None and one.contradiction))


def _planted_columns(board: Board, model: _Model, norm: str) -> dict[str, float]:
    """Shares of the planted adversarials that gradient and black-box attacks found: means over seeds, NaN for none."""
    facts = (board.health.get(key, {}).get(norm) for key in model.seeds)
    known = [one.planted for one in facts if one is not None and one.planted is not None]
    found = {}
    for name, side in PLANTED_SIDES.items():
        shares = [share for planted in known if (share := planted.share(side)) is not None]
        found[name] = float(np.mean(shares)) if shares else math.nan
    return found


def _problems(board: Board, model: _Model) -> list[str]:
    """Why a model has no rank in any norm, seed by seed; empty if nothing stands against it."""
    found = []
    if model.seeds and not model.n:
        found.append("no images were judged")
    for pairs in model.seeds.values():
        for pair in pairs:
            if pair.result.failed:
                found.append(f"{pair.result.attack} ({pair.result.norm}): {pair.result.status}")
    for key, pairs in model.seeds.items():
        seed = f"seed {pairs[0].result.seed}: " if len(model.seeds) > 1 else ""
        found += [f"{seed}{line}" for line in contradictions(board, key)]
    for key, known in board.models.items():
        if known.group == model.name:
            found += [f"seed {known.seed}: {reason}" for reason in _lacks(board, model, key, known)]
    return list(dict.fromkeys(found))


def _lacks(board: Board, model: _Model, key: str, known: KnownModel) -> list[str]:
    """Why one seed of a model is incomplete."""
    labels, unasked = board.missing.get(key, ()), board.unasked.get(key, ())
    reasons = []
    if labels or known.status == "failed":
        reasons.append(known.error or (f"{len(labels)} pairs not run" if labels else "failed"))
    if unasked:
        total = len(board.by_model.get(key, ())) + len(labels) + len(unasked)
        reasons.append(f"{len(unasked)} of the suite's {total} pairs were not asked for")
    return reasons or ([] if model.seeds else ["nothing was run"])


def _trust_columns(grades: Sequence[Trust | None]) -> dict[str, str]:
    known = [grade for grade in grades if grade is not None]
    checks = sorted((check for one in known for check in one.checks), key=lambda check: check.grade, reverse=True)
    reasons = dict.fromkeys(check.finding for check in checks if check.grade != "A")
    return {"trust": max((one.grade for one in known), default=""), "trust_reasons": "; ".join(reasons)}


def _doubts(grades: Sequence[Trust | None]) -> list[str]:
    """Findings that cost the rank, those of one check over seeds once."""
    first: dict[str, str] = {}
    for one in grades:
        for check in one.checks if one is not None else ():
            if check.grade == "D" and check.name not in _NOTED:
                first.setdefault(check.name, check.finding)
    return [f"trust D: {finding}" for finding in first.values()]


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else math.nan


def _std(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def _strongest(cases: Sequence[WorstCase]) -> str:
    """Strongest attack over seeds: the one that broke most images in all."""
    total: dict[str, int] = {}
    for case in cases:
        for label, count in case.broken_by.items():
            total[label] = total.get(label, 0) + count
    best = max(total, key=lambda label: total[label], default="")
    return best if best and total[best] else ""


def _ranked(frame: pd.DataFrame) -> pd.DataFrame:
    """Sort and rank; rows with a note get no rank and stand last."""
    where = ["dataset", "norm", "eps", "n"]
    frame["_unranked"] = frame["note"] != ""
    # rounded: means over seeds that are equal on paper differ in the last bit
    frame["_accuracy"] = frame["worst_case_accuracy"].astype(float).round(12)
    frame = frame.sort_values(
        [*where, "_unranked", "_accuracy", "clean_accuracy", "architecture", "defense"],
        ascending=[True, True, True, False, True, False, False, True, True],
        kind="stable",
        ignore_index=True,
    )
    ranks = pd.Series(pd.NA, index=frame.index, dtype="Int64")
    for _, group in frame[~frame["_unranked"]].groupby(where, sort=False):
        rows = group.to_dict("records")
        ranks[group.index] = group_ranks([row["_accuracy"] for row in rows], partial(_alike, rows))
    frame["rank"] = ranks
    return frame.drop(columns=["_unranked", "_accuracy", "_model"])


def group_ranks(accuracies: Sequence[float], alike: Callable[[int, int], bool]) -> list[int]:
    """Ranks of models in descending order of accuracy; the rule is in :func:`leaderboard`."""
    ranks: list[int] = []
    first = 0
    while len(ranks) < len(accuracies):
        start = len(ranks)
        equals = [i for i in range(start, len(accuracies)) if accuracies[i] == accuracies[start]]
        if not any(i == first or alike(first, i) for i in equals):
            first = start
        ranks += [first + 1] * len(equals)
    return ranks


def _alike(rows: Sequence[Mapping[Any, Any]], i: int, j: int) -> bool:
    """Whether the models of two rows cannot be told apart."""
    a, b = (list(rows[at]["_model"].seeds.values()) for at in (i, j))
    try:
        return not compare(a, b, rows[i]["norm"], rows[i]["eps"]).significant
    except ValueError:  # not judged on the same images
        return False
