"""A made-up board: five models x ten attacks x two norms, two seeds, and everything that can go wrong."""

from __future__ import annotations

import html.parser
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from harness.metrics.pairs import DISTANCES, FLAGS, SAMPLE_COLUMNS, Board, Pair, by_model, nearest
from harness.schema.eps import limit
from harness.schema.models import Card, EpochLine, KnownModel
from harness.schema.pairs import Result
from harness.schema.probes import ProbeFacts

from .planted import planted

HOSTILE = "<script>alert('x')</script> | \"quoted\" & `ticked`"
BUDGETS = {"linf": (2 / 255, 8 / 255, 16 / 255), "l2": (0.5, 1.0)}
CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DEFENSES = (("standard", 0.3), ("fast-gradient", 0.8), ("pgd(eps=8/255)", 2.6), (HOSTILE, 1.4), ("gaussian-noise", 0.5))
FAMILIES = {
    "gradient": "one-step", "noise": "noise", "SquareAttack(max_iter=500)": "score", "HopSkipJump": "decision",
    "AutoProjectedGradientDescent": "iterated", "PGD(steps=40)": "iterated",
}  # fmt: skip
ATTACKS = (  # label, toolkit, access, kind, strength, forwards, backwards
    ("lbfgs(c=searched)", "gauntlet", "gradients", "minimal", 1.10, 184.2, 184.2),
    ("alpha", "gauntlet", "gradients", "minimal", 0.95, 31.0, 280.0),
    ("gradient", "gauntlet", "gradients", "budget", 0.60, 2.0, 1.0),
    ("noise", "gauntlet", "none", "budget", 0.03, 1.0, 0.0),
    ("AutoProjectedGradientDescent", "art", "gradients", "budget", 1.25, 1204.0, 1100.0),
    ("SquareAttack(max_iter=500)", "art", "scores", "budget", 0.80, 530.5, 0.0),
    ("HopSkipJump", "art", "decisions", "minimal", 0.70, 12345.0, 0.0),
    ("DeepFool", "foolbox", "gradients", "minimal", 0.90, 6.1, 55.4),
    ("PGD(steps=40)", "foolbox", "gradients", "budget", 1.15, 42.0, 40.0),
    ("DDN", "foolbox", "gradients", "minimal", 1.20, 101.0, 100.0),
)
FAILED_MODEL = "m-diverged"
URL = "http://127.0.0.1:5000/#/experiments/1/runs/{:032x}"
COMMAND = "gauntlet run quick --dataset mnist --model mlp-200-200 --defense '{}' --seeds {} --attack '{}'"


def frame(clean: Any, norm: str, distance: Any, flags: Mapping[str, Any] | None = None, **columns: Any) -> pd.DataFrame:
    """Samples from hand-made columns: ``distance`` is finite where the attack found a valid adversarial."""
    clean, distance = np.asarray(clean, bool), np.asarray(distance, float)
    n = len(clean)
    found = np.isfinite(distance) & clean
    values: dict[str, Any] = {
        "index": np.arange(n),
        "label": np.arange(n) % 10,
        "target": np.full(n, -1),
        "clean_pred": np.where(clean, np.arange(n) % 10, (np.arange(n) + 1) % 10),
        "clean_correct": clean,
        "attacked": clean,
        "adv_pred": np.where(found, (np.arange(n) + 3) % 10, np.where(clean, np.arange(n) % 10, -1)),
        "adversarial": found,
        "wrong_share": np.where(clean, found.astype(float), math.nan),
        "survives_rounding": found & (np.arange(n) % 5 != 2),
        "shard": np.zeros(n, int),
    }
    scale = {"l0": 40.0, "l1": 12.0, "l2": 1.0, "linf": 0.03, "rms": 1 / 28}
    for name in DISTANCES:
        values[name] = np.where(found, distance / scale[norm] * scale[name], math.nan)
    for flag in FLAGS:
        values[flag] = np.asarray((flags or {}).get(flag, np.zeros(n)), bool)
    return pd.DataFrame(values | columns)[list(SAMPLE_COLUMNS)]


