"""A tiny llama or qwen2 is written as GGUF, converted back, and must give the same logits and token ids."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter, TokenType
from gguf.quants import dequantize, quantize

from stages.errors import ModelError
from stages.sources.gguf import convert_gguf
from stages.sources.model_folder import check_model_folder

PARTS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
WHOLE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
HEADS = {"q_proj": 4, "k_proj": 2}


def gguf_name(name: str) -> str:
    stem, _, kind = name.rpartition(".")
    if stem in WHOLE:
        return f"{WHOLE[stem]}.{kind}"
    _, _, number, part = stem.split(".", 3)
    return f"blk.{number}.{PARTS[part]}.{kind}"


def permuted(name: str, weight: Any, architecture: str) -> Any:
    """As llama.cpp's converter stores llama's query and key rows: the two rotary halves interleaved."""
    heads = next((count for part, count in HEADS.items() if part in name), None)
    if architecture != "llama" or heads is None:
        return weight
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def tiny(architecture: str, **changes: Any) -> Any:
    import torch
    from transformers import (
        LlamaConfig,
        LlamaForCausalLM,
        Qwen2Config,
        Qwen2ForCausalLM,
        Qwen3Config,
        Qwen3ForCausalLM,
    )

    classes = {
        "llama": (LlamaConfig, LlamaForCausalLM),
        "qwen2": (Qwen2Config, Qwen2ForCausalLM),
        "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    }
    config_class, model_class = classes[architecture]
    torch.manual_seed(0)
    settings = {
        "vocab_size": 300,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 50000.0},
        "tie_word_embeddings": True,
    }
    model = model_class(config_class(**(settings | changes)))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def byte_vocabulary(size: int) -> list[str]:
    from tokenizers import pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    return ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *letters, "Ġt", *[f"<unused{i}>" for i in range(size)]][
        :size
    ]


def write_gguf(
    path: Path,
    model: Any,
    architecture: str,
    kind: GGMLQuantizationType = GGMLQuantizationType.F32,
    metadata: dict[str, Any] | None = None,
    extra: dict[str, Any] | None = None,
) -> Path:
    config = model.config
    writer = GGUFWriter(path, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if getattr(config, "head_dim", None):
        writer.add_key_length(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre((metadata or {}).get("pre", "smollm"))
    tokens = byte_vocabulary(config.vocab_size)
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL] * 3 + [TokenType.NORMAL] * (len(tokens) - 3))
    writer.add_token_merges(["Ġ t"])
    writer.add_eos_token_id(2)
    writer.add_bos_token_id(1)
    writer.add_chat_template("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    for name, value in (metadata or {}).get("strings", {}).items():
        writer.add_string(name, value)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = permuted(name, tensor.numpy(), architecture)
        if values.ndim > 1 and kind != GGMLQuantizationType.F32:
            writer.add_tensor(gguf_name(name), quantize(np.ascontiguousarray(values), kind), raw_dtype=kind)
        else:
            writer.add_tensor(gguf_name(name), np.ascontiguousarray(values))
    for name, values in (extra or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def logits(model: Any) -> Any:
    import torch

    with torch.no_grad():
        return model(torch.arange(3, 40).unsqueeze(0)).logits.float().numpy()


def reopened(folder: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("llama", {}),
        ("llama", {"tie_word_embeddings": False}),
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("qwen2", {}),
        ("qwen3", {"head_dim": 32}),
    ],
)
def test_the_converted_model_gives_the_same_logits(
    tmp_path: Path, architecture: str, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.sources.gguf.ROWS_IN_MEMORY_BYTES", 4096)
    original = tiny(architecture, **changes)
    convert_gguf(write_gguf(tmp_path / "model.gguf", original, architecture), tmp_path)
    np.testing.assert_array_equal(logits(reopened(tmp_path)), logits(original))
    facts = check_model_folder(tmp_path)
    assert facts.dtype == "F32"
    assert facts.num_parameters == sum(p.numel() for p in original.parameters())


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        (GGMLQuantizationType.F16, "float16"),
        (GGMLQuantizationType.BF16, "bfloat16"),
        (GGMLQuantizationType.Q8_0, "bfloat16"),
        (GGMLQuantizationType.Q4_1, "bfloat16"),
    ],
)
def test_quantized_weights_are_rounded_once(tmp_path: Path, kind: GGMLQuantizationType, dtype: str) -> None:
    import torch

    original = tiny("llama", hidden_size=128, intermediate_size=256)
    convert_gguf(write_gguf(tmp_path / "model.gguf", original, "llama", kind), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == dtype
    weight = original.model.layers[0].mlp.up_proj.weight.detach().numpy()
    expected = torch.tensor(dequantize(quantize(weight, kind), kind)).to(getattr(torch, dtype)).float()
    torch.testing.assert_close(reopened(tmp_path).model.layers[0].mlp.up_proj.weight.detach(), expected, rtol=0, atol=0)


def test_large_models_are_written_in_shards(tmp_path: Path) -> None:
    original = tiny("llama")
    convert_gguf(write_gguf(tmp_path / "model.gguf", original, "llama"), tmp_path, shard_bytes=100_000)
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 1
    check_model_folder(tmp_path)
    np.testing.assert_array_equal(logits(reopened(tmp_path)), logits(original))


def test_llama_3s_rope_is_told_from_its_factors(tmp_path: Path) -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = {
        "rope_type": "llama3",
        "rope_theta": 50000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    original = tiny("llama", rope_parameters=rope)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](original.config, "cpu")
    plain = 1.0 / 50000.0 ** (np.arange(0, 16, 2) / 16)
    factors = (plain / scaled.numpy()).astype(np.float32)
    convert_gguf(write_gguf(tmp_path / "m.gguf", original, "llama", extra={"rope_freqs.weight": factors}), tmp_path)
    np.testing.assert_allclose(logits(reopened(tmp_path)), logits(original), atol=1e-5)


def test_the_tokenizer_cuts_digits_and_keeps_special_tokens(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    convert_gguf(write_gguf(tmp_path / "model.gguf", tiny("llama"), "llama"), tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.tokenize("<|im_start|>a 12 the<|im_end|>") == [
        "<|im_start|>", "a", "Ġ", "1", "2", "Ġt", "h", "e", "<|im_end|>",
    ]  # fmt: skip
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert tokenizer.decode(tokenizer("Ünï çödé 🎉 x").input_ids) == "Ünï çödé 🎉 x"
    assert tokenizer.chat_template == "{% for m in messages %}{{ m['content'] }}{% endfor %}"


def test_the_same_file_gives_the_same_bytes(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", tiny("llama"), "llama")
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
        convert_gguf(path, folder)
    contents = [{file.name: file.read_bytes() for file in folder.iterdir()} for folder in folders]
    assert contents[0] == contents[1]


@pytest.mark.parametrize(
    ("architecture", "options", "message"),
    [
        ("gptneox", {}, "holds a 'gptneox' model, which cannot be converted. Choose a GGUF of: llama, qwen2, qwen3"),
        ("llama", {"extra": {"blk.0.ffn_gate_exps.weight": np.zeros((2, 2), np.float32)}}, "mixture of experts"),
        ("llama", {"metadata": {"pre": "tekken"}}, "cuts text by the rule 'tekken'"),
        ("llama", {"metadata": {"strings": {"llama.rope.scaling.type": "longrope"}}}, "rope.scaling.factor|longrope"),
        ("llama", {"extra": {"rope_freqs.weight": np.full(8, 3, np.float32)}}, "not those of Llama 3"),
    ],
)
def test_what_cannot_be_converted_is_refused(
    tmp_path: Path, architecture: str, options: dict[str, Any], message: str
) -> None:
    path = write_gguf(tmp_path / "model.gguf", tiny("llama"), architecture, **options)
    (tmp_path / "out").mkdir()
    with pytest.raises(ModelError, match=message):
        convert_gguf(path, tmp_path / "out")


@pytest.mark.parametrize("keep", [0, 3, 100, 5000, -1000])
def test_a_file_that_is_cut_off_is_refused(tmp_path: Path, keep: int) -> None:
    path = write_gguf(tmp_path / "model.gguf", tiny("llama"), "llama")
    path.write_bytes(path.read_bytes()[:keep])
    (tmp_path / "out").mkdir()
    with pytest.raises(ModelError, match=r"model\.gguf is not a whole GGUF file") as caught:
        convert_gguf(path, tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_a_sentence_piece_tokenizer_joins_the_best_pieces_first(tmp_path: Path) -> None:
    """Held against SentencePiece's own rule: of all neighbours, join the two whose piece scores best."""
    from transformers import AutoTokenizer

    from stages.sources.gguf_tokenizer import write_tokenizer

    pieces = ["▁t", "he", "▁the", "re", "▁there", "in", "er", "▁a", "th", "▁in", "the"]
    letters = ["▁", *"abcdefghijklmnopqrstuvwxyz"]
    tokens = ["<unk>", "<s>", "</s>", *[f"<0x{byte:02X}>" for byte in range(256)], *pieces, *letters]
    kinds = [TokenType.UNKNOWN, *[TokenType.CONTROL] * 2, *[TokenType.BYTE] * 256]
    kinds += [TokenType.NORMAL] * (len(pieces) + len(letters))
    scores = dict(zip(tokens[259:], [-float(rank) for rank in range(len(tokens) - 259)], strict=True))
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.scores": [scores.get(token, 0.0) for token in tokens],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }
    write_tokenizer(metadata, tmp_path, context_length=64)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)

    def joined(text: str) -> list[str]:
        parts = list("▁" + text.replace(" ", "▁"))
        while True:
            pairs = [(scores[a + b], -at) for at, (a, b) in enumerate(pairwise(parts)) if a + b in scores]
            if not pairs:
                return parts
            at = -max(pairs)[1]
            parts[at : at + 2] = [parts[at] + parts[at + 1]]

    for text in ("the there in a thing", "there", "ether inner  the", "a"):
        assert tokenizer.tokenize(text) == joined(text)
        assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text
    assert tokenizer("é").input_ids == [1, tokens.index("▁"), tokens.index("<0xC3>"), tokens.index("<0xA9>")]
