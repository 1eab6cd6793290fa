from __future__ import annotations

import copy
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness.datasets.registry import load_dataset
from harness.metrics.pairs import Board, Pair, wilson
from harness.models.registry import build_model
from harness.schema.models import Admission, Card, KnownModel, ModelName
from harness.schema.pairs import Result
from harness.schema.probes import ProbeFacts
from harness.trust import answer_checks, harvest_checks, probe_checks, record_checks
from harness.trust.basis_checks import ABOVE, ENOUGH
from harness.trust.checks import FEW, MANY, Check, Evidence, Grade, grade_of
from harness.trust.grade import GRADES, QUESTIONS, trust
from harness.victims.adaptation import Remedy
from tests.helpers.boards import SORTS, amend, budget, facts, frame, pair, record, result, sound

NAN = np.nan
PAGES = Path(__file__).parents[2] / "docs" / "health"


def checks(board: Board, norm: str = "linf") -> dict[str, Check]:
    found = trust(board, "m0", norm)
    assert found is not None
    return {check.name: check for check in found.checks}


def standing(n: int) -> np.ndarray:
    """Images that no attack of the sound board breaks."""
    needed = np.random.default_rng(0).permutation(np.linspace(0.01, 0.2, n))
    return np.flatnonzero(needed > 0.1)


def breaking(n: int, images: Any, eps: float | None = 0.1, *, attacked: Any = None, **meta: Any) -> Pair:
    """A pair that broke just these images."""
    distance = np.full(n, NAN)
    distance[images] = eps or 0.1
    return record(frame(distance, attacked=attacked), eps=eps, **{"attack": "other"} | meta)


# ---------------------------------------------------------------- the grade


@pytest.mark.parametrize("n", [100, 1000])
def test_a_sound_evaluation_deserves_an_a(n: int) -> None:
    found = trust(sound(n), "m0", "linf")
    assert found is not None
    assert (found.grade, found.reasons) == ("A", ())
    assert {check.name for check in found.checks if check.status == "powerless"} == {"noise-is-weakest"}
    assert {check.status for check in found.checks} == {"passed", "powerless"}
    assert len(found.checks) == len(QUESTIONS)


@pytest.mark.parametrize("n", [1, 20, 99])
def test_a_sound_evaluation_on_few_images_deserves_a_b(n: int) -> None:
    found = trust(sound(n), "m0", "linf")
    assert found is not None
    assert found.grade == "B"
    assert f"judged on {n} image{'' if n == 1 else 's'}, fewer than 100" in found.reasons


def test_chance_raises_no_alarm_on_twenty_images() -> None:
    """Every attack misses 3 % of what it would break; the rest of the board stays sound."""
    rng = np.random.default_rng(1)
    alarms = 0
    for _ in range(100):
        board = sound(20)
        pairs = [
            replace(
                pair, records=pair.samples.assign(adversarial=pair.samples["adversarial"] & (rng.random(20) > 0.03))
            )
            for pair in board.pairs
        ]
        grade = trust(replace(board, pairs=pairs, health={}), "m0", "linf")
        assert grade is not None
        alarms += grade.grade != "B"  # not probed
    assert alarms == 0


def test_without_a_probe_nobody_vouches_for_an_a() -> None:
    found = trust(sound(health={}), "m0", "linf")
    assert found is not None
    assert found.grade == "B"
    assert found.reasons == (probe_checks.NOT_PROBED,)
    assert {check.status for check in found.checks if check.grade != "A"} == {"skipped"}


def test_the_worst_answer_decides_and_stands_first() -> None:
    board = sound(extra=[breaking(100, standing(100)[:4], family="score", access="scores")])
    amend(board, lambda found: found["seen"]["attacked"].update(detached=True))
    found = trust(board, "m0", "linf")
    assert found is not None
    assert found.grade == "D"
    assert [check.name for check in found.checks[:2]] == ["detached-gradients", "white-box-vs-black-box"]
    assert [check.grade for check in found.checks] == sorted((c.grade for c in found.checks), reverse=True)
    assert len(found.reasons) == 2


@pytest.mark.parametrize(
    "meta",
    [
        {"family": "noise", "access": "none"},
        {"family": "noise", "access": "scores"},
        {"family": "transformation", "access": "decisions"},
        {"family": "transfer", "access": "none", "source": "other"},
    ],
)
def test_what_does_not_search_gets_no_grade(meta: Mapping[str, Any]) -> None:
    assert trust(Board("s", {"mnist": {"linf": (0.1,)}}, [budget([0.05, NAN], 0.1, **meta)]), "m0", "linf") is None


def test_a_norm_or_model_without_pairs_gets_no_grade() -> None:
    assert trust(sound(), "m0", "l2") is None
    assert trust(sound(), "m1", "linf") is None


def test_other_models_and_norms_are_left_out() -> None:
    others = [
        breaking(100, standing(100), family="score", access="scores", model="m1"),
        breaking(100, standing(100), 5.0, family="score", access="scores", norm="l2"),
        budget([NAN], 0.1, status="crashed", norm="l2"),
    ]
    assert checks(sound(extra=others)) == checks(sound())


def test_grades_are_ordered() -> None:
    assert max(GRADES) == GRADES[-1] == "D"


@pytest.mark.parametrize(
    ("n", "grades"),
    [
        (1000, {10: "A", 11: "C", 50: "C", 51: "D"}),
        (100, {2: "A", 3: "C", 6: "D"}),
        (20, {2: "A", 3: "C", 5: "D"}),
        (0, {0: "A"}),
    ],
)
def test_grades_take_a_share_and_some_images(n: int, grades: dict[int, Grade]) -> None:
    assert {count: grade_of(count, n, {"C": 0.01, "D": 0.05}) for count in grades} == grades


