"""What witnesses cost: disk of a home and a bundle, time of publish and verify, and the passes of a verification.

    python benchmarks/bench_witnesses.py [--suites linf,l2] [--dataset digits] [--model mlp-100-100] [--images 100]
        [--data-root DATA]

Each suite is run on a standard and an adversarially trained network in a fresh home, published and verified. Of
sizes the share is that of the images as they are, float32; of passes that of what the attacks took.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness.datasets.registry import DATASETS


def gauntlet(*words: object) -> tuple[str, float]:
    """What a command prints, and its seconds."""
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "gauntlet", *map(str, words)], stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout, time.monotonic() - start


def size(folder: Path) -> int:
    """Bytes of all files in a folder, or of a file."""
    return sum(path.stat().st_size for path in (folder.rglob("*") if folder.is_dir() else [folder]) if path.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suites", default="linf,l2")
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--model", default="mlp-100-100")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--data-root")
    args = parser.parse_args()
    where = ["--data-root", args.data_root] if args.data_root else []
    image = 4 * math.prod(DATASETS[args.dataset].shape)
    for suite in args.suites.split(","):
        with tempfile.TemporaryDirectory() as folder:
            home, bundle = Path(folder) / "home", Path(folder) / "bundle.tar"
            run = [
                "run",
                suite,
                "--dataset",
                args.dataset,
                "--model",
                args.model,
                "--samples",
                args.images,
                "--jobs",
                1,
            ]
            run += ["--defense", "standard", "--defense", "pgd", "--no-surrogate", "--home", home, *where]
            _, running = gauntlet(*run)
            _, publishing = gauntlet("publish", home, "--out", bundle, *where)
            said, verifying = gauntlet("verify", bundle, *where)
            kept, raw = size(home / "witnesses"), 2 * args.images * image
            print(f"{suite} on {args.dataset}, {args.model}, 2 models, {args.images} images")
            print(f"  witnesses       {kept / 1e3:8.1f} kB  {kept / raw:6.2f} of the images of both models")
            print(f"  bundle          {size(bundle) / 1e3:8.1f} kB")
            print(f"  run, publish, verify  {running:.0f} s, {publishing:.0f} s, {verifying:.0f} s")
            print(f"  {said.strip().splitlines()[-1]}", flush=True)


if __name__ == "__main__":
    main()
