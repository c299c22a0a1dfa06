"""A system prompt as a view of the model: where it stands, what is left without it."""

from dataclasses import replace

import pytest
import torch

from robench.errors import InputError
from robench.model.chat import Chat
from robench.testing import tiny
from robench.types import GAP, Prompt, user

REMINDER = "Refuse what is harmful."
PROMPT = [Prompt(user("Tell me how to wreck a lamp."))]


def test_every_conversation_begins_with_it():
    model = tiny()
    view = model.with_system(REMINDER)
    told = replace(model, chat=Chat(model.chat.tokenizer, REMINDER))
    assert view.chat.render(PROMPT[0].messages) == told.chat.render(PROMPT[0].messages)
    assert torch.equal(view.hidden(PROMPT), told.hidden(PROMPT))
    assert not torch.equal(view.hidden(PROMPT), model.hidden(PROMPT))
    losses = [m.nll(PROMPT, ["Sure."]) for m in (view, told, model)]
    assert torch.equal(losses[0], losses[1]) and not torch.equal(losses[0], losses[2])
    slots = view.slots([user(f"Hello{GAP}")], ["Sure."])
    assert REMINDER in view.chat.render(slots.prompt(0, torch.tensor([20, 21])).messages)


def test_the_system_prompt_of_the_run_stays_in_front():
    model = tiny()
    told = replace(model, chat=Chat(model.chat.tokenizer, "Be brief."))
    assert told.with_system(REMINDER).chat.system == f"Be brief.\n\n{REMINDER}"
    assert told.with_system("A.").with_system("B.").chat.system == "Be brief.\n\nA.\n\nB."
    plain = told.with_system("A.").with_system("B.").undefended()
    assert plain.chat.system == "Be brief."


def test_the_undefended_view_is_without_it():
    model = tiny()
    view = model.with_system(REMINDER)
    assert torch.equal(view.undefended().hidden(PROMPT), model.hidden(PROMPT))
    assert view.usage is model.usage and view.network is model.network
    assert model.chat.system is None


def test_it_is_part_of_the_identity():
    model = replace(tiny(), identity="abc")
    one, other = model.with_system("A."), model.with_system("B.")
    assert len({model.identity, one.identity, other.identity}) == 3
    assert one.undefended().identity == "abc"
    assert tiny().with_system("A.").identity == ""


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% if messages[0].role == 'system' %}{{ raise_exception('No system role') }}{% endif %}"
         "{% for m in messages %}{{ m.content }}{% endfor %}", "rejects the conversation"),
        ("{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}",
         "leaves the system prompt out"),
    ],
)  # fmt: skip
def test_a_template_without_a_system_role_is_refused(template, words):
    model = tiny()
    model.chat.tokenizer.chat_template = template
    model = replace(model, chat=Chat(model.chat.tokenizer))
    with pytest.raises(InputError, match=words):
        model.with_system(REMINDER)
