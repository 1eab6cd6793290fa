"""Judge the zoo, and write ``docs/trust.md``: what the trust grade is worth, on models whose robustness is known.

    python -m tests_slow.judge_zoo --home DIR                      # or: nox -s judgement -- zoo --home DIR
    python -m tests_slow.judge_zoo --home DIR --only cache mixer   # no page
    python -m tests_slow.judge_zoo --home DIR --keep               # whatever code has judged a model, it stands
    python -m tests_slow.judge_zoo --home DIR --page               # the page from what is there; nothing is judged

Each model has a file in the home, so that a run that was stopped goes on. It is judged again once the code has changed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

import torch

import gauntlet
from harness import determinism, environment
from harness.datasets.registry import DatasetInfo
from harness.errors import UserError
from harness.metrics.pairs import wilson
from harness.threat import Threat
from tests.helpers.zoo.adaptive import stands
from tests.helpers.zoo.honest import TABLE, honest
from tests.helpers.zoo.masked import MECHANISMS, Mechanism, itself, masked
from tests.helpers.zoo.split import USED, Half, half
from tests.helpers.zoo.training import digits

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "trust.md"

Kind = Literal["masked", "honest"]
Outcome = Literal["found", "believed", "missed", "accused"]

CLOSE = 0.5
"""Points that an A or B may leave above the attack by hand."""

BOUNDED = 3.0
"""Points that a C may."""


@dataclass(frozen=True)
class Judged:
    """What became of one model; accuracies in percent.

    Attributes:
        adaptive: What the attack by hand leaves.
        battery: What the battery leaves; None where the model was refused.
        grade: ``"refused"`` for a model that was not let in.
        reasons: Findings that lower the grade, the gravest first; why it was refused.
        minutes: Of the battery and the probe.
        code: Digest of what judged it.
    """

    name: str
    kind: Kind
    summary: str
    suite: str
    eps: float
    images: int
    clean: float
    adaptive: float
    battery: float | None
    grade: str
    reasons: tuple[str, ...]
    remedy: str
    minutes: float
    code: str
    commit: str

    @property
    def half(self) -> Half:
        return half(self.name)

    @property
    def over(self) -> float:
        """Points by which the battery's number is above the attack by hand's; 0 where there is none."""
        return 0.0 if self.battery is None else self.battery - self.adaptive

    @property
    def outcome(self) -> Outcome:
        """A number that is too high is missed, whoever has it. An honest model below a B is accused."""
        allowed = {"A": CLOSE, "B": CLOSE, "C": BOUNDED}.get(self.grade)
        if allowed is not None and self.over > allowed + 1e-9:
            return "missed"
        if self.kind == "honest":
            return "believed" if self.grade in ("A", "B") else "accused"
        return "believed" if self.grade in ("A", "B") else "found"


def judge(name: str, suite: str, eps: float, images: int) -> Judged:
    """Judge one model by hand and by a suite."""
    torch.set_num_threads(1)
    x, y = digits().test_sample(images)[1]
    threat = Threat("linf", eps)
    kind: Kind = "masked" if name in MECHANISMS else "honest"
    if kind == "masked":
        mechanism, model = MECHANISMS[name], masked(name)
    else:
        mechanism, model = Mechanism(name, "", lambda: honest(name), itself), honest(name)
    left = stands(mechanism, model, x, y, threat)
    start = time.perf_counter()
    clean, battery, grade, reasons, remedy = _by_suite(model, suite, threat, images)
    return Judged(
        name=name,
        kind=kind,
        summary=mechanism.summary,
        suite=suite,
        eps=eps,
        images=images,
        clean=clean,
        adaptive=100 * float(left.double().mean()),
        battery=battery,
        grade=grade,
        reasons=reasons,
        remedy=remedy,
        minutes=(time.perf_counter() - start) / 60,
        code=code(),
        commit=environment.git_commit(),
    )


def _by_suite(
    model: torch.nn.Module, suite: str, threat: Threat, images: int
) -> tuple[float, float | None, str, tuple[str, ...], str]:
    data = digits()
    info: DatasetInfo = replace(data.info, budgets={"linf": (threat.eps,)}, eps={**data.info.eps, "linf": threat.eps})
    with determinism.isolated(0):
        try:
            frame = gauntlet.evaluate(model, *data.test_sample(images)[1], suite, dataset=replace(data, info=info))
        except UserError as error:
            return float("nan"), None, "refused", (str(error),), ""
    grade, reasons = frame.attrs["trust"]["linf"]
    battery = 100 * frame.worst_case("linf", threat.eps)
    return 100 * float(frame["clean_accuracy"].iloc[0]), battery, grade, tuple(reasons[:3]), frame.attrs["remedy"]


def code() -> str:
    """Digest of what decides over a judgement: the core, the suites, and the zoo."""
    total = hashlib.sha256()
    for folder in ("harness", "suites", "tests/helpers/zoo"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            total.update(file.relative_to(ROOT).as_posix().encode() + file.read_bytes())
    return total.hexdigest()[:12]


def read(home: Path, name: str) -> Judged | None:
    file = home / f"{name}.json"
    if not file.is_file():
        return None
    found = json.loads(file.read_text("utf-8"))
    return Judged(**{**found, "reasons": tuple(found["reasons"])})


def run(names: Sequence[str], home: Path, suite: str, eps: float, images: int, jobs: int, *, keep: bool) -> None:
    """Judge what is not there yet."""
    asked = (suite, eps, images, code())

    def stands_still(name: str) -> bool:
        found = read(home, name)
        same = found is not None and (found.suite, found.eps, found.images) == asked[:3]
        return found is not None and same and (keep or found.code == asked[3])

    left = [name for name in names if not stands_still(name)]
    home.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        for future in [pool.submit(judge, name, suite, eps, images) for name in left]:
            found = future.result()
            draft = home / f"{found.name}.json.new"
            draft.write_text(json.dumps(asdict(found), indent=1), "utf-8")
            draft.replace(home / f"{found.name}.json")
            print(f"{found.name}: {found.outcome}, {found.grade}, {_points(found)}", flush=True)


# -- the page ----------------------------------------------------------------------------------------------------------

HEAD = """# What the trust grade is worth

