"""What images are transferred from to models of users: one network a data set, small enough for any machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from defenses.fast_gradient import FastGradient
from defenses.gaussian_blur import GaussianBlur
from defenses.pgd import Pgd
from defenses.standard import Standard
from harness.attacks.apgd import APGD
from harness.attacks.fast_gradient import Gradient
from harness.attacks.noise import Noise
from harness.attacks.transfer import Transfer
from harness.datasets.registry import DATASETS, Dataset, DatasetInfo, default_info, load_dataset
from harness.determinism import seed_everything
from harness.errors import UserError
from harness.execution.jobs import Train
from harness.external.external import External
from harness.models.registry import build_model
from harness.models.stages import Shape
from harness.planning import surrogate
from harness.planning.partition import take_part
from harness.planning.plan import Plan, plan, specs
from harness.planning.specs import ModelSpec
from harness.planning.suite import Suite
from harness.planning.surrogate import SHOWN, recipe
from harness.records.files import read_json, write_record
from harness.records.home import Home
from tests.helpers.boards import card as made_card
from tests.helpers.commands import call, complaint

DIGITS = DATASETS["digits"]
SUITE = Suite(
    name="small",
    summary="for tests",
    attacks={
        "linf": (Noise(), Transfer(attack=APGD(steps=10), defense=Standard(), seed_offset=1), Gradient()),
        "l2": (Transfer(attack=Gradient(), defense=Standard(), seed_offset=100), Gradient()),
    },
    budgets={"linf": (0.1,), "l2": (0.5,)},
    samples=20,
    batch=10,
)


def user(weights: str, **more: Any) -> ModelSpec:
    return ModelSpec(dataset="digits", architecture=f"{weights}:make", defense=External(weights=weights), **more)


def make(*models: ModelSpec, suite: Suite = SUITE, **more: Any) -> Plan:
    return plan(suite, models, {"digits": DIGITS}, **more)


def counted(shape: Shape, images: int, classes: int = 4) -> DatasetInfo:
    return replace(default_info("images:mine@0", shape, tuple(map(str, range(classes))), 50), train_size=images)


# ---------------------------------------------------------------- one per data set


def test_all_models_of_users_share_one() -> None:
    made = make(user("a"), user("b", seed=3), user("c"))
    (source,) = made.crafters
    assert {cell.source.key for cell in made.cells if cell.source} == {source.key}
    assert source.key not in made.ranked
    assert made.models == (*(spec for spec in made.models if spec.key in made.ranked), source)
    for alone in (make(user("d")), make(user("e", seed=2), cascade=True), take_part(make(user("f")), 1, 1)):
        assert [spec.key for spec in alone.crafters] == [source.key]


def test_what_is_built_upon_a_users_model_takes_the_same() -> None:
    base = user("a")
    upon = replace(base, defense=GaussianBlur().resolve(DIGITS), base=base)
    assert [spec.key for spec in make(upon).crafters] == [spec.key for spec in make(base).crafters]


def test_images_are_crafted_once_for_all_of_them() -> None:
    made = make(user("a"), user("b"))
    keys = [cell.crafted_key for cell in made.cells if cell.source]
    assert (len(keys), len(set(keys))) == (4, 2)


def test_models_that_we_train_meet_twins_as_ever() -> None:
    pgd, standard = specs([DIGITS], ["mlp-8"], [Pgd(), Standard()], [0])
    made = make(pgd, standard, user("a"))
    sources = {(c.victim.key, c.threat.norm): c.source for c in made.cells if c.source is not None}
    for victim in (pgd, standard):
        assert sources[victim.key, "linf"] == replace(standard, seed=1)
        assert sources[victim.key, "l2"] == replace(standard, seed=100)
    first = next(cell for cell in made.cells if cell.source is not None)
    # written down: no change of ours is to make these anew without a word
    assert (first.key, first.source and first.source.key) == ("606beb93457f6047", "bef3cf3897a9dca9")
    assert first.crafted_key == "85abe0512b985d2c"


# ---------------------------------------------------------------- small


SHAPES: Sequence[Shape] = [
    (1, 8, 8),
    (1, 28, 28),
    (3, 33, 31),
    (3, 64, 64),
    (3, 224, 224),
    (3, 150, 400),
    (4, 16, 600),
    (1, 2, 40),
    (2, 1, 1),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("images", [3, 700, 2_000_000])
def test_costs_little_whatever_the_images(shape: Shape, images: int) -> None:
    info = counted(shape, images)
    architecture, trainer = recipe(info, Standard())
    spec = ModelSpec(dataset=info.name, architecture=architecture, defense=trainer)
    assert trainer == trainer.resolve(info)
    assert 0 < spec.defense.images_shown(info) <= SHOWN * 1.5
    assert (trainer.subset or images) <= images
    model = build_model(architecture, shape, 4)
    assert sum(p.numel() for p in model.parameters()) < 1_000_000
    x = torch.rand(2, *shape, requires_grad=True)
    model(x).sum().backward()
    assert x.grad is not None
    assert (x.grad != 0).flatten(1).any(1).all()  # there is something to follow


@pytest.mark.parametrize("info", DATASETS.values(), ids=lambda info: info.name)
def test_costs_little_on_every_set(info: DatasetInfo) -> None:
    trainer = recipe(info, FastGradient())[1]
    assert trainer.name == "fast-gradient"  # as the suite asked
    assert trainer.images_shown(info) <= SHOWN * 1.5


def test_what_a_suite_declares_stays() -> None:
    declared = Standard(epochs=3, batch_size=32)
    assert recipe(DIGITS, declared, "resnet") == ("resnet", declared)
    assert recipe(DIGITS, Standard(), "resnet")[0] == "resnet"


def test_nobody_counted_the_images() -> None:
    info = counted((3, 40, 40), 0)
    assert recipe(info, Standard())[1] == Standard().resolve(info)


@pytest.mark.parametrize(("channels", "images", "wanted"), [(3, 30, 0.6), (1, 30, 0.6), (3, 300, 0.85), (1, 300, 0.85)])
def test_learns_from_few_large_images(channels: int, images: int, wanted: float) -> None:
    """Digits blown up to 64x64, four classes; a part of the training is enough."""
    data = load_dataset("digits")

    def blown(x: torch.Tensor, y: torch.Tensor, n: int) -> tuple[torch.Tensor, torch.Tensor]:
        x, y = x[y < 4][:n], y[y < 4][:n]
        large = x.repeat_interleave(8, 2).repeat_interleave(8, 3)
        return (large * 15).repeat(1, channels, 1, 1), y

    train, test = blown(data.x_train, data.y_train, images), blown(data.x_test, data.y_test, 100)
    info = replace(counted((channels, 64, 64), images), test_size=len(test[1]))
    architecture, trainer = recipe(info, Standard())
    trainer = replace(trainer, epochs=min(trainer.epochs or 0, 3000 // images))
    seed_everything(0)
    model = trainer.fit(architecture, Dataset(info, *train, *test)).model
    with torch.no_grad():
        found = (model(test[0] / 255).argmax(1) == test[1]).float().mean()
    assert found > wanted


# ---------------------------------------------------------------- without one


def test_left_out_of_pairs_and_battery() -> None:
    standard = specs([DIGITS], ["mlp-8"], [Standard()], [0])[0]
    made = make(user("a"), standard, transfers=False)
    assert made.left_out == ("transfer:apgd(steps=10)", "transfer:gradient")
    assert made.crafters == ()
    assert {spec.key for spec in made.models} == made.ranked
    whole = make(user("a"), standard)
    assert whole.left_out == ()
    for these, all_ in ((made.cells, whole.cells), (made.battery, whole.battery)):
        assert {cell.key for cell in these} == {cell.key for cell in all_ if cell.source is None}
    assert [probe.key for probe in made.probes] == [probe.key for probe in whole.probes]
    assert made.key != whole.key
    assert take_part(made, 1, 2).left_out == made.left_out


def test_a_norm_of_transfers_alone_goes_with_them() -> None:
    suite = replace(SUITE, attacks={**SUITE.attacks, "l2": SUITE.attacks["l2"][:1]})
    assert make(user("a"), suite=suite, transfers=False).budgets == {"digits": {"linf": (0.1,)}}
    alone = replace(suite, attacks={"l2": suite.attacks["l2"]})
    with pytest.raises(UserError, match="suite small holds nothing but transfers"):
        make(user("a"), suite=alone, transfers=False)


@pytest.mark.parametrize("pattern", ["transfer:gradient", "transfer*"])
def test_asked_for_and_left_out(pattern: str) -> None:
    with pytest.raises(UserError, match=r"asks for transfer:.* to be left out: drop one of the two"):
        make(user("a"), transfers=False, only=("noise", pattern))
    assert make(user("a"), transfers=False, only=("*",)).cells


# ---------------------------------------------------------------- on the command line


@pytest.fixture
def net(tmp_path: Path) -> Path:
    file = tmp_path / "net.py"
    file.write_text(
        "import torch\nfrom torch import nn\n\n"
        "def build(seed=0):\n"
        "    torch.manual_seed(seed)\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    )
    return file


def trained(home: Path) -> dict[str, int]:
    """Models that were trained here, and when their cards were written."""
    cards = {path.parent.name: path for path in home.glob("models/*/card.json")}
    return {key: path.stat().st_mtime_ns for key, path in cards.items() if read_json(path)["history"]}


def test_later_commands_find_it(net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surrogate, "SHOWN", 3000)  # whether it learned is not asked here
    home = tmp_path / "home"
    options = ("--attack", "transfer*", "--samples", 4, "--home", home, "--jobs", 1)
    before = call("plan", "sanity", "--victim", f"{net}:build", "--samples", 4, "--home", home)
    assert "surrogate for transfers: lenet-32 standard(" in before.output
    assert "on digits, seed 0, about " in before.output
    assert "kept for later commands" in before.output
    two = ("--victim", f"{net}:build", "--victim", f"{net}:build?seed=1")
    call("run", "sanity", *two, *options)
    first = trained(home)
    assert len(first) == 1
    other = ("--victim", f"{net}:build?seed=2")
    after = call("run", "sanity", *other, *options, "--dry-run")
    assert "seed 0, trained already" in after.output
    assert "0 trainings" in after.output
    call("run", "sanity", *other, *options)
    assert trained(home) == first
    assert len([path for path in home.glob("cells/*/result.json") if read_json(path)["source"]]) == 3 * 5


def test_no_surrogate(net: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    asked = ("sanity", "--no-surrogate", "--victim", f"{net}:build", "--samples", 4, "--home", home)
    seen = call("plan", *asked)
    assert "left out: transfer:apgd(steps=10)" in seen.output
    assert "surrogate for transfers" not in seen.output
    call("run", *asked, "--attack", "noise*", "--jobs", 1)
    assert trained(home) == {}
    (record,) = (read_json(path) for path in home.glob("plans/*.json"))
    assert record["battery"]
    assert not [cell for cell in record["battery"] if cell["attack"].startswith("transfer")]
    assert "transfer" in complaint(call("run", *asked, "--attack", "transfer*"))


def test_a_model_that_is_there_is_a_surrogate_too(tmp_path: Path) -> None:
    """Whoever asks to judge the very network that images are transferred from has it trained once."""
    (source,) = make(user("a")).crafters
    made = make(user("a"), source)
    assert source.key in made.ranked
    assert source.key not in {spec.key for spec in made.crafters}
    assert sum(spec.key == source.key for spec in made.models) == 1


# ---------------------------------------------------------------- when it is trained


def order(made: Plan, home: Home, workers: int, seconds: dict[type, float]) -> tuple[list[Any], float, list[float]]:
    """Jobs as workers take them, with all tasks taking so long; the time of the last, and each worker's idle time."""
    from harness.execution.scheduler import Scheduler

    graph, clock, taken = Scheduler(made, home, print, workers), 0.0, []
    running: list[tuple[float, int, str]] = []
    idle = [0.0] * workers
    free = set(range(workers))
    while True:
        while free and (task := graph.take()) is not None:
            taken.append(task.payload)
            worker = min(free)
            free.remove(worker)
            running.append((clock + seconds.get(type(task.payload), 1.0), worker, task.name))
        if not running:
            break
        ended = min(running)
        for worker in free:
            idle[worker] += ended[0] - clock
        clock = ended[0]
        running.remove(ended)
        free.add(ended[1])
        graph.done(ended[2])
    assert not graph.left
    return taken, clock, idle


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """Where two models of users are."""
    made = Home(tmp_path / "home").create()
    for name in ("a", "b"):
        write_record(made.model(user(name).key) / "card.json", made_card(sha256=name))
    return made


