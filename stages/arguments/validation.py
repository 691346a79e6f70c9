"""What is measured in validation, and what follows from it: `TrainArguments(predict_with_generate=True)`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import model_validator

from stages.arguments.base import option
from stages.arguments.generation import SamplingArguments, StopArguments

if TYPE_CHECKING:
    from stages.serving.settings import Sampling

__all__ = ["ValidationArguments"]

_GENERATION = (
    "max_new_tokens",
    "temperature",
    "top_k",
    "top_p",
    "repetition_penalty",
    "num_beams",
    "stop_words",
    "generation_num_beams",
)
"""What counts only where answers are generated."""


class ValidationArguments(SamplingArguments, StopArguments):
    """Validation by generating answers, and an end that depends on it."""

    GROUP: ClassVar[str] = "Pre-training and Fine-tuning Parameters"

    predict_with_generate: bool = option(False)
    """Validate by generating answers too, not only by the loss."""
    max_new_tokens: int = option(64, ge=1)
    """Tokens of a generated answer at most."""
    temperature: float = option(0.0, ge=0)
    """0 takes the likeliest token."""
    early_stop_interval: int | None = option(None, ge=1)
    """Stop after so many validations in a row without a better metric_for_best_model; never if left out."""

    @model_validator(mode="after")
    def _check_validation(self) -> Self:
        if self.NAME in ("pt", "rlhf"):  # not supported yet
            return self
        if getattr(self, "metric", None) == "nlg" and not self.predict_with_generate:
            raise ValueError("`--metric nlg` compares generated answers: add `--predict_with_generate true`")
        # In a flow that evaluates too, they are for that; so a train stage may be given what does not concern it.
        for name in _GENERATION if self.NAME == "sft" and not self.predict_with_generate else ():
            if self._given(name):
                raise ValueError(
                    f"`--{name}` is for generated answers, and none are generated: add `--predict_with_generate true`"
                )
        if self.early_stop_interval is not None and getattr(self, "eval_strategy", None) == "no":
            raise ValueError(
                "`--early_stop_interval` counts validations, and `--eval_strategy no` has none: drop one of them"
            )
        self._take_transformers_names()
        return self

    def _take_transformers_names(self) -> None:
        """Those of transformers' Seq2SeqTrainingArguments."""
        beams = getattr(self, "generation_num_beams", None)
        if beams is not None:
            if self._given("num_beams") and self.num_beams != beams:
                raise ValueError(
                    f"`--generation_num_beams {beams}` and `--num_beams {self.num_beams}` are one parameter: "
                    "give it once"
                )
            self._resolve(num_beams=beams, generation_num_beams=None)
        if getattr(self, "generation_max_length", None) is not None:
            raise ValueError(
                "`--generation_max_length` counts the prompt too, so that long ones would get no answer: give "
                "`--max_new_tokens`"
            )
        if getattr(self, "generation_config", None) is not None:
            raise ValueError(
                "`--generation_config` names a file: give what it says by flags, such as `--temperature` and "
                "`--top_p`; what they leave open is as in the model's own generation_config.json"
            )
        if getattr(self, "sortish_sampler", False):
            raise ValueError(
                "`--sortish_sampler`: transformers has given it up: give `--train_sampling_strategy group_by_length`"
            )

    def key_fields(self) -> dict[str, Any]:
        """As ever, but how answers are generated counts only where training generates any."""
        fields = super().key_fields()
        if not self.predict_with_generate:
            for name in _GENERATION:
                fields.pop(name, None)
        return fields

    def sampling(self) -> Sampling:
        """How answers are generated."""
        from stages.serving.settings import Sampling

        return Sampling(
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            repetition_penalty=self.repetition_penalty,
            num_beams=self.num_beams,
            stop=tuple(self.stop_words),
        )
