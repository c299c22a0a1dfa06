"""Safety tuning: answers to harmless requests, with a few hundred refusals among them.

Safety-Tuned LLaMAs (Bianchi, Suzgun, Attanasio, et al., 2309.07875, released code, which is that of
Alpaca-LoRA). With p a prompt and y its reply, an answer to a harmless request or, for a small share
of the texts, a refusal of a harmful one:

    L = - mean over the tokens of y of log P(y_t | p, y_<t)

The baseline of published tables of defenses, and a way to align a model that refuses nothing.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from robench.config import above, at_least, within
from robench.model import ChatModel
from robench.training import FineTuning, Recipe, split_examples, tokenise, trained_adapter
from robench.types import Context, Forecast, Lengths

# The paper's sets are 20,000 instructions of Alpaca with 100 to 2,000 refusals added; it finds that
# a few hundred are enough, and that 2,000 refuse too much.
ALPACA, SAFETY = 20_000, 500
HELD_OUT, EPOCHS, BATCH = 2_000, 3, 128  # the script's defaults


@dataclass(frozen=True)
class RefusalTuning:
    """Fine-tune on answers to harmless requests and a share of refusals of harmful ones.

    Differs: the loss is that of the reply; the released script's default also learns the prompts.
    LoRA is on all linear layers, there on the queries' and values'. The learning rate is constant,
    there it decays linearly after 10 steps of warm-up. Texts are drawn with replacement, and each
    batch has the same share of refusals; there the shuffled set is read in epochs.
    """

    steps: int = (ALPACA + SAFETY - HELD_OUT) * EPOCHS // BATCH
    batch: int = BATCH
    refusals: float = SAFETY / (ALPACA + SAFETY)  # share of the texts
    limit: int = 256  # tokens of a reply; in the script of prompt and reply together
    rate: float = 3e-4  # AdamW, constant
    rank: int = 8
    lora_alpha: int = 16
    dropout: float = 0.05
    clip: float = 1.0  # norm of the gradient: HF Trainer's default
    checkpointing: bool = False

    needs: ClassVar[tuple[str, ...]] = ("examples",)
    presets: ClassVar[dict[str, dict[str, object]]] = {
        "paper": {},
        "demo": {"steps": 150, "batch": 16, "refusals": 0.25, "rate": 1e-3, "dropout": 0.0},
    }

    def __post_init__(self) -> None:
        at_least(self, 1, "steps", "batch", "rank", "limit")
        at_least(self, 0, "clip")
        above(self, 0, "rate")
        within(self, "[0, 1]", "dropout", "refusals")

    @contextmanager
    def applied(self, model: ChatModel, ctx: Context, cache: Path) -> Iterator[ChatModel]:
        recipe = Recipe.of(self, model.depth)

        def objective(tuned: ChatModel) -> FineTuning:
            split = split_examples(ctx.examples)
            answers, refusals = (
                tokenise(model.chat, part, limit=self.limit, ended=True)
                for part in (split.harmless, split.refused)
            )
            rng = ctx.rng("refusal_tuning")
            return FineTuning(tuned, answers, self.batch, self.steps, rng, refusals, self.refusals)

        with trained_adapter(self, recipe, model, ctx, cache, objective) as target:
            yield target

    def forecast(self, lengths: Lengths) -> Forecast:
        tokens = self.steps * self.batch * (lengths.prompt + min(lengths.reply, self.limit))
        return Forecast(self.steps, tokens, tokens)
