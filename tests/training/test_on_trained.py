"""Models built upon other models: declared, named, asked for on a command line, trained in order, and trained again."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from defenses import defenses
from defenses.denoising_autoencoder import DenoisingAutoencoder
from defenses.gaussian_blur import GaussianBlur
from defenses.noise_injection import NoiseInjection
from defenses.pgd import Pgd
from defenses.stacked import Stacked
from defenses.standard import Standard
from harness.attacks.fast_gradient import Gradient
from harness.attacks.transfer import Transfer
from harness.cli.parsing import parse_chain
from harness.datasets.registry import DATASETS, DataSource
from harness.errors import UserError
from harness.execution.jobs import Context, Examine, Judge, Train
from harness.execution.scheduler import Scheduler
from harness.execution.worker import Worker
from harness.external.external import External
from harness.identity import canonical
from harness.planning.plan import Plan, plan, specs
from harness.planning.specs import ModelSpec
from harness.planning.suite import Suite
from harness.records import plans
from harness.records.checkpoints import card, has_model, load_base, save_model
from harness.records.home import Home
from harness.records.provenance import declare
from harness.records.results import finish
from harness.training.trainer import Trainer
from harness.victims.adaptation import Remedy
from suites import suites
from tests.helpers.boards import card as made_card

DIGITS = DATASETS["digits"]
STANDARD = Standard(epochs=2).resolve(DIGITS)
BASE = ModelSpec(dataset="digits", architecture="mlp-8", defense=STANDARD)
OTHER = replace(BASE, architecture="mlp-9")
CLEANER = replace(BASE, defense=DenoisingAutoencoder(epochs=1).resolve(DIGITS), base=BASE)
STACK = replace(OTHER, defense=Stacked(), base=OTHER, front=CLEANER)
SUITE = Suite(
    name="small",
    summary="for tests",
    attacks={"linf": (Gradient(), Transfer(attack=Gradient(), defense=STANDARD, seed_offset=1))},
    budgets={"linf": (0.1,)},
    samples=20,
    batch=10,
)


def planned(*models: ModelSpec) -> Plan:
    return plan(SUITE, models, {"digits": DIGITS})


# ---------------------------------------------------------------- declared


def test_a_front_makes_another_model_and_none_the_same_as_ever() -> None:
    keys = {STACK.key, replace(STACK, front=replace(CLEANER, seed=1)).key, replace(STACK, base=BASE).key}
    assert len(keys) == 3
    assert BASE.key == ModelSpec(dataset="digits", architecture="mlp-8", defense=STANDARD, front=None).key
    assert "front" not in canonical(BASE)
    assert canonical(BASE)["base"] is None


@pytest.mark.parametrize(
    ("build", "complaint"),
    [
        (lambda: replace(BASE, defense=GaussianBlur()), "gaussian-blur is built upon a trained model"),
        (lambda: replace(BASE, defense=Stacked()), "stacked is built upon a trained model"),
        (lambda: replace(STACK, front=None), "stacked needs a model whose purifier it takes"),
        (lambda: replace(BASE, front=CLEANER), "a front stands before a base, and there is none"),
        (lambda: replace(CLEANER, dataset="mnist"), "a model of mnist cannot be built upon one of digits"),
    ],
)
def test_what_cannot_be_declared(build: Any, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        build()


def test_bases_and_fronts_are_trained_first_and_not_ranked() -> None:
    made = planned(STACK)
    order = [spec.key for spec in made.models]
    assert order[:4] == [OTHER.key, BASE.key, CLEANER.key, STACK.key]
    assert made.ranked == {STACK.key}
    (source,) = {cell.source for cell in made.cells if cell.source is not None}
    assert source == replace(OTHER, seed=1)  # a transfer's source stands upon nothing


def test_chains_become_specs() -> None:
    chain = [Standard(epochs=2), GaussianBlur(), NoiseInjection()]
    (spec,) = specs([DIGITS], ["mlp-8"], [chain], [3])
    assert spec.defense == NoiseInjection()
    assert spec.base is not None
    assert spec.base.defense == GaussianBlur(sigma=1.1)
    assert spec.base.base == replace(BASE, seed=3)
    assert spec.seed == spec.base.seed == 3


# ---------------------------------------------------------------- named


@pytest.mark.parametrize(
    ("spec", "label"),
    [
        (replace(BASE, defense=Standard().resolve(DIGITS)), "standard"),
        (replace(BASE, defense=GaussianBlur(kernel=7), base=BASE), "standard(epochs=2) > gaussian-blur(kernel=7)"),
        (CLEANER, "standard(epochs=2) > denoising-autoencoder(epochs=1)"),
        (replace(CLEANER, seed=2), "standard(epochs=2) seed 0 > denoising-autoencoder(epochs=1)"),
        (replace(CLEANER, base=OTHER), "mlp-9 standard(epochs=2) > denoising-autoencoder(epochs=1)"),
        (
            STACK,
            "standard(epochs=2) > stacked [front: mlp-8 standard(epochs=2) > denoising-autoencoder(epochs=1)]",
        ),
    ],
)
def test_a_label_says_what_a_model_stands_on(spec: ModelSpec, label: str) -> None:
    assert spec.label(DIGITS) == plans.model_name(spec, DIGITS).defense == label


def test_seeds_of_one_defense_share_a_label() -> None:
    chain = [[Standard(), GaussianBlur()]]
    assert len({spec.label(DIGITS) for spec in specs([DIGITS], ["mlp-8"], chain, [0, 1, 2])}) == 1
    assert str(replace(CLEANER, base=OTHER)) == "mlp-8 mlp-9 standard > denoising-autoencoder seed 0"


# ---------------------------------------------------------------- on the command line


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("standard", (Standard(),)),
        ("standard+gaussian-blur:kernel=5", (Standard(), GaussianBlur())),
        ("pgd:eps=1e-1,lr=1e+3+noise-injection:where=all", (Pgd(eps=0.1, lr=1000.0), NoiseInjection(where="all"))),
        ("standard+gaussian-blur+noise-injection", (Standard(), GaussianBlur(), NoiseInjection())),
    ],
)
def test_chains_are_read(text: str, expected: tuple[Trainer, ...]) -> None:
    assert parse_chain(text, defenses()) == expected


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("gaussian-blur", r"gaussian-blur is built upon a trained model.*--defense standard\+gaussian-blur"),
        ("gaussian-blur+standard", "gaussian-blur is built upon a trained model"),
        ("standard+pgd", "pgd trains from nothing, it cannot be built upon standard"),
        ("standard+stacked", r"stacked needs a second model, which only Python can name: ModelSpec\(front=\.\.\.\)"),
        ("standard+gaussian-blurr", "unknown defense 'gaussian-blurr'; did you mean gaussian-blur"),
        ("standard+", r"unknown defense 'standard\+'; did you mean standard"),
    ],
)
def test_chains_that_are_wrong(text: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        parse_chain(text, defenses())


def commanded(spec: ModelSpec) -> str:
    """The command that measures one of a model's pairs again."""
    made = plan(suites()["quick"], [spec], {"digits": DIGITS}, samples=9)
    return plans.command(made, made.cells[0])


