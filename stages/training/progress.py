"""What a training run shows and writes while it lasts, and how it is told to stop: `make_callbacks(…)`.

`logging.jsonl` has a line for each log step, `images/train_loss.png` the loss curve, `runs/` TensorBoard's events.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.context import Context
from stages.training import group
from stages.training.curve import draw_loss_curve
from stages.training.parallel import num_shares
from stages.training.trainer import StopValidation

if TYPE_CHECKING:
    from transformers import TrainerCallback as Base
else:
    Base = object  # transformers is imported only where callbacks are made

__all__ = ["RunReport", "log_line", "make_callbacks"]

CURVE_SHARE = 0.02
"""Of a run's time at most this share goes into drawing its curve."""

FIRST = ("loss", "eval_loss", "grad_norm", "learning_rate")
"""How a line of the log begins."""


def make_callbacks(context: Context, tensorboard: Path | None, warmup: float = 0.0) -> tuple[RunReport, list[Any]]:
    """The callbacks of one run; the first of them also says whether it was told to stop.

    Args:
        context: gets progress, metrics and the curve.
        tensorboard: where TensorBoard's events go, if they are wanted.
        warmup: steps, or below 1 a share of them, that the measured speed leaves out.
    """
    from transformers import TrainerCallback

    class Report(RunReport, TrainerCallback):  # type: ignore[misc]
        pass

    report = Report(context, warmup)
    callbacks: list[Any] = [report]
    if tensorboard is not None:
        from torch.utils.tensorboard import SummaryWriter
        from transformers.integrations import TensorBoardCallback

        callbacks.append(TensorBoardCallback(SummaryWriter(str(tensorboard))))
    return report, callbacks


class RunReport(Base):  # type: ignore[misc]
    """Decides, after transformers' own callback, what else is logged, and when a run ends early."""

    def __init__(self, context: Context, warmup: float = 0.0) -> None:
        self.context, self.warmup = context, warmup
        self._warm = 0
        self.stopped = False
        self._began = self._drawn = time.monotonic()
        self._cost = 0.0
        self._first_step = 0
        self._part = 0
        self._loss: float | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Starts the clock, and the log file with what a former try had logged until its checkpoint."""
        self._began = self._drawn = time.monotonic()
        self._first_step = state.global_step
        self._warm = state.global_step + ceil(self.warmup * (state.max_steps if self.warmup < 1 else 1))
        if state.is_world_process_zero:
            self._write(state.log_history, state.max_steps, "w")

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A step has `gradient_accumulation_steps` parts."""
        self._part = 0

    def on_substep_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Long steps move the bar too."""
        self._part += 1
        self._show(state, self._part / args.gradient_accumulation_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Saves and ends if told to; logs with every checkpoint, so that one that is resumed has lost no loss."""
        if group.agree(self.context.stop_requested()):
            self.stopped = True
            control.should_save = control.should_training_stop = True
            control.should_evaluate = control.should_evaluate and bool(args.metric_for_best_model)
        if state.global_step == self._warm:  # the first steps compile kernels and fill caches
            self._began, self._first_step = time.monotonic(), state.global_step
        last = state.global_step >= state.max_steps
        if control.should_save or control.should_evaluate or last:
            control.should_log = True
        self._show(state)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Says how fast it was, validations among it, on the whole and in rows."""
        steps = state.global_step - self._first_step
        if steps > 0 and state.is_world_process_zero:
            seconds = (time.monotonic() - self._began) / steps
            rows = args.train_batch_size * args.gradient_accumulation_steps * num_shares(args) / seconds
            left_out = f", the first {ceil(self.warmup)} left out" if self.warmup >= 1 else ""
            left_out = left_out or (f", the first {self.warmup:.0%} left out" if self.warmup else "")
            self.context.logger.info("train: %.3g s/step, %.3g rows/s over %d steps%s", seconds, rows, steps, left_out)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """As after a step; a run that was told to stop in the middle of an epoch has saved already."""
        if self.stopped:
            control.should_save = control.should_evaluate = control.should_log = False
        elif control.should_save or control.should_evaluate:
            control.should_log = True

    def on_prediction_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Ends a validation if told to."""
        if group.agree(self.context.stop_requested()) and not self.stopped:
            self.stopped = True
            raise StopValidation

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **_: Any) -> None:
        """Passes numbers on, to the file, the reporter and the curve."""
        entry = state.log_history[-1]
        self._loss = entry.get("loss", self._loss)
        if not state.is_world_process_zero:
            return
        self._write([entry], state.max_steps, "a")
        numbers = {name: float(value) for name, value in entry.items() if isinstance(value, int | float)}
        self.context.reporter.metrics(state.global_step, {name: v for name, v in numbers.items() if name != "step"})
        now = time.monotonic()
        if now - self._drawn > max(3.0, self._cost / CURVE_SHARE):
            self.draw(state.log_history)
        self._show(state)

    def draw(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Draws the curve and shows it."""
        began = time.monotonic()
        path = self.context.attachments / "images" / "train_loss.png"
        draw_loss_curve(history, path)
        self.context.reporter.image("loss-curve", path)
        self._drawn = time.monotonic()
        self._cost = self._drawn - began

    def _show(self, state: Any, part: float = 0.0) -> None:
        done = state.global_step + part
        text = f"step {state.global_step}/{state.max_steps}"
        if self._loss is not None:
            text += f" · loss {self._loss:.3g}"
        if done > self._first_step:
            text += f" · {(time.monotonic() - self._began) / (done - self._first_step):.2g} s/step"
        self.context.reporter.progress(done, state.max_steps, text)

    def _write(self, entries: Sequence[Mapping[str, Any]], max_steps: int, mode: str) -> None:
        self.context.attachments.mkdir(parents=True, exist_ok=True)
        with (self.context.attachments / "logging.jsonl").open(mode, encoding="utf-8") as file:
            file.writelines(log_line(entry, max_steps) for entry in entries)


def log_line(entry: Mapping[str, Any], max_steps: int) -> str:
    """An entry of the trainer's log in SWIFT's form."""
    step = entry.get("step", 0)
    names = sorted(entry.keys() - {"step"}, key=lambda name: (FIRST.index(name) if name in FIRST else len(FIRST), name))
    line = {name: entry[name] for name in names}
    line["global_step/max_steps"] = f"{step}/{max_steps}"
    line["percentage"] = f"{step / max(max_steps, 1):.2%}"
    return json.dumps(line, ensure_ascii=False) + "\n"
