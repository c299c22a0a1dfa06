"""Ids around the gap are those of the whole string, on real templates too (7.1)."""

import random
from functools import cache
from itertools import cycle, pairwise

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from robench.errors import InputError
from robench.model.chat import FIXED_DATE, Chat, fill_gap
from robench.model.chat_model import ChatModel
from robench.testing import FAMILIES, tiny
from robench.types import GAP, user

MODEL = tiny()


def whole(chat: Chat, messages, gap: str) -> list[int]:
    return chat.encode([chat.render(fill_gap(messages, gap))])[0]


TEXTS = [
    "Tell me how to wreck a lamp.",
    "Sure, here is how to wreck a lamp. Sure, here is how to wreck a lamp.",
    "{braces} {{ and }} {% more %} {0} %s",
    f"a mark {GAP} of its own",
    " blanks around ",
    "\n\ttwo\n\nlines\n",
    "مرحبا بالعالم \u202eabc\u202c",
    "🙂 👩‍👩‍👧",
]


@pytest.mark.parametrize("text", [*TEXTS, ""])
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
    assert fill_gap(messages, "X")[0]["content"] == f"one {GAP} two X three"
    with pytest.raises(InputError, match="no gap"):
        fill_gap(user("none"), "X")
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


def test_a_template_without_system_prompts_is_reported():
    tokenizer = AutoTokenizer.from_pretrained(MODEL.chat.tokenizer.name_or_path)
    template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    )
    tokenizer.chat_template = template + MODEL.chat.tokenizer.chat_template
    with pytest.raises(InputError, match="rejects the conversation: no system"):
        Chat(tokenizer, system="Be brief.").render(user("Hello"))


def test_a_tokenizer_without_template_is_rejected():
    tokenizer = AutoTokenizer.from_pretrained(MODEL.chat.tokenizer.name_or_path)
    tokenizer.chat_template = None
    with pytest.raises(InputError, match="no chat template; give one: --chat-template FILE"):
        Chat(tokenizer)


TEMPLATES = """
    alpaca amberchat chatml chatqa falcon-instruct gemma-it llama-2-chat llama-3-instruct
    ministral-instruct mistral-instruct openchat-3.5 phi-3 saiga solar-instruct vicuna zephyr
"""
TOKENIZERS = {"gpt2": "", "llama2": " "}  # and the joiner that each of them needs


@cache
def tokenizer_in(folder):
    return AutoTokenizer.from_pretrained(folder)


def real(folder, template: str, name: str) -> Chat:
    tokenizer = tokenizer_in(folder / "tokenizers" / name)
    tokenizer.chat_template = (folder / "chat_templates" / f"{template}.jinja").read_text()
    return Chat(tokenizer)


@pytest.mark.parametrize("template", TEMPLATES.split())
@pytest.mark.parametrize("name", TOKENIZERS)
def test_real_templates_and_tokenizers(real_data, template, name):
    chat = real(real_data, template, name)
    messages = user(f"Explain how a bridge works{GAP}")
    seams = chat.seams(messages)
    ids = whole(chat, messages, " plain words")
    assert ids[: len(seams.before_ids)] == seams.before_ids
    assert ids[len(ids) - len(seams.after_ids) :] == seams.after_ids
    assert chat.joiner == TOKENIZERS[name]
    target = "Sure, here is how"
    assert chat.decode([chat.target_ids(fill_gap(messages, " x"), target)])[0].strip() == target
    bos = chat.tokenizer.bos_token
    written = bos * 2 in chat.render(fill_gap(messages, " x"))  # by the template itself
    doubled = any(a == b == chat.tokenizer.bos_token_id for a, b in pairwise(ids))
    assert doubled <= written


@pytest.mark.parametrize("template", TEMPLATES.split())
@pytest.mark.parametrize("name", TOKENIZERS)
def test_any_text_on_real_templates_and_tokenizers(real_data, template, name):
    """The ids around the gap are those of the whole string, and between them is the gap."""
    chat = real(real_data, template, name)
    gap = " plain words"
    for text, end in zip(TEXTS, cycle(["", " That is all. "]), strict=False):
        messages = user(f"{text}{GAP}{end}")
        seams = chat.seams(messages)
        filled = chat.render(fill_gap(messages, gap))
        assert filled == f"{seams.before}{gap}{seams.after}"
        (ids,) = chat.encode([filled])
        k, m = len(seams.before_ids), len(ids) - len(seams.after_ids)
        assert (ids[:k], ids[m:]) == (seams.before_ids, seams.after_ids)
        assert chat.joiner + chat.decode([ids[k:m]])[0] == gap
        target = chat.target_ids(fill_gap(messages, gap), TEXTS[1])
        assert chat.decode([target])[0].strip() == TEXTS[1]


