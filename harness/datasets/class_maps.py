"""Which of a model's outputs the folders of a data set are: ``--classes imagenet`` or a JSON or CSV file.

A file is one of these, names in any Unicode form:

- a list: the names of all outputs in their order, as folders are named;
- folder to output, ``{"cats": 281}``; the outputs are as many as the highest says, or ``{"outputs": 1000, "classes":
  {...}}``;
- folder to name, ``{"my dogs": "golden retriever"}`` or to a synset's id; the name is ImageNet's, or one of a list in
  ``"outputs"``;
- output to name or names, ``{"0": ["n01440764", "tench"]}``, also as ``id2label`` in a larger file;
- CSV with two columns that say the same, with or without a heading.

The ids are those of the 1,000 synsets of ILSVRC 2012 (Russakovsky et al. 2015), which are sorted, as everywhere, in the
order of the outputs; the names are torchvision's.
"""

from __future__ import annotations

import csv
import io
import json
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from ..errors import UserError

IMAGENET: Final = "imagenet"
_LARGEST: Final = 1_000_000


class Outputs(NamedTuple):
    """The outputs of a model: a name for each, and which of them each folder is."""

    names: tuple[str, ...]
    of: Mapping[str, int]


def read(source: str, folders: Sequence[str]) -> Outputs:
    """Which outputs the folders are.

    Raises:
        UserError: The file cannot be read, or does not say it for every folder; the line names it.
    """
    if source == IMAGENET:
        return _named(folders, {}, _imagenet(), source)
    path = Path(source)
    try:
        text = path.read_text("utf-8-sig")
        content = _table(text) if path.suffix.lower() == ".csv" else json.loads(text)
    except OSError as error:
        raise UserError(f"--classes {source}: {error.strerror}; write imagenet, or a JSON or CSV file") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{source} is damaged ({' '.join(str(error).split())})") from None
    return _outputs(content, [nfc(name) for name in folders], source)


def nfc(name: str) -> str:
    """A name in the one form that is compared: macOS writes letters and their accents apart."""
    return unicodedata.normalize("NFC", name)


def _table(text: str) -> dict[str, Any]:
    rows = [[cell.strip() for cell in row] for row in csv.reader(io.StringIO(text)) if any(row)]
    if not rows or any(len(row) != 2 for row in rows):
        raise ValueError("it must have two columns, folder and output")
    for column in (0, 1):
        if len(rows) > 1 and not rows[0][column].isdecimal() and all(row[column].isdecimal() for row in rows[1:]):
            rows = rows[1:]  # a heading
            break
    found: dict[str, Any] = {}
    for folder, output in rows:
        if folder in found:
            raise ValueError(f"{folder} stands in it twice")
        found[folder] = output
    if all(output.isdecimal() for output in found.values()):
        return {folder: int(output) for folder, output in found.items()}
    return found


