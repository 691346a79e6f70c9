"""SWIFT's quantization parameters: loading a model in few bits (export's quantization is in `export.py`)."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import model_validator

from stages.arguments.base import Arguments, Dtype, WholeNumber, option

__all__ = ["BnbArguments", "HqqArguments", "QuantizeOnLoadArguments", "check_bits", "check_trainable"]

QuantBits = Annotated[Literal[1, 2, 3, 4, 8], WholeNumber]
_BITS = {
    "bnb": (4, 8),
    "hqq": (1, 2, 3, 4, 8),
    "eetq": (8,),
    "gptq": (2, 3, 4, 8),
    "awq": (4,),
}
_TRAINABLE = {
    "lora": ("bnb 4", "bnb 8", "hqq", "eetq", "gptq", "awq"),
    "lora, use_dora": ("bnb 4", "hqq"),
    "longlora": ("bnb 4", "bnb 8", "hqq"),
    "adalora": ("bnb 4", "bnb 8", "gptq"),
    "vera": ("bnb 4", "bnb 8", "hqq"),
    "boft": ("bnb 4", "bnb 8", "hqq"),
    "fourierft": ("bnb 4", "bnb 8"),
}
"""The quantized weights beside which an adapter of this kind can be trained; the others need float weights."""


def check_bits(method: str | None, bits: int | None, methods: tuple[str, ...], prefix: str = "") -> None:
    """Checks that method and bits go together.

    Args:
        method: what quantizes.
        bits: of a weight.
        methods: what there is to choose from.
        prefix: what the flags' names begin with.

    Raises:
        ValueError: if one is missing, or the method cannot make that many bits.
    """
    by, to = f"--{prefix}quant_method", f"--{prefix}quant_bits"
    if method is None:
        if bits is not None:
            raise ValueError(f"`{to} {bits}` needs `{by}`: choose from {', '.join(methods)}")
        return
    allowed = ", ".join(map(str, _BITS[method]))
    if bits is None:
        raise ValueError(f"`{by} {method}` needs `{to}`: choose from {allowed}")
    if bits not in _BITS[method]:
        raise ValueError(f"`{by} {method}` cannot make `{to} {bits}`: choose from {allowed}")


def check_trainable(arguments: Arguments, method: str, bits: int | None, what: str, cure: str) -> None:
    """Checks that the kind of training goes with quantized weights.

    Args:
        arguments: train_type and what belongs to it.
        method: bnb, hqq, eetq, gptq, awq or another, which is taken to be as gptq is.
        bits: of a weight.
        what: how the weights are spoken of.
        cure: what else to do than to train in another way.

    Raises:
        ValueError: it does not.
    """

    def given(name: str) -> Any:
        return getattr(arguments, name, None)

    way = given("train_type") or "lora"
    flag = f"--train_type {way}"
    if way == "full" and given("use_galore"):
        flag = "--use_galore true"
    elif way == "full" and given("lisa_activated_layers"):
        flag = f"--lisa_activated_layers {given('lisa_activated_layers')}"
    elif way in ("lora", "longlora") and given("use_dora"):
        way, flag = "lora, use_dora", "--use_dora true"
    elif way in ("lora", "longlora") and str(given("init_lora_weights")).startswith("pissa"):
        way, flag = "pissa", f"--init_lora_weights {given('init_lora_weights')}"
    possible = _TRAINABLE.get(way, ())
    kind = f"{method} {bits}" if method == "bnb" else method if method in _BITS else "gptq"
    if kind in possible:
        return
    if possible:
        raise ValueError(f"`{flag}` does not go with {what}, it does with {', '.join(possible)}: {cure}")
    raise ValueError(f"`{flag}` needs float weights and does not go with {what}: {cure}")


class BnbArguments(Arguments):
    """What bitsandbytes wants to know."""

    GROUP: ClassVar[str] = "Quantization Parameters"

    bnb_4bit_compute_dtype: Dtype | None = option(None)
    """Data type that 4-bit weights are computed in; torch_dtype if left out."""
    bnb_4bit_quant_type: Literal["fp4", "nf4"] = option("nf4")
    """The 4-bit format."""
    bnb_4bit_use_double_quant: bool = option(True)
    """Quantize the scales of 4-bit blocks too."""
    bnb_4bit_quant_storage: Literal["uint8", "int8", "float16", "bfloat16", "float32"] | None = option(None)
    """Data type that 4-bit weights are stored in; uint8 if left out."""


class HqqArguments(Arguments):
    """What HQQ wants to know."""

    GROUP: ClassVar[str] = "Quantization Parameters"

    hqq_axis: Annotated[Literal[0, 1], WholeNumber] | None = option(None)
    """The axis that HQQ groups weights along; 1 if left out."""


class QuantizeOnLoadArguments(BnbArguments, HqqArguments):
    """Loading a float model in few bits, to train an adapter on it or to generate."""

    GROUP: ClassVar[str] = "Quantization Parameters"
    LOADED_BY: ClassVar[str] = ""
    """What the names of these parameters begin with where those without it mean something else."""

    quant_method: Literal["bnb", "hqq", "eetq"] | None = option(None)
    """How the weights are quantized when they are loaded; models that are quantized already say so themselves."""
    quant_bits: QuantBits | None = option(None)
    """Bits of a weight: bnb 4 or 8; hqq 1, 2, 3, 4 or 8; eetq 8."""

    @model_validator(mode="after")
    def _check_quantize_on_load(self) -> Self:
        prefix = self.LOADED_BY
        method, bits = getattr(self, f"{prefix}quant_method"), getattr(self, f"{prefix}quant_bits")
        if getattr(self, "tuner_backend", None) == "unsloth" and method is None and bits:
            method = "bnb"
            self._resolve(**{f"{prefix}quant_method": method})
        if getattr(self, "tuner_backend", None) == "unsloth" and method not in (None, "bnb"):
            raise ValueError(
                f"`--tuner_backend unsloth` quantizes by bnb alone: drop it, or `--{prefix}quant_method {method}`"
            )
        check_bits(method, bits, ("bnb", "hqq", "eetq"), prefix)
        parts = {name: f"{prefix}{name}" for name in BnbArguments.model_fields} if (method, bits) != ("bnb", 4) else {}
        if method != "hqq":
            parts["hqq_axis"] = "hqq_axis"
        for name, own in parts.items():
            if self._given(own):
                needed = "hqq" if name == "hqq_axis" else f"bnb --{prefix}quant_bits 4"
                value = getattr(self, own)
                flag = f"--{own} {str(value).lower() if isinstance(value, bool) else value}"
                raise ValueError(f"`{flag}` is a part of `--{prefix}quant_method {needed}`: add that, or drop it")
        if method is not None:
            flag = f"--{prefix}quant_method {method} --{prefix}quant_bits {bits}"
            check_trainable(self, method, bits, f"`{flag}`", "drop one of them")
        if method == "hqq" and self.hqq_axis is None:
            self._resolve(hqq_axis=1)
        return self
