"""Plans: the cells (model-attack pairs) that a suite asks for. Pure: no I/O."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from .. import identity
from ..attacks.as_floats import AsFloats
from ..attacks.base import Attack, fits
from ..attacks.transfer import Ensemble, Source, Transfer
from ..datasets.registry import DatasetInfo
from ..errors import UserError, unknown
from ..models.registry import check_architecture
from ..threat import Norm, Threat
from ..training.averaging import Averaging
from ..training.defense import Defense
from .cascade import CONTROLS, links
from .gradient_free import answerable, changes
from .specs import (
    CERTIFIED_FEW,
    CERTIFIED_PART,
    CERTIFIED_PASSES,
    PLANTED_SAMPLES,
    PROBE_SAMPLES,
    SCREENED_PASSES,
    Cell,
    Certification,
    ModelSpec,
    Planting,
    Probe,
)
from .suite import Suite
from .surrogate import recipe

SEARCHES: Final = frozenset({"one-step", "iterated", "minimum-norm", "score", "decision"})
"""Families of attacks that look for the worst case of the model itself, and so must find what is planted in it."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that one command runs.

    Attributes:
        models: Models that will be ranked, then the sources that only craft.
        ranked: Keys of those that will be ranked.
        battery: Every pair of the suite for these models, also those that the command leaves out: a model is ranked
            only once all of them are done.
        arguments: How each data set is named on the command line, where that is not its own name.
        words: What to type after ``gauntlet run`` for the suite, where that is not its name alone.
        again: The command that measures all of it again, where that is not ``gauntlet run`` with the suite.
        left_out: Labels of attacks of the suite that were left out on purpose.
        plantings: Tests of the suite's attacks on adversarials that are known to be there, one a probe.
        notes: A line for each model whose battery has other attacks than the suite declares: which, and why; and for
            each ensemble of which a victim meets fewer models.
    """

    suite: Suite
    infos: Mapping[str, DatasetInfo]
    models: tuple[ModelSpec, ...]
    ranked: frozenset[str]
    cells: tuple[Cell, ...]
    battery: tuple[Cell, ...]
    probes: tuple[Probe, ...] = ()
    certifications: tuple[Certification, ...] = ()
    screens: tuple[Certification, ...] = ()
    arguments: Mapping[str, str] = dataclasses.field(default_factory=dict)
    words: tuple[str, ...] = ()
    again: str = ""
    left_out: tuple[str, ...] = ()
    plantings: tuple[Planting, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def crafters(self) -> tuple[ModelSpec, ...]:
        """Models that nobody asked to judge, and that images are transferred from."""
        sources = [cell.source for cell in self.cells if cell.source is not None]
        keys = {spec.key for source in sources for spec in (source, *source.members)} - self.ranked
        return tuple(spec for spec in self.models if spec.key in keys)

    def sources_before(self, cell: Cell) -> tuple[ModelSpec, ...]:
        """Models that images of the cells before one in its cascade are crafted on, each once."""
        return self._sources_before.get(cell.key, ())

    @cached_property
    def _sources_before(self) -> dict[str, tuple[ModelSpec, ...]]:
        cells, found = {cell.key: cell for cell in self.cells}, dict[str, tuple[ModelSpec, ...]]()
        for cell in self.cells:  # each comes after the one before it
            if last := cells.get(cell.after):
                sources = {spec.key: spec for spec in (*found.get(last.key, ()), last.source) if spec is not None}
                found[cell.key] = tuple(sources.values())
        return found

    @property
    def without_transfers(self) -> bool:
        """Whether attacks were left out that are crafted on another model."""
        return any(label.startswith("transfer:") for label in self.left_out)

    @cached_property
    def key(self) -> str:
        """Identity of the invocation: the same command again is the same invocation."""
        parts = [[item.key for item in items] for items in (self.models, self.cells, self.probes)]
        planted = [[item.key for item in self.plantings]] if self.plantings else []
        return identity.key(self.suite.name, *parts, *planted)

    @cached_property
    def budgets(self) -> dict[str, dict[Norm, tuple[float, ...]]]:
        """Eps values per data set and norm."""
        return {name: self.suite.grid(info) for name, info in self.infos.items()}


def specs(
    infos: Iterable[DatasetInfo],
    architectures: Iterable[str],
    defenses: Iterable[Defense | Sequence[Defense]],
    seeds: Iterable[int],
) -> list[ModelSpec]:
    """Every combination, each once, with hyperparameters resolved for its data set.

    Of several defenses in place of one each is built upon the one before it: same architecture, same seed.

    Raises:
        UserError: An unknown architecture; a defense that needs a base has none.
    """
    found: dict[str, ModelSpec] = {}
    architectures = list(architectures)
    chains = [[defense] if isinstance(defense, Defense) else list(defense) for defense in defenses]
    for architecture in architectures:
        check_architecture(architecture)
    for info, architecture, chain, seed in itertools.product(infos, architectures, chains, seeds):
        spec: ModelSpec | None = None
        for defense in chain:
            own = defense.resolve(info)
            spec = ModelSpec(dataset=info.name, architecture=architecture, defense=own, seed=seed, base=spec)
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
    certify: int | None = None,
    words: Sequence[str] = (),
) -> Plan:
    """List the cells of a suite over models.

    A budget attack becomes a cell for every eps of the suite, a minimal attack one cell that serves them all. A model
    that draws at random is spared attacks that need a boundary to walk along: they would raise, and say nothing. One
    whose gradients are missing or wrong meets more attacks that need none (:mod:`harness.planning.gradient_free`).
    Attacks are taken as they are for the data set's number of classes (:meth:`Attack.for_classes`).
    Transfers to a model of a user's are crafted on a surrogate, one for all of a data set
    (:mod:`harness.planning.surrogate`); where there is nothing to train one on, transfers are left out. A suite with
    targets leaves out what cannot be led to them (:attr:`Attack.targeting`), and asks for no certificates: these are of
    any change of the label.

    Args:
        suite: The battery.
        models: Models to judge.
        infos: Their data sets by name.
        samples: Images a cell; ``None``: the suite's; never more than the test set holds.
        only: Keep attacks whose label, with or without its settings, matches one of these patterns (``*`` and
            ``?``); empty: all.
        cascade: Each attack sees only images that may still fall: what an earlier one broke, what is proved beforehand,
            and what stood at a larger eps is left out. See :func:`harness.planning.cascade.links` for the order. A
            sampled suite is one in any case.
        arguments: See :class:`Plan`.
        words: See :class:`Plan`.
        transfers: Whether to ask for attacks that are crafted on another model. Without them nothing is trained but the
            models to judge; what is left out is in :attr:`Plan.left_out`.
        certify: Images of each model to certify in L-infinity and L2, at any cost; ``None``: some, at less cost than
            the attacks; 0: none.

    Raises:
        UserError: No image, or no attack of that label; a cascade of chosen attacks; no attack for so few classes;
            nothing but transfers, and none are asked for; nothing that has a targeted form; certificates with targets.
    """
    left_out: tuple[str, ...] = ()
    if not (transfers and _all_train(models, infos)):
        suite, left_out = _without_transfers(suite, only)
    if suite.goal is not None:
        if certify:
            raise UserError("a certificate is of any change of the label: certify without targets")
        suite, aimless = _with_targets(suite, only)
        left_out, certify = (*left_out, *aimless), 0
    cascade = cascade or suite.sampled
    if cascade and only:
        raise UserError("a cascade runs the whole battery; choose attacks, or a cascade")
    if samples is not None and samples < 1:
        raise UserError(f"samples must be at least 1, got {samples}")
    labels = {attack.label for attacks in suite.attacks.values() for attack in attacks}
    asked = {spec.key: _asked(suite, spec, infos[spec.dataset]) for spec in models}
    fitted = {attack.label for norms in asked.values() for attacks in norms.values() for _, attack in attacks}
    for pattern in only:
        if not any(fits(label, [pattern]) for label in labels | fitted):
            raise unknown(f"attack in suite {suite.name}", pattern, sorted(labels))
    cells: dict[str, Cell] = {}
    battery: dict[str, Cell] = {}
    extra: dict[str, ModelSpec] = {}
    proved: list[Certification] = []
    for spec in models:
        info = infos[spec.dataset]
        n = min(samples or suite.samples, info.test_size)
        grid = suite.grid(info)
        last = ""
        screens = {one.norm: one for one in _screens(suite, spec, info, samples, certify)} if cascade else {}
        proved.extend(screens.values())
        for norm, attacks in asked[spec.key].items():
            able = [pair for pair in attacks if not (pair[1].needs_a_boundary and spec.defense.remedy.stochastic)]
            tenths: dict[tuple[str, float | None], str] = {}
            for link in links(able, grid[norm], cascade=cascade, sampled=suite.sampled):
                declared, attack = link.declared, link.attack.in_cascade() if cascade else link.attack
                wanted = not only or fits(declared.label, only) or fits(attack.label, only)
                source = _source(attack, spec, info)
                if source is not None and source.key == spec.key:
                    continue  # crafted on itself it would be the white-box cell under another name
                cell = Cell(
                    victim=spec,
                    attack=attack,
                    threat=Threat(norm, link.eps),
                    source=source,
                    n=n,
                    batch=suite.batch,
                    after=last if cascade else "",
                    floor=link.floor,
                    ceiling=link.ceiling,
                    screen=screens.get(norm) if attack.family not in CONTROLS else None,
                    share=link.share,
                    twin=tenths[attack.label, link.eps] if link.share == "rest" else "",
                    goal=suite.goal,
                    alone=cascade and source is not None,
                )
                last = cell.key
                if link.share == "tenth":
                    tenths[attack.label, link.eps] = cell.key
                battery.setdefault(cell.key, cell)
                if wanted:
                    cells.setdefault(cell.key, cell)
                    if source is not None:
                        extra.setdefault(source.key, source)
    ranked = {spec.key: spec for spec in models}
    looks = [probe for spec in models for probe in _probes(suite, spec, infos[spec.dataset], samples)]
    everything = with_parents({**ranked, **{k: s for k, s in extra.items() if k not in ranked}})
    return Plan(
        suite=suite,
        infos={name: infos[name] for name in {spec.dataset for spec in models}},
        models=tuple(everything.values()),
        ranked=frozenset(ranked),
        cells=tuple(cells.values()),
        battery=tuple(battery.values()),
        probes=tuple(looks),
        plantings=tuple(made for look in looks if (made := _planting(suite, look, infos[look.model.dataset]))),
        certifications=tuple(
            one for spec in models for one in _certifications(suite, spec, infos[spec.dataset], samples, certify)
        ),
        screens=tuple(proved),
        arguments=dict(arguments or {}),
        words=tuple(words),
        left_out=left_out,
        notes=(
            *(
                f"{name} has {infos[name].test_size} test images, fewer than {samples}: all of them are taken"
                for name in dict.fromkeys(spec.dataset for spec in models)
                if samples is not None and samples > infos[name].test_size
            ),
            *(
                f"{spec.architecture}: its gradients are {spec.defense.remedy.gradients}; {line}"
                for spec in models
                if (line := changes(suite.attacks, infos[spec.dataset].shape, spec.defense.remedy.gradients))
            ),
            *dict.fromkeys(line for cell in battery.values() if (line := _fewer(cell))),
        ),
    )


def _fewer(cell: Cell) -> str:
    """That images are crafted on fewer models than the attack's name says; "" if they are not."""
    if cell.source is None or not isinstance(cell.attack, Transfer) or not isinstance(cell.attack.defense, Ensemble):
        return ""
    used, said = len(cell.source.members) or 1, len(cell.attack.defense.members)
    gone = "the others are the victim itself, of another data set, or the same"
    return f"{cell.attack.label} to {cell.victim}: crafted on {cell.source} alone, {gone}" if used < said else ""


