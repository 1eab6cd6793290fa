"""From the command line to a plan: suites, models, the user's models, and what a plan will cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from .console import console

if TYPE_CHECKING:
    from ..attacks.transfer import Ensemble
    from ..execution.jobs import Source
    from ..execution.ray.engine import Cluster
    from ..models.ensemble import Average
    from ..planning.plan import Plan
    from ..trust.admission import AdmittedModel

UNASKED = "looked at one batch; a run asks first in other batches, orders and modes, and may refuse it then"

DEFAULT_DEFENSES = ("standard", "dropout", "gaussian-noise", "fast-gradient", "pgd")


def make_plan(
    suite: str | None,
    *,
    datasets: Sequence[str],
    models: Sequence[str],
    defenses: Sequence[str],
    seeds: str,
    samples: int | None,
    attacks: Sequence[str],
    cascade: bool,
    data_root: Path | None,
    download: bool,
    part: str | None = None,
    thorough: bool = True,
    no_surrogate: bool = False,
    certify: int | None = None,
    add_attacks: Sequence[str] = (),
    eps: Sequence[str] = (),
    norms: Sequence[str] = (),
    resize: str | None = None,
    crop: str | None = None,
    classes: str | None = None,
    sampled: bool = False,
    targets: str | None = None,
    surrogates: Sequence[str] = (),
    ensemble: Average = "logits",
    **guests: Any,
) -> tuple[Plan, dict[str, Source], list[AdmittedModel]]:
    """The plan of a command line, where its data sets come from, and the models that the user brings.

    Not ``thorough``, it asks of a user's model no more than its declaration needs.
    """
    from defenses import known as known_defenses
    from suites import suite as find_suite

    from ..datasets.registry import with_options
    from ..planning.partition import parse_part, take_part
    from ..planning.plan import plan, specs
    from ..planning.suite import Suite
    from ..user_code.plugin_data import source as find_source
    from ..user_code.plugins import architecture
    from .battery import battery as find_battery
    from .parsing import goal_of, parse_chain, parse_seeds

    share = parse_part(part) if part is not None else None
    crafting: list[AdmittedModel] = []
    sources: dict[str, Source] = {}
    for name in datasets or ("digits",):
        name = with_options(name, resize=resize, crop=crop, classes=classes)
        source = find_source(name, root=data_root, download=download)
        sources[source.info().name] = source
        for note in source.notes:
            console.print(note, style="yellow", markup=False, soft_wrap=True)
    infos = {name: source.info() for name, source in sources.items()}
    if suite is not None:
        goal = goal_of(targets, infos.values()) if targets is not None else None
        told: dict[str, Any] = {"added": add_attacks, "eps": eps, "norms": norms, "goal": goal}
        if ensemble != "logits" and len(surrogates) < 2:
            raise UserError("--ensemble says what is averaged over several --surrogate: name two")
        if surrogates:
            if no_surrogate:
                raise UserError("--surrogate names what --no-surrogate leaves out: drop one of the two")
            told["surrogates"], crafting = _surrogates(surrogates, ensemble, list(sources.values()), **guests)
            told["named"] = [word for text in surrogates for word in ("--surrogate", text)]
            told["named"] += ["--ensemble", ensemble] if ensemble != "logits" else []
        asked = find_battery(suite, find_suite(suite), **told)
        battery, words = asked.suite.in_samples() if sampled else asked.suite, asked.words
        for note in asked.notes:
            console.print(note, style="yellow", markup=False, soft_wrap=True)
    else:
        battery, words = Suite(name="train", summary="", attacks={}, budgets={}), ()
    brought = guests_of(list(sources.values()), thorough=thorough, **guests)
    # who brings a model asks for the others by name
    chosen = defenses or (() if brought and not models else DEFAULT_DEFENSES)
    trainers = [parse_chain(text, known_defenses()) for text in chosen]
    networks = [architecture(text) for text in models]
    wanted = [guest.spec for guest in brought]
    for info in infos.values():
        wanted += specs([info], networks or (default_model(info.shape),), trainers, parse_seeds(seeds))
    arguments = {info: source.name for info, source in sources.items() if source.name != info}
    chosen_pairs: dict[str, Any] = {"samples": samples, "only": attacks, "cascade": cascade, "certify": certify}
    chosen_pairs |= {"words": words}
    made = plan(battery, wanted, infos, **chosen_pairs, arguments=arguments, transfers=not no_surrogate)
    for note in made.notes:
        console.print(note, style="yellow", markup=False, soft_wrap=True)
    if aimless := [label for label in made.left_out if not label.startswith("transfer:")]:
        line = f"left out, having no targeted form: {', '.join(aimless)}"
        console.print(line, style="yellow", markup=False, soft_wrap=True)
    return take_part(made, *share) if share is not None else made, sources, [*brought, *crafting]


def _surrogates(
    texts: Sequence[str],
    average: Average,
    sources: Sequence[Source],
    *,
    home: Path,
    device: str,
    tracking_uri: str | None,
    **others: Any,
) -> tuple[Ensemble, list[AdmittedModel]]:
    """What transfers are to be crafted on, and those of it that are there already, looked at on every data set."""
    from defenses import known

    from ..attacks.transfer import Ensemble
    from ..records.home import Home
    from ..tracking.connection import store_uri
    from ..trust.admission import admit
    from .parsing import parse_surrogate

    members: list[Any] = []
    found = []
    for place, text in enumerate(texts):
        declared = parse_surrogate(text, known(), twins=list(texts[:place]).count(text))
        if declared is not None:
            members.append(declared)
            continue
        for source in sources:
            uri = store_uri(Home(home), tracking_uri)
            guest = admit(text, source.load(), device=device, fetched=home / "fetched", tracking_uri=uri)
            found.append(guest)
            members.append(guest.spec)
    return Ensemble(members=tuple(members), average=average), found


def guests_of(
    sources: Sequence[Source],
    *,
    victims: Sequence[str],
    names: Sequence[str],
    mean: str | None,
    std: str | None,
    remedies: Sequence[str],
    stand_ins: Sequence[str],
    batch: int | None,
    home: Path,
    device: str,
    tracking_uri: str | None,
    thorough: bool,
) -> list[AdmittedModel]:
    """Models that the user brings, each looked at on every data set."""
    given = {
        "--name": names,
        "--mean": mean,
        "--std": std,
        "--remedy": remedies,
        "--stand-in": stand_ins,
        "--batch": batch,
    }
    if not victims:
        if alone := [name for name, value in given.items() if value]:
            raise UserError(f"{alone[0]} says something about a --victim, and none is given")
        return []
    from ..records.home import Home
    from ..tracking.connection import store_uri
    from ..trust.admission import admit
    from .parsing import parse_channels, parse_remedy, parse_stand_ins

    channels = {"mean": parse_channels(mean, "--mean"), "std": parse_channels(std, "--std")}
    called = _called(list(dict.fromkeys(victims)), names)
    found = []
    for text in dict.fromkeys(victims):
        for source in sources:
            console.print(f"looking at {text} on {source.name}", style="dim", markup=False, soft_wrap=True)
            guest = admit(
                text,
                source.load(),
                called=called[text],
                **channels,
                remedy=parse_remedy(remedies, stand_ins),
                stand_ins=parse_stand_ins(stand_ins),
                batch=batch,
                device=device,
                thorough=thorough,
                fetched=home / "fetched",
                tracking_uri=store_uri(Home(home), tracking_uri),
            )
            for note in guest.notes:
                console.print(note, style="yellow", markup=False, soft_wrap=True)
            if not thorough:
                console.print(f"{text}: {UNASKED}", style="dim", markup=False, soft_wrap=True)
            found.append(guest)
    return found


def _called(victims: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """What each model is to be called; "" for its file's name."""
    if names and len(names) != len(victims):
        raise UserError(f"--name is given {len(names)} times for {len(victims)} models: once for each --victim")
    for name in names:
        if not name.strip() or not name.isprintable():
            raise UserError(f"a --name is a line of text, got {name!r}")
        if names.count(name) > 1:
            raise UserError(f"two models are called {name!r}: give each --victim a --name of its own")
    return dict(zip(victims, names or [""] * len(victims), strict=True))


