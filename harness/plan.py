"""Declarations of what is to be measured, and the list of cells that follows from them. Pure: no I/O."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Final

from . import identity
from .attacks.base import Attack
from .attacks.transfer import Transfer
from .datasets.registry import DatasetInfo, Half
from .errors import UserError, unknown
from .models.registry import check_architecture
from .surrogate import recipe
from .threat import Norm, Threat
from .training.on_trained import Upon
from .training.trainer import Trainer
from .training.vmapped_seeds import check as check_side_by_side

PROBE_SAMPLES: Final = 128
"""Images that a model's health is looked at with."""


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A model that can be trained again from nothing but this.

    Attributes:
        dataset: :attr:`DatasetInfo.name`.
        architecture: Name in :mod:`harness.models.registry`.
        defense: Resolved trainer: no hyperparameter is left to the data set.
        seed: Number of the training run, 0, 1, ...
        base: Model that the defense is built upon, if any.
        front: Model whose purifier is put in front of the base, if any: the defense is built upon both together.
        beside: Seeds of all networks that are trained side by side with this one, its own among them, in one pass
            (:mod:`harness.training.vmapped_seeds`); none: it is trained alone. Their weights differ by rounding.

    Raises:
        UserError: A base or front that the defense needs is missing; a front without a base; parts of another data set;
            seeds side by side under a defense that cannot.
    """

    name: ClassVar[str] = "ModelSpec"

    dataset: str
    architecture: str
    defense: Trainer
    seed: int = 0
    base: ModelSpec | None = None
    front: ModelSpec | None = dataclasses.field(default=None, metadata={"identity": "set"})
    beside: tuple[int, ...] = dataclasses.field(default=(), metadata={"identity": "set"})

    def __post_init__(self) -> None:
        if self.beside:
            if self.base is not None or len(set(self.beside)) != len(self.beside) or self.seed not in self.beside:
                raise UserError(f"seed {self.seed} without a base, and others, train side by side; got {self.beside}")
            check_side_by_side(self.defense)
        if isinstance(self.defense, Upon):
            if self.base is None:
                raise self.defense.baseless()
            if self.defense.fronted and self.front is None:
                raise UserError(f"{self.defense.name} needs a model whose purifier it takes: ModelSpec(front=...)")
        if self.front is not None and self.base is None:
            raise UserError("a front stands before a base, and there is none: ModelSpec(base=..., front=...)")
        for part in self.parents:
            if part.dataset != self.dataset:
                raise UserError(f"a model of {self.dataset} cannot be built upon one of {part.dataset}")

    @cached_property
    def key(self) -> str:
        """Identity of the trained model."""
        return identity.key(self)

    @property
    def parents(self) -> tuple[ModelSpec, ...]:
        """Models that have to be trained before this one."""
        return tuple(part for part in (self.base, self.front) if part is not None)

    @property
    def root(self) -> ModelSpec:
        """What the defense is built upon in the end; the model itself if it is built upon nothing."""
        return self if self.base is None else self.base.root

    @cached_property
    def group(self) -> tuple[ModelSpec, ...]:
        """All that are trained in one go: those side by side in the order of :attr:`beside`, or this one alone."""
        return tuple(dataclasses.replace(self, seed=seed) for seed in self.beside) or (self,)

    @property
    def training_seed(self) -> int:
        """What random numbers of training are seeded with: the same beside others as alone."""
        alone = dataclasses.replace(self, beside=()) if self.beside else self
        return identity.derive_seed(alone.key, "train")

    def label(self, info: DatasetInfo) -> str:
        """Name of the defense for people, with what it stands on: ``standard > gaussian-blur(kernel=11)``.

        Architecture and seed of what it stands on are named where they are others.
        """
        return self._said(lambda spec: spec.defense.label(info))

    def __str__(self) -> str:
        return f"{self.architecture} {self._said(lambda spec: spec.defense.name)} seed {self.seed}"

    def _said(self, name: Callable[[ModelSpec], str]) -> str:
        own = name(self)
        if self.beside:  # models of one label are read as seeds of one defense, and each is there once
            own += f" [seeds {' '.join(map(str, self.beside))} side by side]"
        if self.front is not None:
            own += f" [front: {self.front.architecture} {self.front._said(name)}{self._seed_of(self.front)}]"
        if self.base is None:
            return own
        other = f"{self.base.architecture} " if self.base.architecture != self.architecture else ""
        return f"{other}{self.base._said(name)}{self._seed_of(self.base)} > {own}"

    def _seed_of(self, other: ModelSpec) -> str:
        return f" seed {other.seed}" if other.seed != self.seed else ""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One model-attack pair.

    Attributes:
        victim: The model that is judged.
        attack: What is run against it.
        threat: Norm and, for a budget attack, eps.
        source: The model that the images are crafted on, when it is not the victim.
        n: Images: the first n of the part's fixed order.
        batch: Images a shard. Part of the identity, because random draws and rounding depend on it.
        after: In a cascade the key of the cell before this one: the attack sees what it and all before it left.
        floor: In a cascade the eps at which an image must still stand to be attacked.
        part: Whose images: those of the test part, or, where a paper measured on them, those of the training part.
    """

    name: ClassVar[str] = "Cell"

    victim: ModelSpec
    attack: Attack
    threat: Threat
    source: ModelSpec | None = None
    n: int
    batch: int
    after: str = ""
    floor: float | None = None
    part: Half = dataclasses.field(default="test", metadata={"identity": "set"})

    @cached_property
    def key(self) -> str:
        """Identity of the result."""
        return identity.key(self)

    @cached_property
    def prepared_key(self) -> str | None:
        """Identity of the attack's look at the training data, None if it takes none."""
        if not self._crafting.prepares:
            return None
        # preparation is shown no eps
        threat = dataclasses.replace(self.threat, eps=None)
        return identity.key("prepared", self.crafter, self._crafting.preparation, threat)

    @cached_property
    def crafted_key(self) -> str | None:
        """Identity of the crafted images that this cell shares with every other victim of its source."""
        if self.source is None:
            return None
        part = () if self.part == "test" else (self.part,)
        return identity.key("crafted", self.source, self._crafting, self.threat, self.n, self.batch, *part)

    @property
    def crafter(self) -> ModelSpec:
        """The model handed to the attack."""
        return self.source or self.victim

    @property
    def _crafting(self) -> Attack:
        return self.attack.attack if isinstance(self.attack, Transfer) else self.attack

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.n // self.batch)

    def shard_slice(self, shard: int) -> slice:
        """Positions of one shard's images in the test order."""
        return slice(shard * self.batch, min((shard + 1) * self.batch, self.n))

    def shard_seed(self, shard: int) -> int:
        """Seed of one shard: from identities alone, so that worker count and order change no number.

        A cascade draws what the full matrix draws, and the same weights in another file what they drew before.
        """
        return identity.derive_seed(self.crafted_key or self._seed_key, shard)

    @cached_property
    def _seed_key(self) -> str:
        victim = self.victim
        if not victim.defense.trainable:
            victim = dataclasses.replace(victim, architecture="", defense=victim.defense.seed_identity())
        return identity.key(dataclasses.replace(self, victim=victim, after="", floor=None))

    @property
    def cascaded(self) -> bool:
        """Whether the attack sees only what still stands."""
        return self.floor is not None

    def __str__(self) -> str:
        return f"{self.victim}: {self.attack.label} ({self.threat})"


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A look at one model that says how far its accuracies in one norm can be believed; see :mod:`harness.probe`.

    Attributes:
        model: Which.
        threat: Norm and eps.
        n: Images: the first n of the data set's fixed test order.
        version: Bumped by hand when the probe measures anything else.
    """

    name: ClassVar[str] = "Probe"

    model: ModelSpec
    threat: Threat
    n: int
    version: int = 1

    @cached_property
    def key(self) -> str:
        """Identity of the facts."""
        return identity.key(self)

    def __str__(self) -> str:
        return f"{self.model} ({self.threat})"


@dataclass(frozen=True, kw_only=True)
class Suite:
    """A battery of attacks.

    Attributes:
        name: Public name.
        summary: One line for people.
        attacks: Per norm, the attacks asked for it.
        budgets: eps values per norm; ``None``: the data set's canonical ones.
        samples: Images, unless the user says otherwise.
        batch: Images a shard.
    """

    name: str
    summary: str
    attacks: Mapping[Norm, Sequence[Attack]]
    budgets: Mapping[Norm, tuple[float, ...]] | None = None
    samples: int = 1000
    batch: int = 250

    def __post_init__(self) -> None:
        for norm, attacks in self.attacks.items():
            for attack in attacks:
                if norm not in attack.supported_norms:
                    raise ValueError(f"suite {self.name}: {attack.label} has no {norm} form")

    def grid(self, info: DatasetInfo) -> dict[Norm, tuple[float, ...]]:
        """Eps values per norm of this suite, on that data set."""
        budgets = self.budgets if self.budgets is not None else info.budgets
        missing = [norm for norm in self.attacks if norm not in budgets]
        if missing:
            raise UserError(f"suite {self.name}: no {missing[0]} budget for {info.name}")
        return {norm: tuple(budgets[norm]) for norm in self.attacks}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that one command runs.

    Attributes:
        suite: The battery.
        infos: Data sets by name.
        models: Models that will be ranked, then the sources that only craft.
        ranked: Keys of those that will be ranked.
        cells: The pairs to run.
        battery: Every pair of the suite for these models, also those that the command leaves out: a model is ranked
            only once all of them are done.
        probes: Looks at the models that will be ranked.
        arguments: How each data set is named on the command line, where that is not its own name.
        again: The command that measures all of it again, where that is not ``gauntlet run`` with the suite.
        left_out: Labels of attacks of the suite that were left out on purpose.
    """

    suite: Suite
    infos: Mapping[str, DatasetInfo]
    models: tuple[ModelSpec, ...]
    ranked: frozenset[str]
    cells: tuple[Cell, ...]
    battery: tuple[Cell, ...]
    probes: tuple[Probe, ...] = ()
    arguments: Mapping[str, str] = dataclasses.field(default_factory=dict)
    again: str = ""
    left_out: tuple[str, ...] = ()

    @property
    def crafters(self) -> tuple[ModelSpec, ...]:
        """Models that nobody asked to judge, and that images are transferred from."""
        sources = {cell.source.key for cell in self.cells if cell.source is not None} - self.ranked
        return tuple(spec for spec in self.models if spec.key in sources)

    @cached_property
    def key(self) -> str:
        """Identity of the invocation: the same command again is the same invocation."""
        parts = [[item.key for item in items] for items in (self.models, self.cells, self.probes)]
        return identity.key(self.suite.name, *parts)

    @cached_property
    def budgets(self) -> dict[str, dict[Norm, tuple[float, ...]]]:
        """Eps values per data set and norm."""
        return {name: self.suite.grid(info) for name, info in self.infos.items()}


