"""How long tables and the page of a large run take, and how much memory.

    python -m benchmarks.report [--behaviors 300] [--attempts 20]

A run of 10 attacks on 8 defenses is made up on the disk, then `robench leaderboard` and `robench
report` are timed as commands of their own.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from robench.results.store import Cell, RunStore

ATTACKS, DEFENSES = 10, 8
WORDS = "rope river petal lamp warm find take hold over under".split()  # noqa: SIM905


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--behaviors", type=int, default=300)
    parser.add_argument("--attempts", type=int, default=20)
    sizes = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = make(Path(folder) / "run", sizes.behaviors, sizes.attempts)
        print(f"{rows} rows")
        for command in ("leaderboard", "report"):
            seconds, cpu, gib = timed(command, Path(folder) / "run")
            print(f"robench {command}: {seconds:.1f} s, {cpu:.1f} s of a CPU, {gib:.2f} GiB")
        size = (Path(folder) / "run" / "report.html").stat().st_size
        print(f"report.html: {size / 1e6:.1f} MB")


def timed(command: str, folder: Path) -> tuple[float, float, float]:
    """Seconds, processor seconds and peak memory (GiB) of a command of robench on a run."""
    started, before = time.perf_counter(), children_seconds()
    words = [sys.executable, "-m", "robench", command, str(folder)]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return time.perf_counter() - started, children_seconds() - before, peak / 2**20


def children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def make(folder: Path, behaviors: int, attempts: int) -> int:
    """Write a run; return how many rows it has."""
    ids = [f"b{number:03}" for number in range(behaviors)]
    attacks = ["direct", *(f"attack{number}" for number in range(1, ATTACKS))]
    defenses = ["none", *(f"defense{number}" for number in range(1, DEFENSES))]
    store = RunStore(folder)
    fields = {name: {"threshold": 0.5, "reads_content": True} for name in ("one", "two")}
    question = {"model": "made-up", "judge_fields": fields}
    store.open_for(question, {}, {"defenses": defenses, "attacks": attacks})
    total = 0
    for defense in defenses:
        for attack in (*attacks, "benign"):
            cell = Cell("made-up", defense, attack, 0, _header(defense, attack, ids, fields))
            path = store.open(cell, _info(attacks))
            with (path / "rows.jsonl").open("w") as file:
                for row in _rows(ids, 1 if attack == "benign" else attempts, defense, attack):
                    file.write(json.dumps(row) + "\n")
                    total += 1
    return total


def _header(defense: str, attack: str, ids: list[str], fields: dict[str, Any]) -> Any:
    roles = {"direct": "baseline", "benign": "benign"}
    shared = dict.fromkeys(
        ("weights", "template", "train", "behaviors", "benign", "reference", "attack_source"),
        "0" * 64,
    )
    return {
        **shared, "model": "made-up", "defense": defense, "attack": attack, "seed": 0,
        "defense_role": "baseline" if defense == "none" else "defense", "defense_tier": "demo",
        "defense_note": "", "defense_fields": {}, "defense_source": defense, "tier": "demo",
        "role": roles.get(attack, "attack"), "attack_fields": {"name": attack}, "planned": ids,
        "judges": ["one", "two"], "judge_fields": fields, "tune_judge": "two", "samples": 0,
        "temperature": None, "system": None, "dtype": "float32",
    }  # fmt: skip


def _info(attacks: list[str]) -> dict[str, Any]:
    return {
        "suite": {"name": "made-up", "attacks": attacks}, "train_seconds": 1.0,
        "harness_version": "0", "versions": {}, "device": "cpu", "threads": 1, "commit": None,
    }  # fmt: skip


def _rows(ids: list[str], attempts: int, defense: str, attack: str) -> Iterator[dict[str, Any]]:
    rng = random.Random(f"{defense} {attack}")
    harmless = attack == "benign"
    for number, behavior in enumerate(ids):
        for step in range(attempts):
            score = rng.random() ** (0.3 if harmless else 8)
            last = step == attempts - 1
            yield {
                "behavior": behavior, "category": f"kind {number % 7}", "harmful": not harmless,
                "step": 10 * step, "tag": "", "final": last, "access": "text",
                "prompt_sha256": "0" * 64, "roundtrip_ok": True, "loss": score,
                "trace": [0.5] * (attempts if last else 0), "tries": 0, "chosen": 0,
                "edge_of_grid": False, "gradient_norm": 1.0,
                "artifact": {"messages": [{"role": "user", "content": _text(rng, 40)}],
                             "tensors": None},
                "reply": _text(rng, 60), "truncated": False,
                "scores": {"one": score, "two": min(1.0, score * 1.1)}, "samples": [],
                "refused": score < 0.2,
                "text": {"dominant": 0.1, "repeated": 0.1, "compression": 1.5, "nontext": 0.1,
                         "perplexity": 5.0},
                "seconds": 0.1 * step, "tflop": 0.01 * step, "last": last,
            }  # fmt: skip


def _text(rng: random.Random, words: int) -> str:
    return " ".join(rng.choices(WORDS, k=words))


if __name__ == "__main__":
    main()