@pytest.mark.parametrize("workers", [1, 2, 3, 8])
def test_attacks_come_first(home: Home, workers: int) -> None:
    made = make(user("a"), user("b"))
    taken, _, _ = order(made, home, workers, {Train: 6.0})
    kinds = [type(job).__name__ for job in taken]
    direct = sum(cell.shards for cell in made.cells if cell.source is None)
    assert kinds[: min(workers, direct)] == ["Judge"] * min(workers, direct)
    attacks = [job.cell.key for job in taken if type(job).__name__ == "Judge"][:direct]
    wanted = [cell.key for cell in made.cells if cell.source is None for _ in range(cell.shards)]
    assert attacks == wanted  # as the suite orders them
    last_attack = max(place for place, job in enumerate(taken[: direct + 1]) if type(job).__name__ == "Judge")
    assert kinds.index("Examine") > last_attack
    training = kinds.index("Train")
    proofs = sum(one.shards for one in made.certifications if one.norm == "linf")  # all norms of a model together
    assert training == (workers if workers > 1 else direct + len(made.probes) + len(made.plantings) + proofs)
    assert kinds[-1] == "Judge"  # transfers


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("seconds", [0.5, 5.0, 14.0, 100.0])
def test_nobody_waits_while_there_is_work(home: Home, workers: int, seconds: float) -> None:
    """The run ends no later than with the training first, but for the tasks that every worker begins with."""
    made = make(user("a"), user("b"))
    taken, end, _ = order(made, home, workers, {Train: seconds})
    transfers = [job for job in taken if getattr(job, "cell", None) is not None and job.cell.source is not None]
    rest = len(taken) - 1 - len(transfers)
    work = seconds + rest + len(transfers)
    # one task at the start; training; then what waited for it: crafts, then judgements; each round a task more
    assert end <= max(work / workers + 3, 1 + seconds + len(transfers) / workers + 2)


