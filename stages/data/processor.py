"""A model's processor: `open_processor(Path("qwen2-vl")).expand(text, Media(images=[…]))`.

For each image in a text it writes as many tokens as the model gets from it, and it makes tensors of the pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from stages.data.chat_template import ChatTemplate
from stages.data.media_template import MediaTemplate
from stages.data.rows import RowError
from stages.data.tokenizer import ModelTokenizer, load_tokenizer
from stages.errors import MissingPackage, ModelError, StageFailed
from stages.sources.model_folder import has_processor, read_json

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

__all__ = [
    "Expanded",
    "Media",
    "ModelProcessor",
    "open_processor",
]

NETWORK = ("requests", "urllib", "httpx", "aiohttp")


TOKEN_LEVEL = ("attention_mask", "mm_token_type_ids", "token_type_ids", "cross_attention_mask")
"""Tensors that have something for each token in their second dimension."""

VIDEO_DECODERS = ("torchcodec", "av")
AUDIO_DECODERS = ("torchcodec", "soundfile")


@dataclass(frozen=True)
class Media:
    """What one row's tags stand for, in the order of the tags.

    Attributes:
        images: in RGB.
        videos: paths or addresses.
        audios: paths or addresses.
    """

    images: Sequence[Image] = ()
    videos: Sequence[str] = ()
    audios: Sequence[str] = ()

    def __bool__(self) -> bool:
        return bool(self.images or self.videos or self.audios)


class Place(NamedTuple):
    """Characters of a text that the processor has put others in the place of."""

    start: int
    end: int
    length: int


@dataclass(frozen=True)
class Expanded:
    """A text as the model is given it.

    Attributes:
        ids: int32, [tokens].
        begins: int64, [tokens]: the character of the expanded text in which each begins.
        places: what was expanded; positions in the text before, length after.
        tensors: the rest of what the model is given, by the name of its parameter; a batch of one.
    """

    ids: NDArray[np.int32]
    begins: NDArray[np.int64]
    places: Sequence[Place]
    tensors: Mapping[str, Any]


@dataclass(frozen=True)
class ModelProcessor:
    """The processor of a model.

    Attributes:
        processor: transformers' own.
        tokenizer: its tokenizer, with a template that writes tags as the model writes media.
        model_type: of the model's configuration.
    """

    processor: Any
    tokenizer: ModelTokenizer
    model_type: str

    @property
    def name(self) -> str:
        """For messages."""
        return type(self.processor).__name__

    def check_takes(self, columns: Sequence[str]) -> None:
        """Refuses media that the processor, or this machine, cannot read.

        Raises:
            ModelError: the model has no place for them.
            MissingPackage: a package that decodes them is missing.
        """
        for column in columns:
            part = {"images": "image_processor", "videos": "video_processor", "audios": "_audio_processor"}[column]
            if column == "videos" and getattr(self.processor, "needs_torchvision", False):
                raise MissingPackage(f"{self.name} takes videos only with torchvision and av installed")
            if getattr(self.processor, part, None) is None:
                raise ModelError(f"the model's processor, {self.name}, takes no {column}: drop the column {column}")
        for column, decoders in (("videos", VIDEO_DECODERS), ("audios", AUDIO_DECODERS)):
            if column in columns and not any(_is_installed(decoder) for decoder in decoders):
                raise MissingPackage(f"{column} need a decoder: install {' or '.join(decoders)}")

    def expand(self, text: str, media: Media, *, add_special_tokens: bool = False) -> Expanded:
        """The tokens of a text in which each medium stands as the model's template writes it.

        Raises:
            RowError: the processor refuses the text or the media.
            ModelError: it does not say what it has written, or gives other tokens than that text has.
        """
        import numpy as np

        given = {"add_special_tokens": add_special_tokens}
        out = self._call([text], [media], given, return_text_replacement_offsets=True)
        offsets = out.pop("text_replacement_offsets", None)
        if media and not offsets:
            raise ModelError(
                f"the model's processor, {self.name}, does not say where it puts media: such rows cannot be trained"
            )
        written, places = _written(text, offsets[0] if offsets else [])
        backend = self.tokenizer.tokenizer
        backend.no_padding()
        backend.no_truncation()
        encoding = backend.encode(written, add_special_tokens=add_special_tokens)
        ids = np.array(encoding.ids, dtype=np.int32)
        theirs = out.pop("input_ids")[0].numpy()
        if not np.array_equal(ids, theirs):
            raise ModelError(
                f"the model's processor, {self.name}, gives {len(theirs)} tokens for a row whose text has {len(ids)}: "
                "which of them are the answer's cannot be told"
            )
        begins = np.array([begin for begin, _ in encoding.offsets], dtype=np.int64)
        out.pop("attention_mask", None)
        return Expanded(ids, begins, places, out)

    def batch(self, texts: Sequence[str], media: Sequence[Media], *, add_special_tokens: bool = False) -> Any:
        """What the processor itself makes of several texts, padded on the right.

        Raises:
            RowError: it refuses them.
        """
        padding = {"padding": True, "padding_side": "right"}
        return self._call(texts, media, {"add_special_tokens": add_special_tokens, **padding})

    def image_size(self, image: Image) -> tuple[int, int]:
        """Width and height of an image as the model sees it: its processor may scale it."""
        processor = self.processor.image_processor
        made = processor([image], return_tensors="pt")
        if "image_grid_thw" in made:
            _, rows, columns = made["image_grid_thw"][0].tolist()
            return columns * processor.patch_size, rows * processor.patch_size
        height, width = made["pixel_values"].shape[-2:]
        return width, height

    @cached_property
    def bos_token(self) -> str | None:
        """What a text begins with, if anything."""
        token = self.processor.tokenizer.bos_token
        return None if token is None else str(token)

    def _call(
        self, texts: Sequence[str], media: Sequence[Media], text_kwargs: Mapping[str, Any], **given: Any
    ) -> dict[str, Any]:
        try:
            out = self.processor(
                text=list(texts), return_tensors="pt", text_kwargs=dict(text_kwargs), **_columns(media), **given
            )
        except (ValueError, TypeError, OSError, RuntimeError, IndexError) as error:
            # A row is never dropped for what the machine or the network did.
            if type(error).__name__ == "OutOfMemoryError":
                raise
            if isinstance(error, ConnectionError | TimeoutError) or type(error).__module__.startswith(NETWORK):
                raise StageFailed(f"a medium cannot be fetched: {_first_line(error)}") from error
            raise RowError(f"{self.name} refuses it: {_first_line(error)}", "media") from error
        except ImportError as error:
            raise MissingPackage(f"{self.name} needs a package that is not installed: {_first_line(error)}") from error
        return dict(out)


def open_processor(folder: Path, columns: Sequence[str] = ()) -> ModelProcessor:
    """Opens the processor of a model folder.

    Args:
        folder: of the model.
        columns: the media that it has to take: images, videos, audios.

    Raises:
        ModelError: there is none, it is damaged, or it does not take these media.
        MissingPackage: it, or one of the media, needs a package that is not installed.
    """
    config = read_json(folder / "config.json")
    named = (config.get("architectures") or [config.get("model_type", "unknown")])[0]
    if not has_processor(folder):
        raise ModelError(
            f"the model, {named}, has no processor for {' and '.join(columns) or 'images'}: it has no "
            "preprocessor_config.json. Train a model that sees, or drop these columns"
        )
    processor = _load(folder)
    if getattr(processor, "tokenizer", None) is None or not getattr(processor.tokenizer, "is_fast", False):
        raise ModelError(f"the model's processor, {type(processor).__name__}, has no fast tokenizer (tokenizer.json)")
    tokenizer = load_tokenizer(folder)
    text = _template_text(processor) or (tokenizer.template.text if tokenizer.template else None)
    special = {
        name: str(token) for name, token in processor.tokenizer.special_tokens_map.items() if isinstance(token, str)
    }
    template = MediaTemplate.of(ChatTemplate(text, special)) if text else None
    tokenizer = replace(
        tokenizer, tokenizer=processor.tokenizer.backend_tokenizer, template=template, special_tokens=special
    )
    opened = ModelProcessor(processor, tokenizer, str(config.get("model_type")))
    opened.check_takes(columns)
    return opened


def _load(folder: Path) -> Any:
    from transformers import AutoConfig, AutoProcessor
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
    from transformers.utils import is_torchvision_available

    try:
        if not is_torchvision_available():
            config = AutoConfig.from_pretrained(folder, local_files_only=True)
            own = PROCESSOR_MAPPING.get(type(config), None)
            if own is not None and "video_processor" in own.get_attributes():
                return _without_videos(own).from_pretrained(folder, local_files_only=True)
        return AutoProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except ImportError as error:
        raise MissingPackage(f"the model's processor needs a package: {_first_line(error)}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"the model's processor cannot be opened: {_first_line(error)}") from None


def _without_videos(own: Any) -> Any:
    """A processor without its part for videos: transformers makes that with torchvision alone, which is not here."""

    def attributes(_: Any) -> list[str]:
        return [name for name in own.get_attributes() if name != "video_processor"]

    others: Any = type(own.__name__, (own,), {"get_attributes": classmethod(attributes)})

    def load(_: Any, *args: Any, **given: Any) -> list[Any]:
        found = dict(zip(others.get_attributes(), others._get_arguments_from_pretrained(*args, **given), strict=True))
        return [found.get(name) for name in own.get_attributes()]

    def check(self: Any, name: str, part: Any) -> Any:
        return None if part is None else own.check_argument_for_proper_class(self, name, part)

    body = {
        "_get_arguments_from_pretrained": classmethod(load),
        "check_argument_for_proper_class": check,
        "needs_torchvision": True,
        "__init__": own.__init__,  # its signature names the parts
    }
    return type(own.__name__, (own,), body)


def _template_text(processor: Any) -> str | None:
    template = getattr(processor, "chat_template", None)
    if isinstance(template, Mapping):
        template = template.get("default")
    return template if isinstance(template, str) else None


def _written(text: str, offsets: Sequence[Mapping[str, Any]]) -> tuple[str, list[Place]]:
    """The text after expansion."""
    pieces, places, last = [], [], 0
    for one in offsets:
        start, end = one["span"]
        pieces += [text[last:start], one["replacement"]]
        places.append(Place(start, end, len(one["replacement"])))
        last = end
    return "".join([*pieces, text[last:]]), places


def _columns(media: Sequence[Media]) -> dict[str, Any]:
    """Media as a processor takes them: images by text, the others in one row."""
    columns: dict[str, Any] = {}
    if any(one.images for one in media):
        columns["images"] = [list(one.images) for one in media]
    if audios := [audio for one in media for audio in one.audios]:
        columns["audio"] = audios
    videos = [video for one in media for video in one.videos]
    if videos and _is_installed("torchcodec"):
        columns["videos"] = videos
    elif videos:  # a processor decodes with torchcodec alone
        from transformers.video_utils import load_video

        decoded = [load_video(video, backend="pyav") for video in videos]
        columns |= {"videos": [frames for frames, _ in decoded], "video_metadata": [facts for _, facts in decoded]}
    return columns


def _is_installed(package: str) -> bool:
    from importlib.util import find_spec

    return find_spec(package) is not None


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]
