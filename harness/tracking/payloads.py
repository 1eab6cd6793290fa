"""Metrics, curves and tables of tracked runs, from records alone. Imports no MLflow."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import numpy as np

from ..metrics.certificates import Band
from ..metrics.pairs import Board, Pair, nearest, pair_rows, worst_case
from ..metrics.pairs import curve as accuracy_curve
from ..schema.base import Cost
from ..schema.eps import eps_text
from ..schema.goals import UNTARGETED, measured
from ..schema.models import ModelName
from ..schema.probes import ProbeFacts

if TYPE_CHECKING:
    import pandas as pd

WORST: Final = "worst"
"""What of a threat's metrics is that of all attacks together."""

NORMS: Final = ("linf", "l2", "l1", "l0")
"""In the order of the report."""

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
    board: Board,
    reference: Mapping[str, float],
    *,
    whole: bool,
    doubted: Collection[str] = (),
) -> dict[str, float]:
    """Metrics of a model's run and of its MLflow model: robust accuracies by suite and threat, and scores to sort by.

    Args:
        pairs: The model's.
        rows: Its rows of :func:`harness.metrics.pairs.pair_rows`.
        board: Of the suite.
        reference: Norm to the eps that defenses train at: a score is the worst case there.
        whole: Whether the whole battery ran well; else there is no worst case.
        doubted: Norms that have no score, as the model is not to be believed there.
    """
    suite, budgets = board.suite, board.budgets[pairs[0].result.dataset]
    norms = [norm for norm in dict.fromkeys((*NORMS, *budgets)) if norm in budgets]
    cases = {(norm, eps): worst_case(pairs, norm, eps) for norm in norms for eps in budgets[norm] if whole}
    values: dict[str, float] = {}
    for norm in norms if whole else ():
        if norm not in doubted:
            wanted = min((eps for eps in budgets[norm] if eps >= reference.get(norm, 0.0)), default=max(budgets[norm]))
            values[f"score/{norm} {suite}"] = cases[norm, wanted].accuracy
    values[f"score/clean {suite}"] = pairs[0].summary["clean_accuracy"]
    values |= {f"{WORST} {norm} {eps:g} {suite}": case.accuracy for (norm, eps), case in cases.items()}
    values |= {f"success_on_correct {norm} {eps:g} {suite}": case.success for (norm, eps), case in cases.items()}
    for row in sorted(rows.to_dict("records"), key=lambda row: norms.index(row["norm"])):
        there = {(one["attack"], one["source"]) for one in rows.to_dict("records") if one["norm"] == row["norm"]}
        name = short(row["attack"], row["source"], there)
        values[f"{name} {row['norm']} {row['eps']:g} {suite}"] = row["robust_accuracy"]
    values |= {f"cost/{name}": sum(getattr(pair.result, name) for pair in pairs) for name in Cost.model_fields}
    return {mlflow_name(name): value for name, value in values.items()}


def short(attack: str, source: str, labels: Collection[tuple[str, str]]) -> str:
    """An attack's label without its settings and without its source, unless others differ from it in these alone."""
    base = attack.partition("(")[0]
    same = [(label, of) for label, of in labels if label.partition("(")[0] == base]
    name = base if len({label for label, _ in same}) == 1 else attack
    return f"{name} from {source}" if source and len({of for _, of in same}) > 1 else name


_NORMS: Final = "l0|l1|l2|linf|rms"


def is_judgement(name: str) -> bool:
    """Whether a metric says how well a model stands: a score, an accuracy under attack, a certificate."""
    return re.fullmatch(rf"score/(clean|{_NORMS}) .+|.+ ({_NORMS}) [^ ]+ .+|(certified|planted).*", name) is not None


def sort_key(names: Iterable[str]) -> str:
    """The metric that models are sorted by: a score in the norm that the report shows first; "" without any."""
    found = [name for name in names if name.startswith("score/") and is_judgement(name)]
    return min(found, key=lambda name: ((*NORMS, name[6:].split()[0]).index(name[6:].split()[0]), name), default="")


def stale(known: Iterable[str], values: Iterable[str], suite: str) -> list[str]:
    """Metrics of a suite that a run carries and that no longer hold: a model loses its worst case, say."""
    of = re.compile(rf"(score/(clean|{_NORMS})|.+ ({_NORMS}) \S+) {re.escape(mlflow_name(suite))}")
    return sorted(name for name in {*known} - {*values} if of.fullmatch(name))


def model_name(entry: ModelName) -> str:
    """Name of a model's run: defense, architecture and seed; the data set has columns of its own."""
    return f"{entry.defense} {entry.architecture} seed {entry.seed}"


def logged_name(entry: ModelName) -> str:
    """The same as a name that MLflow takes for a model: it takes none of its own separators, and no decimal point."""
    plain = str.maketrans({".": "\u00b7", "/": "\u2215", ":": " ", "%": " ", '"': " ", "'": " "})
    return model_name(entry).translate(plain)[:250]


def images_digest(pair: Pair) -> str:
    """Digest of the images that a pair was judged on: their positions in the test set, and their labels."""
    columns = np.stack([pair.columns["index"], pair.columns["label"]]).astype("<i8")
    return hashlib.sha256(columns.tobytes()).hexdigest()[:16]


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
        [f"worst case, {name.removeprefix(f'{WORST} ')}", f"{value:.1%}"]
        for name, value in values.items()
        if name.startswith(f"{WORST} ")
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


def ui_links(server: str, experiment: str, sort: str = "") -> dict[str, str]:
    """Addresses in the MLflow UI where models stand against attacks, the best last: charts and tables of runs, models.

    Sorted by a metric and filtered to models, the UI shows model runs side by side; by itself it folds them away under
    the run of their command.

    Args:
        server: Its address.
        experiment: Its id of the experiment.
        sort: Metric to sort by, "" for none.
    """
    order = f"&orderByKey={quote(f'metrics.`{sort}`', safe='')}&orderByAsc=false" if sort else ""
    base = f"{server.rstrip('/')}/#/experiments/{experiment}"
    runs = f"{base}/runs?workflowType=machine_learning&searchFilter={quote(_MODELS)}{order}"
    return {
        "charts": f"{runs}&compareRunsMode=CHART",
        "table of runs": f"{runs}&compareRunsMode=ARTIFACT",
        "models": f"{base}/models?workflowType=machine_learning&viewMode=CHART",
    }


def mlflow_name(text: str) -> str:
    """A name MLflow takes: letters, digits and ``_ - . : / space``."""
    plain = text.replace("=", ":").replace("(", " ").replace(")", "").replace(",", "")
    return re.sub(r"[^\w\-. :/]", "_", plain)[:240]


def reproduce_note(command: str) -> str:
    """Description of a run in the UI, as Markdown."""
    return f"Reproduce with\n\n    {command}\n"