Written by `tests_slow/judge_zoo.py` (`nox -s judgement`); nothing on this page is written by hand.

{masked} models that hide how weak they are and {honest} honest ones, trained on the embedded digits, each judged twice
in L-infinity at eps {eps:g} on {images} images: by somebody who read its code (`tests/helpers/zoo/adaptive.py`) and by
`gauntlet.evaluate` with the suite `{suite}`, which knows nothing of it. *Over* is how many points the second leaves
above the first.

- **missed**: an A or B more than {close:g} points over, or a C more than {bounded:g} points over, whoever has it.
- **accused**: an honest model with less than a B.
- **found**: a model that hides something, graded C or D, or refused; **believed**: an A or B that is no more than
  {close:g} points over.

Half of either kind is *held out*: which half a model belongs to follows from its name (`tests/helpers/zoo/split.py`),
and no threshold of a check is chosen on that half. Models of it that one was moved for after all count as seen since
then: {used}.
Intervals are Wilson's, 95 %. `gauntlet.evaluate` runs no transfers, so that no grade is better than a B.
"""


def page(rows: Sequence[Judged], missing: Sequence[str]) -> str:
    """The page as Markdown; ``missing`` were not judged."""
    first, kinds = rows[0], {kind: [row for row in rows if row.kind == kind] for kind in ("masked", "honest")}
    head = HEAD.format(
        masked=len(kinds["masked"]),
        used="; ".join(f"{name} ({why})" for name, why in USED.items()),
        honest=len(kinds["honest"]),
        eps=first.eps,
        images=first.images,
        suite=first.suite,
        close=CLOSE,
        bounded=BOUNDED,
    )
    commits = ", ".join(f"`{commit[:7]}`" for commit in sorted({row.commit for row in rows}))
    parts = [head, f"Judged at {commits}, {sum(row.minutes for row in rows):.0f} minutes in all, one core each.\n"]
    if missing:
        parts.append(f"**Not judged yet, {len(missing)} of {len(rows) + len(missing)}:** {', '.join(missing)}.\n")
    parts += ["## In short\n", "\n".join(_summary(kinds))]
    for name in ("seen", "held out"):
        parts.append(f"## {name.capitalize()}\n")
        for kind, title in (("masked", "Models that hide something"), ("honest", "Honest models")):
            of = sorted((row for row in kinds[kind] if row.half == name), key=lambda row: row.name)
            parts += [f"### {title}, {name}\n", "\n".join(_table(of, kind == "masked"))]
    return "\n".join(part if part.endswith("\n") else f"{part}\n" for part in parts)


def _summary(kinds: dict[str, list[Judged]]) -> Iterator[str]:
    yield "| models | half | missed | accused | over, at most: A or B | C |"
    yield "| --- | --- | --- | --- | ---: | ---: |"
    for kind, rows in kinds.items():
        for name in ("seen", "held out"):
            of = [row for row in rows if row.half == name]
            counts = [sum(row.outcome == outcome for row in of) for outcome in ("missed", "accused")]
            shares = [_share(count, len(of)) for count in counts]
            accused = shares[1] if kind == "honest" else "-"
            most = " | ".join(
                f"{max((row.over for row in of if row.grade in grades), default=0):+.1f}" for grades in ("AB", "C")
            )
            yield f"| {kind} | {name} | {shares[0]} | {accused} | {most} |"


def _share(count: int, n: int) -> str:
    low, high = wilson(count, n)
    return f"{count} of {n} ({100 * low:.0f} to {100 * high:.0f} %)"


def _table(rows: Sequence[Judged], hidden: bool) -> Iterator[str]:
    what, line = (" what it does |", " --- |") if hidden else ("", "")
    yield f"| model |{what} clean | by hand | battery | over | grade | outcome | first reason | minutes |"
    yield f"| --- |{line} ---: | ---: | ---: | ---: | --- | --- | --- | ---: |"
    for row in rows:
        reason = row.reasons[0].replace("|", "/") if row.reasons else ""
        outcome = f"**{row.outcome}**" if row.outcome in ("missed", "accused") else row.outcome
        yield (
            f"| {row.name} |{f' {row.summary} |' if hidden else ''} {row.clean:.1f} | {_points(row)} | {row.grade} | "
            f"{outcome} | {reason} | {row.minutes:.1f} |".replace("nan", "-")
        )


def _points(row: Judged) -> str:
    battery = ("-", "-") if row.battery is None else (f"{row.battery:.1f}", f"{row.over:+.1f}")
    return " | ".join((f"{row.adaptive:.1f}", *battery))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Judge models whose robustness is known; write docs/trust.md.")
    parser.add_argument("--home", type=Path, required=True, help="folder for a file of each model")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these alone; the page is not written")
    parser.add_argument("--suite", default="linf")
    parser.add_argument("--eps", type=float, default=0.1)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--keep", action="store_true", help="take what older code has judged")
    parser.add_argument("--page", action="store_true", help="judge nothing, write the page")
    chosen = parser.parse_args(arguments)
    known = [*MECHANISMS, *TABLE]
    if unknown := [name for name in chosen.only or () if name not in known]:
        parser.error(f"no model {', '.join(unknown)}; there are {', '.join(known)}")
    names = chosen.only or known
    if not chosen.page:
        run(names, chosen.home, chosen.suite, chosen.eps, chosen.images, chosen.jobs, keep=chosen.keep)
    if not chosen.only:
        rows = [row for name in known if (row := read(chosen.home, name)) is not None]
        if not rows:
            parser.error(f"nothing was judged yet in {chosen.home}")
        PAGE.write_text(page(rows, [name for name in known if name not in {row.name for row in rows}]), "utf-8")
        print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
