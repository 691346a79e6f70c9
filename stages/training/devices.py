"""What needs a GPU, or a package that not every machine has: `check_devices(arguments)`, before anything is loaded.

The real path of each is in `parallel.py` (DeepSpeed, FSDP, TorchAcc's parameters, Liger) and `loading.py` (attention,
unsloth).
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

from stages.errors import ArgumentsError, MissingPackage
from stages.training import group

if TYPE_CHECKING:
    from stages.arguments import TrainArguments

__all__ = [
    "attention_kernel",
    "check_devices",
    "check_flash_attention",
    "check_layer_class",
    "is_on",
    "shards_weights",
    "uses_liger",
]

SHARDED_TYPES = ("full", "lora", "llamapro")
"""What FSDP and DeepSpeed can train: methods that neither watch single weights nor hold a state of their own."""


class Need(NamedTuple):
    """What a flag asks of the machine.

    Attributes:
        flag: as it was given.
        does: what it does, which says why it needs that.
        devices: GPUs.
        package: the module to import.
        install: how to get it.
        instead: what else can be done.
    """

    flag: str
    does: str
    devices: int = 1
    package: str | None = None
    install: str = ""
    instead: str = "drop it"


FLASH_ATTENTION = Need(
    "--attn_impl flash_attn",
    "computes attention",
    1,
    "flash_attn",
    "flash-attn --no-build-isolation",
    "give `--attn_impl sdpa`",
)


def uses_liger(arguments: TrainArguments) -> bool:
    """Whether Liger's kernels are asked for: by SWIFT's switch or by transformers'."""
    return arguments.use_liger or arguments.use_liger_kernel


def shards_weights(arguments: TrainArguments) -> str | None:
    """The flag that has GPUs share the weights, or what belongs to them; None if none does."""
    if arguments.deepspeed is not None:
        return "--deepspeed"
    if is_on(arguments.fsdp):
        return f"--fsdp {arguments.fsdp}"
    if arguments.fsdp_num > 1:
        return f"--fsdp_num {arguments.fsdp_num}"
    return None if arguments.parallelism_config is None else "--parallelism_config"


def is_on(fsdp: str | None) -> bool:
    """Whether `fsdp` is on: transformers takes a switch, older versions took options."""
    return fsdp is not None and fsdp.strip().lower() not in ("", "false", "no", "off")


def check_devices(arguments: TrainArguments) -> None:
    """Refuses what this machine cannot do.

    Raises:
        MissingPackage: a GPU or a package is missing; the line says how to get it.
        ArgumentsError: two flags, of which one does nothing or the opposite of the other.
    """
    _check_flags(arguments)
    on_cpu = arguments.use_cpu or arguments.device_map == "cpu"
    for need in _needs(arguments):
        _check(need, on_cpu=on_cpu)


def attention_kernel(name: str | None) -> str | None:
    """What transformers calls an `attn_impl`."""
    return "flash_attention_2" if name == "flash_attn" else name


def check_flash_attention(*, on_cpu: bool) -> None:
    """Refuses `attn_impl flash_attn` where it cannot be had.

    Raises:
        MissingPackage: a GPU or the package is missing.
    """
    _check(FLASH_ATTENTION, on_cpu=on_cpu)


def _check(need: Need, *, on_cpu: bool) -> None:
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if on_cpu or count < need.devices:
        has = f"only {count}" if count else "none"
        needs = "a GPU" if need.devices == 1 else f"{need.devices} GPUs"
        where = "the CPU is asked for" if on_cpu and count else f"this machine has {has}"
        raise MissingPackage(f"`{need.flag}` {need.does}: it needs {needs}, and {where}: {need.instead}")
    if need.package is not None and find_spec(need.package) is None:
        raise MissingPackage(
            f"`{need.flag}` {need.does} by the package {need.package.replace('_', '-')}, which is not here: "
            f"`pip install {need.install}`, or {need.instead}"
        )


