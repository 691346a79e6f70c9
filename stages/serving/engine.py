"""Generates with transformers: `Engine.open(folder).chat([{"role": "user", "content": "Hello"}], Sampling())`."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stages.errors import ArgumentsError, Interrupted, ModelError
from stages.sources.rope import max_positions

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

    from stages.serving.loading import DeviceMap

__all__ = ["Completion", "Engine", "Message", "Sampling"]

Message = Mapping[str, str]
logger = logging.getLogger("martlet.serving")


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


@dataclass(frozen=True)
class Completion:
    """What was generated.

    Attributes:
        text: without special tokens and without the stop text.
        finish_reason: `stop` if the model or a stop text ended it, `length` if it was cut off.
        num_prompt_tokens: of the prompt.
        num_tokens: generated, the last one included.
    """

    text: str
    finish_reason: Literal["stop", "length"]
    num_prompt_tokens: int
    num_tokens: int


class Engine:
    """One model on its device; requests are answered one after the other, so that each answer is reproducible."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        system: str | None = None,
        *,
        use_chat_template: bool = True,
    ) -> None:
        """Opens nothing.

        Args:
            model: on its device.
            tokenizer: with the chat template to use.
            system: the system message of conversations that have none.
            use_chat_template: false joins what the messages say, and writes nothing else.
        """
        self.model = model
        self.tokenizer = tokenizer
        self.system = system
        self.use_chat_template = use_chat_template
        self._one_at_a_time = threading.Lock()
        self._closing = threading.Event()

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        torch_dtype: str | None = None,
        device_map: DeviceMap | None = None,
        attn_impl: str | None = None,
        system: str | None = None,
    ) -> Engine:
        """Loads a model folder.

        Raises:
            ModelError: a file is missing or damaged.
        """
        from stages.serving.loading import load_model, load_tokenizer

        tokenizer = load_tokenizer(folder)
        model = load_model(folder, torch_dtype=torch_dtype, device_map=device_map, attn_impl=attn_impl)
        return cls(model, tokenizer, system)

    @property
    def max_length(self) -> int | None:
        """Tokens that the model has positions for, prompt and answer together."""
        return max_positions(self.model.config.get_text_config().to_dict())

    def chat(self, messages: Sequence[Message], sampling: Sampling) -> Completion:
        """The assistant's next turn, through the tokenizer's chat template.

        Raises:
            ModelError: there is no chat template, or it refuses the messages.
            ArgumentsError: the prompt leaves no room.
            Interrupted: the engine was closed meanwhile.
        """
        turns = [dict(message) for message in messages]
        if self.system and not (turns and turns[0]["role"] == "system"):
            turns.insert(0, {"role": "system", "content": self.system})
        return self._generate(self._render(turns), sampling, special=not self.use_chat_template)

    def complete(self, prompt: str, sampling: Sampling) -> Completion:
        """The continuation of a text.

        Raises:
            ArgumentsError: the prompt leaves no room.
            Interrupted: the engine was closed meanwhile.
        """
        return self._generate(prompt, sampling, special=True)

    def check_chat_template(self) -> None:
        """Refuses a model that cannot take a conversation.

        Raises:
            ModelError: saying why.
        """
        self._render([{"role": "user", "content": "Hello"}])

    def close(self) -> None:
        """Ends what is being generated, and refuses what comes later."""
        self._closing.set()

    def _render(self, turns: list[dict[str, str]]) -> str:
        if not self.use_chat_template:
            return "".join(turn["content"] for turn in turns)
        if not getattr(self.tokenizer, "chat_template", None):
            raise ModelError(
                "the model has no chat template: put its chat_template.jinja beside its tokenizer.json, or use its "
                "instruction-tuned version"
            )
        try:
            text = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # whatever the template raises
            raise ModelError(f"the model's chat template refuses the messages: {error}") from error
        return str(text)

    def _generate(self, prompt: str, sampling: Sampling, *, special: bool) -> Completion:
        import torch
        from transformers import StoppingCriteriaList

        ids = self.tokenizer(prompt, return_tensors="pt", add_special_tokens=special)["input_ids"]
        if ids.shape[1] == 0:
            raise ArgumentsError("the prompt is empty")
        config = self._config(sampling, ids.shape[1])
        closed = self._closed_criterion()
        with self._one_at_a_time, torch.inference_mode(), torch.random.fork_rng(enabled=bool(config.do_sample)):
            if config.do_sample:
                torch.manual_seed(_seed(prompt) if sampling.seed is None else sampling.seed)
            ids = ids.to(self.model.device)
            made = self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                generation_config=config,
                tokenizer=self.tokenizer,
                stopping_criteria=StoppingCriteriaList([closed]),
            )[0, ids.shape[1] :]
        if self._closing.is_set():
            raise Interrupted("the server is closing")
        return self._completion(made, config, sampling.stop, ids.shape[1])

    def _completion(self, made: Tensor, config: GenerationConfig, stop: Sequence[str], num_prompt: int) -> Completion:
        text = str(self.tokenizer.decode(made, skip_special_tokens=True))
        cuts = [place for place in (text.find(word) for word in stop) if place >= 0]
        ended = bool(cuts) or (len(made) > 0 and int(made[-1]) in config.eos_token_id)
        return Completion(
            text=text[: min(cuts)] if cuts else text,
            finish_reason="stop" if ended else "length",
            num_prompt_tokens=num_prompt,
            num_tokens=len(made),
        )

    def _config(self, sampling: Sampling, num_prompt: int) -> GenerationConfig:
        """The model's own generation config with the request's settings on top."""
        from transformers import GenerationConfig

        config = GenerationConfig.from_dict(self.model.generation_config.to_dict())
        config.max_length = None  # transformers' default of 20 would stand beside max_new_tokens
        config.max_new_tokens = self._room(sampling.max_new_tokens, num_prompt)
        config.eos_token_id = self._ends()
        pad = self.tokenizer.pad_token_id
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

    def _room(self, wanted: int | None, num_prompt: int) -> int:
        limit = self.max_length
        if limit is None:
            if wanted is None:
                raise ArgumentsError(
                    "the model's config.json names no max_position_embeddings: give `--max_new_tokens`"
                )
            return wanted
        room = limit - num_prompt
        if room < 1:
            raise ArgumentsError(f"the prompt has {num_prompt} tokens, and the model takes {limit} with its answer")
        return room if wanted is None else min(wanted, room)

    def _ends(self) -> list[int]:
        """Every token that the model's files call an end."""
        found: list[int] = []
        for source in (self.model.generation_config, self.model.config.get_text_config(), self.tokenizer):
            value = getattr(source, "eos_token_id", None)
            found += value if isinstance(value, list) else [] if value is None else [int(value)]
        if not found:
            raise ModelError("the model's files name no eos_token: it would never stop")
        return list(dict.fromkeys(found))

    def _closed_criterion(self) -> Any:
        import torch
        from transformers import StoppingCriteria

        closing = self._closing

        class Closed(StoppingCriteria):  # type: ignore[misc]
            def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
                return torch.full((input_ids.shape[0],), closing.is_set(), device=input_ids.device)

        return Closed()


def _seed(prompt: str) -> int:
    return int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:4], "big")