def _outputs(content: Any, folders: Sequence[str], source: str) -> Outputs:
    if isinstance(content, dict) and isinstance(content.get("id2label"), dict):
        content = content["id2label"]
    if isinstance(content, list):
        return _named(folders, {}, _listed(content, source), source)
    if not isinstance(content, dict):
        raise UserError(f"{source}: expected a list of names, or folders and outputs")
    declared = None
    if set(content) == {"outputs", "classes"} and isinstance(content["classes"], dict):
        declared, content = content["outputs"], content["classes"]
    given = {nfc(str(name)): value for name, value in content.items()}
    if declared is None and _by_output(given, folders):
        by_place = {int(place): value for place, value in given.items()}
        if sorted(by_place) != list(range(len(by_place))):
            raise UserError(f"{source}: outputs must be 0..K-1 without a gap")
        return _named(folders, {}, _listed([by_place[place] for place in range(len(by_place))], source), source)
    if missing := [name for name in folders if name not in given]:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(f"{source} does not say which output {missing[0]} is{more}: add it, or remove the folder")
    if any(isinstance(given[name], str) for name in folders):
        known = _imagenet() if declared in (None, IMAGENET) else _listed(declared, source)
        return _named(folders, given, known, source)
    wrong = [name for name in folders if type(given[name]) is not int or given[name] < 0]
    if wrong:
        raise UserError(f"{source}: {wrong[0]} is {given[wrong[0]]!r}, expected the number of an output or its name")
    if declared == IMAGENET or isinstance(declared, list):
        names = [each[-1] for each in (_imagenet() if declared == IMAGENET else _listed(declared, source))]
    else:
        numbers = [value for value in given.values() if type(value) is int]
        count = max(numbers) + 1 if declared is None else declared
        if type(count) is not int or not 1 <= count <= _LARGEST:
            raise UserError(f"{source}: outputs must be a number in 1..{_LARGEST}, names or imagenet, got {count!r}")
        names = [str(place) for place in range(count)]
        for place in {given[name] for name in folders if given[name] < count}:
            names[place] = "+".join(name for name in folders if given[name] == place)
    if beyond := [name for name in folders if given[name] >= len(names)]:
        raise UserError(f"{source}: {beyond[0]} is output {given[beyond[0]]}, and there are {len(names)}")
    return Outputs(tuple(names), {name: given[name] for name in folders})


def _by_output(given: Mapping[str, Any], folders: Sequence[str]) -> bool:
    """Whether a mapping goes from outputs to names: folders that are numbers might be meant too."""
    numbered = all(name.isdecimal() for name in given) and not any(type(value) is int for value in given.values())
    named = {nfc(name) for value in given.values() for name in (value if isinstance(value, list) else [str(value)])}
    return bool(given) and numbered and not (all(name in given for name in folders) and not named & set(folders))


def _listed(content: Any, source: str) -> list[tuple[str, ...]]:
    """Names of outputs, several for each where there are."""
    found = (
        [tuple(each) if isinstance(each, list) else (each,) for each in content] if isinstance(content, list) else []
    )
    if not found or not all(names and all(isinstance(name, str) for name in names) for names in found):
        raise UserError(f"{source}: the outputs must be a list of names")
    return [tuple(map(nfc, names)) for names in found]


def _named(
    folders: Sequence[str], given: Mapping[str, Any], outputs: Sequence[tuple[str, ...]], source: str
) -> Outputs:
    """Folders by names of outputs: their own, or those that are given for them."""
    exact = _places(outputs, lambda name: name)
    loose = _places(outputs, _loosely)

    def place(folder: str) -> int:
        name = given.get(folder, folder)
        if type(name) is int and 0 <= name < len(outputs):
            return name
        found = exact.get(nfc(str(name))) or loose.get(_loosely(str(name))) or []
        if len(found) != 1:
            which = f"outputs {', '.join(map(str, found))} are both called so" if found else "no output is called so"
            what = f"the folder {folder}" if name == folder else f"{name!r}, which {folder} is said to be"
            raise UserError(f"--classes {source}: {what}: {which}")
        return found[0]

    # the last name is the readable one where an id stands before it; two outputs may share theirs
    names = [each[-1] for each in outputs]
    unique = tuple(f"{name} ({place})" if names.count(name) > 1 else name for place, name in enumerate(names))
    return Outputs(unique, {folder: place(folder) for folder in folders})


def _loosely(name: str) -> str:
    return " ".join(nfc(name).casefold().replace("_", " ").replace("-", " ").split())


def _places(outputs: Sequence[tuple[str, ...]], key: Callable[[str], str]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for place, names in enumerate(outputs):
        for name in {key(name) for name in names}:
            found.setdefault(name, []).append(place)
    return found


def _imagenet() -> list[tuple[str, ...]]:
    """Id and name of the 1,000 classes."""
    from torchvision.models import ResNet18_Weights

    ids = Path(__file__).with_name("imagenet_synsets.txt").read_text().split()
    return list(zip(ids, ResNet18_Weights.IMAGENET1K_V1.meta["categories"], strict=True))
