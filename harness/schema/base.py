"""Base of all records: frozen, strictly typed, with a format version."""

from __future__ import annotations

import math
from typing import Annotated, Any, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

FORMAT: Final = 3
"""The format that is written. 1 is that of records which do not say: what they lack has its default when it is read.
From 3 on a record is sealed (:mod:`harness.records.seals`)."""

Number = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]
"""A float; null stands for one that is not finite, because JSON has none."""

Json = dict[str, Any]
"""A JSON object that is shown as it is, such as a declaration."""


class Record(BaseModel):
    """A JSON object. Types are strict (``true`` is no number); names that no field has are ignored."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")


class Document(Record):
    """The record of a whole file.

    Attributes:
        format: See :data:`FORMAT`. Records of a later one are refused.
    """

    format: int = Field(default=FORMAT, ge=1, le=FORMAT)


class Provenance(Record):
    """What something was made with.

    Attributes:
        weights: Digests of the weights of the models that took part, by key.
        versions: Of packages, by name.
        git_commit: Of the checkout, "" outside of one.
    """

    weights: dict[str, str] = {}
    versions: dict[str, str] = {}
    git_commit: str = ""

    def made_with(self, other: Provenance) -> bool:
        """Whether it was made with the same."""
        return all(getattr(self, name) == getattr(other, name) for name in Provenance.model_fields)


class Origin(Record):
    """Where and when something was made; no part of what it is.

    Attributes:
        machine: Processor, cores and system, in words.
        made: Day, in UTC, as YYYY-MM-DD.
    """

    machine: str = ""
    made: str = ""


class Cost(Record):
    """What an attack, or its preparation, took.

    Attributes:
        seconds: Wall time.
        forwards: Images sent forward through the model; in a result per attacked image.
        backwards: The same, backward.
    """

    seconds: Number
    forwards: Number
    backwards: Number
