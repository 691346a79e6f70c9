"""A base model whose weights are rounded to few bits as they are loaded: `plan_quantization(arguments, skeleton, …)`.

bitsandbytes and EETQ are a matter of transformers. HQQ (https://mobiusml.github.io/hqq_blog), which transformers 5 does
not load any more, is put in here. What is quantized are the linear layers of the part that writes, but for the output
head and the gates of experts.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from stages.arguments.quantization import check_trainable
from stages.errors import ArgumentsError, MissingPackage, ModelError

if TYPE_CHECKING:
    from torch import nn

    from stages.arguments import TrainArguments
    from stages.training.precision import Precision

__all__ = [
    "Quantization",
    "adapter_kinds",
    "count_weights",
    "on_load",
    "plan_quantization",
    "settle_layers",
    "settle_precision",
]

GATES = (r".*mlp\.gate", r".*shared_expert_gate", r".*\.router")
"""What chooses experts; SWIFT leaves it in floats too."""
GROUP = 64
"""Weights that share a scale and a zero in HQQ, as in SWIFT."""
PACKED = {8: 1, 4: 2, 3: 1, 2: 4, 1: 8}
"""Weights in a byte; three bits are padded."""
METHODS = {"bitsandbytes": "bnb"}
"""What config.json calls otherwise than SWIFT."""
logger = logging.getLogger("martlet.training")


@dataclass(frozen=True)
class Quantization:
    """What is quantized when the model is loaded.

    Attributes:
        method: bnb, hqq or eetq.
        bits: of a weight.
        layers: paths of the layers that are quantized.
        kept: paths of the linear layers that are not.
    """

    method: str
    bits: int
    layers: tuple[str, ...]
    kept: tuple[str, ...]


def settle_precision(arguments: TrainArguments, model_dtype: str | None) -> str | None:
    """The type that the model's weights are taken to have been stored in, where the user does not say.

    Raises:
        MissingPackage: EETQ, which computes in float16 on CUDA devices, lacks a device or package.
        ArgumentsError: another type is asked of it.
    """
    if arguments.quant_method != "eetq":
        return model_dtype
    import torch

    missing = [] if torch.cuda.is_available() and not arguments.use_cpu else ["a CUDA device, and none is in use here"]
    missing += [f"the package {name} (pip install {name})" for name in ("kernels", "eetq") if find_spec(name) is None]
    if missing:
        raise MissingPackage(
            f"`--quant_method eetq` needs {'; '.join(missing)}. Without: `--quant_method bnb --quant_bits 8`"
        )
    wanted = "bfloat16" if arguments.bf16 else arguments.torch_dtype
    if wanted not in (None, "float16"):
        flag = "--bf16 true" if arguments.bf16 else f"--torch_dtype {wanted}"
        raise ArgumentsError(f"`{flag}` does not go with `--quant_method eetq`, which computes in float16: drop it")
    return "float16"


def plan_quantization(arguments: TrainArguments, skeleton: nn.Module, precision: Precision) -> Quantization | None:
    """Which layers will be quantized; None if nothing is quantized on loading.

    Args:
        arguments: how, and what is trained.
        skeleton: the model without its weights.
        precision: where it will be.

    Raises:
        MissingPackage: hqq is not here, or what a model needs that is quantized already.
        ModelError: the model is quantized already and cannot be trained in this way or here.
        ArgumentsError: layers that HQQ cannot group, or that are to be trained in full.
    """
    method, bits = arguments.quant_method, arguments.quant_bits
    stored: Any = getattr(skeleton.config, "quantization_config", None)
    if stored:
        _check_stored(arguments, stored, precision)
        return None
    if method is None or bits is None:
        return None
    if method == "hqq" and find_spec("hqq") is None:
        raise MissingPackage("`--quant_method hqq` needs the package hqq: pip install hqq")
    layers, kept = _divide(skeleton)
    if not layers:
        raise ModelError(f"`--quant_method {method}`: the model ({type(skeleton).__name__}) has no linear layer")
    quantization = Quantization(method, bits, tuple(layers), tuple(kept))
    if method == "hqq":
        _check_hqq(arguments, bits, layers)
    _check_saved(arguments, skeleton, layers)
    return quantization


def on_load(arguments: TrainArguments, quantization: Quantization | None, precision: Precision) -> dict[str, Any]:
    """What `from_pretrained` is told, where it does the work."""
    import torch
    import transformers

    if quantization is None or quantization.method == "hqq":
        return {}
    kept = list(quantization.kept)
    if quantization.method == "eetq":
        config: Any = transformers.EetqConfig("int8", modules_to_not_convert=kept)
    elif quantization.bits == 8:
        config = transformers.BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=kept)
    else:
        config = transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            llm_int8_skip_modules=kept,
            bnb_4bit_quant_type=arguments.bnb_4bit_quant_type,
            bnb_4bit_use_double_quant=arguments.bnb_4bit_use_double_quant,
            bnb_4bit_compute_dtype=getattr(torch, arguments.bnb_4bit_compute_dtype or precision.dtype),
            bnb_4bit_quant_storage=getattr(torch, arguments.bnb_4bit_quant_storage or "uint8"),
        )
    return {"quantization_config": config, "device_map": precision.device_map or {"": device(precision)}}


def device(precision: Precision) -> str:
    """The one that the trainer puts the model on."""
    import torch

    here = torch.accelerator.current_accelerator(check_available=True)
    if precision.on_cpu or here is None:
        return "cpu"
    return f"{here.type}:{torch.accelerator.current_device_index()}"


def settle_layers(
    model: Any, arguments: TrainArguments, quantization: Quantization | None, precision: Precision
) -> None:
    """What `from_pretrained` leaves to do: puts in HQQ's layers, makes those of bitsandbytes fit for training."""
    if quantization is not None:
        if quantization.method == "hqq":
            _to_hqq(model, quantization, arguments.hqq_axis or 0, precision)
        numbers = len(quantization.layers), quantization.bits, quantization.method, len(quantization.kept)
        logger.info("%d linear layers are in %d bits by %s, %d in floats", *numbers)
    _keep_trainable(model, precision)


