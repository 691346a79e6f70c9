"""What a training run will need, told from shapes alone: `estimate(arguments, skeleton, feed, precision, …)`.

Weights, optimizer and gradients are counted; what forward and backward keep is seen in a step without numbers
(`simulate.py`). A model so small that the libraries around it take more is not simulated.
"""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stages.training.simulate import Step, simulate_step

if TYPE_CHECKING:
    from stages.arguments import TrainArguments
    from stages.training.feed import Feed
    from stages.training.precision import Precision
    from stages.training.quantized import Quantization

__all__ = ["Estimate", "Run", "estimate"]

SIMULATED_FROM = 1_000_000
"""Parameters."""
OVERHEAD = {"cpu": 64 << 20, "cuda": 0}
"""What libraries take that are first used in training, and the buffers of their kernels."""
BITS_OF_SCALES = {"bnb": 0.5, "hqq": 0.5, "eetq": 0.1}
"""Bits a quantized weight has a share in, beside its own."""

logger = logging.getLogger("martlet.training")


@dataclass(frozen=True)
class Run:
    """What is known of a run before its weights are loaded.

    Attributes:
        arguments: what is trained, and how.
        skeleton: the model on the meta device.
        feed: its rows.
        precision: where, and in which type.
        steps: optimizer steps.
        stored_bytes: of the model's files.
        quantization: what is quantized on loading.
        max_length: tokens that a row has at most, where rows have no length yet.
        processes: that share this machine.
    """

    arguments: TrainArguments
    skeleton: Any
    feed: Feed
    precision: Precision
    steps: int
    stored_bytes: int
    quantization: Quantization | None = None
    max_length: int | None = None
    processes: int = 1

    @property
    def kind(self) -> str:
        """Where memory is needed."""
        return "cpu" if self.precision.on_cpu else "cuda"


@dataclass(frozen=True)
class Estimate:
    """Bytes.

    Attributes:
        weights: of model and adapter.
        states: of the optimizer.
        step: gradients, and what forward and backward keep.
        overhead: of libraries.
        loading: for a moment, while the model is loaded.
        saving: for a moment, while a checkpoint is written.
        checkpoint: a checkpoint on disk.
        num_checkpoints: how many are there at a time.
        artifact: what is left in the end.
    """

    weights: int
    states: int
    step: int
    overhead: int
    loading: int
    saving: int
    checkpoint: int
    num_checkpoints: int
    artifact: int

    @property
    def memory(self) -> int:
        """At most, at a time."""
        at_once = max(self.loading, self.weights + self.states + max(self.step, self.saving))
        return at_once + self.overhead

    @property
    def disk(self) -> int:
        """In the end, if nothing is cleared away before."""
        return self.checkpoint * self.num_checkpoints + self.artifact


def estimate(run: Run) -> Estimate:
    """Counts."""
    from stages.training.states import state_bytes

    arguments = run.arguments
    model = _prepared(run)
    weights = _weight_bytes(model, run)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    trained_bytes = sum(parameter.numel() * parameter.element_size() for parameter in trained)
    states = state_bytes(arguments, model)
    step = _step_bytes(run, model)
    whole = arguments.train_type in ("full", "llamapro")
    artifact = weights if whole else trained_bytes
    as_floats = sum(parameter.numel() for parameter in run.skeleton.parameters()) * _item(run.precision.dtype)
    changes_type = run.kind == "cpu" and not 0.9 < run.stored_bytes / as_floats < 1.1  # else the file is mapped
    return Estimate(
        weights=weights,
        states=states,
        step=step,
        overhead=OVERHEAD[run.kind],
        loading=weights + (min(run.stored_bytes, 5 << 30) if changes_type else 0),
        saving=0 if whole else 2 * trained_bytes,
        checkpoint=artifact + states,
        num_checkpoints=_num_checkpoints(arguments, run.steps),
        artifact=artifact,
    )


