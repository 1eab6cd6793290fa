"""Record of a study: everything its pages are made from, as files and back."""

from __future__ import annotations

import json
import math
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from itertools import chain
from pathlib import Path
from typing import Any, Final, get_type_hints

import pandas as pd

from ..errors import UserError
from .findings import CLAIM_COLUMNS, Finding, Verdict, claim_verdict
from .quantities import Gallery
from .study import Choice, Claim, Item, Measure, Study, Value

JUDGEMENT_COLUMNS: Final = (
    "model", "suite", "norm", "eps", "n", "seeds", "clean_accuracy", "worst_case_accuracy", "std", "worst_case_low",
    "worst_case_high", "certified", "certified_attacked", "certified_n", "certificate", "planted_found",
    "planted_black_box", "trust", "trust_reasons", "note", "strongest_attack",
    "commits", "keys",
)  # fmt: skip
"""Columns of ``judgement.csv``: what today's batteries leave, a row per defended model, norm and eps; as in
:func:`harness.leaderboard.leaderboard`. Commits and keys are of the pairs of that suite and norm, at all eps: those at
which they were made, separated by spaces, and a digest of all that was asked for."""

_SHARES: Final = ("std", "certified", "certified_attacked", "certified_n", "planted_found", "planted_black_box")

VALUES: Final[tuple[Verdict, ...]] = ("reproduced", "close", "undecided", "not reproduced", "not judged", "not run")
CLAUSES: Final[tuple[Verdict, ...]] = ("held", "undecided", "refuted", "not run")

_ADDED: Final = ("models", "pairs", "training_seconds", "attack_seconds")
_UNITED: Final = ("machines", "days", "commits", "skipped")
"""Facts of which a record that is put together has the sum, and all of both."""

Place = tuple[str, str, str, str]