@pytest.mark.parametrize(
    ("meta", "expected"),
    [
        ({"access": "none"}, "noise"),
        ({"access": "none", "source": "mlp standard seed 1"}, "transfer"),
        ({"access": "scores"}, "score"),
        ({"access": "decisions", "kind": "minimal"}, "decision"),
        ({"access": "gradients", "kind": "budget"}, "iterated"),
        ({"access": "gradients", "kind": "minimal"}, "minimum-norm"),
        ({"access": "gradients", "family": "one-step"}, "one-step"),
    ],
)
def test_older_records_tell_their_family(meta: dict[str, str], expected: str) -> None:
    known = result(1, **meta).model_dump(exclude={"family", "kind", "access"})
    assert Result(**{"kind": "budget", **known, **meta}).family == expected


# ---------------------------------------------------------------- what a number rests on


def guessed(right: int, labels: Any, classes: int = 10, *, named: bool = True) -> Check:
    """The answer for a model that gets the first so many images right, and of whose other images nothing is broken."""
    labels = np.asarray(labels)
    clean = np.arange(len(labels)) < right
    samples = frame(np.full(len(labels), NAN), clean=clean)
    samples = samples.assign(label=labels, clean_pred=np.where(clean, labels, (labels + 1) % classes))
    names = {"class_names": tuple(map(str, range(classes)))} if named else {}
    board = Board("s", {"mnist": {"linf": (0.1,)}}, [record(samples, **names)])
    return checks(board)["better-than-chance"]


class TestChance:
    @pytest.mark.parametrize(
        ("n", "classes", "share", "grade"),
        [
            (100, 10, 0.30, "A"),  # an honest model of little accuracy
            (1000, 100, 0.14, "A"),
            (400, 2, 0.61, "A"),
            (6, 10, 1 / 3, "B"),  # untrained networks; 24 % is the most that one of many hundred has
            (359, 10, 0.10, "B"),
            (359, 10, 0.16, "B"),
            (359, 10, 0.226, "B"),
            (1000, 100, 0.12, "B"),
            (400, 2, 0.58, "B"),
            (200, 10, 0.0, "B"),
        ],
    )
    def test_takes_more_than_a_lucky_network(self, n: int, classes: int, share: float, grade: Grade) -> None:
        check = guessed(round(share * n), np.arange(n) % classes, classes)
        assert (check.grade, check.status) == (grade, "passed" if grade == "A" else "failed")
        assert f"({round(share * n)} of {n}) is {'above' if grade == 'A' else 'not above'} chance" in check.finding

    @pytest.mark.parametrize("n", [100, 359, 5000])
    @pytest.mark.parametrize("classes", [2, 7, 10, 100])
    def test_begins_where_the_interval_leaves_the_bound(self, n: int, classes: int) -> None:
        labels, bound = np.arange(n) % classes, 1 / classes + ABOVE * (1 - 1 / classes)
        first = next(right for right in range(n + 1) if wilson(right, n)[0] > max(bound, np.bincount(labels).max() / n))
        assert [guessed(right, labels, classes).grade for right in (first - 1, first)] == ["B", "A"]

    def test_a_constant_answer_is_chance(self) -> None:
        """Nine in ten images are of one class: so is a model that says nothing else."""
        labels = np.where(np.arange(500) < 450, 0, 1 + np.arange(500) % 9)
        check = guessed(450, labels)
        assert check.grade == "B"
        assert check.finding == "clean accuracy 90.0 % (450 of 500) is not above chance (90.0 %)"
        assert guessed(475, labels).grade == "A"

    def test_images_of_one_class_say_nothing(self) -> None:
        assert guessed(200, np.full(200, 3)).grade == "B"

    def test_older_records_name_no_classes(self) -> None:
        assert guessed(60, np.arange(200) % 10, named=False) == guessed(60, np.arange(200) % 10)

    def test_no_image_at_all(self) -> None:
        assert guessed(0, []).grade == "B"

    @pytest.mark.parametrize("n", [6, 359])
    @pytest.mark.parametrize("architecture", ["softmax", "mlp-16", "lenet"])
    def test_untrained_networks(self, n: int, architecture: str) -> None:
        data = load_dataset("digits")
        _, (x, y) = data.test_sample(n)
        for seed in range(5):
            torch.manual_seed(seed)
            with torch.no_grad():
                right = build_model(architecture, data.info.shape, 10).eval()(x).argmax(1) == y
            order = np.argsort(~right.numpy(), kind="stable")
            assert guessed(int(right.sum()), y.numpy()[order]).grade == "B"


@pytest.mark.parametrize(
    ("labels", "count"),
    [
        ([], 0),
        (["fmn (linf)"], 1),
        (["pgd (linf 0.1)", "transfer:pgd from mlp standard seed 1 (linf 0.05)"], 2),
        (["pgd(norm=l2) (l2 0.5)", "fmn (l2)"], 0),
        (["what is this"], 1),
    ],
)
@pytest.mark.parametrize("missing", [[], ["deepfool (linf)"]])
def test_pairs_that_nobody_asked_for(labels: list[str], count: int, missing: list[str]) -> None:
    found = checks(sound(unasked={"m0": labels, "m1": ["fmn (linf)"]}, missing={"m0": missing}))
    check, complete = found["battery-asked"], found["battery-complete"]
    assert (check.status, check.grade) == (("skipped", "B") if count else ("passed", "A"))
    total = 13 + count + len(missing)
    said = f"{count} of the suite's {total} linf pairs were not asked for"
    assert check.finding == (said if count else f"all {total} linf pairs were asked for")
    assert bool(check.remedy) == bool(count)
    assert complete.grade == ("D" if missing else "A")
    assert complete.finding.startswith(f"{len(missing)} of {13 + len(missing)} pairs are missing")


# ---------------------------------------------------------------- one attack against another

ALONE = {
    "white-box-vs-black-box": {"family": "score", "access": "scores"},
    "white-box-vs-transfer": {"family": "transfer", "access": "none", "source": "other"},
    "iterated-vs-one-step": {"family": "one-step"},
    "noise-is-weakest": {"family": "noise", "access": "none"},
}


