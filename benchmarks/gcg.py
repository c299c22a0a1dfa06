"""GCG against nanoGCG 0.3.0: the same weights, prompts, width, top-k and steps, alternating.

python -m benchmarks.gcg                                    the organism on the CPU
python -m benchmarks.gcg --shape 8b --behaviors 2           random weights, bf16, on CUDA
python -m benchmarks.gcg --weights FOLDER                   made by benchmarks.models

nanoGCG needs transformers 4.47.1 and runs in a virtual environment of its own, which is created
once in the folder --venv. Without a network give --wheels FOLDER, downloaded by the same Python on
the same platform, with the torch that robench uses here (for example 2.13.0; whether it is built
for CUDA depends on --index-url or the platform's default):

pip download --only-binary :all: -d FOLDER torch==2.13.0 nanogcg==0.3.0 transformers==4.47.1

or --peer FOLDER, in which `pip install --no-deps --target FOLDER` has put nanoGCG, transformers
and what they need of other versions than are here; they go before the packages that are here.

nanoGCG has its own defaults: all candidates in one batch (halved if memory runs out), cached keys
and values of the tokens before the suffix, losses in the precision of the model: in bf16 a loss of
11 is rounded to sixteenths.

Each side is a new process per round; loading and a first step to warm up are not counted. TFLOP/s
are those of the linear layers in forward passes, as executed; the rate of matrix products, of which
a share is told, is measured in the same process. The weights of --shape and, without --venv, the
environment are created in the temporary folder (TMPDIR): 16 GB for 8b, and the size of torch.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import torch

from benchmarks import memory
from benchmarks.growth import executed, product_rate
from benchmarks.models import SHAPES, older_copy
from benchmarks.recording import record
from robench import organism
from robench.methods.registry import load_class as method
from robench.model.loading import find_model, load_model
from robench.types import Attempt, Behavior, Context

PEER = ("nanogcg==0.3.0", "transformers==4.47.1")
SIDES = ("robench", "robench, prune=false", "nanogcg")


def main() -> None:
    args = _arguments()
    if args.shape:
        args.dtype, args.device = "bfloat16", "cuda"
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.weights or Path(scratch) / "model"
        if not args.weights:
            older_copy(folder, args.shape)
        chosen = [b for b in organism.behaviors("test") if b.harmful][: args.behaviors]
        args.behaviors = len(chosen)
        job = {
            "model": str(folder),
            "device": args.device,
            "dtype": args.dtype,
            "behaviors": [[b.request, b.target] for b in chosen],
            "init": args.init,
            "width": args.width,
            "topk": args.topk,
            "steps": args.steps,
        }
        here = [sys.executable, "-m", "benchmarks.gcg", "--side"]
        there = peer(args, Path(scratch)) if "nanogcg" in args.sides else []
        results: dict[str, list[dict[str, Any]]] = {name: [] for name in args.sides}
        for seed in range(args.rounds):
            for name in args.sides:
                command = there if name == "nanogcg" else here
                round_job = {**job, "seed": seed, "prune": not name.endswith("prune=false")}
                results[name].append(run_side(command, round_job))
                print(f"{name}: {results[name][-1]['seconds']:.1f} s", flush=True)
    report(args, results)


def peer(args: argparse.Namespace, scratch: Path) -> list[str]:
    """The command of nanoGCG's side."""
    script = str(Path(__file__).with_name("nanogcg_side.py"))
    if args.peer:
        return ["env", f"PYTHONPATH={args.peer.resolve()}", sys.executable, script]
    return [str(environment(args.venv or scratch / "venv", args.wheels)), script]


def environment(folder: Path, wheels: Path | None) -> Path:
    """The Python of nanoGCG's environment, which is created or completed by pip."""
    python = folder / "bin" / "python"
    if not python.is_file():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    options = ["--no-index", "--find-links", str(wheels)] if wheels else []
    pinned = f"torch=={torch.__version__.partition('+')[0]}"
    subprocess.run([str(python), "-m", "pip", "install", "-q", *options, pinned, *PEER], check=True)
    return python


