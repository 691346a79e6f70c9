"""Turns standard rows with media into tokens, labels and tensors: `open_media_encoder(…).encode(row)`.

The text is rendered with one placeholder a medium, its trained part is found as in any other row; then the processor
writes the placeholders out, and the trained part is moved along. What stands for a medium is never trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from stages.data.encode import NOT_TRAINED, EncodedRow, EncoderSettings
from stages.data.grounding import choose_notation, ground
from stages.data.images import local_path, open_images, rescale
from stages.data.media_template import TAG
from stages.data.processor import TOKEN_LEVEL, Expanded, Media, ModelProcessor, Place
from stages.data.rows import RowError
from stages.data.rows.columns import MEDIA
from stages.data.templates import Span, TemplateSettings, open_template
from stages.errors import ArgumentsError, ModelError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["MediaEncoder", "Written", "needs_processor", "open_media_encoder"]

END = 1 << 62
"""Beyond every text."""


class Written(NamedTuple):
    """A row before its media are expanded.

    Attributes:
        text: with one placeholder a medium.
        spans: what is trained in it.
        media: what the placeholders stand for.
        add_special_tokens: whether the tokenizer adds its own, as it does at serving time.
    """

    text: str
    spans: list[Span]
    media: Media
    add_special_tokens: bool


@dataclass(frozen=True)
class MediaEncoder:
    """Encodes rows of one dataset for one model.

    Attributes:
        processor: the model's.
        settings: how the conversation is written.
        folder: the artifact that the row's paths begin at.
        max_length: tokens of a row at most; None for no limit.
        truncation: `left` keeps the last max_length tokens of a longer row, `delete` drops it.
        max_pixels: of an image; larger ones are scaled down first.
    """

    processor: ModelProcessor
    settings: TemplateSettings
    folder: Path
    max_length: int | None = None
    truncation: Literal["left", "delete"] = "left"
    max_pixels: int | None = None

    @cached_property
    def writer(self) -> _Writer:
        """What renders the rows.

        Raises:
            UserError: the template fails, or has no place for media.
        """
        return _Writer(self.processor, self.settings)

    def encode_row(self, row: Mapping[str, Any]) -> EncodedRow | str:
        """The row's tokens, or why it is dropped."""
        try:
            return self.encode(row)
        except RowError as error:
            return str(error)

    def encode(self, row: Mapping[str, Any], *, answer: str | None = None) -> EncodedRow:
        """The row's tokens.

        Args:
            row: a standard one.
            answer: instead of what the last assistant turn says.

        Raises:
            RowError: it cannot be used: a medium is missing, tags and media do not match, it is too long …
            ModelError: the processor gives other tokens than its text has.
        """
        import numpy as np

        text, spans, media, special = self.rendered(row, answer=answer)
        expanded = self.processor.expand(text, media, add_special_tokens=special)
        weights = np.zeros(len(expanded.ids), dtype=np.float32)
        for span in _moved(spans, expanded):
            weights[(expanded.begins >= span.start) & (expanded.begins < span.end)] = span.weight
        return self._cut(expanded, weights, row.get("label"))

    def rendered(self, row: Mapping[str, Any], *, answer: str | None = None) -> Written:
        """The row's text before it is expanded.

        Raises:
            RowError: as `encode`.
        """
        row, media = self.opened(row)
        text, spans, special = self.writer.write(row, answer)
        return Written(text, spans, media, special)

    def opened(self, row: Mapping[str, Any]) -> tuple[Mapping[str, Any], Media]:
        """The row with its objects written into its text, and its media.

        Raises:
            RowError: a medium is missing or damaged, tags and media do not match, objects that cannot be read.
        """
        _check_tags(row)
        self.processor.check_takes([column for column in MEDIA if row.get(column)])
        images = open_images(row.get("images") or (), self.folder)
        scaled = [rescale(image, self.max_pixels) for image in images]
        if row.get("objects"):
            notation = choose_notation(self.processor.model_type, self.processor.tokenizer.added_tokens)
            seen = [self.processor.image_size(image) for image in scaled] if notation.unit == "pixels" else []
            row = ground(row, [image.size for image in images], seen, notation)
        files = {column: [_place(one, column, self.folder) for one in row.get(column) or ()] for column in MEDIA[1:]}
        return row, Media(images=scaled, **files)

    def _cut(self, expanded: Expanded, weights: NDArray[np.float32], label: int | None) -> EncodedRow:
        import numpy as np

        length = len(expanded.ids)
        cut = 0 if self.max_length is None else max(0, length - self.max_length)
        if cut and self.truncation == "delete":
            raise RowError("too long")
        if cut and self._first_medium(expanded) < cut:
            raise RowError("an image would be cut", "media")
        ids, weights = expanded.ids[cut:], weights[cut:]
        labels = np.where(weights > 0, ids, NOT_TRAINED).astype(np.int32)
        if not (labels[1:] != NOT_TRAINED).any():
            raise RowError("nothing to train")
        tensors = {name: one[:, cut:] if name in TOKEN_LEVEL else one for name, one in expanded.tensors.items()}
        scale = weights if set(np.unique(weights)) - {0.0, 1.0} else None
        return EncodedRow(ids, labels, scale, label=label, tensors=tensors)

    def _first_medium(self, expanded: Expanded) -> int:
        """The first token that a medium needs: with the added token right before it, such as <|vision_start|>."""
        import numpy as np

        if not expanded.places:
            return len(expanded.ids)
        first = int(np.argmax(expanded.begins >= expanded.places[0].start))
        added = self.processor.tokenizer.tokenizer.get_added_tokens_decoder()
        return first - 1 if first and int(expanded.ids[first - 1]) in added else first