def specs(
    infos: Iterable[DatasetInfo],
    architectures: Iterable[str],
    defenses: Iterable[Trainer | Sequence[Trainer]],
    seeds: Iterable[int],
) -> list[ModelSpec]:
    """Every combination, each once, with hyperparameters resolved for its data set.

    Args:
        infos: Data sets.
        architectures: Names in :mod:`harness.models.registry`.
        defenses: Each a trainer, or several of which each is built upon the one before it: same architecture, same
            seed.
        seeds: Numbers of the training runs.

    Raises:
        UserError: An unknown architecture; a defense that needs a base has none.
    """
    found: dict[str, ModelSpec] = {}
    architectures, seeds = list(architectures), list(seeds)
    chains = [[defense] if isinstance(defense, Trainer) else list(defense) for defense in defenses]
    for info in infos:
        for architecture in architectures:
            check_architecture(architecture)
            for chain in chains:
                for seed in seeds:
                    spec: ModelSpec | None = None
                    for defense in chain:
                        spec = ModelSpec(
                            dataset=info.name,
                            architecture=architecture,
                            defense=defense.resolve(info),
                            seed=seed,
                            base=spec,
                        )
                    if spec is not None:
                        found.setdefault(spec.key, spec)
    return list(found.values())


def plan(
    suite: Suite,
    models: Sequence[ModelSpec],
    infos: Mapping[str, DatasetInfo],
    *,
    samples: int | None = None,
    only: Sequence[str] = (),
    cascade: bool = False,
    arguments: Mapping[str, str] | None = None,
    transfers: bool = True,
) -> Plan:
    """List the cells of a suite over models.

    A budget attack becomes a cell for every eps of the suite, a minimal attack one cell that serves them all. A model
    that draws at random is spared attacks that need a boundary to walk along: they would raise, and say nothing.
    Attacks are taken as they are for the data set's number of classes (:meth:`Attack.for_classes`).
    Transfers to a model of a user's are crafted on a surrogate, one for all of a data set (:mod:`harness.surrogate`).

    Args:
        suite: The battery.
        models: Models to judge.
        infos: Their data sets by name.
        samples: Images a cell; ``None``: the suite's; never more than the test set holds.
        only: Keep attacks whose label, with or without its settings, matches one of these patterns (``*`` and
            ``?``); empty: all.
        cascade: Each attack sees only images that no earlier one broke, in the suite's order.
        arguments: See :class:`Plan`.
        transfers: Whether to ask for attacks that are crafted on another model. Without them nothing is trained but the
            models to judge; what is left out is in :attr:`Plan.left_out`.

    Raises:
        UserError: No image, or no attack of that label; a cascade of chosen attacks; no attack for so few classes;
            nothing but transfers, and none are asked for.
    """
    left_out: tuple[str, ...] = ()
    if not transfers:
        suite, left_out = _without_transfers(suite, only)
    if cascade and only:
        raise UserError("a cascade runs the whole battery; choose attacks, or a cascade")
    if samples is not None and samples < 1:
        raise UserError(f"samples must be at least 1, got {samples}")
    labels = {attack.label for attacks in suite.attacks.values() for attack in attacks}
    sets = {spec.dataset: infos[spec.dataset] for spec in models}.values()
    fitted = {each.label for attacks in suite.attacks.values() for i in sets for _, each in _fitting(attacks, i)}
    for pattern in only:
        if not any(_matches(label, [pattern]) for label in labels | fitted):
            raise unknown(f"attack in suite {suite.name}", pattern, sorted(labels))
    cells: dict[str, Cell] = {}
    battery: dict[str, Cell] = {}
    extra: dict[str, ModelSpec] = {}
    for spec in models:
        info = infos[spec.dataset]
        n = min(samples or suite.samples, info.test_size)
        grid = suite.grid(info)
        last = ""
        for norm, attacks in suite.attacks.items():
            for declared, attack in _fitting(attacks, info):
                if attack.needs_a_boundary and spec.defense.remedy.stochastic:
                    continue
                wanted = not only or _matches(declared.label, only) or _matches(attack.label, only)
                source = _source(attack, spec, info)
                if source is not None and source.key == spec.key:
                    continue  # crafted on itself it would be the white-box cell under another name
                for eps in grid[norm] if attack.kind == "budget" else (None,):
                    cell = Cell(
                        victim=spec,
                        attack=attack,
                        threat=Threat(norm, eps),
                        source=source,
                        n=n,
                        batch=suite.batch,
                        after=last if cascade else "",
                        floor=(min(grid[norm]) if eps is None else eps) if cascade else None,
                    )
                    last = cell.key
                    battery.setdefault(cell.key, cell)
                    if wanted:
                        cells.setdefault(cell.key, cell)
                if source is not None and wanted:
                    extra.setdefault(source.key, source)
    ranked = {spec.key: spec for spec in models}
    everything = with_parents({**ranked, **{k: s for k, s in extra.items() if k not in ranked}})
    return Plan(
        suite=suite,
        infos={name: infos[name] for name in {spec.dataset for spec in models}},
        models=tuple(everything.values()),
        ranked=frozenset(ranked),
        cells=tuple(cells.values()),
        battery=tuple(battery.values()),
        probes=tuple(probe for spec in models for probe in _probes(suite, spec, infos[spec.dataset], samples)),
        arguments=dict(arguments or {}),
        left_out=left_out,
    )


