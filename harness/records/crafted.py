"""Crafted images on disk, before they are judged."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save as save_tensors
from torch import Tensor

from ..judging.proposal import Proposal
from ..schema.base import Provenance
from ..schema.pairs import Crafted
from . import seals
from .files import parse_record, sealed_facts, write_bytes
from .results import opened


def write_proposal(path: Path, proposal: Proposal, made: Provenance) -> None:
    """Keep crafted images, with their provenance."""
    tensors = {"x_adv": proposal.x_adv.detach().cpu().contiguous()} if isinstance(proposal.x_adv, Tensor) else {}
    facts = Crafted(
        seconds=proposal.seconds,
        forwards=proposal.forwards,
        backwards=proposal.backwards,
        errors=proposal.errors,
        place=_place(path),
        **dict(made),
    )
    write_bytes(path, seals.seal(save_tensors(tensors, metadata={"facts": sealed_facts(facts)})))


def _place(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def read_proposal(path: Path) -> Proposal:
    """Read crafted images; see :func:`read_crafted`."""
    return read_crafted(path)[0]


def read_crafted(path: Path) -> tuple[Proposal, Crafted]:
    """Read crafted images and their facts.

    Raises:
        Damaged: The file cannot be read.
    """
    with opened(path, "pt") as file:
        seals.check(path.read_bytes(), path)
        facts = parse_record((file.metadata() or {})["facts"], Crafted, path)
        seals.in_place(facts.place, path, _place(path))
        names = list(file.keys())
        x_adv: Tensor | None = file.get_tensor("x_adv") if "x_adv" in names else None
    proposal = Proposal(x_adv, facts.seconds, int(facts.forwards), int(facts.backwards), facts.errors)
    return proposal, facts