@pytest.mark.parametrize("name", ALONE)
class TestAlone:
    @pytest.mark.parametrize(
        ("n", "grades"),
        [
            (1000, {0: "A", 10: "A", 11: "C", 50: "C", 51: "D"}),
            (100, {2: "A", 3: "C", 5: "C", 6: "D"}),
            (20, {2: "A", 3: "C", 5: "D"}),
        ],
    )
    @pytest.mark.parametrize("eps", [0.1, None])
    def test_counts_what_the_weaker_broke_alone(
        self, name: str, n: int, grades: dict[int, Grade], eps: float | None
    ) -> None:
        for count, grade in grades.items():
            extra = breaking(n, standing(n)[:count], eps, attack="weak", **ALONE[name])
            check = checks(sound(n, extra=[extra]))[name]
            assert check.grade == grade
            assert check.power is not None
            assert check.status == ("failed" if grade != "A" else "passed" if check.power.enough else "powerless")
            assert check.power.enough or name == "noise-is-weakest"
            assert bool(check.remedy) == (grade != "A")
            expected = f"{100 * count / n:.1f} % ({count} of {n}) at linf 0.1" if count else "no image alone"
            assert expected in check.finding

    def test_it_takes_only_one_of_the_stronger(self, name: str) -> None:
        images = standing(100)[:20]
        weak = breaking(100, images, attack="weak", **ALONE[name])
        strong = breaking(100, images, attack="strong", family="iterated")
        assert checks(sound(extra=[weak]))[name].grade == "D"
        assert checks(sound(extra=[weak, strong]))[name].grade == "A"

    def test_clean_errors_are_nobodys(self, name: str) -> None:
        clean = np.ones(100, bool)
        clean[standing(100)[:20]] = False
        weak = record(frame(np.full(100, 0.1), clean=clean), **ALONE[name])
        strong = record(frame(np.where(clean, 0.1, NAN), clean=clean), attack="strong")
        board = Board("s", {"mnist": {"linf": (0.1,)}}, [weak, strong])
        assert checks(board)[name].grade == "A"

    def test_nobody_to_ask(self, name: str) -> None:
        gone = {key for key, meta in SORTS.items() if meta["family"] == ALONE[name]["family"]}
        board = sound(without=sorted(gone))
        if name == "iterated-vs-one-step":  # then the probe is asked
            amend(board, lambda found: found["seen"]["attacked"].update(one_step=None))
        check = checks(board)[name]
        assert check.status == "skipped"
        assert check.grade == ("A" if name == "white-box-vs-transfer" else "B")

    def test_nobody_to_hold_it_against(self, name: str) -> None:
        weak = breaking(100, [1, 2, 3], **ALONE[name])
        strong = breaking(100, [1, 2, 3], status="crashed", attack="strong")
        check = checks(Board("s", {"mnist": {"linf": (0.1,)}}, [weak, strong]))[name]
        assert (check.status, check.grade) == ("skipped", "B")

    @pytest.mark.parametrize(("count", "status"), [(2, "powerless"), (6, "skipped")])
    def test_in_a_cascade_what_the_stronger_never_met_says_nothing(self, name: str, count: int, status: str) -> None:
        images = standing(100)[:count]
        met = ~np.isin(np.arange(100), images)
        weak = breaking(100, images, cascade=True, **ALONE[name])
        strong = breaking(100, [], attacked=met, cascade=True, attack="strong")
        check = checks(Board("s", {"mnist": {"linf": (0.1,)}}, [weak, strong]))[name]
        assert check.status == status
        asked = name in ("iterated-vs-one-step", "noise-is-weakest")  # nothing depends on controls alone
        assert check.grade == ("A" if asked and status == "powerless" else "B")

    def test_in_a_cascade_what_the_stronger_met_and_left_counts(self, name: str) -> None:
        images = standing(100)[:10]
        weak = breaking(100, images, attacked=np.arange(100) >= 10, cascade=True, **ALONE[name])
        strong = breaking(100, np.setdiff1d(np.arange(10), images), cascade=True, attack="strong")
        check = checks(Board("s", {"mnist": {"linf": (0.1,)}}, [strong, weak]))[name]
        assert check.status == "failed"

    @pytest.mark.parametrize("whole", [True, False])
    def test_that_a_second_opinion_met_a_tenth_alone_excuses_nobody(self, name: str, whole: bool) -> None:
        images = standing(100)[:10]
        weak = breaking(100, images, attacked=np.arange(100) >= 10, cascade=True, **ALONE[name])
        tenth = np.arange(100) % 10 == 0
        opinion = [
            breaking(100, [], attacked=met, cascade=True, attack="opinion", share=share)
            for met, share in ((tenth, "tenth"), (~tenth, "rest"))
        ]
        strong = [breaking(100, [], cascade=True, attack="strong")] if whole else []
        check = checks(Board("s", {"mnist": {"linf": (0.1,)}}, [*strong, *opinion[: 1 if whole else 2], weak]))[name]
        assert check.status == "failed"


class TestTransfersLeftOut:
    NOT_ASKED = "not asked: transfers from other models were left out"

    @pytest.mark.parametrize("labels", [["transfer:PGD(steps=40)"], ["transfer:pgd", "transfer:fgsm"]])
    def test_costs_the_a(self, labels: list[str]) -> None:
        found = trust(sound(without=["transfer:pgd"], left_out={"m0": labels}), "m0", "linf")
        assert found is not None
        assert (found.grade, found.reasons) == ("B", (self.NOT_ASKED,))
        assert found.checks[0].name == "white-box-vs-transfer"
        assert found.checks[0].status == "skipped"
        assert found.checks[0].remedy

    @pytest.mark.parametrize("left_out", [{}, {"m0": []}, {"m1": ["transfer:pgd"]}, {"m0": ["transfer:pgd (l2 0.5)"]}])
    def test_where_none_was_left_out_it_costs_nothing(self, left_out: Mapping[str, list[str]]) -> None:
        check = checks(sound(without=["transfer:pgd"], left_out=left_out))["white-box-vs-transfer"]
        assert (check.status, check.grade) == ("skipped", "A")

    @pytest.mark.parametrize(("count", "grade"), [(0, "B"), (3, "C"), (6, "D")])
    def test_those_that_ran_still_count(self, count: int, grade: Grade) -> None:
        weak = breaking(100, standing(100)[:count], attack="weak", **ALONE["white-box-vs-transfer"])
        check = checks(sound(extra=[weak], left_out={"m0": ["transfer:other"]}))["white-box-vs-transfer"]
        assert check.grade == grade
        assert (check.finding == self.NOT_ASKED) == (count == 0)


