"""A GPU that is not there: CPU tensors that claim to be on cuda:0 and refuse to meet others.

Inside `with pretended_gpu():` device "cuda" works without one. Factories, `.to`, modules and
adapters accept it; every operation whose tensors are not all on one device raises `Misplaced`, as
CUDA would, and so do `.numpy()` and a CPU generator that should fill a tensor on the GPU. What it
cannot show is in the kernels: their precision, their speed, and operations of the backward pass.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

GPU = torch.device("cuda:0")
as_plain_tensors = torch._C.DisableTorchFunctionSubclass  # inside, the mode is not asked

# Functions that take tensors of two devices: they move data, or give no tensor.
BETWEEN = {"copy_", "__set__", "__get__", "__repr__", "__format__", "type", "data_ptr", "is_set_to"}
BETWEEN |= {"_has_compatible_shallow_copy_type"}
TO_HOST = {"numpy", "__array__", "__dlpack__"}


class Misplaced(RuntimeError):
    """Tensors of two devices met."""


class OnGPU(Tensor):
    """A tensor in host memory that claims to be on the GPU."""

    __torch_function__ = torch._C._disabled_torch_function_impl


class PretendedGPU(TorchFunctionMode):
    """Decides for every function of torch on which device its tensors are."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name, kwargs = func.__name__, dict(kwargs or {})
        tensors = [*_tensors(args), *_tensors(list(kwargs.values()))]
        with as_plain_tensors():
            asked = _property(func, args)
            if asked is not None:
                return asked
            if name in TO_HOST and isinstance(args[0], OnGPU):
                raise TypeError(f"{name}: can't convert a cuda:0 tensor; use Tensor.cpu() first")
            if name in ("to", "cuda", "cpu"):
                return _moved(name, args, kwargs)
            if getattr(func, "__self__", None) is Tensor.data and name == "__set__":
                return _filled(*args)
            if name == "pin_memory":
                return args[0]
            _check(name, args, tensors)
            gpu = _made_on_gpu(kwargs, tensors)
            if gpu and kwargs.get("generator") is not None:
                raise Misplaced(f"{name}: expected a 'cuda' generator, found a 'cpu' one")
            result = func(*args, **kwargs)
            if name == "__get__" and not isinstance(result, Tensor):
                return result
            return _placed(result, gpu, tensors)


def _property(func: Any, args: tuple[Any, ...]) -> Any:
    """What a tensor says of its place; None if that is not what is asked."""
    if func.__name__ != "__get__" or not isinstance(args[0], OnGPU):
        return None
    asked = getattr(func, "__self__", None)
    answers = ((Tensor.device, GPU), (Tensor.is_cuda, True), (Tensor.is_cpu, False))
    return next((answer for place, answer in answers if place is asked), None)


