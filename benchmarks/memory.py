"""Peak memory; imported by both sides of `benchmarks.gcg`, so it needs only torch."""

import math
from pathlib import Path

import torch


def reset_peak(device: str) -> None:
    """Measure a GPU's peak from here on."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)


def peak(device: str) -> float:
    """Peak bytes: of a GPU's tensors since `reset_peak`, else of the whole process; or NaN.

    Not getrusage's ru_maxrss, which a process on Linux inherits from the one that started it.
    """
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    lines = status.read_text("ascii").splitlines() if status.is_file() else []
    peaks = [1024.0 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:")]
    return peaks[0] if peaks else math.nan
