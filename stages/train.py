"""Trains a model on tokens: a LoRA adapter, or all weights.

`python -m stages train --input model=sha256:… --input tokens=sha256:… --lora_rank 16 --learning_rate 2e-4`
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.arguments import TrainArguments
from stages.context import Context
from stages.errors import ArgumentsError, Interrupted
from stages.sources.model_folder import MODEL_FILES
from stages.stage import Input, Inputs, Metrics, Prepared, Stage
from stages.training import group
from stages.training.checkpoints import Checkpoints
from stages.training.devices import shards_weights
from stages.training.feed import TOKEN_FILES
from stages.training.libraries import used_libraries
from stages.training.parallel import settle_processes
from stages.training.tuners import Tuner, get_tuner, output_kind
from stages.training.unsloth_backend import import_unsloth

if TYPE_CHECKING:
    from stages.training.feed import Feed
    from stages.training.start import Start

__all__ = ["STAGE", "train", "train_here"]

TIMES = ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second", "eval_model_preparation_time")
"""What the Trainer measures of a validation itself."""
HANDED_IN = "local::checkpoint"
"""Stands for the path of a checkpoint that has become the input `checkpoint`."""


def prepare(arguments: TrainArguments) -> Prepared[TrainArguments]:
    """Hands the folder in `resume_from_checkpoint` in as the input `checkpoint`; settles the number of processes.

    Raises:
        ArgumentsError: there is no such folder; NPROC_PER_NODE is no number.
    """
    arguments = settle_processes(arguments)
    arguments, handed_in = _hand_in_plugins(arguments)
    given = arguments.resume_from_checkpoint
    if given is None or given == HANDED_IN:
        return Prepared(arguments, handed_in)
    path = Path(given).expanduser()
    if not path.is_dir():
        raise ArgumentsError(f"`--resume_from_checkpoint {given}` is not a folder: give a checkpoint-<step>")
    arguments = arguments.model_copy(update={"resume_from_checkpoint": HANDED_IN})
    return Prepared(arguments, {"checkpoint": path, **handed_in})


def _hand_in_plugins(arguments: TrainArguments) -> tuple[TrainArguments, dict[str, tuple[Path, ...]]]:
    """The user's code is an input only where a parameter names what only it can know."""
    from stages.data.plugins import hand_in_plugins
    from stages.training.plugins import check_plugins

    names, files = hand_in_plugins(arguments.custom_register_path)
    needed = bool(arguments.registered())
    if files and needed:
        check_plugins(files, arguments)
    arguments = arguments.model_copy(update={"custom_register_path": names if needed else []})
    return arguments, ({"plugins": files} if files and needed else {})


def can_resume(scratch: Path) -> bool:
    """Whether a checkpoint was written to its end."""
    return Checkpoints(scratch).newest() is not None


def train(arguments: TrainArguments, inputs: Inputs, out: Path, context: Context) -> Metrics:
    """Trains, and leaves a PEFT folder or a plain Hugging Face folder.

    Args:
        arguments: what is trained and how.
        inputs: `model`; `tokens`, of any kind that tokenize makes; perhaps `checkpoint` or `adapter`.
        out: the adapter or model.
        context: scratch keeps checkpoints; attachments get logs, curves and, in the end, the checkpoints.

    Raises:
        UserError: a model, rows or a setting that cannot be trained; all but divergence is found before the weights
            are loaded.
        Interrupted: told to stop; the last checkpoint is from that moment.
    """
    from stages.training.cores import share_cores
    from stages.training.devices import check_devices

    share_cores()
    check_devices(arguments)
    if (arguments.nproc_per_node or 1) > 1 or shards_weights(arguments) is not None:
        from stages.training.launch import train_in_processes

        return train_in_processes(arguments, inputs, out, context)
    return train_here(arguments, inputs, out, context)


def train_here(arguments: TrainArguments, inputs: Inputs, out: Path, context: Context) -> Metrics:
    """As `train`, in this very process, which may be one of several: see `training/worker.py`."""
    from stages.training.quiet import quiet

    if arguments.tuner_backend == "unsloth":
        import_unsloth()
    with quiet():
        return _Run(arguments, inputs, context).run(out)


