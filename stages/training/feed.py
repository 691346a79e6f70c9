"""What a training run reads: rows, packs, rows that are tokenized as they are needed, or a stream of them.

check_feed(arguments, tokens); feed = open_feed(arguments, tokens, base, vocabulary, context); feed.train[0]
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from stages.context import Context
from stages.errors import ArgumentsError, DataError, ModelError
from stages.training import group
from stages.training.checkpoints import PLACE
from stages.training.parallel import check_shared_rows

if TYPE_CHECKING:
    from stages.arguments import TrainArguments
    from stages.data.encode import RowEncoder
    from stages.data.media_encode import MediaEncoder
    from stages.training.lazy import LazyRows
    from stages.training.usable import Usable

__all__ = ["TEMPLATE", "TOKEN_FILES", "Feed", "Place", "check_feed", "open_feed"]

TOKEN_FILES = (
    "*.arrow",
    "*.parquet",
    "encoder.json",
    "stream.json",
    "chat_template.jinja",
    "media/**",
    "files/**",
    "plugins/**",
)
"""What training reads of a tokens artifact."""
TEMPLATE = "chat_template.jinja"
"""In tokens, and in what is trained on them: how a conversation was written down."""


class Place(NamedTuple):
    """How far a stream has been read.

    Attributes:
        position: the raw rows read of this pass over the data.
        epoch: the passes before.
        packs: with packing, how many packs have been handed out of the rows that follow `position`.
    """

    position: int = 0
    epoch: int = 0
    packs: int = 0


@dataclass
class Feed:
    """The rows of one run, and how far it has come in them.

    Attributes:
        train: a dataset as torch knows it: by number, or one after the other.
        validation: the rows that the loss is measured on, by number, if any.
        described: what is read, in words, with numbers.
        facts: numbers for the metrics.
        template: the chat template that the rows were written with, if it is not the model's own.
        place: how far a stream has been read; None where rows have numbers.
        resumes_from: the checkpoint whose random state is to be taken up with the first rows.
        weighted: whether tokens have weights.
        packed: whether rows are put together.
        num_labels: classes that the rows are of; None where answers are learnt.
    """

    train: Any
    validation: Any = None
    described: str = ""
    facts: dict[str, int] = field(default_factory=dict)
    template: Path | None = None
    place: Place | None = None
    resumes_from: Path | None = None
    weighted: bool = False
    packed: bool = False
    num_labels: int | None = None

    def collator(self, model: Any) -> Any:
        """What makes batches of rows with classes for this model; None for rows of other kinds."""
        from stages.training.class_rows import collate_classes
        from stages.training.classifier import padding_of

        return None if self.num_labels is None else partial(collate_classes, padding=padding_of(model))

    @property
    def num_left_out(self) -> int:
        """How often a row that was encoded for training could not be used."""
        return int(getattr(getattr(self.train, "usable", None), "num_left_out", 0))

    def reached(self, place: Any) -> None:
        """A batch of the stream has been trained on; `place` is a tensor, None where rows have numbers."""
        if place is not None:
            self.place = Place(*place.tolist())

    def gather_place(self) -> None:
        """Where several processes share a stream, the last of them has read the farthest."""
        if self.place is not None:
            self.place = Place(*group.from_last(self.place))

    def save_place(self, checkpoint: Path) -> None:
        """Writes down how far a stream has been read."""
        if self.place is not None:
            (checkpoint / PLACE).write_text(json.dumps(self.place._asdict()) + "\n", encoding="utf-8")

    def resume(self, checkpoint: Path) -> None:
        """Puts a stream where it was at a checkpoint; rows with numbers are found by the trainer.

        Raises:
            ModelError: the checkpoint is not of a run on a stream.
        """
        from stages.sources.model_folder import read_json

        if self.place is None:
            return
        if not (checkpoint / PLACE).is_file():
            raise ModelError(
                f"the checkpoint {checkpoint.name} has no {PLACE}: it was not trained with `--streaming`. "
                "Give `--resume_only_model true` to take only its weights"
            )
        self.place = self.train.start = Place(**read_json(checkpoint / PLACE))
        self.resumes_from = checkpoint

    def carry_template(self, out: Path) -> None:
        """Puts the chat template beside what was trained with it."""
        if self.template is not None:
            (out / TEMPLATE).unlink(missing_ok=True)  # it may be a link to another file
            shutil.copyfile(self.template, out / TEMPLATE)


def check_feed(arguments: TrainArguments, tokens: Path) -> None:
    """Refuses tokens that these arguments cannot be used with, before anything is loaded.

    Raises:
        DataError: there are no rows.
        ArgumentsError: what only numbered rows, or rows of known length, can do.
    """
    if (tokens / "stream.json").is_file():
        if arguments.max_steps < 1:
            raise ArgumentsError("`--streaming` does not know how many rows there are: add `--max_steps`")
        if arguments.dataloader_num_workers > 1:
            raise ArgumentsError(
                f"`--dataloader_num_workers {arguments.dataloader_num_workers}`: a stream is read by one process. "
                "Give 1, or 0 for the main one"
            )
        _check_lengths(arguments, "--streaming")
    elif (tokens / "train.arrow").is_file():
        return
    elif (tokens / "train.parquet").is_file() and (tokens / "encoder.json").is_file():
        _check_lengths(arguments, "--lazy_tokenize")
    elif (tokens / "train.parquet").is_file():
        raise DataError("the tokens are Parquet files of an older tokenize: run it again")
    else:
        raise DataError("the tokens have no train.arrow: every row was held out, or none was left")


def _check_lengths(arguments: TrainArguments, flag: str) -> None:
    if arguments.train_sampling_strategy in ("group_by_length", "batch_rebalance"):
        raise ArgumentsError(
            f"`--train_sampling_strategy {arguments.train_sampling_strategy}` needs every row's length, "
            f"`{flag}` knows none: drop one of them"
        )


def open_feed(arguments: TrainArguments, tokens: Path, base: Path, vocabulary: int, context: Context) -> Feed:
    """Opens the tokens, which `check_feed` has let pass.

    Args:
        arguments: whether there is a validation.
        tokens: what the tokenize stage has made.
        base: the model, whose tokenizer encodes rows that are not yet.
        vocabulary: tokens that the model knows.
        context: scratch keeps a copy of lazy rows that can be read in any order.

    Raises:
        DataError: rows that cannot be trained.
    """
    encoder, num_labels = _open_encoder(arguments, tokens, base), arguments.num_labels
    if (tokens / "stream.json").is_file():
        feed = _stream(tokens, encoder, vocabulary, context)
    elif (tokens / "train.arrow").is_file():
        feed = _numbered(tokens, vocabulary) if num_labels is None else _classified(tokens, vocabulary, num_labels)
    else:
        rows = _lazy(tokens / "train.parquet", encoder, vocabulary, context)
        feed = Feed(rows, described=f"{len(rows)} rows, tokenized as they are needed", facts={"num_rows": len(rows)})
    if arguments.eval_strategy != "no":
        feed.validation = _validation(tokens, encoder, vocabulary, context, num_labels)
    feed.weighted = feed.weighted or bool(getattr(encoder, "weighted", False))
    check_shared_rows(arguments, packed=feed.packed, weighted=feed.weighted)
    if feed.packed and arguments.train_type == "longlora":
        raise ArgumentsError("`--packing` puts rows together, and `--train_type longlora` cuts them: drop one of them")
    feed.num_labels = num_labels
    feed.template = tokens / TEMPLATE if (tokens / TEMPLATE).is_file() else None
    return feed


def _numbered(tokens: Path, vocabulary: int) -> Feed:
    from stages.training.packs import read_packs
    from stages.training.rows import read_rows

    rows = read_rows(tokens / "train.arrow", vocabulary)
    facts = {"num_rows": len(rows), "num_tokens": rows.num_tokens, "num_trained_tokens": rows.num_labels}
    weighted = rows.parts[0].loss_scale is not None
    counted = f"{rows.num_tokens} tokens of which {rows.num_labels} are trained"
    if not (tokens / "train_packs.arrow").is_file():
        return Feed(rows, described=f"{len(rows)} rows, {counted}", facts=facts, weighted=weighted)
    packs = read_packs(tokens / "train_packs.arrow", rows)
    described = f"{len(rows)} rows in {len(packs)} packs, {counted}"
    return Feed(packs, described=described, facts=facts | {"num_packs": len(packs)}, weighted=weighted, packed=True)


def _classified(tokens: Path, vocabulary: int, num_labels: int) -> Feed:
    from stages.training.class_rows import read_class_rows

    rows = read_class_rows(tokens / "train.arrow", vocabulary, num_labels)
    described = f"{len(rows)} rows of {num_labels} classes, {rows.num_tokens} tokens"
    return Feed(rows, described=described, facts={"num_rows": len(rows), "num_tokens": rows.num_tokens})


def _validation(
    tokens: Path,
    encoder: RowEncoder | MediaEncoder | None,
    vocabulary: int,
    context: Context,
    num_labels: int | None = None,
) -> Any:
    from stages.training.class_rows import read_class_rows
    from stages.training.rows import read_rows

    if (tokens / "validation.arrow").is_file() and num_labels is not None:
        return read_class_rows(tokens / "validation.arrow", vocabulary, num_labels)
    if (tokens / "validation.arrow").is_file():
        return read_rows(tokens / "validation.arrow", vocabulary)
    if (tokens / "validation.parquet").is_file():
        return _lazy(tokens / "validation.parquet", encoder, vocabulary, context)
    return None


def _open_encoder(arguments: TrainArguments, tokens: Path, base: Path) -> RowEncoder | MediaEncoder | None:
    """Rows with media are encoded by the model's processor; those of a stream may be such, if the model has one."""
    from stages.data.encode import EncoderSettings, open_encoder
    from stages.data.media_encode import needs_processor, open_media_encoder
    from stages.data.plugins import load_plugins
    from stages.training.multimodal import check_batches

    if not (tokens / "encoder.json").is_file():
        return None
    if (tokens / "plugins").is_dir():
        load_plugins(tokens / "plugins")
    settings = EncoderSettings.from_json((tokens / "encoder.json").read_text(encoding="utf-8"))
    if settings.num_labels != arguments.num_labels:
        raise DataError(
            f"the tokens are of rows that were tokenized with `--num_labels {settings.num_labels}`, and training is to "
            f"have {arguments.num_labels}: give both the same"
        )
    if not needs_processor(base, tokens, packing=settings.packing):
        return open_encoder(base, settings)
    encoder = open_media_encoder(base, settings, tokens)
    if max(arguments.per_device_train_batch_size, arguments.per_device_eval_batch_size) > 1:
        check_batches(encoder, tokens)
    return encoder


