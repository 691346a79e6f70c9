"""transformers' Trainer with our checkpoints, an exact validation loss and a way to stop: `make_trainer(…)`.

What is changed, and nothing else: weights are saved and loaded by the tuner, which may add to the loss; the arguments
may ask for an optimizer of ours; a checkpoint counts only once it is on the disk; the validation loss is a mean over
tokens, not over batches; validation leaves the random state alone, so that a run which is resumed after it goes on
exactly; rows grouped by length come in an order that can be repeated; logits are computed only where a token is
predicted, and tokens may have weights; a stream goes on from its place in the data; on a CPU no padding is computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.training import group
from stages.training.batches import collate, split_by_length
from stages.training.dealing import EvenSampler, dealt, shuffled
from stages.training.loss import predicting, shifted, takes_positions, token_loss
from stages.training.optimizers.state import takes_up_its_own
from stages.training.parallel import num_shares, shares_rows, tokens_multiple
from stages.training.rows import IGNORED
from stages.training.sharded import whole

if TYPE_CHECKING:
    from transformers import Seq2SeqTrainingArguments
    from transformers import Trainer as Base

    from stages.training.checkpoints import Checkpoints
    from stages.training.feed import Feed
    from stages.training.losses import RegisteredLoss
    from stages.training.measures import Measures
    from stages.training.optimizers import OptimizerMaker
    from stages.training.tuners import Tuner
else:
    Base = object  # transformers is imported only where a trainer is made

__all__ = ["StopValidation", "make_trainer"]


class StopValidation(Exception):
    """A validation was told to end; it leaves no trace."""


def make_trainer(
    model: Any,
    settings: Seq2SeqTrainingArguments,
    tuner: Tuner,
    checkpoints: Checkpoints,
    feed: Feed,
    callbacks: Sequence[Any],
    measures: Measures,
    optimizers: OptimizerMaker | None = None,
    loss: RegisteredLoss | None = None,
) -> Any:
    """A Trainer for a prepared model.

    Args:
        model: what the tuner has prepared.
        settings: see `settings.py`.
        tuner: saves and loads weights.
        checkpoints: where they are.
        feed: what is trained and validated on.
        callbacks: called after transformers' own, which decides when to log, save and validate, and the tuner's.
        measures: what is measured beside the loss.
        optimizers: makes optimizer and scheduler; the Trainer does, where it is None or makes none.
        loss: a plugin's; None for `token_loss`.
    """
    from transformers import PrinterCallback, Trainer

    from stages.training.class_trainer import ClassTrainer

    class StageTrainer(_StageTrainer, Trainer):  # type: ignore[misc]
        pass

    class StageClassTrainer(ClassTrainer, StageTrainer):
        pass

    trainer = (StageClassTrainer if feed.num_labels else StageTrainer)(
        model=model,
        args=settings,
        data_collator=feed.collator(model) or partial(collate, multiple=tokens_multiple(settings)),
        train_dataset=dealt(feed.train),
        eval_dataset=dealt(feed.validation),
        callbacks=[*tuner.callbacks(), *callbacks],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.tuner = tuner
    trainer.checkpoints = checkpoints
    trainer.feed = feed
    trainer.measures = measures
    trainer.optimizer_maker = optimizers
    trainer.registered_loss = loss
    # Where rows are shared, a device has a part of a row, and only the model knows which; Liger has a loss of its own.
    if not (shares_rows(settings) or settings.use_liger_kernel):
        trainer.compute_loss_func = trainer._token_loss
        trainer._takes_positions = loss is None and takes_positions(model)
    return trainer


class _StageTrainer(Base):  # type: ignore[misc]
    """The methods that replace the Trainer's own, most of which are private to it: transformers is pinned."""

    tuner: Tuner
    checkpoints: Checkpoints
    feed: Feed
    optimizer_maker: OptimizerMaker | None
    registered_loss: RegisteredLoss | None
    measures: Measures
    optimizer: Any
    _takes_positions = False
    _kept: Any = None
    _weights: Any = None
    _extra_due = False
    _alone = False

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        with whole(self.model, state_dict):
            self.tuner.save(self.model, folder)
        self.feed.carry_template(folder)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        step = self.state.global_step
        if group.is_first():
            self.checkpoints.begin(step)
        group.wait()
        super()._save_checkpoint(model, trial)
        self.feed.gather_place()
        group.wait()  # each process has written its random state
        if group.is_first():
            self.feed.save_place(self.checkpoints.path(step))
            self.tuner.save_state(self.model, self.checkpoints.path(step))
            self.checkpoints.finish(step, best=self.state.best_global_step)

    @property
    def _shares_weights(self) -> bool:
        """Whether each process has parts of the weights, and all must call the model equally often."""
        return bool(self.is_fsdp_enabled or self.is_deepspeed_enabled)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self._shares_weights:  # done before they were shared out
            return
        self.tuner.load(self.model, Path(resume_from_checkpoint))
        self.tuner.load_state(self.model, Path(resume_from_checkpoint))

    def create_optimizer(self, model: Any = None) -> Any:
        """Of the kind that the arguments ask for, or the Trainer's own."""
        if self.optimizer is None:
            if self.optimizer_maker is not None:
                self.optimizer, self.lr_scheduler = self.optimizer_maker(model or self.model, self.args)
            takes_up_its_own(super().create_optimizer(model))
        return self.optimizer

    def _load_best_model(self) -> None:
        """Nothing: the stage takes the files of the best checkpoint as they are."""

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's own. Here a stream that goes on takes up its random state: the loader has drawn from it before.

        So the Trainer does it where it skips rows.
        """
        samples = super().get_batch_samples(*args, **kwargs)
        if self.feed.resumes_from is not None:
            self._load_rng_state(str(self.feed.resumes_from))
            self.feed.resumes_from = None
        return samples

    def _get_num_items_in_batch(self, batch_samples: Any, device: Any) -> Any:
        """The Trainer's own, of all processes; in validation each counts its own: see `evaluation_loop`."""
        return None if self._alone and group.size() > 1 else super()._get_num_items_in_batch(batch_samples, device)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """A plugin's, or `token_loss` at the positions that predict a label, whose logits alone are computed."""
        self._find_targets(inputs)
        if self.compute_loss_func is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels, positions = inputs["labels"], inputs.get("position_ids")
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if labels.dim() == 2:  # else rows have one label each, and are counted in a way of their own
            step = self.state.global_step if model.training else None
            self.measures.add(outputs.logits, labels, self._kept, positions, step=step)
        if self._extra_due:
            self._extra_due = False
            extra = self.tuner.extra_loss(self.model)
            loss = loss if extra is None else loss + extra
        return (loss, outputs) if return_outputs else loss

    def _find_targets(self, inputs: Any) -> None:
        scale = inputs.pop("loss_scale", None)
        if self.compute_loss_func is None:
            return
        self._kept = kept = predicting(inputs["labels"])
        if self.registered_loss is not None:
            self._weights = scale
            return
        self._weights = None if scale is None else shifted(scale, 0)[kept]
        if self._takes_positions:
            inputs["logits_to_keep"] = kept

    def _token_loss(self, outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
        if self.registered_loss is not None:
            loss = self.registered_loss(outputs, labels, self._weights, num_items_in_batch)
        else:
            logits = outputs.logits if self._takes_positions else outputs.logits[self._kept]
            targets, smoothing = shifted(labels, IGNORED)[self._kept], self.args.label_smoothing_factor
            loss = token_loss(logits, targets, self._weights, num_items_in_batch, label_smoothing=smoothing)
        balance = outputs.get("aux_loss")  # of a mixture of experts, which a model adds only to a loss of its own
        return loss if balance is None else loss + self.model.config.router_aux_loss_coef * balance

    def _maybe_log_save_evaluate(
        self, tr_loss: Any, grad_norm: Any, model: Any, trial: Any, *args: Any, **kwargs: Any
    ) -> None:
        if self.feed.place is not None:  # the Trainer counts what a stream has not: a share of the steps
            self.state.epoch = float(self.feed.place.epoch)
        try:
            super()._maybe_log_save_evaluate(tr_loss, grad_norm, model, trial, *args, **kwargs)
        except StopValidation:
            # Which checkpoint is best is part of the result: then the validation must be done over, from the last one.
            if not self.args.metric_for_best_model:
                self._save_checkpoint(model, trial)
            raise

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Leaves out the Trainer's summary: after a resume it tells of the last part of a run only."""
        if "loss" in logs:
            logs |= self.measures.take_training()
        if "train_runtime" not in logs:
            super().log(logs, start_time)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Validates; torch's random state is afterwards what it was."""
        import torch

        devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else []
        with torch.random.fork_rng(devices=devices):
            metrics: dict[str, float] = super().evaluate(*args, **kwargs)
        return metrics

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's own, whose loss is the mean of the batches' means; here it is the mean over all tokens."""
        self._sum, self._tokens = 0.0, 0.0
        self.measures.begin()
        output = super().evaluation_loop(*args, **kwargs)
        self._sum, self._tokens = group.add_up([self._sum, self._tokens])
        output.metrics["eval_loss"] = self._sum / max(self._tokens, 1)
        found = self.measures.finish(self.state.global_step)
        output.metrics.update({f"eval_{name}": value for name, value in found.items()})
        return output

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        """On a CPU, rows of different lengths one by one: the gradients add up to the same, without padding."""
        self.feed.reached(inputs.pop("place", None))
        self._extra_due = self.accelerator.sync_gradients  # the last part of a step
        at_once = num_items_in_batch is None or self.args.device.type != "cpu" or self._shares_weights
        at_once = at_once or self.registered_loss is not None  # which may compare the rows of a batch
        parts = [inputs] if at_once else split_by_length(inputs)
        loss: Any = 0
        for number, part in enumerate(parts, 1):
            last = number == len(parts)
            if self._steps_at_once is not None:
                self._steps_at_once.due = last
            # Processes may have different numbers of parts: gradients are exchanged with the last one.
            with nullcontext() if last else self.accelerator.no_sync(model):
                loss = loss + super().training_step(model, part, num_items_in_batch)
        return loss

    @property
    def _steps_at_once(self) -> Any:
        """The optimizer, if it makes its steps during the backward pass."""
        optimizer = getattr(self.optimizer, "optimizer", self.optimizer)  # accelerate has wrapped it
        return optimizer if hasattr(optimizer, "due") else None

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """The Trainer's own, or what an optimizer has seen whose gradients are gone."""
        if self._steps_at_once is not None:
            return self._steps_at_once.take_norm()
        return super()._get_grad_norm(model, grad_norm)

    def prediction_step(self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None) -> Any:
        """The loss of a batch, remembered with its weight; what is returned is only looked at for being there."""
        at_once = self.args.device.type != "cpu" or self._shares_weights
        if not self._shares_weights and not (inputs["labels"][:, 1:] != IGNORED).any():  # lazy_tokenize cannot use it
            return inputs["labels"].float().sum() * 0, None, None
        self._alone = True
        for part in [inputs] if at_once else split_by_length(inputs):
            tokens = int((part["labels"][:, 1:] != IGNORED).sum())
            if tokens or at_once:
                loss, _, _ = super().prediction_step(model, part, True, ignore_keys)
                self._sum += float(loss) * tokens
                self._tokens += tokens
        self._alone = False
        self.measures.generate(self.accelerator.unwrap_model(model), self._prepare_inputs(inputs))
        return loss, None, None

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        rows, strategy = train_dataset or self.train_dataset, self.args.train_sampling_strategy
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        batch = self.args.train_batch_size * num_shares(self.args)
        if strategy == "group_by_length":
            order: Any = _GroupedByLength(batch * self.args.gradient_accumulation_steps, rows.lengths, seed)
        elif group.size() > 1 and strategy == "random":
            order = shuffled(rows, seed)
        else:
            order = super()._get_train_sampler(train_dataset)
        if group.size() == 1 or order is None:
            return order
        return EvenSampler(order, len(rows), batch, drop_last=self.args.dataloader_drop_last)

    def get_train_dataloader(self) -> Any:
        """The Trainer's own. Of several processes, each one's shares must lead to the order, which has to know epochs.

        A loader that skips batches, as where a run goes on, looks for it no deeper than there.
        """
        loader = super().get_train_dataloader()
        shares: Any = getattr(loader, "batch_sampler", None)
        if group.size() > 1 and hasattr(shares, "batch_sampler"):
            shares.sampler = shares.batch_sampler.sampler
        return loader

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        if group.size() == 1:
            return super()._get_eval_sampler(eval_dataset)
        batch = self.args.eval_batch_size * num_shares(self.args)
        return EvenSampler(range(len(eval_dataset)), len(eval_dataset), batch)


class _GroupedByLength:
    """transformers' LengthGroupedSampler, whose order in an epoch depends on the seed and the epoch alone."""

    def __init__(self, batch_size: int, lengths: list[int], seed: int) -> None:
        self.batch_size, self.lengths, self.seed, self.epoch = batch_size, lengths, seed, 0

    def __len__(self) -> int:
        return len(self.lengths)

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer, also when it goes on in the middle of an epoch."""
        self.epoch = epoch

    def __iter__(self) -> Any:
        import torch
        from transformers.trainer_pt_utils import get_length_grouped_indices

        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return iter(get_length_grouped_indices(self.lengths, self.batch_size, generator=generator))
