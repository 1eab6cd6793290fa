"""Certificates as cells of a run: kept shard by shard, resumed, merged, tracked; a wrong one stops the ranking."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import reports
from defenses.interval_bound import IntervalBound
from defenses.randomized_smoothing import RandomizedSmoothing
from defenses.standard import Standard
from harness.attacks.fast_gradient import Gradient
from harness.cli.console import console, print_leaderboard
from harness.cli.tables import plan_table
from harness.datasets.registry import DataSource
from harness.errors import describe
from harness.execution.estimate import estimate
from harness.execution.jobs import Certify, Context
from harness.execution.process_pool import Done, Task
from harness.execution.runner import Report, run
from harness.execution.scheduler import Scheduler
from harness.execution.worker import Worker
from harness.leaderboard import leaderboard
from harness.metrics.pairs import Board
from harness.planning.plan import Plan, plan, specs
from harness.planning.suite import Suite
from harness.records.boards import boards_from_home
from harness.records.files import read_json, write_json
from harness.records.home import Home
from harness.records.merge import merge
from harness.tracking.connection import default_uri
from harness.tracking.reading import read_boards
from harness.tracking.tracker import Tracker

SUITE = Suite(name="tiny", summary="", attacks={"linf": (Gradient(),), "l2": (Gradient(),)}, samples=80)
SOURCE = DataSource("digits")
DEFENSES = (IntervalBound(epochs=8, lr=5e-3, batch_size=64), RandomizedSmoothing(epochs=4, lr=5e-3))


class Here:
    """Runs jobs in this process."""

    def __init__(self, context: Context) -> None:
        self.worker = Worker(context)
        self.names: list[str] = []

    def run(self, take: Callable[[], Task | None], timeout: float = 0.25) -> Iterator[Done | None]:
        while (task := take()) is not None:
            self.names.append(task.name)
            try:
                yield Done(task, self.worker.run(task.payload), None)
            except Exception as error:
                yield Done(task, None, describe(error))


def made(*defenses: Any, **options: Any) -> Plan:
    models = specs([SOURCE.info()], ["mlp-16"], defenses or DEFENSES, [0])
    return replace(plan(SUITE, models, {"digits": SOURCE.info()}, **options), probes=())  # which take their time


def go(home: Path, what: Plan, tracker: Tracker | None = None) -> tuple[Report, list[str]]:
    context = Context(Home(home), {"digits": SOURCE})
    engine = Here(context)
    return run(what, context, jobs=1, command="tiny", tracker=tracker, engine=engine), engine.names


def board(home: Path) -> Board:
    (found,) = boards_from_home(Home(home))
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("whole") / "home"
    report, _ = go(home, made(certify=70))
    assert report.failures == ()
    return home


@pytest.fixture
def home(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "home"))


def files(home: Path) -> dict[str, bytes]:
    """Certificates without their seconds and the seals over them, by path."""
    found = {}
    for path in sorted(home.glob("certificates/*/*.json")):
        record = read_json(path)
        record["facts"].pop("seconds")
        record.pop("seal")
        found[path.relative_to(home).as_posix()] = repr(record).encode()
    return found


def wrong(home: Path, defense: str) -> None:
    """What a wrong bound would have left: every image of a model certified in L-infinity, at any eps."""
    for asked in made(certify=70).certifications:
        if asked.model.defense.name == defense and asked.norm == "linf":
            for shard in range(asked.shards):
                path = Home(home).certificate(asked.key, shard)
                record = read_json(path)
                for level in record["facts"]["levels"]:
                    n = len(level["certified"])
                    level |= {"certified": [True] * n, "margins": [0.125] * n}
                write_json(path, record)


def test_every_certificate_is_there_shard_by_shard(whole: Path) -> None:
    assert len(files(whole)) == 2 * 2 * 2  # two models, two norms, 64 images and 6
    found = board(whole)
    for key, norms in found.certificates.items():
        pairs = found.by_model[key]
        assert set(norms) == {"linf", "l2"}
        for facts in norms.values():
            assert facts.index == tuple(pairs[0].columns["index"][:70].tolist())
    rows = leaderboard(found)
    assert (rows["certified_n"] == 70).all()
    assert (rows["certified"] <= rows["certified_attacked"]).all()
    assert (rows["certified_attacked"] <= rows["clean_accuracy"] + 0.1).all()
    by_name = rows.set_index(["defense", "norm", "eps"])["certified"]
    (bound,) = {name for name in rows["defense"] if name.startswith("interval-bound")}
    (noisy,) = {name for name in rows["defense"] if name.startswith("randomized-smoothing")}
    assert by_name[bound, "linf", 0.05] > 0.4
    assert by_name[noisy, "l2", 0.25] > 0.1


def test_the_same_again_does_nothing_and_what_is_gone_or_damaged_comes_back(home: Path) -> None:
    before = files(home)
    assert go(home, made(certify=70))[1] == []
    first, second, *_ = (home / name for name in before)
    first.unlink()
    second.write_text("{")
    names = go(home, made(certify=70))[1]
    assert {name.split()[0] for name in names} == {"certify"}
    assert files(home) == before


def test_it_waits_for_its_model_and_falls_with_it(home: Path, tmp_path: Path) -> None:
    what = made(Standard(epochs=0), certify=70)
    graph = Scheduler(what, Home(tmp_path / "new"), print)
    assert graph.count(Certify) == 2  # a shard each, in both norms
    assert isinstance(graph.take().payload.spec, object)  # type: ignore[union-attr]
    assert graph.take() is None
    assert sum(isinstance(job, Certify) for job in graph.failed(f"train {what.models[0].key}")) == 2
    model = made().models[0]
    shutil.rmtree(home / "models" / model.key)
    graph = Scheduler(made(certify=70), Home(home), lambda line: None)
    assert graph.count(Certify) == 2  # those of the model that has to be trained again


def test_an_unfinished_certificate_is_not_shown(home: Path) -> None:
    (home / next(iter(files(home)))).unlink()
    assert sum(len(norms) for norms in board(home).certificates.values()) == 3


def test_the_plan_shows_them(home: Path, tmp_path: Path) -> None:
    with console.capture() as capture:
        console.print(plan_table(made(certify=70), Home(home)), width=200)
    shown = capture.get()
    assert "certificate" in shown
    assert "first 70" in shown
    assert "4 certificates (4 done)" in " ".join(shown.split())
    assert str(estimate([made(certify=70)], Home(home))) == "nothing to do"
    left = estimate([made()], Home(tmp_path))
    assert left.certificates == 4
    assert "4 certificates" in str(left)
    more = estimate([made(certify=80)], Home(home))
    assert (more.pairs, more.certificates) == (0, 4)
    assert (more.certificate_hours or 0) > 0
    assert more.attack_hours == 0


def test_the_report_shows_the_band(whole: Path, tmp_path: Path) -> None:
    reports.write([board(whole)], tmp_path)
    markdown = (tmp_path / "leaderboard.md").read_text()
    assert "certified ... attacked" in markdown
    row = leaderboard(board(whole)).iloc[0]
    shown = f"{100 * row['certified']:.1f} ... {100 * row['certified_attacked']:.1f}"
    assert f"{shown} (first 70)" in markdown
    assert "of the ideal vote, for each image with probability 0.999" in markdown
    assert shown in (tmp_path / "index.html").read_text()
    pages = [path.read_text() for path in (tmp_path / "models").glob("*.html")]
    assert all("Certified ... attacked, %" in page for page in pages)
    assert any(shown in page for page in pages)
    header = (tmp_path / "leaderboard.csv").read_text().splitlines()[0]
    assert "certified,certified_attacked,certified_n,certificate" in header


def test_a_wrong_certificate_stops_the_ranking_of_its_model_alone(home: Path, tmp_path: Path) -> None:
    wrong(home, "interval-bound")
    rows = leaderboard(board(home))
    bound = rows["defense"].str.startswith("interval-bound")
    assert rows[bound]["rank"].isna().all()
    assert rows[~bound]["rank"].notna().all()
    note = rows[bound]["note"].iloc[0]
    assert "certified and broken in linf 0.05: image " in note
    assert "with margin 0.125 by gradient (linf 0.05) (pair " in note
    assert "a bug of gauntlet's own, please report it" in note
    reports.write([board(home)], tmp_path)
    for name in ("index.html", "leaderboard.md", "leaderboard.csv"):
        assert "please report it" in (tmp_path / name).read_text(), name
    with console.capture() as capture:
        print_leaderboard([board(home)], made(certify=70))
    assert "please report it" in " ".join(capture.get().split())


def test_a_wrong_probabilistic_certificate_is_shown_and_stops_nothing(home: Path) -> None:
    wrong(home, "randomized-smoothing")
    rows = leaderboard(board(home))
    assert rows["rank"].notna().all()
    assert rows["certificate"].str.contains("finitely many votes were wrong on").any()


def test_homes_are_merged_and_contradictions_refused(whole: Path, home: Path, tmp_path: Path) -> None:
    into = Home(tmp_path / "into").create()
    done = merge(Home(whole), into)
    assert (done.whole, done.new["certificates"]) == (True, 8)
    assert files(into.path) == files(whole)
    again = merge(Home(home), into)
    assert (again.whole, again.same["certificates"]) == (True, 8)
    wrong(home, "interval-bound")
    refused = merge(Home(home), into)
    assert len(refused.refused) == 2
    assert all("another certificate than that in" in line for line in refused.refused)
    assert files(into.path) == files(whole)


@pytest.mark.slow
def test_mlflow_holds_the_band(home: Path) -> None:
    tracker = Tracker(Home(home), default_uri(Home(home)))
    tracker.rebuild()
    rows = leaderboard(board(home))
    models = {run.data.tags["defense"]: run for run in tracker.search("tags.`gauntlet.kind` = 'model'")}
    for row in rows.to_dict("records"):
        metrics = models[str(row["defense"])].data.metrics
        where = f"{row['norm']} {row['eps']:g}"
        assert metrics[f"certified/{where}"] == row["certified"]
        assert metrics[f"certified_attacked/{where}"] == row["certified_attacked"]
    (noisy,) = (run for name, run in models.items() if name.startswith("randomized-smoothing"))
    assert "probability 0.999" in noisy.data.tags["certificate.tiny.l2"]
    kept = board(home).certificates
    shutil.rmtree(home / "certificates")
    assert board(home).certificates != kept
    (read,) = read_boards(tracker)
    assert repr(read.certificates) == repr(kept)  # no number equals itself


@pytest.mark.slow
def test_mlflow_says_why_there_is_no_rank(home: Path) -> None:
    wrong(home, "interval-bound")
    tracker = Tracker(Home(home), default_uri(Home(home)))
    tracker.rebuild()
    runs = tracker.search("tags.`gauntlet.kind` = 'model'")
    why = {run.data.tags["defense"].partition("(")[0]: run.data.tags.get("no_rank", "") for run in runs}
    assert "please report it" in why["interval-bound"]
    assert why["randomized-smoothing"] == ""
