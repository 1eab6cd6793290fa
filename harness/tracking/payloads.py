"""Metrics, curves and tables of tracked runs, from records alone. Imports no MLflow."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from ..metrics.certificates import Band
from ..metrics.pairs import Board, Pair, nearest, pair_rows, worst_case
from ..metrics.pairs import curve as accuracy_curve
from ..schema.base import Cost
from ..schema.eps import eps_text
from ..schema.goals import UNTARGETED, measured
from ..schema.probes import ProbeFacts

if TYPE_CHECKING:
    import pandas as pd

_MODELS: Final = "tags.`gauntlet.kind` = 'model'"

CURVE_POINTS: Final = 25
"""Points of the robust-accuracy-over-eps curve, from 0 to one and a half times the largest budget."""

EPS_STEPS: Final = 100_000
"""Steps of that curve's axis in MLflow, whose steps are whole numbers, for eps = 1."""


def pair_metrics(pair: Pair, budgets: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Metrics of a pair's run."""
    result = pair.result
    values = dict(pair.summary)
    if result.failed:
        del values["success_rate"]
    values |= {f"cost/{name}": getattr(result, name) for name in Cost.model_fields}
    values |= {f"harvest/{name}": float(count) for name, count in dict(result.harvest or ()).items()}
    board = Board(suite="", budgets={result.dataset: budgets}, pairs=[pair])
    left = left_metric(result.goal)
    for row in pair_rows(board).to_dict("records"):
        where = f"{row['norm']} {row['eps']:g}"
        values[f"{left}/{where}"] = row["robust_accuracy"]
        values[f"{left}_low/{where}"] = row["robust_accuracy_low"]
        values[f"{left}_high/{where}"] = row["robust_accuracy_high"]
        values[f"success_on_correct/{where}"] = row["success_on_correct"]
    return values


def left_metric(goal: str) -> str:
    """Name of the metric for the share of images that stand: with targets it is no robust accuracy."""
    return "robust_accuracy" if goal == UNTARGETED else "not_taken_for_target"


def of_goal(goal: str, values: Mapping[str, float]) -> dict[str, float]:
    """Metrics of a model's run, which all of its suites share: those of a targeted one under its goal."""
    return dict(values) if goal == UNTARGETED else {mlflow_name(f"{goal}/{name}"): v for name, v in values.items()}


def curve_points(pair: Pair, budgets: Mapping[str, Sequence[float]]) -> list[tuple[float, float]]:
    """Robust accuracy over eps of one pair: a budget attack has looked at no eps but its own, and at 0."""
    norm, eps = pair.result.norm, pair.result.eps
    if pair.result.failed or pair.result.cascade:
        return []
    top = 1.5 * max(budgets[norm])
    grid = [top * step / (CURVE_POINTS - 1) for step in range(CURVE_POINTS)] if eps is None else sorted({0.0, eps})
    values = accuracy_curve(nearest([pair], norm)["distance"], grid)
    return [(eps, float(value)) for eps, value in zip(grid, values, strict=True)]


def model_metrics(
    pairs: Sequence[Pair],
    rows: pd.DataFrame,
    budgets: Mapping[str, Sequence[float]],
    reference: Mapping[str, float],
    *,
    whole: bool,
) -> dict[str, float]:
    """Metrics of a model's run; a worst case only if the whole battery ran well."""
    values: dict[str, float] = {"score/clean": pairs[0].summary["clean_accuracy"]}
    for row in rows.to_dict("records"):
        source = f" from {row['source']}" if row["source"] else ""
        values[mlflow_name(f"acc/{row['attack']}{source} {row['norm']} {row['eps']:g}")] = row["robust_accuracy"]
    if whole:
        scores = []
        for norm, grid in budgets.items():
            for eps in grid:
                case = worst_case(pairs, norm, eps)
                values[f"worst/{norm} {eps:g}"] = case.accuracy
                values[f"success_on_correct/{norm} {eps:g}"] = case.success
            wanted = min((eps for eps in grid if eps >= reference.get(norm, 0.0)), default=max(grid))
            scores.append(values[f"worst/{norm} {wanted:g}"])
        values["score/worst_case"] = min(scores)
    return values | {f"cost/{name}": sum(getattr(pair.result, name) for pair in pairs) for name in Cost.model_fields}


def certificate_metrics(bands: Sequence[Band]) -> dict[str, float]:
    """What is proved to stand of a model, what no attack broke of the same images, and how many those are."""
    values: dict[str, float] = {}
    for one in bands:
        where = f"{one.norm} {one.eps:g}"
        values |= {f"certified/{where}": one.certified, f"certified_attacked/{where}": one.attacked}
        values[f"certified_n/{one.norm}"] = float(one.n)
    return values


def planted_metrics(facts: Mapping[str, ProbeFacts]) -> dict[str, float]:
    """Shares of planted adversarials that a model's attacks found, by norm; see :mod:`harness.trust.planting`."""
    known = [found.planted for found in facts.values() if found.planted is not None and found.planted.asked]
    values: dict[str, float] = {}
    for planted in known:
        for side in ("gradients", "black_box"):
            if (share := planted.share(side)) is not None:
                values[f"planted/{side} {planted.norm} {planted.eps:g}"] = share
    return values


def attack_table(rows: pd.DataFrame, values: Mapping[str, float], goal: str = UNTARGETED) -> dict[str, Any]:
    """A model's attacks as an MLflow table.

    The UI's comparison groups by the first column and compares the second: attacks against models as it stands.
    """
    worst = [
        [f"worst case, {name.removeprefix('worst/')}", f"{value:.1%}"]
        for name, value in values.items()
        if name.startswith("worst/")
    ]
    for name, value in values.items():
        if name.startswith("certified/") and math.isfinite(value):
            where = name.removeprefix("certified/")
            attacked, n = values[f"certified_attacked/{where}"], values[f"certified_n/{where.partition(' ')[0]}"]
            worst.append([f"certified ... attacked, {where}, first {n:g} images", f"{value:.1%} ... {attacked:.1%}"])
    data = [row + [""] * 5 for row in worst]
    for row in rows.to_dict("records"):
        share = f"{row['robust_accuracy']:.1%}" if math.isfinite(row["robust_accuracy"]) else row["status"]
        where = f"{row['norm']} {eps_text(row['eps'])}"
        data.append([f"{where}: {row['attack']}", share, row["toolkit"], row["status"], row["n"], row["invalid"]])
        data[-1].append(round(row["seconds"], 3))
    columns = ["attack", measured(goal), "toolkit", "status", "images", "invalid", "seconds"]
    return {"columns": columns, "data": data}


def ui_links(server: str, experiment: str) -> dict[str, str]:
    """Addresses in the MLflow UI where models stand against attacks: as charts, and as a table.

    Sorted by a metric and filtered to models, the UI shows model runs side by side; by itself it folds them away under
    the run of their command.
    """
    where = f"searchFilter={quote(_MODELS)}&orderByKey={quote('metrics.`score/worst_case`', safe='')}&orderByAsc=false"
    base = f"{server.rstrip('/')}/#/experiments/{experiment}/runs?workflowType=machine_learning&{where}"
    return {"charts": f"{base}&compareRunsMode=CHART", "table": f"{base}&compareRunsMode=ARTIFACT"}


def mlflow_name(text: str) -> str:
    """A name MLflow takes: letters, digits and ``_ - . : / space``."""
    plain = text.replace("=", ":").replace("(", " ").replace(")", "").replace(",", "")
    return re.sub(r"[^\w\-. :/]", "_", plain)[:240]


def reproduce_note(command: str) -> str:
    """Description of a run in the UI, as Markdown."""
    return f"Reproduce with\n\n    {command}\n"