def make_pair(samples: pd.DataFrame, gallery: Mapping[str, Any] | None = None, **meta: Any) -> Pair:
    """A pair with every key of a record, the given ones overridden."""
    base: dict[str, Any] = {
        "cell": "c0ffee", "model": "m0", "dataset": "mnist", "architecture": "mlp-200-200", "defense": "standard",
        "seed": 0, "attack": "gradient", "toolkit": "gauntlet", "access": "gradients", "kind": "budget",
        "norm": "linf", "eps": 8 / 255, "source": "", "n": len(samples), "batch": 100, "class_names": tuple(CLASSES),
        "forwards": 2.0, "backwards": 1.0, "seconds": 0.5, "status": "ok", "command": "gauntlet run quick",
        "versions": {"torch": "2.15.0"}, "git_commit": "0" * 40,
    }  # fmt: skip
    run = str(meta.pop("run_id", "")), str(meta.pop("run_url", ""))
    return Pair(Result(**base | meta), samples, gallery or {}, *run)


def _gallery(samples: pd.DataFrame, norm: str, rng: np.random.Generator) -> dict[str, Any]:
    kept = samples[samples["attacked"]].head(6)
    yy, xx = np.mgrid[0:28, 0:28]
    images, moved = [], []
    for record in kept.to_dict("records"):
        turn = record["label"] * 0.6
        ring = np.hypot(xx - 14 - 4 * np.cos(turn), (yy - 14) * (0.6 + 0.08 * record["label"]))
        image = np.clip(1.4 - np.abs(ring - 7) / 2.2, 0, 1)
        step = rng.choice([-1.0, 1.0], image.shape) if norm == "linf" else rng.normal(0, 1, image.shape)
        size = 0.05 if math.isnan(record["linf"]) else record["linf"]
        images.append(image)
        moved.append(np.clip(image + size * step / np.abs(step).max(), 0, 1))
    return {
        "index": kept["index"].to_numpy(), "label": kept["label"].to_numpy(),
        "clean_pred": kept["clean_pred"].to_numpy(), "adv_pred": kept["adv_pred"].to_numpy(),
        "x": np.asarray(images, np.float32)[:, None], "x_adv": np.asarray(moved, np.float32)[:, None],
    }  # fmt: skip