def test_a_single_step_is_asked_of_the_probe_where_the_suite_takes_none() -> None:
    board = sound(without=["fgsm"])
    check = checks(board)["iterated-vs-one-step"]
    assert (check.status, check.grade) == ("passed", "A")
    assert "in the probe" in check.finding

    def ahead(margin: float) -> None:
        def change(found: dict[str, Any]) -> None:
            seen = found["seen"]["attacked"]
            seen["one_step"] = seen["steps"]["200"] - margin

        amend(board, change)

    ahead(0.08)
    check = checks(board)["iterated-vs-one-step"]
    assert check.grade == "D"
    assert "left 53.0 % where one step left 45.0 %" in check.finding
    for margin, grade in [(0.02, "A"), (0.03, "C"), (0.05, "C"), (0.06, "D")]:
        ahead(margin)
        assert checks(board)["iterated-vs-one-step"].grade == grade


class TestLargerEps:
    @staticmethod
    def board(small: Any, large: Any, n: int = 100, **meta: Any) -> Board:
        extra = [breaking(n, small, 0.05, attack="odd", **meta), breaking(n, large, 0.1, attack="odd", **meta)]
        return sound(n, extra=extra)

    @pytest.mark.parametrize("family", ["iterated", "score", "decision"])
    @pytest.mark.parametrize(
        ("count", "n", "grade"), [(2, 100, "A"), (3, 100, "C"), (20, 1000, "A"), (21, 1000, "C"), (2, 20, "A")]
    )
    def test_an_attack_may_not_get_worse(self, family: str, count: int, n: int, grade: Grade) -> None:
        check = checks(self.board(np.arange(count), [], n, family=family))["larger-eps"]
        assert check.grade == grade
        assert f"odd left {100 * count / n:.1f} % ({count} of {n}) more at linf 0.1 than at 0.05" == check.finding

    @pytest.mark.parametrize("family", ["one-step", "noise", "transfer"])
    def test_what_cannot_go_back_is_not_asked(self, family: str) -> None:
        assert checks(self.board(np.arange(50), [], family=family))["larger-eps"].grade == "A"

    def test_gains_make_up_for_losses(self) -> None:
        assert checks(self.board(np.arange(10), np.arange(10, 18)))["larger-eps"].grade == "A"

    def test_attacks_are_not_mixed(self) -> None:
        extra = [breaking(100, np.arange(50), 0.05, attack="good"), breaking(100, [], 0.1, attack="bad")]
        assert checks(sound(extra=extra))["larger-eps"].grade == "A"

    def test_failed_pairs_are_not_asked(self) -> None:
        assert checks(self.board(np.arange(50), [], status="invalid"))["larger-eps"].grade == "A"

    def test_one_eps_is_no_series(self) -> None:
        board = Board("s", {"mnist": {"linf": (0.1,)}}, [breaking(100, [1])])
        check = checks(board)["larger-eps"]
        assert (check.status, check.grade) == ("skipped", "A")

    def test_a_cascade_does_not_try_again(self) -> None:
        met = np.arange(100) >= 30
        pairs = [
            breaking(100, np.arange(30), 0.05, cascade=True),
            breaking(100, np.arange(30, 40), 0.1, attacked=met, cascade=True),
        ]
        check = checks(Board("s", {"mnist": {"linf": (0.05, 0.1)}}, pairs))["larger-eps"]
        assert (check.status, check.grade) == ("skipped", "A")

    def test_a_tenth_and_the_rest_are_one_attack(self) -> None:
        tenth = np.arange(100) % 10 == 0
        small = [
            breaking(100, np.flatnonzero(met)[:5], 0.05, attacked=met, cascade=True, share=share)
            for met, share in ((tenth, "tenth"), (~tenth, "rest"))
        ]
        board = Board("s", {"mnist": {"linf": (0.05, 0.1)}}, [*small, breaking(100, [], 0.1, cascade=True)])
        check = checks(board)["larger-eps"]
        assert check.status == "failed"
        assert "(10 of 100)" in check.finding


class TestRounding:
    @staticmethod
    def board(lost: int, total: int, *more: Pair) -> Board:
        samples = frame(np.where(np.arange(100) < total, 0.1, NAN), survives=np.arange(100) >= lost)
        return Board("s", {"mnist": {"linf": (0.1,)}}, [record(samples), *more])

    @pytest.mark.parametrize(("lost", "total", "grade"), [(5, 10, "A"), (6, 10, "B"), (2, 2, "A"), (3, 3, "B")])
    def test_most_adversarials_should_live_in_a_file(self, lost: int, total: int, grade: Grade) -> None:
        check = checks(self.board(lost, total))["survives-rounding"]
        assert check.grade == grade
        assert f"({lost} of {total})" in check.finding

    def test_another_attack_may_save_an_image(self) -> None:
        saved = record(frame(np.where(np.arange(100) < 8, 0.09, NAN)), attack="other")
        far = record(frame(np.where(np.arange(100) < 8, 0.2, NAN)), attack="other", eps=None)
        assert checks(self.board(10, 10, saved))["survives-rounding"].grade == "A"
        assert checks(self.board(10, 10, far))["survives-rounding"].grade == "B"

    def test_nothing_broken_is_nothing_to_ask(self) -> None:
        check = checks(self.board(0, 0))["survives-rounding"]
        assert (check.status, check.grade) == ("skipped", "A")


# ---------------------------------------------------------------- records


