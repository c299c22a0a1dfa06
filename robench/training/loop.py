"""The training loop: AdamW on an Objective, with progress, a NaN guard and checkpoints.

An interrupted training resumes from its last checkpoint and ends with the same weights.
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
    objective: Objective,
    parameters: Mapping[str, nn.Parameter],
    rate: float,
    checkpoint: Path,
    purpose: str,
    cost: Callable[[], Cost],
    clip: float = 0.0,
) -> tuple[Curves, Cost]:
    """Train until the objective is done: AdamW, constant learning rate, no weight decay.

    Args:
        objective: computes and backpropagates the losses of each step.
        parameters: the trained parameters by name.
        rate: the learning rate.
        checkpoint: the file that the training resumes from if it exists, and is saved to.
        purpose: a hash of what is trained: a checkpoint of another training is ignored.
        cost: the cost of this training since it was started or resumed.
        clip: the norm to which the gradient of all parameters together is scaled down where it is
            larger; 0: never.

    Returns:
        The losses per step by name, and the whole cost, including that before interruptions.

    Raises:
        Failure: a loss or a parameter was NaN or infinite.
    """
    optimizer = torch.optim.AdamW(parameters.values(), lr=rate, weight_decay=0.0)
    step, earlier, curves = _resume(checkpoint, purpose, objective, parameters, optimizer)

    def total() -> Cost:
        now = cost()
        return Cost(earlier.seconds + now.seconds, earlier.tflop + now.tflop)

    with tqdm(desc="training", unit="step", initial=step, leave=False, disable=None) as bar:
        while not objective.done(step):
            step += 1
            losses = objective.backward(step)
            for name, value in losses.items():
                if value != value or abs(value) == float("inf"):
                    raise Failure(f"training stopped: {name} is {value} at step {step}")
                curves.setdefault(name, []).append(round(value, 6))
            if clip:
                nn.utils.clip_grad_norm_(parameters.values(), clip)
            optimizer.step()
            optimizer.zero_grad()
            bar.set_postfix({name: f"{value:.3f}" for name, value in losses.items()})
            bar.update()
            if step % EVERY == 0:
                _check_finite(parameters, step)
                about = {"purpose": purpose, "step": step, "spent": total(), "curves": curves}
                _save(checkpoint, about, objective, parameters, optimizer)
    _check_finite(parameters, step)
    return curves, total()


def _check_finite(parameters: Mapping[str, nn.Parameter], step: int) -> None:
    for name, parameter in parameters.items():
        if not parameter.isfinite().all():
            raise Failure(f"training stopped: {name} is not finite after step {step}")


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
    objective: Objective,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
) -> tuple[int, Cost, Curves]:
    """Steps, cost and curves of the checkpoint; all other state is restored."""
    if not checkpoint.is_file():
        return 0, Cost(), {}
    with safe_open(checkpoint, framework="pt") as file:
        about = json.loads(file.metadata()["about"])
        if about["purpose"] != purpose:
            return 0, Cost(), {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    groups: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        group, _, rest = name.partition("/")
        groups.setdefault(group, {})[rest] = tensor
    objective.load(groups.get("goal", {}))
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(groups["parameter"][name])
            optimizer.state[parameter] = {
                group.partition(".")[2]: values[name].to(
                    "cpu" if group == "optimizer.step" else parameter.device
                )
                for group, values in groups.items()
                if group.startswith("optimizer.") and name in values
            }
    torch.set_rng_state(groups["random"]["cpu"])
    for device, state in groups["random"].items():
        if device != "cpu":
            torch.cuda.set_rng_state(state, device)
    return about["step"], Cost(*about["spent"]), about["curves"]