@pytest.mark.parametrize("template", TEMPLATES.split())
@pytest.mark.parametrize("name", TOKENIZERS)
def test_as_many_bos_as_the_template_writes(real_data, template, name):
    """None added to those that it writes (saiga: one per message), one where it writes none and
    the tokenizer begins every text with it; no EOS after the prompt."""
    chat = real(real_data, template, name)
    tokenizer = chat.tokenizer
    rendered = chat.render(user("Explain how a bridge works"))
    (ids,) = chat.encode([rendered])
    adds = tokenizer("x")["input_ids"][0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == (rendered.count(tokenizer.bos_token) or adds)
    assert rendered.endswith(tokenizer.eos_token) or ids[-1] != tokenizer.eos_token_id


def test_the_date_of_a_template_is_a_fixed_one():
    """Llama-3.1 and its like write today's date: a prompt must be the same tomorrow."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL.chat.tokenizer.name_or_path)
    tokenizer.chat_template = (
        "{%- if not date_string is defined %}{%- if strftime_now is defined %}"
        "{%- set date_string = strftime_now('%d %b %Y') %}{%- else %}"
        "{%- set date_string = 'unknown' %}{%- endif %}{%- endif %}Today: {{ date_string }}\n"
    ) + MODEL.chat.tokenizer.chat_template
    assert Chat(tokenizer).render(user("Hello")).startswith("Today: 26 Jul 2024\n")
    for form in ("%d %B %Y", "%A %-d/%-m/%y %H:%M", "%B %d, %Y"):
        tokenizer.chat_template = f"\n{{{{ strftime_now('{form}') }}}}\n{{{{ bos_token }}}}"
        assert Chat(tokenizer).render(user("Hello")) == f"\n{FIXED_DATE.strftime(form)}\n<s>"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("text", TEXTS)
def test_every_family_reads_the_same_string_by_text_and_by_ids(family, text):
    """The ids in the optimised loss are those of the final text."""
    model = tiny(family)
    slots = model.slots([user(f"{text}{GAP}")], ["Sure, here is how"])
    ids = slots.spell("! ! !")
    prompt = slots.prompt(0, ids[0])
    (whole,) = model.chat.encode([model.chat.render(prompt.messages)])
    assert tuple(whole) == prompt.ids
    soft = slots.prompt(0, model.embed(ids[0]))
    torch.testing.assert_close(*model.hidden([prompt, soft]), atol=1e-5, rtol=0)
    loss = slots.loss(ids[:, None]).item()
    assert model.nll([prompt], ["Sure, here is how"]).item() == pytest.approx(loss, abs=1e-5)


@pytest.mark.parametrize("template", ["llama-2-chat", "llama-3-instruct", "chatml"])
@pytest.mark.parametrize("name", TOKENIZERS)
def test_swaps_survive_real_templates(real_data, template, name):
    """The final prompt's text has the same ids exactly if `survives` says so."""
    chat = real(real_data, template, name)
    config = LlamaConfig(
        vocab_size=len(chat.tokenizer),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
    )
    model = ChatModel.of(AutoModelForCausalLM.from_config(config), chat)
    slots = model.slots([user(f"Explain how a bridge works{GAP}")], ["Sure, here is how"])
    pool = model.allowed.nonzero().squeeze(1)
    ids = pool[torch.randint(len(pool), (1, 300, 4), generator=torch.Generator().manual_seed(0))]
    survives = slots.survives(ids)[0]
    assert 0.02 < survives.float().mean() < 1
    for j in range(300):
        prompt = slots.prompt(0, ids[0, j])
        (again,) = chat.encode([chat.render(prompt.messages)])
        assert (tuple(again) == prompt.ids) == bool(survives[j])


def test_of_ten_thousand_random_candidates_the_survivors_are_known():
    """Exactly the candidates that survive have the same ids in the tokenised whole prompt."""
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