@pytest.mark.parametrize(("name", "status"), [("invalid-results", "invalid"), ("attacks-crashed", "crashed")])
class TestFailedPairs:
    def test_one_is_enough(self, name: str, status: str) -> None:
        bad = breaking(100, [], attack="liar", status=status, errors=("E: first\nlast line",))
        check = checks(sound(extra=[bad]))[name]
        assert check.grade == "D"
        assert check.finding.startswith("1 of 14 pairs ")
        assert "liar: last line" in check.finding

    def test_the_counts_are_told(self, name: str, status: str) -> None:
        bad = breaking(100, [], attack="liar", status=status)
        bad = replace(bad, records=bad.samples.assign(over_budget=np.arange(100) < 3))
        assert ("over budget 3" in checks(sound(extra=[bad]))[name].finding) == (status == "invalid")

    def test_many_are_counted_and_a_few_named(self, name: str, status: str) -> None:
        bad = [breaking(100, [], attack=f"liar{i}", status=status) for i in range(5)]
        finding = checks(sound(extra=bad))[name].finding
        assert finding.startswith("5 of 18")
        assert finding.endswith("and 2 more)")


@pytest.mark.parametrize(
    ("labels", "missing"),
    [
        ([], 0),
        (["fmn (linf)"], 1),
        (["pgd (linf 0.1)", "transfer:pgd from mlp standard seed 1 (linf 0.05)"], 2),
        (["pgd(norm=l2) (l2 0.5)", "fmn (l2)"], 0),
        (["what is this"], 1),
    ],
)
def test_missing_pairs_of_the_norm(labels: list[str], missing: int) -> None:
    check = checks(sound(missing={"m0": labels, "m1": ["fmn (linf)"]}))["battery-complete"]
    assert check.grade == ("D" if missing else "A")
    assert check.finding.startswith(f"{missing} of {13 + missing} pairs are missing")


@pytest.mark.parametrize(
    ("without", "absent"),
    [((), None), (("apgd",), None), (("apgd", "square"), "art"), (("pgd", "fmn"), "foolbox")],
)
def test_both_libraries_take_part(without: tuple[str, ...], absent: str | None) -> None:
    control = breaking(100, [], family="noise", access="none", toolkit=absent or "art")  # noise is no second opinion
    check = checks(sound(without=without, extra=[control]))["mixed-toolkits"]
    assert check.grade == ("B" if absent else "A")
    assert f"no attack of {absent} ran" in check.finding or absent is None
    assert "accuracy left" in check.finding


# ---------------------------------------------------------------- facts

Put = Callable[[dict[str, Any], float], None]


def put(*path: str, offset: float = 0.0, sign: int = 1) -> Put:
    """Sets one measurement, as a share of images that speaks against the model."""

    def change(seen: dict[str, Any], share: float) -> None:
        for name in path[:-1]:
            seen = seen[name]
        seen[path[-1]] = offset + sign * share

    return change


LEFT = 0.526
"""What the sound board leaves of a thousand images."""

SHARES: Mapping[str, tuple[tuple[Put, ...], Mapping[Grade, float], bool]] = {
    "vanishing-gradients": (
        (put("zero_gradient"), put("small_gradient"), put("non_finite_gradient")),
        probe_checks.ZERO_GRADIENT,
        True,
    ),
    "misleading-gradients": ((put("uphill", offset=1, sign=-1),), probe_checks.UPHILL, True),
    "logit-scale": (
        (put("scale", "0.05", offset=LEFT, sign=-1),),
        probe_checks.SCALE,
        True,
    ),
    "losses-agree": ((put("losses", "ce", offset=LEFT),), probe_checks.LOSSES, True),
    "unbounded-attack": ((put("unbounded"),), probe_checks.UNBOUNDED, True),
    "steps-saturated": ((put("steps", "200", offset=LEFT, sign=-1),), probe_checks.STEPS, False),
    "restarts-saturated": ((put("restarts", "5", offset=LEFT, sign=-1),), probe_checks.RESTARTS, False),
}
"""Per check: what raises it, its bounds, and whether a fault of the model as it is counts if attacks do not see it."""

CASES = [
    (name, way, grade) for name, (ways, bounds, _) in SHARES.items() for way in range(len(ways)) for grade in bounds
]


def probed(
    change: Callable[[dict[str, Any]], None] | None, where: str = "both", n: int = 1000, remedy: str = ""
) -> Board:
    """A board whose probe found something else."""
    found = facts(n=n, left=LEFT).model_dump() | {"remedy": remedy}
    for name in ("raw", "attacked"):
        if change is not None and where in (name, "both"):
            change(found["seen"][name])
    return sound(n or 100, health={"m0": {"linf": ProbeFacts(**found)}})


@pytest.mark.parametrize(("detached", "grade"), [(False, "D"), (True, "D")])
def test_gradients_that_nobody_followed_though_they_are_there(detached: bool, grade: Grade) -> None:
    said = str(Remedy(gradients="missing"))
    check = checks(probed(lambda seen: seen.update(detached=detached), remedy=said))["detached-gradients"]
    assert check.grade == grade
    assert ("were left out" in check.finding) == (not detached)
    wrong = str(Remedy(gradients="wrong"))
    assert checks(probed(None, remedy=wrong))["detached-gradients"].grade == "A"


def test_submitted_images_make_no_grade_better() -> None:
    board = sound()
    amend(board, lambda found: [seen.update(steps={"100": 0.2, "200": 0.2}) for seen in found["seen"].values()])
    weak = trust(board, "m0", "linf")
    images = breaking(100, standing(100), None, kind="minimal", family="submitted", access="none", submitted=True)
    lowered = trust(replace(board, pairs=[*board.pairs, images]), "m0", "linf")
    assert weak is not None
    assert weak.grade == "D"
    assert lowered == weak


