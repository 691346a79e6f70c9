"""Turns standard rows into token ids, labels and weights: `RowEncoder(template, codec, max_length=2048).encode(rows)`.

A row is encoded as a whole, as at serving time; which of its tokens are trained is told from where they begin in the
text. Everything about tokens is done for many rows at once.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from stages.data.classes import classified_text, read_class
from stages.data.rows import RowError
from stages.data.rows.columns import MEDIA
from stages.data.templates.rendered import Rendered, Template, TemplateSettings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from stages.arguments.template import TemplateArguments
    from stages.data.codec import Codec, Encoded

__all__ = [
    "NOT_TRAINED",
    "Batch",
    "Dropped",
    "EncodedRow",
    "EncoderSettings",
    "Part",
    "RowEncoder",
    "encode_all",
    "open_encoder",
    "template_settings",
]

NOT_TRAINED = -100
ROWS_A_CALL = 256
CHUNKS_AHEAD = 16
Row = Mapping[str, Any]


@dataclass(frozen=True)
class EncoderSettings:
    """All that decides how a row becomes tokens, beside the model's tokenizer; written into a tokens artifact.

    Attributes:
        template: how a conversation is written.
        max_length: tokens of a row at most; None for no limit.
        truncation: `left` keeps the last max_length tokens of a longer row, `delete` drops it.
        max_pixels: of an image; None for as many as it has.
        packing: whether train puts rows of a stream together, up to max_length.
        strict: whether a row that cannot be rendered ends training.
        versions: of what else decides, the stage tokenize among it: the key of train, which encodes, has none of it.
        num_labels: of rows that have a class, how many classes there are; None where answers are learnt.
    """

    template: TemplateSettings = field(default_factory=TemplateSettings)
    max_length: int | None = None
    truncation: Literal["left", "delete"] = "left"
    max_pixels: int | None = None
    packing: bool = False
    strict: bool = False
    versions: Mapping[str, Any] = field(default_factory=dict)
    num_labels: int | None = None

    def to_json(self) -> str:
        """As text."""
        values = asdict(self)
        if self.num_labels is None:
            del values["num_labels"]
        return json.dumps(values, indent=2, ensure_ascii=False) + "\n"

    @staticmethod
    def from_json(text: str) -> EncoderSettings:
        """What `to_json` wrote."""
        values = json.loads(text)
        return EncoderSettings(**{**values, "template": TemplateSettings(**values["template"])})


class Dropped(NamedTuple):
    """A row that is left out.

    Attributes:
        row: its number in the file, from 1.
        kind: `cannot be rendered`, `too long` or `nothing to train`.
        reason: in words, where there is more to say.
    """

    row: int
    kind: str
    reason: str = ""


@dataclass(frozen=True)
class Part:
    """Token ids of several rows, laid end to end.

    Attributes:
        ids: int32.
        labels: int32: the id where it is trained, else -100.
        weights: float32, 0 where nothing is trained; None where all that is trained weighs 1.
        offsets: int64, [rows + 1]: where each row begins, and, last, where the last one ends.
    """

    ids: NDArray[np.int32]
    labels: NDArray[np.int32]
    weights: NDArray[np.float32] | None
    offsets: NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """Encoded rows, in order.

    Attributes:
        rows: numbers of the rows that are kept, from 1.
        chosen: their tokens.
        rejected: the same rows with their rejected answers, empty for a row without one; None if there is none.
        labels: the rows' column `label`; None if there is none.
        dropped: the rows that are left out.
        num_truncated: how many were longer.
    """

    rows: NDArray[np.int64]
    chosen: Part
    rejected: Part | None
    labels: Sequence[int | None] | None
    dropped: Sequence[Dropped]
    num_truncated: int


@dataclass(frozen=True)
class EncodedRow:
    """One row.

    Attributes:
        input_ids: int32, [length].
        labels: int32, [length]: the id where it is trained, else -100.
        loss_scale: float32, [length]; None where all that is trained weighs 1.
        rejected_input_ids: of the rejected answer, if there is one.
        rejected_labels: of the rejected answer, if there is one.
        label: of the row, if there is one.
        tensors: of a row with media: what else the model is given, by the name of its parameter.
    """

    input_ids: NDArray[np.int32]
    labels: NDArray[np.int32]
    loss_scale: NDArray[np.float32] | None = None
    rejected_input_ids: NDArray[np.int32] | None = None
    rejected_labels: NDArray[np.int32] | None = None
    label: int | None = None
    tensors: Mapping[str, Any] = field(default_factory=dict)


class _Written(NamedTuple):
    """A row as text, twice if there is a rejected answer."""

    number: int
    chosen: Rendered
    rejected: Rendered | None
    label: int | None


@dataclass(frozen=True)
class RowEncoder:
    """Writes, encodes, labels and cuts rows.

    Attributes:
        template: writes a row as text.
        codec: turns text into ids.
        max_length: tokens of a row at most; None for no limit.
        truncation: `left` keeps the last max_length tokens of a longer row, `delete` drops it.
        weighted: whether what is trained has weights other than 1.
        num_labels: of rows that have a class, how many classes there are: then no token is trained.
    """

    template: Template
    codec: Codec
    max_length: int | None = None
    truncation: Literal["left", "delete"] = "left"
    weighted: bool = False
    num_labels: int | None = None

    @staticmethod
    def of(template: Template, codec: Codec, settings: EncoderSettings) -> RowEncoder:
        """The encoder that the settings describe.

        Raises:
            ArgumentsError: a loss scale that is not known.
        """
        from stages.data.loss_scale import LossScale

        weighted = not LossScale.parse(settings.template.loss_scale).binary
        return RowEncoder(
            template, codec, settings.max_length, settings.truncation, weighted, num_labels=settings.num_labels
        )

    def encode_row(self, row: Row) -> EncodedRow | str:
        """A row's tokens, or why it is dropped."""
        if found := [name for name in MEDIA if row.get(name)]:
            return f"its {' and '.join(found)} need the model's processor, which is not used here"
        batch = self.encode([row])
        if batch.dropped:
            return batch.dropped[0].reason or batch.dropped[0].kind
        chosen, rejected = batch.chosen, batch.rejected
        return EncodedRow(
            chosen.ids,
            chosen.labels,
            chosen.weights,
            rejected.ids if rejected is not None else None,
            rejected.labels if rejected is not None else None,
            batch.labels[0] if batch.labels is not None else None,
        )

    def encode(self, rows: Iterable[Row], first: int = 1) -> Batch:
        """Rows' tokens; `first` is the number of the first row."""
        written, dropped = self.write(enumerate(rows, start=first))
        return self.encode_written(written, dropped)

    def write(self, rows: Iterable[tuple[int, Row]]) -> tuple[list[_Written], list[Dropped]]:
        """Rows as text, and those that the template cannot write."""
        written, dropped = [], []
        for number, row in rows:
            try:
                if self.num_labels is not None:
                    text = classified_text(self.template, row)
                    written.append(_Written(number, text, None, read_class(row, self.num_labels)))
                    continue
                rejected = row.get("rejected_response")
                written.append(
                    _Written(
                        number,
                        self.template.render(row),
                        None if rejected is None else self.template.render(row, answer=rejected),
                        row.get("label"),
                    )
                )
            except RowError as error:
                dropped.append(Dropped(number, "cannot be rendered", str(error)))
        return written, dropped

    def encode_written(self, written: Sequence[_Written], dropped: Sequence[Dropped] = ()) -> Batch:
        """Texts' tokens. It changes nothing and may run in several threads.

        Raises:
            IdsDiffer: the codec has found itself to be wrong.
        """
        import numpy as np

        chosen = self._label(written, [one.chosen for one in written])
        keep, starts, cut, lost = self._keep(chosen)
        rejected = None
        if any(one.rejected is not None for one in written):
            empty = Rendered("", [])
            rejected = self._label(written, [one.rejected or empty for one in written])
            keep_other, starts_other, cut_other, lost_other = self._keep(rejected)
            has: Any = np.array([one.rejected is not None for one in written])
            keep, cut = keep & (keep_other | ~has), cut | (cut_other & has)
            lost = np.where(has & (lost == ""), lost_other, lost)
            rejected = _choose(rejected, keep, starts_other)
        out = [*dropped, *(Dropped(one.number, str(why)) for one, why in zip(written, lost, strict=True) if why)]
        labels = [one.label for one, kept in zip(written, keep, strict=True) if kept]
        return Batch(
            rows=np.array([one.number for one in written], dtype=np.int64)[keep],
            chosen=_choose(chosen, keep, starts),
            rejected=rejected,
            labels=labels if any(label is not None for label in labels) else None,
            dropped=sorted(out),
            num_truncated=int((cut & keep).sum()),
        )

    def _label(self, written: Sequence[_Written], rendered: Sequence[Rendered]) -> Part:
        """A token is trained if it begins in a span: one that begins before it belongs to the prompt in part."""
        encoded = self.codec.encode([one.text for one in rendered])
        return _labelled(encoded, [one.spans for one in rendered], weighted=self.weighted)

    def _keep(self, part: Part) -> tuple[Any, Any, Any, Any]:
        """Of each row: whether it stays, where it starts, whether it was cut, and why it is dropped."""
        import numpy as np

        starts, ends = part.offsets[:-1], part.offsets[1:]
        too_long: Any = np.zeros(len(starts), dtype=bool)
        if self.max_length is not None:
            too_long = ends - starts > self.max_length
            if self.truncation == "left":
                starts = np.maximum(starts, ends - self.max_length)
        trained = np.concatenate([[0], np.cumsum(part.labels != NOT_TRAINED)])
        # A row's first token is predicted from nothing.
        untrained = trained[ends] == trained[np.minimum(starts + 1, ends)]
        if self.num_labels is not None:
            untrained = ends == starts
        deleted = too_long & (self.truncation == "delete")
        lost = np.where(deleted, "too long", np.where(untrained, "nothing to train", ""))
        return lost == "", starts, too_long, lost