def _all_train(models: Sequence[ModelSpec], infos: Mapping[str, DatasetInfo]) -> bool:
    """Whether every data set has images to train on; those without can only judge what is finished.

    Raises:
        UserError: Something is to be trained on one that has none; sets of both sorts at once.
    """
    found = {infos[spec.dataset].trains for spec in models}
    for spec in models:
        if not infos[spec.dataset].trains and spec.root.defense.trainable:
            raise UserError(
                f"{spec.dataset} has no training part, so that {spec.defense.name} cannot be trained on it: "
                "bring a finished model as --victim"
            )
    if len(found) > 1:
        raise UserError("data sets with a training part and without one do not go together: run them one by one")
    return found != {False}


def _without_transfers(suite: Suite, only: Sequence[str]) -> tuple[Suite, tuple[str, ...]]:
    """A suite without what needs another trained model, and the labels that this takes."""
    attacks = [attack for norm in suite.attacks.values() for attack in norm]
    labels = dict.fromkeys(attack.label for attack in attacks if isinstance(attack, Transfer))
    kept = {attack.label for attack in attacks if not isinstance(attack, Transfer)}
    if labels and not kept:
        raise UserError(f"suite {suite.name} holds nothing but transfers, and these are to be left out")
    for label in labels:
        if pattern := next((p for p in only if fits(label, [p]) and not any(fits(k, [p]) for k in kept)), ""):
            raise UserError(f"{pattern} asks for {label}, and transfers are to be left out: drop one of the two")
    stay = {norm: tuple(a for a in asked if not isinstance(a, Transfer)) for norm, asked in suite.attacks.items()}
    return dataclasses.replace(suite, attacks={norm: asked for norm, asked in stay.items() if asked}), tuple(labels)