class TestShares:
    @pytest.mark.parametrize(("name", "way", "grade"), CASES)
    def test_grades_begin_beyond_their_bound(self, name: str, way: int, grade: Grade) -> None:
        ways, bounds, _ = SHARES[name]
        better = max((g for g in bounds if g < grade), default="A")
        for images, expected in [(0, better), (1, grade)]:
            board = probed(lambda seen, extra=images: ways[way](seen, bounds[grade] + extra / 1000))
            assert checks(board)[name].grade == expected

    @pytest.mark.parametrize("name", SHARES)
    def test_a_few_images_are_no_finding(self, name: str) -> None:
        ways, _, _ = SHARES[name]
        for images, passes in [(FEW - 1, True), (MANY, False)]:
            board = probed(lambda seen, images=images: ways[0](seen, images / 8), n=8)
            assert (checks(board)[name].grade == "A") == passes

    @pytest.mark.parametrize("name", SHARES)
    def test_a_fault_that_attacks_do_not_see_is_remedied(self, name: str) -> None:
        ways, bounds, counts = SHARES[name]
        board = probed(lambda seen: ways[0](seen, max(bounds.values()) + 0.1), "raw", remedy="logits / 100")
        check = checks(board)[name]
        assert (check.status, check.grade) == (("remedied", "C") if counts else ("passed", "A"))
        assert ("logits / 100" in check.finding) == counts

    @pytest.mark.parametrize("name", SHARES)
    def test_a_remedy_that_makes_it_worse_is_a_fault(self, name: str) -> None:
        ways, bounds, _ = SHARES[name]
        board = probed(lambda seen: ways[0](seen, max(bounds.values()) + 0.1), "attacked", remedy="logits / 100")
        assert checks(board)[name].grade == max(bounds)

    @pytest.mark.parametrize("name", [*SHARES, "battery-strength"])
    def test_what_the_probe_could_not_measure_is_missed(self, name: str) -> None:
        gone = ("zero_gradient", "small_gradient", "uphill", "scale", "losses", "unbounded", "steps", "restarts")

        def blind(seen: dict[str, Any]) -> None:
            seen.update(dict.fromkeys(gone), errors=("steps: RuntimeError: no luck",))

        check = checks(probed(blind))[name]
        assert (check.status, check.grade) == ("skipped", "B")
        assert "no luck" in check.finding or name == "battery-strength"

    def test_a_model_that_was_blind_as_it_is_passes_with_its_stand_in(self) -> None:
        def blind(seen: dict[str, Any]) -> None:
            seen.update(
                dict.fromkeys(("zero_gradient", "uphill", "scale", "losses", "unbounded", "steps")), detached=True
            )

        found = checks(probed(blind, "raw", remedy="identity for the gradient of 0"))
        assert (found["detached-gradients"].status, found["detached-gradients"].grade) == ("remedied", "C")
        others = {check.status for name, check in found.items() if name != "detached-gradients"}
        assert others == {"passed", "powerless"}


@pytest.mark.parametrize(
    ("name", "key", "grade"),
    [
        ("outputs-are-probabilities", "probabilities", "D"),
        ("detached-gradients", "detached", "D"),
        ("optimisation-in-forward", "inner_optimisation", "C"),
    ],
)
def test_yes_or_no(name: str, key: str, grade: Grade) -> None:
    def fault(seen: dict[str, Any]) -> None:
        seen[key] = True

    answers = {where: checks(probed(fault, where, remedy="something"))[name] for where in ("both", "raw", "none")}
    assert {where: check.status for where, check in answers.items()} == {
        "both": "failed",
        "raw": "remedied",
        "none": "passed",
    }
    assert [check.grade for check in answers.values()] == [grade, "C", "A"]


def test_late_progress_counts_as_unsaturated() -> None:
    for value, grade in [(0.99, "A"), (1.01, "B")]:
        board = probed(lambda seen, value=value: seen.update(rising=value * probe_checks.RISING["B"]))
        assert checks(board)["steps-saturated"].grade == grade
    assert checks(probed(lambda seen: seen.update(rising=0.9)))["steps-saturated"].grade == "C"
    assert checks(probed(lambda seen: seen.update(rising=None)))["steps-saturated"].grade == "A"

    def nothing_left(seen: dict[str, Any]) -> None:
        seen.update(rising=0.9, steps=dict.fromkeys(("25", "50", "100", "200"), 0.0))

    assert checks(probed(nothing_left))["steps-saturated"].grade == "A"


@pytest.mark.parametrize(
    ("labels", "logits", "draws", "status", "grade"),
    [
        (0.0, 0.0, 1, "passed", "A"),
        (0.0, probe_checks.DRAWN, 1, "passed", "A"),
        (0.0, 2 * probe_checks.DRAWN, 1, "failed", "C"),
        (0.01, 0.1, 1, "failed", "D"),
        (0.01, 0.1, 16, "remedied", "C"),
        (0.0, 0.0, 16, "passed", "A"),
    ],
)
def test_stochastic_predictions(labels: float, logits: float, draws: int, status: str, grade: Grade) -> None:
    board = probed(None, remedy=str(Remedy(draws=draws, temperature=3.0)))
    amend(board, lambda found: found["stochastic"].update(labels=labels, logits=logits))
    check = checks(board)["stochastic-predictions"]
    assert (check.status, check.grade) == (status, grade)


@pytest.mark.parametrize(("votes", "said"), [(1, "one call"), (5, "the majority of 5 calls")])
def test_a_model_that_averages_on_its_own_account_is_handled(votes: int, said: str) -> None:
    board = probed(None)
    amend(board, lambda found: found.update(votes=votes, stochastic={"draws": 8, "labels": 0.01, "logits": 0.1}))
    check = checks(board)["stochastic-predictions"]
    assert (check.status, check.grade) == ("remedied", "C")
    assert f"{said} under a fixed seed is its label" in check.finding
    assert "among 8 calls" in check.finding


def test_a_probe_without_images_says_nothing() -> None:
    found = checks(probed(None, n=0))
    assert found["battery-strength"].grade == found["unbounded-attack"].grade == "B"


