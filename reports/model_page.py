"""The page of one model: can its numbers be believed, what broke it, which images, and how to repeat all that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.metrics import reference, rounding, wilson

from .charts import Chart, Curve, eps_chart
from .contrasts import Contrast, Duel, contrasted
from .costs import mean
from .gallery import class_name
from .html import page
from .images import Damage, Strip
from .tables import Section
from .text import both, norm_name, threat_text
from .trust import Verdict, verdict
from .view import Entry, Panel, Record

Share = tuple[float, float, float]
"""A share with the ends of its 95 % interval."""


@dataclass(frozen=True)
class ClassRow:
    """One class: its images, the share the model gets right, and per norm the share that no attack broke."""

    name: str
    n: int
    clean: Share
    worst: Mapping[str, Share]


@dataclass(frozen=True)
class Attacker:
    """What one attack did to an entry at one norm and eps, over seeds.

    What it found with any norm and eps counts; costs are those of its own pairs at this norm and eps.

    Attributes:
        attack: Label.
        toolkit: Where it comes from.
        family: Sort of attack, "" if the records do not say.
        broken: Share of the images it broke.
        alone: Share of the images that no other attack broke.
        counts: The same as mean numbers of images.
        met: Per seed of a cascade the images shown to it; empty outside of cascades.
        forwards: Passes per attacked image.
        backwards: Passes per attacked image.
        seconds: For a whole pair.
        rounding: Share of its adversarials within eps that survive rounding to 8 bits.
        problems: Per seed that failed or returned something invalid, what happened.
        elsewhere: Norms it was run in, if it was not run in this one.
        anchor: Id of its first record, "" if it was not run in this norm.
    """

    attack: str
    toolkit: str
    family: str
    broken: float
    alone: float
    counts: tuple[float, float]
    met: Sequence[int]
    forwards: float
    backwards: float
    seconds: float
    rounding: float
    problems: Sequence[str]
    elsewhere: str
    anchor: str


@dataclass(frozen=True)
class View:
    """Everything about an entry in one norm.

    Attributes:
        norm: Of the threat.
        eps: The reference eps.
        text: Both in words.
        verdict: Trust, None where nothing is graded.
        damage: What happened to the images of the first seed.
        strips: Who broke what, of the first seed, at the reference eps.
        attackers: What each attack did, most images first.
    """

    norm: str
    eps: float
    text: str
    verdict: Verdict | None
    damage: Damage
    strips: Sequence[Strip]
    attackers: Sequence[Attacker]


def render(section: Section, entry: Entry, duels: Sequence[Duel], elsewhere: Sequence[tuple[Section, Entry]]) -> str:
    """The page as text.

    Args:
        section: The suite and data set.
        entry: The model, over its seeds.
        duels: Comparisons that have a page.
        elsewhere: The same model in other sections.
    """
    norms = [norm for norm in section.norms if entry.attacked(norm)]
    seeds = [pairs[0].meta["seed"] for pairs in entry.models.values()]
    return page(
        "model.html.j2",
        title=f"{entry.name} on {section.dataset}",
        up="../",
        section=section,
        entry=entry,
        seeds=seeds,
        clean=_clean(entry),
        worst=[(panel, *row) for panel in section.panels if (row := _row(panel, entry)) is not None],
        views=[_view(section, entry, norm) for norm in norms],
        charts=curves(section, [entry], norms, seeds=True),
        classes=class_rows(section, entry, norms),
        against=[_against(section, entry, duel, norms) for duel in duels if entry in (duel.a, duel.b)],
        elsewhere=elsewhere,
    )


def curves(section: Section, entries: Sequence[Entry], norms: Sequence[str], *, seeds: bool = False) -> list[Chart]:
    """A chart of some entries for every norm with a bounded eps; with several, colours go by their order."""
    found = []
    for norm in norms:
        if norm not in section.bounded:
            continue
        lines = [
            Curve(
                index=entry.index if len(entries) == 1 else number,
                name=entry.name,
                n=entry.n,
                distances=[one["distance"].to_numpy(float) for one in section.nearest(entry, norm)],
                bound=bool(entry.notes[norm]),
                seeds=seeds,
            )
            for number, entry in enumerate(entries)
            if entry.n
        ]
        if lines:
            found.append(eps_chart(lines, norm, section.budgets[norm], section.levels))
    return found


def class_rows(section: Section, entry: Entry, norms: Sequence[str]) -> list[ClassRow]:
    """A row a class that has images, means over seeds."""
    judged = [reference(pairs).sort_values("index") for pairs in entry.models.values()]
    if not judged:
        return []
    labels = judged[0]["label"].to_numpy()
    clean = np.stack([one["clean_correct"].to_numpy(bool) for one in judged])
    worst = {norm: section.stands(entry, norm, section.reference(norm)) for norm in norms}
    return [
        ClassRow(
            name=class_name(section.classes, int(label)),
            n=int((labels == label).sum()),
            clean=_share(clean[:, labels == label]),
            worst={norm: _share(stands[:, labels == label]) for norm, stands in worst.items()},
        )
        for label in np.unique(labels)
    ]


def attackers(section: Section, entry: Entry, norm: str, eps: float) -> list[Attacker]:
    """A row an attack, most images first."""
    cases = section.worst(entry, norm, eps)
    rows = []
    for label in dict.fromkeys(label for case in cases for label in case.broken_by):
        records = [record for record in section.records[entry.anchor] if record.pair.meta["attack"] == label]
        own = [
            record for record in records if record.pair.meta["norm"] == norm and record.pair.meta["eps"] in (None, eps)
        ]
        meta = records[0].pair.meta
        hit = [(case.broken_by[label], case.alone[label], case.n) for case in cases if label in case.broken_by]
        rows.append(
            Attacker(
                attack=label,
                toolkit=str(meta.get("toolkit") or ""),
                family=str(meta.get("family") or ""),
                broken=mean(broken / n for broken, _, n in hit if n),
                alone=mean(alone / n for _, alone, n in hit if n),
                counts=(mean(broken for broken, _, _ in hit), mean(alone for _, alone, _ in hit)),
                met=[record.met for record in own if record.met is not None],
                forwards=mean(record.pair.meta.get("forwards") for record in own),
                backwards=mean(record.pair.meta.get("backwards") for record in own),
                seconds=mean(record.pair.meta.get("seconds") for record in own),
                rounding=mean(rounding(record.pair.samples, norm, eps) for record in own),
                problems=[problem for record in own if (problem := _problem(record, len(own)))],
                elsewhere="" if own else both([norm_name(one) for one in dict.fromkeys(_norms(records))]),
                anchor=own[0].anchor if own else "",
            )
        )
    return sorted(rows, key=lambda row: (-row.counts[0], -row.counts[1], row.attack))


def _norms(records: Sequence[Record]) -> list[str]:
    return [str(record.pair.meta["norm"]) for record in records]


def _problem(record: Record, seeds: int) -> str:
    words = [record.pair.meta["status"]] if record.failed else []
    words += [record.problem] if record.problem else []
    seed = f"seed {record.pair.meta['seed']}: " if seeds > 1 and words else ""
    return seed + ", ".join(dict.fromkeys(words))


def _view(section: Section, entry: Entry, norm: str) -> View:
    eps = section.reference(norm)
    damage = Damage(next(iter(entry.models.values())), norm, section.classes)
    return View(
        norm=norm,
        eps=eps,
        text=threat_text(norm, eps, section.levels),
        verdict=verdict(section, entry, norm),
        damage=damage,
        strips=damage.strips(eps),
        attackers=attackers(section, entry, norm, eps),
    )


def _clean(entry: Entry) -> Share | None:
    judged = [reference(pairs)["clean_correct"].to_numpy(bool) for pairs in entry.models.values()]
    return _share(np.stack(judged)) if judged and entry.n else None


def _share(values: Any) -> Share:
    """Mean of yes and no over (seeds, images), with Wilson's interval over the images at that mean."""
    n = values.shape[1]
    value = float(values.mean()) if n else float("nan")
    return (value, *wilson(value * n, n))


def _row(panel: Panel, entry: Entry) -> tuple[Mapping[str, Any], int] | None:
    """The entry's row of a ranking that it was measured for, and the models that have a rank there."""
    for _, rows in panel.rankings:
        for row in rows:
            if row["entry"] is entry and "n" in row:
                return row, sum(not other["note"] for other in rows)
    return None


def _against(
    section: Section, entry: Entry, duel: Duel, norms: Sequence[str]
) -> tuple[Entry, str, list[tuple[str, Contrast]]]:
    """The other entry, the page, and at every norm's reference eps the comparison from this entry's side."""
    other = duel.b if entry is duel.a else duel.a
    shared = [norm for norm in norms if other.attacked(norm)]
    found = []
    for norm in shared:
        eps = section.reference(norm)
        found.append((threat_text(norm, eps, section.levels), contrasted(section, entry, other, norm, eps)))
    return other, duel.page, found
