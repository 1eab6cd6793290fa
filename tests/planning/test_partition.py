"""Parts of a plan: disjoint, complete, balanced, and the same on every machine."""

from __future__ import annotations

from itertools import combinations

import pytest

from defenses.gaussian_blur import GaussianBlur
from defenses.gaussian_noise import GaussianNoise
from defenses.pgd import Pgd
from defenses.standard import Standard
from harness.attacks.fast_gradient import Gradient
from harness.attacks.noise import Noise
from harness.attacks.transfer import Transfer
from harness.datasets.registry import DATASETS
from harness.errors import UserError
from harness.planning.partition import SLACK, parse_part, take_part
from harness.planning.plan import Plan, plan, specs
from harness.planning.suite import Suite
from tests.helpers.commands import call, complaint

DIGITS = DATASETS["digits"]
SUITE = Suite(
    name="small",
    summary="for tests",
    attacks={
        "linf": (Noise(), Gradient(), Transfer(attack=Gradient(), defense=Standard(), seed_offset=7)),
        "l2": (Noise(), Gradient(mode="minimal")),
    },
    budgets={"linf": (0.1, 0.2, 0.3), "l2": (1.0,)},
    samples=20,
)


def make(*defenses: object, seeds: tuple[int, ...] = (0,), cascade: bool = False) -> Plan:
    models = specs([DIGITS], ["mlp-8"], defenses or [Standard(), GaussianNoise(), Pgd()], seeds)  # type: ignore[arg-type]
    return plan(SUITE, models, {"digits": DIGITS}, cascade=cascade)


WHOLES = {
    "three models": make(),
    "a cascade": make(cascade=True),
    "one model": make(Standard()),
    "many seeds": make(Standard(), Pgd(), seeds=(0, 1, 2, 3, 4)),
    "built upon others": make(Standard(), (Standard(), GaussianBlur()), Pgd(), (Pgd(), GaussianBlur())),
}


@pytest.fixture(params=WHOLES)
def whole(request: pytest.FixtureRequest) -> Plan:
    return WHOLES[request.param]


@pytest.mark.parametrize("of", [1, 2, 3, 5, 8, 100])
class TestParts:
    def test_are_disjoint_and_complete(self, whole: Plan, of: int) -> None:
        parts = [take_part(whole, number, of) for number in range(1, of + 1)]
        keys = [cell.key for one in parts for cell in one.cells]
        assert len(keys) == len(set(keys))
        assert set(keys) == {cell.key for cell in whole.cells}
        looks = [look.key for one in parts for look in one.probes]
        assert sorted(looks) == sorted(look.key for look in whole.probes)

    def test_hold_what_their_pairs_need_and_no_more(self, whole: Plan, of: int) -> None:
        for number in range(1, of + 1):
            one = take_part(whole, number, of)
            there = [spec.key for spec in one.models]
            for spec in one.models:  # what comes before a model in the plan is trained before it
                assert all(there.index(parent.key) < there.index(spec.key) for parent in spec.parents)
            needed = {spec.key for cell in one.cells for spec in (cell.victim, cell.crafter)}
            needed |= {look.model.key for look in one.probes}
            parents = {parent.key for spec in one.models for parent in spec.parents}
            assert needed <= set(there) <= needed | parents
            assert {cell.victim.key for cell in one.battery} == one.ranked <= set(there)
            assert {cell.key for cell in one.cells} <= {cell.key for cell in one.battery}
            chain = {cell.key for cell in one.cells}
            assert all(cell.after in chain for cell in one.cells if cell.after)

    def test_do_not_depend_on_the_order_of_the_question(self, whole: Plan, of: int) -> None:
        asked = [spec for spec in whole.models if spec.key in whole.ranked]
        cascade = any(cell.cascaded for cell in whole.cells)
        turned = plan(SUITE, asked[::-1], {"digits": DIGITS}, cascade=cascade)
        for number in range(1, of + 1):
            a, b = ({cell.key for cell in take_part(one, number, of).cells} for one in (whole, turned))
            assert a == b


@pytest.mark.parametrize("of", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("name", [name for name in WHOLES if name != "a cascade"])
def test_parts_are_balanced(name: str, of: int) -> None:
    whole = WHOLES[name]
    fair = len(whole.cells) / of
    for number in range(1, of + 1):
        assert abs(len(take_part(whole, number, of).cells) - fair) <= 2 * SLACK * fair + 1


def test_models_stay_together() -> None:
    """Ten models in five parts: two each, and none in two of them."""
    whole = WHOLES["many seeds"]
    held = [{cell.victim.key for cell in take_part(whole, number, 5).cells} for number in range(1, 6)]
    assert all(len(models) == 2 for models in held)
    assert all(not a & b for a, b in combinations(held, 2))
    two = [{cell.victim.key for cell in take_part(WHOLES["three models"], number, 2).cells} for number in (1, 2)]
    assert len(two[0] & two[1]) == 1  # three models in halves: balance wants one of them in both


def test_a_source_is_trained_where_its_images_are_needed() -> None:
    whole = make(Standard())
    (source,) = [spec for spec in whole.models if spec.key not in whole.ranked]
    for number in range(1, 4):
        one = take_part(whole, number, 3)
        asked = any(cell.source is not None for cell in one.cells)
        assert asked == (source in one.models)
    assert sum(source in take_part(whole, number, 3).models for number in range(1, 4)) < 3


def test_the_only_part_is_the_whole(whole: Plan) -> None:
    assert take_part(whole, 1, 1) == whole
    assert take_part(whole, 1, 1).key == whole.key


def test_each_part_is_a_plan_of_its_own() -> None:
    whole = make()
    assert len({take_part(whole, number, 3).key for number in (1, 2, 3)} | {whole.key}) == 4


@pytest.mark.parametrize(("text", "expected"), [("1/1", (1, 1)), (" 2/8 ", (2, 8)), ("100/100", (100, 100))])
def test_a_part_is_read(text: str, expected: tuple[int, int]) -> None:
    assert parse_part(text) == expected


BAD = ["0/2", "3/2", "a/b", "1", "1/", "/2", "", "-1/2", "1/2/3", "1.0/2", "1/0", "²/3", "1 /2", "1/" + "9" * 5000]


@pytest.mark.parametrize("text", BAD)
def test_what_is_no_part(text: str) -> None:
    with pytest.raises(UserError, match="i/n") as raised:
        parse_part(text)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("number", "of"), [(0, 2), (3, 2), (1, 0)])
def test_a_part_that_is_not_there(number: int, of: int) -> None:
    with pytest.raises(ValueError, match="no part"):
        take_part(make(), number, of)


@pytest.mark.parametrize("text", ["0/2", "3/2", "a/b"])
def test_the_command_line_says_so_in_a_line(text: str) -> None:
    assert "a part is written i/n" in complaint(call("plan", "quick", "--part", text))


def test_plan_lists_a_part() -> None:
    listed = [call("plan", "quick", "--model", "mlp-8", "--part", f"{number}/2").stdout for number in (1, 2)]
    whole = call("plan", "quick", "--model", "mlp-8").stdout
    cells = [{word for word in text.split() if len(word) == 16 and word.isalnum()} for text in (*listed, whole)]
    assert cells[0] | cells[1] == cells[2]
    assert not cells[0] & cells[1]