def _lazy(path: Path, encoder: RowEncoder | MediaEncoder | None, vocabulary: int, context: Context) -> LazyRows:
    from stages.training.lazy import LazyRows, open_standard_rows

    if encoder is None:
        raise DataError(f"the tokens have {path.name} and no encoder.json: tokenize again")
    rows = open_standard_rows(path, context.scratch / f"{path.stem}.arrow")
    usable = _usable(path.parent, encoder, vocabulary, path.name, context)
    return LazyRows(rows, usable, replaces=path.stem == "train")


def _usable(tokens: Path, encoder: RowEncoder | MediaEncoder, vocabulary: int, name: str, context: Context) -> Usable:
    from stages.data.encode import EncoderSettings
    from stages.training.usable import Usable

    settings = EncoderSettings.from_json((tokens / "encoder.json").read_text(encoding="utf-8"))
    return Usable(encoder, vocabulary, name, context.logger, strict=settings.strict)


def _stream(tokens: Path, encoder: RowEncoder | MediaEncoder | None, vocabulary: int, context: Context) -> Feed:
    from stages.data.stream import RowStream
    from stages.sources.model_folder import read_json
    from stages.training.stream import make_stream

    if encoder is None:
        raise DataError("the tokens have a stream.json and no encoder.json: tokenize again")
    settings = read_json(tokens / "encoder.json")
    pack_length = settings["max_length"] if settings.get("packing") else None
    if settings.get("packing") and pack_length is None:
        raise ArgumentsError("`--packing` needs a length, and the model has none of its own: add `--max_length`")
    usable = _usable(tokens, encoder, vocabulary, "stream", context)
    raw = RowStream.open(tokens, logger=context.logger, scratch=context.scratch / "media")
    rows = make_stream(raw, usable, pack_length)
    described = "a stream of rows" if pack_length is None else f"a stream of rows, in packs of {pack_length} tokens"
    return Feed(rows, described=described, place=Place(), packed=pack_length is not None)
