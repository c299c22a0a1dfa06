"""Training defenses: texts to batches, losses, the training loop, and LoRA adapters.

Defenses use what is exported here; the files inside are internal.
"""

from robench.training.adapters import Recipe, trained_adapter
from robench.training.applying import adapter_applied
from robench.training.base_states import BaseStates
from robench.training.corpus import (
    Batch,
    SplitTexts,
    Text,
    collate,
    draw_safe_texts,
    draw_texts,
    is_near_harmful,
    split_examples,
    tokenise,
    tokenise_split,
)
from robench.training.fine_tuning import FineTuning, reply_logits
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
from robench.training.modes import evaluating, tuned_and_base, without_adapter

__all__ = [
    "DISTANCES",
    "BaseStates",
    "Batch",
    "FineTuning",
    "Recipe",
    "SplitTexts",
    "Text",
    "adapter_applied",
    "centroid",
    "collate",
    "cosine",
    "cosine_similarity",
    "draw_safe_texts",
    "draw_texts",
    "evaluating",
    "is_near_harmful",
    "kl_divergence",
    "l2",
    "masked_mean",
    "reply_logits",
    "split_examples",
    "tokenise",
    "tokenise_split",
    "trained_adapter",
    "triplet_hinge",
    "tuned_and_base",
    "without_adapter",
]
