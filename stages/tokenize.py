"""Turns standard rows into token ids, labels and weights with a chat template.

`python -m stages tokenize --input dataset=DIGEST --input model=DIGEST --max_length 2048`

Rows become tokens here, or later: with `lazy_tokenize`, and for rows with pictures, the rows themselves go on to train
with all that is needed to encode them; rows of a stream go on as the files that they are read from.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.arguments import TokenizeArguments
from stages.artifacts.key import library_versions
from stages.context import Context
from stages.data.chat_template import PINNED_DATE
from stages.data.encode import EncoderSettings, template_settings
from stages.data.rows.columns import MEDIA
from stages.errors import DataError
from stages.links import link_tree
from stages.sources.model_folder import PROCESSOR_FILES, TOKENIZER_FILES
from stages.stage import Input, Inputs, Metrics, Prepared, Stage

if TYPE_CHECKING:
    from stages.data.codec import Codec
    from stages.data.encode import RowEncoder
    from stages.data.templates.rendered import Template
    from stages.data.tokenizer import ModelTokenizer

__all__ = ["STAGE", "prepare", "tokenize"]

SPLITS = ("train", "validation")
MEDIA_LIBRARIES = ("pillow", "torchvision")
"""With torchvision, transformers prepares pictures in another way, which gives slightly other pixels."""
NAMED_DROPS = 10
TEMPLATE = "chat_template.jinja"
NOT_LEARNT = {
    "label": "does not look at it, and learns answers labelled false too",
    "rejected_response": "learns the chosen answers alone",
}
TRIED_ROWS = 64
"""Rows that are encoded on trial where the others are encoded later."""


def prepare(arguments: TokenizeArguments) -> Prepared[TokenizeArguments]:
    """Hands the user's code in as the input `plugins`, if it says how rows are written.

    Raises:
        ArgumentsError: a file that does not exist or raises, a template or a loss scale that is not known.
    """
    from stages.data.plugins import hand_in_plugins, load_plugins, say_how_rows_are_written

    plugins, paths = hand_in_plugins(arguments.custom_register_path)
    if paths:
        load_plugins(paths)
        if not say_how_rows_are_written(paths):  # but a dataset, or a loss: nothing depends on them here
            plugins, paths = [], ()
    if paths or not plugins:
        _check_names(arguments)
    inputs = {"plugins": paths} if paths else {}
    return Prepared(arguments.model_copy(update={"custom_register_path": plugins}), inputs)


def _check_names(arguments: TokenizeArguments) -> None:
    from stages.data.loss_scale import LossScale
    from stages.data.templates.meta import find_template

    LossScale.parse(arguments.loss_scale)
    if arguments.template is not None:
        find_template(arguments.template)


def tokenize(arguments: TokenizeArguments, inputs: Inputs, out: Path, context: Context) -> Metrics:
    """Writes the rows' tokens, and `tokens.json` with facts about them.

    `train.arrow`, and `validation.arrow` if there are such rows: see `stages.data.token_file`. With `packing`,
    `train_packs.arrow`: which rows stand together. `chat_template.jinja`, where serving needs another template than
    the model's own. Where rows are encoded later: `encoder.json`, and `train.parquet`, `media/`, or `stream.json`,
    `files/`.

    Args:
        arguments: the template's parameters, `max_length`, `truncation_strategy`, `packing`, `lazy_tokenize`, `strict`.
        inputs: `dataset`: standard rows; `model`: its tokenizer and configuration; `plugins`: Python files to load.
        out: the folder for the files.
        context: the length histogram is among its attachments.

    Raises:
        ModelError: no chat template, or one that fails; a damaged tokenizer.
        DataError: no row is left, a row that cannot be rendered with `strict`, training and serving text that differ.
    """
    from stages.data.codec import OpeningCodec
    from stages.data.plugins import load_plugins
    from stages.data.templates import open_template
    from stages.data.tokenizer import load_tokenizer

    if "plugins" in inputs:
        load_plugins(inputs["plugins"])
        _check_names(arguments)
    model = load_tokenizer(inputs["model"])
    codec = OpeningCodec(model.tokenizer)
    template = open_template(template_settings(arguments), model)
    settings = EncoderSettings(
        template_settings(arguments),
        _max_length(arguments, model, context),
        arguments.truncation_strategy,
        arguments.max_pixels,
        arguments.packing,
        arguments.strict,
        num_labels=arguments.num_labels,
    )
    _warn(template, model, context)
    job = _Job(arguments, inputs, out, context, model, template, settings)
    metrics: Metrics = {"max_length": settings.max_length, "template": template.name}
    metrics |= job.run(codec)
    metrics["encoded_with"] = codec.name
    (out / "tokens.json").write_text(
        json.dumps(_facts(job, metrics), indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    context.logger.info("tokens: %s", _worded(metrics))
    return metrics


@dataclass
class _Job:
    """One run of the stage."""

    arguments: TokenizeArguments
    inputs: Inputs
    out: Path
    context: Context
    model: ModelTokenizer
    template: Template
    settings: EncoderSettings
    lengths: list[int] = field(default_factory=list)

    @property
    def dataset(self) -> Path:
        return self.inputs["dataset"]

    @property
    def streams(self) -> bool:
        """Whether train reads the rows from the files that they came in."""
        return (self.dataset / "stream.json").is_file()

    def run(self, codec: Codec) -> Metrics:
        """Writes all files but the facts, and counts."""
        columns = self._columns()
        if self.arguments.num_labels is not None:
            self._check_classes(self.arguments.num_labels)
        for name, what in NOT_LEARNT.items():
            if name in columns and self.arguments.num_labels is None:
                self.context.logger.warning("rows have the column %s: supervised fine-tuning %s", name, what)
        self._write_chat_template()
        if self.streams or self._encodes_later(columns):
            return self._leave_for_later(codec)
        metrics: Metrics = {}
        for split in SPLITS:
            metrics |= self._encode(split, codec)
        if not metrics.get("train_rows"):
            raise DataError(f"no row is left to train on: {_why_dropped(metrics, self.settings.max_length)}")
        if self.arguments.packing:
            metrics |= self._pack(metrics["train_rows"])
        self._draw()
        return metrics

    def _columns(self) -> set[str]:
        """What the rows of all files have."""
        from stages.data.standard_rows import columns_of

        found: set[str] = set()
        for path in sorted(self.dataset.glob("*.parquet")):
            found |= set(columns_of(path))
        return found

    def _check_classes(self, num_labels: int) -> None:
        from stages.data.classes import check_classes

        if self._sees():
            raise DataError("`--num_labels` trains a classifier of text, and rows may have pictures, films or sounds")
        check_classes(sorted(self.dataset.glob("*.parquet")), num_labels)

    def _encodes_later(self, columns: set[str]) -> bool:
        media = sorted(columns & set(MEDIA))
        lazy = self.arguments.lazy_tokenize
        if media and (self.arguments.packing or lazy is False):
            flag = "--packing" if self.arguments.packing else "--lazy_tokenize false"
            raise DataError(f"rows with {' and '.join(media)} are encoded when they are needed: drop `{flag}`")
        return bool(media) if lazy is None else lazy

    def _write_chat_template(self) -> None:
        from stages.data.standard_rows import uses_tools
        from stages.data.templates import conversation

        tools = any(uses_tools(path) for path in self.dataset.glob("*.parquet"))
        tools = tools or (self.streams and any(map(conversation.uses_tools, self._first_rows)))
        text = self.template.chat_template(tools=tools)
        if text is not None:
            (self.out / TEMPLATE).write_text(text, encoding="utf-8")

    def _encoder(self, codec: Codec) -> RowEncoder:
        from stages.data.encode import RowEncoder

        return RowEncoder.of(self.template, codec, self.settings)

    def _encode(self, split: str, codec: Codec) -> Metrics:
        """Writes one split and counts what is in it; nothing if there is no such split."""
        from stages.data.encode_file import encode_file

        source = self.dataset / f"{split}.parquet"
        if not source.exists():
            return {}
        done = encode_file(
            source,
            self.out / f"{split}.arrow",
            self._encoder(codec),
            self.context,
            strict=self.arguments.strict,
            num_threads=self.arguments.dataset_num_proc,
            look=self._look(source.name),
        )
        self.lengths.extend(done.lengths)
        return done.metrics(split)

    def _look(self, name: str) -> Callable[[int, Mapping[str, Any]], None] | None:
        """Compares rows with what serving will give; nothing is served through a template where none is used."""
        from stages.data.chat_template import ChatTemplate
        from stages.data.parity import ParityCheck

        path = self.out / TEMPLATE
        exported = self.model.template
        if path.exists():
            text = path.read_text(encoding="utf-8")
            exported = replace(exported, text=text) if exported else ChatTemplate(text, self.model.special_tokens)
        if exported is None or not self.arguments.use_chat_template:
            return None
        check = ParityCheck(self.template, exported)

        def look(number: int, row: Mapping[str, Any]) -> None:
            check.check(row, f"{name} row {number}")

        return look

    def _pack(self, num_rows: int) -> Metrics:
        from stages.data.packing import fill_rate, pack
        from stages.data.token_file import write_packs

        lengths = self.lengths[:num_rows]
        capacity = self.settings.max_length or max(lengths)
        packs = pack(lengths, capacity)
        write_packs(packs, self.out / "train_packs.arrow")
        return {"train_packs": len(packs), "packs_filled": round(fill_rate(lengths, packs, capacity), 4)}

    def _leave_for_later(self, codec: Codec) -> Metrics:
        """Hands the rows on with all that decides how they are encoded, after some of them have been tried."""
        tried = self._try_some(codec)
        libraries = (*STAGE.libraries, *(MEDIA_LIBRARIES if self._sees() else ()))
        versions = {STAGE.name: STAGE.version, **library_versions(libraries)}
        settings = replace(self.settings, versions=versions)
        (self.out / "encoder.json").write_text(settings.to_json(), encoding="utf-8")
        if "plugins" in self.inputs:
            link_tree(self.inputs["plugins"], self.out / "plugins")
        metrics: Metrics = {"lazy": not self.streams, "streaming": self.streams}
        names = ("stream.json", "files") if self.streams else ("train.parquet", "validation.parquet", "media")
        for name in names:
            if (self.dataset / name).exists():
                link_tree(self.dataset / name, self.out / name)
        if self.streams:
            metrics |= self._encode("validation", codec)
            self._draw()
        else:
            metrics |= self._count_rows()
        return metrics | tried

    def _count_rows(self) -> Metrics:
        import pyarrow.parquet as pq

        files = {split: self.dataset / f"{split}.parquet" for split in SPLITS}
        return {f"{name}_rows": pq.ParquetFile(file).metadata.num_rows for name, file in files.items() if file.exists()}

    def _try_some(self, codec: Codec) -> Metrics:
        """The first rows, encoded as they will be: what would break training is said now."""
        look = self._look("train")
        encode = self._row_encoder(codec)
        reasons: list[str] = []
        for number, row in enumerate(self._first_rows, start=1):
            if look is not None and not any(name in row for name in MEDIA):
                look(number, row)
            try:
                encoded = encode(row)
            except DataError as error:
                raise DataError(f"train row {number}: {error}") from None
            if isinstance(encoded, str):
                reasons.append(f"row {number}: {encoded}")
                if self.arguments.strict:
                    raise DataError(f"train, {reasons[0]}")
        tried = len(self._first_rows)
        if tried == len(reasons):
            raise DataError(f"none of the first {tried} rows can be trained on: {(reasons or ['there are none'])[0]}")
        for reason in reasons[:NAMED_DROPS]:
            self.context.logger.warning("would be left out: %s", reason)
        return {"rows_tried": tried, "rows_tried_and_dropped": len(reasons)}

    def _row_encoder(self, codec: Codec) -> Any:
        """Text rows by the tokenizer, rows with media by the model's processor."""
        from stages.data.media_encode import open_media_encoder

        if not self._sees():
            return self._encoder(codec.safe).encode_row
        return open_media_encoder(self.inputs["model"], self.settings, self.dataset).encode_row

    def _sees(self) -> bool:
        """Whether rows go through the model's processor."""
        from stages.data.media_encode import needs_processor

        return needs_processor(self.inputs["model"], self.dataset, packing=self.arguments.packing)

    @cached_property
    def _first_rows(self) -> Sequence[dict[str, Any]]:
        from itertools import chain, islice

        from stages.data.standard_rows import read_standard_rows
        from stages.data.stream import RowStream

        if self.streams:
            stream = RowStream.open(self.dataset, scratch=self.context.scratch / "media")
            return [row for _, row in islice(stream.rows(), TRIED_ROWS)]
        if not (self.dataset / "train.parquet").is_file():
            return []
        rows = read_standard_rows(self.dataset / "train.parquet")
        return list(islice(chain.from_iterable(rows), TRIED_ROWS))

    def _draw(self) -> None:
        from stages.data.histogram import draw_lengths

        if self.lengths:
            picture = self.context.attachments / "token-lengths.png"
            draw_lengths(self.lengths, self.settings.max_length, picture)
            self.context.reporter.image("token-lengths", picture)


