"""Turns a GGUF file into a plain Hugging Face folder, a few rows of weights at a time.

`convert_gguf(Path("SmolLM2-135M-Instruct.Q4_1.gguf"), Path("smollm2"))`
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.errors import ModelError
from stages.sources.gguf_tokenizer import write_tokenizer
from stages.sources.safetensors_writer import SHARD_BYTES, Tensor, write_safetensors

__all__ = ["ARCHITECTURES", "convert_gguf"]

ROWS_IN_MEMORY_BYTES = 32 << 20

# GGUF's name for an architecture → (model_type, class) of transformers.
ARCHITECTURES = {
    "llama": ("llama", "LlamaForCausalLM"),
    "qwen2": ("qwen2", "Qwen2ForCausalLM"),
    "qwen3": ("qwen3", "Qwen3ForCausalLM"),
}
GLOBAL_TENSORS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
BLOCK_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
ROPE_FACTORS = "rope_freqs.weight"


@dataclass(frozen=True)
class GgufFile:
    """An opened GGUF: its metadata as Python values, its tensors as memory maps."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Any]

    @property
    def architecture(self) -> str:
        """GGUF's `general.architecture`."""
        return str(self.metadata["general.architecture"])

    def setting(self, name: str, default: Any = None) -> Any:
        """The architecture's own setting, such as `block_count`; required where no default is given."""
        value = self.metadata.get(f"{self.architecture}.{name}", default)
        if value is None:
            raise ModelError(f"{self.path.name} has no {self.architecture}.{name} in its metadata: it is incomplete")
        return value


def convert_gguf(
    path: Path,
    out: Path,
    *,
    shard_bytes: int = SHARD_BYTES,
    progress: Callable[[float, float, str], None] | None = None,
) -> None:
    """Writes config.json, generation_config.json, safetensors and the tokenizer's files into `out`.

    Weights are stored as they were trained as far as the file tells: float32 and float16 files keep their type;
    quantized ones become bfloat16, whose rounding (1 in 512) is far below the step of any GGUF quantization.

    Raises:
        ModelError: not a GGUF file, a truncated one, or an architecture, tensor or tokenizer that is not known.
    """
    file = _open(path)
    if file.architecture not in ARCHITECTURES:
        raise ModelError(
            f"{path.name} holds a {file.architecture!r} model, which cannot be converted. "
            f"Choose a GGUF of: {', '.join(sorted(ARCHITECTURES))}, or the model's Hugging Face folder"
        )
    dtype = _stored_dtype(file)
    config = _config(file, dtype)
    tensors = [_planned(file, name, dtype) for name in file.tensors if name != ROPE_FACTORS]
    write_tokenizer(file.metadata, out, context_length=config["max_position_embeddings"])
    _write_json(out / "config.json", config)
    _write_json(out / "generation_config.json", _generation_config(config))
    write_safetensors(tensors, out, shard_bytes=shard_bytes, progress=progress)


