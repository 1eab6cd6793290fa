"""Image by image: which break first, which hold longest, and which attack broke which."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from harness.metrics.pairs import Bools, Floats, Pair, reach, reference
from harness.schema.eps import limit

from ..boards.rows import column
from ..drawing.png import data_uri
from ..drawing.text import class_name

LISTED: Final = 8
"""Images that break first, and as many that hold longest."""

STRIP: Final = 1000
"""Images at most in the picture of who broke what: more columns than a screen has."""


@dataclass(frozen=True)
class Image:
    """One image and how it was lost.

    Attributes:
        index: Position in the test set.
        label: Name of its class.
        after: Name of the class that the nearest adversarial is taken for, "" if there is none.
        distance: Of the nearest adversarial, inf if nothing broke it.
        attack: Label of the attack that came nearest, "" if none.
        original: PNG data URI, "" if the image is not among those kept.
        adversarial: PNG data URI of the nearest adversarial, "" if it was not kept.
    """

    index: int
    label: str
    after: str
    distance: float
    attack: str
    original: str
    adversarial: str

    @property
    def stands(self) -> bool:
        """Whether nothing broke it."""
        return math.isinf(self.distance)


@dataclass(frozen=True)
class AttackStrip:
    """One attack's line: SVG paths over the images, of height 1.

    Attributes:
        attack: Its label.
        broken: Images it broke.
        alone: Of these the ones that no other attack broke.
        paths: By kind, ``"shared"``, ``"alone"``, ``"clean"`` (misclassified as they are) or ``"unseen"`` (in a
            cascade not shown to it).
    """

    attack: str
    broken: int
    alone: int
    paths: Mapping[str, str]


@dataclass
class ImageResults:
    """What the attacks did to the images of one trained model, in one norm.

    Attributes:
        pairs: Its pairs, at least one.
        norm: What distances are measured in.
        classes: Names of the classes.
    """

    pairs: Sequence[Pair]
    norm: str
    classes: Sequence[str] = ()

    @cached_property
    def _images(self) -> npt.NDArray[Any]:
        return reference(self.pairs).columns["index"]

    @cached_property
    def _correct(self) -> Bools:
        """Images that are not lost as they are."""
        return reference(self.pairs).stands

    @cached_property
    def _reaches(self) -> Floats:
        """(pairs, images)."""
        return np.stack([reach(pair, self._images, self.norm) for pair in self.pairs])

    @cached_property
    def _order(self) -> npt.NDArray[np.int64]:
        """Images the model gets right, the first to break first, what stands in the order of the test set."""
        order = np.lexsort((self._images, self._reaches.min(0)))
        return order[self._correct[order]]

    @property
    def n(self) -> int:
        """Images."""
        return len(self._images)

    @property
    def columns(self) -> int:
        """Images in the picture of who broke what."""
        return min(self.n, STRIP)

    @property
    def clean_errors(self) -> int:
        """Images that the model gets wrong as they are: none of them is listed."""
        return int((~self._correct).sum())

    @property
    def standing(self) -> int:
        """Images that nothing broke at any distance."""
        return int(np.isinf(self._reaches.min(0)).sum())

    @property
    def first(self) -> list[Image]:
        """The images that break at the smallest distances; none that stands."""
        return [image for at in self._order[:LISTED] if not (image := self._image(int(at))).stands]

    @property
    def last(self) -> list[Image]:
        """The images that hold longest, those that stand first; none that is among the first to break."""
        rest = self._order[len(self.first) :]
        standing = rest[np.isinf(self._reaches.min(0)[rest])]
        return [self._image(int(at)) for at in [*standing, *rest[: len(rest) - len(standing)][::-1]][:LISTED]]

    @property
    def kept(self) -> list[Image]:
        """The images that there are pictures of, in the order in which they break."""
        return [self._image(int(at)) for at in self._order if int(self._images[at]) in self._pictures]

    @cached_property
    def _pictures(self) -> dict[int, npt.NDArray[Any]]:
        """Clean images by their position."""
        found: dict[int, npt.NDArray[Any]] = {}
        for pair in self.pairs:
            rows = {int(index): row for row, index in enumerate(pair.gallery.get("index", ()))}
            if rows.keys() - found.keys():  # else the file need not be read again
                images = pair.gallery["x"]
                found = {index: images[row] for index, row in rows.items()} | found
        return found

    def _image(self, at: int) -> Image:
        index = int(self._images[at])
        nearest = int(self._reaches[:, at].argmin())
        distance, pair = float(self._reaches[nearest, at]), self.pairs[nearest]
        broken = math.isfinite(distance)
        kept = np.flatnonzero(np.asarray(pair.gallery.get("index", ())) == index).tolist() if broken else []
        predicted = pair.columns["adv_pred"][pair.columns["index"] == index]
        return Image(
            index=index,
            label=class_name(self.classes, int(reference(self.pairs).columns["label"][at])),
            after=class_name(self.classes, int(predicted[0])) if broken else "",
            distance=distance,
            attack=column(pair).name if broken else "",
            original=data_uri(self._pictures[index]) if index in self._pictures else "",
            adversarial=data_uri(pair.gallery["x_adv"][kept[0]]) if kept else "",
        )

    def strips(self, eps: float) -> list[AttackStrip]:
        """A line per attack within eps, most images first; columns are the first images, the most broken first.

        An attack counts here under its name, whatever norm and eps it was run with: what it found counts.
        """
        n = self.columns
        lost: dict[str, Bools] = {}
        met: dict[str, Bools] = {}
        for pair, reached in zip(self.pairs, self._reaches[:, :n], strict=True):
            name = str(pair.result.attack)
            lost[name] = lost.get(name, np.zeros(n, bool)) | ((reached <= limit(eps)) & self._correct[:n])
            met[name] = met.get(name, np.zeros(n, bool)) | self._met(pair)[:n]
        if not lost or not n:
            return []
        total = np.stack(list(lost.values())).sum(0)
        names = sorted(lost, key=lambda name: (-int(lost[name].sum()), name))
        # the same attacks side by side: runs of columns instead of dust
        keys = [self._images[:n], *(~lost[name] for name in reversed(names)), -total, self._correct[:n]]
        order = np.lexsort(keys)
        right = self._correct[:n]
        return [
            AttackStrip(
                attack=name,
                broken=int(lost[name].sum()),
                alone=int((lost[name] & (total == 1)).sum()),
                paths={
                    kind: runs(where[order])
                    for kind, where in {
                        "clean": ~right,
                        "unseen": right & ~met[name],
                        "shared": lost[name] & (total > 1),
                        "alone": lost[name] & (total == 1),
                    }.items()
                },
            )
            for name in names
        ]

    def _met(self, pair: Pair) -> Bools:
        """Images (N,) that an attack looked at; in a cascade what broke before was not shown to it."""
        if not pair.result.cascade:
            return np.ones(len(self._images), bool)
        return np.isin(self._images, pair.columns["index"][pair.columns["attacked"]])


def runs(where: Bools) -> str:
    """SVG path of unit height that covers the columns where something is so; "" if nowhere."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], where, [False]]).astype(np.int8)))
    return "".join(f"M{start} 0h{end - start}v1h-{end - start}z" for start, end in edges.reshape(-1, 2))
