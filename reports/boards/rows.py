"""Rows and cells of the tables, as plain values without markup."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from harness.metrics.pairs import Pair
from harness.schema.models import KnownModel

State = Literal["value", "bound", "cascade", "failed", "absent"]


@dataclass(frozen=True)
class Entry:
    """A line of every table: a defense of one architecture on n images, over its seeds.

    Attributes:
        index: Position in the section.
        colour: Number that sets its colour, the same on every page of a report.
        anchor: Id of its card on the page.
        architecture: Label.
        defense: Label.
        n: Images; 0 if nothing was attacked.
        models: Pairs by model key, a key per seed.
        known: The board's record of those models and of its other seeds, by key.
        notes: Per norm why it has no rank, "" where it has one.
        page: Name of its own page, without the ending.
    """

    index: int
    colour: int
    anchor: str
    architecture: str
    defense: str
    n: int
    models: Mapping[str, Sequence[Pair]]
    known: Mapping[str, KnownModel]
    notes: Mapping[str, str]
    page: str

    @property
    def name(self) -> str:
        """Defense and architecture."""
        return f"{self.defense} / {self.architecture}"

    def attacked(self, norm: str) -> bool:
        """Whether some attack ran on it in that norm."""
        return any(pair.result.norm == norm for pair in self.pairs)

    @property
    def unranked(self) -> list[str]:
        """Norms in which it has no rank."""
        return [norm for norm, note in self.notes.items() if note]

    @property
    def reasons(self) -> list[str]:
        """Why it has no rank in some norm, each reason once."""
        return list(dict.fromkeys(note for note in self.notes.values() if note))

    @property
    def pairs(self) -> list[Pair]:
        """Pairs of every seed."""
        return [pair for pairs in self.models.values() for pair in pairs]


@dataclass(frozen=True)
class Column:
    """An attack as a column: its label, and what it was crafted on if that is not the victim."""

    attack: str
    source: str
    toolkit: str
    control: bool

    @property
    def name(self) -> str:
        """Label, with the source where there is one."""
        return f"{self.attack} from {self.source}" if self.source else self.attack


@dataclass(frozen=True)
class HeatCell:
    """One model against one attack at one eps, over seeds.

    Attributes:
        state: ``"cascade"``, ``"failed"`` and ``"absent"`` cells hold no number: a cascade's attack met only what
            earlier ones had left. That of a ``"bound"`` is an upper bound, because the model has no rank.
        value: Mean robust accuracy, None without a number.
        text: Words for a cell without a number.
        detail: The seeds one by one.
        anchor: Id of the first record behind it.
    """

    state: State
    value: float | None = None
    text: str = ""
    detail: str = ""
    anchor: str = ""


@dataclass(frozen=True)
class HeatRow:
    """A model's line of the heat map."""

    entry: Entry
    worst: HeatCell
    cells: Sequence[HeatCell]


@dataclass(frozen=True)
class Gain:
    """What one attack adds: per entry the share of images lost to it and to no other; None if it did not run."""

    attack: str
    shares: Sequence[float | None]

    @property
    def total(self) -> float:
        """Sum over the entries."""
        return sum(share for share in self.shares if share is not None)


@dataclass(frozen=True)
class Beaten:
    """A model of which one step along the gradient breaks more than iterated attacks do.

    Attributes:
        entry: The model.
        step: The attack of a single step that leaves least.
        left: What it leaves.
        iterated: Iterated attacks, each with what it leaves, in words.
    """

    entry: Entry
    step: str
    left: float
    iterated: Sequence[str]


@dataclass(frozen=True)
class Panel:
    """Everything at one norm and eps.

    Attributes:
        anchor: Id on the page.
        norm: Of the threat.
        eps: Of the threat.
        text: Both in words.
        rankings: Leaderboard rows by n, as mappings with ``entry``.
        columns: Attacks, strongest first, controls last.
        heat: A row an entry, in the order of the ranking.
        gains: Attacks that broke some image alone, most first.
        idle: Names of the others.
        beaten: Models of which one step breaks more than iterated attacks.
    """

    anchor: str
    norm: str
    eps: float
    text: str
    rankings: Sequence[tuple[int, Sequence[Mapping[str, Any]]]]
    columns: Sequence[Column]
    heat: Sequence[HeatRow]
    gains: Sequence[Gain]
    idle: Sequence[str]
    beaten: Sequence[Beaten] = ()

    def short(self, column: Column) -> str:
        """An attack without its settings, unless another here differs from it in these alone."""
        base, _, _ = column.attack.partition("(")
        same = {other.attack for other in self.columns if other.attack.partition("(")[0] == base}
        if len(same) > 1:
            return column.name
        return base + (f" from {column.source}" if column.source else "")


@dataclass(frozen=True)
class Record:
    """One pair and where it comes from.

    Attributes:
        anchor: Id on the page.
        pair: The record.
        summary: :func:`harness.metrics.pairs.summary` of its samples; what measures the attack is NaN if the pair
            failed.
        accuracies: (eps, value, low, high) at every eps it is judged at; all but eps are NaN if the pair failed.
        problem: What was invalid about the returned images, in words.
        met: Images that the attack was called for, in a cascade what still stood; None outside of cascades.
        broke: (eps, images broken within it) at every eps it is judged at.
        success: Share of the correctly classified images that it broke, at every eps it is judged at; NaN where
            accuracies are.
    """

    anchor: str
    pair: Pair
    summary: Mapping[str, float]
    accuracies: Sequence[tuple[float, ...]]
    problem: str
    met: int | None = None
    broke: Sequence[tuple[float, int]] = ()
    success: Sequence[float] = ()

    @property
    def column(self) -> Column:
        """Its attack."""
        return column(self.pair)

    @property
    def failed(self) -> bool:
        """Whether its numbers may not be read as robustness."""
        return self.pair.result.failed

    @property
    def unchanged(self) -> float:
        """Share of the attacked images, of those that stood, that came back as they were."""
        attacked = int((self.pair.columns["attacked"] & self.pair.stands).sum())
        return self.pair.result.unchanged / attacked if attacked else 0.0


@dataclass(frozen=True)
class Failure:
    """Something that has to be explained before a model gets a rank, or, as a caution, before a number is trusted."""

    entry: str
    seed: str
    what: str
    status: str
    reason: str
    errors: Sequence[str] = ()
    record: Record | None = None

    @property
    def neutral(self) -> bool:
        """Whether it is no failure."""
        return self.status in ("noted", "caution", "not asked", "left out")


@dataclass(frozen=True)
class AttackCost:
    """What an attack costs: means over models and seeds. Passes are per attacked image, seconds per pair.

    The success rate leaves failed pairs and cascades out; NaN if there is nothing else.
    """

    column: Column
    access: str
    kind: str
    norm: str
    pairs: int
    forwards: float
    backwards: float
    seconds: float
    success_rate: float


def column(pair: Pair) -> Column:
    """The attack of a pair as a column. Random noise is a control."""
    result = pair.result
    return Column(result.attack, result.source, result.toolkit, result.family == "noise" and not result.source)
