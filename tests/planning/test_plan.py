from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from defenses.fast_gradient import FastGradient
from defenses.noise_injection import NoiseInjection
from defenses.pgd import Pgd
from defenses.standard import Standard
from harness.attacks.base import Attack, Kind
from harness.attacks.fast_gradient import Gradient
from harness.attacks.transfer import Ensemble, Transfer
from harness.datasets.registry import DATASETS
from harness.determinism import seed_everything
from harness.errors import UserError
from harness.identity import canonical
from harness.planning.plan import Plan, plan, specs
from harness.planning.specs import Cell, ModelSpec
from harness.planning.suite import Suite
from harness.selftest.linear_victim import LinearVictim
from harness.threat import Norm, Threat
from harness.training.trainer import Trainer
from harness.victims.victim import Victim

DIGITS = DATASETS["digits"]


@dataclass(frozen=True, kw_only=True)
class Budget(Attack):
    name: ClassVar[str] = "budget"
    steps: int = 10
    step_size: float | None = None
    note: str = field(default="", metadata={"identity": False})

    def run(self, victim: Victim, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
        return x


@dataclass(frozen=True, kw_only=True)
class Minimal(Attack):
    name: ClassVar[str] = "minimal"
    norms: ClassVar[tuple[Norm, ...]] = ("l2",)

    @property
    def kind(self) -> Kind:
        return "minimal"

    def run(self, victim: Victim, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
        return x


@dataclass(frozen=True, kw_only=True)
class Prepared(Minimal):
    name: ClassVar[str] = "prepared"
    c: float | None = None

    def prepare(self, victim: Victim, x: Tensor, y: Tensor) -> Attack:
        return replace(self, c=float(x.mean()))


def suite(attacks: Mapping[Norm, Any], **more: Any) -> Suite:
    return Suite(name="small", summary="for tests", attacks=attacks, **more)


def make(attacks: Mapping[Norm, Any], defenses: Any = None, seeds: Any = (0,), **more: Any) -> Plan:
    fields = {name: more.pop(name) for name in ("samples", "only", "cascade") if name in more}
    models = specs([DIGITS], ["mlp-8"], defenses or [Standard()], seeds)
    return plan(suite(attacks, **more), models, {"digits": DIGITS}, **fields)


# ---------------------------------------------------------------- specs


def test_specs_are_every_combination_once() -> None:
    infos = [DIGITS, DATASETS["mnist"]]
    found = specs(infos, ["mlp-8", "lenet"], [Standard(), Pgd()], [0, 1, 2])
    assert len(found) == len({spec.key for spec in found}) == 2 * 2 * 2 * 3
    assert all(spec.defense.epochs is not None for spec in found)


def test_specs_that_mean_the_same_are_one() -> None:
    same = [Standard(), Standard(epochs=DIGITS.epochs), Standard(epochs=DIGITS.epochs, momentum=0.9)]
    assert len(specs([DIGITS, DIGITS], ["mlp-8", "mlp-8"], same, [0, 0])) == 1


def test_specs_of_an_unknown_architecture() -> None:
    with pytest.raises(UserError, match="unknown model 'lenat'; did you mean lenet"):
        specs([DIGITS], ["lenat"], [Standard()], [0])


def test_what_makes_a_model_another() -> None:
    spec = specs([DIGITS], ["mlp-8"], [Standard()], [0])[0]
    others = [
        replace(spec, seed=1),
        replace(spec, architecture="mlp-9"),
        replace(spec, dataset="mnist"),
        replace(spec, defense=replace(spec.defense, lr=0.1)),
        replace(spec, defense=Pgd().resolve(DIGITS)),
        replace(spec, base=spec),
    ]
    assert len({spec.key, *(other.key for other in others)}) == 7


def test_golden_keys() -> None:
    """Written down once: a change here orphans every checkpoint and result that anybody has."""
    spec = ModelSpec(dataset="digits", architecture="mlp-8", defense=Standard(epochs=60), seed=0)
    assert spec.key == "4b74cf7c6e14fd03"
    cell = Cell(victim=spec, attack=Budget(), threat=Threat("linf", 0.1), n=100, batch=50)
    assert cell.key == "4ece4bf14e446fa9"
    assert cell.shard_seed(1) == 479726225


# ---------------------------------------------------------------- cells


def test_a_budget_attack_has_a_cell_an_eps_a_minimal_one_has_one() -> None:
    made = make({"linf": [Budget()], "l2": [Budget(), Minimal()]})
    found = [(cell.attack.name, cell.threat.norm, cell.threat.eps) for cell in made.cells]
    expected = [("budget", "linf", eps) for eps in DIGITS.budgets["linf"]]
    expected += [("budget", "l2", eps) for eps in DIGITS.budgets["l2"]] + [("minimal", "l2", None)]
    assert found == expected
    assert len({cell.key for cell in made.cells}) == len(found)


def test_the_suites_own_budgets_go_first() -> None:
    made = make({"linf": [Budget()]}, budgets={"linf": (0.01, 0.02)})
    assert [cell.threat.eps for cell in made.cells] == [0.01, 0.02]
    assert made.budgets == {"digits": {"linf": (0.01, 0.02)}}


def test_a_norm_without_a_budget() -> None:
    with pytest.raises(UserError, match="suite small: no l0 budget for digits"):
        make({"l0": [Budget()]})


def test_a_negative_budget() -> None:
    with pytest.raises(ValueError, match=r"eps must be a finite number >= 0, got -0.1"):
        make({"linf": [Budget()]}, budgets={"linf": (-0.1,)})


def test_a_suite_with_an_attack_of_another_norm() -> None:
    with pytest.raises(ValueError, match="suite small: minimal has no linf form"):
        suite({"linf": [Minimal()]})


def test_the_same_attack_twice_is_one_cell() -> None:
    assert len(make({"l2": [Minimal(), Minimal(), Budget(note="a"), Budget(note="b")]}).cells) == 1 + 2


@pytest.mark.parametrize(("asked", "own", "n"), [(None, 50, 50), (7, 50, 7), (None, 10_000, 359), (5000, 50, 359)])
def test_images_are_capped_at_the_test_set(asked: int | None, own: int, n: int) -> None:
    made = make({"l2": [Minimal()]}, samples=None if asked is None else asked)
    made = plan(replace(made.suite, samples=own), list(made.models), made.infos, samples=asked)
    assert {cell.n for cell in made.cells} == {n}


@pytest.mark.parametrize("samples", [0, -3])
def test_no_images(samples: int) -> None:
    with pytest.raises(UserError, match="samples must be at least 1"):
        make({"l2": [Minimal()]}, samples=samples)


@pytest.mark.parametrize(("n", "batch", "sizes"), [(10, 4, [4, 4, 2]), (8, 4, [4, 4]), (3, 4, [3]), (1, 1, [1])])
def test_shards_cover_the_images(n: int, batch: int, sizes: list[int]) -> None:
    (cell,) = make({"l2": [Minimal()]}, samples=n, batch=batch).cells
    parts = [list(range(n))[cell.shard_slice(shard)] for shard in range(cell.shards)]
    assert [len(part) for part in parts] == sizes
    assert list(itertools.chain(*parts)) == list(range(n))


def test_seeds_differ_from_shard_to_shard_and_cell_to_cell() -> None:
    cells = make({"linf": [Budget()], "l2": [Minimal()]}, seeds=(0, 1), batch=50).cells
    seeds = [cell.shard_seed(shard) for cell in cells for shard in range(cell.shards)]
    assert len(set(seeds)) == len(seeds) > 20


def test_identities_do_not_hang_on_how_things_are_called_or_ordered() -> None:
    one = make({"linf": [Budget(note="x")], "l2": [Minimal()]}, [Standard(), Pgd()])
    other = make({"l2": [Minimal()], "linf": [Budget(note="y")]}, [Pgd(), Standard()])
    other = plan(replace(other.suite, name="renamed", summary="other"), list(other.models), other.infos)
    assert {cell.key for cell in one.cells} == {cell.key for cell in other.cells}
    assert one.key != other.key


def test_what_makes_a_cell_another() -> None:
    cell = make({"linf": [Budget()]}).cells[0]
    others = [
        replace(cell, attack=Budget(steps=11)),
        replace(cell, threat=Threat("linf", 0.123)),
        replace(cell, threat=Threat("l2", cell.threat.eps)),
        replace(cell, n=cell.n - 1),
        replace(cell, batch=cell.batch + 1),
        replace(cell, source=cell.victim),
        replace(cell, floor=0.1),
        replace(cell, after="something"),
    ]
    assert len({cell.key, *(other.key for other in others)}) == 9


# ---------------------------------------------------------------- cascades


def test_an_ensemble_that_lost_members_is_named() -> None:
    one, two, other = (
        ModelSpec(dataset=dataset, architecture=architecture, defense=Standard().resolve(DATASETS[dataset]))
        for dataset, architecture in (("digits", "mlp-8"), ("digits", "mlp-16"), ("mnist", "mlp-8"))
    )

    def notes(*members: ModelSpec) -> tuple[str, ...]:
        attack = Transfer(attack=Gradient(), defense=Ensemble(members=members))
        return plan(suite({"linf": (Gradient(), attack)}), [two], DATASETS).notes

    for lost in (other, two):
        (line,) = notes(one, lost)
        assert f"crafted on {one} alone" in line
    third = replace(one, seed=1)
    assert notes(one, third) == ()


def test_a_cascade_is_a_chain_a_model() -> None:
    made = make({"linf": [Budget()], "l2": [Minimal(), Budget()]}, seeds=(0, 1), cascade=True)
    for model in made.models:
        chain = [cell for cell in made.cells if cell.victim == model]
        assert [cell.after for cell in chain] == ["", *(cell.key for cell in chain[:-1])]
        asked = [cell.threat.eps or min(DIGITS.budgets["l2"]) for cell in chain]
        assert [cell.floor for cell in chain] == asked
    assert not any(cell.cascaded or cell.after for cell in make({"linf": [Budget()]}).cells)


def test_a_cascade_draws_what_the_full_matrix_draws() -> None:
    attacks: Any = {"linf": [Budget()], "l2": [Minimal()]}
    full, cascade = make(attacks).cells, make(attacks, cascade=True).cells
    assert {cell.key for cell in full}.isdisjoint(cell.key for cell in cascade)
    seeds = [{(cell.attack, cell.threat): cell.shard_seed(0) for cell in cells} for cells in (full, cascade)]
    assert seeds[0] == seeds[1]


def test_a_cascade_of_chosen_attacks() -> None:
    with pytest.raises(UserError, match="a cascade runs the whole battery"):
        make({"linf": [Budget()]}, only=["budget*"], cascade=True)


# ---------------------------------------------------------------- probes


def test_every_ranked_model_is_looked_at_in_every_norm() -> None:
    made = make({"linf": [Budget()], "l2": [Minimal()]}, seeds=(0, 1), samples=90)
    looks = [(probe.model.seed, probe.threat, probe.n) for probe in made.probes]
    expected = [Threat("linf", DIGITS.eps["linf"]), Threat("l2", DIGITS.eps["l2"])]
    assert looks == [(seed, threat, 90) for seed in (0, 1) for threat in expected]
    assert len({probe.key for probe in made.probes}) == 4


def test_no_look_where_the_worst_case_is_not_asked_for() -> None:
    assert make({"linf": [Transfer(attack=Budget(), defense=Pgd())]}).probes == ()


def test_the_same_command_is_the_same_plan() -> None:
    assert make({"l2": [Minimal()]}).key == make({"l2": [Minimal()]}).key
    assert make({"l2": [Minimal()]}).key != make({"l2": [Minimal()]}, samples=10).key


# ---------------------------------------------------------------- choosing


@pytest.mark.parametrize(
    ("only", "labels"),
    [
        (("minimal",), {"minimal"}),
        (("budget*",), {"budget", "budget(steps=3)"}),
        (("budget(steps=3)",), {"budget(steps=3)"}),
        (("m?nimal", "budget"), {"minimal", "budget", "budget(steps=3)"}),
        ((), {"minimal", "budget", "budget(steps=3)"}),
    ],
)
def test_only_some_attacks(only: tuple[str, ...], labels: set[str]) -> None:
    made = make({"l2": [Minimal(), Budget(), Budget(steps=3)]}, only=only)
    assert {cell.attack.label for cell in made.cells} == labels


@pytest.mark.parametrize("pattern", ["minimum", "zz*", ""])
def test_an_attack_that_is_not_there(pattern: str) -> None:
    with pytest.raises(UserError, match=r"unknown attack in suite small .*choose from budget, minimal"):
        make({"l2": [Minimal(), Budget()]}, only=("budget", pattern))


# ---------------------------------------------------------------- transfer


def transfer(attack: Attack | None = None, **more: Any) -> Transfer:
    return Transfer(attack=attack or Minimal(), defense=Standard(), **more)


def test_a_transfer_brings_its_source_model() -> None:
    made = make({"l2": [transfer()]}, [Pgd(), FastGradient()], seeds=(0, 1))
    assert len(made.cells) == 4
    assert len(made.ranked) == 4
    sources = [spec for spec in made.models if spec.key not in made.ranked]
    assert {(spec.defense.name, spec.seed) for spec in sources} == {("standard", 0), ("standard", 1)}
    assert {cell.source.key for cell in made.cells if cell.source} == {spec.key for spec in sources}
    assert all(cell.crafter is cell.source for cell in made.cells)
    for cell in made.cells:
        assert cell.source is not None
        assert cell.source.seed == cell.victim.seed
        assert cell.source.defense.epochs == DIGITS.epochs


def test_victims_share_what_was_crafted_and_its_seeds() -> None:
    made = make(
        {"l2": [transfer()], "linf": [transfer(Budget())]},
        [Pgd(), FastGradient()],
        budgets={"l2": (1.0,), "linf": (0.1, 0.2)},
    )
    groups: dict[Any, list[Cell]] = {}
    for cell in made.cells:
        groups.setdefault(cell.crafted_key, []).append(cell)
    assert len(groups) == 1 + 2
    for cells in groups.values():
        assert len({cell.victim.key for cell in cells}) == len({cell.key for cell in cells}) == 2
        assert len({cell.shard_seed(0) for cell in cells}) == 1


def test_crafting_for_other_images_is_other_crafting() -> None:
    (cell,) = make({"l2": [transfer()]}, [Pgd()]).cells
    others = [
        replace(cell, n=3),
        replace(cell, batch=3),
        replace(cell, threat=Threat("l2", 1)),
        replace(cell, attack=transfer(Prepared())),
    ]
    assert len({cell.crafted_key, *(other.crafted_key for other in others)}) == 5


def test_nothing_is_transferred_from_a_model_to_itself() -> None:
    made = make({"l2": [transfer()]}, [Standard(), Pgd()])
    assert [cell.victim.defense.name for cell in made.cells] == ["pgd"]
    assert len(made.models) == 2
    twins = make({"l2": [transfer(seed_offset=100)]}, [Standard()])
    (cell,) = twins.cells
    assert cell.source is not None
    assert cell.source.seed == 100


def test_training_images_are_another_cell() -> None:
    spec = ModelSpec(dataset="digits", architecture="mlp-100-100", defense=Standard(epochs=1), seed=0)
    said = {"victim": spec, "attack": Gradient(), "threat": Threat("linf", 0.1), "source": spec, "n": 10, "batch": 5}
    test, train = Cell(**said, part="test"), Cell(**said, part="train")
    assert Cell(**said).key == test.key != train.key
    assert test.crafted_key != train.crafted_key
    assert "part" not in canonical(test)


def test_a_source_of_another_architecture() -> None:
    (cell,) = make({"l2": [transfer(architecture="lenet")]}).cells
    assert cell.source is not None
    assert (cell.source.architecture, cell.victim.architecture) == ("lenet", "mlp-8")


def test_a_transfer_is_what_it_crafts_with() -> None:
    inner = transfer(Minimal())
    assert (inner.kind, inner.supported_norms, inner.access) == ("minimal", ("l2",), "none")
    assert transfer(Budget(steps=3)).label == "transfer:budget(steps=3)"
    with pytest.raises(ValueError, match="has no linf form"):
        suite({"linf": [inner]})


def test_a_transfer_prepares_and_crafts_on_what_it_is_given() -> None:
    victim = LinearVictim.random()
    x, y = victim.images(4)
    prepared = transfer(Prepared()).prepare(victim, x, y)
    assert isinstance(prepared, Transfer)
    assert prepared.attack == Prepared(c=float(x.mean()))
    assert torch.equal(prepared(victim, x, y, Threat("l2")), x)


def test_a_look_at_the_training_data_is_shared_by_its_users() -> None:
    made = make({"l2": [Prepared(), transfer(Prepared()), Minimal()]}, [Standard(), Pgd()])
    keys = {(cell.victim.defense.name, cell.attack.label): cell.prepared_key for cell in made.cells}
    assert keys["standard", "minimal"] is None
    assert keys["standard", "prepared"] == keys["pgd", "transfer:prepared"]
    assert keys["pgd", "prepared"] not in {None, keys["standard", "prepared"]}


def test_a_base_is_trained_before_what_is_built_upon_it() -> None:
    base = specs([DIGITS], ["mlp-8"], [Standard()], [0])[0]
    middle = replace(base, defense=Pgd().resolve(DIGITS), base=base)
    top = replace(middle, seed=4, base=middle)
    made = plan(suite({"l2": [Minimal()]}), [top], {"digits": DIGITS})
    assert [spec.key for spec in made.models] == [base.key, middle.key, top.key]
    assert made.ranked == {top.key}
    assert len(made.cells) == 1


# ---------------------------------------------------------------- the attack's own conduct


def test_labels_show_what_is_not_the_default() -> None:
    assert Budget().label == "budget"
    assert Budget(steps=3, step_size=0.5, note="x").label == "budget(steps=3, step_size=0.5)"


def test_an_attack_refuses_what_it_cannot_do() -> None:
    victim = LinearVictim.random()
    x, y = victim.images(2)
    with pytest.raises(ValueError, match="minimal has no linf form; choose from l2"):
        Minimal()(victim, x, y, Threat("linf"))
    with pytest.raises(ValueError, match="budget needs an eps"):
        Budget()(victim, x, y, Threat("linf"))


def test_attacks_are_frozen_and_take_keywords_alone() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Budget().steps = 3  # type: ignore[misc]
    with pytest.raises(TypeError):
        Budget(3)  # type: ignore[call-arg, misc]


def test_planning_draws_no_random_number() -> None:
    seed_everything(0)
    expected = torch.rand(3)
    seed_everything(0)
    make({"l2": [Minimal(), transfer()]}, [Standard(), Pgd()])
    assert torch.equal(torch.rand(3), expected)


def test_every_trainer_of_a_plan_is_resolved() -> None:
    made = make({"l2": [transfer()]}, [Pgd(norm="l2"), FastGradient()])
    trainers: list[Trainer] = [spec.defense for spec in made.models]
    assert all(trainer == trainer.resolve(DIGITS) for trainer in trainers)


@dataclass(frozen=True, kw_only=True)
class Walker(Minimal):
    name: ClassVar[str] = "walker"

    @property
    def needs_a_boundary(self) -> bool:
        return True


def test_a_model_that_draws_is_spared_attacks_along_its_boundary() -> None:
    base = ModelSpec(dataset="digits", architecture="mlp-4", defense=Standard(epochs=1))
    noisy = ModelSpec(dataset="digits", architecture="mlp-4", defense=NoiseInjection(), base=base)
    suite = Suite(name="made", summary="", attacks={"l2": (Minimal(), Walker())})
    made = plan(suite, [base, noisy], {"digits": DIGITS})
    met = {
        spec.key: {cell.attack.name for cell in made.battery if cell.victim.key == spec.key} for spec in (base, noisy)
    }
    assert met == {base.key: {"minimal", "walker"}, noisy.key: {"minimal"}}
