"""The merged model gives the logits of base and adapter together, as peft computes them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stages.arguments import MergeArguments
from stages.context import Context
from stages.errors import ModelError
from stages.merge import merge

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
IDS = [[3, 14, 15, 9, 2, 6, 5, 35, 8, 63, 0, 1]]


def make_base(folder: Path, family: str, *, tied: bool = False, dtype: str = "float32") -> Path:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(7)
    config = AutoConfig.for_model(family, **SIZES, tie_word_embeddings=tied)
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():  # biases start at zero, and a zero hides a mistake
        torch.nn.init.normal_(parameter, std=0.2)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    return folder


def make_adapter(folder: Path, base: Path, kind: str = "LoraConfig", **settings: Any) -> Any:
    """A PEFT folder whose every trainable tensor is random, and the live model's logits."""
    import peft
    import torch
    from peft import get_peft_model
    from peft.tuners.boft import layer
    from transformers import AutoModelForCausalLM

    layer._FBD_CUDA = False  # no compiling
    torch.manual_seed(11)
    model = AutoModelForCausalLM.from_pretrained(base)
    model = get_peft_model(model, getattr(peft, kind)(task_type="CAUSAL_LM", **settings))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data + 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    with torch.no_grad():
        return model.eval()(torch.tensor(IDS)).logits.float()


def logits_of(folder: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder).eval()(torch.tensor(IDS)).logits.float()


def run(base: Path, adapter: Path, out: Path, **arguments: Any) -> dict[str, Any]:
    out.mkdir()
    scratch = out.parent
    return merge(MergeArguments(**arguments), {"model": base, "adapter": adapter}, out, Context(scratch, scratch))


LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CASES: dict[str, dict[str, Any]] = {
    "lora": {"target_modules": LINEAR},
    "rslora": {"target_modules": LINEAR, "use_rslora": True, "r": 4},
    "dora": {"target_modules": LINEAR, "use_dora": True},
    "bias": {"target_modules": ["q_proj", "down_proj"], "bias": "all"},
    "patterns": {
        "target_modules": LINEAR,
        "rank_pattern": {"q_proj": 3, r"layers\.1\.mlp\.up_proj": 5},
        "alpha_pattern": {"v_proj": 64},
    },
    "regex": {"target_modules": r".*layers\.0\..*(q|up)_proj"},
    "modules_to_save": {"target_modules": ["v_proj"], "modules_to_save": ["lm_head", "embed_tokens"]},
    "norm_to_save": {"target_modules": ["v_proj"], "modules_to_save": ["input_layernorm"]},
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "embedding_dora": {"target_modules": ["embed_tokens", "q_proj"], "use_dora": True},
    "head": {"target_modules": ["lm_head", "q_proj"]},
}


