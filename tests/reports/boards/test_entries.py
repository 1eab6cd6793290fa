"""Colours and short names of what tables and charts show."""

from __future__ import annotations

import dataclasses

from harness.leaderboard import leaderboard
from harness.metrics.pairs import Board
from reports.boards.curves import distinct
from reports.boards.rows import Column
from reports.boards.section import sections
from reports.drawing.html import PALETTE
from tests.helpers.report import build_board


def test_a_model_has_one_colour_in_every_section() -> None:
    first = build_board()
    models = dict(reversed(list(first.models.items())))
    second: Board = dataclasses.replace(first, suite="other", pairs=list(reversed(first.pairs)), models=models)
    boards = [first, second]
    one, other = sections(boards, [leaderboard(each) for each in boards])
    colours = {(entry.architecture, entry.defense): entry.colour for entry in one.entries}
    assert len(set(colours.values())) == len(colours) > 3
    assert {(entry.architecture, entry.defense): entry.colour for entry in other.entries} == colours
    assert [entry.defense for entry in other.entries] != [entry.defense for entry in one.entries]


def test_two_models_beside_each_other_never_look_alike() -> None:
    section = sections([build_board()], [leaderboard(build_board())])[0]
    a, b = section.entries[:2]
    assert distinct([a, b]) == [a.colour, b.colour]
    same = dataclasses.replace(b, colour=a.colour + PALETTE)
    assert distinct([a, same]) == [a.colour, a.colour + 1]


def test_an_attack_is_shown_without_its_settings_unless_they_tell_it_apart() -> None:
    panel = sections([build_board()], [leaderboard(build_board())])[0].panels[0]
    columns = [Column(name, "", "art", False) for name in ("pgd(steps=5)", "pgd(steps=9)", "square(queries=3)")]
    columns.append(Column("transfer(seed=1)", "lenet standard seed 1", "art", False))
    panel = dataclasses.replace(panel, columns=columns)
    shown = [panel.short(column) for column in columns]
    assert shown == ["pgd(steps=5)", "pgd(steps=9)", "square", "transfer from lenet standard seed 1"]
