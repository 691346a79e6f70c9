"""Opens a model folder's tokenizer and chat template, without transformers where that gives the same.

`load_tokenizer(Path("smollm2")).template.render(messages)`
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.data.chat_template import ChatTemplate
from stages.errors import ModelError
from stages.sources.model_folder import read_json
from stages.sources.rope import max_positions

if TYPE_CHECKING:
    import tokenizers

__all__ = ["ModelTokenizer", "load_tokenizer"]

SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# Classes that take tokenizer.json as it is; the others of transformers build the tokenizer anew from parts of it.
PLAIN_CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend")
NO_LIMIT = 10**9


@dataclass(frozen=True)
class ModelTokenizer:
    """A model's tokenizer.

    Attributes:
        tokenizer: of the `tokenizers` library.
        template: None where the model has none.
        max_length: tokens that the model takes; None where its files do not say.
        special_tokens: bos_token, eos_token … by name.
    """

    tokenizer: tokenizers.Tokenizer
    template: ChatTemplate | None
    max_length: int | None
    special_tokens: Mapping[str, str]

    @property
    def added_tokens(self) -> list[str]:
        """The tokens beside the vocabulary, such as <|im_end|>."""
        return [token.content for token in self.tokenizer.get_added_tokens_decoder().values()]

    def token_id(self, name: str) -> int | None:
        """The id of `eos_token`, `pad_token` …"""
        token = self.special_tokens.get(name)
        return None if token is None else self.tokenizer.token_to_id(token)


def load_tokenizer(folder: Path) -> ModelTokenizer:
    """Opens the tokenizer.

    Raises:
        ModelError: its files are missing or damaged, or there is no fast tokenizer for them.
    """
    config = _read_if_there(folder / "tokenizer_config.json")
    model = read_json(folder / "config.json")
    special = _special_tokens(config, _read_if_there(folder / "special_tokens_map.json"))
    tokenizer = _plain(folder, config, model, special)
    if tokenizer is None:
        tokenizer, special = _with_transformers(folder)
    text = _template_text(folder, config)
    template = _template(folder, text, special) if text else None
    return ModelTokenizer(tokenizer, template, _max_length(config, model), special)


def _template(folder: Path, text: str, special: Mapping[str, str]) -> ChatTemplate:
    """The template of a model that sees may read nothing but parts."""
    from stages.data.media_template import MediaTemplate
    from stages.sources.model_folder import has_processor

    return MediaTemplate(text, special, tags=False) if has_processor(folder) else ChatTemplate(text, special)


def _plain(
    folder: Path, config: Mapping[str, Any], model: Mapping[str, Any], special: Mapping[str, str]
) -> tokenizers.Tokenizer | None:
    """tokenizer.json itself, if transformers would take it as it is too."""
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if not path.exists() or config.get("tokenizer_class") not in PLAIN_CLASSES:
        return None
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises no narrower class
        raise ModelError(f"the model's tokenizer.json is damaged: {error}") from error
    named = [*special.values(), *(_content(token) for token in config.get("added_tokens_decoder", {}).values())]
    # Mistral's older files hold a faulty expression, which transformers mends.
    if any(tokenizer.token_to_id(token) is None for token in named) or "mistral" in str(model.get("model_type")):
        return None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _with_transformers(folder: Path) -> tuple[tokenizers.Tokenizer, dict[str, str]]:
    from transformers import AutoTokenizer

    try:
        loaded = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, ImportError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(f"the model's tokenizer cannot be opened: {reason:.300}") from error
    if not getattr(loaded, "is_fast", False):
        raise ModelError(f"the model's tokenizer, {type(loaded).__name__}, has no fast version (tokenizer.json)")
    tokenizer = loaded.backend_tokenizer
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer, {name: str(token) for name, token in loaded.special_tokens_map.items() if isinstance(token, str)}


def _special_tokens(config: Mapping[str, Any], older: Mapping[str, Any]) -> dict[str, str]:
    found = {name: config.get(name) or older.get(name) for name in SPECIAL}
    extra = config.get("extra_special_tokens")
    named = {**found, **extra} if isinstance(extra, dict) else found
    return {name: _content(token) for name, token in named.items() if token}


def _content(token: Any) -> str:
    return str(token["content"]) if isinstance(token, Mapping) else str(token)


def _template_text(folder: Path, config: Mapping[str, Any]) -> str | None:
    """chat_template.jinja wins, then a processor's, then the tokenizer's; of several, the one called default."""
    path = folder / "chat_template.jinja"
    if path.exists():
        return path.read_text(encoding="utf-8")
    template = _read_if_there(folder / "chat_template.json").get("chat_template") or config.get("chat_template")
    if isinstance(template, list):
        template = {one["name"]: one["template"] for one in template}.get("default")
    return template if isinstance(template, str) else None


def _max_length(config: Mapping[str, Any], model: Mapping[str, Any]) -> int | None:
    limit = max_positions(model) or config.get("model_max_length")
    return int(limit) if isinstance(limit, (int, float)) and 0 < limit < NO_LIMIT else None


def _read_if_there(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}
