"""Which device a model is trained on, in which data type: `choose_precision(arguments, model_dtype="bfloat16")`.

SWIFT's rules: on a CPU float32 unless bfloat16 is asked for; on a GPU the model's own type. Weights in bfloat16 are
trained with bfloat16 mixed precision, other weights on a GPU with float16 mixed precision.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from stages.errors import ArgumentsError, MissingPackage

if TYPE_CHECKING:
    from stages.arguments import TrainArguments

__all__ = ["Precision", "choose_precision"]

DeviceMap = str | dict[str, int | str]


@dataclass(frozen=True)
class Precision:
    """Where and how precisely.

    Attributes:
        device_map: for `from_pretrained`; None where the trainer puts the model on its one device.
        on_cpu: whether all of it is trained on the CPU.
        dtype: of the weights: float32, bfloat16 or float16.
        mixed: the data type of mixed precision, or `no`.
    """

    device_map: DeviceMap | None
    on_cpu: bool
    dtype: str
    mixed: Literal["no", "bf16", "fp16"]


def choose_precision(arguments: TrainArguments, model_dtype: str | None) -> Precision:
    """Settles `torch_dtype`, `fp16`, `bf16`, `use_cpu` and `device_map` for this machine.

    Raises:
        MissingPackage: a device that is not here.
        ArgumentsError: two of them contradict each other, or float16 on a CPU.
    """
    import torch

    devices = _devices(arguments.device_map)
    _check_devices(arguments, devices)
    on_cpu = arguments.use_cpu or devices == {"cpu"} or not torch.accelerator.is_available()
    if arguments.fp16 and arguments.bf16:
        raise ArgumentsError("`--fp16` and `--bf16` are two kinds of mixed precision: give one of them")
    flag = "bfloat16" if arguments.bf16 else "float16" if arguments.fp16 else None
    wanted = arguments.torch_dtype or flag
    if on_cpu:
        if wanted == "float16" or arguments.fp16:
            raise ArgumentsError(
                "a CPU cannot train in float16: give `--torch_dtype float32` or `--torch_dtype bfloat16`"
            )
        dtype = wanted or "float32"
        mixed: Literal["no", "bf16", "fp16"] = "bf16" if "bfloat16" in (dtype, flag) else "no"
        return Precision(None if devices else arguments.device_map, True, dtype, mixed)
    dtype = wanted or _dtype_on_gpu(model_dtype)
    mixed = "bf16" if "bfloat16" in (dtype, flag) else "fp16"
    # One device, the first, is the trainer's own way; only a split over several needs accelerate's hooks.
    return Precision(arguments.device_map, False, dtype, mixed)


def _dtype_on_gpu(model_dtype: str | None) -> str:
    import torch

    if model_dtype in ("float16", "bfloat16"):
        return model_dtype
    return "bfloat16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "float16"


def _devices(device_map: DeviceMap | None) -> set[str]:
    """The devices that a map names: `{"cuda:0", "cpu"}`; none if it leaves the choice to accelerate."""
    if device_map is None:
        return set()
    named = {device_map} if isinstance(device_map, str) else set(device_map.values())
    devices = {f"cuda:{device}" if isinstance(device, int) else device for device in named}
    return devices - {"auto", "balanced", "balanced_low_0", "sequential"}


def _check_devices(arguments: TrainArguments, devices: set[str]) -> None:
    import torch

    if "disk" in devices:
        raise ArgumentsError("`--device_map` puts weights on disk, where they cannot be trained")
    for device in sorted(devices - {"cpu"}):
        kind, _, index = device.partition(":")
        here = torch.accelerator.current_accelerator(check_available=True)
        count = torch.accelerator.device_count() if here is not None and here.type == kind else 0
        if int(index or 0) >= count:
            has = f"only {count}" if count else "none"
            raise MissingPackage(f"`--device_map {device}` needs a {kind} device, and this machine has {has}: drop it")
        if arguments.use_cpu:
            raise ArgumentsError(f"`--use_cpu` and `--device_map {device}` contradict each other: drop one of them")
