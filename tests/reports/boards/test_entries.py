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


def test_one_step_that_beats_an_iterated_attack_is_said_and_nothing_else() -> None:
    board = build_board(n=40, seeds=1)
    (section,) = sections([board], [leaderboard(board)])
    assert all(panel.beaten == [] for panel in section.panels)  # but for one or two images, which may be chance
    other = {"gradient": "iterated", "PGD(steps=40)": "one-step"}
    pairs = [
        dataclasses.replace(one, result=one.result.model_copy(update={"family": family}))
        if (family := other.get(one.result.attack))
        else one
        for one in board.pairs
    ]
    swapped = dataclasses.replace(board, pairs=pairs)
    (section,) = sections([swapped], [leaderboard(swapped)])
    panel = section.panel("linf", section.reference("linf"))
    found = {one.entry.defense: one for one in panel.beaten}
    row = next(row for row in panel.heat if row.entry.defense == "fast-gradient")
    cells = {column.attack: cell.value for column, cell in zip(panel.columns, row.cells, strict=True)}
    assert found["fast-gradient"].step == "PGD(steps=40)"
    assert found["fast-gradient"].left == cells["PGD(steps=40)"] < cells["gradient"]
    assert found["fast-gradient"].iterated == [f"gradient ({100 * cells['gradient']:.1f} %)"]


def test_attacks_that_make_steps_in_curves_are_those_with_an_eps_of_their_own() -> None:
    (section,) = sections([build_board()], [leaderboard(build_board())])
    assert section.budgeted == ["AutoProjectedGradientDescent", "PGD", "SquareAttack", "gradient"]
