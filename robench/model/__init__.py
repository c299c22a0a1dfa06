"""The chat model: its methods, templates and batches, and the scoring of candidates for a gap.

Plug-ins use what is exported here; the files inside are internal. Names are imported on first use:
finding a model's files does not need torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robench.model.chat_model import ChatModel as ChatModel
    from robench.model.chat_model import Reply as Reply
    from robench.model.hooks import at_depth as at_depth
    from robench.model.hooks import edited as edited
    from robench.model.probes import Probes as Probes
    from robench.model.probes import fit_probes as fit_probes
    from robench.model.probes import perturbation as perturbation
    from robench.model.probes import perturbation_norms as perturbation_norms
    from robench.model.slots import Slots as Slots

_HOMES = {
    "ChatModel": "chat_model",
    "Probes": "probes",
    "Reply": "chat_model",
    "Slots": "slots",
    "at_depth": "hooks",
    "edited": "hooks",
    "fit_probes": "probes",
    "perturbation": "probes",
    "perturbation_norms": "probes",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