def _to_hqq(model: Any, quantization: Quantization, axis: int, precision: Precision) -> None:
    """Puts layers of HQQ in the place of linear ones, one after the other, so that floats make room.

    Args:
        model: with its weights; it is changed.
        quantization: bits and layers.
        axis: along which weights are grouped.
        precision: the layers compute in the type of mixed precision, or in the model's.
    """
    import torch
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear  # type: ignore[import-untyped]

    mixed = {"bf16": torch.bfloat16, "fp16": torch.float16}
    dtype = mixed.get(precision.mixed, getattr(torch, precision.dtype))
    settings = BaseQuantizeConfig(nbits=quantization.bits, group_size=GROUP, axis=axis)
    for path in quantization.layers:
        layer = model.get_submodule(path)
        where = device(precision) if precision.device_map is None else str(layer.weight.device)
        rounded = HQQLinear(layer, settings, compute_dtype=dtype, device=where)
        # By these names peft learns how large the layer is; else it would import GPTQModel, with its banner, to ask.
        rounded.infeatures, rounded.outfeatures = rounded.in_features, rounded.out_features
        model.set_submodule(path, rounded)
    model.config.quantization_config = {"quant_method": "hqq", "nbits": quantization.bits, "axis": axis}


def _keep_trainable(model: Any, precision: Precision) -> None:
    """Makes 4-bit layers of bitsandbytes fit for training on a CPU.

    A validation would otherwise pack their weights for processors with AVX512-BF16, after which a layer with a bias
    cannot be trained any more ("a view of a leaf Variable", bitsandbytes 0.50).
    """
    from stages.serving.loading import widen_float16

    for layer in model.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False
    if precision.on_cpu:
        widen_float16(model)


def adapter_kinds(model: Any) -> dict[type, Callable[..., Any]]:
    """What peft makes of each kind of layer under LoRA, so that it need not import GPTQModel to ask for its kinds.

    Empty where layers may be of GPTQModel's kinds.
    """
    from peft.tuners.lora import Linear
    from torch import nn

    stored = getattr(model.config, "quantization_config", None)
    method = _method_of(stored) if stored else None
    if method is None:
        return {nn.Linear: Linear}
    if method == "bnb":
        import bitsandbytes
        from peft.tuners.lora.bnb import dispatch_bnb_4bit, dispatch_bnb_8bit

        four, eight = bitsandbytes.nn.Linear4bit, bitsandbytes.nn.Linear8bitLt
        return {four: dispatch_bnb_4bit, eight: dispatch_bnb_8bit, nn.Linear: Linear}
    if method == "hqq":
        from hqq.core.quantize import HQQLinear
        from peft.tuners.lora.hqq import dispatch_hqq

        return {HQQLinear: dispatch_hqq, nn.Linear: Linear}
    return {}


