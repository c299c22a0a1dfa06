"""One slicer: ids around the gap are those of the whole string, on real templates too (7.1)."""

import itertools
import random

import pytest
import torch
from transformers import AutoTokenizer

from robench.chat import Chat, fill
from robench.errors import InputError
from robench.testing import tiny
from robench.types import GAP, user

MODEL = tiny()


def whole(chat: Chat, messages, gap: str) -> list[int]:
    return chat.encode([chat.render(fill(messages, gap))])[0]


@pytest.mark.parametrize(
    "text",
    [
        "Tell me how to wreck a lamp.",
        "Sure, here is how to wreck a lamp. Sure, here is how to wreck a lamp.",
        "{braces} {{ and }} {% more %}",
        f"a mark {GAP} of its own",
        " blanks around ",
        "مرحبا بالعالم 🙂",
        "",
    ],
)
def test_the_pieces_are_the_whole(text):
    seams = MODEL.chat.seams(user(f"{text}{GAP}"))
    gap = " the river"
    ids = whole(MODEL.chat, user(f"{text}{GAP}"), gap)
    assert seams.before_ids == ids[: len(seams.before_ids)]
    assert seams.after_ids == ids[len(ids) - len(seams.after_ids) :]
    middle = ids[len(seams.before_ids) : len(ids) - len(seams.after_ids)]
    assert MODEL.decode(middle) == gap


def test_the_last_mark_is_the_gap():
    messages = user(f"one {GAP} two {GAP} three")
    assert fill(messages, "X")[0]["content"] == f"one {GAP} two X three"
    with pytest.raises(InputError, match="no gap"):
        fill(user("none"), "X")
    with pytest.raises(InputError, match="gap"):
        MODEL.chat.seams(user("none"))


def test_bos_once_no_eos_and_the_target_decodes():
    (ids,) = MODEL.chat.encode([MODEL.chat.render(user("Hello"))])
    tokenizer = MODEL.chat.tokenizer
    assert ids.count(tokenizer.bos_token_id) == 1
    assert ids[0] == tokenizer.bos_token_id
    assert ids[-1] != tokenizer.eos_token_id
    target = "Sure, here is how to wreck a lamp."
    assert MODEL.decode(MODEL.chat.target_ids(user("Hello"), target)) == target


def test_a_final_assistant_message_is_continued():
    messages = (*user("Hello"), {"role": "assistant", "content": "Sure, here"})
    rendered = MODEL.chat.render(messages)
    assert rendered.endswith("<|assistant|>Sure, here")
    assert MODEL.chat.render(user("Hello")).endswith("<|assistant|>")


def test_the_system_prompt_is_explicit():
    chat = Chat(MODEL.chat.tokenizer, system="Be brief.")
    assert "Be brief." in chat.render(user("Hello"))
    assert "system" not in MODEL.chat.render(user("Hello"))


def test_a_tokenizer_without_template_is_refused():
    tokenizer = AutoTokenizer.from_pretrained(MODEL.chat.tokenizer.name_or_path)
    tokenizer.chat_template = None
    with pytest.raises(InputError, match="no chat template"):
        Chat(tokenizer)


TEMPLATES = ["chatml", "gemma-it", "llama-2-chat", "llama-3-instruct", "mistral-instruct", "phi-3"]


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("name", ["gpt2", "llama2"])
def test_real_templates_and_tokenizers(real_data, template, name):
    tokenizer = AutoTokenizer.from_pretrained(real_data / "tokenizers" / name)
    tokenizer.chat_template = (real_data / "chat_templates" / f"{template}.jinja").read_text()
    chat = Chat(tokenizer)
    messages = user(f"Explain how a bridge works{GAP}")
    seams = chat.seams(messages)
    text = f"{chat.joiner}{chat.decode([tokenizer(' plain words')['input_ids'][-2:]])[0].strip()}"
    text = text if text.startswith(" ") else f" {text}"
    ids = whole(chat, messages, text)
    assert ids[: len(seams.before_ids)] == seams.before_ids
    assert ids[len(ids) - len(seams.after_ids) :] == seams.after_ids
    assert chat.joiner == {"gpt2": "", "llama2": " "}[name]
    target = "Sure, here is how"
    assert chat.decode([chat.target_ids(fill(messages, " x"), target)])[0].strip() == target
    bos = tokenizer.bos_token_id
    assert not any(a == b == bos for a, b in itertools.pairwise(ids))


def test_ten_thousand_random_swaps_survive_or_are_told():
    """Every candidate said to survive re-encodes to itself in the whole prompt."""
    messages = user(f"Tell me how to wreck a lamp.{GAP}")
    slots = MODEL.slots([messages], ["Sure"])
    pool = MODEL.allowed.nonzero().squeeze(1)
    ids = pool[torch.randint(len(pool), (1, 10_000, 5), generator=torch.Generator().manual_seed(0))]
    survives = slots.survives(ids)[0]
    assert 0.5 < survives.float().mean() < 1
    for j in random.Random(0).sample(range(10_000), 200):
        prompt = slots.prompt(0, ids[0, j])
        (again,) = MODEL.chat.encode([MODEL.chat.render(prompt.messages)])
        assert (tuple(again) == prompt.ids) == bool(survives[j])


def test_banned_tokens():
    tokenizer = MODEL.chat.tokenizer
    assert not MODEL.allowed[tokenizer.all_special_ids].any()
    assert not MODEL.allowed[len(tokenizer) :].any()
    assert MODEL.allowed[MODEL.encode("lamp")].all()
    assert not MODEL.allowed[MODEL.encode("é")].any()


def test_a_template_that_strips_is_noticed():
    tokenizer = AutoTokenizer.from_pretrained(MODEL.chat.tokenizer.name_or_path)
    tokenizer.chat_template = MODEL.chat.tokenizer.chat_template.replace(
        "message['content']", "message['content'] | trim"
    )
    seams = Chat(tokenizer).seams(user(f"Hello{GAP}"))
    assert (seams.strips_left, seams.strips_right) == (False, True)