def test_the_command_says_a_chain_as_it_is_read() -> None:
    chain = parse_chain("standard:epochs=2+gaussian-blur:kernel=7,sigma=0.9+noise-injection:sigma=0.2", defenses())
    (spec,) = specs([DIGITS], ["mlp-8"], [chain], [1])
    said = plans.defense_argument(spec, DIGITS)
    (again,) = specs([DIGITS], ["mlp-8"], [parse_chain(said, defenses())], [1])
    assert again.key == spec.key
    assert said in commanded(spec)


@pytest.mark.parametrize(
    "spec",
    [
        STACK,
        replace(CLEANER, seed=1),
        replace(CLEANER, base=OTHER),
        replace(CLEANER, base=replace(BASE, defense=External(weights="a"))),
    ],
)
def test_what_no_command_can_say_has_none(spec: ModelSpec) -> None:
    assert commanded(spec) == ""


# ---------------------------------------------------------------- trained, and trained again


class Site:
    """A home, and everything of a plan done in this process but probes."""

    def __init__(self, path: Path) -> None:
        self.home = Home(path).create()
        self.worker = Worker(Context(self.home, {"digits": DataSource("digits")}))
        self.said: list[str] = []

    def run(self, made: Plan) -> list[str]:
        """Keys of the models trained, and ``"judge"`` for every shard judged, in their order."""
        graph, done = Scheduler(made, self.home, self.said.append), []
        self.worker._bench.cache_clear()
        while (task := graph.take()) is not None:
            job = task.payload
            if not isinstance(job, Examine):
                self.worker.run(job)  # type: ignore[arg-type]
            graph.done(task.name)
            if isinstance(job, Train):
                done.append(job.spec.key)
            elif isinstance(job, Judge):
                done.append("judge")
                graph.shards_left[job.cell.key] -= 1
                if not graph.shards_left[job.cell.key]:
                    made_of = declare(self.home, job.cell, made)
                    finish(self.home.cell(job.cell.key), job.cell.shards, made_of)
        assert not graph.left
        return done


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    made = Site(tmp_path_factory.mktemp("site"))
    done = made.run(planned(STACK))
    trained = [key for key in done if key != "judge"]
    assert set(trained) == {OTHER.key, BASE.key, CLEANER.key, STACK.key, replace(OTHER, seed=1).key}
    assert trained.index(BASE.key) < trained.index(CLEANER.key) < trained.index(STACK.key)
    assert trained.index(OTHER.key) < trained.index(STACK.key)
    assert done.count("judge") == 4
    return made