class TestBatteryStrength:
    """The sound board leaves 53 of 100."""

    @pytest.mark.parametrize(("ahead", "grade"), [(0, "A"), (-9, "A"), (2, "A"), (3, "C"), (4, "C"), (5, "D")])
    @pytest.mark.parametrize("name", ["steps", "restarts", "losses"])
    def test_the_probe_alone_may_not_break_more(self, ahead: int, grade: Grade, name: str) -> None:
        def change(found: dict[str, Any]) -> None:
            seen = found["seen"]["attacked"]
            seen |= {other: dict.fromkeys(seen[other], 0.9) for other in ("steps", "restarts", "losses")}
            seen[name][list(seen[name])[-1]] = 0.53 - ahead / 100

        board = sound()
        amend(board, change)
        check = checks(board)["battery-strength"]
        assert check.grade == grade
        assert check.finding.startswith(f"the battery left 53.0 %, the probe's attack alone {53 - ahead}.0 % of 100")

    @pytest.mark.parametrize(
        ("parts", "grade"),
        [((0.5, 0.5), "A"), ((0.4, 0.4), "A"), ((0.53, 0.52), "A"), ((0.53, 0.5), "C"), ((0.53, 0.1), "D")],
    )
    def test_steps_on_part_of_the_values_count_by_what_they_add(self, parts: tuple[float, float], grade: Grade) -> None:
        def change(found: dict[str, Any]) -> None:
            seen = found["seen"]["attacked"]
            seen |= {other: dict.fromkeys(seen[other], 0.53) for other in ("steps", "restarts", "losses")}
            seen["parts"] = dict(zip(("1", "0.5"), parts, strict=True))

        board = sound()
        amend(board, change)
        check = checks(board)["battery-strength"]
        assert check.grade == grade
        said = "; by steps on 50.0 % of the values, of what those on all left (53.0 %)"
        assert (said in check.finding) == (grade != "A")

    def test_steps_where_images_differ_are_named(self) -> None:
        def change(found: dict[str, Any]) -> None:
            found["seen"]["attacked"]["parts"] = {"1": 0.53, "0.5": 0.53, "differing": 0.1}

        board = sound()
        amend(board, change)
        finding = checks(board)["battery-strength"].finding
        assert "by steps on the values in which images differ, of what those on all left (53.0 %)" in finding

    def test_is_asked_on_the_probes_images(self) -> None:
        """The first 40 that the model gets right: it lost all of these, and nothing else."""
        n, clean = 100, np.arange(100) >= 10
        strong = record(frame(np.where((np.arange(n) < 50) & clean, 0.1, NAN), clean=clean))
        board = Board("s", {"mnist": {"linf": (0.1,)}}, [strong], health={"m0": {"linf": facts(n=40, left=0.0)}})
        assert checks(board)["battery-strength"].finding.startswith("the battery left 0.0 %")
        amend(board, lambda found: found.update(n=50))
        assert checks(board)["battery-strength"].finding.startswith("the battery left 20.0 %")
        amend(board, lambda found: found.update(n=91))
        assert checks(board)["battery-strength"].status == "skipped"

    def test_attacks_under_other_norms_count_as_they_do_in_the_ranking(self) -> None:
        other = record(frame(np.full(100, 0.1)), norm="l2", eps=9.0)
        board = sound(extra=[other])
        assert checks(board)["battery-strength"].finding.startswith("the battery left 0.0 %")

    def test_a_single_step_that_nobody_vouches_for(self) -> None:
        lone = Board("s", {"mnist": {"linf": (0.1,)}}, [breaking(100, [1], family="one-step")])
        assert checks(lone)["battery-strength"].grade == "C"
        assert checks(sound(health={}))["battery-strength"].grade == "B"


# ---------------------------------------------------------------- the same model throughout


def agreement(images: int = 200, differ: int = 0, labels: int = 0, change: float = 0.0) -> dict[str, float]:
    return {"images": images, "differ": differ, "labels": labels, "change": change}


def answered(answers: Mapping[str, Any], inspection: Mapping[str, Any] | None = None, **meta: Any) -> Any:
    """The check of answers, on one pair and a model's card."""
    one = pair(np.full(200, np.inf), answers=answers, **meta)
    name = dict(ModelName.of(one.result))
    card = Card(**name, sha256="", inspection=None if inspection is None else Admission(answers=inspection))
    models = {"m0": KnownModel(**name, card=card)}
    board = Board(suite="s", budgets={"mnist": {"linf": [0.1]}}, pairs=[one], models=models)
    (question,) = [question for question in QUESTIONS if question.name == "consistent-answers"]
    return question.ask(Evidence(board, "m0", "linf"))


@pytest.mark.parametrize(
    ("seen", "grade"),
    [
        (agreement(), "A"),
        (agreement(differ=5, change=0.02), "C"),
        (agreement(differ=200, labels=2, change=0.02), "C"),  # 1 % is not more than 1 %
        (agreement(differ=200, labels=3, change=0.5), "D"),
    ],
)
@pytest.mark.parametrize("where", ["referee", "attacked", "admission"])
def test_other_answers_cost_the_grade(seen: Any, grade: str, where: str) -> None:
    fine = {"referee": agreement()}
    check = answered(fine, {"alone": seen}) if where == "admission" else answered(fine | {where: seen})
    assert check.grade == grade
    assert (check.status == "passed") == (grade == "A")
    words = {"referee": "asked again in other batches", "attacked": "the copy that was attacked", "admission": "alone"}
    assert (words[where] in check.finding) == (grade != "A")


def test_the_gravest_answer_is_named_and_older_records_are_not_blamed() -> None:
    check = answered(
        {"referee": agreement(differ=9, labels=9, change=0.3), "attacked": agreement(differ=1, change=0.9)}
    )
    assert check.grade == "D"
    assert "9 of 200 clean images" in check.finding
    assert answered({}).status == "skipped"
    assert answered({}).grade == "A"


def test_votes_that_differ_leave_a_b() -> None:
    check = answered({}, unsteady=3)
    assert (check.grade, check.status) == ("B", "failed")
    assert "two votes differ on 3 of 200 images, which count as wrong" in check.finding


