"""What the driver of many workers costs: chunks that only sleep, on workers that hold no model.

python -m benchmarks.scheduler [--workers 64] [--chunks 20000] [--seconds 0.05] [--behaviors 2]

Efficiency is the time that the workers slept by the time that they had, from the first chunk to the
last. The rows of each chunk are on the disk (fsync) before those of the next are written.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

from benchmarks.recording import record
from benchmarks.synthetic import local_ray, sleepers, synthetic_groups, work

CELLS = 10  # among which the chunks are divided


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--chunks", type=int, default=20_000)
    parser.add_argument("--seconds", type=float, default=0.05, help="that a chunk takes")
    parser.add_argument("--behaviors", type=int, default=2, help="of a chunk, a row each")
    args = parser.parse_args()
    per_cell = args.chunks // CELLS
    groups = synthetic_groups(2, CELLS // 2, per_cell * args.behaviors, args.behaviors)
    begun = []
    with tempfile.TemporaryDirectory() as folder, local_ray(2):
        pool = sleepers(Path(folder), groups, args.workers, args.seconds, cpus=0.02)

        def ready(_: object) -> None:
            while len(pool.idle()) < args.workers:
                pool.wait()
            begun.extend((time.perf_counter(), time.process_time()))

        work(Path(folder), groups, pool, args.seconds, ready)
        taken, worked = time.perf_counter() - begun[0], time.process_time() - begun[1]
    chunks = per_cell * CELLS
    slept = chunks * args.seconds / args.workers
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    record(
        f"scheduler: {args.workers} workers, {chunks} chunks of {1000 * args.seconds:.0f} ms",
        ["seconds", "efficiency", "chunks/s", "rows/s on disk", "CPU ms/chunk", "its MiB"],
        [[
            f"{taken:.1f}", f"{slept / taken:.2f}", f"{chunks / taken:.0f}",
            f"{chunks * args.behaviors / taken:.0f}", f"{1000 * worked / chunks:.2f}",
            f"{peak:.0f}",
        ]],
        device="cpu",
    )  # fmt: skip


if __name__ == "__main__":
    main()