def admission(guest: AdmittedModel, made: Plan) -> str:
    """What looking at a model cost, beside what its battery declares."""
    from ..execution.estimate import passes

    cells = [cell for cell in made.battery if cell.victim.key == guest.spec.key]
    spent, images = guest.passes, max((cell.n for cell in cells), default=0)
    battery = sum(passes(cell.attack) * cell.n for cell in cells)
    line = f"{guest.spec.architecture}: looked at with {spent} passes of an image"
    return f"{line}, {spent / images:.1f} an image and {spent / battery:.1%} of its battery's" if battery else line


def default_model(shape: tuple[int, int, int]) -> str:
    """Architecture for a data set when none is asked for: an MLP for gray images, a ResNet for colour."""
    return "mlp-100-100" if shape[0] == 1 else "resnet"


def foresee(
    plans: Sequence[Plan], home: Path, device: str, witnesses: str = "worst-case", *, titles: bool = False
) -> None:
    """Show the pairs of plans, what of them is done, and a line with what the rest may cost.

    With ``titles`` they are a study's, of several seeds and many pairs, which are folded.
    """
    from ..execution.estimate import estimate
    from ..records.home import Home
    from .tables import plan_table, surrogates

    name_device(device)
    for plan in plans:
        table = plan_table(plan, Home(home), folded=titles)
        if titles:
            table.title = f"{plan.suite.name}: {plan.suite.summary}"
        console.print(table)
        if transfers := [label for label in plan.left_out if label.startswith("transfer:")]:
            console.print(f"left out: {', '.join(transfers)}", markup=False, soft_wrap=True)
    found = estimate(plans, Home(home), device)
    if not titles:  # what a study crafts on is its own
        for line in surrogates(plans, Home(home), found.training_of):
            console.print(line, markup=False, soft_wrap=True)
        console.print(room(plans, witnesses), style="dim", markup=False, soft_wrap=True)
    console.print(str(found), style="dim", markup=False, soft_wrap=True)