def _spoil(
    attack: str, defense: str, norm: str, seed: int, samples: pd.DataFrame
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The crashed cell (one seed of it) and the cell of an attack that lies."""
    if attack == "HopSkipJump" and defense == HOSTILE and norm == "l2" and seed == 1:
        error = f'Traceback (most recent call last):\n  File "a.py", line 1\nRuntimeError: {HOSTILE}'
        lost = samples.assign(
            adversarial=False, adv_pred=-1, crashed=samples["attacked"], **dict.fromkeys(DISTANCES, math.nan)
        )
        return lost, {"status": "crashed", "errors": (error,)}
    if attack == "DDN" and defense == "fast-gradient" and norm == "l2":
        bad = samples["attacked"] & (samples["index"] % 7 == 0)
        nan = samples["attacked"] & (samples["index"] % 11 == 5)
        lost = samples.assign(over_budget=bad, non_finite=nan, adversarial=samples["adversarial"] & ~bad & ~nan)
        lost.loc[bad | nan, list(DISTANCES)] = math.nan
        return lost, {"status": "invalid"}
    return samples, {}


def facts(pairs: Sequence[Pair], norm: str, eps: float, n: int = 40) -> dict[str, Any]:
    """What a probe finds on a model that hides nothing: its attack leaves what the battery leaves."""
    found = nearest(pairs, norm)
    right = found["distance"][found["stands"]].to_numpy(float)[:n]
    left = float((right > limit(eps)).mean())
    seen = {
        "probabilities": False, "detached": False, "inner_optimisation": False, "zero_gradient": 0.0,
        "non_finite_gradient": 0.0, "small_gradient": 0.0, "uphill": 1.0, "jumps": 0.0,
        "scale": {"0.05": left, "1": left, "20": left}, "unbounded": 0.0, "one_step": min(left + 0.2, 1.0),
        "steps": {"100": left, "200": left}, "rising": 0.01,
        "restarts": {"1": left, "2": left, "5": left}, "losses": {"ce": left, "dlr": left},
        "slopes": {
            "n": len(right), "float64": True, "error": {"clean": 1e-7, "boundary": 1e-7},
            "wrong": {"clean": 0.0, "boundary": 0.0}, "coarse": {"clean": 0.0, "boundary": 0.0},
        },
    }  # fmt: skip
    return {
        "norm": norm, "eps": eps, "n": len(right), "remedy": "", "seconds": 1.0, "forwards": 1, "backwards": 1,
        "stochastic": {"draws": 8, "labels": 0.0, "logits": 0.0}, "seen": {"raw": seen, "attacked": dict(seen)},
        "planted": planted(eps, norm=norm).model_dump(),
    }  # fmt: skip


def build_health(pairs: Sequence[Pair]) -> dict[str, dict[str, ProbeFacts]]:
    """Grades of every kind: standard A, pgd C (remedied), fast-gradient D in linf, gaussian-noise B; one not probed."""
    health: dict[str, dict[str, ProbeFacts]] = {}
    for key, own in by_model(pairs).items():
        defense = own[0].result.defense
        if defense == HOSTILE:
            continue
        health[key] = {}
        for norm, grid in BUDGETS.items():
            found = facts(own, norm, grid[len(grid) // 2])
            raw, attacked = found["seen"]["raw"], found["seen"]["attacked"]
            if defense == "pgd(eps=8/255)":
                found["remedy"] = "logits / 20"
                raw["zero_gradient"] = 0.6
            if defense == "gaussian-noise":
                attacked["rising"] = 0.2
            if defense == "fast-gradient" and norm == "linf":
                attacked["uphill"] = raw["uphill"] = 0.25
            health[key][norm] = ProbeFacts(**found)
    return health


def build_board(n: int = 120, seeds: int = 2) -> Board:
    """The board; the same values on every call."""
    pairs: list[Pair] = []
    models: dict[str, KnownModel] = {}
    for d, (defense, hardness) in enumerate(DEFENSES):
        for seed in range(seeds):
            rng = np.random.default_rng([d, seed])
            key = f"m{d}-{seed}"
            clean = rng.random(n) < 0.985 - 0.012 * d
            hard = rng.gamma(2.0, hardness / 2, n)
            history = tuple(
                EpochLine(
                    epoch=e, loss=2.2 * math.exp(-0.5 * e) + 0.03, accuracy=1 - 0.7 * math.exp(-0.5 * e),
                    validation_loss=math.nan, validation_accuracy=math.nan, seconds=1.0,
                ) for e in range(1, 11)
            )  # fmt: skip
            name = {"dataset": "mnist", "architecture": "mlp-200-200", "defense": defense, "seed": seed}
            models[key] = KnownModel(**name, card=Card(
                **name, sha256="", parameters=199210, epochs=10, seconds=21.5 + d, train_accuracy=0.998,
                test_accuracy=float(clean.mean()), history=history,
                declaration={"is": defense, "version": 1, "threat": {"norm": "linf", "eps": 0.0313}},
            ))  # fmt: skip
            for number, (attack, toolkit, access, kind, strength, forwards, backwards) in enumerate(ATTACKS):
                for norm, grid in BUDGETS.items():
                    scale = 0.03 if norm == "linf" else 1.0
                    needed = scale * hard / strength * rng.lognormal(0, 0.12, n)
                    for eps in [None] if kind == "minimal" else grid:
                        found = needed if eps is None else np.where(needed <= eps, eps * (1 - 1e-6), math.nan)
                        samples = frame(clean, norm, np.where(rng.random(n) < 0.02, math.nan, found))
                        samples, spoiled = _spoil(attack, defense, norm, seed, samples)
                        gallery = _gallery(samples, norm, rng) if seed == 0 and strength > 1 else None
                        index = len(pairs)
                        pairs.append(
                            make_pair(
                                samples, gallery, cell=f"{index:016x}", model=key, defense=defense, seed=seed,
                                attack=attack, toolkit=toolkit, access=access, kind=kind, norm=norm, eps=eps,
                                family=FAMILIES.get(attack, "minimum-norm"),
                                forwards=forwards, backwards=backwards, seconds=forwards * n / 3e4 + number / 100,
                                run_id=f"{index:032x}",
                                run_url=URL.format(index) if d != 1 else "javascript:alert(1)",
                                command=COMMAND.format(defense, seed, attack),
                                versions={"gauntlet": "0.1.0", "torch": "2.15.0", "python": "3.11.9"},
                                **spoiled,
                            )
                        )  # fmt: skip
    models[FAILED_MODEL] = KnownModel(
        dataset="mnist", architecture="lenet", defense="standard", seed=0, status="failed",
        error="Diverged: the loss is not finite in epoch 3",
    )  # fmt: skip
    missing = {FAILED_MODEL: [f"{attack[0]} ({norm})" for attack in ATTACKS for norm in BUDGETS]}
    return Board("quick", {"mnist": BUDGETS}, pairs, missing, models, build_health(pairs))


def cascade(board: Board) -> Board:
    """The board as a suite of cascades: each attack meets the images that the earlier ones in its norm left."""
    distance: dict[tuple[str, str], Any] = {}
    pairs = []
    for pair in board.pairs:
        result, samples = pair.result, pair.samples.copy()
        key = result.model, result.norm
        before = distance.setdefault(key, np.full(len(samples), math.inf))
        eps = min(BUDGETS[result.norm]) if result.eps is None else result.eps
        hidden = (before <= limit(eps)) | ~samples["attacked"].to_numpy()
        samples.loc[hidden, ["attacked", "adversarial", "survives_rounding", *FLAGS]] = False
        samples.loc[hidden, list(DISTANCES)] = math.nan
        found = np.where(samples["adversarial"], samples[result.norm], math.inf)
        distance[key] = np.minimum(before, found)
        pairs.append(Pair(result.model_copy(update={"cascade": True}), samples, {}, pair.run_id, pair.run_url))
    return replace(board, suite="cascade", pairs=pairs, health={})


def unseen(board: Board, n: int = 20) -> Board:
    """The board's models under transformations, which keep no eps."""
    rng = np.random.default_rng(0)
    models = {key: model for key, model in board.models.items() if model.status == "ok"}
    pairs = []
    for key, model in models.items():
        for attack, share in (("rotation(degrees=30)", 0.5), ("gaussian-noise(std=0.1)", 0.1)):
            found = np.where(rng.random(n) < share, rng.uniform(0.3, 0.9, n), math.nan)
            known = {name: getattr(model, name) for name in ("defense", "architecture", "seed")}
            pairs.append(
                make_pair(
                    frame(np.ones(n, bool), "linf", found), model=key, suite="unseen", attack=attack, norm="linf",
                    eps=1.0, access="none", family="transformation", **known,
                )
            )  # fmt: skip
    return Board("unseen", {"mnist": {"linf": (1.0,)}}, pairs, {}, models)


class Page(html.parser.HTMLParser):
    """What a browser would see: tags with their attributes, and text outside style and script."""

    VOID = frozenset({"meta", "link", "input", "img", "br", "wbr", "path", "line", "circle", "rect"})

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.text = ""
        self.cells: list[list[str]] = []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th"):
            self.cells[-1].append("")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data
            if {"td", "th"} & set(self.open):
                self.cells[-1][-1] += data

    def attributes(self, name: str) -> list[str]:
        return [attrs[name] for _, attrs in self.tags if name in attrs]

    def rows(self, *start: str) -> list[list[str]]:
        """Rows of all tables whose first cells begin so, each cell as one line of text."""
        flat = [[" ".join(cell.split()) for cell in row] for row in self.cells]
        return [row for row in flat if len(row) >= len(start) and all(map(str.startswith, row, start))]
