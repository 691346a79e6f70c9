"""One row over several devices: `check_parallel(arguments)`, then `parallel_settings(arguments)` for transformers."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from stages.errors import ArgumentsError, MissingPackage

if TYPE_CHECKING:
    from transformers import Seq2SeqTrainingArguments

    from stages.arguments import TrainArguments

__all__ = ["check_parallel", "check_shared_rows", "parallel_settings", "tokens_multiple"]


def check_parallel(arguments: TrainArguments) -> None:
    """Whether there are as many devices and processes as `sequence_parallel_size` needs.

    Raises:
        MissingPackage: there are fewer GPUs.
        ArgumentsError: the number of processes is not a multiple of it; attention that cannot be shared.
    """
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
    processes = int(os.environ.get("WORLD_SIZE", "1"))  # set by torchrun and accelerate, which start them
    if processes % size:
        raise ArgumentsError(
            f"`--sequence_parallel_size {size}` needs a number of processes that it divides, and there "
            f"{'is one' if processes == 1 else f'are {processes}'}: start with "
            f"`torchrun --nproc_per_node {size} -m stages train …`"
        )


def check_shared_rows(arguments: TrainArguments, *, packed: bool, weighted: bool) -> None:
    """Whether rows of a kind can be shared: a device has a part of a row, and knows of no border or weight in it.

    Raises:
        ArgumentsError: they cannot.
    """
    size = arguments.sequence_parallel_size
    for flag, used in (("--packing", packed), ("--loss_scale", weighted)):
        if size > 1 and used:
            raise ArgumentsError(
                f"`--sequence_parallel_size {size}` shares neither packed rows nor rows with weights, and these were "
                f"tokenized with `{flag}`: drop one of them"
            )


def parallel_settings(arguments: TrainArguments) -> dict[str, Any]:
    """What transformers and accelerate are told: ring attention (context parallelism), on weights sharded by FSDP."""
    size = arguments.sequence_parallel_size
    if size == 1:
        return {}
    from accelerate.parallelism_config import ParallelismConfig

    processes = int(os.environ.get("WORLD_SIZE", "1"))
    # accelerate shards weights over all of them: without it, it refuses to share rows.
    shared = ParallelismConfig(cp_size=size, dp_shard_size=processes // size)
    return {"parallelism_config": shared, "fsdp": True, "fsdp_config": {"version": 2}}


def tokens_multiple(settings: Seq2SeqTrainingArguments) -> int:
    """What the length of a batch must be a multiple of: each device takes two parts of a row, early and late."""
    shared = settings.parallelism_config
    return 1 if shared is None else 2 * int(shared.cp_size)
