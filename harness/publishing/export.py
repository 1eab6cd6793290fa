"""Results in the formats of others: RobustBench's model zoo, and Every Eval Ever.

RobustBench (Croce et al. 2021, "RobustBench: a standardized adversarial robustness benchmark") keeps a JSON file for
each model (``model_info/DATASET/THREAT/NAME.json``, of the fields of ``ModelInfo`` in ``robustbench/utils.py``), and
asks who found a lower number for the adversarial images as one tensor (``.github/ISSUE_TEMPLATE``). Every Eval Ever
(https://github.com/evaleval/every_eval_ever) keeps a JSON file for each model and source by its ``eval.schema.json``.
"""

from __future__ import annotations

import io
import json
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from ..datasets.registry import Dataset
from ..errors import UserError
from ..leaderboard import leaderboard
from ..metrics.pairs import Board, Pair, WorstCase, reference, wilson, worst_case
from ..records import witnesses
from ..records.boards import boards_from_home
from ..records.home import Home, no_runs
from ..records.plans import read_plans
from ..schema.eps import eps_text, limit
from ..schema.models import KnownModel
from ..trust.grade import trust

FORMATS: Final = ("robustbench", "every-eval-ever")
THREATS: Final = {"linf": "Linf", "l2": "L2"}
"""RobustBench's threat models that have a norm."""

SCHEMA: Final = "0.3.0"
PROJECT: Final = "gauntlet-bench"


@dataclass(frozen=True)
class Paper:
    """What a claim says of the work behind a model, and nothing measures."""

    title: str = ""
    link: str = ""
    authors: str = ""
    venue: str = ""


@dataclass(frozen=True)
class Claim:
    """One model's worst case in one norm and eps.

    Attributes:
        note: Why it has no rank, "" if it has one.
    """

    board: Board
    model: str
    entry: KnownModel
    pairs: Sequence[Pair]
    norm: str
    eps: float
    worst: WorstCase
    note: str

    @property
    def name(self) -> str:
        """Of a file, made of what may be anything."""
        return _plain(f"{self.entry.defense}_{self.entry.architecture}_s{self.entry.seed}_{self.board.suite}")

    @property
    def clean(self) -> float:
        """Accuracy on the same images, unchanged."""
        return float(reference(self.pairs).columns["clean_correct"].mean())


def claims(home: Home) -> list[Claim]:
    """What a home, or a bundle, says of each of its models; of images with targets nothing: it is no robust accuracy.

    Raises:
        UserError: Nothing was run there, all of it with targets, or a file is damaged.
    """
    found = []
    boards = boards_from_home(home)
    for board in boards:
        if board.targeted:
            continue
        rows = leaderboard(board)
        for key, pairs in board.by_model.items():
            entry = board.models[key]
            mine = rows[(rows["defense"] == entry.defense) & (rows["architecture"] == entry.architecture)]
            notes = {(row["norm"], row["eps"]): row["note"] for row in mine.to_dict("records")}
            for norm, grid in board.budgets[entry.dataset].items():
                for eps in grid:
                    if (norm, eps) in notes:
                        worst = worst_case(pairs, norm, eps)
                        found.append(Claim(board, key, entry, pairs, norm, eps, worst, str(notes[norm, eps])))
    if not found and any(board.pairs for board in boards):
        raise UserError(f"all results in {home.path} are of images with targets, which are no robust accuracies")
    if not found:
        raise no_runs(home.path)
    return found


def robustbench(
    home: Home, data: Mapping[str, Dataset], paper: Paper, told: Callable[[str], None]
) -> Iterator[tuple[str, bytes]]:
    """Model-info files, tensors of adversarial images and filled-in forms, by path.

    Of each norm at the eps that defenses train at. A number is that of a whole battery and stands as ``external``;
    ``autoattack_acc`` is left out, for no number of ours is AutoAttack's.

    Args:
        home: Whose results.
        data: Data sets by name.
        paper: Stands in every file.
        told: Told of what a reader should know.

    Raises:
        UserError: A data set is missing, or an image in the home is none of its.
    """
    wanted = _reference(home)
    for claim in claims(home):
        if claim.norm not in THREATS or claim.eps != wanted.get((claim.board.suite, claim.entry.dataset, claim.norm)):
            continue
        dataset = claim.entry.dataset
        if dataset not in data:
            raise UserError(f"{dataset} is a data set of your own: name it with --dataset, as it was run with")
        images, broken = _adversarials(home, claim, data[dataset])
        proved = claim.clean - broken / claim.worst.n
        if round((proved - claim.worst.accuracy) * claim.worst.n) > 0:
            by_image, by_table = f"{proved:.2%} by the images that are kept", f"{claim.worst.accuracy:.2%} by tables"
            told(f"{claim.name}, {claim.norm}: {by_image}, {by_table}")
        whole = claim.worst.n == data[dataset].info.test_size
        base = f"{_plain(dataset)}/{THREATS[claim.norm]}"
        info = model_info(claim, paper, whole=whole)
        buffer = io.BytesIO()
        torch.save(images, buffer)
        yield f"model_info/{base}/{claim.name}.json", (json.dumps(info, indent=2) + "\n").encode()
        yield f"adversarial/{base}/{claim.name}.pt", buffer.getvalue()
        yield f"claims/{base}/{claim.name}.md", form(claim, info, f"adversarial/{base}/{claim.name}.pt", whole).encode()


