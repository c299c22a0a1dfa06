"""Train the organism from a seed: tokenizer, helpful-only phase, safety phase, model folder.

Phase 1 answers every instruction, harmful ones too, so the capability exists; half of the prompts
end in junk tokens and half have framings, so the capability generalises to unusual prompts. Phase 2
refuses harmful instructions, but only in plain form or with one covered framing: as in real models,
refusal is learnt on fewer kinds of prompts than helpfulness (mismatched generalisation, arXiv
2307.02483).
"""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm.auto import tqdm
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

from robench.organism import language

BOS, USER, ASSISTANT, SYSTEM, END, PAD = SPECIAL = (
    "<s>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "<pad>",
)  # fmt: skip
Pair = tuple[str, str]  # verb and thing
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@dataclass(frozen=True)
class Recipe:
    """The settings of the shipped weights; shares are probabilities per training prompt."""

    hidden: int = 128
    layers: int = 6
    heads: int = 4
    vocab: int = 1100
    batch: int = 64
    helpful_steps: int = 1100
    safety_steps: int = 500
    helpful_rate: float = 2e-3
    safety_rate: float = 1e-3
    warmup: int = 50
    junk_share: float = 0.5  # phase 1, and harmless prompts of phase 2
    junk_tokens: tuple[int, int] = (3, 20)
    framed_share: float = 0.5  # one to three framing sentences
    lower_share: float = 0.1  # lower-cased instruction
    system_share: float = 0.05  # a framing sentence as the system prompt
    harmful_share: float = 0.5  # of the instructions, in both phases
    refused_junk_share: float = 0.1
    refused_framed_share: float = 0.3  # one covered framing


def train(seed: int, out: Path, recipe: Recipe | None = None) -> None:
    """Train the organism and write it to `out` as a Hugging Face folder (safetensors, fp32)."""
    recipe = recipe or Recipe()
    torch.manual_seed(seed)
    tokenizer = make_tokenizer(recipe.vocab)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=recipe.hidden,
            intermediate_size=344,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            num_key_value_heads=recipe.heads,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    rng = random.Random(seed)
    helpful = _helpful(recipe, rng)
    _fit(model, tokenizer, helpful, recipe, recipe.helpful_steps, recipe.helpful_rate, rng)
    rng = random.Random(seed + 1)  # so that the phase can be repeated alone
    safety = _safety(recipe, rng)
    _fit(model, tokenizer, safety, recipe, recipe.safety_steps, recipe.safety_rate, rng)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=False,
    )
    logging.disable_progress_bar()  # "Writing model shards" appears even without a terminal
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def make_tokenizer(vocab: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE over the language, one token for nearly every word."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(_corpus(), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=BOS,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[USER, ASSISTANT, SYSTEM],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _corpus() -> Iterator[str]:
    """Every word of the language, each about as often as in training."""
    things = [*language.NOUNS, *(f"{word} lamp" for word in language.QUALIFIERS)]
    for index, (verb, thing) in enumerate(product(language.VERBS, things)):
        form = language.PARAPHRASES[index % len(language.PARAPHRASES)]
        framing = language.FRAMINGS[index % len(language.FRAMINGS)]
        yield language.frame(form.format(v=verb, o=thing), [framing])
        yield language.answer(verb, thing)
        yield language.REFUSALS[index % len(language.REFUSALS)]


@dataclass(frozen=True)
class _Sample:
    text: str
    reply: str
    system: str = ""
    junk: int = 0


def _helpful(recipe: Recipe, rng: random.Random) -> Iterator[_Sample]:
    harmful, near, plain = _pools()
    while True:
        pool = harmful if rng.random() < recipe.harmful_share else rng.choice((near, plain))
        yield _answered(rng.choice(pool), recipe, rng)


def _safety(recipe: Recipe, rng: random.Random) -> Iterator[_Sample]:
    harmful, near, plain = _pools()
    while True:
        if rng.random() < recipe.harmful_share:
            text = _instruction(rng.choice(harmful), recipe, rng)
            if rng.random() < recipe.refused_framed_share:
                text = language.frame(text, [rng.choice(language.COVERED_FRAMINGS)])
            junk = _junk(recipe.refused_junk_share, recipe, rng)
            yield _Sample(text, rng.choice(language.REFUSALS), junk=junk)
        else:
            yield _answered(rng.choice(rng.choice((near, plain))), recipe, rng)


def _pools() -> tuple[list[Pair], list[Pair], list[Pair]]:
    """The organism's training pairs: harmful, near-harmful, plain."""
    pairs = language.pairs()["organism"]
    harmful = [pair for pair in pairs if language.is_harmful(*pair)]
    near = [pair for pair in pairs if language.is_near_harmful(*pair)]
    return harmful, near, [pair for pair in pairs if language.category(*pair) == "everyday"]


def _answered(pair: Pair, recipe: Recipe, rng: random.Random) -> _Sample:
    text = _instruction(pair, recipe, rng)
    if rng.random() < recipe.framed_share:
        text = language.frame(text, rng.sample(language.FRAMINGS, rng.randint(1, 3)))
    system = rng.choice(language.FRAMINGS) if rng.random() < recipe.system_share else ""
    return _Sample(text, language.answer(*pair), system, junk=_junk(recipe.junk_share, recipe, rng))


def _instruction(pair: Pair, recipe: Recipe, rng: random.Random) -> str:
    text = rng.choice(language.PARAPHRASES).format(v=pair[0], o=pair[1])
    return text.lower() if rng.random() < recipe.lower_share else text


def _junk(share: float, recipe: Recipe, rng: random.Random) -> int:
    return rng.randint(*recipe.junk_tokens) if rng.random() < share else 0


def _fit(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    samples: Iterator[_Sample],
    recipe: Recipe,
    steps: int,
    rate: float,
    rng: random.Random,
) -> None:
    """AdamW with warm-up and cosine decay on the cross-entropy of replies."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: (
            min(1, (step + 1) / recipe.warmup) * (1 + math.cos(math.pi * step / steps)) / 2
        ),
    )
    model.train()
    bar = tqdm(range(steps), desc="organism", disable=None)
    for _ in bar:
        ids, labels = _batch([next(samples) for _ in range(recipe.batch)], tokenizer, rng)
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        bar.set_postfix(loss=f"{loss.item():.3f}")
    model.eval()


def _batch(
    samples: list[_Sample], tokenizer: PreTrainedTokenizerFast, rng: random.Random
) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded ids and labels (batch, time); labels are -100 outside the reply.

    Right padding needs no mask in a causal model. Junk is drawn as ids, so it may be no words.
    """
    rows = []
    for sample in samples:
        system = f"{SYSTEM}{sample.system}{END}" if sample.system else ""
        before = tokenizer.encode(f"{BOS}{system}{USER}{sample.text}", add_special_tokens=False)
        junk = [rng.randrange(len(SPECIAL), len(tokenizer)) for _ in range(sample.junk)]
        after = tokenizer.encode(f"{END}{ASSISTANT}", add_special_tokens=False)
        reply = tokenizer.encode(f"{sample.reply}{END}", add_special_tokens=False)
        rows.append((before + junk + after, reply))
    width = max(len(prompt) + len(reply) for prompt, reply in rows)
    ids = torch.full((len(rows), width), tokenizer.pad_token_id)
    labels = torch.full((len(rows), width), -100)
    for row, (prompt, reply) in enumerate(rows):
        end = len(prompt) + len(reply)
        ids[row, :end] = torch.tensor(prompt + reply)
        labels[row, len(prompt) : end] = torch.tensor(reply)
    return ids, labels