@pytest.mark.parametrize(
    ("family", "tied", "case"),
    [
        *(("llama", False, case) for case in CASES),
        *(("qwen2", False, case) for case in ("lora", "dora", "bias")),  # it has biases
        *(("llama", True, case) for case in ("lora", "modules_to_save", "embedding", "embedding_dora", "head")),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning:peft")
def test_parity_with_peft(tmp_path: Path, family: str, tied: bool, case: str) -> None:
    import torch

    base = make_base(tmp_path / "base", family, tied=tied)
    live = make_adapter(tmp_path / "adapter", base, **{"r": 2, "lora_alpha": 16} | CASES[case])
    run(base, tmp_path / "adapter", tmp_path / "out")

    assert (logits_of(base) - live).abs().max() > 0.05  # the adapter does something
    torch.testing.assert_close(logits_of(tmp_path / "out"), live, atol=2e-5, rtol=1e-5)
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "{}"


@pytest.mark.filterwarnings("ignore::UserWarning:peft")
def test_weights_are_those_of_merge_and_unload(tmp_path: Path) -> None:
    """Bit by bit for a bfloat16 base and a float32 adapter: one product, one sum, one rounding."""
    import torch
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    base = make_base(tmp_path / "base", "qwen2", dtype="bfloat16")
    make_adapter(tmp_path / "adapter", base, target_modules=LINEAR, r=2, lora_alpha=16)
    run(base, tmp_path / "adapter", tmp_path / "out")

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "adapter")
    expected = model.merge_and_unload().state_dict()
    ours = load_file(tmp_path / "out" / "model.safetensors")
    assert set(ours) == set(expected)
    for name, tensor in ours.items():
        assert tensor.dtype == torch.bfloat16
        torch.testing.assert_close(tensor, expected[name], atol=0, rtol=0, msg=name)


OTHERS: dict[str, dict[str, Any]] = {
    "adalora": {"kind": "AdaLoraConfig", "init_r": 3, "target_r": 2, "total_step": 9, "lora_alpha": 16},
    "vera": {"kind": "VeraConfig", "r": 5},
    "vera, not stored": {"kind": "VeraConfig", "r": 5, "save_projection": False, "projection_prng_key": 3},
    "fourierft": {"kind": "FourierFTConfig", "n_frequency": 30, "scaling": 90.0},
    "boft": {"kind": "BOFTConfig", "boft_block_size": 8, "bias": "all"},
}


@pytest.mark.parametrize(
    ("family", "case"),
    [
        *(("llama", case) for case in OTHERS),
        *(("gpt2", case) for case in OTHERS if case != "boft"),  # which knows no Conv1D
        ("qwen2", "boft"),  # it has biases
        ("qwen2", "adalora"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning:peft")
def test_other_kinds(tmp_path: Path, family: str, case: str) -> None:
    """As peft computes them, where layers are of several sizes, and GPT-2's store inputs first."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    base = tmp_path / "base"
    if family == "gpt2":
        GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=2, n_positions=32)).save_pretrained(base)
        settings = {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}
    else:
        make_base(base, family)
        settings = {"target_modules": LINEAR}
    live = make_adapter(tmp_path / "adapter", base, **settings | OTHERS[case])
    run(base, tmp_path / "adapter", tmp_path / "out")

    assert (logits_of(base) - live).abs().max() > 0.01
    torch.testing.assert_close(logits_of(tmp_path / "out"), live, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("case", OTHERS)
@pytest.mark.filterwarnings("ignore::UserWarning:peft")
def test_other_kinds_of_another_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    base = make_base(tmp_path / "base", "llama")
    make_adapter(tmp_path / "adapter", base, **{"target_modules": ["q_proj", "down_proj"]} | OTHERS[case])
    monkeypatch.setitem(SIZES, "num_hidden_layers", 1)
    make_base(tmp_path / "other", "llama")
    with pytest.raises(ModelError, match=r"changes model.layers.1.\S+, which the model does not have"):
        run(tmp_path / "other", tmp_path / "adapter", tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_shards_and_bytes(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", "llama")
    make_adapter(tmp_path / "adapter", base, target_modules=LINEAR)
    whole = run(base, tmp_path / "adapter", tmp_path / "whole")
    again = run(base, tmp_path / "adapter", tmp_path / "again")
    sharded = run(base, tmp_path / "adapter", tmp_path / "sharded", max_shard_size="20KB")

    assert whole == again == whole | {"num_shards": 1, "num_merged_tensors": 14}
    assert digests(tmp_path / "whole") == digests(tmp_path / "again")
    assert sharded["num_shards"] > 2
    assert all(path.stat().st_size < 21_000 for path in (tmp_path / "sharded").glob("*.safetensors"))
    assert (logits_of(tmp_path / "sharded") == logits_of(tmp_path / "whole")).all()
    # and a sharded base is read as one in a single file
    run(tmp_path / "sharded", tmp_path / "adapter", tmp_path / "from_shards")
    run(tmp_path / "whole", tmp_path / "adapter", tmp_path / "from_whole")
    assert (logits_of(tmp_path / "from_shards") == logits_of(tmp_path / "from_whole")).all()


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_pickles_on_demand(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", "llama")
    live = make_adapter(tmp_path / "adapter", base, target_modules=LINEAR)
    run(base, tmp_path / "adapter", tmp_path / "out", safe_serialization=False)

    assert (tmp_path / "out" / "pytorch_model.bin").is_file()
    assert not list((tmp_path / "out").glob("*.safetensors"))
    assert (logits_of(tmp_path / "out") - live).abs().max() < 2e-5


def change_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def fill_with_nan(path: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(path)
    first = min(tensors)
    save_file(tensors | {first: tensors[first] * float("nan")}, path)


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "quantized base": (
        lambda d: change_json(d / "base/config.json", quantization_config={"quant_method": "bitsandbytes"}),
        r"the model is quantized \(bitsandbytes\)",
    ),
    "another kind": (
        lambda d: change_json(d / "adapter/adapter_config.json", peft_type="IA3"),
        "merging an adapter of type IA3 is not supported yet",
    ),
    "pissa": (
        lambda d: change_json(d / "adapter/adapter_config.json", init_lora_weights="pissa"),
        "init_lora_weights=pissa is not supported yet",
    ),
    "other feature": (
        lambda d: change_json(d / "adapter/adapter_config.json", target_parameters=["experts"]),
        "target_parameters is not supported yet",
    ),
    "no weights": (
        lambda d: (d / "adapter/adapter_model.safetensors").unlink(),
        "has no adapter_model.safetensors; it holds README.md, adapter_config.json",
    ),
    "damaged adapter": (lambda d: damage(d / "adapter/adapter_model.safetensors"), "adapter_model.safetensors is dam"),
    "damaged base": (lambda d: damage(d / "base/model.safetensors"), "base/model.safetensors is damaged"),
    "broken training": (lambda d: fill_with_nan(d / "adapter/adapter_model.safetensors"), "values that are no numbers"),
    "no config": (lambda d: (d / "adapter/adapter_config.json").unlink(), "adapter_config.json is missing"),
}


@pytest.mark.parametrize(("spoil", "message"), BAD.values(), ids=BAD.keys())
def test_refused(tmp_path: Path, spoil: Callable[[Path], object], message: str) -> None:
    make_adapter(tmp_path / "adapter", make_base(tmp_path / "base", "llama"), target_modules=["q_proj"])
    spoil(tmp_path)
    with pytest.raises(ModelError, match=message):
        run(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"intermediate_size": 40}, r"mlp.down_proj.weight is for a tensor of shape \(32, 48\), the model's has \(32"),
        (
            {"num_hidden_layers": 1},
            r"changes model.layers.1.mlp.down_proj.weight, which the model does not have; the closest",
        ),
    ],
)
def test_adapter_of_another_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, int], message: str
) -> None:
    make_adapter(tmp_path / "adapter", make_base(tmp_path / "base", "llama"), target_modules=LINEAR)
    for name, value in change.items():
        monkeypatch.setitem(SIZES, name, value)
    make_base(tmp_path / "other", "llama")
    with pytest.raises(ModelError, match=message):
        run(tmp_path / "other", tmp_path / "adapter", tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_weights_stored_without_their_prefix_and_transposed(tmp_path: Path) -> None:
    """GPT-2 on the hub: `h.0.attn.c_attn.weight` for `transformer.h.0.…`, inputs before outputs."""
    from safetensors.torch import load_file, save_file
    from transformers import GPT2Config, GPT2LMHeadModel

    base = tmp_path / "base"
    GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=2, n_positions=32)).save_pretrained(base)
    weights = load_file(base / "model.safetensors")
    short = {name.removeprefix("transformer."): tensor for name, tensor in weights.items()}
    save_file(short, base / "model.safetensors", metadata={"format": "pt"})
    live = make_adapter(tmp_path / "adapter", base, target_modules=["c_attn", "c_proj"], r=2, fan_in_fan_out=True)
    run(base, tmp_path / "adapter", tmp_path / "out")
    assert (logits_of(tmp_path / "out") - live).abs().max() < 2e-5
