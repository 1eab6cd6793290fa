"""Records of published bundles."""

from __future__ import annotations

from typing import Final

from .base import Document, Json

MANIFEST: Final = "manifest.json"


class Manifest(Document):
    """``manifest.json``: every other file of a bundle by its digest.

    Attributes:
        files: SHA-256 by path below the bundle, with ``/``.
        plans: Keys of the plans, oldest first: of several declarations of one name the newest counts.
        weights: SHA-256 of each trained model's weights, by key.
        addresses: Where weights can be had that are not in the bundle, by key of the model.
        images: Files of the data sets' image hashes, by name of the data set.
        machines: On which the results were measured.
        versions: Of packages that they were measured with, each that occurs.
        commits: Of the code that measured them.
        evaluated_by: Who measured, in words.
        licence: Of the bundle.
    """

    files: dict[str, str]
    plans: tuple[str, ...]
    weights: dict[str, str] = {}
    addresses: dict[str, str] = {}
    images: dict[str, str] = {}
    machines: tuple[str, ...] = ()
    versions: dict[str, tuple[str, ...]] = {}
    commits: tuple[str, ...] = ()
    evaluated_by: str = ""
    licence: str = ""


class ImageHashes(Document):
    """Which images of a data set the numbers are of.

    Attributes:
        index: Positions in the test part.
        labels: True ones.
        sha256: Of each image as float32 in [0, 1], (C, H, W), little-endian.
    """

    dataset: str
    index: tuple[int, ...]
    labels: tuple[int, ...]
    sha256: tuple[str, ...]


class Numbers(Document):
    """``numbers.json``: what is claimed, as in ``leaderboard.csv``; rows by suite."""

    suites: dict[str, tuple[Json, ...]]
