"""From a record back to a model: what is registered, the same, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from defenses import defenses
from harness import identity
from harness.datasets.registry import DATASETS
from harness.errors import UserError
from harness.planning.declared import model_spec
from harness.planning.specs import ModelSpec
from harness.training.on_trained import OnTrainedModel


def declared(spec: ModelSpec) -> Any:
    """As it comes out of a record."""
    return json.loads(json.dumps(identity.canonical(spec)))


@pytest.mark.parametrize("name", list(defenses()))
def test_every_defense_comes_back(name: str) -> None:
    info = DATASETS["digits"]
    kind = defenses()[name]
    base = ModelSpec(dataset="digits", architecture="lenet", defense=defenses()["standard"]().resolve(info), seed=3)
    parts: dict[str, ModelSpec] = {}
    if issubclass(kind, OnTrainedModel):
        parts = {"base": base, **({"front": base} if kind().fronted else {})}
    spec = ModelSpec(dataset="digits", architecture="mlp-8", defense=kind().resolve(info), **parts)
    assert model_spec(declared(spec), defenses(), {}) == spec


def test_what_a_record_names_is_not_run(tmp_path: Path) -> None:
    evil = tmp_path / "evil.py"
    evil.write_text(f"from pathlib import Path\nPath({str(tmp_path / 'done')!r}).touch()\nclass Evil: ...\n")
    info = DATASETS["digits"]
    spec = ModelSpec(dataset="digits", architecture="mlp-8", defense=defenses()["standard"]().resolve(info))
    record = declared(spec)
    for change in (
        {"defense": {**record["defense"], "is": f"{evil}:Evil"}},
        {"defense": {**record["defense"], "is": "external"}},
        {"defense": {**record["defense"], "version": 99}},
        {"defense": {}},
        {"defense": None},
        {"base": record["defense"]},
        {"is": "Cell"},
    ):
        with pytest.raises(UserError, match=r"the model [0-9a-f]{16} "):
            model_spec({**record, **change}, defenses(), {})
    assert not (tmp_path / "done").exists()
