"""What a verification finds; and its first step, every file held against the manifest."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import UserError
from ..records import seals
from ..records.files import read_record
from ..schema.bundles import MANIFEST, Manifest
from ..schema.counts import plural
from . import archive


@dataclass(frozen=True)
class Proved:
    """What witnesses prove of one model at one eps.

    Attributes:
        model: Its name.
        claimed: Images of ``n`` that the bundle says stand.
        at_most: Images that may stand, for all that was judged here.
        certified: Images with a certificate that was computed again.
        looked: Images that were looked at for one: the first; 0 if none were.
    """

    model: str
    suite: str
    norm: str
    eps: float
    n: int
    claimed: int
    at_most: int
    certified: int
    looked: int

    @property
    def holds(self) -> bool:
        """Whether as much was proved as is claimed."""
        return self.at_most <= self.claimed


@dataclass
class Verification:
    """What came of it.

    Attributes:
        problems: Lines, each naming something that does not hold.
        lacking: Lines, each naming what is not here, so that something could not be looked at.
        notes: Lines that are to be read, and are no problem.
        witnesses: Witnesses that the referee agreed to.
        certificates: Certificates, one for each image, norm and eps, that were computed again.
        images: Images that models were asked about here.
        passes: Images that the attacks sent through them, forward and backward.
        manifest: SHA-256 of the manifest.
    """

    proved: list[Proved] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    lacking: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    models: int = 0
    witnesses: int = 0
    certificates: int = 0
    images: int = 0
    passes: float = 0.0
    manifest: str = ""

    @property
    def holds(self) -> bool:
        """Whether everything does."""
        return not self.problems and not self.lacking and bool(self.proved) and all(one.holds for one in self.proved)

    @property
    def unjudged(self) -> bool:
        """Whether nothing was found that does not hold, and something could not be looked at."""
        return bool(self.lacking) and not self.problems and all(one.holds for one in self.proved)

    @property
    def verdict(self) -> str:
        """One line."""
        if self.unjudged:
            return f"not judged: {self.lacking[0]}"
        if not self.holds:
            short = sum(not one.holds for one in self.proved)
            why = plural(len(self.problems), "problem")
            why += f", {short} of {len(self.proved)} accuracies not proved" if short else ""
            return f"does not hold: {why if self.proved or self.problems else 'there is nothing to prove'}"
        share = f", {self.images / self.passes:.2%} of the attacks' passes" if self.passes else ""
        bounds = f"; {self.certificates} certificates computed again" if self.certificates else ""
        models = plural(self.models, "model")
        return (
            f"holds: {len(self.proved)} accuracies of {models} are at most what they are said to be"
            f"{bounds}; {self.witnesses} witnesses judged again with {self.images} passes{share}"
        )


def check_manifest(folder: Path, done: Verification, expected: str) -> Manifest | None:
    """The manifest, with every file held against it; None where there is none that can be read."""
    path = folder / MANIFEST
    if not path.is_file():
        done.problems.append(f"{MANIFEST} is missing: this is no bundle of gauntlet publish")
        return None
    try:
        content = path.read_bytes()
        done.manifest = hashlib.sha256(content).hexdigest()
        manifest = read_record(path, Manifest, "the manifest")
        if not seals.check(content, path):
            raise UserError(f"{path} has no seal")
    except UserError as error:
        done.problems.append(within(str(error), folder))
        return None
    if expected and done.manifest != expected.lower():
        done.problems.append(f"{MANIFEST} has the digest {done.manifest}, and not the one that was given")
    there = set(archive.names(folder)) - {MANIFEST}
    vouched = {f"models/{key}/weights.safetensors": sha for key, sha in manifest.weights.items()}
    for name in sorted({*there, *manifest.files}):
        wanted = manifest.files.get(name) or vouched.get(name)  # weights may be fetched by who verifies
        if wanted is None:
            done.problems.append(f"{name} is not in the manifest")
        elif name not in there:
            done.problems.append(f"{name} is missing")
        elif hashlib.sha256((folder / name).read_bytes()).hexdigest() != wanted:
            done.problems.append(f"{name} was changed (its digest is not the manifest's)")
    return manifest


def within(text: str, folder: Path) -> str:
    """A text about files of a folder, which it does not name."""
    return text.replace(f"{folder}/", "")