@pytest.fixture
def copy(site: Site, tmp_path: Path) -> Site:
    shutil.copytree(site.home.path, tmp_path / "home")
    return Site(tmp_path / "home")


def test_the_card_says_what_a_model_was_built_upon(site: Site) -> None:
    found = card(site.home, STACK.key)
    assert found.upon == {part.key: card(site.home, part.key).sha256 for part in (OTHER, CLEANER)}
    assert found.defense == STACK.label(DIGITS)
    assert found.epochs == 0
    assert 0 < found.test_accuracy <= 1
    assert card(site.home, BASE.key).upon == {}
    assert card(site.home, CLEANER.key).history[0].loss > 0


def test_the_same_plan_again_does_nothing(copy: Site) -> None:
    assert copy.run(planned(STACK)) == []


@pytest.mark.parametrize("part", [OTHER, BASE, CLEANER])
def test_what_stands_upon_a_model_trained_anew_is_made_anew(copy: Site, part: ModelSpec) -> None:
    """As if other versions had trained it: its weights are others now."""
    shutil.rmtree(copy.home.model(part.key))
    torch.manual_seed(99)
    model = part.defense.build(part.architecture, DIGITS, load_base(copy.home, part, DIGITS))
    save_model(copy.home, part, model, made_card())
    assert has_model(copy.home, part)
    assert not has_model(copy.home, STACK)
    done = copy.run(planned(STACK))
    expected = [CLEANER.key, STACK.key] if part is BASE else [STACK.key]
    assert [key for key in done if key != "judge"] == expected
    assert done.count("judge") == 4
    assert any("trained again" in line for line in copy.said)
    assert copy.run(planned(STACK)) == []


def test_a_base_that_is_gone_is_trained_before_what_stands_upon_it(copy: Site) -> None:
    shutil.rmtree(copy.home.model(BASE.key))
    assert not has_model(copy.home, CLEANER)
    done = [key for key in copy.run(planned(STACK)) if key != "judge"]
    assert done == [BASE.key, CLEANER.key, STACK.key]


def test_a_model_that_draws_goes_all_the_way(tmp_path: Path) -> None:
    """Its labels are one mean each, by its remedy, and shards do not find it out."""
    (spec,) = specs([DIGITS], ["mlp-8"], [[STANDARD, NoiseInjection(sigma=0.6, runs=2)]], [0])
    assert spec.defense.remedy == Remedy(votes=1)
    site = Site(tmp_path)
    assert site.run(planned(spec)).count("judge") == 4
    assert site.run(planned(spec)) == []
