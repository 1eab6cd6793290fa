from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import gauntlet
from harness.attacks.apgd import APGD
from harness.attacks.fast_gradient import Gradient
from harness.attacks.noise import Noise
from harness.attacks.toolkits.foolbox import Foolbox
from harness.attacks.transfer import Transfer
from harness.datasets.registry import DATASETS, Dataset
from harness.errors import UserError
from harness.goal import Goal, goal_text, parse_goal, reached
from harness.identity import key
from harness.leaderboard import leaderboard
from harness.metrics.pairs import Board, pair_rows
from harness.planning.plan import Plan, plan, specs
from harness.planning.suite import Suite
from harness.records.plans import command, pair_record, plan_record
from tests.conftest import Plain
from tests.helpers.boards import BUDGETS, record
from tests.helpers.boards import frame as samples

NEXT, RANDOM, THREE = Goal(rule="next"), Goal(rule="random"), Goal(rule="class", target=3)
LABELS = np.arange(200) % 10


def test_targets() -> None:
    assert NEXT.targets(LABELS, range(200), 10).tolist() == ((LABELS + 1) % 10).tolist()
    assert THREE.targets(LABELS, range(200), 10).tolist() == [3] * 200
    drawn = RANDOM.targets(LABELS, range(200), 10)
    assert (drawn != LABELS).all()
    assert len(set(((drawn - LABELS) % 10).tolist())) == 9
    assert RANDOM.targets(LABELS[50:], range(50, 200), 10).tolist() == drawn[50:].tolist()  # by place, not by batch
    assert RANDOM.targets(np.array([0, 1]), range(2), 2).tolist() == [1, 0]
    with pytest.raises(UserError, match=r"a class in 0\.\.2, got 3"):
        THREE.targets(LABELS, range(200), 3)


def test_what_counts_as_broken() -> None:
    said, y, target = np.array([0, 1, 2]), np.array([0, 0, 0]), np.array([2, 2, 2])
    assert reached(said, y, None).tolist() == [False, True, True]
    assert reached(said, y, target).tolist() == [False, False, True]


def test_how_goals_are_written() -> None:
    assert [goal_text(goal) for goal in (None, NEXT, RANDOM, THREE)] == [
        "untargeted",
        "targeted: next",
        "targeted: random",
        "targeted: class 3",
    ]
    names = ("cat", "dog", "owl")
    assert parse_goal("dog", names) == parse_goal("1", names) == parse_goal(1, names) == Goal(rule="class", target=1)
    assert all(parse_goal(goal.text) == goal for goal in (NEXT, RANDOM, THREE))
    assert len({key(goal) for goal in (NEXT, RANDOM, THREE, Goal(rule="class", target=4))}) == 4
    for wrong in ("cow", "3", "-1", "least"):
        with pytest.raises(UserError, match=r"next, random, or a class \(cat, dog, owl\)"):
            parse_goal(wrong, names)
    with pytest.raises(UserError, match="go together"):
        Goal(rule="class")
    with pytest.raises(UserError, match="targets are next, random"):
        Goal(rule="least")  # type: ignore[arg-type]


# ---------------------------------------------------------------- plans


SUITE = Suite(
    name="some",
    summary="",
    attacks={
        "linf": (
            Noise(),
            Transfer(attack=APGD(steps=5), defense=Plain(), seed_offset=1),
            APGD(),
            Foolbox("LinfDeepFoolAttack"),
        )
    },
    budgets={"linf": (0.1,)},
)


def made(goal: Goal | None, **more: object) -> Plan:
    infos = {"digits": DATASETS["digits"]}
    suite = SUITE if goal is None else SUITE.towards(goal)
    return plan(suite, specs(infos.values(), ["mlp-6"], [Plain()], [0]), infos, **more)  # type: ignore[arg-type]


def test_a_goal_is_part_of_what_a_pair_is() -> None:
    plain, aimed, other = made(None), made(NEXT), made(RANDOM)
    assert [cell.attack.label for cell in aimed.cells] == [cell.attack.label for cell in plain.cells[:-1]]
    keys = [{cell.key for cell in each.cells} for each in (plain, aimed, other)]
    assert len(set().union(*keys)) == sum(map(len, keys))
    crafted = [cell.crafted_key for each in (plain, aimed) for cell in each.cells if cell.source is not None]
    assert len(set(crafted)) == 2
    assert plain.cells[0].key == replace(aimed.cells[0], goal=None).key
    assert {look.key for look in aimed.probes} == {look.key for look in plain.probes}  # they look at the model