@dataclass(frozen=True)
class StudyRecord:
    """What a study came to.

    Attributes:
        study: What was asked for.
        findings: Values, clauses and effects, by :attr:`Finding.place`.
        judgement: A frame of :data:`JUDGEMENT_COLUMNS`.
        facts: Profile, seeds, data set, images, command, versions, machine, cost, declarations of the models.
        galleries: First images of the pairs behind image grids, by measure: ``x``, ``x_adv``; none of one read back.
        pictures: Image grids as PNG files, by item; of one read back.
    """

    study: Study
    findings: Mapping[Place, Finding]
    judgement: pd.DataFrame
    facts: Mapping[str, Any]
    galleries: Mapping[Measure, Gallery] = field(default_factory=dict)
    pictures: Mapping[str, bytes] = field(default_factory=dict)

    def value(self, item: Item, value: Value) -> Finding:
        """A value of an item; one that the record does not have was not run."""
        return self._find(("value", item.name, value.row, value.column), value)

    def effect(self, choice: Choice, name: str, value: Value) -> Finding:
        """The effect of a choice."""
        return self._find(("effect", choice.topic, name, ""), value)

    def clauses(self, claim: Claim) -> list[Finding]:
        """The clauses of a claim."""
        return [self._find(("clause", claim.name, clause.text, ""), None) for clause in claim.clauses]

    @property
    def caveat(self) -> str:
        """What must be said wherever one of its verdicts is shown, "" for nothing."""
        if self.facts["profile"] != "smoke":
            return ""
        return "smoke profile: it shows that everything runs; its verdicts say nothing about the paper"

    def verdict(self, claim: Claim) -> Verdict:
        """The verdict of a claim."""
        return claim_verdict([finding.verdict for finding in self.clauses(claim)])

    def counts(self) -> tuple[dict[Verdict, int], dict[str, Counter[Verdict]], dict[Verdict, int]]:
        """How many have which verdict.

        Returns:
            Printed values measured for their own sake; the others by basis; clauses of claims.
        """
        printed = [
            finding
            for item in self.study.items
            for value in item.values
            if (finding := self.value(item, value)).printed is not None
        ]
        own = Counter(finding.verdict for finding in printed if finding.basis == "measured")
        apart: dict[str, Counter[Verdict]] = {}
        for finding in printed:
            if finding.basis != "measured":
                apart.setdefault(finding.basis, Counter())[finding.verdict] += 1
        clauses = Counter(finding.verdict for claim in self.study.claims for finding in self.clauses(claim))
        return {name: own[name] for name in VALUES}, apart, {name: clauses[name] for name in CLAUSES}

    def frame(self) -> pd.DataFrame:
        """The frame behind ``claims.csv``: :data:`CLAIM_COLUMNS`."""
        rows = [{name: getattr(finding, name) for name in CLAIM_COLUMNS} for finding in self.findings.values()]
        return pd.DataFrame(rows, columns=list(CLAIM_COLUMNS))

    def joined(self, part: StudyRecord, study: Study) -> StudyRecord:
        """The record with what a part of the study measured elsewhere: in another home, on another machine.

        Of a value that both have it takes the part's if that rests on as many seeds or more; of a model that both
        judged the part's judgement. What was run is added up: a model that both trained counts twice. Seeds and
        command are those of the one with more seeds.

        Args:
            part: A record of the same study, profile and images.
            study: The study itself, of which both may be slices; what either was asked for, the result is of.

        Raises:
            UserError: The part is of another study, profile, data set or number of images.
        """
        for name in ("study", "profile", "dataset", "data_sha256", "samples"):
            own, other = (facts.get(name, "not recorded") for facts in (self.facts, part.facts))
            if own != other or own == "not recorded":
                raise UserError(f"not parts of one run: {name} is {own} here and {other} there")
        ours, theirs = self.findings, part.findings
        better = {
            place: new
            for place, new in theirs.items()
            if new.seeds and (place not in ours or new.seeds >= ours[place].seeds)
        }
        kept = self.judgement[~self.judgement["model"].isin(part.judgement["model"])]
        judgement = pd.concat([frame for frame in (kept, part.judgement) if len(frame)] or [kept], ignore_index=True)
        facts = {**part.facts, **self.facts}
        facts |= {name: self.facts[name] + part.facts[name] for name in _ADDED}
        facts |= {name: sorted({*self.facts.get(name, ()), *part.facts.get(name, ())}) for name in _UNITED}
        slices = [facts.get("only", []) for facts in (self.facts, part.facts)]
        only = list(dict.fromkeys(chain(*slices)))
        facts["only"] = only if all(slices) and not study.is_all(only) else []
        larger = max(self.facts, part.facts, key=lambda facts: len(facts["seeds"]))
        facts["seeds"], whole = larger["seeds"], larger["command"].partition(" --only ")[0]
        facts["command"] = whole + "".join(f" --only {shlex.quote(name)}" for name in facts["only"])
        facts["declared"] = {**self.facts["declared"], **part.facts["declared"]}
        costs: dict[str, dict[str, Any]] = {**self.facts["costs"]}
        for name, cost in part.facts["costs"].items():
            if cost["seeds"] >= costs.get(name, cost)["seeds"]:
                costs[name] = cost
        facts["costs"] = costs
        return StudyRecord(
            study=study.chosen(facts["only"]),
            findings={**ours, **better},
            judgement=judgement,
            facts=facts,
            galleries={**self.galleries, **part.galleries},
            pictures={**self.pictures, **part.pictures},
        )

    def _find(self, place: Place, value: Value | None) -> Finding:
        found = self.findings.get(place)
        return _absent(place, value) if found is None else found


def other_now(record: StudyRecord, now: Iterable[Finding]) -> list[Finding]:
    """What of a record was made by pairs or models that the code would now give another key, where its keys are known.

    Args:
        record: As it was measured.
        now: What the same study asks for now, measured or not.
    """
    current = {finding.place: finding.keys for finding in now}
    return [
        found
        for place, found in record.findings.items()
        if found.seeds and found.keys and found.keys != current.get(place)
    ]


