"""Print a benchmark's table and append it, with versions and hardware, to RESULTS.md.

BENCHMARK_RESULTS names another file.
"""

import json
import os
import platform
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch

RESULTS = Path(os.environ.get("BENCHMARK_RESULTS", Path(__file__).parent / "RESULTS.md"))
SHARES = Path(__file__).parent.parent / "robench" / "runs" / "engine_shares.json"


def record(
    title: str, columns: list[str], rows: list[list[object]], *notes: str, device: str
) -> None:
    """Print a table of measurements on `device` and append it to RESULTS.md under `title`."""
    lines = [_line(columns), _line(["---"] * len(columns)), *map(_line, rows)]
    print("\n".join([title, "", *lines, "", *notes]), flush=True)
    page = ["", f"## {title}", "", f"{date.today()}, {machine(device)}.", "", *lines]
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write("\n".join([*page, *(line for note in notes for line in ("", note)), ""]))


def record_share(share: float, device: str) -> None:
    """Keep the share of a GPU's product rate that was reached, for the forecasts of runs."""
    name = torch.cuda.get_device_name(device)
    others = [line for line in json.loads(SHARES.read_text("utf-8")) if line["device"] != name]
    source = f"the share that the engine reached on {name} in benchmarks.growth, {date.today()}"
    line = {"device": name, "share": round(share, 3), "source": source}
    SHARES.write_text(json.dumps([*others, line], indent=2) + "\n", "utf-8")


def machine(device: str) -> str:
    """Versions and hardware in a line."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("robench", "torch", "transformers"))
    where = f"{_processor()}, {torch.get_num_threads()} of {os.cpu_count()} cores"
    if device.startswith("cuda"):
        where += f", {torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"
    return f"Python {platform.python_version()}, {versions}, {where}"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _line(cells: list[object] | list[str]) -> str:
    return "| " + " | ".join(f"{c:.3g}" if isinstance(c, float) else str(c) for c in cells) + " |"
