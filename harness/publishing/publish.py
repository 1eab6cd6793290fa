"""What of a home others need to check its numbers, as files of a bundle, which is a home of its own with a manifest.

It holds no clean image of a data set, but in the galleries; the same home makes the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from .. import identity
from ..datasets.registry import DATASETS, Dataset
from ..errors import UserError
from ..external.external import External
from ..leaderboard import LEADERBOARD_COLUMNS, leaderboard
from ..metrics.pairs import Board
from ..records import witnesses
from ..records.boards import boards_from_home
from ..records.checkpoints import whole_model
from ..records.files import finite, json_text, sealed
from ..records.home import Home, no_runs
from ..records.plans import read_plans
from ..records.results import check_result, is_finished
from ..schema.base import Origin, Provenance
from ..schema.bundles import MANIFEST, ImageHashes, Manifest, Numbers
from ..schema.counts import plural
from ..schema.models import Card
from ..schema.pairs import Result
from ..schema.plans import PlanRecord
from .archive import Content, check_folder

NUMBERS: Final = "numbers.json"
PAIR: Final = ("result.json", "samples.parquet", "gallery.safetensors", witnesses.FILE)


def bundle(
    home: Home,
    data: Mapping[str, Dataset],
    *,
    by: str = "",
    licence: str = "CC-BY-4.0",
    weights_at: str | None = None,
    absent: Callable[[str], None] = lambda _: None,
) -> dict[str, Content]:
    """Files of a bundle by path below it.

    Args:
        home: What is published: everything that its plans ask for and that is there.
        data: Data sets of the results, by name.
        by: Who measured.
        licence: Of the bundle, as SPDX names it.
        weights_at: Address where the weights can be had, which are left out then; ``None`` puts them in.
        absent: Told of each file that a plan asks for and that is not there, and of broken images without a witness.

    Raises:
        UserError: Nothing was run, a file is damaged, or a data set is missing.
    """
    for kind in ("models", "cells", "certificates", "health", "planted", "plans", "witnesses"):
        if (home.path / kind).is_dir():
            check_folder(home.path / kind)
    plans = read_plans(home)
    boards = boards_from_home(home)
    if not any(board.pairs for board in boards):
        raise no_runs(home.path)
    files: dict[str, Content] = {}

    def asked(path: Path) -> None:
        if not _add(files, home, path):
            absent(path.relative_to(home.path).as_posix())

    cards: dict[str, Card] = {}
    for key in _unique(model.model for plan in plans for model in plan.models):
        folder = home.model(key)
        if (folder / "card.json").exists():
            cards[key] = whole_model(folder)
            _add(files, home, folder / "card.json")
            if weights_at is None and cards[key].reference is None:
                _add(files, home, folder / "weights.safetensors")
            shown: set[int] = set()
            for file in witnesses.tables(home, key):
                shown |= set(witnesses.read_table(file, images=False)[0]["index"].tolist())
                _add(files, home, file)
            if unproved := len(_broken(boards, key) - shown):
                absent(f"witnesses/{key} of {unproved} images that count as broken")
        elif (folder / "failed.json").exists():
            _add(files, home, folder / "failed.json")
        else:
            absent(f"models/{key}/card.json")
    for plan in plans:
        _add(files, home, home.plans / f"{plan.plan}.json")
        for one in plan.certificates:
            for shard in range(one.shards):
                asked(home.certificate(one.certificate, shard))
        for look in plan.probes:
            asked(home.health(look.probe))
        for look in plan.plantings:
            asked(home.planted(look.probe))
    for cell in _unique(pair.cell for plan in plans for pair in plan.cells):
        if not is_finished(home.cell(cell)):
            absent(f"cells/{cell}/result.json")
    for cell in _unique(pair.cell for plan in plans for pair in (*plan.cells, *plan.battery)):
        if is_finished(home.cell(cell)):
            result = check_result(home.cell(cell))
            witnesses.of_pair(home.cell(cell), result)
            for name in PAIR:
                if name != witnesses.FILE or name in result.files:
                    _add(files, home, home.cell(cell) / name)
    images = {}
    for name, n in _sizes(boards).items():
        if name not in data:
            raise UserError(f"{name} is a data set of your own: name it with --dataset, as it was run with")
        place = f"images/{identity.key(name)}.json"
        files[place] = json_text(sealed(hashes(data[name], n))).encode()
        images[name] = place
    files[NUMBERS] = json_text(sealed(numbers(boards))).encode()
    results = [pair.result for board in boards for pair in board.pairs]
    held = {key: card.sha256 for key, card in cards.items() if card.reference is None}
    manifest = Manifest(
        files={},
        plans=tuple(plan.plan for plan in plans),
        weights=held,
        addresses={} if weights_at is None else dict.fromkeys(held, weights_at),
        images=images,
        machines=_sorted(one.machine for one in [*results, *cards.values()] if isinstance(one, Origin)),
        versions=_versions(results),
        commits=_sorted([*(one.git_commit for one in results), *(card.git_commit for card in cards.values())]),
        evaluated_by=by,
        licence=licence,
    )
    files["CITATION.cff"] = citation(manifest, boards, results).encode()
    files["README.md"] = readme(manifest, boards, plans).encode()
    digests = {name: hashlib.sha256(_bytes(content)).hexdigest() for name, content in sorted(files.items())}
    files[MANIFEST] = json_text(sealed(manifest.model_copy(update={"files": digests}))).encode()
    return files


def numbers(boards: Sequence[Board]) -> Numbers:
    """What is claimed: the rows of the leaderboard, by suite."""
    found: dict[str, list[Any]] = {}
    for board in boards:
        frame = leaderboard(board)[list(LEADERBOARD_COLUMNS)].astype(object)
        rows = frame.where(frame.notna(), None).to_dict("records")
        found.setdefault(board.suite, []).extend(json.loads(json.dumps(finite(rows), default=_plain)))
    return Numbers(suites={suite: tuple(rows) for suite, rows in found.items()})


def _plain(value: Any) -> Any:
    return value.item()  # a NumPy scalar


def hashes(data: Dataset, n: int) -> ImageHashes:
    """The first ``n`` test images, by their digests."""
    index, (x, y) = data.test_sample(n)
    digests = tuple(digest(image) for image in x)
    return ImageHashes(dataset=data.info.name, index=tuple(index.tolist()), labels=tuple(y.tolist()), sha256=digests)


def digest(image: Tensor) -> str:
    """SHA-256 of an image, float32 (C, H, W)."""
    return hashlib.sha256(image.contiguous().numpy().astype("<f4").tobytes()).hexdigest()


def _sizes(boards: Sequence[Board]) -> dict[str, int]:
    """Most images that any pair of a data set was judged on."""
    found: dict[str, int] = {}
    for result in (pair.result for board in boards for pair in board.pairs if pair.result.part == "test"):
        found[result.dataset] = max(found.get(result.dataset, 0), result.n)
    return dict(sorted(found.items()))


def _add(files: dict[str, Content], home: Home, path: Path) -> bool:
    """Put a file in, if it is there."""
    if path.exists():
        files[path.relative_to(home.path).as_posix()] = path
    return path.exists()


def _bytes(content: Content) -> bytes:
    return content if isinstance(content, bytes) else content.read_bytes()


def _broken(boards: Sequence[Board], model: str) -> set[int]:
    """Positions of the test images that some attack of a model broke, those of attacks with targets aside."""
    pairs = (pair for board in boards if not board.targeted for pair in board.by_model.get(model, ()))
    tests = (pair.columns for pair in pairs if pair.result.part == "test")
    return {place for columns in tests for place in columns["index"][columns["adversarial"]].tolist()}


def _unique(values: Iterable[str]) -> list[str]:
    return sorted(set(values))


def _sorted(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted({value for value in values if value}))


def _versions(results: Sequence[Provenance]) -> dict[str, tuple[str, ...]]:
    packages = _unique(name for result in results for name in result.versions)
    return {name: _sorted(result.versions.get(name, "") for result in results) for name in packages}


def citation(manifest: Manifest, boards: Sequence[Board], results: Sequence[Result]) -> str:
    """``CITATION.cff`` (Citation File Format 1.2.0) of a bundle."""
    sets = ", ".join(_unique(result.dataset for result in results))
    fields: dict[str, Any] = {
        "cff-version": "1.2.0",
        "message": "If you use these results, please cite them as below.",
        "type": "dataset",
        "title": f"Adversarial robustness of image classifiers on {sets}: {', '.join(board.suite for board in boards)}",
        "authors": [{"name": manifest.evaluated_by or "anonymous"}],
        "license": manifest.licence,
    }
    if days := _sorted(result.made for result in results):
        fields["date-released"] = days[-1]
    # JSON is YAML
    return "".join(f"{name}: {json.dumps(value, ensure_ascii=False)}\n" for name, value in fields.items())


def readme(manifest: Manifest, boards: Sequence[Board], plans: Sequence[PlanRecord]) -> str:
    """What a reader of a bundle should know."""
    pairs = {pair.result.cell for board in boards for pair in board.pairs}
    models = {key: model for board in boards for key, model in board.models.items()}
    own = [
        model for model in models.values() if model.card and model.card.declaration["defense"]["is"] == External.name
    ]
    root = " --data-root DATA" if {model.dataset for model in models.values()} != {next(iter(DATASETS))} else ""
    lines = [
        "# Adversarial robustness, to be checked",
        "",
        f"{plural(len(manifest.weights), 'model')}, {plural(len(pairs), 'pair')} of model and attack, by gauntlet.",
        "The images that broke the models are in `witnesses/`. Judge them again, without attacking:",
        "",
        f"    gauntlet verify .{root}{' --victim MODEL' if own else ''}",
        "",
    ]
    if own:
        names = ", ".join(_unique(f"{model.architecture} {model.defense}" for model in own))
        lines += [f"Somebody's own is {names}: its code is not in here. Name it with the options of the run below.", ""]
    lines += [
        f"Licence: {manifest.licence}. Measured by {manifest.evaluated_by or 'somebody who does not say'}.",
    ]
    if manifest.addresses:
        where = ", ".join(_sorted(manifest.addresses.values())) or "nobody says where they are"
        lines += ["", f"Weights are not in here ({where}); put them at `models/KEY/weights.safetensors`."]
    lines += ["", "Measured with:", "", *(f"    {plan.command}" for plan in plans)]
    return "\n".join(lines) + "\n"