def count_weights(model: Any) -> int:
    """All parameters of a model, however many bits each of them has."""
    from torch import nn

    total: int = sum(parameter.numel() for parameter in model.parameters())
    for layer in model.modules():
        if isinstance(getattr(layer, "base_layer", None), nn.Module):
            continue  # peft's, which is called as what it stands before
        if type(layer).__name__ == "Linear4bit":
            total += layer.in_features * layer.out_features - layer.weight.numel()
        elif hasattr(layer, "qweight") and hasattr(layer, "in_features"):  # GPTQModel's, in buffers
            total += layer.in_features * layer.out_features + (0 if layer.bias is None else layer.bias.numel())
        elif type(layer).__name__ == "HQQLinear":  # where weights are a parameter only once peft has found them
            total += layer.in_features * layer.out_features + (0 if layer.bias is None else layer.bias.numel())
            total -= layer.W_q.numel() if isinstance(layer.W_q, nn.Parameter) else 0
    return total


def _divide(model: Any) -> tuple[dict[str, nn.Module], list[str]]:
    """Linear layers that will be quantized, and paths of those that will not."""
    from torch import nn
    from transformers.quantizers.base import get_keys_to_not_convert
    from transformers.quantizers.quantizers_utils import should_convert_module

    from stages.training.multimodal import language_part

    left_out = [*get_keys_to_not_convert(model), *GATES, *(model._keep_in_fp32_modules or ())]
    part = language_part(model)
    layers: dict[str, nn.Module] = {}
    kept = []
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear):
            writes = part is None or path.startswith(f"{part}.")
            if writes and should_convert_module(path, left_out):
                layers[path] = module
            else:
                kept.append(path)
    return layers, kept


def _check_stored(arguments: TrainArguments, stored: Any, precision: Precision) -> None:
    """What can be said of a model that is quantized already before its weights are loaded."""
    from transformers.quantizers import AutoHfQuantizer

    from stages.serving.loading import import_gptqmodel

    method = _method_of(stored)
    named = stored.get("quant_method", "unknown method") if isinstance(stored, dict) else stored.quant_method
    if arguments.quant_method is not None:
        raise ModelError(f"the model is quantized already ({named}): drop `--quant_method {arguments.quant_method}`")
    bits = 8 if isinstance(stored, dict) and stored.get("load_in_8bit") else 4
    try:
        check_trainable(
            arguments, method, bits, f"a model that is quantized ({named})", "give the float model that it was made of"
        )
    except ValueError as error:
        raise ModelError(str(error)) from None
    if method in ("gptq", "awq"):
        import_gptqmodel()
    try:
        quantizer = AutoHfQuantizer.from_config(stored, pre_quantized=True)
        quantizer.validate_environment(device_map=precision.device_map or {"": device(precision)}, dtype=None)
    except (ImportError, RuntimeError, ValueError, NotImplementedError) as error:
        reason = " ".join(str(error).split())
        raise MissingPackage(f"the model is quantized ({named}) and cannot be opened here: {reason:.300}") from None
    if not quantizer.is_trainable:
        raise ModelError(f"the model is quantized ({named}), and beside such weights nothing can be trained")


def _method_of(stored: Any) -> str:
    """SWIFT's name of what a configuration says."""
    named = stored.get("quant_method", "unknown") if isinstance(stored, dict) else stored.quant_method
    named = str(getattr(named, "value", named))
    return METHODS.get(named, named)


def _check_hqq(arguments: TrainArguments, bits: int, layers: dict[str, nn.Module]) -> None:
    for path, layer in layers.items():
        number = int(layer.in_features) * int(layer.out_features)  # type: ignore[arg-type]
        groups = number // GROUP
        if number % GROUP or (arguments.hqq_axis != 0 and groups % PACKED[bits]):
            needed = GROUP * (PACKED[bits] if arguments.hqq_axis != 0 else 1)
            raise ArgumentsError(
                f"`--quant_method hqq --quant_bits {bits}` takes {needed} weights at a time, and {path} has {number}: "
                "give `--quant_method bnb`"
            )
        if arguments.lora_bias_trainable != "none" and layer.bias is not None:
            raise ArgumentsError(
                f"`--lora_bias_trainable {arguments.lora_bias_trainable}` does not go with `--quant_method hqq`, which "
                f"freezes the bias of {path}: drop one of them"
            )


def _check_saved(arguments: TrainArguments, skeleton: nn.Module, layers: dict[str, nn.Module]) -> None:
    """What is trained in full must stay in floats."""
    from stages.training.tuners.targets import find_modules_to_save

    for name in find_modules_to_save(skeleton, arguments.modules_to_save):
        for path in layers:
            if f".{name}." in f".{path}.":
                raise ArgumentsError(
                    f"`--modules_to_save {name}` trains {path} in full, and `--quant_method {arguments.quant_method}` "
                    "leaves it no floats: drop one of them"
                )