def _without_transfers(suite: Suite, only: Sequence[str]) -> tuple[Suite, tuple[str, ...]]:
    """A suite without what needs another trained model, and the labels that this takes."""
    attacks = [attack for norm in suite.attacks.values() for attack in norm]
    labels = dict.fromkeys(attack.label for attack in attacks if isinstance(attack, Transfer))
    kept = {attack.label for attack in attacks if not isinstance(attack, Transfer)}
    if labels and not kept:
        raise UserError(f"suite {suite.name} holds nothing but transfers, and these are to be left out")
    for label in labels:
        if pattern := next((p for p in only if _matches(label, [p]) and not any(_matches(k, [p]) for k in kept)), ""):
            raise UserError(f"{pattern} asks for {label}, and transfers are to be left out: drop one of the two")
    stay = {norm: tuple(a for a in asked if not isinstance(a, Transfer)) for norm, asked in suite.attacks.items()}
    return dataclasses.replace(suite, attacks={norm: asked for norm, asked in stay.items() if asked}), tuple(labels)


def _probes(suite: Suite, spec: ModelSpec, info: DatasetInfo, samples: int | None) -> list[Probe]:
    """A look in every norm in which the suite asks for the worst case, at the eps that defenses train at."""
    found = []
    n = min(PROBE_SAMPLES, samples or suite.samples, info.test_size)
    for norm, grid in suite.grid(info).items():
        if norm != "l0" and any(
            attack.access != "none" and attack.family != "transformation" for attack in suite.attacks[norm]
        ):
            eps = info.eps.get(norm, 0.0)
            nearest = min(grid, key=lambda value: abs(value - eps))
            found.append(Probe(model=spec, threat=Threat(norm, nearest), n=n))
    return found


