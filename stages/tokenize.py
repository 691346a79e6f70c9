"""Turns standard rows into token ids and labels with the model's own chat template; what the assistant says is trained.

`python -m stages tokenize --input dataset=DIGEST --input model=DIGEST --max_length 2048`
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from stages.arguments import TokenizeArguments
from stages.context import Context
from stages.data.chat_template import PINNED_DATE
from stages.data.histogram import draw_lengths
from stages.data.tokenizer import ModelTokenizer, load_tokenizer
from stages.errors import DataError, Interrupted, ModelError
from stages.sources.model_folder import TOKENIZER_FILES
from stages.stage import Input, Inputs, Metrics, Stage

if TYPE_CHECKING:
    from stages.data.encode import Encoder
    from stages.data.spans import SpanFinder
    from stages.data.token_file import TokenWriter

__all__ = ["STAGE", "tokenize"]

SPLITS = ("train", "validation")
NOT_YET = ("images", "videos", "audios", "objects", "tools")
ROWS_A_BATCH = 1024


def tokenize(arguments: TokenizeArguments, inputs: Inputs, out: Path, context: Context) -> Metrics:
    """Writes `train.parquet`, `validation.parquet` if there are such rows, and `tokens.json` with facts about them.

    A row has `input_ids`, `labels` (-100 where nothing is learnt) and `length`.

    Args:
        arguments: `system`, `max_length`, `truncation_strategy`, `strict`, `dataset_num_proc`.
        inputs: `dataset`: standard rows; `model`: its tokenizer and configuration.
        out: the folder for the files.
        context: the length histogram is among its attachments.

    Raises:
        ModelError: no chat template, or one that fails; a damaged tokenizer.
        DataError: no row is left, rows of a kind that is not supported, a row that cannot be rendered with `strict`.
    """
    from stages.data.spans import SpanFinder

    model = load_tokenizer(inputs["model"])
    if model.template is None:
        raise ModelError(
            "the model has no chat template. Use its instruction-tuned version, or put a chat_template.jinja "
            "beside its tokenizer.json"
        )
    finder = SpanFinder(model.template, model.added_tokens, arguments.system)
    _check_kinds(inputs["dataset"], context)
    if model.template.asks_for_the_date:
        context.logger.warning("the chat template may write today's date: %s stands for it in all rows", PINNED_DATE)
    if not finder.turn_end:
        context.logger.warning("the chat template ends an answer with no token: the model will not learn to stop")
    job = _Job(arguments, inputs["dataset"], out, context, model, finder, _max_length(arguments, model, context))
    metrics: Metrics = {"max_length": job.max_length}
    for split in SPLITS:
        metrics |= job.run(split)
    if not metrics.get("train_rows"):
        raise DataError(f"no row is left to train on: {_why_dropped(metrics)}")
    facts = {"turn_end": finder.turn_end, "eos_token_id": model.token_id("eos_token")}
    facts |= {name: value for name, value in metrics.items() if name.endswith(("_rows", "_tokens"))}
    (out / "tokens.json").write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    draw_lengths(job.lengths, job.max_length, context.attachments / "token-lengths.png")
    context.reporter.image("token-lengths", context.attachments / "token-lengths.png")
    context.logger.info("tokens: %s", _worded(metrics))
    return metrics


@dataclass(frozen=True)
class _Job:
    """What is the same for both splits."""

    arguments: TokenizeArguments
    dataset: Path
    out: Path
    context: Context
    model: ModelTokenizer
    finder: SpanFinder
    max_length: int | None
    lengths: list[int] = field(default_factory=list)

    def run(self, split: str) -> Metrics:
        """Writes one split and counts what is in it; nothing if there is no such split."""
        from stages.data.encode import Encoder
        from stages.data.token_file import TokenWriter

        source = self.dataset / f"{split}.parquet"
        if not source.exists():
            return {}
        encoder = Encoder(
            tokenizer=self.model.tokenizer,
            finder=self.finder,
            name=source.name,
            max_length=self.max_length,
            truncation=self.arguments.truncation_strategy,
            strict=self.arguments.strict,
            num_threads=self.arguments.dataset_num_proc,
        )
        with TokenWriter(self.out / source.name) as writer:
            for tokens in encoder.encode(self._conversations(source, split)):
                writer.write(tokens)
        self.lengths.extend(writer.lengths)
        for reason in encoder.first_reasons:
            self.context.logger.warning("dropped %s", reason)
        return _counts(split, writer, encoder)

    def _conversations(self, source: Path, split: str) -> Iterator[list[dict[str, str]]]:
        import pyarrow.parquet as pq

        file = pq.ParquetFile(source)
        total = file.metadata.num_rows
        done = 0
        for batch in file.iter_batches(ROWS_A_BATCH, columns=["messages"]):
            if self.context.stop_requested():
                raise Interrupted(f"stopped after {done} of {total} rows")
            yield from batch.column(0).to_pylist()
            done += batch.num_rows
            self.context.reporter.progress(done, total, f"{split}: {done} of {total} rows")


def _max_length(arguments: TokenizeArguments, model: ModelTokenizer, context: Context) -> int | None:
    """The limit given, or the model's own."""
    limit = arguments.max_length
    if limit is not None and model.max_length is not None and limit > model.max_length:
        context.logger.warning("max_length %d is more than the %d tokens that the model takes", limit, model.max_length)
    return limit or model.max_length


