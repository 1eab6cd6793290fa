"""The results of one suite on one data set: models over their seeds, records, worst cases, distances, trust."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pandas as pd

from harness.leaderboard import bands_of, contradictions
from harness.metrics.certificates import Band
from harness.metrics.pairs import FLAGS, Board, Bools, Pair, WorstCase, by_model, nearest, rows_of, worst_case
from harness.schema.eps import limit
from harness.schema.goals import measured
from harness.schema.models import KnownModel
from harness.trust.grade import Trust, trust

from ..drawing import names
from ..drawing.text import NORM_NAMES, counts, threat_text, unbounded
from .rows import Column, Entry, Record, column


@dataclass
class SuiteResults:
    """The results of one suite on one data set.

    Attributes:
        anchor: Id on the page.
        board: The board.
        frame: The rows of its leaderboard that belong to ``dataset``.
        dataset: Name.
        taken: Names of model pages that earlier sections use.
        colours: Numbers of models, by architecture and defense, that earlier sections gave.
    """

    anchor: str
    board: Board
    frame: pd.DataFrame
    dataset: str
    taken: set[str] = field(default_factory=set, repr=False)
    colours: dict[tuple[str, str], int] = field(default_factory=dict, repr=False)
    _worst: dict[tuple[str, str, float], WorstCase] = field(default_factory=dict, repr=False)
    _nearest: dict[tuple[str, str], pd.DataFrame] = field(default_factory=dict, repr=False)
    _trust: dict[tuple[str, str], Trust | None] = field(default_factory=dict, repr=False)

    @property
    def title(self) -> str:
        """Suite and data set."""
        return f"{self.board.suite} on {self.dataset}"

    @property
    def goal(self) -> str:
        """What the attacks are after."""
        return self.board.goal

    @property
    def measure(self) -> str:
        """What the share of images is called that no attack broke."""
        return measured(self.goal)

    @cached_property
    def of_target(self) -> int:
        """Images that are left out because their class is the target."""
        return max((pair.result.of_target for pair in self.pairs), default=0)

    def threat(self, norm: str, eps: float | None) -> str:
        """Norm and eps in words, and the goal where it is a targeted one: what stands over every table."""
        text = threat_text(norm, eps, self.levels)
        return f"{text}, {self.goal}" if self.board.targeted else text

    @property
    def budgets(self) -> Mapping[str, Sequence[float]]:
        """Per norm the ascending values of eps."""
        return self.board.budgets.get(self.dataset, {})

    @cached_property
    def pairs(self) -> list[Pair]:
        """The section's pairs."""
        return [pair for pair in self.board.pairs if pair.result.dataset == self.dataset]

    @cached_property
    def levels(self) -> int:
        """Images hold k/levels."""
        return next((pair.result.levels for pair in self.pairs), 255)

    @cached_property
    def classes(self) -> Sequence[str]:
        """Names of the classes, empty if no record has them."""
        return next((pair.result.class_names for pair in self.pairs if pair.result.class_names), ())

    @cached_property
    def known(self) -> dict[str, KnownModel]:
        """Models the board knows on this data set."""
        return {key: model for key, model in self.board.models.items() if model.dataset == self.dataset}

    @cached_property
    def entries(self) -> list[Entry]:
        """Lines of the tables in order of appearance, those without a single pair last."""
        groups: dict[tuple[str, str, int], dict[str, list[Pair]]] = {}
        for key, pairs in by_model(self.pairs).items():
            result = pairs[0].result
            n = max(pair.n for pair in pairs)
            groups.setdefault((result.architecture, result.defense, n), {})[key] = pairs
        seen = {group[:2] for group in groups}
        for model in self.known.values():
            if (name := (model.architecture, model.defense)) not in seen:
                groups.setdefault((*name, 0), {})
        return [
            Entry(
                index=i,
                colour=self.colours.setdefault((architecture, defense), len(self.colours)),
                anchor=f"{self.anchor}-m{i}",
                architecture=architecture,
                defense=defense,
                n=n,
                models=models,
                known={
                    key: model
                    for key, model in self.known.items()
                    if (model.architecture, model.defense) == (architecture, defense)
                },
                notes=self._notes(architecture, defense, n),
                page=self._page(architecture, defense, n),
            )
            for i, ((architecture, defense, n), models) in enumerate(groups.items())
        ]

    def _notes(self, architecture: str, defense: str, n: int) -> dict[str, str]:
        rows = self.frame
        rows = rows[(rows["architecture"] == architecture) & (rows["defense"] == defense) & (rows["n"] == n)]
        known = {str(row["norm"]): str(row["note"]) for row in rows.to_dict("records")}
        return {norm: known.get(norm, "no attack ran in this norm") for norm in self.norms or self.budgets}

    def _page(self, architecture: str, defense: str, n: int) -> str:
        name = names.page(self.board.suite, self.dataset, architecture, defense, f"n{n}")
        while name in self.taken:
            name += "_again"
        self.taken.add(name)
        return name

    @cached_property
    def norms(self) -> list[str]:
        """Norms with at least one pair, the usual ones first."""
        used = {pair.result.norm for pair in self.pairs}
        return [norm for norm in dict.fromkeys((*NORM_NAMES, *self.budgets)) if norm in used and norm in self.budgets]

    def reference(self, norm: str) -> float:
        """The eps to look at first: the one that models were probed at, else the middle one."""
        grid = self.budgets[norm]
        probed = [facts[norm].eps for facts in self.board.health.values() if norm in facts]
        return next((eps for eps in grid if eps in probed), grid[len(grid) // 2])

    @cached_property
    def bounded(self) -> list[str]:
        """Norms with an eps that holds fewer than all images, so that there is a curve to draw."""
        return [norm for norm in self.norms if any(eps > 0 and not unbounded(norm, eps) for eps in self.budgets[norm])]

    @cached_property
    def budgeted(self) -> list[str]:
        """Attacks, without their settings, that look for adversarials within an eps of their own; not controls."""
        results = [pair.result for pair in self.pairs if pair.result.norm in self.bounded and pair.result.eps]
        return sorted(
            {one.attack.partition("(")[0] for one in results if one.family not in ("noise", "transformation")}
        )

    @cached_property
    def records(self) -> dict[str, list[Record]]:
        """Per entry anchor its pairs, the seeds of one attack next to each other."""
        ordered = [(entry.anchor, pair) for entry in self.entries for pair in sorted(entry.pairs, key=self._pair_order)]
        found: dict[str, list[Record]] = {entry.anchor: [] for entry in self.entries}
        for number, (anchor, pair) in enumerate(ordered):
            found[anchor].append(self._record(f"{self.anchor}-p{number}", pair))
        return found

    def _pair_order(self, pair: Pair) -> tuple[int, str, str, float, int]:
        result = pair.result
        return self.norms.index(result.norm), result.attack, result.source, result.eps or 0.0, result.seed

    def _record(self, anchor: str, pair: Pair) -> Record:
        columns = ("eps", "robust_accuracy", "robust_accuracy_low", "robust_accuracy_high")
        # the rows of pairs.csv, so that the page cannot show an accuracy that the file withholds
        rows = rows_of(self.board, pair)
        accuracies = [tuple(float(row[name]) for name in columns) for row in rows]
        samples = pair.columns
        flags = {flag: int(pair.summary[f"invalid_{flag}"]) for flag in FLAGS}
        distance = samples[pair.result.norm][samples["adversarial"]]
        return Record(
            anchor=anchor,
            pair=pair,
            summary=_measured(pair),
            accuracies=accuracies,
            problem=counts(flags.items()),
            met=int(samples["attacked"].sum()) if pair.result.cascade else None,
            broke=[(eps, int((distance <= limit(eps)).sum())) for eps, *_ in accuracies],
            success=[float(row["success_on_correct"]) for row in rows],
        )

    def worst(self, entry: Entry, norm: str, eps: float) -> list[WorstCase]:
        """Worst cases of an entry, one per seed."""
        for key, pairs in entry.models.items():
            if (key, norm, eps) not in self._worst:
                self._worst[key, norm, eps] = worst_case(pairs, norm, eps)
        return [self._worst[key, norm, eps] for key in entry.models]

    def bands(self, entry: Entry, norm: str, eps: float) -> list[Band]:
        """What certificates prove of an entry, one per seed that they were asked for."""
        return bands_of(self.board, entry.models, norm, eps)

    def nearest(self, entry: Entry, norm: str) -> list[pd.DataFrame]:
        """Per seed of an entry :func:`harness.metrics.pairs.nearest`, in ascending order of the images."""
        for key, pairs in entry.models.items():
            if (key, norm) not in self._nearest:
                self._nearest[key, norm] = nearest(pairs, norm).sort_index()
        return [self._nearest[key, norm] for key in entry.models]

    def stands(self, entry: Entry, norm: str, eps: float) -> Bools:
        """Which images no attack broke, (seeds, images), in ascending order of the images."""
        return np.stack([found["distance"].to_numpy(float) > limit(eps) for found in self.nearest(entry, norm)])

    def trust(self, key: str, norm: str) -> Trust | None:
        """What the checks say of one model in one norm."""
        if (key, norm) not in self._trust:
            self._trust[key, norm] = trust(self.board, key, norm)
        return self._trust[key, norm]

    @property
    def attacks(self) -> set[Column]:
        """Attacks of the section; the same under two norms counts once."""
        return {column(pair) for pair in self.pairs}

    @property
    def sizes(self) -> list[int]:
        """Distinct numbers of images."""
        return sorted({pair.n for pair in self.pairs})

    @property
    def attacked(self) -> list[Entry]:
        """Entries with at least one pair."""
        return [entry for entry in self.entries if entry.models]

    @cached_property
    def cascade(self) -> bool:
        """Whether some attack met only what earlier ones had left."""
        return any(pair.result.cascade for pair in self.pairs)

    def reduced(self, entry: Entry) -> bool:
        """Whether an entry lacks a rank for want of pairs that nobody asked for, and for nothing else."""
        board, keys = self.board, {*entry.models, *entry.known}
        failed = [model.status == "failed" or bool(model.error) for model in entry.known.values()]
        failed += [pair.result.failed for pair in entry.pairs]
        failed += [bool(board.missing.get(key)) for key in keys]
        failed += [
            any(
                check.grade == "D" and check.name != "battery-strength" for check in found.checks
            )  # it was not all asked
            for key in entry.models
            for norm in self.norms
            if (found := self.trust(key, norm))
        ]
        failed += [bool(contradictions(board, key)) for key in entry.models]
        return any(board.unasked.get(key) for key in keys) and not any(failed)


def _measured(pair: Pair) -> dict[str, float]:
    """Summary of a pair's samples. What a failed attack achieved on the rest is no measurement: NaN."""
    found = dict(pair.summary)
    if not pair.result.failed:
        return found
    kept = ("n", "clean_accuracy", "invalid")
    return {name: value if name.startswith(kept) else float("nan") for name, value in found.items()}
