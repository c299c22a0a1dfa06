"""What a run is going to cost, before it runs: steps, FLOPs, hours, memory and disk. Estimates.

Compute. A token costs 2 N FLOP forward and 2 N backward, N as in `model.Usage`. The tokens are what
the methods forecast, "?" where one does not. Replies cost at most: every attempt is read, answered
with as many tokens as a reply may have, and read again with its reply for its perplexity; drawn
replies cost a reading and a reply each. Hours are FLOPs by the sustained rate of the device; where
replies are decoded a few at a time, memory and not arithmetic limits it, and they take longer.

Memory. Weights, plus the biggest pass. With L blocks of width d, inner width f and K/V width h, a
token of a pass holds 8 d + 3 f numbers in one block, in every block where there is a backward
pass (in one block and d in each where blocks are computed again); 2 L h of keys and values, twice,
as a prefix stands before it; and for every other token, a row of logits in 12 bytes per word of the
vocabulary. A pass has as many tokens as `batching.Chunks` begins with, or as a step has. Batches of
replies are counted likewise, by their keys and values. A trained defense adds its adapter: 16 bytes
per parameter with gradient and moments, on every block at most. A pass that does not fit is halved
by `Chunks`; a step of a training is not, as its batch is the method's. Judges, helper models and
defended models with weights of their own are not counted, nor are attention scores, which no kernel
but the eager one stores.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from robench.methods.faults import blamed, of
from robench.methods.registry import Method
from robench.model import loading
from robench.model.batching import Chunks
from robench.model.chat import Chat
from robench.model.chat_model import count_parameters
from robench.model.hooks import blocks
from robench.results.schema import HARMLESS_ROLES
from robench.runs.chunks import CHUNK
from robench.runs.progress import duration
from robench.runs.run_texts import RunTexts
from robench.runs.tasks import Group
from robench.training.corpus import tokenise
from robench.training.linear_maps import LinearMaps
from robench.types import Behavior, Forecast, Lengths, user

if TYPE_CHECKING:
    import pandas as pd

SAMPLE = 200  # training texts whose length is measured
GIB = 2**30


@dataclass(frozen=True)
class Setup:
    """How the cells will be run.

    device, dtype:  of the model
    max_new_tokens: the length of replies, thoughts included
    samples:        drawn replies to a final attempt
    rate:           sustained TFLOP/s of the device
    how:            where `rate` comes from
    """

    device: str
    dtype: str
    max_new_tokens: int
    samples: int
    rate: float = 1.0
    how: str = "as given"


@dataclass(frozen=True)
class Cost:
    """Of one cell or training; floating-point operations in TFLOP, memory and disk in bytes."""

    steps: int
    tflop: float
    replies: float
    memory: float
    disk: float


def measured_rate(device: str, dtype: str) -> float:
    """TFLOP/s of matrix products on the device, in about a second: more than a model reaches."""
    size = 8192 if device.startswith("cuda") else 1024
    matrix = torch.ones(size, size, device=device, dtype=getattr(torch, dtype))
    float((matrix @ matrix)[0, 0])  # reading a number waits for the device
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < 0.5:
        float((matrix @ matrix)[0, 0])
        count += 1
    return 2e-12 * size**3 * count / (time.perf_counter() - started)


class Estimate:
    """The costs of the cells of one model."""

    def __init__(
        self,
        found: loading.ModelFiles,
        system: str | None,
        texts: RunTexts,
        setup: Setup,
        template_args: Mapping[str, Any] | None = None,
    ) -> None:
        self.setup = setup
        chat, network = loading.load_without_weights(found, system, template_args)
        self.shape = Shape.of(network, setup)
        self.tested, self.trained = _lengths(chat, texts, setup, self.shape.depth)
        self.downloaded = sum(file.stat().st_size for file in found.folder.glob("*.safetensors"))

    def cell(
        self, attack: Any, behaviors: int, benign: bool, rank: int = 0, chunk: int = CHUNK
    ) -> Cost | None:
        """Of an attack on so many behaviors, None where it does not say.

        Args:
            benign: whether these are harmless requests, to which no replies are drawn.
            rank: of the adapter that the model wears.
            chunk: behaviors that the attack receives at once.
        """
        if not hasattr(attack, "forecast"):
            return None
        found = _checked(attack.forecast(self.tested))
        shape, lengths, setup = self.shape, self.tested, self.setup
        tokens = found.forward_tokens + found.backward_tokens
        answered = lengths.prompt + lengths.reply
        drawn = 0 if benign else setup.samples
        together = min(behaviors, chunk)
        at_once = 1 if found.once else together
        forward, backward = (
            min(shape.tokens, at_once * part // max(1, found.steps))
            for part in (found.forward_tokens, found.backward_tokens)
        )
        replies = found.attempts * together
        passes = [
            shape.held(forward),
            shape.held(backward, every_block=True),
            shape.replies(replies, lengths.prompt, lengths.reply),
            shape.held(min(shape.tokens, replies * answered)),
        ]
        row = 1000 + 4 * (2 * lengths.prompt + lengths.reply) + 4 * shape.width * found.vectors
        return Cost(
            found.steps,
            shape.tflop(tokens * (1 if found.once else behaviors)),
            shape.tflop(behaviors * answered * (2 * found.attempts + drawn)),
            shape.weights + 4 * shape.adapter(rank) + max(passes),
            behaviors * (found.attempts + drawn) * row,
        )

    def training(self, defense: Any) -> Cost | None:
        """Of a trained defense, None where it does not say."""
        if not hasattr(defense, "forecast"):
            return None
        found = _checked(defense.forecast(self.trained))
        adapter = self.shape.adapter(getattr(defense, "rank", 0))
        held = self.shape.held(
            found.backward_tokens // max(1, found.steps) // found.passes,
            every_block=True,
            again=getattr(defense, "checkpointing", False),
        )
        tflop = self.shape.tflop(found.forward_tokens + found.backward_tokens)
        memory = self.shape.weights + 16 * adapter + held
        return Cost(found.steps, tflop, 0.0, memory, 4 * adapter)


def _checked(found: Any) -> Forecast:
    if not isinstance(found, Forecast):
        raise TypeError(f"its forecast is of type {type(found).__name__}, no Forecast")
    return found


@dataclass(frozen=True)
class Shape:
    """What of a model's shape decides its costs.

    parameters: that a token meets (see `model.count_parameters`)
    weights:    bytes of all parameters
    kv:         width of keys, and of values
    linear:     inputs and outputs of all linear maps in blocks, added up
    number:     bytes of a number
    tokens:     of a pass (see `batching.Chunks`)
    """

    parameters: int
    weights: int
    depth: int
    width: int
    inner: int
    kv: int
    vocab: int
    linear: int
    number: int
    tokens: int

    @classmethod
    def of(cls, network: Any, setup: Setup) -> Shape:
        """Of a model, whose weights may be on the meta device."""
        config = network.config.get_text_config()
        width, heads = config.hidden_size, config.num_attention_heads
        head = getattr(config, "head_dim", None) or width // heads
        number = torch.empty(0, dtype=getattr(torch, setup.dtype)).element_size()
        return cls(
            parameters=count_parameters(network),
            weights=number * sum(p.numel() for p in network.parameters()),
            depth=len(blocks(network)),
            width=width,
            inner=getattr(config, "intermediate_size", None) or 4 * width,
            kv=head * (getattr(config, "num_key_value_heads", None) or heads),
            vocab=config.vocab_size,
            linear=LinearMaps.of(network, len(blocks(network))).sides,
            number=number,
            tokens=Chunks(torch.device(setup.device), width).tokens,
        )

    def tflop(self, tokens: int) -> float:
        return 2e-12 * self.parameters * tokens

    def adapter(self, rank: int) -> int:
        """Parameters of a LoRA adapter on every linear map of every block."""
        return rank * self.linear

    def held(self, tokens: int, every_block: bool = False, again: bool = False) -> float:
        """Bytes of a pass of so many tokens; the module's docstring has the formula."""
        block = 8 * self.width + 3 * self.inner
        states = block * (self.depth if every_block else 1)
        if again:
            states = block + self.depth * self.width
        cached = 0 if every_block and again else 2 * 2 * self.depth * self.kv
        return tokens * (self.number * (states + cached) + 12 * self.vocab / 2)

    def replies(self, count: int, prompt: int, reply: int) -> float:
        """Bytes of a batch of replies (see `ChatModel.replies`)."""
        rows = min(count, max(1, self.tokens // max(1, (prompt + reply) // 8)))
        cached = 2 * self.depth * self.kv * (prompt + reply)
        states = (8 * self.width + 3 * self.inner) * prompt
        return rows * (self.number * (cached + states) + 12 * self.vocab)


COLUMNS = (
    "defense", "attack", "seed", "cell", "steps", "tflop", "replies_tflop", "seconds",
    "memory_gib", "disk_gib",
)  # fmt: skip
TRAINING = "(training)"  # what trainings have for an attack


def forecast(groups: Sequence[Group], estimate: Estimate) -> pd.DataFrame:
    """A row per training and per cell, with COLUMNS; a training counts for its first cell.

    `attrs["estimate"]` is the estimate, for `summary`.
    """
    import pandas as pd

    rows = []
    for group in groups:
        defense: Method = group.defense
        if not group.cells:
            continue
        first = group.cells[0][0]
        rank = getattr(defense.instance, "rank", 0)
        if hasattr(defense.instance, "forecast"):
            with blamed(*of(defense)):
                cost = estimate.training(defense.instance)
            rows.append(_row((defense.name, TRAINING, group.seed, first.name), cost, estimate))
        for cell, attack in group.cells:
            benign = cell.header["role"] in HARMLESS_ROLES
            planned, chunk = len(cell.header["planned"]), cell.header["chunk"]
            with blamed(*of(attack)):
                cost = estimate.cell(attack.instance, planned, benign, rank, chunk)
            rows.append(_row((cell.defense, cell.attack, cell.seed, cell.name), cost, estimate))
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    frame.attrs["estimate"] = estimate
    return frame


def _row(place: tuple[str, str, int, str], cost: Cost | None, estimate: Estimate) -> list[Any]:
    if cost is None:
        return [*place, *[float("nan")] * 6]
    seconds = (cost.tflop + cost.replies) / estimate.setup.rate
    memory, disk = cost.memory / GIB, cost.disk / GIB
    return [*place, cost.steps, cost.tflop, cost.replies, seconds, memory, disk]


def seconds_of(expected: pd.DataFrame) -> tuple[dict[str, float], dict[str, float]]:
    """The times of cells, and of trainings by their first cell, where they are forecast."""
    known = expected.dropna(subset="seconds")
    trained = known["attack"] == TRAINING
    cells, trainings = (
        {str(row["cell"]): float(row["seconds"]) for row in part.to_dict("records")}
        for part in (known[~trained], known[trained])
    )
    return cells, trainings


def summary(expected: pd.DataFrame) -> str:
    """A forecast as text: a line per row, and what they add up to."""
    head = ("defense", "attack", "steps", "TFLOP", "replies", "time", "GiB")
    widths = (24, 24, 6, 10, 10, 9, 6)
    lines = [_aligned(head, widths)]
    for row in expected.to_dict("records"):
        name = row["attack"] if row["seed"] == 0 else f"{row['attack']}, seed {row['seed']}"
        figures = ["?"] * 5
        if row["steps"] == row["steps"]:  # a method without a forecast has NaN
            figures = [
                f"{row['steps']:.0f}",
                f"{row['tflop']:.3g}",
                f"{row['replies_tflop']:.3g}",
                duration(row["seconds"]),
                f"{row['memory_gib']:.3g}",
            ]
        lines.append(_aligned((row["defense"], name, *figures), widths))
    return "\n".join([*lines, *_totals(expected)])


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    """Names to the left, figures to the right."""
    pairs = enumerate(zip(cells, widths, strict=True))
    return " ".join(f"{c:{w}}" if i < 2 else f"{c:>{w}}" for i, (c, w) in pairs)


def _totals(expected: pd.DataFrame) -> list[str]:
    estimate: Estimate = expected.attrs["estimate"]
    setup, weights = estimate.setup, estimate.shape.weights / GIB
    sums = expected[["tflop", "replies_tflop", "seconds"]].sum()
    total = (
        f"about {sums['tflop']:.3g} TFLOP, and for replies at most {sums['replies_tflop']:.3g}: "
        f"{duration(sums['seconds'])} at {setup.rate:.3g} TFLOP/s, {setup.how}"
    )
    if expected["steps"].isna().any():
        total += "; without the rows with ?"
    trained = expected["attack"] == TRAINING
    peak = max(0.0, expected["memory_gib"].max()) if len(expected) else 0.0
    return [
        total,
        f"memory: {weights:.3g} GiB of weights in {setup.dtype}, {peak:.3g} with the biggest "
        "pass; what does not fit is halved, except in trainings",
        f"disk: {estimate.downloaded / GIB:.3g} GiB of weights, "
        f"{expected.loc[trained, 'disk_gib'].sum():.3g} of adapters, "
        f"{expected.loc[~trained, 'disk_gib'].sum():.3g} of rows and tensors",
    ]


def _lengths(chat: Chat, texts: RunTexts, setup: Setup, depth: int) -> tuple[Lengths, Lengths]:
    """What attacks may count on, and what defenses may: their prompts are the training text's."""

    def rendered(behaviors: Sequence[Behavior]) -> list[list[int]]:
        return chat.encode([chat.render(user(b.request)) for b in behaviors])

    harmful = sum(b.harmful for b in texts.references)
    tested = Lengths(
        _mean(rendered(texts.behaviors)),
        _mean(chat.encode([b.target for b in texts.behaviors])),
        lambda text: len(chat.encode([text])[0]),
        setup.max_new_tokens,
        harmful,
        len(texts.references) - harmful,
        len(texts.tune),
        depth,
    )
    apart = max(1, len(texts.examples) // SAMPLE)
    trained = tokenise(chat, texts.examples[::apart])
    prompt, reply = _mean([t.prompt for t in trained]), _mean([t.reply for t in trained])
    return tested, tested._replace(prompt=prompt, reply=reply)


def _mean(rows: Sequence[Sequence[int]]) -> int:
    return round(sum(map(len, rows)) / max(1, len(rows)))
