"""How fast a device is expected to work, for forecasts."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import NamedTuple, TypedDict

SHARES = "engine_shares.json"


class Share(TypedDict):
    """What part of a GPU's rate of matrix products the engine reached in a benchmark.

    A line of engine_shares.json, which `python -m benchmarks.growth` adds to on a GPU. The line
    whose device is "" stands for all that have none: GCG's one public figure.
    """

    device: str
    share: float
    source: str


class Rate(NamedTuple):
    """tflops: sustained, per second
    how: where the number comes from, as the end of a sentence
    """

    tflops: float
    how: str


def shares() -> list[Share]:
    """All recorded shares, the latest of a device last."""
    return json.loads((files("robench.runs") / SHARES).read_text("utf-8"))


def given(tflops: float, device: str) -> Rate:
    """The rate that a user gives."""
    return Rate(tflops, f"as given for {device}")


def expected(measured: float, device: str, name: str) -> Rate:
    """The rate of a device on which matrix products were measured.

    Args:
        measured: TFLOP/s of these.
        device: "cpu", "cuda:0": of a CPU the products' rate is taken as it is.
        name: of a GPU, as its maker calls it.
    """
    products = f"measured with matrix products on {device}"
    if not device.startswith("cuda"):
        return Rate(measured, products)
    known = {line["device"]: line for line in shares()}
    line = known.get(name, known[""])
    missing = "" if name in known else f", as no benchmark on {name} is recorded"
    how = f"{line['share']:.0%} of {measured:.3g} {products}: {line['source']}{missing}"
    return Rate(measured * line["share"], how)