def _with_targets(suite: Suite, only: Sequence[str]) -> tuple[Suite, tuple[str, ...]]:
    """A suite without what cannot be led to targets, and the labels that this takes."""
    attacks = [attack for norm in suite.attacks.values() for attack in norm]
    labels = tuple(dict.fromkeys(attack.label for attack in attacks if attack.targeting == "no"))
    kept = {norm: tuple(a for a in asked if a.targeting != "no") for norm, asked in suite.attacks.items()}
    kept = {norm: asked for norm, asked in kept.items() if asked}
    if attacks and not kept:
        raise UserError(f"suite {suite.name}: none of its attacks has a targeted form")
    there = {attack.label for asked in kept.values() for attack in asked}
    for label in labels:
        if any(fits(label, [pattern]) and not any(fits(other, [pattern]) for other in there) for pattern in only):
            raise UserError(f"{label} has no targeted form: choose another attack, or no targets")
    return dataclasses.replace(suite, attacks=kept), labels


def _probes(suite: Suite, spec: ModelSpec, info: DatasetInfo, samples: int | None) -> list[Probe]:
    """A look in every norm in which the suite asks for the worst case, at the eps that defenses train at."""
    found = []
    n = min(PROBE_SAMPLES, samples or suite.samples, info.test_size)
    for norm, grid in suite.grid(info).items():
        if norm != "l0" and _searched(suite, norm):
            eps = info.eps.get(norm, 0.0)
            nearest = min(grid, key=lambda value: abs(value - eps))
            found.append(Probe(model=spec, threat=Threat(norm, nearest), n=n))
    return found