def _check_kinds(dataset: Path, context: Context) -> None:
    """What a text template would leave out of a row is refused, what only other ways of training read is said."""
    import pyarrow.parquet as pq

    for path in sorted(dataset.glob("*.parquet")):
        columns = pq.read_schema(path).names
        if "messages" not in columns:
            raise DataError(f"{path.name} holds no standard rows: make them with the stage preprocess")
        if found := [name for name in NOT_YET if name in columns]:
            raise DataError(f"rows with {' and '.join(found)} are not supported yet: remove these columns or rows")
        for name in sorted({"rejected_response", "label"} & set(columns)):
            context.logger.warning("%s: the column %s is not learnt from, only messages are", path.name, name)


def _counts(split: str, writer: TokenWriter, encoder: Encoder) -> Metrics:
    metrics: Metrics = {
        f"{split}_rows": len(writer.lengths),
        f"{split}_tokens": sum(writer.lengths),
        f"{split}_trained_tokens": writer.num_trained,
        f"{split}_truncated": writer.num_truncated,
        f"{split}_dropped": sum(encoder.dropped.values()),
    }
    if writer.lengths:
        metrics[f"{split}_longest"] = max(writer.lengths)
        metrics[f"{split}_mean_length"] = round(sum(writer.lengths) / len(writer.lengths), 2)
    for reason, count in sorted(encoder.dropped.items()):
        metrics[f"{split}_dropped_{reason.replace(' ', '_')}"] = count
    if encoder.first_reasons:
        metrics[f"{split}_first_dropped"] = "\n".join(encoder.first_reasons)
    return metrics


def _why_dropped(metrics: Metrics) -> str:
    """The reasons in words, with the first row that could not be rendered."""
    prefix = "train_dropped_"
    reasons = [
        f"{count} {name.removeprefix(prefix).replace('_', ' ')}"
        for name, count in metrics.items()
        if name.startswith(prefix)
    ]
    if (first := metrics.get("train_first_dropped")) is not None:
        reasons.append(first.splitlines()[0])
    return f"{', '.join(reasons) or 'there are none'} (max_length {metrics['max_length']})"


def _worded(metrics: Metrics) -> str:
    return ", ".join(f"{name} {value}" for name, value in metrics.items() if isinstance(value, (int, float)))


STAGE = Stage(
    name="tokenize",
    version=1,
    arguments=TokenizeArguments,
    inputs={
        "dataset": Input(kinds=("dataset",), reads=("*.parquet",), help="standard rows"),
        "model": Input(kinds=("model",), reads=TOKENIZER_FILES, help="its tokenizer and chat template are read"),
    },
    output="tokens",
    function=tokenize,
    libraries=("jinja2", "pyarrow", "tokenizers"),
)
