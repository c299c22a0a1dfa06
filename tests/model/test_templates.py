"""Templates as models ship them: ends of turns, dropped system prompts, parts, several by name."""

import json
from functools import cache

import pytest
from speakers import CHATML, chat_of, saved, speaking
from transformers import AutoTokenizer

from robench.errors import InputError
from robench.model.chat import Chat
from robench.model.chat_model import ChatModel
from robench.model.loading import find_model, load_model
from robench.types import GAP, Prompt, user

HELLO = [Prompt(user("Hello"))]
LLAVA = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}<image>\n"
    "{% endfor %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] + ' ' }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
SMOLVLM = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
DROPS = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '<|user|>\n' + message['content'] + '<|end|>\n<|assistant|>\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + '<|end|>\n' }}"
    "{% endif %}{% endfor %}"
)


def test_a_reply_ends_where_the_template_closes_a_turn():
    """The tokenizer and the generation config name another token."""
    chat = chat_of(CHATML, eos="<|endoftext|>")
    model = speaking(chat, "No way.<|im_end|> Sure, here", max_new_tokens=12)
    assert model.network.generation_config.eos_token_id == chat.tokenizer.eos_token_id
    (reply,) = model.replies(HELLO)
    assert (reply.text, reply.truncated) == ("No way.", False)
    (reply,) = speaking(chat, "No way<|endoftext|> Sure", max_new_tokens=12).replies(HELLO)
    assert (reply.text, reply.truncated) == ("No way", False)


def test_a_reply_ends_where_several_tokens_close_a_turn():
    """A tokenizer that does not know the template's tags."""
    words = CHATML.replace("<|im_end|>", "<|IM@|>")
    chat = chat_of(words)
    assert (chat.turn_end, chat.turn_end_text) == (None, "<|IM@|>")
    said = chat.tokenizer("No way.<|IM@|>Sure", add_special_tokens=False)["input_ids"]
    answer = chat.answered(said)
    assert answer.answer == "No way."
    assert chat.decode([said[: chat.closed_at(said)]]) == ["No way.<|IM@|>"]
    assert chat.closed_at(said[:4]) is None


ENDS = {
    "alpaca": "</s>", "llama-2-chat": "</s>", "mistral-instruct": "</s>", "saiga": "</s>",
    "vicuna": "</s>", "zephyr": "</s>", "chatml": "<|im_end|>", "phi-3": "<|end|>",
    "gemma-it": "<end_of_turn>", "llama-3-instruct": "<|eot_id|>",
    "openchat-3.5": "<|end_of_turn|>", "solar-instruct": None, "amberchat": None, "chatqa": None,
}  # fmt: skip


@cache
def tokenizer_of(real_data, knows_ends: bool):
    tokenizer = AutoTokenizer.from_pretrained(real_data / "tokenizers" / "llama2")
    tokenizer.add_tokens([end for end in {*ENDS.values()} if end and knows_ends])
    return tokenizer


@pytest.mark.parametrize("template", ENDS)
def test_the_end_of_a_turn_in_published_templates(real_data, template):
    """A token where the tokenizer knows it, else a text."""
    text = (real_data / "chat_templates" / f"{template}.jinja").read_text()
    ends = []
    for knows_ends in (True, False):
        tokenizer = tokenizer_of(real_data, knows_ends)
        tokenizer.chat_template = text
        chat = Chat(tokenizer)
        ends.append(chat.turn_end_text or (chat.turn_end and tokenizer.decode([chat.turn_end])))
        assert not (knows_ends and chat.turn_end_text)
    assert ends == [ENDS[template]] * 2


def test_a_system_prompt_that_the_template_drops_is_refused():
    chat = chat_of(DROPS)
    assert chat.system is None
    with pytest.raises(InputError, match=r"leaves the system prompt out: .* leave out --system"):
        Chat(chat.tokenizer, "Be kind.")
    assert Chat(chat_of(CHATML).tokenizer, "Be\n kind. ").system == "Be\n kind. "


@pytest.mark.parametrize("template", [LLAVA, SMOLVLM])
def test_templates_that_want_parts_get_them(template):
    chat = chat_of(template)
    rendered = chat.render(user("Tell me a joke."))
    assert "Tell me a joke." in rendered and rendered.rstrip().lower().endswith("assistant:")
    continued = (*user("Hello"), {"role": "assistant", "content": "Sure, first"})
    assert chat.render(continued).endswith("Sure, first")
    assert chat.decode([chat.target_ids(user("Hello"), "Sure, here")])[0].strip() == "Sure, here"
    seams = chat.seams(user(f"Hello{GAP}"))
    assert seams.before.endswith("Hello")
    assert "Be kind." in Chat(chat.tokenizer, "Be kind.").render(user("Hello"))
    assert not chat_of(CHATML)._wants_parts


def folder_with(templates, folder):
    """A model's folder whose tokenizer has several templates by name."""
    saved(speaking(chat_of(CHATML), "No"), folder)
    (folder / "chat_template.jinja").unlink()
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text())
    config["chat_template"] = [{"name": n, "template": t} for n, t in templates.items()]
    file.write_text(json.dumps(config))
    return str(folder)


def rendered(name: str, **options) -> str:
    model: ChatModel = load_model(find_model(name, **options))
    return model.chat.render(user("Hello"))


def test_of_several_templates_the_default_or_the_named_one(tmp_path):
    other = CHATML.replace("im_start", "User")
    several = folder_with({"default": CHATML, "rag": other}, tmp_path / "several")
    assert rendered(several).startswith("<|im_start|>user")
    assert rendered(several, chat_template="rag").startswith("<|User|>user")
    assert find_model(several).template != find_model(several, chat_template="rag").template
    single = folder_with({"rag": other}, tmp_path / "single")
    assert rendered(single).startswith("<|User|>user")
    nameless = folder_with({"rag": other, "tools": other}, tmp_path / "nameless")
    with pytest.raises(InputError, match=r"rag, tools and no default: .*--chat-template NAME"):
        rendered(nameless)


def test_the_template_of_a_processor_is_read_where_the_tokenizer_has_none(tmp_path):
    saved(speaking(chat_of(CHATML), "No"), tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": LLAVA}))
    assert rendered(str(tmp_path)).startswith("USER: Hello")


def test_a_reply_that_runs_on_behind_several_closing_tokens_is_cut():
    chat = chat_of(CHATML.replace("<|im_end|>", "<FIN>"))
    model = speaking(chat, "Sure.<FIN>ABC", max_new_tokens=40)
    (reply,) = model.replies(HELLO)
    tokens = len(chat.tokenizer("Sure.<FIN>", add_special_tokens=False)["input_ids"])
    assert reply == ("Sure.", False, tokens, None, True, (), 0)
    assert speaking(chat, "Sure.<FI", max_new_tokens=5).replies(HELLO)[0].truncated