def _fitting(attacks: Sequence[Attack], info: DatasetInfo) -> list[tuple[Attack, Attack]]:
    """Attacks as declared, and as they are for a data set's number of classes: each of these once, and not without any.

    Raises:
        UserError: None of them works with so few classes, and nothing would be left to judge by.
    """
    found: dict[str, tuple[Attack, Attack]] = {}
    for declared in attacks:
        attack = declared.for_classes(len(info.classes))
        if attack is not None:
            found.setdefault(identity.key(attack), (declared, attack))
    if attacks and not found:
        raise UserError(f"{attacks[0].label} does not work with the {len(info.classes)} classes of {info.name}")
    return list(found.values())


def _matches(label: str, patterns: Sequence[str]) -> bool:
    names = (label, label.partition("(")[0])
    return any(name == pattern or fnmatch.fnmatchcase(name, pattern) for pattern in patterns for name in names)


def _source(attack: Attack, victim: ModelSpec, info: DatasetInfo) -> ModelSpec | None:
    """What a transfer is crafted on: a twin of the victim, or the data set's surrogate where we cannot train a twin."""
    if not isinstance(attack, Transfer):
        return None
    if not victim.root.defense.trainable:
        architecture, trainer = recipe(info, attack.defense, attack.architecture)
        return ModelSpec(dataset=info.name, architecture=architecture, defense=trainer)
    return dataclasses.replace(
        victim,
        architecture=attack.architecture or victim.architecture,
        defense=attack.defense.resolve(info),
        seed=victim.seed + attack.seed_offset,
        base=None,
        front=None,
        beside=(),
    )


def with_parents(models: Mapping[str, ModelSpec]) -> dict[str, ModelSpec]:
    """Models in an order in which each comes after the one it is built upon."""
    ordered: dict[str, ModelSpec] = {}

    def add(spec: ModelSpec) -> None:
        for part in spec.parents:
            add(part)
        ordered.setdefault(spec.key, spec)

    for spec in models.values():
        add(spec)
    return ordered
