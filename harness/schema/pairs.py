"""Records of model-attack pairs: planned, judged by shard, and results."""

from __future__ import annotations

from typing import Any, Final, Literal

from pydantic import Field

from .base import Cost, Document, Json, Number, Origin, Provenance, Record
from .eps import eps_text
from .goals import UNTARGETED
from .models import Agreement, ModelName

Norm = Literal["l0", "l1", "l2", "linf", "rms"]
Status = Literal["ok", "invalid", "crashed", "unclipped"]
Share = Literal["all", "tenth", "rest"]
"""Which of the images that stand an attack of a sampled cascade meets, see
:attr:`harness.planning.specs.Cell.share`."""

SHARES: Final[dict[Share, str]] = {"all": "", "tenth": ", a tenth", "rest": ", the rest"}
"""How the name of a pair says it."""

Answers = dict[Literal["referee", "attacked"], Agreement]
"""Whether a model's copies still answer clean images as before the attack."""


class BatteryPair(Record):
    """A pair of a suite's battery.

    Attributes:
        eps: Of the threat; None for a minimal attack.
        source: Model that the images are crafted on, "" if that is the victim.
        cascade: Whether the attack meets only what earlier ones left.
        share: Of what they left.
        needs_a_boundary: Whether the attack walks along the decision boundary, which a model that draws has not.
        submitted: Whether it is somebody's images (``gauntlet lower``): part of no suite, and counted in it for ever.
        goal: What it is after, see :class:`harness.goal.Goal`.
    """

    cell: str
    model: str
    dataset: str
    n: int
    attack: str
    norm: Norm
    eps: float | None
    source: str
    cascade: bool = False
    share: Share = "all"
    needs_a_boundary: bool = False
    submitted: bool = False
    goal: str = UNTARGETED

    @property
    def threat(self) -> str:
        """Norm and, for a budget attack, eps."""
        return self.norm if self.eps is None else f"{self.norm} {eps_text(self.eps)}"

    @property
    def pair_name(self) -> str:
        """Attack and threat for people, and the goal if it is targeted: the same in every version of it."""
        about = f"{f' from {self.source}' if self.source else ''}{f', {self.goal}' if self.goal != UNTARGETED else ''}"
        return f"{self.attack}{about}{SHARES[self.share]} ({self.threat})"

    def misplaced(self, other: BatteryPair) -> str:
        """Name of the first thing that another record of the same pair says otherwise; "" if none."""
        declared = ("cell", "model", "dataset", "n", "attack", "norm", "eps", "source", "share", "goal")
        return next((name for name in declared if getattr(self, name) != getattr(other, name)), "")


UNLISTED: Final = "unlisted "
"""How the toolkit of an attack begins that our tables do not list: its adversarials count, its presence does not."""


def _family(pair: dict[str, Any]) -> str:
    """Sort of attack of records that do not say."""
    if (access := pair["access"]) == "none":
        return "transfer" if pair["source"] else "noise"
    if access in ("scores", "decisions"):
        return str(access).removesuffix("s")
    return "iterated" if pair["kind"] == "budget" else "minimum-norm"


class PlannedPair(ModelName, BatteryPair):
    """A pair that a command asked for: the part of its result known beforehand.

    Attributes:
        toolkit: ``"gauntlet"``, ``"art"`` or ``"foolbox"``.
        access: What the attack needs of the model, :attr:`harness.attacks.base.Attack.access`.
        family: Sort of attack, :attr:`harness.attacks.base.Attack.family`.
        part: Whose images, ``"test"`` or ``"train"``.
        batch: Images per shard.
        levels: Images hold k/levels.
        class_names: In the order of the logits.
        command: Measures the pair again; "" if only Python can.
    """

    toolkit: str = "gauntlet"
    access: str = ""
    kind: str = ""
    family: str = Field(default_factory=_family)
    part: str = "test"
    batch: int = 0
    levels: int = 255
    class_names: tuple[str, ...] = ()
    command: str = ""


class Harvested(Record):
    """What was made of the adversarials that an attack met on its way.

    Attributes:
        lost: Images that only such a one breaks: found, and not returned.
        nearer: Images that the attack broke, at a distance more than 1 % larger than that of one it met.
        unattributed: Images it sent forward that belong to none of those attacked, so that nobody looked at them.
    """

    lost: int = 0
    nearer: int = 0
    unattributed: int = 0


class ShardFacts(Cost):
    """What a judged shard says beside its samples; passes are those of all its images.

    Attributes:
        errors: What the attack raised.
        unchanged: Attacked images that came back as they were.
        boxed: Whether images had to lie in [0, 1].
        unsteady: Images that two votes give different labels.
        answers: See :data:`Answers`.
        harvest: See :class:`Harvested`; None where nobody looked: images crafted elsewhere, attacks without a box, and
            records of before there was one.
        fallen: Images of a tenth that fell to it at an eps at which they had stood.
        withheld: Images that a sampled cascade does not show to the attack, as nothing in its tenth gave reason to.
    """

    errors: tuple[str, ...] = ()
    unchanged: int = 0
    boxed: bool = True
    unsteady: int = 0
    answers: Answers = {}
    harvest: Harvested | None = None
    fallen: int = 0
    withheld: int = 0


class ShardRecord(ShardFacts, Provenance):
    """Facts in a shard's file.

    Attributes:
        place: Key and number, by which a file in another's place is known; "" in files of before there was one.
    """

    place: str = ""


class Crafted(Cost, Provenance):
    """Facts in a file of crafted images; ``place`` as in a shard's."""

    place: str = ""
    errors: tuple[str, ...] = ()


class Preparation(Document, Provenance):
    """``prepared/KEY.json``: what an attack learned from training data.

    Attributes:
        fields: Plain fields of the attack that preparation set.
        tensors: Digests of the files beside it, by field.
        key: Its own, "" in records of before there was one.
        error: What was raised instead, "" if nothing was.
    """

    key: str = ""

    fields: Json
    tensors: dict[str, str] = {}
    cost: Cost
    error: str = ""


class Declared(PlannedPair, Provenance, Origin):
    """What is known of a result before its shards are merged.

    Attributes:
        declaration: What its key is a hash of.
        preparation: What the attack's look at training data took; None if it takes none.
    """

    declaration: Json = {}
    preparation: Cost | None = None


class Result(Document, Declared, Cost):
    """``result.json``: passes are per attacked image, seconds those of the whole pair.

    Attributes:
        errors: What the attack raised, each once.
        unchanged: See :class:`ShardFacts`; so the next three, over all shards.
        of_target: Of the ``n`` images those whose class is the target, which are left out.
        status: ``"ok"``; ``"crashed"`` if the attack raised; ``"invalid"`` if it returned invalid images or did
            nothing; ``"unclipped"`` if it may leave [0, 1].
        summary: :func:`harness.metrics.pairs.summary`, for readers of the file.
        files: SHA-256 of the files beside it, by name; empty in records of before there were any, which nothing can
            be verified against.
    """

    errors: tuple[str, ...] = ()
    unchanged: int = 0
    unsteady: int = 0
    answers: Answers = {}
    harvest: Harvested | None = None
    fallen: int = 0
    withheld: int = 0
    of_target: int = 0
    status: Status
    summary: dict[str, Number] = {}
    files: dict[str, str] = {}

    @property
    def failed(self) -> bool:
        """Whether its numbers may not be read as robustness."""
        return self.status != "ok"
