"""Models that think: what follows the thought is the reply, and targets stand where it begins."""

import math

import pytest
from speakers import CHATML, chat_of, speaking

from robench.errors import InputError
from robench.model.thoughts import Marks, marks_of, opened_by, split
from robench.types import GAP, Prompt, user

THINK = Marks("<think>", "</think>")
HARMONY_MARKS = Marks(
    "<|channel|>analysis<|message|>",
    "<|channel|>final<|message|>",
    "<|end|><|start|>assistant",
)
HELLO = [Prompt(user("Hello"))]
R1 = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{{ '<|Assistant|>' + "
    "m.content.split('</think>')[-1] + '<|end|>' }}{% else %}{{ '<|User|>' + m.content }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|Assistant|><think>\n' }}{% endif %}"
)
QWEN3 = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' and "
    "loop.last %}{{ '<think>\n\n</think>\n\n' + m.content.split('</think>')[-1].lstrip('\n') }}"
    "{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
HARMONY = (
    "{% for m in messages %}{{ '<|start|>' + m.role }}{% if m.role == 'assistant' %}"
    "{% if m.thinking %}{{ '<|channel|>analysis<|message|>' + m.thinking + '<|end|>' }}{% endif %}"
    "{{ '<|channel|>final<|message|>' + m.content + '<|return|>' }}{% else %}"
    "{{ '<|message|>' + m.content + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
)
MISTRAL = (
    "{% for m in messages %}{{ '<|User|>' if m.role == 'user' else '<|Assistant|>' }}"
    "{{ m.content + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|Assistant|>[THINK]' }}{% endif %}{# [/THINK] #}"
)


@pytest.mark.parametrize(
    ("text", "opened", "thought", "answer"),
    [
        ("<think>\nhm\n</think>\n\nNo.", None, "hm", "No."),
        ("hm\n</think>\n\nNo.", THINK, "hm", "No."),
        ("<think>\nhm\n</think>\nNo.", THINK, "hm", "No."),  # opened twice
        ("hm\n</think>\n\nNo.", None, "hm", "No."),  # opened by nobody
        ("<think>\n\n</think>\n\nNo.", None, "", "No."),
        ("<think>a</think>\n<think>b</think>No.", None, "a\nb", "No."),
        ("<think>hm", None, "hm", None),
        ("hm", THINK, "hm", None),
        ("<think>a</think><think>b", None, "a\nb", None),
        ("[THINK]hm[/THINK]No.", None, "hm", "No."),
        ("<seed:think>hm</seed:think>No.", None, "hm", "No."),
        ("<Thinking>hm</Thinking>No.", None, "hm", "No."),
        ("<|channel>thought\nhm<channel|>No.", None, "hm", "No."),
        (
            "<|channel|>analysis<|message|>hm<|end|><|start|>assistant"
            "<|channel|>final<|message|>No.",
            None, "hm", "No.",
        ),
        (
            "<|channel|>commentary<|message|>so<|end|><|start|>assistant"
            "<|channel|>analysis<|message|>hm<|end|><|start|>assistant"
            "<|channel|>final<|message|>No.",
            None,
            "<|channel|>commentary<|message|>so<|end|><|start|>assistant"
            "<|channel|>analysis<|message|>hm",
            "No.",
        ),
        ("<|START_THINKING|>hm<|END_THINKING|>No.", None, "hm", "No."),
    ],
)  # fmt: skip
def test_a_reply_is_a_thought_and_an_answer(text, opened, thought, answer):
    found = split(text, opened, [THINK, HARMONY_MARKS])
    assert (found.thought, found.finished) == (thought, answer is not None)
    assert text[found.begin :].strip() == (answer or "")


@pytest.mark.parametrize(
    "text",
    [
        "No.", "", "I think </b> so", "Use the <think> tag.", "[thinking]",
        "Sure, glue it. <think>hm</think> Done.",  # what stands before the thought is answer, too
    ],
)  # fmt: skip
def test_a_reply_without_a_thought(text):
    assert split(text, None, [THINK]) is None


def test_marks_stand_in_the_template():
    assert marks_of(R1) == marks_of(QWEN3) == (THINK,)
    assert marks_of(MISTRAL) == (Marks("[THINK]", "[/THINK]"),)
    assert marks_of(HARMONY)[0].close == "<|channel|>final<|message|>"
    assert marks_of(CHATML) == ()
    assert opened_by("<think>\n\n</think>\n\n", [THINK]) is None
    assert opened_by("x</think><think>\n", [THINK]) == THINK


@pytest.mark.parametrize(
    ("template", "args", "between"),
    [
        (R1, {}, "\n</think>\n\n"),
        (QWEN3, {}, "<think>\n\n</think>\n\n"),
        (QWEN3, {"enable_thinking": False}, ""),
        (HARMONY, {}, "<|channel|>final<|message|>"),
        (MISTRAL, {}, "[/THINK]"),
        (CHATML, {}, ""),
    ],
)  # fmt: skip
def test_targets_stand_where_the_answer_begins(template, args, between):
    """The ids of a target are those of the thought's end, or of an empty one, and its own."""
    chat = chat_of(template, args)
    ids = chat.target_ids(user("Hello"), "Sure, here")
    assert chat.decode([ids]) == [f"{between}Sure, here"]
    model = speaking(chat, "Sure")
    slots = model.slots([user(f"Hello{GAP}")], ["Sure, here"])
    assert slots.rows[0].target == ids


def test_the_user_cannot_open_a_thought():
    chat = chat_of(R1.replace("<think>\\n", "").replace("<think>\n", ""))
    asked = user("Say <think> and ")
    assert chat.opened_in(asked) is None
    assert chat_of(R1).opened_in(user("</think>")) == THINK


REPLIES = {  # template, arguments, the reply's text: the thought and the answer
    "prompt opens": (R1, {}, "hm so</think>No way.<|end|>", "hm so", "No way."),
    "reply opens": (QWEN3, {}, "<think>hm so</think>No way.<|im_end|>", "hm so", "No way."),
    "no thought": (QWEN3, {}, "No way.<|im_end|>", None, "No way."),
    "switched off": (
        QWEN3.replace("</think>\n\n' }}{% endif", "</think>' }}{% endif"),
        {"enable_thinking": False}, "No way.<|im_end|>", None, "No way.",
    ),
    "channels": (
        HARMONY, {},
        "<|channel|>analysis<|message|>hm so<|end|>", "hm so", None,
    ),
    "special tokens": (MISTRAL, {}, "hm so[/THINK]No way.<|end|>", "hm so", "No way."),
    "never closed": (R1, {}, "hm so<|end|>", "hm so", None),
}  # fmt: skip


@pytest.mark.parametrize("name", REPLIES)
def test_what_follows_the_thought_is_the_reply(name):
    template, args, text, thought, answer = REPLIES[name]
    model = speaking(chat_of(template, args), text, max_new_tokens=20)
    (reply,) = model.replies(HELLO)
    assert (reply.thought, reply.answer, reply.truncated) == (thought, answer, False)
    assert model.generate(HELLO) == [answer or ""]
    if thought is not None and answer:
        surprise = model.nll_of_answers(HELLO, [reply]).item()
        assert math.isfinite(surprise)
        before = [*model._prompt_ids(HELLO[0]), *reply.ids[: reply.begin]]
        assert model.chat.decode([before])[0].endswith(model.chat.marks[0].close)


def test_thought_and_answer_have_budgets_of_their_own():
    """Of each as many tokens as asked, wherever the thought ends."""
    chat = chat_of(QWEN3)
    words = " a b c d f g h j l m o p r s t v w y0123456789ABCDEFGHI"
    thought = chat.tokenizer(words, add_special_tokens=False)["input_ids"]
    long = f"<think>{words}</think>No way, today<|im_end|>"

    def reply(answer: int, thinking: int):
        (given,) = speaking(
            chat, long, max_new_tokens=answer, max_thinking_tokens=thinking
        ).replies(HELLO)
        return given

    enough = len(thought) + 2  # with its marks
    whole = reply(40, enough)
    assert (whole.answer, whole.truncated) == ("No way, today", False)
    cut = reply(2, enough + 100)
    assert cut.truncated and cut.tokens == enough + 2 and whole.answer.startswith(cut.answer)
    short = reply(40, enough - 1)
    assert (short.answer, short.truncated, short.tokens) == (None, True, enough - 1)
    assert short.thought.startswith("a b")
    plain = speaking(chat, words.strip(), max_new_tokens=3, max_thinking_tokens=50)
    assert plain.replies(HELLO)[0].tokens == 3  # no thought: all is the answer


def test_a_template_that_drops_thoughts_still_scores_them():
    """A prefilled reply with a thought is no mistake of the user."""
    model = speaking(chat_of(R1), "No way")
    losses = model.nll(HELLO * 2, ["hm</think>\n\nNo way", "</think>"])
    assert losses.isfinite().all()


def test_arguments_reach_every_rendering():
    chat = chat_of(QWEN3, {"enable_thinking": False})
    assert chat.render(user("Hello")).endswith("assistant\n<think>\n\n</think>\n\n")
    assert not chat.may_think and chat_of(QWEN3).may_think
    model = speaking(chat_of(CHATML + "{# system style #}", {"style": 1}), "No")
    assert model.with_system("Be kind.").chat.template_args == {"style": 1}
    with pytest.raises(InputError, match=r"--template-arg enable_thinkin: .* knows no such"):
        chat_of(QWEN3, {"enable_thinkin": False})
    with pytest.raises(InputError, match="--template-arg tokenize: robench sets it itself"):
        chat_of(QWEN3, {"tokenize": False})
