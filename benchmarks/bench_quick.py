"""Where the README's command spends its time: CPU seconds by kind of task, and their shares.

    python benchmarks/bench_quick.py

The tasks of ``gauntlet run quick`` one after another in this process. To import ART and Foolbox is a task of its own;
the command's own process (tracking, report) is left out.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

from turns import cpu

from harness.attacks.transfer import inner
from harness.cli.planning import make_plan
from harness.execution.jobs import Context
from harness.execution.scheduler import Scheduler
from harness.execution.worker import worker
from harness.records.home import Home
from harness.records.plans import plan_record, write_plan


def main() -> None:
    made, sources, _ = make_plan(
        "quick",
        datasets=(),
        models=(),
        defenses=(),
        seeds="0",
        samples=None,
        attacks=(),
        cascade=False,
        data_root=None,
        download=False,
        victims=(),
        names=(),
        mean=None,
        std=None,
        remedies=(),
        stand_ins=(),
        batch=None,
        home=Path(),
        device="cpu",
        tracking_uri=None,
    )
    seconds, tasks = Counter[str](), Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        home = Home(Path(folder)).create()
        write_plan(home, plan_record(made, ""))
        run = worker(Context(home, sources)).run
        seconds["import toolkits"] = cpu(lambda: [inner(cell.attack).warm_up() for cell in made.cells])
        tasks["import toolkits"] = 1
        left = Scheduler(made, home, print)
        while (task := left.take()) is not None:
            kind = type(task.payload).__name__.lower()
            seconds[kind] += cpu(lambda task=task: run(task.payload))
            tasks[kind] += 1
            left.done(task.name)
    print(f"{'task':18}{'tasks':>8}{'CPU s':>10}{'share':>10}")
    for kind, spent in seconds.most_common():
        print(f"{kind:18}{tasks[kind]:8}{spent:10.2f}{spent / seconds.total():10.1%}", flush=True)


if __name__ == "__main__":
    main()