class _Run:
    """A training from its checks to its artifact."""

    def __init__(self, arguments: TrainArguments, inputs: Inputs, context: Context) -> None:
        """Checks everything that can be checked without weights."""
        from stages.training.answers import check_prompts
        from stages.training.best import best_by
        from stages.training.devices import check_layer_class
        from stages.training.feed import check_feed, open_feed
        from stages.training.loading import load_skeleton
        from stages.training.losses import choose_loss
        from stages.training.measures import Measures
        from stages.training.optimizers import choose_optimizer
        from stages.training.parallel import check_parallel
        from stages.training.plugins import load_for_training
        from stages.training.precision import choose_precision
        from stages.training.preflight import check_fit, describe_run
        from stages.training.quantized import plan_quantization, settle_precision
        from stages.training.rehearsal import rehearse
        from stages.training.settings import count_steps, trainer_settings
        from stages.training.start import find_start

        self.arguments, self.context, self.base = arguments, context, inputs["model"]
        check_parallel(arguments)
        check_feed(arguments, inputs["tokens"])
        self.tuner: Tuner = get_tuner(arguments)
        self.checkpoints = Checkpoints(context.scratch, arguments.save_total_limit, context.checkpointed)
        if group.size() == 1:  # else done before there were several
            self.checkpoints.sweep()
        context.reporter.progress(0, 1, "loading libraries and model")
        skeleton = load_skeleton(self.base, arguments.num_labels)
        check_layer_class(arguments, skeleton)
        vocabulary = skeleton.get_input_embeddings().num_embeddings
        self.feed: Feed = open_feed(arguments, inputs["tokens"], self.base, vocabulary, context)
        if "plugins" in inputs:
            load_for_training(inputs["plugins"], inputs["tokens"])
        self.loss = choose_loss(arguments, weighted=self.feed.weighted)
        self.optimizers = choose_optimizer(arguments, self.feed.train)
        self.measures = Measures.of(arguments, self.base, context.attachments)
        if arguments.predict_with_generate and self.feed.validation is not None:
            check_prompts(self.feed.validation)
        stored_in = settle_precision(arguments, str(skeleton.config.dtype).removeprefix("torch."))
        self.precision = choose_precision(arguments, stored_in)
        self.quantization = plan_quantization(arguments, skeleton, self.precision)
        validates, streams = self.feed.validation is not None, self.feed.place is not None
        self.settings = trainer_settings(
            arguments, self.precision, context.scratch, validates=validates, streams=streams
        )
        self.tuner.check(skeleton)
        num_rows = 0 if streams else len(self.feed.train)
        steps = count_steps(self.settings, num_rows)
        self.tuner.plan(steps)
        rehearse(self.settings, steps, num_rows=num_rows, own_optimizer=self.optimizers is not None)
        given, adapter = inputs.get("checkpoint"), inputs.get("adapter")
        self.best = best_by(arguments)
        self.start: Start = find_start(arguments, self.checkpoints, given, steps, adapter)
        if self.start.resumes and self.start.checkpoint is not None and not arguments.ignore_data_skip:
            self.feed.resume(self.start.checkpoint)
        known = describe_run(arguments, inputs, skeleton, self.feed, self.precision, steps, self.quantization)
        self.preflight = check_fit(known, context.scratch, context.logger)

    def run(self, out: Path) -> Metrics:
        """Trains and writes everything."""
        from stages.training.trainer import StopValidation

        trainer, report = self._make_trainer()
        try:
            self._train(trainer)
            history = trainer.state.log_history
            if self.feed.validation is not None and _last(history, "eval_loss") != trainer.state.global_step:
                trainer.evaluate()
        except StopValidation:
            pass
        if left_out := self._num_left_out():
            self.context.logger.warning("train: rows were left out %d times", left_out)
        if report.stopped:
            done = f"step {trainer.state.global_step} of {trainer.state.max_steps}"
            raise Interrupted(f"train: stopped at {done}; the same command goes on from its last checkpoint")
        self._save(trainer, out)
        if group.is_first():
            report.draw(trainer.state.log_history)
            self.checkpoints.link_into(self.context.attachments, only_model=self.arguments.save_only_model)
        return self._metrics(trainer)

    def _num_left_out(self) -> int:
        """Each process has met rows of its own; but all of them read a whole stream."""
        own = self.feed.num_left_out
        return own if self.feed.place is not None else int(group.add_up([own])[0])

    def _make_trainer(self) -> tuple[Any, Any]:
        from transformers import set_seed

        from stages.training.early_stopping import make_early_stopping
        from stages.training.loading import load_model
        from stages.training.packs import check_isolation
        from stages.training.progress import make_callbacks
        from stages.training.settings import writes_tensorboard
        from stages.training.trainer import make_trainer

        set_seed(self.arguments.seed)
        source = self.tuner.weights(self.base, self.start.checkpoint)
        model = load_model(source, self.arguments, self.precision, self.quantization)
        if self.feed.packed:
            check_isolation(model)
        model = self.tuner.prepare(model)
        at_once = not self.start.resumes or shards_weights(self.arguments) is not None  # else the trainer does
        if self.start.checkpoint is not None and (self.start.finished or at_once):
            self.tuner.load(model, self.start.checkpoint)
            if self.start.finished:
                self.tuner.load_state(model, self.start.checkpoint)
        writes = writes_tensorboard(self.arguments) and group.is_first()
        runs = self.context.attachments / "runs" if writes else None
        report, callbacks = make_callbacks(self.context, runs, self.arguments.metric_warmup_step)
        if self.best is not None and self.arguments.early_stop_interval is not None:
            callbacks.append(make_early_stopping(self.arguments.early_stop_interval, self.best))
        given = self.settings, self.tuner, self.checkpoints, self.feed, callbacks, self.measures
        trainer = make_trainer(model, *given, self.optimizers, self.loss)
        if not group.is_first():  # dropout and noise are not the same for the rows of every process
            set_seed((self.arguments.seed + group.index()) % 2**32)
        return trainer, report

    def _train(self, trainer: Any) -> None:
        """Does the steps that are left."""
        from transformers import TrainerState

        self._announce(trainer)
        checkpoint = self.start.checkpoint
        if checkpoint is None or not self.start.resumes:
            trainer.train()
        elif self.start.finished:  # the Trainer would do one step too many
            trainer.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        else:
            trainer.train(resume_from_checkpoint=str(checkpoint))

    def _announce(self, trainer: Any) -> None:
        trained, total = _count_parameters(trainer.model)
        where = "cpu" if self.precision.on_cpu else trainer.args.device
        self.context.logger.info(
            "train: %s, %.2fM of %.2fM parameters, %s, %s on %s",
            *(self.arguments.train_type, trained / 1e6, total / 1e6, self.feed.described, self.precision.dtype, where),
        )
        if self.start.checkpoint is not None:
            what = "goes on from" if self.start.resumes else "takes its weights from"
            self.context.logger.info("train: %s %s", what, self.start.checkpoint.name)

    def _save(self, trainer: Any, out: Path) -> None:
        """The last weights, or those of the best checkpoint."""
        state = trainer.state
        best = state.best_global_step if self.arguments.load_best_model_at_end else None
        if best is not None and best != state.global_step:
            name = trainer.args.metric_for_best_model.removeprefix("eval_")
            self.context.logger.info("train: step %d is best, eval_%s %.4f", best, name, state.best_metric)
            own = self.checkpoints.path(best)
            source = own if own.is_dir() else self.start.checkpoint
            assert source is not None, "find_start has refused a best checkpoint that is not here"
            if group.is_first():
                self.checkpoints.link_model(source, out)
        else:
            _check_finite(trainer.model, self.arguments)
            trainer.save_model(str(out), _internal_call=True)
        if group.is_first():
            self.tuner.complete(self.base, out)

    def _metrics(self, trainer: Any) -> Metrics:
        state, history = trainer.state, trainer.state.log_history
        trained, total = _count_parameters(trainer.model)
        losses = [(entry["step"], entry["loss"]) for entry in history if "loss" in entry]
        held_out = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
        last: dict[str, Any] = next((entry for entry in reversed(history) if "eval_loss" in entry), {})
        metrics: Metrics = {
            "global_step": state.global_step,
            "train_loss": _mean_loss(losses),
            "first_loss": losses[0][1],
            "last_loss": losses[-1][1],
            "num_train_epochs": round(float(state.epoch or 0), 4),
            **self.feed.facts,
            "num_parameters": total,
            "num_trainable_parameters": trained,
        }
        metrics |= {name: value for name, value in last.items() if name.startswith("eval_") and name not in TIMES}
        for name in ("token_acc", "seq_acc"):
            counted = [entry[name] for entry in history if name in entry]
            metrics |= {name: counted[-1]} if counted else {}
        metrics |= self.preflight.finish()
        if len(held_out) > 1:  # after the first steps, not before them
            metrics["first_eval_loss"] = held_out[0]
        if state.best_metric is not None:
            metrics |= {"best_metric": state.best_metric, "best_step": state.best_global_step}
        return metrics