def _max_length(arguments: TokenizeArguments, model: ModelTokenizer, context: Context) -> int | None:
    """The limit given, or the model's own."""
    limit = arguments.max_length
    if limit is not None and model.max_length is not None and limit > model.max_length:
        context.logger.warning(
            "max_length %d is more than the %d tokens that the model takes: add --rope_scaling", limit, model.max_length
        )
    return limit or model.max_length


def _warn(template: Template, model: ModelTokenizer, context: Context) -> None:
    if template.name == "jinja" and model.template is not None and model.template.asks_for_the_date:
        context.logger.warning("the chat template may write today's date: %s stands for it in all rows", PINNED_DATE)
    if not template.turn_end:
        context.logger.warning("the template ends an answer with no token: the model will not learn to stop")
    elif template.name != "jinja" and model.tokenizer.token_to_id(template.turn_end) is None:
        context.logger.warning(
            "template %s ends an answer with %s, which is no token of this model: is it the right template?",
            template.name,
            template.turn_end,
        )


def _facts(job: _Job, metrics: Metrics) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "template": job.template.name,
        "turn_end": job.template.turn_end,
        "eos_token_id": job.model.token_id("eos_token"),
        "max_length": job.settings.max_length,
    }
    return facts | {name: value for name, value in metrics.items() if name.endswith(("_rows", "_tokens", "_packs"))}


