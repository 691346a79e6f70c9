"""SWIFT's parameters of the other tuners: LongLoRA, FourierFT, BOFT, VeRA, AdaLoRA, ReFT, LLaMA-Pro."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from stages.arguments.base import Arguments, JsonObject, option
from stages.arguments.template import MaxLengthArguments

__all__ = [
    "AdaloraArguments",
    "BoftArguments",
    "FourierFtArguments",
    "LlamaProArguments",
    "LongLoraArguments",
    "ReftArguments",
    "VeraArguments",
]


class FourierFtArguments(Arguments):
    """FourierFT: learns a few entries of the update's spectrum."""

    GROUP: ClassVar[str] = "FourierFt Parameters"

    fourier_n_frequency: int = option(2000, ge=1)
    """Entries of the spectrum that are learnt for each layer."""
    fourier_scaling: float = option(300.0, gt=0)
    """Strength of the update."""


class BoftArguments(Arguments):
    """BOFT: learns block-wise rotations."""

    GROUP: ClassVar[str] = "BOFT Parameters"

    boft_block_size: int = option(4, ge=0)
    """Size of a block; must divide the layer's inputs."""
    boft_block_num: int = option(0, ge=0)
    """Number of blocks, instead of their size."""
    boft_dropout: float = option(0.0, ge=0, le=1)
    """Share of blocks dropped in training."""

    @model_validator(mode="after")
    def _settle_boft_blocks(self) -> Self:
        if self.boft_block_num == 0:
            return self
        if self._given("boft_block_size") and self.boft_block_size != 0:
            raise ValueError("`--boft_block_size` and `--boft_block_num` both set the blocks: give one of them")
        self._resolve(boft_block_size=0)
        return self


def _key_or_flag(value: object) -> object:
    if isinstance(value, str):
        known: dict[str, object] = {"true": True, "false": False}
        return known.get(value.lower(), int(value) if value.isdecimal() else value)
    return value


class VeraArguments(Arguments):
    """VeRA: shares random matrices and learns two vectors."""

    GROUP: ClassVar[str] = "Vera Parameters"

    vera_rank: int = option(256, ge=1)
    """Rank of the shared matrices."""
    vera_projection_prng_key: Annotated[
        bool | int, BeforeValidator(_key_or_flag, json_schema_input_type=bool | int)
    ] = option(True)
    """Whether the shared matrices are stored; a number is the seed they are made from."""
    vera_dropout: float = option(0.0, ge=0, le=1)
    """Share of inputs dropped in training."""
    vera_d_initial: float = option(0.1)
    """Start value of the d vector."""


class LlamaProArguments(Arguments):
    """LLaMA-Pro: adds layers and trains them alone."""

    GROUP: ClassVar[str] = "LLAMAPRO Fine-tuning Parameters"

    llamapro_num_new_blocks: int = option(4, ge=1)
    """Layers that are added."""
    llamapro_num_groups: int | None = option(None, ge=1)
    """Places where they are added; one for each new layer if left out."""

    @model_validator(mode="after")
    def _check_llamapro_groups(self) -> Self:
        blocks, groups = self.llamapro_num_new_blocks, self.llamapro_num_groups
        if groups is not None and blocks % groups:
            raise ValueError(
                f"`--llamapro_num_new_blocks {blocks}` cannot be shared out over `--llamapro_num_groups {groups}`: "
                "make it a multiple"
            )
        return self


class AdaloraArguments(Arguments):
    """AdaLoRA: gives rank to the layers that need it."""

    GROUP: ClassVar[str] = "AdaLoRA Fine-tuning Parameters"

    adalora_target_r: int = option(8, ge=1)
    """Average rank at the end."""
    adalora_init_r: int = option(12, ge=1)
    """Rank of every layer at the start."""
    adalora_tinit: int = option(0, ge=0)
    """Steps before ranks begin to fall."""
    adalora_tfinal: int = option(0, ge=0)
    """Steps at the end with fixed ranks."""
    adalora_deltaT: int = option(1, ge=1)  # noqa: N815 - SWIFT's spelling
    """Steps between two changes of rank."""
    adalora_beta1: float = option(0.85, ge=0, le=1)
    """Smoothing of a weight's sensitivity."""
    adalora_beta2: float = option(0.85, ge=0, le=1)
    """Smoothing of the uncertainty of that sensitivity."""
    adalora_orth_reg_weight: float = option(0.5, ge=0)
    """Weight of the term that keeps the matrices orthogonal."""

    @model_validator(mode="after")
    def _check_adalora_ranks(self) -> Self:
        if self.adalora_target_r >= self.adalora_init_r:
            raise ValueError(
                f"`--adalora_target_r {self.adalora_target_r}` must be below `--adalora_init_r {self.adalora_init_r}`"
            )
        return self


class LongLoraArguments(MaxLengthArguments):
    """LongLoRA: attention in groups while training."""

    GROUP: ClassVar[str] = "LoRA Parameters"

    @model_validator(mode="after")
    def _check_longlora(self) -> Self:
        if getattr(self, "train_type", None) != "longlora":
            return self
        if getattr(self, "packing", False):
            raise ValueError("`--packing` puts rows together, and `--train_type longlora` cuts them: drop one of them")
        attention = getattr(self, "attn_impl", None)
        if attention not in (None, "sdpa"):
            raise ValueError(
                f"`--train_type longlora` has an attention of its own, made of sdpa: drop `--attn_impl {attention}`"
            )
        if getattr(self, "sequence_parallel_size", 1) > 1:
            raise ValueError(
                f"`--sequence_parallel_size {self.sequence_parallel_size}` gives each device a part of a row, and "  # type: ignore[attr-defined]
                "`--train_type longlora` needs a whole one: drop one of them"
            )
        return self

    def key_fields(self) -> dict[str, Any]:
        """As ever, but how long rows may be says something in training only where attention depends on it."""
        fields = super().key_fields()
        if getattr(self, "train_type", "longlora") != "longlora":
            fields.pop("max_length", None)
        return fields


class ReftArguments(Arguments):
    """ReFT: learns interventions on hidden states."""

    GROUP: ClassVar[str] = "ReFT Fine-tuning Parameters"

    reft_layers: list[Annotated[int, Field(ge=0)]] | None = option(None)
    """Layers that get an intervention, by number; all if left out."""
    reft_rank: int = option(4, ge=1)
    """Rank of the intervention."""
    reft_intervention_type: Literal[
        "NoreftIntervention",
        "LoreftIntervention",
        "ConsreftIntervention",
        "LobireftIntervention",
        "DireftIntervention",
        "NodireftIntervention",
    ] = option("LoreftIntervention")
    """Form of the intervention."""
    reft_args: JsonObject | None = option(None)
    """Further settings of the intervention (dropout, act_fn, dtype, add_bias), as a JSON object."""

    @model_validator(mode="after")
    def _settle_reft(self) -> Self:
        if getattr(self, "train_type", None) == "reft" and getattr(self, "gradient_checkpointing", False):
            if "gradient_checkpointing" in self.model_fields_set:
                raise ValueError(
                    "`--gradient_checkpointing true` does not go with `--train_type reft`: drop one of them"
                )
            self._resolve(gradient_checkpointing=False)
        return self
