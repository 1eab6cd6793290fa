"""Two tasks on a cluster that pretends to have two GPUs, the first of which somebody takes in between.

``python ray_gpus.py HOME`` prints for each ``DEVICE of GPUS, visible: CUDA_VISIBLE_DEVICES``.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from defenses.standard import Standard
from harness.datasets.registry import DataSource
from harness.execution.jobs import Context, Train
from harness.execution.process_pool import Task
from harness.execution.ray.engine import Cluster, RayEngine
from harness.execution.ray.session import load
from harness.planning.plan import specs
from harness.records.home import Home


@dataclass(frozen=True, kw_only=True)
class Tells(Standard):
    """Says where it was to train."""

    name: ClassVar[str] = "tells"

    def fit(self, *arguments: Any, **named: Any) -> Any:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        raise RuntimeError(f"{named['device']} of {load().get_gpu_ids()}, visible: {visible}")


class Holder:
    """Keeps a GPU for as long as it lives."""

    def there(self) -> None:
        """Answers once it has it."""


def main() -> None:
    ray = load(private=True)
    init = ray.init
    ray.init = lambda **options: init(num_gpus=2, **options)
    source = DataSource("digits")
    (spec,) = specs([source.info()], ["mlp-8"], [(Tells(),)], [0])
    context = Context(Home(Path(sys.argv[1])).create(), {"digits": source}, "cuda")
    with RayEngine(Cluster(cpus=0.5, gpus=1, jobs=1), context) as engine:
        for number in range(2):
            tasks = iter([Task(f"task {number}", Train(spec))])
            for done in engine.run(lambda tasks=tasks: next(tasks, None)):  # type: ignore[misc]
                if done is not None:
                    print(done.error)
            if not number:
                holder = ray.remote(num_gpus=1, num_cpus=0)(Holder).remote()
                ray.get(holder.there.remote())


if __name__ == "__main__":
    main()
