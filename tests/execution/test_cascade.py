"""A cascade attacks only what still stands, and leaves what the full matrix leaves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from defenses.fast_gradient import FastGradient
from defenses.interval_bound import IntervalBound
from defenses.pgd import Pgd
from defenses.standard import Standard
from harness.attacks.apgd import APGD
from harness.attacks.fast_gradient import Gradient
from harness.attacks.noise import Noise
from harness.attacks.toolkits.foolbox import Foolbox
from harness.attacks.transfer import Transfer
from harness.datasets.registry import DataSource
from harness.execution.jobs import Context, Examine, Judge
from harness.execution.scheduler import Scheduler
from harness.execution.worker import Worker
from harness.goal import Goal
from harness.leaderboard import contradictions
from harness.metrics.pairs import Board, by_model, pair_rows, worst_case
from harness.planning.cascade import CONTROLS
from harness.planning.plan import Plan, plan, specs
from harness.planning.suite import Suite
from harness.records import plans
from harness.records.boards import boards_from_home
from harness.records.home import Home
from harness.records.provenance import declare
from harness.records.results import finish

SUITE = Suite(
    name="small",
    summary="for tests",
    attacks={
        "linf": (
            Noise(distribution="uniform"),
            Gradient(),
            Transfer(attack=Gradient(), defense=Standard(epochs=3), seed_offset=1),
            APGD(steps=20),
            APGD(steps=20, loss="dlr", targets=5),
            Foolbox("LinfPGD"),  # takes all of its steps on every image that it is shown
        ),
        "l2": (Gradient(mode="minimal"), APGD(steps=20), Foolbox("DDNAttack")),
    },
    budgets={"linf": (0.1, 0.15), "l2": (0.5, 1.0)},  # an undefended model does not stand for long here
    samples=120,
    batch=60,
)


def run(home: Home, made: Plan, sources: dict[str, DataSource]) -> Board:
    """Everything but probes, in this process."""
    plans.write_plan(home, plans.plan_record(made, "test"))
    worker = Worker(Context(home, sources))
    graph = Scheduler(made, home, print)
    while (task := graph.take()) is not None:
        if not isinstance(task.payload, Examine):
            worker.run(task.payload)
        graph.done(task.name)
        if isinstance(task.payload, Judge):
            cell = task.payload.cell
            graph.shards_left[cell.key] -= 1
            if not graph.shards_left[cell.key]:
                finish(home.cell(cell.key), cell.shards, declare(home, cell, made))
    assert not graph.left
    (board,) = boards_from_home(home)
    return board


@pytest.fixture(scope="module")
def boards(tmp_path_factory: pytest.TempPathFactory) -> tuple[Board, Board]:
    source = DataSource("digits")
    info = source.info()
    defenses = [Standard(epochs=8), FastGradient(epochs=8), Pgd(epochs=8), IntervalBound(epochs=15)]
    models = specs([info], ["mlp-32"], defenses, [0])
    home = Home(tmp_path_factory.mktemp("full")).create()
    full = run(home, plan(SUITE, models, {info.name: info}), {info.name: source})
    other = Home(tmp_path_factory.mktemp("cascade")).create()
    (other.path / "models").symlink_to(home.path / "models")  # the very same weights
    cascade = run(other, plan(SUITE, models, {info.name: info}, cascade=True), {info.name: source})
    return full, cascade


@pytest.mark.parametrize(("samples", "batch"), [(40, 20), (10, 1)])
def test_with_one_class_for_all_attacks_along_the_boundary_have_where_to_begin(
    samples: int, batch: int, tmp_path: Path
) -> None:
    """No image under attack is of that class, and every shard is judged; one of single images is empty."""
    source, walk = DataSource("digits"), Foolbox("HopSkipJumpAttack", steps=1, max_gradient_eval_steps=50)
    info = source.info()
    suite = Suite(
        name="walk", summary="", attacks={"l2": (walk,)}, budgets={"l2": (2.5,)}, samples=samples, batch=batch
    )
    made = plan(
        suite.towards(Goal(rule="class", target=3)), specs([info], ["mlp-32"], [Standard()], [0]), {info.name: info}
    )
    (pair,) = run(Home(tmp_path).create(), made, {info.name: source}).pairs
    assert pair.result.status == "ok"
    assert (pair.columns["adv_pred"][pair.columns["attacked"]] == 3).all()


def test_what_a_transfer_left_was_made_with_its_model(boards: tuple[Board, Board]) -> None:
    """Where that model is trained again, all that came after has to be done again."""
    for pairs in by_model(boards[1].pairs).values():
        weights = [set(pair.result.weights) for pair in pairs]
        first = next(place for place, pair in enumerate(pairs) if pair.result.source)
        (source,) = weights[first] - {pairs[first].result.model}
        assert not any(source in made for made in weights[:first])
        assert all(source in made for made in weights[first:])


def test_the_worst_case_is_the_same(boards: tuple[Board, Board]) -> None:
    full, cascade = (by_model(board.pairs) for board in boards)
    assert len(full) == len(cascade) == 4
    for model, pairs in full.items():
        for norm, grid in boards[0].budgets["digits"].items():
            for eps in grid:
                wanted, found = worst_case(pairs, norm, eps), worst_case(cascade[model], norm, eps)
                assert found.accuracy == wanted.accuracy, (norm, eps)
    assert len({worst_case(pairs, "linf", 0.1).accuracy for pairs in full.values()}) == 4, "these models are alike"


def test_a_pair_is_called_as_in_the_full_matrix(boards: tuple[Board, Board]) -> None:
    """Else a model that met the one would lack the pairs of the other, where both are on one board."""
    full, cascade = ({pair.result.pair_name for pair in board.pairs} for board in boards)
    assert full == cascade
    assert any("far" in str(pair.result.declaration) for pair in boards[1].pairs)


def test_what_is_proved_meets_the_controls_alone(boards: tuple[Board, Board]) -> None:
    _, cascade = boards
    (model,) = [key for key, pairs in by_model(cascade.pairs).items() if "interval" in pairs[0].result.defense]
    facts = cascade.screens[model]["linf"]
    level = facts.at(0.1)
    assert level is not None
    proved = {at for at, sure in zip(facts.index, level.certified, strict=True) if sure}
    assert len(proved) > 20
    families = set()
    for pair in by_model(cascade.pairs)[model]:
        shown = set(pair.samples.loc[pair.samples["attacked"], "index"])
        if pair.result.norm == "linf" and pair.result.eps == 0.1:
            families.add(pair.result.family)
            assert proved <= shown if pair.result.family in CONTROLS else not proved & shown
    assert families == {"noise", "one-step", "transfer", "iterated"}
    assert contradictions(cascade, model) == []


def test_a_transfer_crafts_for_what_stands_what_it_crafts_for_all(boards: tuple[Board, Board]) -> None:
    full, cascade = ({pair.result.pair_name: pair for pair in board.pairs if pair.result.source} for board in boards)
    assert full.keys() == cascade.keys() != set()
    spared = 0
    for name, pair in cascade.items():
        met = pair.columns["attacked"] & pair.columns["clean_correct"]
        spared += int((full[name].columns["attacked"] & ~met).sum())
        for column in ("adversarial", "adv_pred"):
            assert np.array_equal(pair.columns[column][met], full[name].columns[column][met]), name
    assert spared > 20


def test_it_costs_less(boards: tuple[Board, Board]) -> None:
    def passes(board: Board, defense: str) -> float:
        pairs = [pair for pair in board.pairs if pair.result.defense.startswith(defense)]
        per_image = [pair.result.forwards + pair.result.backwards for pair in pairs]
        counts = [int(pair.samples["attacked"].sum()) for pair in pairs]
        return sum(count * each for count, each in zip(counts, per_image, strict=True))

    assert passes(boards[1], "standard") < 0.75 * passes(boards[0], "standard")


def test_nobody_is_shown_what_has_fallen(boards: tuple[Board, Board]) -> None:
    for pairs in by_model(boards[1].pairs).values():
        fallen: dict[str, dict[str, set[int]]] = {}
        order = {pair.result.cell: pair for pair in pairs}
        for pair in order.values():
            norm, eps = pair.result.norm, pair.result.eps or min(boards[1].budgets["digits"][pair.result.norm])
            samples = pair.samples
            shown = set(samples.loc[samples["attacked"], "index"])
            assert not shown & fallen.get(norm, {}).get(f"{eps}", set())
            for other, grid in boards[1].budgets["digits"].items():
                for value in grid:
                    near = samples["adversarial"] & (samples[other] <= value * (1 + 1e-4) + 1e-9)
                    fallen.setdefault(other, {}).setdefault(f"{value}", set()).update(samples.loc[near, "index"])


def test_a_part_of_the_images_is_no_accuracy(boards: tuple[Board, Board]) -> None:
    rows = pair_rows(boards[1])
    assert rows["robust_accuracy"].isna().all()
    assert (rows["status"] == "ok").all()
    assert pair_rows(boards[0])["robust_accuracy"].notna().all()
    assert np.array_equal(rows["clean_accuracy"], pair_rows(boards[0])["clean_accuracy"])


def test_the_order_on_the_board_is_the_chain(boards: tuple[Board, Board], tmp_path: Path) -> None:
    source = DataSource("digits")
    models = specs([source.info()], ["mlp-32"], [Standard(epochs=8)], [0])
    made = plan(SUITE, models, {"digits": source.info()}, cascade=True)
    graph = Scheduler(made, Home(tmp_path).create(), print)
    keys = [cell.key for cell in made.cells]
    for number, cell in enumerate(made.cells):
        assert list(graph.before(cell)) == keys[:number]
