"""Write what follows from ``records/`` again: the studies' own pages, the table of all papers, the list of other keys.

    python docs/papers/render.py                      # or: nox -s papers
    python docs/papers/render.py --join PART RECORD   # first puts in what `reproduce --only ... --out PART` left

Nothing is run or measured. ``docs/papers/NAME.md`` are written by hand; a test holds their numbers to the records.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import reports
from harness.datasets.registry import DATASETS
from harness.errors import UserError, unknown
from harness.studies.experiment import design
from harness.studies.record import StudyRecord, battery_other_now, other_now, read_record
from harness.studies.reproduce import asked, battery_keys
from suites import study, suites

ROOT = Path(__file__).resolve().parents[2]
RECORDS = ROOT / "records"
PART = re.compile(r"(<!-- (table|board) -->\n).*?(<!-- end -->)", re.DOTALL)

OTHER_KEYS = """# What today's code would measure under another key

Written by `docs/papers/render.py`. A record stays as it was measured; where an attack, a trainer or a study's
declaration has changed since, the same command would now measure another pair, and its number may be another one.
Of models judged by batteries the pairs with attacks count, not probes and certificates.

| record | profile | values, clauses, effects | of them under another key | models judged | judged under another key |
| --- | --- | ---: | --- | ---: | --- |
"""


def read_all() -> dict[str, StudyRecord]:
    """Every record by its folder: a study's name, or that with a suffix for what a longer profile has so far."""
    return {folder.name: read(folder) for folder in sorted(RECORDS.iterdir()) if folder.is_dir()}


def read(folder: Path) -> StudyRecord:
    """A record, of those items of its study that were asked for."""
    facts = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    return read_record(folder, study(facts["study"]).chosen(facts.get("only", ())))


def other_keys(records: Mapping[str, StudyRecord]) -> str:
    """The page that says what was made by other code."""
    lines = []
    for name, record in records.items():
        facts = record.facts
        info = DATASETS[facts["dataset"]]
        asked_for = {"seeds": facts["seeds"], "samples": facts["samples"], "only": facts.get("only", ())}
        made = design(study(facts["study"]), facts["profile"], info, suites(), **asked_for)
        found = other_now(record, asked(made))
        measured = [finding for finding in record.findings.values() if finding.seeds]
        values = _of_them([finding.item for finding in found], [finding.keys for finding in measured])
        judged = record.judgement.drop_duplicates("model")
        batteries = _of_them(battery_other_now(record, battery_keys(made)), list(judged["keys"]))
        link = f"[{name}]({name}/study-{record.study.name}.md)"
        counts = f"{len(measured)} | {values} | {len(judged)} | {batteries}"
        lines.append(f"| {link} | {facts['profile']} | {counts} |")
    return OTHER_KEYS + "\n".join(lines) + "\n"


def _of_them(other: Sequence[str], keys: Sequence[str]) -> str:
    """How many have another key now, and which items or models; and of how many it is not known."""
    unknown = sum(not key for key in keys)
    if unknown and unknown == len(keys):
        return "not known: measured before keys were recorded"
    said = f"{len(other)}: {', '.join(dict.fromkeys(other))}" if other else "none"
    return f"{said}; of {unknown} not known" if unknown else said


def pages(records: Mapping[str, StudyRecord]) -> Iterator[tuple[Path, str]]:
    """The pages about all records, as they should be."""
    page = ROOT / "docs" / "papers" / "README.md"
    board, beside = reports.studies_board(records)
    parts = {"table": reports.summary(records, "../../records").rstrip(), "board": board.rstrip()}
    yield page, PART.sub(lambda found: f"{found[1]}\n{parts[found[2]]}\n\n{found[3]}", page.read_text(encoding="utf-8"))
    yield RECORDS / "board.html", beside
    yield RECORDS / "README.md", other_keys(records)


def main() -> None:
    """Write all of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--join", nargs=2, type=Path, metavar=("PART", "RECORD"), help="put a part into a record first")
    join = parser.parse_args().join
    records = read_all()
    if join is not None:
        part, name = join[0], join[1].name
        try:
            if name not in records:
                raise unknown("record", name, records)
            records[name] = records[name].joined(read(part), study(records[name].study.name))
        except UserError as error:
            parser.error(str(error))
    for name, record in records.items():
        reports.write_study(record, RECORDS / name)
    for path, text in pages(records):
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
