"""What training and validation measure beside the loss: `Measures.of(arguments, base, folder)`.

Accuracy always, of the very logits that the loss is computed from; where answers are generated, how close they are to
the rows' own; and whatever a plugin's metric makes of either.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.errors import ArgumentsError
from stages.training import group
from stages.training.accuracy import Accuracy, sample_numbers
from stages.training.best import metric_of
from stages.training.rows import IGNORED

if TYPE_CHECKING:
    from torch import Tensor

    from stages.arguments import TrainArguments
    from stages.training.answers import Answer, Answers
    from stages.training.plugins import Metric

__all__ = ["PREDICTIONS", "Measures"]

PREDICTIONS = "predict.jsonl"


@dataclass
class Measures:
    """Measures of one run.

    Attributes:
        training: accuracy of the batches since the last log line.
        validation: accuracy of the validation that goes on.
        steps: accuracy of training is counted in each step whose number, from 0, this divides.
        metric: what else is computed at the end of a validation.
        answers: generates; None where nothing is generated.
        folder: gets PREDICTIONS.
        seed: of sampling.
    """

    training: Accuracy
    validation: Accuracy
    steps: int = 1
    metric: Metric | None = None
    answers: Answers | None = None
    folder: Path | None = None
    seed: int = 0
    _predicted: list[Any] = field(default_factory=list)
    _labels: list[Any] = field(default_factory=list)
    _written: bool = False

    @classmethod
    def of(cls, arguments: TrainArguments, base: Path, folder: Path) -> Measures:
        """What the arguments ask for.

        Args:
            arguments: of the train stage; plugins have been loaded.
            base: the model, whose tokenizer reads and writes answers.
            folder: where generated answers are put.

        Raises:
            ArgumentsError: a metric that nobody has registered, or that needs answers where none are generated.
        """
        from stages.training.answers import Answers

        strategy = "class" if arguments.num_labels else arguments.acc_strategy
        measures = cls(Accuracy(strategy), Accuracy(strategy), arguments.acc_steps, folder=folder, seed=arguments.seed)
        measures.metric = _choose_metric(arguments, base)
        if arguments.predict_with_generate:
            from stages.serving.loading import load_tokenizer

            measures.answers = Answers(load_tokenizer(base), arguments.sampling())
        return measures

    @property
    def _compares_tokens(self) -> bool:
        """Whether the likeliest tokens of every row have to be kept."""
        return self.metric is not None and self.answers is None

    def add(
        self, logits: Tensor, labels: Tensor, kept: Tensor, position_ids: Tensor | None = None, *, step: int | None
    ) -> None:
        """Counts a batch.

        Args:
            logits: (tokens, vocabulary) at the places where `kept` is true, or (rows, tokens, vocabulary).
            labels: (rows, tokens).
            kept: (rows, tokens), true where the next token has a label.
            position_ids: (rows, tokens) of packs.
            step: optimizer steps that have been done; None in validation.
        """
        if not self._counts(step):
            return
        logits = logits.detach()
        logits = logits[kept] if logits.shape[:-1] == kept.shape else logits.reshape(-1, logits.shape[-1])
        predicted, targets = logits.argmax(-1), labels[:, 1:][kept[:, :-1]].to(logits.device)
        accuracy = self._accuracy(step)
        samples = sample_numbers(kept, position_ids).to(logits.device) if accuracy.of_samples else None
        accuracy.add(predicted, targets, samples)
        if step is None and self._compares_tokens:
            sizes = kept.sum(1).tolist()
            self._predicted += _by_row(predicted, sizes)
            self._labels += _by_row(targets, sizes)

    def add_classes(self, logits: Tensor, classes: Tensor, *, step: int | None) -> None:
        """Counts a batch of rows that have a class.

        Args:
            logits: (rows, classes).
            classes: (rows), IGNORED for a row that stands in for none.
            step: as in `add`.
        """
        if self._counts(step):
            known = classes != IGNORED
            self._accuracy(step).add(logits.argmax(-1)[known], classes[known])

    def _counts(self, step: int | None) -> bool:
        return step is None or step % self.steps == 0

    def _accuracy(self, step: int | None) -> Accuracy:
        return self.validation if step is None else self.training

    def take_training(self) -> dict[str, float]:
        """The accuracy since the last call; nothing if none of the steps was counted."""
        share = self.training.take(group.add_up)
        return {} if share is None else {self.training.name: share}

    def begin(self) -> None:
        """A validation begins: sampled answers are the same in each that the same weights do."""
        import torch

        self.validation.take()
        self._predicted, self._labels = [], []
        if self.answers is not None:
            self.answers.made, self.answers.num_without_prompt = [], 0
            if self.answers.samples:
                torch.manual_seed(self.seed + group.index())

    def generate(self, model: Any, batch: Mapping[str, Any]) -> None:
        """Answers the rows of a batch, if answers are wanted."""
        if self.answers is not None:
            self.answers.add(model, batch)

    def finish(self, step: int) -> dict[str, float]:
        """What a validation has found, by name without `eval_`; writes the answers down."""
        share = self.validation.take(group.add_up)
        found = {} if share is None else {self.validation.name: share}
        if self.answers is None and self.metric is None:
            return found
        from stages.training.plugins import Predicted

        if self.answers is None:
            predicted = Predicted(_gathered(self._predicted), _gathered(self._labels))
        else:
            made: list[Answer] = _gathered(self.answers.made)
            self._write(made, step)
            predicted = Predicted(
                predictions=[one.response_ids for one in made],
                labels=[one.label_ids for one in made],
                texts=[one.response for one in made],
                references=[one.label for one in made],
            )
        return found if self.metric is None else found | _numbers(self.metric(predicted))

    def _write(self, made: list[Answer], step: int) -> None:
        """Appends the answers of a validation to those of the validations before it."""
        if self.folder is None or not group.is_first():
            return
        path = self.folder / PREDICTIONS
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self._written:  # what an earlier try has written of steps that are done over
            _keep_before(path, step)
            self._written = True
        with path.open("a", encoding="utf-8") as file:
            for one in made:
                line = {"global_step": step, "query": one.query, "response": one.response, "label": one.label}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _by_row(values: Tensor, sizes: list[int]) -> list[Any]:
    import torch

    return [row.cpu().numpy() for row in torch.split(values, sizes) if len(row)]


def _gathered(items: list[Any]) -> list[Any]:
    """Those of all processes, in all of them."""
    if group.size() == 1:
        return items
    import torch.distributed

    parts: list[Any] = [None] * group.size()
    torch.distributed.all_gather_object(parts, items)
    return [item for part in parts for item in part]


def _keep_before(path: Path, step: int) -> None:
    if not path.is_file():
        return
    part = path.with_suffix(".part")
    with path.open(encoding="utf-8") as old, part.open("w", encoding="utf-8") as new:
        new.writelines(line for line in old if line.endswith("\n") and json.loads(line)["global_step"] < step)
    part.replace(path)


def _choose_metric(arguments: TrainArguments, base: Path) -> Metric | None:
    from stages.training.nlg import score_answers

    name = metric_of(arguments)
    if name == "acc":
        return None
    if name == "nlg":
        return lambda predicted: score_answers(predicted.texts or (), predicted.references or ())
    return _registered(name, arguments, base)


def _registered(name: str, arguments: TrainArguments, base: Path) -> Metric:
    from stages.serving.loading import load_tokenizer
    from stages.training.plugins import METRICS, MetricContext, blamed, check_registered

    check_registered("metric", name)
    with blamed("metric", name):
        metric, needs_answers = METRICS[name](MetricContext(arguments, load_tokenizer(base)))
    if needs_answers and not arguments.predict_with_generate:
        raise ArgumentsError(f"`--metric {name}` compares generated answers: add `--predict_with_generate true`")

    def computed(predicted: Any) -> Mapping[str, float]:
        with blamed("metric", name):
            return metric(predicted)

    return computed


def _numbers(measured: Mapping[str, float]) -> dict[str, float]:
    """What a metric gave, as plain numbers.

    Raises:
        ArgumentsError: it gave something else.
    """
    try:
        return {str(name): float(value) for name, value in measured.items()}
    except (AttributeError, TypeError, ValueError):
        raise ArgumentsError(f"the metric gave {measured!r:.80}, not numbers by name") from None
