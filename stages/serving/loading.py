"""Opens a model folder for measuring and generating: `load_model(Path("smollm2"))`.

Float models and those quantized by bitsandbytes or GPTQ open alike. Nothing is fetched and no code of the model's runs.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.errors import MissingPackage, ModelError
from stages.sources.model_folder import check_model_folder, read_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "DeviceMap",
    "check_device",
    "check_writes",
    "import_gptqmodel",
    "load_model",
    "load_tokenizer",
    "quantization_of",
    "uncompiled",
    "widen_float16",
]

DeviceMap = str | dict[str, int | str]
LISTED = 3
logger = logging.getLogger("martlet.serving")


def quantization_of(folder: Path) -> str | None:
    """`bitsandbytes`, `gptq` … for a model whose weights are quantized."""
    config = read_json(folder / "config.json").get("quantization_config")
    return str(config.get("quant_method", "unknown")) if isinstance(config, dict) else None


def check_device(device_map: DeviceMap | None) -> DeviceMap:
    """The device map asked for, or the one device that is here.

    Raises:
        MissingPackage: a device that this machine does not have.
    """
    import torch

    if device_map is None:
        return {"": "cuda:0" if torch.cuda.is_available() else "cpu"}
    devices = [device_map] if isinstance(device_map, str) else list(device_map.values())
    for device in map(str, devices):
        index = device.removeprefix("cuda").removeprefix(":") or "0"
        on_cuda = device.startswith("cuda") or device.isdecimal()
        if on_cuda and int(index) >= (torch.cuda.device_count() if torch.cuda.is_available() else 0):
            raise MissingPackage(f"`--device_map {device}`: this machine has {torch.cuda.device_count()} CUDA devices")
    return {"": device_map} if isinstance(device_map, str) and device_map in ("cpu", *_cuda_names()) else device_map


@contextmanager
def uncompiled() -> Iterator[None]:
    """GPTQModel's layers ask torch to compile them, which takes minutes on a CPU, a C++ compiler, and gains little."""
    import torch

    if torch.cuda.is_available():
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def check_writes(folder: Path) -> None:
    """Refuses a classifier, which `--num_labels` trains: opened as a model that writes, it would have a random head.

    Raises:
        ModelError: it is one.
    """
    architectures = read_json(folder / "config.json").get("architectures") or []
    if any(name.endswith("ForSequenceClassification") for name in architectures):
        raise ModelError(
            f"the model is a classifier ({architectures[0]}), which writes nothing: open it with transformers' "
            "AutoModelForSequenceClassification; its accuracy was measured in training (eval_acc)"
        )


def load_model(
    folder: Path,
    *,
    torch_dtype: str | None = None,
    device_map: DeviceMap | None = None,
    attn_impl: str | None = None,
) -> PreTrainedModel:
    """The model in evaluation mode.

    Args:
        folder: a Hugging Face folder with safetensors.
        torch_dtype: of weights and computation; if None, float32 on a CPU and the model's own on a GPU.
        device_map: as transformers takes it; one device if None.
        attn_impl: `sdpa`, `eager` or `flash_attn`; transformers' choice if None.

    Raises:
        ModelError: a file is missing or damaged, or weights are missing or of another shape than the configuration's.
        MissingPackage: the device, or the library of its quantization, is not here.
    """
    import torch
    from transformers import AutoConfig

    from stages.training.devices import attention_kernel, check_flash_attention
    from stages.training.multimodal import load_class

    check_model_folder(folder)
    check_writes(folder)
    if quantization_of(folder) == "gptq":
        import_gptqmodel()
    devices = check_device(device_map)
    if attn_impl == "flash_attn":
        check_flash_attention(on_cpu=_is_cpu(devices))
    dtype = getattr(torch, torch_dtype) if torch_dtype else torch.float32 if _is_cpu(devices) else "auto"
    try:
        auto = load_class(AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False))
        model, report = auto.from_pretrained(
            folder,
            dtype=dtype,
            device_map=devices,
            attn_implementation=attention_kernel(attn_impl),
            output_loading_info=True,
            local_files_only=True,
            trust_remote_code=False,
        )
    except ImportError as error:
        raise MissingPackage(f"the model cannot be opened: {_first_line(error)}") from error
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ModelError(f"the model cannot be opened: {_first_line(error)}") from error
    if missing := sorted(report["missing_keys"]):
        more = f" and {len(missing) - LISTED} more" if len(missing) > LISTED else ""
        raise ModelError(
            f"the model's files lack weights that its config.json asks for: {', '.join(missing[:LISTED])}{more}"
        )
    if _is_cpu(devices):
        widen_float16(model)
    loaded: PreTrainedModel = model.eval()
    return loaded


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder.

    Raises:
        ModelError: its files are missing or damaged.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError, json.JSONDecodeError) as error:
        raise ModelError(f"the model's tokenizer cannot be opened: {_first_line(error)}") from error


def _is_cpu(devices: DeviceMap) -> bool:
    import torch

    named = [devices] if isinstance(devices, str) else list(devices.values())
    return set(map(str, named)) == {"cpu"} or not torch.cuda.is_available()


def widen_float16(model: Any) -> None:
    """A CPU computes 4-bit layers that were made for float16 in float32, which it is faster and safer in."""
    import torch

    layers = [module for module in model.modules() if type(module).__name__ == "Linear4bit"]
    narrow = [layer for layer in layers if layer.compute_dtype == torch.float16]
    for layer in narrow:
        layer.compute_dtype = torch.float32
    if narrow:
        logger.info("%d 4-bit layers are computed in float32, not float16: this is a CPU", len(narrow))


def _cuda_names() -> list[str]:
    import torch

    return ["cuda", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]


def import_gptqmodel() -> None:
    """Keeps what it does to the process from those who come after.

    It prints a banner to stdout, where `--json` has its one line, and moves the caches of Hugging Face to a temporary
    folder through HF_HOME and others, which later stages and their children would read.
    """
    before = dict(os.environ)
    try:
        with suppress(ImportError), redirect_stdout(sys.stderr):
            from logbar import LogBar  # type: ignore[import-untyped]

            LogBar.shared().setLevel("ERROR")
            import gptqmodel  # noqa: F401
    finally:
        os.environ.clear()
        os.environ.update(before)


def _first_line(error: Any) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