def battery_other_now(record: StudyRecord, now: Mapping[tuple[str, str, str], str]) -> list[str]:
    """Models that a record's batteries judged by pairs that the code would now give another key, where keys are known.

    Args:
        record: As it was measured.
        now: Digests of the keys of the pairs that the same study asks for now, by model, suite and norm.
    """
    rows = record.judgement[["model", "suite", "norm", "keys"]].itertuples(index=False)
    other = (model for model, suite, norm, keys in rows if keys and keys != now.get((model, suite, norm)))
    return list(dict.fromkeys(other))


def by_place(findings: Iterable[Finding]) -> dict[Place, Finding]:
    """Findings by what they are about."""
    return {finding.place: finding for finding in findings}


def read_record(folder: Path, study: Study) -> StudyRecord:
    """Read the record of a study: ``claims.csv``, ``judgement.csv``, ``environment.json`` and ``figures/*.png``.

    Raises:
        UserError: A file is missing or cannot be read, or the record is another study's.
    """
    try:
        facts = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
        empty = {name: [""] for name in _NUMBERS}
        rows = pd.read_csv(folder / "claims.csv", keep_default_na=False, na_values=empty, dtype=_DIGESTS)
        judgement = _judgement(folder / "judgement.csv")
        pictures = {path.stem: path.read_bytes() for path in sorted((folder / "figures").glob("*.png"))}
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} is no record of a study: {error}") from error
    if facts.get("study") != study.name:
        raise UserError(f"{folder} is a record of {facts.get('study')}, not of {study.name}")
    if missing := [name for name in CLAIM_COLUMNS if name not in rows]:
        raise UserError(f"{folder / 'claims.csv'} lacks the column {missing[0]}: run the study again")
    findings = by_place(_finding(row) for row in rows.to_dict("records"))
    return StudyRecord(study, findings, judgement, facts, pictures=pictures)


def _judgement(path: Path) -> pd.DataFrame:
    """What batteries left; columns that were not yet kept when it was written are empty."""
    read = pd.read_csv(path, keep_default_na=False, na_values={name: [""] for name in _SHARES}, dtype=_DIGESTS)
    lacking = {name: math.nan if name in _SHARES else "" for name in JUDGEMENT_COLUMNS if name not in read}
    return read.assign(**lacking)[list(JUDGEMENT_COLUMNS)]


_DIGESTS: Final = {"commits": str, "keys": str}
"""Columns of hexadecimal digits, which are no numbers even where they look like some."""

_HINTS: Final = get_type_hints(Finding)
_NUMBERS: Final = tuple(name for name, hint in _HINTS.items() if hint in (float, float | None, int))


def _finding(row: Mapping[Any, Any]) -> Finding:
    read: dict[str, Any] = {}
    for name in CLAIM_COLUMNS:
        value = row[name]
        if _HINTS[name] is int:
            value = int(value)
        elif _HINTS[name] is bool:
            value = str(value) == "True"
        elif _HINTS[name] == float | None:
            value = None if math.isnan(value) else float(value)
        read[name] = value
    return Finding(**read)


def _absent(place: Place, value: Value | None) -> Finding:
    nothing: dict[str, Any] = {each.name: None for each in fields(Finding)}
    nothing |= {"measured": math.nan, "low": math.nan, "high": math.nan, "seeds": 0, "n": 0, "basis": "measured"}
    nothing |= {"over_seeds": math.nan, "over_images": math.nan, "sampled": False}
    nothing |= dict.fromkeys(("metric", "unit", "profile", "commits", "keys", "note"), "")
    nothing |= dict(zip(("kind", "item", "row", "column"), place, strict=True))
    if value is not None:
        nothing |= {name: getattr(value, name) for name in ("metric", "unit", "printed", "rival", "tolerance", "basis")}
    verdict = "not run" if value is None or value.printed is not None else ""
    return Finding(**nothing | {"verdict": verdict})