def run_side(command: list[str], job: dict[str, Any]) -> dict[str, Any]:
    """The result of one side: the last line that it prints."""
    process = subprocess.run(
        command, input=json.dumps(job), stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(process.stdout.splitlines()[-1])


def side(job: dict[str, Any]) -> dict[str, Any]:
    """robench's side: all behaviors in one batch."""
    model = load_model(find_model(job["model"]), device=job["device"], dtype=job["dtype"])
    behaviors = [Behavior(f"b{i}", text, target=t) for i, (text, t) in enumerate(job["behaviors"])]
    preset = {**method("attack", "gcg").presets["nanogcg"], "every": job["steps"]}
    settings = {key: job[key] for key in ("init", "width", "topk", "steps", "prune")}
    gcg = method("attack", "gcg")
    model.allowed  # noqa: B018  computed here, as nanoGCG's list of banned tokens is not counted
    list(gcg(**{**preset, **settings, "steps": 1}).run(model, behaviors[:1], Context()))
    memory.reset_peak(job["device"])
    attempts: list[Attempt] = []
    search = gcg(**{**preset, **settings}).run(model, behaviors, Context(seed=job["seed"]))
    begin = time.perf_counter(), time.process_time()
    flops = executed(model.network, lambda: attempts.extend(search))
    seconds, cpu = time.perf_counter() - begin[0], time.process_time() - begin[1]
    # nanoGCG's best loss does not count the start
    best = [min(a.trace[1:]) for a in attempts if a.final and a.tag == "last"]
    peak = memory.peak(job["device"])
    start = [a.trace[0] for a in attempts if a.final and a.tag == "last"]
    return {
        "seconds": seconds,
        "cpu": cpu,
        "best": best,
        "start": start,
        "peak": peak,
        "rate": flops / seconds,
        "share": flops / seconds / product_rate(model, 3),
    }


def report(args: argparse.Namespace, results: dict[str, list[dict[str, Any]]]) -> None:
    count = args.behaviors * args.steps
    shape = f"Llama {args.shape}" if args.shape else args.weights.name if args.weights else ""
    record(
        f"gcg against {', '.join(PEER)}: {shape or 'organism'}, {args.dtype}, width {args.width}, "
        f"top-k {args.topk}, {len(args.init)} characters to start, "
        f"{args.behaviors} behaviors, {args.steps} steps, {args.rounds} rounds",
        [
            "",
            "ms per behavior-step",
            "CPU ms",
            "candidates/s",
            "TFLOP/s",
            "of products",
            "best loss (mean)",
            "peak MiB",
        ],
        [line(name, rounds, count, args.width) for name, rounds in results.items()],
        *compared(results, 1e-3 if args.dtype == "float32" else 0.2),
        device=args.device,
    )


def line(name: str, rounds: list[dict[str, Any]], count: int, width: int) -> list[object]:
    seconds = median(r["seconds"] for r in rounds) / count
    ours = "rate" in rounds[0]  # of nanoGCG the executed FLOPs are not counted
    return [
        name,
        1e3 * seconds,
        1e3 * median(r["cpu"] for r in rounds) / count,
        width / seconds,
        median(r["rate"] for r in rounds) / 1e12 if ours else "",
        f"{median(r['share'] for r in rounds):.0%}" if ours else "",
        f"{mean(b for r in rounds for b in r['best']):.4f}",
        f"{max(r['peak'] for r in rounds) / 2**20:.0f}",
    ]


def compared(results: dict[str, list[dict[str, Any]]], most: float) -> list[str]:
    """robench beside nanoGCG, whose losses before the first step differ by at most `most`."""
    if not {"robench", "nanogcg"} <= results.keys():
        return []
    theirs = results["nanogcg"]
    starts = zip(results["robench"][0]["start"], theirs[0]["start"], strict=True)
    if max(abs(a - b) for a, b in starts) > most:
        sys.exit("the two sides do not start at the same loss: their prompts differ")
    gaps = [a - b for one, other in zip(results["robench"], theirs, strict=True)
            for a, b in zip(one["best"], other["best"], strict=True)]  # fmt: skip
    noise = stdev(gaps) / math.sqrt(len(gaps)) if len(gaps) > 1 else math.nan
    lines = [
        f"best loss, robench minus nanoGCG: {mean(gaps):+.4f} (standard error {noise:.4f})",
    ]
    nano = median(r["seconds"] for r in theirs)
    for name, words in (("robench, prune=false", "ratio with prune=false"), ("robench", "ratio")):
        if name in results:
            lines.append(f"{words}: {nano / median(r['seconds'] for r in results[name]):.2f}")
    return lines


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, help="random weights in bf16 on CUDA")
    parser.add_argument("--weights", type=Path, help="a folder that benchmarks.models has made")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES)
    parser.add_argument("--behaviors", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--topk", type=int, default=256)
    parser.add_argument("--init", default="!" * 10, help="the start; 10 tokens of the organism")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--venv", type=Path, help="nanoGCG's environment, created if missing")
    parser.add_argument("--peer", type=Path, help="a folder with nanoGCG and what it needs")
    parser.add_argument("--wheels", type=Path, help="a folder of wheels, instead of an index")
    return parser.parse_args()


if __name__ == "__main__":
    if "--side" in sys.argv:
        print(json.dumps(side(json.load(sys.stdin))))
    else:
        main()
