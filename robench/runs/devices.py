"""Where models work, and in which precision."""

import torch

from robench.errors import InputError


def choose_device(wanted: str | None, device_map: str | None = None, here: bool = True) -> str:
    """The device that is asked for, by default a GPU if there is one.

    Args:
        wanted: a device, None for the default.
        device_map: which cannot be asked for besides a device.
        here: whether it is this machine's; others are not looked at, and what is asked for counts.

    Raises:
        InputError: this machine has no such device, or both are asked for.
    """
    if wanted and device_map:
        raise InputError("give --device or --device-map, not both")
    if not here and (wanted or device_map):
        return wanted or "cuda"
    if wanted is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"device {wanted!r}: no CUDA device is available here")
    try:
        torch.empty(0, device=wanted)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {wanted!r}: {str(error).splitlines()[0]}") from None
    return wanted


def default_dtype(device: str, built_in: bool) -> str:
    """The precision of a model for which none was asked: the organism's is always fp32."""
    return "bfloat16" if device.startswith("cuda") and not built_in else "float32"


def hardware(device: str) -> str:
    """What a device is called by its maker, if it is a GPU."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device
