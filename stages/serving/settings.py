"""How tokens are chosen, as transformers takes it: `generation_config(model, tokenizer, Sampling(), num_prompt=12)`."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from stages.errors import ArgumentsError, ModelError
from stages.sources.rope import max_positions

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase

__all__ = ["Sampling", "end_ids", "generation_config", "max_length"]


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen; None leaves it to the model's generation_config.json.

    Attributes:
        max_new_tokens: as many as the model has room for if None.
        temperature: 0 takes the likeliest token.
        top_k: sample from the k likeliest; 0 and -1 from all.
        top_p: sample from the likeliest that add up to this probability.
        repetition_penalty: above 1 discourages repetition.
        num_beams: 1 is no beam search.
        stop: texts that end generation; they are not part of the answer.
        seed: of sampling; if None, a number made of the prompt, so that the same request has the same answer.
    """

    max_new_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float | None = None
    num_beams: int = 1
    stop: tuple[str, ...] = ()
    seed: int | None = None

    def updated(self, **values: Any) -> Sampling:
        """These, with those of `values` that are not None on top; further `stop` texts are added."""
        known = {field.name for field in fields(self)}
        given = {name: value for name, value in values.items() if value is not None and name in known}
        given["stop"] = (*self.stop, *(text for text in given.get("stop", ()) if text not in self.stop))
        return replace(self, **given)

    def cut(self, text: str) -> str | None:
        """What stands before the first stop text; None if there is none."""
        places = [place for place in (text.find(word) for word in self.stop) if place >= 0]
        return text[: min(places)] if places else None


def max_length(model: Any) -> int | None:
    """Tokens that a model has positions for, prompt and answer together."""
    return max_positions(model.config.get_text_config().to_dict())


def end_ids(model: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every token that the model's files call an end.

    Raises:
        ModelError: there is none.
    """
    found: list[int] = []
    for source in (model.generation_config, model.config.get_text_config(), tokenizer):
        value = getattr(source, "eos_token_id", None)
        found += value if isinstance(value, list) else [] if value is None else [int(value)]
    if not found:
        raise ModelError("the model's files name no eos_token: it would never stop")
    return list(dict.fromkeys(found))


def generation_config(
    model: Any, tokenizer: PreTrainedTokenizerBase, sampling: Sampling, num_prompt: int
) -> GenerationConfig:
    """The model's own generation config with other settings on top.

    Args:
        model: of transformers, or an adapter of PEFT's on one.
        tokenizer: its own.
        sampling: what to change.
        num_prompt: tokens that are there before anything is generated.

    Raises:
        ArgumentsError: the prompt leaves no room.
        ModelError: the model's files name no end.
    """
    from transformers import GenerationConfig

    config = GenerationConfig.from_dict(model.generation_config.to_dict())
    config.max_length = None  # transformers' default of 20 would stand beside max_new_tokens
    config.max_new_tokens = _room(max_length(model), sampling.max_new_tokens, num_prompt)
    config.eos_token_id = end_ids(model, tokenizer)
    pad = tokenizer.pad_token_id
    config.pad_token_id = config.eos_token_id[0] if pad is None else pad
    config.num_beams = sampling.num_beams
    config.stop_strings = list(sampling.stop) or None
    if sampling.temperature is not None:
        config.do_sample = sampling.temperature > 0
        config.temperature = sampling.temperature
    for name in ("top_k", "top_p", "repetition_penalty"):
        if (value := getattr(sampling, name)) is not None:
            setattr(config, name, value)
    if config.top_k == -1:
        config.top_k = 0
    if not config.do_sample:  # they would be warned about
        config.temperature, config.top_p, config.top_k = 1.0, 1.0, 50
    return config


def _room(limit: int | None, wanted: int | None, num_prompt: int) -> int:
    if limit is None:
        if wanted is None:
            raise ArgumentsError("the model's config.json names no max_position_embeddings: give `--max_new_tokens`")
        return wanted
    room = limit - num_prompt
    if room < 1:
        raise ArgumentsError(f"the prompt has {num_prompt} tokens, and the model takes {limit} with its answer")
    return room if wanted is None else min(wanted, room)
