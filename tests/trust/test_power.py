"""What could have raised each check: said with every answer, and a check that nothing could have raised says so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.metrics.pairs import Board, Pair, wilson
from harness.schema.certificates import CertificateFacts, CertifiedLevel
from harness.trust.checks import BOUNDED, FEW, Check, Evidence, Gap, Grade, Power, grade_of, least
from harness.trust.grade import QUESTIONS, trust
from harness.trust.record_checks import ALONE, RISE
from tests.helpers.boards import SORTS, amend, facts, frame, record, sound
from tests.helpers.planted import planted

NAN = np.nan
BOUNDS: list[dict[Grade, float]] = [
    {"C": 0.01, "D": 0.05}, {"C": 0.02}, {"B": 0.5}, {"C": 0.05, "D": 0.2}, {"D": 0.0}, {"C": 0.29},
]  # fmt: skip
WEAK: dict[str, str] = {
    "white-box-vs-black-box": "square",
    "white-box-vs-transfer": "transfer:pgd",
    "iterated-vs-one-step": "fgsm",
    "noise-is-weakest": "noise",
}


def breaks(count: int, n: int = 100, eps: float = 0.1, start: int = 0, **meta: Any) -> Pair:
    """A pair that broke so many images, the first after ``start``."""
    rows = np.arange(n)
    return record(frame(np.where((rows >= start) & (rows < start + count), eps, NAN)), **{"eps": eps} | meta)


def board(*pairs: Pair, n: int = 100, left: float = 0.5, **parts: Any) -> Board:
    health = {"m0": {"linf": facts(n=n, eps=0.1, left=left)}}
    return Board("s", {"mnist": {"linf": (0.05, 0.1)}}, list(pairs), **{"health": health} | parts)


def checks(of: Board) -> dict[str, Check]:
    found = trust(of, "m0", "linf")
    assert found is not None
    return {check.name: check for check in found.checks}


def sort(attack: str) -> dict[str, Any]:
    return {**SORTS[attack], "attack": attack}


@pytest.mark.parametrize("bounds", BOUNDS, ids=str)
def test_the_least_is_what_begins_a_grade(bounds: dict[Grade, float]) -> None:
    for n in (3, 7, 20, 64, 99, 100, 128, 359, 1000):
        first = next((count for count in range(n + 1) if grade_of(count, n, bounds) != "A"), None)
        assert first == least(n, bounds) or (first is None and least(n, bounds) > n)


@pytest.mark.parametrize(
    ("power", "enough", "why", "text"),
    [
        (Power(3, 3), True, "3 images were compared", "3 images; 3 or more"),
        (Power(2, 3), False, "2 images were compared, and it takes 3", "2 images; 3 or more"),
        (Power(100, 3, 3, "noise broke {}"), True, "noise broke 3", "100 images: noise broke 3; 3 or more"),
        (Power(100, 3, 2, "noise broke {}"), False, "noise broke 2, and it takes 3", "100 images: noise broke 2; 3 or"),
        (Power(0, 1, unit="pairs"), False, "0 pairs were compared, and it takes 1", "0 pairs; 1 or more"),
    ],
)
def test_a_power_says_what_there_was(power: Power, enough: bool, why: str, text: str) -> None:
    assert power.enough == enough
    assert power.why.startswith(why)
    assert str(power).startswith(text)
    assert str(power).endswith("raise the question")


def test_an_answer_without_power_is_no_pass() -> None:
    (question,) = (question for question in QUESTIONS if question.name == "noise-is-weakest")
    poor, rich = Power(9, 3, 2, "noise broke {}"), Power(9, 3, 3, "noise broke {}")
    assert question.graded("A", "found", rich).status == "passed"
    check = question.graded("A", "found", poor)
    assert (check.status, check.grade, check.remedy) == ("powerless", "A", "")
    assert check.finding == "found; it could not have been otherwise: noise broke 2, and it takes 3"
    dear = question.graded("A", "found", poor, powerless="B")
    assert (dear.status, dear.grade) == ("powerless", "B")
    assert dear.remedy.endswith(".")
    assert question.graded("D", "found", poor).status == "failed"  # what was raised could be


@pytest.mark.parametrize("n", [100, 1000])
def test_every_check_states_its_power(n: int) -> None:
    for check in checks(sound(n)).values():
        assert check.power is not None, check.name
        assert check.power.enough == (check.status == "passed"), check.name
        assert check.power.compared > 0


def test_the_table_says_what_each_takes() -> None:
    text = (Path(__file__).parents[2] / "docs" / "health" / "README.md").read_text(encoding="utf-8")
    table = text[text.index("## Power") :].splitlines()
    few, many = checks(sound(100)), checks(sound(1000))
    for question in QUESTIONS:
        (row,) = (line for line in table if line.startswith(f"| {question.name} |"))
        takes = [found[question.name].power for found in (few, many)]
        assert None not in takes
        assert row.split(" | ")[3] == ", ".join(str(power.least) for power in takes if power is not None)
        assert len(row.split(" | ")) == 5


@pytest.mark.parametrize("n", [100, 1000])
@pytest.mark.parametrize("name", WEAK)
def test_a_comparison_needs_something_that_the_weaker_side_broke(name: str, n: int) -> None:
    needed = least(n, ALONE)
    for count, status in [(0, "powerless"), (needed - 1, "powerless"), (needed, "passed")]:
        pairs = [breaks(count, n, **sort(WEAK[name])), breaks(n // 2, n, **sort("apgd"))]
        check = checks(board(*pairs, n=n))[name]
        assert (check.status, check.power) == (status, replace(_power(check), could=count, least=needed, compared=n))


def _power(check: Check) -> Power:
    assert check.power is not None
    return check.power


@pytest.mark.parametrize(
    ("square", "transfer", "strong", "grades"),
    [
        (3, 3, 50, ("A", "A")),
        (2, 3, 50, ("A", "A")),  # transfers ask what black-box attacks could not
        (3, 2, 50, ("A", "A")),
        (2, 2, 50, ("B", "B")),  # of other images they would be enough together
        (0, 0, 0, ("B", "B")),  # neither side broke anything
        (2, 2, 97, ("B", "B")),
        (2, 2, 98, ("A", "A")),  # nothing is left to find
    ],
)
def test_gradients_that_nothing_could_expose_have_no_a(
    square: int, transfer: int, strong: int, grades: tuple[Grade, Grade]
) -> None:
    one = [breaks(square, **sort("square")), breaks(transfer, **sort("transfer:pgd")), breaks(strong, **sort("apgd"))]
    of = Board("s", {"mnist": {"linf": (0.1,)}}, one)
    found = checks(of)
    assert (found["white-box-vs-black-box"].grade, found["white-box-vs-transfer"].grade) == grades
    for name, count in [("white-box-vs-black-box", square), ("white-box-vs-transfer", transfer)]:
        assert found[name].status == ("passed" if count >= FEW else "powerless")


@pytest.mark.parametrize("where", ["left_out", "unasked", "missing"])
@pytest.mark.parametrize(
    ("labels", "grade"),
    [
        (["transfer:pgd from mlp standard seed 1 (linf 0.05)"], "B"),
        (["transfer:pgd (l2 0.5)"], "A"),
        (["pgd (linf 0.1)"], "A"),
        ([], "A"),
    ],
)
def test_transfers_that_the_suite_declares_and_nobody_ran_cost_the_a(where: str, labels: list[str], grade: str) -> None:
    if where == "left_out" and labels == ["pgd (linf 0.1)"]:
        return  # only transfers are left out
    check = checks(sound(without=["transfer:pgd"], **{where: {"m0": labels}}))["white-box-vs-transfer"]
    assert (check.status, check.grade) == ("skipped", grade)
    assert ("not asked" in check.finding) == (grade == "B")


@pytest.mark.parametrize("n", [100, 1000])
def test_a_larger_eps_needs_images_broken_at_the_smaller(n: int) -> None:
    needed = least(n, RISE)
    for count, status in [(needed - 1, "powerless"), (needed, "passed")]:
        pairs = [breaks(count, n, eps=0.05, **sort("apgd")), breaks(n // 2, n, **sort("apgd"))]
        check = checks(board(*pairs, n=n))["larger-eps"]
        assert (check.status, check.grade) == (status, "A")


@pytest.mark.parametrize(("count", "status"), [(FEW - 1, "powerless"), (FEW, "passed")])
def test_rounding_needs_broken_images(count: int, status: str) -> None:
    assert checks(board(breaks(count, **sort("apgd"))))["survives-rounding"].status == status


@pytest.mark.parametrize(("n", "status"), [(10, "powerless"), (11, "passed")])
def test_an_order_of_the_classes_needs_images(n: int, status: str) -> None:
    assert checks(board(breaks(1, n, **sort("apgd")), n=n))["class-order"].status == status


LEADS: dict[str, tuple[str, str, str]] = {
    "logit-scale": ("scale", "1", "0.05"),
    "losses-agree": ("losses", "ce", "dlr"),
    "restarts-saturated": ("restarts", "2", "5"),
}


@pytest.mark.parametrize("name", LEADS)
@pytest.mark.parametrize("side", ["left", "broken"])
def test_of_two_attacks_one_must_leave_and_one_must_break(name: str, side: str) -> None:
    field, weak, strong = LEADS[name]
    needed = _power(checks(sound())[name]).least
    for count, status in [(needed - 1, "powerless"), (needed, "passed")]:
        share = count / 100 if side == "left" else 1 - count / 100
        of = sound()

        def change(found: dict[str, Any], share: float = share) -> None:
            found["seen"]["attacked"][field] |= {weak: share, strong: share}

        amend(of, change)
        check = checks(of)[name]
        assert (check.status, check.grade, _power(check).could) == (status, "A", count)


@pytest.mark.parametrize(("left", "status"), [(0.02, "powerless"), (0.03, "passed"), (1.0, "passed")])
def test_more_steps_need_images_that_are_left(left: float, status: str) -> None:
    of = sound()
    amend(of, lambda found: found["seen"]["attacked"].update(steps=dict.fromkeys(("25", "50", "100", "200"), left)))
    assert checks(of)["steps-saturated"].status == status


@pytest.mark.parametrize(("broke", "status"), [(2, "powerless"), (3, "passed")])
def test_the_probe_must_break_something_to_vouch_for_the_battery(broke: int, status: str) -> None:
    of = sound()

    def change(found: dict[str, Any]) -> None:
        seen = found["seen"]["attacked"]
        for name in ("steps", "restarts", "losses"):
            seen[name] = dict.fromkeys(seen[name], 1 - broke / 100)

    amend(of, change)
    check = checks(of)["battery-strength"]
    assert (check.status, check.grade) == (status, "A")


@pytest.mark.parametrize("name", ["vanishing-gradients", "misleading-gradients", "unbounded-attack"])
@pytest.mark.parametrize(("n", "status", "grade"), [(2, "powerless", "B"), (3, "passed", "A")])
def test_shares_of_the_probe_need_images(name: str, n: int, status: str, grade: str) -> None:
    of = sound()
    amend(of, lambda found: found.update(n=n))
    assert (checks(of)[name].status, checks(of)[name].grade) == (status, grade)


# ---------------------------------------------------------------- faults that say nothing of the accuracy

FAULTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "misleading-gradients": lambda seen: seen.update(uphill=0.85),
    "vanishing-gradients": lambda seen: seen.update(small_gradient=0.04),
    "optimisation-in-forward": lambda seen: seen.update(inner_optimisation=True),
    "gradients-match-differences": lambda seen: seen["slopes"]["wrong"].update(boundary=1.0),
    "logit-scale": lambda seen: seen["scale"].update({"0.05": seen["scale"]["1"] - 0.1}),
}


def faulty(name: str, *pairs: Pair, n: int = 1000, remedy: str = "") -> Check:
    of = board(*pairs, n=n)

    def change(found: dict[str, Any]) -> None:
        found["remedy"] = remedy
        for view in found["seen"].values():
            FAULTS[name](view)

    amend(of, change)
    return checks(of)[name]


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_gradients_is_a_d_unless_others_bound_it(name: str) -> None:
    strong, weak = sort("apgd"), sort("square")
    shown = faulty(name, breaks(500, 1000, **strong), breaks(400, 1000, **weak))
    assert (shown.status, shown.grade) == ("failed", "C")
    assert "broke 400 images at linf 0.1, of which gradients missed 0" in shown.finding
    assert "up to 0.5 % stand wrongly" in shown.finding  # 0.95 % of the half that stands
    alone = faulty(name, breaks(500, 1000, **strong))  # no attack without gradients
    assert alone.grade == "D"
    assert "broke no image at linf 0.1 that would show how many stand wrongly" in alone.finding
    assert faulty(name, breaks(500, 1000, **strong), breaks(40, 1000, **weak)).grade == "D"  # few images
    missed = faulty(name, breaks(500, 1000, **strong), breaks(100, 1000, start=480, **weak))
    assert missed.grade == "D"
    assert "broke 100 images at linf 0.1, of which gradients missed 80" in missed.finding
    assert faulty(name, breaks(980, 1000, **strong)).grade == "C"  # no more can be wrong than stands


def test_the_bound_is_the_rate_at_which_gradients_miss_on_what_stands() -> None:
    for broke, missed, strong in [(100, 0, 500), (300, 3, 600), (7, 7, 0), (0, 0, 10)]:
        pairs = [breaks(strong, 1000, **sort("apgd"))]
        pairs += [breaks(broke, 1000, start=strong - broke + missed, **sort("square"))] if broke else []
        bound = Evidence(Board("s", {"mnist": {"linf": (0.1,)}}, pairs), "m0", "linf").bound
        standing = 1000 - strong - missed
        assert (bound.broke, bound.missed, bound.standing) == (broke, missed, standing)
        rate = wilson(missed, broke)[1] if broke else 1.0
        assert bound.share == pytest.approx(rate * standing / 1000)


def test_the_bound_is_that_of_the_eps_that_leaves_most_in_doubt() -> None:
    pairs = [breaks(50, eps=eps, **sort("apgd")) for eps in (0.05, 0.1)]
    pairs += [breaks(1, eps=0.05, **sort("square")), breaks(50, **sort("square"))]
    assert Evidence(board(*pairs), "m0", "linf").bound.eps == 0.05


def test_what_gradients_were_not_shown_bounds_nothing() -> None:
    strong = record(frame(np.full(1000, NAN), attacked=np.arange(1000) >= 400), cascade=True, **sort("apgd"))
    bound = Evidence(
        Board("s", {"mnist": {"linf": (0.1,)}}, [breaks(400, 1000, **sort("square")), strong]), "m0", "linf"
    ).bound
    assert (bound.broke, bound.share) == (0, 0.6)


def test_noise_bounds_nothing() -> None:
    pairs = [breaks(500, 1000, **sort("apgd")), breaks(400, 1000, **sort("noise"))]
    assert Evidence(Board("s", {"mnist": {"linf": (0.1,)}}, pairs), "m0", "linf").bound.broke == 0


def certified(stands: int, asked: int, eps: float = 0.1, **parts: Any) -> dict[str, dict[str, CertificateFacts]]:
    """Certificates of the first images, the last ``stands`` of which are proved to stand."""
    level = CertifiedLevel(
        eps=eps, certified=tuple(row >= asked - stands for row in range(asked)), margins=(1,) * asked
    )
    facts = {"norm": "linf", "n": asked, "index": tuple(range(asked)), "levels": (level,), "cost": 1, "seconds": 0}
    return {"m0": {"linf": CertificateFacts(**facts | parts)}}


def gap(broke: int = 500, kind: str = "certificates", **asked: Any) -> Gap | None:
    pairs, eps = [breaks(broke, 1000, **sort("apgd"))], {"mnist": {"linf": (0.1,)}}
    return Evidence(Board("s", eps, pairs, **{kind: certified(**asked)}), "m0", "linf").gap


def test_certificates_leave_open_what_stands_and_is_not_proved_to() -> None:
    assert gap(stands=500, asked=1000) == Gap(0.1, 0, 1000, 1000)
    assert gap(stands=490, asked=1000) == Gap(0.1, 10, 1000, 1000)
    few = gap(stands=90, asked=600)  # ten of the hundred that stand
    assert few == Gap(0.1, 10, 600, 1000)
    assert few.share == wilson(10, 600)[1]
    assert gap(stands=490, asked=1000, kind="screens") == Gap(0.1, 10, 1000, 1000)


@pytest.mark.parametrize(
    "asked",
    [
        {"stands": 501, "asked": 1000},  # contradicted by the attack
        {"stands": 500, "asked": 1000, "eps": 0.05},
        {"stands": 500, "asked": 1000, "alpha": 0.001},
        {"stands": 500, "asked": 1000, "uncovered": "sin"},
        {"stands": 0, "asked": 0},
    ],
    ids=["contradicted", "another eps", "by chance", "uncovered", "of no image"],
)
def test_no_certificate_bounds_nothing(asked: dict[str, Any]) -> None:
    assert gap(**asked) is None


def test_a_certificate_is_needed_at_every_eps_that_was_attacked() -> None:
    for also, known in [((), True), ((breaks(1, 1000, eps=0.05, **sort("apgd")),), False)]:
        of = board(breaks(500, 1000, **sort("apgd")), *also, certificates=certified(500, 1000))
        assert (Evidence(of, "m0", "linf").gap is not None) == known


@pytest.mark.parametrize(
    ("stands", "asked", "grade"),
    [(500, 1000, "A"), (495, 1000, "B"), (480, 1000, "C"), (460, 1000, "D"), (130, 630, "B"), (0, 1000, "D")],
)
@pytest.mark.parametrize("name", [*FAULTS, "planted-found"])
def test_a_fault_matters_as_far_as_certificates_leave_images_open(
    name: str, stands: int, asked: int, grade: str
) -> None:
    of = board(breaks(500, 1000, **sort("apgd")), n=1000, certificates=certified(stands, asked))

    def change(found: dict[str, Any]) -> None:
        found.update(planted=planted(floats=1, grid=2).model_dump())
        for view in found["seen"].values():
            FAULTS.get(name, lambda _: None)(view)

    amend(of, change)
    check = checks(of)[name]
    assert (check.status, check.grade) == ("passed" if grade == "A" else "failed", grade)
    assert ("certificates of" in check.finding) == (grade != "D" or name == "planted-found")


def test_zero_gradients_are_no_matter_where_all_is_proved() -> None:
    for proof, grade in [({}, "D"), ({"certificates": certified(500, 1000)}, "A")]:
        of = board(breaks(500, 1000, **sort("apgd")), n=1000, **proof)
        amend(of, lambda found: [view.update(zero_gradient=0.9) for view in found["seen"].values()])
        assert checks(of)["vanishing-gradients"].grade == grade


def test_a_stand_ins_gradient_is_not_the_models_and_need_not_be() -> None:
    name, pairs = "gradients-match-differences", [breaks(500, 1000, **sort("apgd"))]
    check = faulty(name, *pairs, remedy="identity for the gradient of front")
    assert (check.status, check.grade) == ("remedied", "C")
    assert "attacks follow a stand-in's gradient (identity for the gradient of front)" in check.finding
    assert "stand wrongly" in check.finding


def test_wrong_and_rugged_gradients_are_told_apart_and_from_what_could_not_be_measured() -> None:
    name = "gradients-match-differences"

    def answer(**slopes: Any) -> Check:
        of = sound(1000)
        amend(of, lambda found: [view["slopes"].update(slopes) for view in found["seen"].values()])
        return checks(of)[name]

    fine = answer()
    assert (fine.status, fine.grade) == ("passed", "A")
    assert "1e-07 around the images and 1e-07 near the boundary" in fine.finding
    for wrong, grade in [(6 / 64, "A"), (7 / 64, "C")]:
        assert answer(wrong={"clean": 0.0, "boundary": wrong}).grade == grade
    for coarse, grade in [(12 / 64, "A"), (13 / 64, "C")]:
        assert answer(coarse={"clean": coarse, "boundary": 0.0}).grade == grade
    assert "is not that of the outputs on 100.0 % (64 of 64) of the images" in answer(wrong={"clean": 1.0}).finding
    assert "says nothing of a step" in answer(coarse={"clean": 1.0}).finding
    unknown = answer(error={}, wrong={})
    assert (unknown.status, unknown.grade) == ("skipped", "B")
    assert answer(error={}, wrong={}, coarse={"clean": 1.0}).grade == "C"


def test_older_facts_have_no_differences_and_no_a() -> None:
    of = sound()
    amend(of, lambda found: [view.update(slopes=None) for view in found["seen"].values()])
    check = checks(of)["gradients-match-differences"]
    assert (check.status, check.grade) == ("skipped", "B")


def test_the_bound_that_a_c_needs_is_on_the_overview() -> None:
    text = (Path(__file__).parents[2] / "docs" / "health" / "README.md").read_text(encoding="utf-8")
    assert f"at most {100 * BOUNDED:g} % of all images" in " ".join(text.split())
