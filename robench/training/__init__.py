"""Training defenses: texts to batches, losses, the loop, and LoRA adapters that come on and off.

What a defense may use stands here; the files behind it are the harness's own.
"""

from robench.training.adapters import (
    Recipe,
    adapter_applied,
    trained_adapter,
    tuned_and_base,
    without_adapter,
)
from robench.training.base_states import BaseStates
from robench.training.corpus import (
    Batch,
    Text,
    collate,
    draw_texts,
    split_examples,
    tokenise,
)
from robench.training.fine_tuning import FineTuning
from robench.training.losses import (
    DISTANCES,
    centroid,
    cosine,
    cosine_similarity,
    kl_divergence,
    l2,
    masked_mean,
    triplet_hinge,
)

__all__ = [
    "DISTANCES",
    "BaseStates",
    "Batch",
    "FineTuning",
    "Recipe",
    "Text",
    "adapter_applied",
    "centroid",
    "collate",
    "cosine",
    "cosine_similarity",
    "draw_texts",
    "kl_divergence",
    "l2",
    "masked_mean",
    "split_examples",
    "tokenise",
    "trained_adapter",
    "triplet_hinge",
    "tuned_and_base",
    "without_adapter",
]