def test_classes_in_another_order_leave_a_b() -> None:
    samples = frame(np.full(100, np.inf))
    (question,) = [question for question in QUESTIONS if question.name == "class-order"]

    def ask(said: Any) -> Any:
        one = record(samples.assign(clean_pred=said, clean_correct=said == samples["label"]), eps=None, kind="minimal")
        return question.ask(Evidence(Board(suite="s", budgets={"mnist": {"linf": [0.1]}}, pairs=[one]), "m0", "linf"))

    label = samples["label"].to_numpy()
    assert ask(label).grade == "A"
    moved = ask(np.where(label == 2, 3, np.where(label == 3, 2, label)))
    assert moved.grade == "B"
    assert "right on 100.0% of the clean images instead of 80.0%" in moved.finding


# ---------------------------------------------------------------- found and lost


def losing(lost: int, toolkit: str = "gauntlet", **meta: Any) -> Check:
    harvest = {"lost": lost, "nearer": 0, "unattributed": meta.pop("unattributed", 0)}
    return checks(sound(200, extra=[breaking(200, [], toolkit=toolkit, harvest=harvest, **meta)]))["found-and-lost"]


@pytest.mark.parametrize(("lost", "grade"), [(0, "A"), (2, "A"), (3, "B"), (200, "B")])
def test_an_attack_of_ours_that_loses_what_it_finds_leaves_a_b(lost: int, grade: Grade) -> None:
    check = losing(lost)
    assert check.grade == grade
    assert ("other did not return" in check.finding) == (lost > 0)


def test_toolkits_and_controls_that_lose_what_they_find_are_named_and_cost_nothing() -> None:
    for meta in ({"toolkit": "art"}, {"family": "noise", "access": "scores"}):
        check = losing(50, **meta)
        assert (check.status, check.grade) == ("passed", "A")
        assert "other did not return the adversarials that it met of 25.0 % (50 of 200)" in check.finding


def test_what_could_not_be_looked_at_is_said() -> None:
    assert "most of what other met could not be told" in losing(0, unattributed=300).finding  # of 400 passes
    assert "could not be told" not in losing(0, unattributed=100).finding


def test_records_without_a_harvest_leave_the_question_open() -> None:
    board = Board("s", {"mnist": {"linf": (0.1,)}}, [breaking(200, [], harvest=None)])
    check = checks(board)["found-and-lost"]
    assert (check.status, check.grade) == ("skipped", "A")


# ---------------------------------------------------------------- pages

HEADINGS = ("What it asks", "How it is measured", "When it is raised", "What to do", "Source")

QUOTED: Mapping[str, tuple[Any, ...]] = {
    "enough-images": (float(ENOUGH),),
    **dict.fromkeys(ALONE, (record_checks.ALONE,)),
    "iterated-vs-one-step": (record_checks.ALONE, record_checks.PROBED_ALONE),
    "larger-eps": (record_checks.RISE,),
    "survives-rounding": (record_checks.LOST_BY_ROUNDING,),
    "found-and-lost": (harvest_checks.LOST,),
    **{name: (bounds,) for name, (_, bounds, _) in SHARES.items()},
    "steps-saturated": (probe_checks.STEPS, probe_checks.RISING),
    "gradients-match-differences": (probe_checks.WRONG, probe_checks.RUGGED),
    "battery-strength": (probe_checks.STRENGTH,),
    "stochastic-predictions": (probe_checks.DRAWN,),
    "consistent-answers": ({"D": answer_checks.OTHER_LABEL},),
}
"""Thresholds that a page must name; the other checks have none."""


def test_every_check_has_a_page_and_every_page_a_check() -> None:
    names = [question.name for question in QUESTIONS]
    assert len(names) == len(set(names))
    assert {path.stem for path in PAGES.glob("*.md")} - {"README"} == set(names)


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question.name)
def test_pages(question: Any) -> None:
    text = (PAGES / f"{question.name}.md").read_text(encoding="utf-8")
    assert text.startswith(f"# {question.title}\n")
    assert tuple(re.findall(r"^## (.+)$", text, re.MULTILINE)) == HEADINGS
    assert 15 <= len(text.splitlines()) <= 40
    assert text.isascii()
    assert max(map(len, text.splitlines())) <= 120
    flat = " ".join(text.split())
    for bounds in QUOTED.get(question.name, ()):
        if isinstance(bounds, float):
            assert f"{bounds:g}" in flat
            continue
        for grade, bound in bounds.items():
            assert re.search(rf"more than {100 * bound:g} %[^.]*grade {grade}", flat), (grade, bound)
    for link in re.findall(r"\]\(([\w-]+)\.md\)", text):
        assert (PAGES / f"{link}.md").exists()


def test_every_remedy_is_a_sentence() -> None:
    for question in QUESTIONS:
        assert question.remedy.endswith(".")
        assert question.title.endswith("?")


def test_the_overview_names_every_check_and_the_images_it_takes() -> None:
    text = (PAGES / "README.md").read_text(encoding="utf-8")
    for question in QUESTIONS:
        start = f"| [{question.name}]({question.name}.md) | {question.title} | "
        (row,) = (line for line in text.splitlines() if line.startswith(start))
        for bounds in QUOTED.get(question.name, ())[:1]:
            if not isinstance(bounds, float):
                assert row.endswith(
                    ", ".join(f"{grade} (> {100 * bound:g} %)" for grade, bound in bounds.items()) + " |"
                )
    for grade in GRADES:
        assert re.search(rf"^\| \*\*{grade}\*\* ", text, re.MULTILINE)
    assert f"at least {FEW} images" in " ".join(text.split())
    assert f"at least {MANY}" in " ".join(text.split())


def test_records_need_no_torch() -> None:
    modules = "harness.leaderboard, harness.metrics.comparison, harness.trust.grade"
    code = f"import sys, {modules}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PAGES.parent.parent)


def test_asking_changes_nothing() -> None:
    board = sound()
    before = copy.deepcopy((board.health, [pair.samples for pair in board.pairs]))
    trust(board, "m0", "linf")
    assert board.health == before[0]
    assert all(pair.samples.equals(old) for pair, old in zip(board.pairs, before[1], strict=True))
