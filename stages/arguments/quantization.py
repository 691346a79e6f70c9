"""SWIFT's quantization parameters: loading a model in few bits (export's quantization is in `export.py`)."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import model_validator

from stages.arguments.base import Arguments, Dtype, WholeNumber, option

__all__ = ["BnbArguments", "HqqArguments", "QuantizeOnLoadArguments", "check_bits"]

QuantBits = Annotated[Literal[1, 2, 3, 4, 8], WholeNumber]
_BITS = {
    "bnb": (4, 8),
    "hqq": (1, 2, 3, 4, 8),
    "eetq": (8,),
    "gptq": (2, 3, 4, 8),
    "awq": (4,),
}


def check_bits(method: str | None, bits: int | None, methods: tuple[str, ...]) -> None:
    """Checks that method and bits go together.

    Raises:
        ValueError: if one is missing, or the method cannot make that many bits.
    """
    if method is None:
        if bits is not None:
            raise ValueError(f"`--quant_bits {bits}` needs `--quant_method`: choose from {', '.join(methods)}")
        return
    allowed = ", ".join(map(str, _BITS[method]))
    if bits is None:
        raise ValueError(f"`--quant_method {method}` needs `--quant_bits`: choose from {allowed}")
    if bits not in _BITS[method]:
        raise ValueError(f"`--quant_method {method}` cannot make `--quant_bits {bits}`: choose from {allowed}")


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

    quant_method: Literal["bnb", "hqq", "eetq"] | None = option(None)
    """How the weights are quantized when they are loaded; models that are quantized already say so themselves."""
    quant_bits: QuantBits | None = option(None)
    """Bits of a weight: bnb 4 or 8; hqq 1, 2, 3, 4 or 8; eetq 8."""

    @model_validator(mode="after")
    def _check_quantize_on_load(self) -> Self:
        if getattr(self, "tuner_backend", None) == "unsloth" and self.quant_method is None and self.quant_bits:
            self._resolve(quant_method="bnb")
        check_bits(self.quant_method, self.quant_bits, ("bnb", "hqq", "eetq"))
        return self