def test_others_attack_while_surrogates_train(home: Home) -> None:
    second = Transfer(attack=Gradient(), defense=FastGradient())
    suite = replace(SUITE, attacks={"linf": (*SUITE.attacks["linf"], second)})
    made = make(user("a"), user("b"), suite=suite)
    assert len(made.crafters) == 2
    taken, _, _ = order(made, home, 2, {Train: 4.0})
    kinds = [type(job).__name__ for job in taken]
    first, last = (place for place, kind in enumerate(kinds) if kind == "Train")
    assert first == 2
    assert last - first > 3  # the other worker had attacks to run


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_what_has_to_be_trained_first_is(tmp_path: Path, workers: int) -> None:
    made = make(*specs([DIGITS], ["mlp-8"], [Standard(), Pgd(), FastGradient()], [0, 1]))
    taken, _, _ = order(made, Home(tmp_path).create(), workers, {})
    keys = [job.spec.key for job in taken if isinstance(job, Train)]
    assert keys == [spec.key for spec in made.models]
    assert [type(job) for job in taken[:workers]] == [Train] * workers


def test_a_surrogate_that_cannot_be_trained_holds_up_nobody(home: Home) -> None:
    from harness.execution.scheduler import Scheduler

    made = make(user("a"))
    graph, judged = Scheduler(made, home, print, 2), 0
    while (task := graph.take()) is not None:
        if isinstance(task.payload, Train):
            assert len(graph.failed(task.name)) > 1
        else:
            judged += type(task.payload).__name__ == "Judge"
            graph.done(task.name)
    assert not graph.left
    assert judged == sum(cell.shards for cell in made.cells if cell.source is None)