def _prepared(run: Run) -> Any:
    """The model with its adapter, on the meta device; the model alone, where an adapter cannot be put there."""
    import torch

    from stages.training.tuners import get_tuner

    dtype = getattr(torch, run.precision.dtype)
    arguments = run.arguments
    if arguments.init_lora_weights.startswith("pissa"):  # of the same shape, and needs no weights
        arguments = arguments.model_copy(update={"init_lora_weights": "true"})
    model = copy.deepcopy(run.skeleton).to(dtype)
    try:
        with torch.device("meta"):
            tuner = get_tuner(arguments)
            tuner.check(model)
            tuner.plan(max(run.steps, 1))
            model = tuner.prepare(model)
    except Exception as error:  # a method that computes something from weights; what it adds is small
        logger.debug("preflight: %s without its adapter: %s", arguments.train_type, error)
        model = copy.deepcopy(run.skeleton).to(dtype)
        model.requires_grad_(False)
        model.enable_input_require_grads()
    model.config.use_cache = False
    if arguments.gradient_checkpointing and hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable({"use_reentrant": False})
    if arguments.lisa_activated_layers:
        from stages.training.tuners.layers import decoder_layers

        for layer in list(decoder_layers(model)[1])[arguments.lisa_activated_layers :]:
            layer.requires_grad_(False)
    return model


def _weight_bytes(model: Any, run: Run) -> int:
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}.values()
    total: int = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    if getattr(run.skeleton.config, "quantization_config", None):
        float_bytes = sum(tensor.numel() * tensor.element_size() for tensor in run.skeleton.parameters())
        float_bytes = float_bytes * _item(run.precision.dtype) // _item(str(run.skeleton.dtype).removeprefix("torch."))
        return int(total - float_bytes + run.stored_bytes)
    if run.quantization is not None:
        bits = run.quantization.bits + BITS_OF_SCALES.get(run.quantization.method, 0.5)
        for path in run.quantization.layers:
            weight = run.skeleton.get_submodule(path).weight
            total -= int(weight.numel() * (_item(run.precision.dtype) - bits / 8))
    return total


def _item(dtype: str) -> int:
    return 4 if dtype == "float32" else 2


def _step_bytes(run: Run, model: Any) -> int:
    """Of forward and backward, for the batch that needs most."""
    from stages.training.batches_ahead import most_expensive

    arguments = run.arguments
    config = run.skeleton.config.get_text_config(decoder=True)
    hidden, layers = int(config.hidden_size), int(config.num_hidden_layers)
    item = _item(run.precision.dtype)
    per_token = hidden * item * (layers + 24 if arguments.gradient_checkpointing else 24 * layers)
    per_target = run.skeleton.get_input_embeddings().num_embeddings * 12 if not run.feed.num_labels else 0
    batch, several = most_expensive(run, per_token, per_target)
    spared = _dequantized(run) if run.quantization is not None else 0
    if _num_parameters(run.skeleton) < SIMULATED_FROM:
        return batch.rows * batch.length * per_token + batch.targets * per_target + _gradient_bytes(model)
    try:
        step = simulate_step(model, batch, device=run.kind, mixed=run.precision.mixed)
    except Exception as error:  # what depends on the content of tensors has no shape
        logger.debug("preflight: not simulated: %s", error)
        kept = batch.rows * batch.length * per_token + batch.targets * per_target
        step = Step(kept + _gradient_bytes(model), kept + _gradient_bytes(model), _gradient_bytes(model))
    return _in_process(arguments, step, several) + spared


def _in_process(arguments: TrainArguments, step: Step, several: bool) -> int:
    if arguments.use_galore and arguments.galore_optim_per_parameter:
        return max(step.again_bytes - step.gradient_bytes, step.peak_bytes - step.gradient_bytes)
    return max(step.peak_bytes, step.again_bytes) if several else step.peak_bytes


def _dequantized(run: Run) -> int:
    """The largest layer as floats, which it is while it is used."""
    assert run.quantization is not None
    layers = (int(run.skeleton.get_submodule(path).weight.numel()) for path in run.quantization.layers)
    return max(layers, default=0) * _item(run.precision.dtype)


def _gradient_bytes(model: Any) -> int:
    return int(sum(one.numel() * one.element_size() for one in model.parameters() if one.requires_grad))


def _num_parameters(model: Any) -> int:
    return int(sum(parameter.numel() for parameter in model.parameters()))


def _num_checkpoints(arguments: TrainArguments, steps: int) -> int:
    """That are there at a time: a new one is written before an old one goes."""
    if arguments.save_strategy == "no":
        return 0
    every = arguments.save_steps if arguments.save_steps >= 1 else max(1.0, arguments.save_steps * steps)
    saves = max(1, int(steps // every) + bool(steps % every))
    if arguments.save_strategy == "epoch":
        saves = max(1, round(arguments.num_train_epochs))
    if arguments.save_total_limit is None:
        return saves
    kept = arguments.save_total_limit + 1 + bool(arguments.load_best_model_at_end)
    return min(saves, kept)