def _open(path: Path) -> GgufFile:
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
        metadata = {name: field.contents() for name, field in reader.fields.items()}
    except (ValueError, KeyError, IndexError, OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{path.name} is not a whole GGUF file: {error}") from error
    if not metadata.get("general.architecture"):
        raise ModelError(f"{path.name} names no general.architecture in its metadata: it is incomplete")
    return GgufFile(path, metadata, {tensor.name: tensor for tensor in reader.tensors})


def _stored_dtype(file: GgufFile) -> str:
    kinds = {tensor.tensor_type.name for tensor in file.tensors.values() if len(tensor.shape) > 1}
    return {"F32": "float32", "F16": "float16"}.get(kinds.pop(), "bfloat16") if len(kinds) == 1 else "bfloat16"


def _config(file: GgufFile, dtype: str) -> dict[str, Any]:
    """The model's config.json; `rope_theta` stands at the top, where every release of transformers finds it."""
    model_type, class_name = ARCHITECTURES[file.architecture]
    if "token_embd.weight" not in file.tensors:
        raise ModelError(f"{file.path.name} has no token_embd.weight: it is incomplete")
    heads = int(file.setting("attention.head_count"))
    hidden = int(file.setting("embedding_length"))
    config: dict[str, Any] = {
        "architectures": [class_name],
        "model_type": model_type,
        "vocab_size": int(file.tensors["token_embd.weight"].shape[1]),
        "hidden_size": hidden,
        "intermediate_size": int(file.setting("feed_forward_length")),
        "num_hidden_layers": int(file.setting("block_count")),
        "num_attention_heads": heads,
        "num_key_value_heads": int(file.setting("attention.head_count_kv", heads)),
        "head_dim": int(file.setting("attention.key_length", hidden // heads)),
        "hidden_act": "silu",
        "max_position_embeddings": int(file.setting("context_length")),
        "rms_norm_eps": _shortest(file.setting("attention.layer_norm_rms_epsilon")),
        "rope_theta": _shortest(file.setting("rope.freq_base", 10000.0)),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "dtype": dtype,
        "use_cache": True,
    }
    if model_type == "llama":
        config["attention_bias"] = "blk.0.attn_q.bias" in file.tensors
        config["mlp_bias"] = "blk.0.ffn_gate.bias" in file.tensors
    if (scaling := _rope_scaling(file, config)) is not None:
        config["rope_scaling"] = scaling
    for name in ("bos", "eos", "padding"):
        if (token := file.metadata.get(f"tokenizer.ggml.{name}_token_id")) is not None:
            config[f"{name.replace('padding', 'pad')}_token_id"] = int(token)
    return config


def _rope_scaling(file: GgufFile, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Scaling of rotary positions. Llama 3's is stored as factors only: its parameters are the ones that give them."""
    kind = file.setting("rope.scaling.type", "none")
    if ROPE_FACTORS in file.tensors:
        return _llama3_scaling(file, config)
    if kind == "none":
        return None
    factor = float(file.setting("rope.scaling.factor"))
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind == "yarn":
        original = int(file.setting("rope.scaling.original_context_length"))
        return {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
    raise ModelError(
        f"{file.path.name} scales its rotary positions by {kind!r}. Choose from: none, linear, yarn, llama3"
    )


def _llama3_scaling(file: GgufFile, config: Mapping[str, Any]) -> dict[str, Any]:
    import numpy as np

    found = np.asarray(file.tensors[ROPE_FACTORS].data, dtype=np.float64)
    half = config["head_dim"] // 2
    wavelengths = 2 * np.pi * config["rope_theta"] ** (np.arange(half) / half)
    original, low, high = 8192, 1.0, 4.0
    for factor in (8.0, 16.0, 32.0):
        smooth = np.clip((original / wavelengths - low) / (high - low), 0.0, 1.0)
        if np.allclose(1 / ((1 - smooth) / factor + smooth), found, rtol=1e-3):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": original,
            }
    raise ModelError(
        f"{file.path.name} has rotary factors ({ROPE_FACTORS}) that are not those of Llama 3.1, 3.2 or 3.3"
    )


def _generation_config(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id") if name in config}


def _planned(file: GgufFile, name: str, dtype: str) -> Tensor:
    """One tensor under its Hugging Face name, with the rows that GGUF permuted put back."""
    tensor = file.tensors[name]
    rows = None
    if file.architecture == "llama" and ".attn_q." in name:
        rows = _row_order(int(tensor.shape[-1]), int(file.setting("attention.head_count")))
    elif file.architecture == "llama" and ".attn_k." in name:
        heads = int(file.setting("attention.head_count"))
        rows = _row_order(int(tensor.shape[-1]), int(file.setting("attention.head_count_kv", heads)))
    return Tensor(
        name=_hugging_face_name(file, name),
        dtype=dtype,
        shape=tuple(int(size) for size in reversed(tensor.shape)),
        chunks=lambda: _chunks(tensor, rows, dtype),
    )


def _hugging_face_name(file: GgufFile, name: str) -> str:
    stem, _, kind = name.rpartition(".")
    if stem in GLOBAL_TENSORS:
        return f"{GLOBAL_TENSORS[stem]}.{kind}"
    prefix, _, part = stem.rpartition(".")
    if prefix.startswith("blk.") and part in BLOCK_TENSORS:
        return f"model.layers.{prefix.removeprefix('blk.')}.{BLOCK_TENSORS[part]}.{kind}"
    raise ModelError(
        f"{file.path.name} has a tensor {name!r} that a dense {file.architecture} model does not have "
        "(a mixture of experts?). Use the model's Hugging Face folder instead"
    )


def _row_order(num_rows: int, num_heads: int) -> Any:
    """For each row as Hugging Face has it (rotary halves), its place in GGUF (interleaved pairs)."""
    import numpy as np

    return np.arange(num_rows).reshape(num_heads, num_rows // num_heads // 2, 2).swapaxes(1, 2).reshape(-1)


def _chunks(tensor: Any, rows: Any, dtype: str) -> Iterator[bytes]:
    """The tensor's values in row order, dequantized exactly to float32 and rounded once to `dtype`."""
    import numpy as np
    from gguf.quants import dequantize

    data = tensor.data if len(tensor.shape) > 1 else tensor.data.reshape(-1, 1)
    if rows is None:
        rows = np.arange(data.shape[0])
    step = max(1, ROWS_IN_MEMORY_BYTES // (4 * int(tensor.shape[0])))
    for start in range(0, len(rows), step):
        values = dequantize(data[rows[start : start + step]], tensor.tensor_type)
        yield _encode(np.ascontiguousarray(values, dtype=np.float32), dtype)


def _encode(values: Any, dtype: str) -> bytes:
    import numpy as np
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    if dtype == "bfloat16":
        return bytes(quantize(values.reshape(-1), GGMLQuantizationType.BF16).tobytes())
    return bytes(values.astype(np.dtype(dtype)).tobytes())


def _shortest(value: float) -> float:
    """The shortest decimal that is this float32: 1e-05 and not 9.999999747378752e-06."""
    import numpy as np

    return float(str(np.float32(value)))


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
