"""Whether a run fits into memory and onto the disk, before its weights are loaded: `preflight = check_fit(run, …)`.

A run that cannot fit is refused with the figures and with what would help, each tried on the same estimate;
`--ignore_preflight true` goes on. What was then needed stands beside the estimate: `preflight.finish()`.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.errors import ArgumentsError
from stages.training.estimate import Estimate, Run, estimate
from stages.training.memory import MemoryPeak, available_memory, give_back_at_once, memory_text

if TYPE_CHECKING:
    from stages.arguments import TrainArguments
    from stages.stage import Inputs
    from stages.training.feed import Feed
    from stages.training.precision import Precision
    from stages.training.quantized import Quantization

__all__ = ["Preflight", "check_fit", "describe_run"]

WAYS = 3
TIGHT = 0.4
"""From this share of what is free on, nothing is wasted."""
HELPS = 0.95
"""A way out takes at most this share of what the run as it stands would take."""


@dataclass(frozen=True)
class Preflight:
    """An estimate, and what it is to be held against."""

    estimate: Estimate
    peak: MemoryPeak
    logger: logging.Logger

    def finish(self) -> dict[str, int]:
        """Logs and returns what was estimated and what was needed, in bytes."""
        taken = self.peak.taken()
        figures = {"estimated_memory_bytes": self.estimate.memory}
        if taken is not None:
            figures["training_memory_bytes"] = taken
            texts = memory_text(taken), memory_text(self.estimate.memory)
            self.logger.info("train: took %s of memory at most, %s were estimated", *texts)
        return figures


def describe_run(
    arguments: TrainArguments,
    inputs: Inputs,
    skeleton: Any,
    feed: Feed,
    precision: Precision,
    steps: int,
    quantization: Quantization | None = None,
) -> Run:
    """What an estimate asks for, of a stage that has made its other checks."""
    from stages.sources.model_folder import read_json
    from stages.training import group

    encoder = inputs["tokens"] / "encoder.json"
    return Run(
        arguments,
        skeleton,
        feed,
        precision,
        steps,
        stored_bytes=sum(path.stat().st_size for path in inputs["model"].glob("*.safetensors")),
        quantization=quantization,
        max_length=read_json(encoder).get("max_length") if encoder.is_file() else None,
        processes=group.size(),
    )


def check_fit(run: Run, scratch: Path, logger: logging.Logger) -> Preflight:
    """Estimates, says so, and refuses a run that cannot fit.

    Args:
        run: what is known of it.
        scratch: where checkpoints are written; those there already are counted as the run's own.
        logger: gets the figures.

    Raises:
        ArgumentsError: memory or disk is too small.
    """
    found = estimate(run)
    held = sum(path.stat().st_size for path in scratch.glob("checkpoint-*/*") if path.is_file())
    memory, disk = available_memory(run.kind), shutil.disk_usage(scratch).free + held
    where = "memory" if run.kind == "cpu" else "GPU memory"
    if run.processes > 1 and run.kind == "cpu":
        memory, where = memory // run.processes, f"memory in each of {run.processes} processes"
    logger.info(
        "train: needs about %s of %s (%s are free) and up to %s of disk (%s are free)",
        *(memory_text(found.memory), where, memory_text(memory), memory_text(found.disk), memory_text(disk)),
    )
    for problem in (_memory_problem(run, found, memory, where), _disk_problem(run, found, disk, scratch)):
        if problem and not run.arguments.ignore_preflight:
            raise ArgumentsError(f"{problem}; or go on nevertheless: `--ignore_preflight true`")
        if problem:
            logger.warning("train: goes on with `--ignore_preflight true`, although %s", problem)
    if run.kind == "cpu" and found.memory > TIGHT * memory:
        give_back_at_once()
    return Preflight(found, MemoryPeak(run.kind), logger)


def _memory_problem(run: Run, found: Estimate, available: int, where: str) -> str:
    if found.memory <= available:
        return ""
    parts = {"weights": found.weights, "optimizer": found.states, "gradients and activations": found.step}
    listed = ", ".join(f"{name} {memory_text(size)}" for name, size in parts.items())
    tried = []
    for flags, changed in _lighter(run):
        needed = estimate(changed).memory
        if needed <= found.memory * HELPS:
            tried.append((needed > available, flags, needed))
    tried.sort(key=lambda way: (way[0], way[2] if way[0] else 0))  # what fits first, in our order; else the lightest
    ways = ", ".join(f"{flags} ({memory_text(needed)})" for _, flags, needed in tried[:WAYS])
    return (
        f"training needs about {memory_text(found.memory)} of {where} ({listed}) and {memory_text(available)} are "
        f"free. Ways out: {ways or 'a larger machine, or a smaller model'}"
    )


def _lighter(run: Run) -> Iterator[tuple[str, Run]]:
    """Changes of a run that save memory, those first that change the least."""
    given = run.arguments

    def changed(**values: Any) -> Run:
        return replace(run, arguments=given.model_copy(update=values))

    adapter = given.train_type not in ("full", "llamapro")
    if not given.gradient_checkpointing and given.train_type != "reft":
        yield "`--gradient_checkpointing true`", changed(gradient_checkpointing=True)
    if given.per_device_train_batch_size > 1:
        yield "`--per_device_train_batch_size 1`", changed(per_device_train_batch_size=1)
    if not adapter:
        yield "`--train_type lora`", changed(train_type="lora", lisa_activated_layers=0, use_galore=False)
    if run.precision.dtype == "float32":
        lighter = replace(run.precision, dtype="bfloat16", mixed="bf16")
        yield "`--torch_dtype bfloat16`", replace(run, precision=lighter)
    if adapter and run.quantization is None and not getattr(run.skeleton.config, "quantization_config", None):
        yield "`--quant_method bnb --quant_bits 4`", replace(run, quantization=_four_bits(run))
    if not adapter and not given.use_galore and given.optim != "adafactor":
        yield "`--optim adafactor`", changed(optim="adafactor")
    if (length := _longest(run)) > 1:
        yield f"`--max_length {length // 2}`", replace(run, feed=replace(run.feed, train=_Shorter(run, length // 2)))
    if run.processes > 1 and run.kind == "cpu":
        yield "`--nproc_per_node 1`", replace(run, processes=1)


def _four_bits(run: Run) -> Quantization:
    """All linear layers but the head, as bitsandbytes would have them."""
    from torch import nn

    from stages.training.quantized import Quantization
    from stages.training.tuners.targets import HEADS

    linear = (path for path, module in run.skeleton.named_modules() if isinstance(module, nn.Linear))
    return Quantization("bnb", 4, tuple(path for path in linear if path.rpartition(".")[2] not in HEADS), ())


def _longest(run: Run) -> int:
    if hasattr(run.feed.train, "lengths"):
        return int(max(run.feed.train.lengths))
    return run.max_length or 0


class _Shorter:
    """Rows cut to a length."""

    def __init__(self, run: Run, length: int) -> None:
        rows = run.feed.train
        before: list[int] = rows.lengths if hasattr(rows, "lengths") else [run.max_length or length]
        self.lengths = [min(length, most) for most in before]
        self.num_tokens = sum(self.lengths)
        self.num_labels = self.num_tokens


def _disk_problem(run: Run, found: Estimate, free: int, scratch: Path) -> str:
    if found.disk <= free:
        return ""
    given: TrainArguments = run.arguments
    ways = []
    if given.save_total_limit is None and found.num_checkpoints > 2:
        ways.append(f"`--save_total_limit 1` ({memory_text(2 * found.checkpoint + found.artifact)})")
    if found.num_checkpoints > 1:
        fewer = -(-found.num_checkpoints // 10)
        ways.append(
            f"`--save_steps {given.save_steps * 10:g}` ({memory_text(fewer * found.checkpoint + found.artifact)})"
        )
    if found.num_checkpoints:
        ways.append(f"`--save_strategy no` ({memory_text(found.artifact)})")
    if given.train_type in ("full", "llamapro"):
        lighter = estimate(replace(run, arguments=given.model_copy(update={"train_type": "lora"})))
        ways.append(f"`--train_type lora` ({memory_text(lighter.disk)})")
    ways.append("a store on another disk (MARTLET_STORE)")
    what = f"{found.num_checkpoints} checkpoints of {memory_text(found.checkpoint)}, the result "
    return (
        f"training needs up to {memory_text(found.disk)} of disk ({what}{memory_text(found.artifact)}) and "
        f"{memory_text(free)} are free in {scratch.name}. Ways out: {', '.join(ways[:WAYS])}"
    )
