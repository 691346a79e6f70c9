"""Several processes, one row over several devices: `check_parallel(arguments)`, then `parallel_settings(arguments)`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from stages.errors import ArgumentsError, MissingPackage
from stages.training import group
from stages.training.dealing import check_dealing
from stages.training.devices import is_on, uses_liger

if TYPE_CHECKING:
    from transformers import Seq2SeqTrainingArguments

    from stages.arguments import TrainArguments

__all__ = [
    "check_parallel",
    "check_shared_rows",
    "num_shares",
    "parallel_settings",
    "settle_processes",
    "shares_rows",
    "tokens_multiple",
]


def settle_processes(arguments: TrainArguments) -> TrainArguments:
    """With the number of processes, which NPROC_PER_NODE says as in SWIFT where the arguments do not.

    Raises:
        ArgumentsError: NPROC_PER_NODE is no number, or NNODES asks for several machines.
    """
    if arguments.nproc_per_node is not None:
        return arguments
    given, nodes = os.environ.get("NPROC_PER_NODE", ""), os.environ.get("NNODES", "")
    if nodes not in ("", "1"):
        raise ArgumentsError(f"NNODES={nodes}: training is for one machine; unset it, and give `--nproc_per_node`")
    if given and not (given.isdecimal() and int(given)):
        raise ArgumentsError(f"NPROC_PER_NODE={given} is no number of processes: give `--nproc_per_node 2`")
    return arguments.model_copy(update={"nproc_per_node": int(given or 1)})


def check_parallel(arguments: TrainArguments) -> None:
    """Whether there are as many devices and processes as are asked for.

    Raises:
        MissingPackage: there are fewer GPUs.
        ArgumentsError: the number of processes is not a multiple of `sequence_parallel_size`; a setting that several
            processes cannot share.
    """
    if group.size() > 1:
        _check_devices(arguments)
        check_dealing(arguments)
    size = arguments.sequence_parallel_size
    if size == 1:
        return
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() and not arguments.use_cpu else 0
    if count < size:
        has = f"has {count}" if count else "has none"
        raise MissingPackage(
            f"`--sequence_parallel_size {size}` shares each row among {size} GPUs, and this machine {has}: drop it"
        )
    if arguments.attn_impl not in (None, "sdpa"):
        raise ArgumentsError(
            f"`--sequence_parallel_size {size}` shares the attention of `--attn_impl sdpa` alone, not "
            f"{arguments.attn_impl}: drop one of them"
        )
    if group.size() % size:
        raise ArgumentsError(
            f"`--sequence_parallel_size {size}` needs a number of processes that it divides, and there "
            f"{'is one' if group.size() == 1 else f'are {group.size()}'}: give `--nproc_per_node {size}`"
        )


def _check_devices(arguments: TrainArguments) -> None:
    """Each process has a GPU of its own, or all share the CPU."""
    import torch

    given = f"`--nproc_per_node {group.size()}`"
    if arguments.device_map not in (None, "cpu"):
        raise ArgumentsError(f"{given} gives each process a device of its own: drop `--device_map`")
    on_cpu = arguments.use_cpu or arguments.device_map == "cpu" or not torch.accelerator.is_available()
    if not on_cpu and torch.accelerator.device_count() < group.size():
        count = torch.accelerator.device_count()
        raise MissingPackage(
            f"{given} gives each process a GPU of its own, and this machine has {count}: give "
            f"`--nproc_per_node {count}`, or `--use_cpu true`"
        )


def check_shared_rows(arguments: TrainArguments, *, packed: bool, weighted: bool) -> None:
    """Whether rows of a kind can be shared: a device has a part of a row, and knows of no border or weight in it.

    Raises:
        ArgumentsError: they cannot.
    """
    if weighted and uses_liger(arguments):
        flag = "--use_liger" if arguments.use_liger else "--use_liger_kernel"
        raise ArgumentsError(
            f"`{flag}` computes the loss itself, and these rows were tokenized with `--loss_scale`: drop one of them"
        )
    size = arguments.sequence_parallel_size
    for flag, used in (("--packing", packed), ("--loss_scale", weighted)):
        if size > 1 and used:
            raise ArgumentsError(
                f"`--sequence_parallel_size {size}` shares neither packed rows nor rows with weights, and these were "
                f"tokenized with `{flag}`: drop one of them"
            )


def parallel_settings(arguments: TrainArguments) -> dict[str, Any]:
    """What transformers and accelerate are told: ring attention (context parallelism), on weights sharded by FSDP."""
    told: dict[str, Any] = {}
    if group.size() > 1:
        # Which layers a step trains may change (LISA), and rows may have no picture. What models hold in buffers never
        # changes; to send it would be one more exchange that processes with other numbers of parts do not share.
        defaults = {"ddp_find_unused_parameters": True, "ddp_broadcast_buffers": False}
        told = {name: value for name, value in defaults.items() if getattr(arguments, name) is None}
    if uses_liger(arguments):
        told["use_liger_kernel"] = True
    told |= _fsdp(arguments)
    size = arguments.sequence_parallel_size
    if size > 1:  # accelerate shards weights over all of them: without it, it refuses to share rows
        shared = _parallelism({"cp_size": size, "dp_shard_size": group.size() // size})
        told |= {"parallelism_config": shared, "fsdp": True, "fsdp_config": {"version": 2}}
    return told


def _fsdp(arguments: TrainArguments) -> dict[str, Any]:
    """What is shared, and among whom: `fsdp`, and TorchAcc's parameters of it, through accelerate's FSDP2."""
    told: dict[str, Any] = {}
    config: dict[str, Any] = dict(arguments.fsdp_config or {})
    if arguments.model_layer_cls_name is not None:
        config["transformer_layer_cls_to_wrap"] = [arguments.model_layer_cls_name]
    if is_on(arguments.fsdp):
        given = str(arguments.fsdp)
        told = {"fsdp": True if given.strip().lower() in ("true", "yes", "on") else given, "fsdp_config": config}
    elif arguments.fsdp is not None:
        told = {"fsdp": None}
    number = arguments.fsdp_num
    if number > 1:
        if group.size() % number:
            raise ArgumentsError(
                f"`--fsdp_num {number}` needs a number of processes that it divides, and there "
                f"{'is one' if group.size() == 1 else f'are {group.size()}'}: give `--nproc_per_node {number}`"
            )
        shared = {"dp_shard_size": number, "dp_replicate_size": group.size() // number}
        told = {"fsdp": True, "fsdp_config": config, "parallelism_config": _parallelism(shared)}
    if arguments.parallelism_config is not None:
        told["parallelism_config"] = _parallelism(arguments.parallelism_config)
    return told


def _parallelism(sizes: Mapping[str, Any]) -> Any:
    from accelerate.parallelism_config import ParallelismConfig

    known = [field.name for field in fields(ParallelismConfig)]
    unknown = [name for name in sizes if name not in known]
    if unknown:
        raise ArgumentsError(
            f"`--parallelism_config` knows no {unknown[0]!r:.40}. Choose from: {', '.join(sorted(known))}"
        )
    try:
        return ParallelismConfig(**sizes)
    except (ValueError, TypeError, ImportError, RuntimeError) as error:
        raise ArgumentsError(f"`--parallelism_config`: {' '.join(str(error).split())}") from None


def num_shares(settings: Seq2SeqTrainingArguments) -> int:
    """Among how many the rows of a step are dealt out: the processes, but for those that share rows."""
    shared = settings.parallelism_config
    together = 1 if shared is None else shared.non_data_parallel_size
    return max(int(settings.world_size // together), 1)


def tokens_multiple(settings: Seq2SeqTrainingArguments) -> int:
    """What the length of a batch must be a multiple of: each device takes two parts of a row, early and late."""
    shared = settings.parallelism_config
    return 1 if shared is None or shared.cp_size == 1 else 2 * int(shared.cp_size)


def shares_rows(settings: Seq2SeqTrainingArguments) -> bool:
    """Whether several devices have parts of one row."""
    shared = settings.parallelism_config
    return shared is not None and max(shared.cp_size, shared.sp_size) > 1
