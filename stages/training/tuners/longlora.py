"""LongLoRA (arXiv 2309.12307): LoRA on rows that are long, at the cost of shorter ones: `--train_type longlora`.

In training, attention reaches over a quarter of the context: see `shifted_attention`. Beside the matrices, embeddings
and norms are trained, without which the paper finds that long contexts are not learnt. What comes of it is a PEFT
folder like LoRA's, and attends as the base model does. An output head that shares its weights with the embedding stays
as it was, as it does with `--modules_to_save embed_tokens`.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from stages.errors import ArgumentsError, ModelError
from stages.training.tuners.lora import LoraTuner

if TYPE_CHECKING:
    from torch import nn

__all__ = ["LongLoraTuner"]

GROUPS = 4
"""Of a context, as in the paper and in SWIFT."""
KINDS = ("llama", "mistral", "qwen2", "qwen3", "smollm3")
"""Models made of Llama's layers: attention is a function of transformers' AttentionInterface, and causal."""


@dataclass(frozen=True)
class LongLoraTuner(LoraTuner):
    """Trains low-rank matrices, embeddings and norms, with attention in groups."""

    METHOD: ClassVar[str] = "LongLoRA"

    def check(self, skeleton: nn.Module) -> None:
        """Refuses models that are not like Llama, and a context that cannot be cut into groups."""
        super().check(skeleton)
        config: Any = skeleton.config
        kinds = getattr(config, "layer_types", None)
        windowed = bool(set(kinds) - {"full_attention"}) if kinds else getattr(config, "sliding_window", None)
        if config.model_type not in KINDS or windowed:
            kind = f"{config.model_type} with a sliding window" if windowed else config.model_type
            raise ModelError(
                f"`--train_type longlora` is for models like Llama ({', '.join(KINDS)}) with full attention, and this "
                f"one is {kind}: give `--train_type lora`"
            )
        self._context(config)

    def prepare(self, model: Any) -> Any:
        """See `LoraTuner`; attention in training is over a quarter of the context."""
        from stages.training.shifted_attention import register

        context = self._context(model.config)
        model.set_attn_implementation(register(context // GROUPS, context))
        with warnings.catch_warnings():
            # peft would have a head that shares its weights with the embedding trained too; merge knows that it is not.
            warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`", UserWarning)
            return super().prepare(model)

    def saved_modules(self) -> Sequence[str]:
        """Embeddings and norms too."""
        return [*self.arguments.modules_to_save, "all-embedding", "all-norm"]

    def _context(self, config: Any) -> int:
        """Tokens of the longest row: what it was tokenized for."""
        given = self.arguments.max_length
        context: int = given or config.max_position_embeddings
        if context % (2 * GROUPS):
            flag = f"`--max_length {given}`" if given else f"the model's context of {context} tokens"
            raise ArgumentsError(
                f"{flag} cannot be cut into {GROUPS} groups that LongLoRA shifts by half: give a `--max_length` that "
                f"is a multiple of {2 * GROUPS}"
            )
        return context
