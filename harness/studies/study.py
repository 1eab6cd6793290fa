"""A paper's experiments as data: printed values, how each is measured, and its claims.

Declarations only, without torch: reports read these types. What a declaration needs trained and attacked is worked out
in :mod:`harness.studies.reproduce`, what came of it in :mod:`harness.studies.findings`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

from ..errors import UserError, unknown

if TYPE_CHECKING:
    from ..attacks.base import Attack
    from ..datasets.registry import DatasetInfo, Half
    from ..planning.specs import ModelSpec
    from ..threat import Threat

Unit = Literal["%", ""]
Relation = Literal[">", "<", ">=", "<="]
Basis = Literal["measured", "construction", "repeat", "fitted"]
Operation = Literal["difference", "ratio", "recovered", "least", "most", "mean"]

SCALE: Final[Mapping[Unit, float]] = {"%": 100.0, "": 1.0}
"""From a measured quantity to what is printed."""


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One number that can be measured for every training seed.

    Attributes:
        quantity: Name in :data:`harness.studies.quantities.QUANTITIES`.
        model: Name of a model of the study.
        attack: What is run against it; None for what is read off the model's training record.
        threat: Norm and, for a budget attack, eps.
        source: Name of the model that the images are crafted on, "" for the model itself.
        samples: Images; None: the profile's.
        part: Whether they are test images or training images.
        settings: What the quantity asks for, as sorted pairs.
    """

    quantity: str
    model: str
    attack: Attack | None = None
    threat: Threat | None = None
    source: str = ""
    samples: int | None = None
    part: Half = "test"
    settings: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        if (self.attack is None) != (self.threat is None):
            raise ValueError(f"{self.quantity} of {self.model}: an attack and a threat go together")


@dataclass(frozen=True, kw_only=True)
class Derived:
    """A number made from others, seed by seed.

    Attributes:
        operation: ``"difference"`` a - b, ``"ratio"`` a / b, ``"recovered"`` 1 - a / b (the share of errors b that a is
            without), ``"least"``, ``"most"`` or ``"mean"`` of any number.
        of: What it is made of.
    """

    operation: Operation
    of: tuple[Quantity, ...]

    def __post_init__(self) -> None:
        pair = self.operation in ("difference", "ratio", "recovered")
        if not self.of or (pair and len(self.of) != 2):
            raise ValueError(f"{self.operation} takes {'two quantities' if pair else 'some quantities'}")


Quantity = Measure | Derived


@dataclass(frozen=True, kw_only=True)
class Value:
    """One cell of a table or point of a figure.

    Attributes:
        row: Row of the table, or name of the line.
        column: Column of the table, or horizontal position of the point.
        metric: What is measured, in a few words.
        quantity: How it is measured.
        printed: The paper's value in ``unit``; None where a figure prints no number.
        unit: ``"%"`` for shares, ``""`` for plain numbers.
        tolerance: How far from ``printed`` still counts as reproduced, in ``unit``; less than half the distance to
            ``rival``.
        rival: What would stand here without the effect that the item is to show (the plain network's printed value
            beside the defended one's, for instance), in ``unit``; None where the item shows no effect here.
        basis: ``"measured"``, or why meeting ``printed`` is no evidence: true by ``"construction"`` (a constant is
            chosen for it), the ``"repeat"`` of another cell, or ``"fitted"`` to print. Counted apart.
        printed_std: The paper's standard deviation over runs, in ``unit``; where there is one, ours is noted beside it.

    Raises:
        ValueError: A tolerance that is negative, or too large to tell ``printed`` from ``rival``.
    """

    row: str
    column: str
    metric: str
    quantity: Quantity
    printed: float | None = None
    unit: Unit = ""
    tolerance: float = 0.0
    rival: float | None = None
    basis: Basis = "measured"
    printed_std: float | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.tolerance) and self.tolerance >= 0):
            raise ValueError(f"{self.row}, {self.column}: tolerance must be finite and at least 0")
        if self.rival is not None:
            if self.printed is None:
                raise ValueError(f"{self.row}, {self.column}: a rival of no printed value")
            if not self.tolerance < abs(self.printed - self.rival) / 2:
                raise ValueError(
                    f"{self.row}, {self.column}: a tolerance of {self.tolerance:g} does not tell {self.printed:g} from "
                    f"{self.rival:g}"
                )


