"""Generates with transformers: `Engine.open(folder).chat([{"role": "user", "content": "Hello"}], Sampling())`."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stages.errors import ArgumentsError, Interrupted, ModelError
from stages.serving.settings import Sampling, generation_config, max_length

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

    from stages.serving.loading import DeviceMap

__all__ = ["Completion", "Engine", "Message", "Sampling"]

Message = Mapping[str, str]
logger = logging.getLogger("martlet.serving")


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
        return max_length(self.model)

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
        config = generation_config(self.model, self.tokenizer, sampling, ids.shape[1])
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
        return self._completion(made, config, sampling, ids.shape[1])

    def _completion(self, made: Tensor, config: GenerationConfig, sampling: Sampling, num_prompt: int) -> Completion:
        text = str(self.tokenizer.decode(made, skip_special_tokens=True))
        cut = sampling.cut(text)
        ended = cut is not None or (len(made) > 0 and int(made[-1]) in config.eos_token_id)
        return Completion(
            text=text if cut is None else cut,
            finish_reason="stop" if ended else "length",
            num_prompt_tokens=num_prompt,
            num_tokens=len(made),
        )

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
