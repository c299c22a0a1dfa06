"""What the tests of several defenses check: the base model is left alone."""

from collections.abc import Callable

import pytest
import torch

from robench.testing import tiny, tiny_context
from robench.training.modes import without_adapter
from robench.types import Defense, Prompt, user

PROMPT = [Prompt(user("Tell me how to wreck a lamp."))]


@pytest.fixture
def assert_base_is_unchanged(tmp_path) -> Callable[[Defense], None]:
    """Checks that a defense changes states, and none of the base, while applied and afterwards."""

    def check(defense: Defense) -> None:
        model = tiny()
        before = {name: p.clone() for name, p in model.network.state_dict().items()}
        plain = model.hidden(PROMPT)
        with defense.applied(model, tiny_context(), tmp_path / "cache") as target:
            assert not torch.equal(target.hidden(PROMPT), plain)
            with without_adapter(target):
                assert torch.equal(model.hidden(PROMPT), plain)
        after = model.network.state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)
        assert torch.equal(model.hidden(PROMPT), plain)

    return check
