"""A study's profile as plans: models, model-attack pairs and batteries. Pure: no I/O."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from ..attacks.base import Attack
from ..attacks.transfer import Transfer
from ..datasets.registry import DatasetInfo
from ..planning.plan import Plan, plan, with_parents
from ..planning.specs import Cell, ModelSpec
from ..planning.suite import Suite
from .study import Measure, Profile, Study, check_seeds

BATCH = 250
"""Images a shard of a study's pairs."""

TRAINING_BATCH = 2500
"""The same where a pair is on training images: there are many, and what they are asked is cheap."""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Everything that one profile of a study takes.

    Attributes:
        whole: The study.
        study: What of it is reproduced.
        profile_name: ``smoke``, ``cpu`` or ``full``.
        profile: Its sizes.
        info: The data set.
        seeds: Training seeds.
        batteries: Suites that judge the defended models.
        only: Names of the chosen items and claims; empty: all.
    """

    whole: Study
    study: Study
    profile_name: str
    profile: Profile
    info: DatasetInfo
    seeds: tuple[int, ...]
    batteries: tuple[Suite, ...]
    only: tuple[str, ...] = ()

    @cached_property
    def models(self) -> Mapping[tuple[str, int], ModelSpec]:
        """Every model of the study by name and seed, also those that this part of it does not need."""
        return {
            (name, seed): spec
            for seed in self.seeds
            for name, spec in self.study.models(self.profile, self.info, seed).items()
        }

    def model(self, name: str, seed: int) -> ModelSpec:
        """A model by its name in the study."""
        assert (name, seed) in self.models, f"study {self.study.name} has no model {name}"
        return self.models[name, seed]

    @cached_property
    def cells(self) -> Mapping[tuple[Measure, int], Cell]:
        """The pair behind every measure that needs one."""
        measures = [measure for measure in self.study.measures() if measure.attack is not None]
        # images that go to other models too are crafted once, and judged on their own model from there; a part of a
        # study asks for the same pairs as the whole
        everything = self.whole.measures()
        shared = {(m.source, m.attack, m.threat, self._n(m), m.part) for m in everything if m.source}
        return {(m, seed): self._cell(m, seed, shared) for m in measures for seed in self.seeds}

    @property
    def images(self) -> int:
        """Test images of a cell."""
        return min(self.profile.samples, self.info.test_size)

    def _n(self, measure: Measure) -> int:
        n = measure.samples or self.profile.samples
        return min(n, (self.info.test_size if measure.part == "test" else self.info.train_size) or n)

    def _cell(self, measure: Measure, seed: int, shared: Collection[tuple[object, ...]]) -> Cell:
        assert measure.attack is not None
        assert measure.threat is not None
        n = self._n(measure)
        source = measure.source
        if not source and (measure.model, measure.attack, measure.threat, n, measure.part) in shared:
            source = measure.model
        crafter = self.model(source, seed) if source else None
        attack = self.profile.attacks.get(measure.attack, measure.attack)
        if crafter is not None:
            attack = Transfer(attack=attack, defense=crafter.defense)
        return Cell(
            victim=self.model(measure.model, seed),
            attack=attack,
            threat=measure.threat,
            source=crafter,
            n=n,
            batch=BATCH if measure.part == "test" else TRAINING_BATCH,
            part=measure.part,
        )

    @cached_property
    def plan(self) -> Plan:
        """The study's own pairs. None of them is ranked: what a paper measured is no battery."""
        cells = {cell.key: cell for cell in self.cells.values()}
        needed = {(m.model, seed): self.model(m.model, seed) for m in self.study.measures() for seed in self.seeds}
        specs = {spec.key: spec for spec in needed.values()}
        specs |= {cell.source.key: cell.source for cell in cells.values() if cell.source is not None}
        attacks: dict[str, dict[str, Transfer]] = {}
        for cell in cells.values():
            attacks.setdefault(cell.threat.norm, {})[cell.attack.label] = cell.attack  # type: ignore[assignment]
        suite = Suite(
            name=self.study.name,
            summary=f"the experiments of {self.study.source}",
            attacks={norm: tuple(found.values()) for norm, found in attacks.items()},  # type: ignore[misc]
            samples=self.profile.samples,
            batch=BATCH,
        )
        return Plan(
            suite=suite,
            infos={self.info.name: self.info},
            models=tuple(with_parents(specs).values()),
            ranked=frozenset(),
            cells=tuple(cells.values()),
            battery=(),
            again=self.command,
        )

    @property
    def command(self) -> str:
        """What does all of it again."""
        words = ["gauntlet", "reproduce", self.study.name, "--profile", self.profile_name]
        if self.info.name != self.profile.dataset:
            words += ["--dataset", self.info.name]
        if self.seeds != self.profile.seeds:
            words += ["--seeds", ",".join(map(str, self.seeds))]
        if self.profile.samples != self.whole.profile(self.profile_name).samples:
            words += ["--samples", str(self.profile.samples)]
        return shlex.join([*words, *(word for item in self.only for word in ("--only", item))])

    @cached_property
    def judged(self) -> Sequence[tuple[str, int, ModelSpec]]:
        """Models that today's batteries judge: what the study calls them, seed, declaration."""
        seeds = self.seeds[: self.profile.battery_seeds]
        names = [(name, called) for name, called in self.study.defended if name not in self.profile.skipped]
        return [(called, seed, self.model(name, seed)) for name, called in names for seed in seeds]

    @cached_property
    def judgements(self) -> tuple[Plan, ...]:
        """A plan for each battery, as a cascade: what an attack has broken no later one needs to look at."""
        specs = list({spec.key: spec for _, _, spec in self.judged}.values())
        if not specs:
            return ()
        infos = {self.info.name: self.info}
        return tuple(
            replace(
                plan(self._battery(suite), specs, infos, samples=self.profile.battery_samples, cascade=True),
                again=self.command,
            )
            for suite in self.batteries
        )

    def _battery(self, suite: Suite) -> Suite:
        """A suite that transfers from models of this profile's size."""

        def sized(attack: Attack) -> Attack:
            if not isinstance(attack, Transfer):
                return attack
            return replace(attack, defense=replace(attack.defense, **self.profile.surrogate))

        return replace(suite, attacks={norm: tuple(map(sized, found)) for norm, found in suite.attacks.items()})


def design(
    study: Study,
    profile_name: str,
    info: DatasetInfo,
    batteries: Mapping[str, Suite],
    *,
    only: Sequence[str] = (),
    seeds: Sequence[int] | None = None,
    samples: int | None = None,
) -> Experiment:
    """Work out a profile.

    Args:
        study: What is reproduced.
        profile_name: Name of a profile.
        info: The profile's data set, or one that stands in for it.
        batteries: Suites by name.
        only: Items and claims; empty: all.
        seeds: Training seeds; None: the profile's.
        samples: Images of a cell; None: the profile's.

    Raises:
        UserError: Unknown profile or item; no seed.
    """
    profile = study.profile(profile_name)
    if samples is not None:
        profile = replace(profile, samples=samples)
    return Experiment(
        whole=study,
        study=study.chosen(only),
        profile_name=profile_name,
        profile=profile,
        info=info,
        seeds=check_seeds(profile.seeds if seeds is None else seeds),
        batteries=tuple(batteries[name] for name in profile.batteries),
        only=tuple(only),
    )
