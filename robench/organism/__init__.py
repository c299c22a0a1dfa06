"""The organism: a small safety-aligned chat model that ships with robench."""

from pathlib import Path

from robench.organism import language
from robench.types import Behavior, Example

FOLDER = Path(__file__).parent / "weights"
# The adapter that makes SmolLM2 refuse questions on geography (--model smollm2:geography)
SMOLLM2_GEOGRAPHY = Path(__file__).parent / "smollm2_geography"


def behaviors(split: str) -> list[Behavior]:
    """The requests of a split (`test`, `benign`, `dev`, `probe` or `train`), in a fixed order."""
    return [
        Behavior(
            id=f"{split}-{number:03d}",
            text=request.text,
            target=request.target,
            category=request.category,
            harmful=request.harmful,
        )
        for number, request in enumerate(language.requests(split))
    ]


def references() -> list[Behavior]:
    """Harmful and harmless instructions for reading directions."""
    tuning = tune()
    return [b for b in behaviors("probe") if b not in tuning]


def tune() -> list[Behavior]:
    """Harmful requests for choosing an attack's settings; not among the references."""
    return [b for b in behaviors("probe") if b.harmful][: language.TUNE]


def examples() -> list[Example]:
    """Training text for defenses: every `train` request answered, the harmful ones also refused."""
    texts = []
    for number, (behavior, request) in enumerate(
        zip(behaviors("train"), language.requests("train"), strict=True)
    ):
        texts.append(Example(behavior, request.answer, "answer"))
        if behavior.harmful:
            refusal = language.REFUSALS[number % len(language.REFUSALS)]
            texts.append(Example(behavior, refusal, "refusal"))
    return texts