def _why_dropped(metrics: Metrics, max_length: int | None) -> str:
    """The reasons in words, with the first row that could not be rendered."""
    prefix = "train_dropped_"
    reasons = [
        f"{count} {name.removeprefix(prefix).replace('_', ' ')}"
        for name, count in metrics.items()
        if name.startswith(prefix)
    ]
    first = metrics.get("train_first_dropped", "").partition("\n")[0]
    if first and not first.endswith((": too long", ": nothing to train")):
        reasons.append(first)
    return f"{', '.join(reasons) or 'there are none'} (max_length {max_length})"


def _worded(metrics: Metrics) -> str:
    return ", ".join(f"{name} {value}" for name, value in metrics.items() if isinstance(value, (int, float)))


STAGE = Stage(
    name="tokenize",
    version=2,
    arguments=TokenizeArguments,
    inputs={
        "dataset": Input(
            kinds=("dataset",),
            reads=("*.parquet", "stream.json", "files/**", "media/**"),
            help="standard rows",
        ),
        "model": Input(
            kinds=("model",),
            reads=(*TOKENIZER_FILES, *PROCESSOR_FILES),
            help="its tokenizer and chat template are read",
        ),
        "plugins": Input(kinds=("files",), required=False, help="Python files that register templates or loss scales"),
    },
    output="tokens",
    function=tokenize,
    libraries=("jinja2", "pyarrow", "tokenizers"),
    prepare=prepare,
)