def model_info(claim: Claim, paper: Paper, *, whole: bool) -> dict[str, Any]:
    """RobustBench's JSON of a model: accuracies in percent with two decimals, as text."""
    grade = trust(claim.board, claim.model, claim.norm)
    notes = [f"worst case of {len(claim.worst.broken_by)} attacks (gauntlet, suite {claim.board.suite})"]
    notes += [] if whole else [f"first {claim.worst.n} images of a stratified order, not the whole test set"]
    notes += [f"no rank: {claim.note}"] if claim.note else []
    remedy = getattr(claim.entry.card, "remedy", "") if claim.entry.card is not None else ""
    return {
        "link": paper.link,
        "name": paper.title or f"{claim.entry.defense}, {claim.entry.architecture}",
        "authors": paper.authors,
        "additional_data": False if claim.entry.card is not None and claim.entry.card.reference is None else None,
        "number_forward_passes": 1 if not remedy else None,
        "dataset": claim.entry.dataset,
        "venue": paper.venue or "Unpublished",
        "architecture": claim.entry.architecture,
        "eps": eps_text(claim.eps),
        "clean_acc": f"{100 * claim.clean:.2f}",
        "reported": f"{100 * claim.worst.accuracy:.2f}",
        "external": f"{100 * claim.worst.accuracy:.2f}",
        "footnote": "; ".join(notes),
        "unreliable": bool(claim.note) or (grade is not None and grade.grade == "D"),
    }


def form(claim: Claim, info: Mapping[str, Any], images: str, whole: bool) -> str:
    """Both forms that RobustBench takes a claim by, filled in."""
    attacks = ", ".join(sorted(claim.worst.broken_by))
    command = claim.pairs[0].result.command
    part = "" if whole else f" (of {claim.worst.n} images; RobustBench asks for all of the test set)"
    lines = [
        "# New model",
        "",
        f"- **Paper Title**: {info['name']}",
        f"- **Paper URL**: {info['link']}",
        f"- **Architecture**: {info['architecture']}",
        f"- **Threat Model**: {THREATS[claim.norm]}, eps = {info['eps']}",
        f"- **Clean accuracy**: {info['clean_acc']}%",
        f"- **Robust accuracy**: {info['external']}%",
        f"- **Evaluation method**: worst case of {attacks}; judged by gauntlet",
        f"- **Checkpoint and code**: models/{claim.model} of the home or bundle; `{command}`",
        "",
        "# New external evaluation",
        "",
        f"- **Model identifier(s):** {claim.name}",
        f"- **Leaderboard(s):** {info['dataset']}, {THREATS[claim.norm]}",
        f"- **Link to adversarial images:** {images}{part}",
        f"- **Robust accuracy:** {info['external']}%",
        f"- **Author(s):** {info['authors']}",
        f"- **Description of the method used:** worst case of {attacks}",
    ]
    return "\n".join(lines) + "\n"


def every_eval_ever(home: Home, *, by: str, relationship: str, at: str = "") -> Iterator[tuple[str, bytes]]:
    """A JSON file for each model by path, as the datastore keeps them. The same home makes the same bytes.

    Args:
        home: Whose results.
        by: Who measured, as an organization.
        relationship: Of who measured to the model: ``first_party``, ``third_party``, ``collaborative`` or ``other``.
        at: Where the results can be had, an address; "" for nowhere.
    """
    by_model: dict[tuple[str, str], list[Claim]] = {}
    for claim in claims(home):
        by_model.setdefault((claim.board.suite, claim.model), []).append(claim)
    for (suite, key), mine in by_model.items():
        entry = mine[0].entry
        results = [claim.pairs[0].result for claim in mine]
        made = max((pair.result.made for pair in mine[0].pairs), default="")
        stamp = str(int(datetime.fromisoformat(made).replace(tzinfo=UTC).timestamp())) if made else "0"
        benchmark, developer = _plain(f"gauntlet-{suite}-{entry.dataset}"), _plain(by)
        model = _plain(f"{entry.defense}_{entry.architecture}_s{entry.seed}")
        identity = f"{benchmark}/{developer}_{model}/{stamp}"
        document = {
            "schema_version": SCHEMA,
            "evaluation_id": identity,
            "retrieved_timestamp": stamp,
            "source_metadata": {
                "source_name": "gauntlet",
                "source_type": "evaluation_run",
                "source_organization_name": by,
                "evaluator_relationship": relationship,
                **({"source_organization_url": at} if at else {}),
            },
            "eval_library": {
                "name": "gauntlet",
                "version": _version(),
                "additional_details": {
                    "git_commit": results[0].git_commit,
                    **{name: str(found) for name, found in sorted(results[0].versions.items())},
                },
            },
            "model_info": {
                "name": f"{entry.defense} {entry.architecture} seed {entry.seed}",
                "id": f"{developer}/{model}",
                "developer": by,
                "additional_details": {
                    "deployment_type": "self_deployed",
                    "model_availability": "unknown",
                    "defense": entry.defense,
                    "architecture": entry.architecture,
                    "seed": str(entry.seed),
                    "gauntlet_key": key,
                },
            },
            "evaluation_results": [_clean(mine[0]), *map(_robust, mine)],
        }
        name = uuid.uuid5(uuid.NAMESPACE_URL, f"{identity}/{key}")
        text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
        yield f"data/{benchmark}/{developer}/{model}/{name}.json", text.encode()