@dataclass(frozen=True, kw_only=True)
class Quoted:
    """A cell that the paper quotes from elsewhere: shown beside the others, never measured.

    Attributes:
        row: Row of the table.
        column: Column of the table.
        printed: The paper's value in ``unit``.
        source: Whom it is quoted from.
        unit: ``"%"`` for shares, ``""`` for plain numbers.
    """

    row: str
    column: str
    printed: float
    source: str
    unit: Unit = ""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One column of an image grid.

    Attributes:
        title: Heading.
        measure: Names the model and attack whose kept images are shown.
        shows: The clean image, the adversarial one, or their difference.
    """

    title: str
    measure: Measure
    shows: Literal["original", "adversarial", "noise"]


@dataclass(frozen=True, kw_only=True)
class Item:
    """A table or a figure.

    Attributes:
        name: ``table-5``, ``figure-1``: what ``--only`` takes.
        title: Caption, in our words.
        where: Page and section of the paper.
        kind: How it is shown. The columns of a ``"histogram"`` are the lower ends of its bins, all of one width.
        values: Its cells or points.
        pictures: Columns of an image grid.
        quoted: Cells that the paper has from elsewhere.
        note: What a reader must know of it.
        axes: What stands at the axes of lines and histograms.
    """

    name: str
    title: str
    where: str
    kind: Literal["table", "lines", "histogram", "grid"] = "table"
    values: tuple[Value, ...] = ()
    pictures: tuple[Picture, ...] = ()
    quoted: tuple[Quoted, ...] = ()
    note: str = ""
    axes: tuple[str, str] = ("", "")


@dataclass(frozen=True, kw_only=True)
class Clause:
    """One checkable part of a claim: ``left relation right``.

    Attributes:
        text: What is compared, as a row heading.
        left: A quantity.
        relation: ``">"`` and the like; a tie counts for ``">="`` and ``"<="``.
        right: Another quantity, or a bound.
        unit: How both are shown.
    """

    text: str
    left: Quantity
    relation: Relation
    right: Quantity | float
    unit: Unit = ""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A sentence of the paper that can be checked.

    Attributes:
        name: Short name, for ``claims.csv``.
        text: The claim, in our words.
        where: Section and page.
        clauses: It holds if all of them do.
    """

    name: str
    text: str
    where: str
    clauses: tuple[Clause, ...]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Something that the paper leaves open.

    Attributes:
        topic: What.
        choice: What is done here.
        reason: Why.
        effects: Quantities that show what another choice would have given, with a name each.
        fitted: Whether it was made by looking at the printed values.
    """

    topic: str
    choice: str
    reason: str
    effects: tuple[tuple[str, Value], ...] = ()
    fitted: bool = False


@dataclass(frozen=True, kw_only=True)
class Profile:
    """How much is run.

    Attributes:
        summary: One line for people.
        dataset: Name of the data set.
        seeds: Training seeds.
        samples: Test images per cell.
        batteries: Suites that judge the study's models as of today.
        battery_samples: Test images of these.
        battery_seeds: Seeds that are judged by them.
        skipped: Defended models that they leave out, being too slow for the profile.
        settings: What the study's own declaration of models asks for (epochs, for instance).
        attacks: Declared attacks that this profile runs in another, smaller form, each with that form.
        surrogate: Hyperparameters of the undefended models that batteries transfer images from, where these are not to
            train at the size that suites declare.
    """

    summary: str
    dataset: str
    seeds: tuple[int, ...]
    samples: int
    batteries: tuple[str, ...] = ("linf", "l2")
    battery_samples: int = 500
    battery_seeds: int = 1
    skipped: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    attacks: Mapping[Attack, Attack] = field(default_factory=dict)
    surrogate: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Search:
    """A hyperparameter that is chosen on images held out of the training part.

    Attributes:
        setting: Its name in a profile's settings.
        model: The model that it is a part of.
        values: Those to try, by profile.
    """

    setting: str
    model: str
    values: Mapping[str, tuple[Any, ...]]


Models = Callable[[Profile, "DatasetInfo", int], Mapping[str, "ModelSpec"]]
"""The study's models by name, for one profile, data set and training seed."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """A paper's models, attacks, tables, figures and claims.

    Attributes:
        name: What ``gauntlet reproduce`` takes.
        title: Of the paper.
        source: Authors, year, where it appeared.
        profiles: ``smoke``, ``cpu``, ``night`` and ``full``.
        models: Builds them.
        items: Tables and figures in the paper's order.
        claims: What carries the paper.
        choices: What the paper leaves open.
        defended: Models that today's batteries judge, as ``(name, what to call it)``.
        datasets: Data sets on which the paper's values were measured: on another one none is reproduced.
        searches: How settings of the profiles were chosen; see :mod:`harness.studies.search`.
    """

    name: str
    title: str
    source: str
    profiles: Mapping[str, Profile]
    models: Models
    items: tuple[Item, ...]
    claims: tuple[Claim, ...] = ()
    choices: tuple[Choice, ...] = ()
    defended: tuple[tuple[str, str], ...] = ()
    datasets: tuple[str, ...] = ("mnist",)
    searches: tuple[Search, ...] = ()

    def __post_init__(self) -> None:
        assert len(set(self.names)) == len(self.names), f"study {self.name}: two items or claims share a name"

    @property
    def names(self) -> tuple[str, ...]:
        """Items and claims: what can be asked for alone."""
        return (*(item.name for item in self.items), *(claim.name for claim in self.claims))

    def profile(self, name: str) -> Profile:
        """The profile of that name.

        Raises:
            UserError: There is none; the message lists the choices.
        """
        if name not in self.profiles:
            raise unknown(f"profile of {self.name}", name, self.profiles)
        return self.profiles[name]

    def chosen(self, only: Iterable[str]) -> Study:
        """The study with these items and claims alone; all of it for none given.

        Raises:
            UserError: A name that is neither an item nor a claim, nor the topic of a choice (its effects), nor
                ``choices`` (all effects) nor ``battery``.
        """
        import dataclasses

        names = list(only)
        known = (*self.names, *(choice.topic for choice in self.choices if choice.effects), CHOICES, BATTERY)
        for name in names:
            if name not in known:
                raise unknown(f"item of {self.name}", name, known)
        if not names:
            return self
        return dataclasses.replace(
            self,
            items=tuple(item for item in self.items if item.name in names),
            claims=tuple(claim for claim in self.claims if claim.name in names),
            choices=tuple(choice for choice in self.choices if CHOICES in names or choice.topic in names),
            defended=self.defended if BATTERY in names else (),
        )

    def is_all(self, only: Iterable[str]) -> bool:
        """Whether these items, claims and topics make up all of the study."""
        part = self.chosen(only)
        effects = all(choice in part.choices for choice in self.choices if choice.effects)
        return effects and (part.items, part.claims, part.defended) == (self.items, self.claims, self.defended)

    def measures(self) -> tuple[Measure, ...]:
        """Everything that has to be measured, each once."""
        found: dict[Measure, None] = {}
        for quantity in self._quantities():
            found |= dict.fromkeys(leaves(quantity))
        return tuple(found)

    def _quantities(self) -> Iterator[Quantity]:
        for item in self.items:
            yield from (value.quantity for value in item.values)
            yield from (picture.measure for picture in item.pictures)
        for claim in self.claims:
            for clause in claim.clauses:
                yield clause.left
                if not isinstance(clause.right, float | int):
                    yield clause.right
        for choice in self.choices:
            yield from (value.quantity for _, value in choice.effects)


CHOICES: Final = "choices"
"""What ``--only`` calls the effects of choices."""

BATTERY: Final = "battery"
"""What ``--only`` calls the judgement by today's batteries."""


def leaves(quantity: Quantity) -> Iterator[Measure]:
    """The measures that a quantity is made of."""
    if isinstance(quantity, Measure):
        yield quantity
    else:
        for part in quantity.of:
            yield from leaves(part)


def check_seeds(seeds: Iterable[int]) -> tuple[int, ...]:
    """Seeds as a tuple, each once.

    Raises:
        UserError: None given.
    """
    found = tuple(dict.fromkeys(seeds))
    if not found:
        raise UserError("a study needs at least one seed")
    return found
