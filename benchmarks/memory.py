"""The most memory that a side took; imported by both, so it needs nothing but torch."""

import math
from pathlib import Path

import torch


def begin(device: str) -> None:
    """Count a GPU's tensors from here on."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)


def peak(device: str) -> float:
    """Bytes: of a GPU's tensors since `begin`, else of the whole process; NaN where not told.

    Not getrusage's ru_maxrss, which a process on Linux inherits from the one that started it.
    """
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    lines = status.read_text("ascii").splitlines() if status.is_file() else []
    found = [1024.0 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:")]
    return found[0] if found else math.nan