def _certifications(
    suite: Suite, spec: ModelSpec, info: DatasetInfo, samples: int | None, certify: int | None
) -> list[Certification]:
    """What is to be proved of a model: in the norms that there are bounds in and the suite asks for the worst case."""
    judged = min(samples or suite.samples, info.test_size)
    n = min(max(-(-judged // CERTIFIED_PART), CERTIFIED_FEW) if certify is None else certify, judged)
    # what draws at random is attacked over so many draws
    passes = CERTIFIED_PASSES * judged * spec.defense.remedy.draws if certify is None else None
    grids = {norm: tuple(eps for eps in sorted(grid) if eps > 0) for norm, grid in suite.grid(info).items()}
    norms = [norm for norm in grids if norm in ("linf", "l2") and grids[norm] and n and _searched(suite, norm)]
    return [Certification(model=spec, norm=norm, grid=grids[norm], n=n, passes=passes) for norm in norms]


def _screens(
    suite: Suite, spec: ModelSpec, info: DatasetInfo, samples: int | None, certify: int | None
) -> list[Certification]:
    """What is to be proved of all images before a cascade attacks them, so that it need not."""
    judged = min(samples or suite.samples, info.test_size)
    return [
        dataclasses.replace(
            one,
            n=judged,
            passes=SCREENED_PASSES * judged * spec.defense.remedy.draws,
            intervals=True,
        )
        for one in _certifications(suite, spec, info, samples, certify)
    ]


def _searched(suite: Suite, norm: Norm) -> bool:
    """Whether the suite asks for the worst case in that norm."""
    return any(attack.access != "none" and attack.family != "transformation" for attack in suite.attacks[norm])


def _planting(suite: Suite, look: Probe, info: DatasetInfo) -> Planting | None:
    """The test that belongs to a probe: of attacks that search the model itself, if one of them has gradients."""
    attacks = tuple(
        attack
        for _, attack in _fitting([(attack, attack) for attack in suite.attacks[look.threat.norm]], info, suite)
        if attack.family in SEARCHES and not (attack.needs_a_boundary and look.model.defense.remedy.stochastic)
    )
    if not any(attack.access == "gradients" for attack in attacks):
        return None
    return Planting(model=look.model, threat=look.threat, n=min(look.n, PLANTED_SAMPLES), attacks=attacks)


def _asked(suite: Suite, spec: ModelSpec, info: DatasetInfo) -> dict[Norm, list[tuple[Attack, Attack]]]:
    """Attacks of a suite by norm, as declared and as they are asked of a model."""
    gradients = spec.defense.remedy.gradients
    chosen = {norm: answerable(attacks, norm, info.shape, gradients) for norm, attacks in suite.attacks.items()}
    return {norm: _both_ways(_fitting(attacks, info, suite), spec) for norm, attacks in chosen.items()}


def _fitting(attacks: Sequence[tuple[Attack, Attack]], info: DatasetInfo, suite: Suite) -> list[tuple[Attack, Attack]]:
    """Attacks as declared, and as they are for a data set's number of classes: each of these once, and not without any.

    Led to a target by answers "target or not" an attack meets two classes, however many there are.

    Raises:
        UserError: None of them works with so few classes, and nothing would be left to judge by.
    """
    found: dict[str, tuple[Attack, Attack]] = {}
    for declared, chosen in attacks:
        two = suite.goal is not None and chosen.targeting != "itself"
        attack = chosen.for_classes(2 if two else len(info.classes))
        if attack is not None:
            found.setdefault(identity.key(attack), (declared, attack))
    if attacks and not found:
        raise UserError(f"{attacks[0][0].label} does not work with the {len(info.classes)} classes of {info.name}")
    return list(found.values())


def _both_ways(attacks: Sequence[tuple[Attack, Attack]], spec: ModelSpec) -> list[tuple[Attack, Attack]]:
    """Attacks, each that asks the model followed by its form on floats where the model's remedy shows it files."""
    found = []
    for declared, attack in attacks:
        found.append((declared, attack))
        if spec.defense.remedy.grid and attack.access != "none":
            found.append((declared, AsFloats(attack=attack)))
    return found


def _source(attack: Attack, victim: ModelSpec, info: DatasetInfo) -> ModelSpec | None:
    """What a transfer is crafted on: a twin of the victim, or the data set's surrogate where we cannot train a twin.

    Or an ensemble, of which the victim is no part.
    """
    if not isinstance(attack, Transfer):
        return None
    if not isinstance(attack.defense, Ensemble):
        alone = Source(defense=attack.defense, architecture=attack.architecture, seed_offset=attack.seed_offset)
        return _trained(alone, victim, info, seed=0)
    each = (
        member if isinstance(member, ModelSpec) else _trained(member, victim, info, seed=member.seed_offset)
        for member in attack.defense.members
    )
    members = {spec.key: spec for spec in each if spec.dataset == info.name}
    if len(members) > 1:
        members.pop(victim.key, None)
    if not members:
        raise UserError(f"{attack.label}: none of its models is of {info.name}")
    if len(members) == 1:
        return next(iter(members.values()))
    averaging = Averaging(average=attack.defense.average)
    return ModelSpec(dataset=info.name, architecture="ensemble", defense=averaging, members=tuple(members.values()))


def _trained(source: Source, victim: ModelSpec, info: DatasetInfo, *, seed: int) -> ModelSpec:
    """A source for a victim; ``seed`` is that of a surrogate for a model of a user's."""
    if not victim.root.defense.trainable:
        architecture, trainer = recipe(info, source.defense, source.architecture)
        return ModelSpec(dataset=info.name, architecture=architecture, defense=trainer, seed=seed)
    return dataclasses.replace(
        victim,
        architecture=source.architecture or victim.architecture,
        defense=source.defense.resolve(info),
        seed=victim.seed + source.seed_offset,
        base=None,
        front=None,
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