def _labelled(encoded: Encoded, spans: Sequence[Sequence[Any]], *, weighted: bool) -> Part:
    import numpy as np

    counts = [len(one) for one in spans]
    flat = np.array([span for one in spans for span in one], dtype=np.float64).reshape(-1, 3)
    if not len(flat):
        labels = np.full_like(encoded.ids, NOT_TRAINED)
        return Part(encoded.ids, labels, np.zeros(len(labels), np.float32) if weighted else None, encoded.offsets)
    bases = np.repeat(encoded.bases, counts)
    starts, ends = flat[:, 0].astype(np.int64) + bases, flat[:, 1].astype(np.int64) + bases
    nearest = np.searchsorted(starts, encoded.begins, side="right") - 1
    inside = (nearest >= 0) & (encoded.begins < ends[nearest])
    labels = np.where(inside, encoded.ids, np.int32(NOT_TRAINED)).astype(np.int32)
    weights = np.where(inside, flat[nearest, 2], 0.0).astype(np.float32) if weighted else None
    return Part(encoded.ids, labels, weights, encoded.offsets)


def _choose(part: Part, keep: NDArray[np.bool_], starts: NDArray[np.int64]) -> Part:
    """The rows that stay, from their starts on."""
    import numpy as np

    ends = part.offsets[1:]
    if keep.all() and np.array_equal(starts, part.offsets[:-1]):
        return part
    border = np.zeros(len(part.ids) + 1, dtype=np.int64)
    np.add.at(border, starts[keep], 1)
    np.add.at(border, ends[keep], -1)
    mask = np.cumsum(border)[:-1] > 0
    offsets = np.concatenate([[0], np.cumsum(ends[keep] - starts[keep])]).astype(np.int64)
    weights = None if part.weights is None else part.weights[mask]
    return Part(part.ids[mask], part.labels[mask], weights, offsets)