def _needs(arguments: TrainArguments) -> list[Need]:
    size = max(arguments.nproc_per_node or 1, group.size())
    found = []
    if arguments.attn_impl == "flash_attn":
        found.append(FLASH_ATTENTION)
    if uses_liger(arguments):
        flag = "--use_liger" if arguments.use_liger else "--use_liger_kernel"
        found.append(Need(flag, "computes layers and loss with Triton's kernels", 1, "liger_kernel", "liger-kernel"))
    if arguments.tuner_backend == "unsloth":
        found.append(Need("--tuner_backend unsloth", "loads and trains the model", 1, "unsloth", "unsloth"))
    if arguments.deepspeed is not None:
        found.append(Need("--deepspeed", "shares optimizer, gradients or weights", size, "deepspeed", "deepspeed"))
    elif arguments.fsdp_num > 1:
        found.append(Need(f"--fsdp_num {arguments.fsdp_num}", "shares the weights", arguments.fsdp_num))
    elif sharing := shards_weights(arguments):
        found.append(Need(sharing, "shares the weights", size))
    return found


def _check_flags(arguments: TrainArguments) -> None:
    flag, given = shards_weights(arguments), arguments
    if given.deepspeed is not None and (is_on(given.fsdp) or given.fsdp_num > 1):
        raise ArgumentsError("`--deepspeed` and FSDP share the weights in two ways: drop one of them")
    if given.parallelism_config is not None and (given.fsdp_num > 1 or given.sequence_parallel_size > 1):
        other = f"--fsdp_num {given.fsdp_num}" if given.fsdp_num > 1 else "--sequence_parallel_size"
        raise ArgumentsError(f"`--parallelism_config` and `{other}` both say who shares what: drop one of them")
    if given.fsdp_config is not None and not is_on(given.fsdp) and given.fsdp_num == 1:
        raise ArgumentsError("`--fsdp_config` settles FSDP, which is off: add `--fsdp true`")
    if given.model_layer_cls_name is not None and not is_on(given.fsdp) and given.fsdp_num == 1:
        raise ArgumentsError(
            f"`--model_layer_cls_name {given.model_layer_cls_name}` names the layers that GPUs share, and none are "
            "shared: add `--fsdp_num 2` or `--fsdp true`"
        )
    if given.liger_kernel_config is not None and not uses_liger(given):
        raise ArgumentsError("`--liger_kernel_config` settles Liger's kernels, which are off: add `--use_liger true`")
    if flag is not None:
        _check_sharded(given, flag)
    if given.attn_impl == "flash_attn" and given.torch_dtype == "float32":
        raise ArgumentsError(
            "`--attn_impl flash_attn` computes in 16 bits: give `--torch_dtype bfloat16`, or `--attn_impl sdpa`"
        )
    if uses_liger(given) and given.loss_type not in (None, "cross_entropy"):
        raise ArgumentsError(f"Liger's kernels compute the loss themselves: drop `--loss_type {given.loss_type}`")
    if given.tuner_backend == "unsloth" and given.train_type not in ("lora", "full"):
        raise ArgumentsError(
            f"`--tuner_backend unsloth` trains lora and full, not {given.train_type}: drop one of them"
        )


def _check_sharded(arguments: TrainArguments, flag: str) -> None:
    own = {
        f"--train_type {arguments.train_type}": arguments.train_type not in SHARDED_TYPES,
        "--lisa_activated_layers": bool(arguments.lisa_activated_layers),
        "--use_galore": arguments.use_galore,
        "--predict_with_generate": arguments.predict_with_generate,
        "--tuner_backend unsloth": arguments.tuner_backend == "unsloth",
        "--device_map": arguments.device_map is not None,
    }
    for other, used in own.items():
        if used:
            raise ArgumentsError(f"`{other}` needs whole weights in each process, and `{flag}` shares them: drop one")


def check_layer_class(arguments: TrainArguments, skeleton: Any) -> None:
    """Whether the model has layers of the class that `model_layer_cls_name` names.

    Raises:
        ArgumentsError: it has none.
    """
    name = arguments.model_layer_cls_name
    if name is None:
        return
    classes = [type(module).__name__ for module in skeleton.modules()]
    if name not in classes:
        often = sorted({one for one in classes if classes.count(one) > 1 and one.endswith(("Layer", "Block"))})
        raise ArgumentsError(
            f"`--model_layer_cls_name {name}`: the model has no such layer. "
            f"Its layers are of the class {', '.join(often) or ', '.join(sorted(set(classes)))}"
        )