def test_a_last_shard_of_the_targets_class_alone_is_empty(digits: Dataset) -> None:
    x, y = digits.test[0][:41], digits.test[1][:41]
    model = gauntlet.defense("standard")(epochs=1).fit("mlp-6", digits).model
    suite = Suite(name="one", summary="", attacks={"linf": (Gradient(), Foolbox("LinfPGD"))}, batch=40)
    pairs = gauntlet.evaluate(
        model, x, y, suite, targets=int(y[40]), eps={"linf": 0.1}, health=False, certify=0, progress=False
    )
    assert set(pairs["status"]) == {"ok"}
    assert set(pairs["n"]) == {int((y[:40] != y[40]).sum())}


def test_what_cannot_be_targeted_is_left_out_and_named() -> None:
    aimed = made(NEXT)
    assert aimed.left_out == ("deepfool-linf",)
    assert not aimed.without_transfers
    assert made(NEXT, transfers=False).left_out == ("transfer:apgd(steps=5):plain", "deepfool-linf")
    assert made(None).certifications
    assert not aimed.certifications
    with pytest.raises(UserError, match="certify without targets"):
        made(NEXT, certify=10)
    with pytest.raises(UserError, match="deepfool-linf has no targeted form"):
        made(NEXT, only=["deepfool-linf"])
    alone = replace(SUITE, attacks={"linf": (Foolbox("LinfDeepFoolAttack"),)}).towards(NEXT)
    with pytest.raises(UserError, match="none of its attacks has a targeted form"):
        plan(alone, specs([DATASETS["digits"]], ["mlp-6"], [Plain()], [0]), {"digits": DATASETS["digits"]})


def test_plans_records_and_commands_say_the_goal() -> None:
    aimed = made(NEXT, words=("quick", "--targets", "next"))
    written = plan_record(aimed, "gauntlet run")
    assert (written.goal, written.suite) == ("targeted: next", "some, targeted: next")
    assert {cell.goal for cell in (*written.cells, *written.battery)} == {"targeted: next"}
    assert plan_record(made(None), "gauntlet run").goal == "untargeted"
    pair = pair_record(aimed.cells[-1], DATASETS["digits"])
    assert pair.pair_name == "apgd, targeted: next (linf 0.1)"
    assert "targeted: next" in str(aimed.cells[0])
    assert command(aimed, aimed.cells[0]) == ""  # a trainer of the tests' own
    assert "quick --targets next" in command(replace(aimed, again="gauntlet run quick --targets next"), aimed.cells[0])


# ---------------------------------------------------------------- boards


def test_different_goals_are_not_ranked_together() -> None:
    one = record(samples([0.05, 0.2]), attack="apgd")
    other = record(
        samples([0.05, 0.2]).assign(target=1), attack="apgd", goal="targeted: class 1", cell="c1", model="m1"
    )
    with pytest.raises(UserError, match=r"different goals \(targeted: class 1; untargeted\), which are not ranked"):
        leaderboard(Board("quick", BUDGETS, [one, other]))
    found = leaderboard(Board("quick, targeted: class 1", BUDGETS, [other]))
    assert set(found["goal"]) == {"targeted: class 1"}
    assert set(pair_rows(Board("quick", BUDGETS, [one]))["goal"]) == {"untargeted"}


def test_success_on_correct_is_of_those_classified_correctly() -> None:
    pair = record(samples([0.05, 0.08, 0.2, 0.05], clean=[True, True, True, False]), attack="apgd", eps=None)
    rows = leaderboard(Board("quick", BUDGETS, [pair])).set_index("eps")
    assert rows["success_on_correct"].to_dict() == pytest.approx({0.05: 1 / 3, 0.1: 2 / 3})
    assert rows["worst_case_accuracy"].to_dict() == pytest.approx({0.05: 2 / 4, 0.1: 1 / 4})
