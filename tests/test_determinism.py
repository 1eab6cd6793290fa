"""Nothing is judged in less than float32, in whichever way a user's code asked for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, backends

from harness.attacks.fast_gradient import Gradient
from harness.datasets.registry import Dataset, DataSource
from harness.determinism import as_a_worker, full_float32, kept
from harness.execution.jobs import Context, Examine, Judge
from harness.execution.worker import Worker
from harness.planning.plan import plan
from harness.planning.suite import Suite
from harness.records.home import Home
from harness.trust.admission import admit

ASKS = {
    "nothing": "pass",
    "older": "torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True",
    "high": "torch.set_float32_matmul_precision('high')",
    "medium": "torch.set_float32_matmul_precision('medium')",
    "newer": "torch.backends.fp32_precision = 'tf32'",
    "cudnn": "torch.backends.cudnn.fp32_precision = torch.backends.cudnn.conv.fp32_precision = 'tf32'",
    "cpu": "torch.backends.mkldnn.conv.fp32_precision = 'bf16'",
    "both": "torch.backends.fp32_precision = 'tf32'; torch.backends.cudnn.allow_tf32 = False",
}
"""Ways to ask for fewer digits."""

GENERAL: tuple[Any, ...] = (backends, backends.cudnn)
PLACES: tuple[Any, ...] = (
    backends.cuda.matmul,
    backends.cudnn.conv,
    backends.cudnn.rnn,
    backends.mkldnn.matmul,
    backends.mkldnn.conv,
    backends.mkldnn.rnn,
)
OLDER: tuple[Callable[[], Any], ...] = (
    torch.get_float32_matmul_precision,
    lambda: backends.cuda.matmul.allow_tf32,
    lambda: backends.cudnn.allow_tf32,
)


def precisions() -> list[str]:
    return [place.fp32_precision for place in (*PLACES, *GENERAL)]


def older() -> list[Any]:
    """What the older switches say, None where torch raises because the newer ones contradict them."""
    found: list[Any] = []
    for read in OLDER:
        try:
            found.append(read())
        except RuntimeError:
            found.append(None)
    return found


def begin() -> None:
    """As torch begins."""
    torch.set_float32_matmul_precision("highest")
    backends.cudnn.allow_tf32 = True
    backends.mkldnn.set_flags(_fp32_precision="none")  # torch.export leaves what it read there
    for place in (*GENERAL, *PLACES):
        place.fp32_precision = "tf32" if place in (backends.cudnn.conv, backends.cudnn.rnn) else "none"


@pytest.fixture(autouse=True)
def undisturbed() -> Iterator[None]:
    """Other tests leave what a worker leaves."""
    begin()
    yield
    begin()


def full() -> bool:
    """Whether all digits are kept, whatever is inherited, and both of torch's ways say so."""
    return set(precisions()) == {"ieee"} and older() == ["highest", False, False]


@pytest.mark.parametrize("ask", ASKS)
def test_all_digits_whatever_was_asked_for_and_then_as_it_was(ask: str) -> None:
    exec(ASKS[ask])
    before = precisions(), older()
    with as_a_worker():
        assert full()
        exec(ASKS[ask])
        full_float32()
        assert full()
        with backends.cudnn.flags(enabled=False):  # reads the older switches
            pass
    assert precisions() == before[0]
    assert all(now == then for now, then in zip(older(), before[1], strict=True) if then is not None)


def test_all_digits_stay_where_torch_is_asked_for_fewer_everywhere() -> None:
    full_float32()
    exec(ASKS["newer"])
    assert {place.fp32_precision for place in PLACES} == {"ieee"}


def test_what_was_inherited_is_inherited_again() -> None:
    backends.cudnn.conv.fp32_precision = backends.cudnn.rnn.fp32_precision = "none"  # type: ignore[attr-defined]
    backends.fp32_precision = "tf32"  # type: ignore[attr-defined]
    with kept():
        full_float32()
    assert set(precisions()) == {"tf32"}
    backends.fp32_precision = "ieee"  # type: ignore[attr-defined]
    assert set(precisions()) == {"ieee"}


NET = """
import torch
from torch import nn

def net():
    {ask}
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
"""


@pytest.mark.parametrize("ask", ["older", "newer"])
def test_a_victim_that_asks_for_fewer_digits_is_judged_with_all(
    ask: str, digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(NET.format(ask=ASKS[ask]))
    guest = admit(f"{tmp_path / 'mine.py'}:net", digits, fetched=tmp_path / "fetched")
    home = Home(tmp_path / "home").create()
    guest.register(home)
    suite = Suite(name="one", summary="", attacks={"linf": (Gradient(),)}, budgets={"linf": (0.1,)})
    made = plan(suite, [guest.spec], {"digits": digits.info}, samples=20)
    asked: list[bool] = []
    attack = Gradient.run

    def seen(*arguments: Any, **named: Any) -> Tensor:
        asked.append(full())
        return attack(*arguments, **named)

    monkeypatch.setattr(Gradient, "run", seen)
    worker = Worker(Context(home, {"digits": DataSource("digits")}))
    worker.run(Examine(made.probes[0]))
    assert set(asked) == {True}
    worker.run(Judge(made.cells[0], 0))
    exec(ASKS[ask])  # as a forward pass may
    asked.clear()
    worker.run(Judge(made.cells[0], 0))  # the model is in memory by now
    assert asked == [True]