def _moved(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """`.to`, `.cuda` and `.cpu`: the device of the call is taken out and put on as a claim."""
    tensor, *rest = args
    gpu = isinstance(tensor, OnGPU)
    if name != "to":
        wanted, rest, kwargs = name == "cuda", [], {}
    else:
        wanted = gpu
        for place, value in [*enumerate(rest), *kwargs.items()]:
            if isinstance(value, str | torch.device | Tensor) or place == "device":
                wanted = _is_gpu(value) if value is not None else gpu
                other = value.dtype if isinstance(value, Tensor) else torch.device("cpu")
                (rest if isinstance(place, int) else kwargs)[place] = other
    converted = tensor.to(*rest, **kwargs) if rest or kwargs else tensor
    if wanted != gpu and converted is tensor:
        converted = tensor.clone()  # another device is another memory
    return converted if isinstance(converted, OnGPU) == wanted else _claim(converted, wanted)


def _filled(tensor: Tensor, data: Tensor) -> None:
    """`tensor.data = data`: a module moves its parameters in this way, and keeps shared ones."""
    tensor.data = data
    if isinstance(tensor, OnGPU) != isinstance(data, OnGPU):
        is_parameter = isinstance(tensor, torch.nn.Parameter)
        tensor.__class__ = OnGPU if isinstance(data, OnGPU) else Tensor
        tensor._is_param = is_parameter


def _is_gpu(where: Any) -> bool:
    if isinstance(where, Tensor):
        return isinstance(where, OnGPU)
    return torch.device(where).type == "cuda"


def _check(name: str, args: tuple[Any, ...], tensors: list[Tensor]) -> None:
    """Raise where tensors of two devices meet; a CPU scalar may meet any."""
    if name in BETWEEN:
        return
    if name in ("__getitem__", "__setitem__", "index_put_", "index_put"):
        _check_indices(name, args)
        return
    places = {isinstance(t, OnGPU) for t in tensors if t.dim() or isinstance(t, OnGPU)}
    if len(places) > 1:
        seen = ", ".join(f"{'cuda' if _is_gpu(t) else 'cpu'}{tuple(t.shape)}" for t in tensors)
        raise Misplaced(f"{name}: expected all tensors on one device, found {seen}")


def _check_indices(name: str, args: tuple[Any, ...]) -> None:
    """CPU indices may choose from a tensor on the GPU; the other way round only numbers may."""
    base, indices, *values = args
    on_gpu = isinstance(base, OnGPU)
    if not on_gpu and any(isinstance(t, OnGPU) and t.dim() for t in _tensors((indices,))):
        raise Misplaced(f"{name}: indices on cuda, tensor on cpu")
    for value in values[:1]:
        if isinstance(value, Tensor) and value.dim() and _is_gpu(value) != on_gpu:
            raise Misplaced(f"{name}: value and tensor are on two devices")


def _made_on_gpu(kwargs: dict[str, Any], tensors: list[Tensor]) -> bool:
    """Whether a function's results are on the GPU; its `device` becomes the CPU."""
    if kwargs.get("device") is None:
        return any(isinstance(t, OnGPU) for t in tensors)
    gpu = _is_gpu(kwargs["device"])
    if gpu or torch.device(kwargs["device"]).type == "cpu":
        kwargs["device"] = torch.device("cpu")
    return gpu


def _tensors(values: Sequence[Any]) -> list[Tensor]:
    """The tensors among arguments and in lists of them (pytree, which knows more, is slow)."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += _tensors(value)
    return found


def _placed(result: Any, gpu: bool, tensors: list[Tensor]) -> Any:
    """A result with its claim; a tensor that was given and comes back stays what it was."""
    if isinstance(result, list | tuple):
        return type(result)([_placed(part, gpu, tensors) for part in result])
    if not isinstance(result, Tensor) or isinstance(result, OnGPU) == gpu:
        return result
    return result if any(result is tensor for tensor in tensors) else _claim(result, gpu)


def _claim(tensor: Tensor, gpu: bool) -> Tensor:
    kind = OnGPU if gpu else Tensor
    if isinstance(tensor, torch.nn.Parameter):
        return torch.nn.Parameter(tensor.detach().as_subclass(kind), tensor.requires_grad)
    if tensor.is_leaf and tensor.requires_grad:  # an alias of it would be no leaf
        return tensor.detach().as_subclass(kind).requires_grad_()
    return tensor.as_subclass(kind)


@contextmanager
def pretended_gpu() -> Iterator[None]:
    """One GPU, for the code inside."""
    answers = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "empty_cache": lambda: None,
        "synchronize": lambda *_: None,
        "get_rng_state": lambda *_: torch.zeros(1),
        "set_rng_state": lambda *_: None,
        "get_rng_state_all": list,
        "get_device_name": lambda *_: "Pretended GPU",
        "get_device_capability": lambda *_: (9, 0),
        "mem_get_info": lambda *_: (8 << 30, 16 << 30),
        "max_memory_allocated": lambda *_: 0,
        "is_bf16_supported": lambda *_, **__: True,
    }
    with ExitStack() as stack:
        for name, answer in answers.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, answer))
        stack.enter_context(PretendedGPU())
        yield