def room(plans: Sequence[Plan], witnesses: str) -> str:
    """A line with the disk that witnesses may take."""
    from ..records.witnesses import size

    if witnesses == "none":
        return "witnesses: none are kept, so that nobody can judge the numbers again"
    victims = {(cell.victim.key, cell.n): (cell.victim.dataset, plan) for plan in plans for cell in plan.battery}
    most = [size(plan.infos[data].shape, n, len(plan.budgets[data])) for (_, n), (data, plan) in victims.items()]
    more = ""
    if witnesses == "all":
        cells = {
            cell.key: size(plan.infos[cell.victim.dataset].shape, cell.n, 1) for plan in plans for cell in plan.cells
        }
        more = f", and those of every pair {sum(cells.values()) / 1e6:.3g} MB"
    return f"witnesses: at most {sum(most) / 1e6:.3g} MB of images that break the models{more}, before compression"


def resolve_device(device: str, *, ray: bool = False, gpus: float | None = None) -> str:
    """The device that ``auto`` means: CUDA where there is one, then Apple's MPS if it can judge, then the CPU.

    Distances are judged in float64. On a Ray cluster it is what tasks ask for.
    """
    if device != "auto":
        return device
    here = next((kind for kind in ("cuda", "mps") if not ray and _can_judge(kind)), "cpu")
    return "cuda" if ray and gpus else here


def name_device(device: str) -> None:
    """Say where it is computed: once what was asked for is known to make sense."""
    import torch

    cuda = device.startswith("cuda") and torch.cuda.is_available()
    name = f" ({torch.cuda.get_device_name(device)})" if cuda else ""
    console.print(f"device: {device}{name}", style="dim", markup=False)


def _can_judge(kind: str) -> bool:
    import torch

    try:
        torch.zeros(1, device=kind, dtype=torch.float64)
    except (RuntimeError, AssertionError, TypeError):
        return False
    return True


def check_device(device: str, engine: Cluster | None = None) -> str:
    """The device that this process itself may use: a cluster's nodes may have one where this machine has none."""
    import torch

    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        if engine is not None and engine.gpus:
            return "cpu"
        choices = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
        reason = str(error).splitlines()[0]
        raise UserError(f"no device {device!r} here ({reason}); choose from {', '.join(choices)}") from None
    return device
