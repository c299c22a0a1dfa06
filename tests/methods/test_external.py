"""Rows made elsewhere: our own adapter folder comes back the same; what does not fit says so."""

import gc
import json
import shutil
import weakref
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from robench import run
from robench.errors import Failure, InputError
from robench.identity import source_digest
from robench.methods.registry import load_class, resolve
from robench.model.chat import Chat
from robench.model.loading import BUILT_IN, find_model
from robench.model.loading import load_model as load_model
from robench.results.store import RunStore
from robench.runs.devices import hardware
from robench.testing import quick, tiny, tiny_context
from robench.types import Prompt, user

PROMPT = [Prompt(user("Tell me how to wreck a lamp."))]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "adapter"
    defense = quick(load_class("defense", "circuit_breaker")(rate=1e-2, dropout=0.0))
    with defense.applied(tiny(), tiny_context(), folder) as target:
        return folder, target.hidden(PROMPT)


def test_our_folder_is_a_row(trained, tmp_path):
    folder, states = trained
    method = resolve("defense", f"adapter:{folder}")
    assert (method.base, method.tier, method.name) == ("adapter", "external", f"adapter:{folder}")
    model = tiny()
    plain = model.hidden(PROMPT)
    with method.instance.applied(model, tiny_context(), tmp_path / "unused") as target:
        assert torch.equal(target.hidden(PROMPT), states)
    assert torch.equal(model.hidden(PROMPT), plain)
    assert not (tmp_path / "unused").exists()


def test_another_adapter_is_another_cell(trained, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(trained[0], other)
    first, second = (resolve("defense", f"adapter:{f}").instance for f in (trained[0], other))
    assert source_digest(first) == source_digest(second)
    config = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 99}))
    assert source_digest(first) != source_digest(resolve("defense", f"adapter:{other}").instance)


def test_an_adapter_of_another_model_is_a_hole(trained, tmp_path):
    wider = load_model(find_model(BUILT_IN))
    defense = resolve("defense", f"adapter:{trained[0]}").instance
    worn = defense.applied(wider, tiny_context(), tmp_path / "unused")
    with pytest.raises(Failure, match="cannot be applied"), worn:
        pass


def test_an_adapter_whose_keys_do_not_match_is_a_hole(trained, tmp_path):
    """peft itself only warns, and B stays zero: the undefended model under a defense's name."""
    other = tmp_path / "other"
    shutil.copytree(trained[0], other)
    tensors = load_file(other / "adapter_model.safetensors")
    renamed = {name.replace("layers", "text.layers"): t for name, t in tensors.items()}
    save_file(renamed, other / "adapter_model.safetensors", metadata={"format": "pt"})
    model = tiny()
    plain = model.hidden(PROMPT)
    worn = resolve("defense", f"adapter:{other}").instance.applied(model, tiny_context(), tmp_path)
    with pytest.raises(Failure, match=r"its file lacks .* more"), worn:
        pass
    assert torch.equal(model.hidden(PROMPT), plain)
    assert not any("lora" in name for name, _ in model.network.named_parameters())


def test_prompt_tuning_is_refused(tmp_path):
    from peft import PromptTuningConfig, get_peft_model

    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    get_peft_model(tiny().network, config).save_pretrained(tmp_path)
    worn = resolve("defense", f"adapter:{tmp_path}").instance.applied(
        tiny(), tiny_context(), tmp_path / "unused"
    )
    with pytest.raises(Failure, match="adds prompt tokens"), worn:
        pass


def test_what_was_trained_elsewhere_has_no_known_cost(tmp_path):
    run(attacks=["direct"], defenses=["none", f"model:{find_model(BUILT_IN).folder}"], n=1,
        matrix="smoke", max_new_tokens=2, out=tmp_path / "run")  # fmt: skip
    cost = {h["defense"]: i["train_seconds"] for h, i, *_ in RunStore(tmp_path / "run").cells()}
    assert cost == {"none": 0.0, f"model:{find_model(BUILT_IN).folder}": None}


def test_one_model_from_elsewhere_is_in_memory_beside_the_base(tmp_path, monkeypatch):
    """The table may have as many of them as it likes; a third is met while the next is loaded."""
    copies = [shutil.copytree(find_model(BUILT_IN).folder, tmp_path / name) for name in "abc"]
    loaded, alive = [], []

    def counted(*arguments, **options):
        gc.collect()
        alive.append(sum(model() is not None for model in loaded))
        model = load_model(*arguments, **options)
        loaded.append(weakref.ref(model.network))
        return model

    monkeypatch.setattr("robench.model.loading.load_model", counted)
    run(attacks=["direct"], defenses=[f"model:{copy}" for copy in copies], n=1, matrix="smoke",
        max_new_tokens=2, out=tmp_path / "run")  # fmt: skip
    assert alive == [0, 1, 2, 2]


def test_a_gpu_is_named_by_its_number(monkeypatch):
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device=None: f"H200 of {device}")
    assert hardware("cuda:1") == "H200 of cuda:1"
    assert hardware("cpu") == "cpu"


def test_what_is_no_adapter_says_so(tmp_path):
    with pytest.raises(InputError, match="needs a path"):
        resolve("defense", "adapter")
    with pytest.raises(InputError, match=r"no adapter_config\.json"):
        _ = resolve("defense", f"adapter:{tmp_path}").instance.files
    with pytest.raises(InputError, match="no adapter folder"):
        _ = resolve("defense", f"adapter:{tmp_path / 'gone'}").instance.files
    with pytest.raises(InputError, match="no adapter called 'nothere'"):
        _ = resolve("defense", "adapter:nothere").instance.files


def test_options_of_the_base_model_are_not_promised_to_another(tmp_path):
    copy = shutil.copytree(find_model(BUILT_IN).folder, tmp_path / "copy")
    (copy / "chat_template.jinja").unlink(missing_ok=True)
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (copy / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match=r"model:.*no chat template.*for the base model alone"):
        source_digest(resolve("defense", f"model:{copy}").instance)
    with pytest.raises(InputError) as error:
        source_digest(resolve("defense", f"model:{tmp_path / 'gone'}").instance)
    assert "base model" not in str(error.value)


def test_a_whole_model_takes_the_base_models_place(tmp_path):
    ctx = replace(tiny_context(), model=lambda name: load_model(find_model(name)))
    reference = f"model:{find_model(BUILT_IN).folder}"
    defense = resolve("defense", reference).instance
    with defense.applied(tiny(), ctx, tmp_path / "unused") as target:
        assert target.max_new_tokens == tiny().max_new_tokens
        assert torch.equal(target.hidden(PROMPT), load_model(find_model(BUILT_IN)).hidden(PROMPT))
    assert source_digest(defense) == source_digest(resolve("defense", reference).instance)


def test_a_whole_model_whose_template_lacks_what_the_run_gives_is_a_failure(tmp_path):
    ctx = replace(tiny_context(), model=lambda name: load_model(find_model(name)))
    defense = resolve("defense", f"model:{find_model(BUILT_IN).folder}").instance
    tokenizer = load_model(find_model(BUILT_IN)).chat.tokenizer
    tokenizer.chat_template += "{# style #}"
    base = replace(tiny(), chat=Chat(tokenizer, template_args={"style": "plain"}))
    with (
        pytest.raises(Failure, match=r"model:.*--template-arg style: .* no such variable"),
        defense.applied(base, ctx, tmp_path / "unused"),
    ):
        pass
