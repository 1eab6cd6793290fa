"""Progress where there is no terminal: a line says what is under way, and nothing of what there is none of."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

from rich.console import Console

from harness.execution.jobs import Judge, Train
from harness.execution.progress import Display
from harness.execution.runner import Watch
from harness.records.home import Home


def test_a_line_says_what_is_under_way(tmp_path: Any) -> None:
    out = io.StringIO()
    running: Any = {"a": Judge("noise on mlp-8", 0), "b": Train(SimpleNamespace(key="k"))}  # type: ignore[arg-type]
    display = Display(SimpleNamespace(), Home(tmp_path), Console(file=out, width=160))  # type: ignore[arg-type]
    display(Watch(cells=2, cells_done=1, shards=4, shards_done=3, running=running))
    assert out.getvalue() == "shards 3/4; pairs 1/2; train namespace(key='k'): starting; judge noise on mlp-8\n"
