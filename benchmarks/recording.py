"""Print a benchmark's table and append it, with versions and hardware, to RESULTS.md."""

import os
import platform
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "RESULTS.md"


def record(
    title: str, columns: list[str], rows: list[list[object]], *notes: str, device: str
) -> None:
    """Print a table of measurements on `device` and append it to RESULTS.md under `title`."""
    lines = [_line(columns), _line(["---"] * len(columns)), *map(_line, rows)]
    print("\n".join([title, "", *lines, "", *notes]), flush=True)
    page = ["", f"## {title}", "", f"{date.today()}, {machine(device)}.", "", *lines]
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write("\n".join([*page, *(line for note in notes for line in ("", note)), ""]))


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
