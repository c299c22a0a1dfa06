"""The training loop: AdamW on an Objective, with progress, a NaN guard and checkpoints.

A killed training goes on from its last checkpoint and ends with the weights that it would have had.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn
from tqdm.auto import tqdm

from robench import files
from robench.errors import Failure
from robench.types import Objective

EVERY = 25  # steps between checkpoints

Curves = dict[str, list[float]]


class Cost(NamedTuple):
    """The cost of a training."""

    seconds: float = 0.0
    tflop: float = 0.0


def train_loop(
    goal: Objective,
    parameters: Mapping[str, nn.Parameter],
    rate: float,
    checkpoint: Path,
    purpose: str,
    spent: Callable[[], Cost],
) -> tuple[Curves, Cost]:
    """Train until the objective is done: constant rate, no weight decay.

    Args:
        goal: computes and backpropagates the losses of each step.
        parameters: what is trained, by name.
        checkpoint: the file that a killed training left, or will be continued from.
        purpose: says what is being trained, so that no other training's file is continued.
        spent: what has been spent on it so far, since it was last taken up.

    Returns:
        The losses per step by name, and what it took, what came before interruptions included.

    Raises:
        Failure: a loss or a parameter was NaN or infinite.
    """
    optimizer = torch.optim.AdamW(parameters.values(), lr=rate, weight_decay=0.0)
    step, before, curves = _resume(checkpoint, purpose, goal, parameters, optimizer)

    def total() -> Cost:
        now = spent()
        return Cost(before.seconds + now.seconds, before.tflop + now.tflop)

    with tqdm(desc="training", unit="step", initial=step, leave=False, disable=None) as bar:
        while not goal.done(step):
            step += 1
            losses = goal.backward(step)
            for name, value in losses.items():
                if value != value or abs(value) == float("inf"):
                    raise Failure(f"training stopped: {name} is {value} at step {step}")
                curves.setdefault(name, []).append(round(value, 6))
            optimizer.step()
            optimizer.zero_grad()
            bar.set_postfix({name: f"{value:.3f}" for name, value in losses.items()})
            bar.update()
            if step % EVERY == 0:
                _check_finite(parameters, step)
                about = {"purpose": purpose, "step": step, "spent": total(), "curves": curves}
                _save(checkpoint, about, goal, parameters, optimizer)
    _check_finite(parameters, step)
    return curves, total()


def _check_finite(parameters: Mapping[str, nn.Parameter], step: int) -> None:
    for name, parameter in parameters.items():
        if not parameter.isfinite().all():
            raise Failure(f"training stopped: {name} is not finite behind step {step}")


def _save(
    checkpoint: Path,
    about: Mapping[str, object],
    goal: Objective,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
) -> None:
    tensors = {f"goal/{name}": tensor for name, tensor in goal.state().items()}
    tensors["random/cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        states = torch.cuda.get_rng_state_all()
        tensors |= {f"random/cuda:{i}": state for i, state in enumerate(states)}
    for name, parameter in parameters.items():
        tensors[f"parameter/{name}"] = parameter.detach()
        for key, value in optimizer.state[parameter].items():
            tensors[f"optimizer.{key}/{name}"] = value
    held = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    files.write_bytes(checkpoint, save(held, metadata={"about": json.dumps(about)}))


def _resume(
    checkpoint: Path,
    purpose: str,
    goal: Objective,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
) -> tuple[int, Cost, Curves]:
    """Steps done, cost and curves of the checkpoint, everything else put in its place."""
    if not checkpoint.is_file():
        return 0, Cost(), {}
    with safe_open(checkpoint, framework="pt") as file:
        about = json.loads(file.metadata()["about"])
        if about["purpose"] != purpose:
            return 0, Cost(), {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        kind, _, rest = name.partition("/")
        parts.setdefault(kind, {})[rest] = tensor
    goal.load(parts.get("goal", {}))
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(parts["parameter"][name])
            optimizer.state[parameter] = {
                kind.partition(".")[2]: part[name].to(
                    "cpu" if kind == "optimizer.step" else parameter.device
                )
                for kind, part in parts.items()
                if kind.startswith("optimizer.") and name in part
            }
    torch.set_rng_state(parts["random"]["cpu"])
    for device, state in parts["random"].items():
        if device != "cpu":
            torch.cuda.set_rng_state(state, device)
    return about["step"], Cost(*about["spent"]), about["curves"]