def _count_parameters(model: Any) -> tuple[int, int]:
    """Those that are trained, and all."""
    from stages.training.quantized import count_weights

    own = (parameter for parameter in model.parameters() if parameter.requires_grad)
    # ZeRO's third stage leaves an empty tensor, which knows what it was.
    return sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in own), count_weights(model)


def _check_finite(model: Any, arguments: TrainArguments) -> None:
    from stages.training.sharded import is_finite

    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not is_finite(parameter):
            raise ArgumentsError(
                f"training broke down: {name} is no longer a number. "
                f"Lower `--learning_rate` (it was {arguments.learning_rate:g})"
            )


def _last(history: Sequence[dict[str, Any]], name: str) -> int | None:
    return next((entry["step"] for entry in reversed(history) if name in entry), None)


def _mean_loss(losses: Sequence[tuple[int, float]]) -> float:
    """Over all steps: each logged loss is the mean since the one before."""
    total, before = 0.0, 0
    for step, loss in losses:
        total += loss * (step - before)
        before = step
    return total / before


STAGE = Stage(
    name="train",
    version=2,
    arguments=TrainArguments,
    inputs={
        "model": Input(kinds=("model",), reads=MODEL_FILES, help="the model to train"),
        "tokens": Input(kinds=("tokens",), reads=TOKEN_FILES, help="what tokenize has made"),
        "checkpoint": Input(
            kinds=("files", "adapter", "model"), required=False, help="a checkpoint-<step> to go on from"
        ),
        "adapter": Input(
            kinds=("adapter",),
            reads=("adapter_config.json", "adapter_model.safetensors"),
            required=False,
            help="an adapter whose weights training starts with, instead of random ones",
        ),
        "plugins": Input(kinds=("files",), required=False, help="Python files: optimizer, loss, metric"),
    },
    output=output_kind,
    function=train,
    need="gpu",
    libraries=("torch", "transformers", "peft", "accelerate"),
    more_libraries=used_libraries,
    prepare=prepare,
    can_resume=can_resume,
)