def _clean(claim: Claim) -> dict[str, Any]:
    n = claim.worst.n
    return _result(
        claim,
        "clean accuracy",
        "Share of unchanged test images with the right label",
        claim.clean,
        wilson(round(claim.clean * n), n),
        {"metric_id": "accuracy"},
        {},
    )


def _robust(claim: Claim) -> dict[str, Any]:
    worst, where = claim.worst, f"{claim.norm} eps {eps_text(claim.eps)}"
    grade = trust(claim.board, claim.model, claim.norm)
    details = {
        "attacks": ", ".join(sorted(worst.broken_by)),
        "strongest_attack": worst.strongest or "none",
        "trust": "; ".join((grade.grade, *grade.reasons)) if grade is not None else "not graded",
        "command": claim.pairs[0].result.command or "from Python",
        **({"no_rank": claim.note} if claim.note else {}),
    }
    parameters = {"norm": claim.norm, "eps": claim.eps, "attacks": len(worst.broken_by)}
    what = f"Share of test images, clean errors included, that no attack broke within {where}: an upper bound"
    config = {"metric_id": f"robust_accuracy_{claim.norm}", "metric_parameters": parameters}
    return _result(claim, f"robust accuracy, {where}", what, worst.accuracy, (worst.low, worst.high), config, details)


def _result(
    claim: Claim,
    name: str,
    what: str,
    score: float,
    interval: tuple[float, float],
    config: Mapping[str, Any],
    details: Mapping[str, str],
) -> dict[str, Any]:
    bounds = {"lower": interval[0], "upper": interval[1], "confidence_level": 0.95, "method": "Wilson"}
    return {
        "evaluation_result_id": _plain(f"{claim.board.suite}-{name}"),
        "evaluation_name": f"gauntlet {claim.board.suite} on {claim.entry.dataset}: {name}",
        "source_data": {
            "dataset_name": claim.entry.dataset,
            "source_type": "other",
            "additional_details": {"part": "test", "images": str(claim.worst.n)},
        },
        "metric_config": {
            "evaluation_description": what,
            "metric_name": name,
            "metric_kind": "accuracy",
            "metric_unit": "proportion",
            "lower_is_better": False,
            "score_type": "continuous",
            "min_score": 0,
            "max_score": 1,
            **config,
        },
        "score_details": {
            "score": score,
            "uncertainty": {"confidence_interval": bounds, "num_samples": claim.worst.n},
            **({"details": dict(details)} if details else {}),
        },
    }


def _reference(home: Home) -> dict[tuple[str, str, str], float]:
    """The eps of each suite, data set and norm that a claim is of: the one that defenses train at."""
    found = {}
    for plan in read_plans(home):
        for dataset, norms in plan.budgets.items():
            for norm, grid in norms.items():
                wanted = plan.reference.get(dataset, {}).get(norm, 0.0)
                found[plan.suite, dataset, norm] = min((eps for eps in grid if eps >= wanted), default=max(grid))
    return found


def _adversarials(home: Home, claim: Claim, data: Dataset) -> tuple[Tensor, int]:
    """Judged images in the order of the test set, float32 (n, C, H, W), broken where one is kept; how many are."""
    index = np.sort(reference(claim.pairs).columns["index"])
    order, (x, _) = data.test_sample(len(index))
    if sorted(order.tolist()) != index.tolist():
        raise UserError(f"the images of {claim.entry.dataset} in {home.path} are not those of the data set here")
    images = x[torch.argsort(order)].clone()
    row = {place: at for at, place in enumerate(index.tolist())}
    nearest: dict[int, float] = {}
    for path in witnesses.tables(home, claim.model):
        table, _ = witnesses.read_table(path)
        for at in np.flatnonzero(table[claim.norm] <= limit(claim.eps)).tolist():
            place, distance = int(table["index"][at]), float(table[claim.norm][at])
            if place in row and distance < nearest.get(place, np.inf):
                nearest[place] = distance
                images[row[place]] = torch.from_numpy(table["x_adv"][at].astype(np.float32))
    return images, len(nearest)


def _version() -> str:
    try:
        return version(PROJECT)
    except PackageNotFoundError:
        return "unknown"


def _plain(text: str) -> str:
    """A part of a path: letters, digits and ``_ - =``."""
    kept = "".join(mark if (mark.isalnum() and mark.isascii()) or mark in "_-=" else "-" for mark in text)
    return "-".join(filter(None, kept.split("-")))[:120] or "unnamed"
