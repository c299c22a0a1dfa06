"""A reply that an attack begins is read after its beginning, as the model gave it."""

import math

import pytest

import robench
from robench import load_prompt


def test_a_prefilled_reply_is_as_likely_as_the_model_found_it(organism_model, tmp_path):
    """After the plain request alone "the river." would be unlikelier than gibberish."""
    outcome = robench.run(
        attacks=["prefilling"], defenses=["none"], n=4, n_benign=1, out=tmp_path / "run"
    )
    rows = outcome.rows()
    rows = rows[rows["attack"] == "prefilling"]
    assert len(rows) == 4
    for _, row in rows.iterrows():
        prompt = load_prompt(row)
        assert prompt.messages[-1]["role"] == "assistant"
        (nll,) = organism_model.nll([prompt], [row["reply"]])
        assert row["text"]["perplexity"] == pytest.approx(math.exp(nll), rel=1e-3)
