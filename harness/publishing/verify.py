"""Check a bundle's numbers without attacking: digests, counts, intervals and ranks, witnesses and certificates.

That an image breaks a model is proved by the image; that none does, by a bound. So an accuracy is at most what is left
when all witnesses that the referee agrees to are counted, and at least what is certified. No code of the bundle is run:
its weights are tensors, and its declarations name what is registered here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from torch import Tensor

from .. import identity
from ..certify.calls import Uncovered
from ..datasets.registry import Dataset
from ..determinism import full_float32
from ..errors import UserError, describe
from ..judging.certificates import alpha_of, refuted
from ..leaderboard import contradictions
from ..metrics.pairs import DISTANCES, Board, Pair, nearest, worst_case
from ..planning.declared import NotHere, model_spec
from ..planning.specs import ModelSpec
from ..records import witnesses
from ..records.boards import boards_from_home
from ..records.checkpoints import read_card
from ..records.files import read_record
from ..records.home import Home
from ..records.plans import read_plans
from ..records.witnesses import Rows
from ..schema.bundles import ImageHashes, Manifest, Numbers
from ..schema.certificates import CertificateFacts
from ..schema.eps import limit
from ..schema.models import ModelEntry
from ..training.defense import Defense
from ..victims.victim import Victim
from .judging import Asked, referee
from .publish import NUMBERS, digest, numbers
from .verification import Proved, Verification, check_manifest, within

CLOSE: Final = 1e-9
"""Relative difference of distances that are the same: sums over pixels may be taken in another order elsewhere."""

_SHOWN: Final = 3


def verify(
    folder: Path,
    data: Mapping[str, Dataset],
    defenses: Mapping[str, type[Defense]],
    brought: Mapping[str, ModelSpec],
    *,
    device: str = "cpu",
    expected: str = "",
) -> Verification:
    """Verify a bundle that :func:`harness.publishing.archive.opened` gave.

    Args:
        folder: The bundle.
        data: Data sets, by name, as they lie here.
        defenses: Those that are known here, by name.
        brought: Models of users' own that the caller gave, by key.
        device: Where models are asked.
        expected: SHA-256 that the manifest must have; "" takes any.
    """
    done = Verification()
    manifest = check_manifest(folder, done, expected)
    if manifest is None or done.problems:
        return done  # nothing is made of what is not what was published
    try:
        _Bundle(folder, manifest, data, defenses, brought, device, done).run()
    except UserError as error:
        done.problems.append(str(error))
    except Exception as error:  # a stranger's records can be wrong in ways that nobody thought of
        done.problems.append(f"the bundle cannot be read ({describe(error)})")
    return done


class _Bundle:
    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        data: Mapping[str, Dataset],
        defenses: Mapping[str, type[Defense]],
        brought: Mapping[str, ModelSpec],
        device: str,
        done: Verification,
    ) -> None:
        self._home, self._manifest, self._data = Home(folder), manifest, data
        self._defenses, self._brought, self._device, self._done = defenses, brought, device, done
        self._entries: dict[str, ModelEntry] = {}

    def _say(self, text: str) -> None:
        self._done.problems.append(within(text, self._home.path))

    def run(self) -> None:
        full_float32()
        plans = read_plans(self._home)
        self._entries = {model.model: model for plan in plans for model in plan.models}
        boards = boards_from_home(self._home, spoiled=lambda _, error: self._say(str(error)))
        self._compare(boards)
        for suite in sorted({board.suite for board in boards if board.targeted}):
            self._done.notes.append(f"{suite}: numbers of images with targets are compared, and not judged again")
        boards = [board for board in boards if not board.targeted]
        for name, place in self._manifest.images.items():
            self._images(name, place)
        for model in sorted({key for board in boards for key in board.by_model}):
            self._model(model, [board for board in boards if model in board.by_model])

    def _compare(self, boards: Sequence[Board]) -> None:
        """What is claimed against what the tables say."""
        told = read_record(self._home.path / NUMBERS, Numbers, "the numbers")
        made = numbers(boards)
        for suite in sorted({*told.suites, *made.suites}):
            mine, theirs = made.suites.get(suite, ()), told.suites.get(suite, ())
            if len(mine) != len(theirs):
                self._say(f"{NUMBERS}: {len(theirs)} rows of {suite}, and the tables make {len(mine)}")
                continue
            for a, b in zip(mine, theirs, strict=True):
                for name in sorted({*a, *b}):
                    if not _same(a.get(name), b.get(name)):
                        who = f"{a.get('architecture')} {a.get('defense')} ({a.get('norm')} {a.get('eps')})"
                        self._say(f"{NUMBERS}: {name} of {who} is {b.get(name)}, and the tables make {a.get(name)}")

    def _images(self, name: str, place: str) -> None:
        """The images here against those that were judged."""
        if place not in self._manifest.files:
            self._say(f"the manifest does not list {place}")
            return
        if name not in self._data:
            self._done.lacking.append(f"the data set {name} is not here: give --data-root, or your own with --dataset")
            return
        told = read_record(self._home.path / place, ImageHashes)
        if told.dataset != name or not told.index:
            self._say(f"{place} is not of {name}")
            return
        index, (x, y) = self._sample(name, len(told.index))
        if index.tolist() != list(told.index) or y.tolist() != list(told.labels):
            self._say(f"{place}: positions or labels are not those of {name} here")
        elif wrong := sum(digest(image) != sha for image, sha in zip(x, told.sha256, strict=True)):
            self._say(f"{place}: {wrong} of {len(x)} images of {name} are others here")

    def _sample(self, name: str, n: int) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        index, (x, y) = self._data[name].test_sample(n)
        return index, (x, y)

    # -- one model -------------------------------------------------------------------------------------------

    def _model(self, key: str, boards: Sequence[Board]) -> None:
        entry = self._entries[key]
        pairs = {pair.result.cell: pair for board in boards for pair in board.by_model[key]}
        pairs = {cell: pair for cell, pair in pairs.items() if pair.result.part == "test"}
        self._done.passes += sum(
            (p.result.forwards + p.result.backwards) * int(p.columns["attacked"].sum()) for p in pairs.values()
        )
        if entry.dataset not in self._data:
            return  # that was said of the images
        try:
            spec = model_spec(entry.declaration, self._defenses, self._brought)
            if spec.key != key:
                raise UserError("its declaration is that of another model")
            asked = Asked(referee(self._home, spec, self._data[entry.dataset].info, self._device))
        except UserError as error:
            where = self._manifest.addresses.get(key)
            more = f"; its weights are at {where}, to be put at models/{key}/weights.safetensors" if where else ""
            text = within(f"{_name(entry)} cannot be judged here: {error}{more}", self._home.path)
            elsewhere = bool(where) and not (self._home.model(key) / "weights.safetensors").exists()
            (self._done.lacking if elsewhere or isinstance(error, NotHere) else self._done.problems).append(text)
            return
        for pair in pairs.values():
            self._pair(pair)
        n = max(pair.n for pair in pairs.values())
        index, (x, y) = self._sample(entry.dataset, n)
        clean = self._clean(asked, pairs, index, x, y)
        proved = (facts for board in boards for facts in board.certificates.get(key, {}).items())
        once = {(norm, facts.model_dump_json()): (norm, facts) for norm, facts in proved}  # suites may share one
        self._certified(entry, spec, asked.victim, once.values())
        broken = self._witnessed(key, asked, pairs, index, x, y)
        for board in boards:
            for line in contradictions(board, key):
                self._say(f"{_name(entry)}: {line}")
            mine = [pair for pair in board.by_model[key] if pair.result.part == "test"]
            if mine:
                self._prove(board, entry, mine, index.numpy(), clean, broken)
        self._done.models += 1
        self._done.images += asked.images

    def _certified(
        self, entry: ModelEntry, spec: ModelSpec, victim: Victim, proved: Iterable[tuple[str, CertificateFacts]]
    ) -> None:
        """Certificates computed again, in the order in which they are said to be of the data set's images."""
        for norm, facts in proved:
            text = f"{_name(entry)}: certificates in {norm}"
            index, (x, y) = self._sample(entry.dataset, max(1, len(facts.index)))
            if facts.norm != norm or index[: len(facts.index)].tolist() != list(facts.index):
                self._say(f"{text} are of other images than those here")
                continue
            if facts.alpha != alpha_of(spec, victim.model):
                self._say(f"{text} are said to be by draws, or not to be, and the model makes others")
                continue
            self._done.certificates += 0 if facts.alpha is not None else sum(sum(one.certified) for one in facts.levels)
            try:
                wrong = refuted(victim.model, facts, x.to(victim.device), y.to(victim.device))
            except Uncovered as error:
                self._say(f"{text} cannot be computed here: {error}")
                continue
            for eps, n in wrong.items():
                self._say(f"{text}: {n} images are not certified here at {eps:.6g}, as the bundle says")
            if facts.alpha is not None:
                self._done.notes.append(f"{text} are by draws, and not computed again")

    def _pair(self, pair: Pair) -> None:
        """What a record says of itself."""
        result = pair.result
        if result.declaration and identity.key_of(result.declaration) != result.cell:
            self._say(f"cells/{result.cell}/result.json: its declaration is that of another pair")
        card = read_card(self._home.model(result.model) / "card.json")
        if result.weights.get(result.model, card.sha256) != card.sha256:
            self._say(f"cells/{result.cell}/result.json: it was measured with other weights of its model")

    def _clean(
        self, asked: Asked, pairs: Mapping[str, Pair], index: Tensor, x: Tensor, y: Tensor
    ) -> npt.NDArray[np.bool_]:
        """Which clean images the model gets right here; tables that say otherwise are named."""
        right = np.zeros(len(index), bool)
        for cell, pair in pairs.items():
            n, columns = pair.n, pair.columns
            if columns["index"].tolist() != index[:n].tolist() or columns["label"].tolist() != y[:n].tolist():
                self._say(f"cells/{cell}: positions or labels are not those of the data set here")
                continue
            labels = asked.clean(x[:n], y[:n], pair.result.batch or n)
            if wrong := int((labels != columns["clean_pred"]).sum()):
                self._say(f"cells/{cell}: the model gives {wrong} of {n} clean images other labels here")
            correct = labels == y[:n].numpy()
            if (correct != columns["clean_correct"]).any():
                self._say(f"cells/{cell}: its clean images are not right and wrong as it says")
            right[:n] |= correct
        return right

    def _witnessed(
        self, key: str, asked: Asked, pairs: Mapping[str, Pair], index: Tensor, x: Tensor, y: Tensor
    ) -> dict[str, npt.NDArray[np.float64]]:
        """By norm the smallest distance at which a witness breaks each image; inf where none does."""
        position = {place: row for row, place in enumerate(index.tolist())}
        nearby = {name: np.full(len(index), np.inf) for name in DISTANCES}
        for name, rows in self._rows(key, pairs):
            known = np.array([place in position for place in rows["index"].tolist()], bool)
            if not known.all() or tuple(rows["x_adv"].shape[1:]) != tuple(x.shape[1:]):
                self._say(f"{name}: it holds images that were not judged")
                continue
            at = np.array([position[place] for place in rows["index"].tolist()], np.int64)
            found = asked.judged(rows, x[at], y[at])
            good = found["adv_pred"] >= 0
            self._done.witnesses += int(good.sum())
            if not good.all():
                self._say(f"{name}: {int((~good).sum())} of {len(good)} images do not break the model here")
            for norm in DISTANCES:
                np.minimum.at(nearby[norm], at[good], found[norm][good])
            self._tables(name, rows, found, good, pairs)
        return nearby

    def _rows(self, key: str, pairs: Mapping[str, Pair]) -> Iterator[tuple[str, Rows]]:
        """Witnesses of a model, file by file: together they may not fit into memory."""
        card = read_card(self._home.model(key) / "card.json")
        for path in witnesses.tables(self._home, key):
            if path.stem.isdigit():
                rows, facts = witnesses.read_table(path)
                if facts.weights != card.sha256:
                    self._say(f"{path}: its images are of other weights of the model")
                yield f"witnesses/{key}/{path.name}", rows
        for cell, pair in pairs.items():
            if (own := witnesses.of_pair(self._home.cell(cell), pair.result)) is not None:
                own["cell"] = np.full(len(own["index"]), cell, dtype=object)
                yield f"cells/{cell}/{witnesses.FILE}", own

    def _tables(
        self, name: str, rows: Rows, found: Rows, good: npt.NDArray[np.bool_], pairs: Mapping[str, Pair]
    ) -> None:
        """Witnesses against the rows of the tables that they stand for."""
        wrong: list[str] = []
        for column in ("adv_pred", *DISTANCES):
            same = np.isclose(found[column], rows[column], rtol=CLOSE, atol=0)
            wrong += [f"{column} of image {place}" for place in rows["index"][good & ~same].tolist()]
        for cell in np.unique(rows["cell"].astype(str)).tolist():
            if cell not in pairs:
                continue  # of a pair that no board counts any more; the image breaks the model all the same
            mine, columns = rows["cell"] == cell, pairs[cell].columns
            at = {place: row for row, place in enumerate(columns["index"].tolist())}
            there = np.array([at.get(place, -1) for place in rows["index"][mine].tolist()], np.int64)
            if (there < 0).any():
                wrong.append(f"an image that {cell} did not judge")
                continue
            bad = ~columns["adversarial"][there]
            for column in ("adv_pred", *DISTANCES):
                bad |= ~np.isclose(columns[column][there].astype(float), rows[column][mine], rtol=CLOSE, atol=0)
            wrong += [
                f"image {place}, of which cells/{cell} says otherwise" for place in rows["index"][mine][bad].tolist()
            ]
        if wrong:
            more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
            self._say(f"{name}: {', '.join(wrong[:_SHOWN])}{more}")

    def _prove(
        self,
        board: Board,
        entry: ModelEntry,
        pairs: Sequence[Pair],
        index: npt.NDArray[Any],
        clean: npt.NDArray[np.bool_],
        broken: Mapping[str, npt.NDArray[np.float64]],
    ) -> None:
        n = max(pair.n for pair in pairs)
        row = {place: at for at, place in enumerate(index.tolist())}
        for norm, grid in board.budgets[entry.dataset].items():
            told = nearest(pairs, norm)
            at = np.array([row[place] for place in told.index.tolist()], np.int64)
            claims = told["distance"].to_numpy()
            for eps in grid:
                stands = clean[at] & ~(broken[norm][at] <= limit(eps))
                claimed = round(worst_case(pairs, norm, eps).accuracy * n)
                facts = board.certificates.get(entry.model, {}).get(norm)
                level = facts.at(eps) if facts is not None and facts.alpha is None else None
                proofs = level.certified if level is not None else ()
                shown = Proved(
                    _name(entry), board.suite, norm, eps, n, claimed, int(stands.sum()), sum(proofs), len(proofs)
                )
                self._done.proved.append(shown)
                lost = int((stands & (claims <= limit(eps))).sum())
                if lost:
                    self._say(f"{_name(entry)}: {lost} images that count as broken at {norm} {eps:.6g} have no witness")
                if more := int((~stands & (claims > limit(eps))).sum()):
                    self._done.notes.append(
                        f"{_name(entry)}: {more} more images are broken at {norm} {eps:.6g} than {board.suite} counts"
                    )


def _name(entry: ModelEntry) -> str:
    return f"{entry.architecture} {entry.defense} seed {entry.seed}"


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, float | int) and isinstance(b, float | int) and not isinstance(a, bool):
        return math.isclose(a, b, rel_tol=CLOSE, abs_tol=1e-12)
    return bool(a == b)