class _Writer:
    """Renders rows so that each tag becomes what the model's template writes for a medium."""

    def __init__(self, processor: ModelProcessor, settings: TemplateSettings) -> None:
        tokenizer = processor.tokenizer
        # A template by name, or none at all, knows no media: the tags are written as the model's own would.
        self._by_markup = settings.template is not None or not settings.use_chat_template
        if not self._by_markup:
            settings = replace(settings, template_backend="jinja")
        self.template = open_template(settings, tokenizer)
        exported, own = self.template.chat_template(), tokenizer.template
        # What would be served, a template of ours, writes no media.
        self._refused = settings.template if exported and (own is None or own.text not in exported) else None
        self._processor, self._bos = processor, processor.bos_token

    def write(self, row: Mapping[str, Any], answer: str | None) -> tuple[str, list[Span], bool]:
        """Text, what is trained in it, and whether the tokenizer adds its special tokens, as at serving time."""
        if self._by_markup:
            messages = [dict(one) | {"content": TAG.sub(self._markup, one["content"])} for one in row["messages"]]
            text, spans = self.template.render({**row, "messages": messages}, answer=answer)
            return text, spans, False
        text, spans = self.template.render(row, answer=answer)
        return text, spans, self._bos is not None and not text.startswith(self._bos)

    def _markup(self, match: Any) -> str:
        tag: str = match.group()
        if self._refused is not None:
            raise ArgumentsError(f"`--template {self._refused}` has no place for {tag}: drop it for the model's own")
        own: Any = self._processor.tokenizer.template
        token = getattr(self._processor.processor, f"{match.group(1)}_token", None)
        markup = own.markup(tag) if own is not None else token
        if not markup:
            raise ModelError(f"the model's chat template has no place of its own for {tag}: drop `--template`")
        return str(markup)


def _check_tags(row: Mapping[str, Any]) -> None:
    for column in MEDIA:
        tag, given = f"<{column.removesuffix('s')}>", len(row.get(column) or ())
        tags = sum(message["content"].count(tag) for message in row["messages"])
        if tags != given:
            raise RowError(f"{tags} tags {tag} for {given} {column}", "media")


def _place(name: str, column: str, folder: Path) -> str:
    if name.startswith(("http://", "https://")):
        return name
    return str(local_path(name, column, folder))


def _moved(spans: Sequence[Span], expanded: Expanded) -> list[Span]:
    """Spans of the text before expansion as spans of the text after it, without what stands for media."""
    moved: list[Span] = []
    shift = last = 0
    for place in [*expanded.places, Place(END, END, 0)]:
        for span in spans:
            first, until = max(span.start, last), min(span.end, place.start)
            if first < until:
                moved.append(Span(first + shift, until + shift, span.weight))
        shift += place.length - (place.end - place.start)
        last = place.end
    return moved


def needs_processor(model: Path, artifact: Path, *, packing: bool = False) -> bool:
    """Whether rows that are encoded when they are needed go through the model's processor.

    Args:
        model: its folder.
        artifact: holds the rows. Those of a stream may have media, which nobody knows before they are read.
        packing: whether rows are put together, which those with media cannot be.
    """
    from stages.data.standard_rows import columns_of
    from stages.sources.model_folder import has_processor

    if (artifact / "stream.json").is_file():
        return has_processor(model) and not packing
    return any(set(MEDIA) & set(columns_of(path)) for path in sorted(artifact.glob("*.parquet")))


def open_media_encoder(folder: Path, settings: EncoderSettings, dataset: Path) -> MediaEncoder:
    """The encoder of a model folder for rows with media.

    Args:
        folder: of the model.
        settings: how rows are encoded.
        dataset: the artifact that holds the rows and their media.

    Raises:
        ModelError: the model has no processor, or one that does not take what the rows have.
        MissingPackage: the processor, or one of the media, needs a package that is not installed.
    """
    from stages.data.processor import open_processor
    from stages.data.standard_rows import columns_of

    found = {name for path in sorted(dataset.glob("*.parquet")) for name in columns_of(path)}
    processor = open_processor(folder, [name for name in MEDIA if name in found])
    encoder = MediaEncoder(
        processor, settings.template, dataset, settings.max_length, settings.truncation, settings.max_pixels
    )
    encoder.writer  # noqa: B018 - a template that fails is said now
    return encoder