def encode_all(
    encoder: RowEncoder,
    batches: Iterable[Sequence[Row]],
    *,
    num_threads: int = 1,
    look: Callable[[int, Row], None] | None = None,
) -> Iterator[Batch]:
    """Encodes rows in order: while one chunk is encoded, the next one is written as text and the last one is used.

    Args:
        encoder: does each row.
        batches: of any number of rows.
        num_threads: that encode side by side.
        look: is shown each row with its number before it is written.

    Raises:
        IdsDiffer: the codec has found itself to be wrong; what was given so far is void.
    """
    with _one_thread_a_call(), ThreadPoolExecutor(num_threads, thread_name_prefix="encode") as pool:
        running: deque[Future[Batch]] = deque()
        for chunk in _chunks(batches):
            if look is not None:
                for number, row in chunk:
                    look(number, row)
            running.append(pool.submit(encoder.encode_written, *encoder.write(chunk)))
            while len(running) > 2 * num_threads + CHUNKS_AHEAD:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()


def _chunks(batches: Iterable[Sequence[Row]]) -> Iterator[list[tuple[int, Row]]]:
    number = 0
    for batch in batches:
        for start in range(0, len(batch), ROWS_A_CALL):
            rows = batch[start : start + ROWS_A_CALL]
            yield list(enumerate(rows, start=number + 1))
            number += len(rows)


def template_settings(arguments: TemplateArguments) -> TemplateSettings:
    """What the parameters of a stage say of its template."""
    return TemplateSettings(
        template=arguments.template,
        system=arguments.system,
        tools_prompt=arguments.tools_prompt,
        loss_scale=getattr(arguments, "loss_scale", "default"),
        use_chat_template=arguments.use_chat_template,
        template_backend=arguments.template_backend,
    )


def open_encoder(folder: Path, settings: EncoderSettings) -> RowEncoder:
    """The encoder of a model folder, for rows that are encoded when they are needed.

    It encodes by Hugging Face's tokenizers: if the fast ones were wrong, training could not be taken back.

    Raises:
        ModelError: no chat template, or one that fails; a damaged tokenizer.
        ArgumentsError: a template or loss scale that is not known.
    """
    from stages.data.codec import SlowCodec
    from stages.data.templates import open_template
    from stages.data.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(folder)
    template = open_template(settings.template, tokenizer)
    return RowEncoder.of(template, SlowCodec(tokenizer.tokenizer), settings)


@contextmanager
def _one_thread_a_call() -> Iterator[None]:
    """Keeps tokenizers from using every core for each call: several calls run side by side instead."""
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ[name] = "false"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before
