"""What of training's parameters does not go together: a parameter that nothing would read, two that contradict.

`TrainArguments(train_type="full", lora_rank=16)` raises "`--lora_rank 16` is for `--train_type lora` …".
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import model_validator

from stages.arguments.base import Arguments
from stages.arguments.message import shorten

__all__ = ["READERS", "ConflictArguments"]

_ADAPTERS = ("lora", "longlora", "adalora", "vera", "boft", "fourierft", "adapter")
_LORA = ("lora", "longlora")

READERS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("target_modules", "target_regex", "modules_to_save", "lora_bias_trainable"), _ADAPTERS),
    **dict.fromkeys(("lora_alpha", "lora_dropout"), (*_LORA, "adalora")),
    **dict.fromkeys(("lora_rank", "lora_dtype", "init_lora_weights", "use_dora", "use_rslora"), _LORA),
    **dict.fromkeys(("vera_rank", "vera_projection_prng_key", "vera_dropout", "vera_d_initial"), ("vera",)),
    **dict.fromkeys(("boft_block_size", "boft_block_num", "boft_dropout"), ("boft",)),
    **dict.fromkeys(("fourier_n_frequency", "fourier_scaling"), ("fourierft",)),
    **dict.fromkeys(("llamapro_num_new_blocks", "llamapro_num_groups"), ("llamapro",)),
    **dict.fromkeys(("reft_layers", "reft_rank", "reft_intervention_type", "reft_args"), ("reft",)),
    **dict.fromkeys(
        (
            "adalora_target_r",
            "adalora_init_r",
            "adalora_tinit",
            "adalora_tfinal",
            "adalora_deltaT",
            "adalora_beta1",
            "adalora_beta2",
            "adalora_orth_reg_weight",
        ),
        ("adalora",),
    ),
}
"""By parameter the values of `train_type` under which it is acted upon."""

_LOW_RANK = ("galore", "apollo")
_NEEDED_KWARGS = {
    "cosine_with_min_lr": ("min_lr", "min_lr_rate"),
    "cosine_warmup_with_min_lr": ("min_lr", "min_lr_rate"),
    "warmup_stable_decay": ("num_decay_steps",),
}
"""What a scheduler cannot do without, of which one is enough."""


class ConflictArguments(Arguments):
    """The checks; a class of its own, since they are about parameters of many groups."""

    GROUP: ClassVar[str] = ""

    @model_validator(mode="before")
    @classmethod
    def _check_warmup_ratio(cls, given: Any) -> Any:
        """Under its old name the share of steps has no other meaning from 1 on."""
        if isinstance(given, Mapping) and given.get("warmup_ratio") is not None:
            try:
                share = float(given["warmup_ratio"])
            except (TypeError, ValueError):
                return given  # said by the field itself
            if share >= 1:
                raise ValueError(
                    f"`--warmup_ratio {share:g}` is a share of all steps: give one below 1, or `--warmup_steps`"
                )
        return given

    @model_validator(mode="after")
    def _check_readers(self) -> Self:
        kind = self._value("train_type")
        for name, readers in READERS.items():
            if kind not in readers and self._given(name) and self._value(name):  # what is turned off anyway is off
                others = " or ".join(f"`--train_type {reader}`" for reader in readers[:3])
                more = ", among others" if len(readers) > 3 else ""
                raise ValueError(
                    f"`--{name} {self._text(name)}` is for {others}{more}, and `--train_type {kind}` has "
                    "no such thing: drop one of them"
                )
        return self

    @model_validator(mode="after")
    def _check_switches(self) -> Self:
        if self._given("lisa_step_interval") and not self._value("lisa_activated_layers"):
            raise ValueError(
                f"`--lisa_step_interval {self._value('lisa_step_interval')}` is a part of LISA: add "
                "`--lisa_activated_layers`, such as 2"
            )
        for name in type(self).model_fields:
            if name.startswith("galore_") and self._given(name) and not self._value("use_galore"):
                raise ValueError(f"`--{name} {self._text(name)}` is a part of GaLore: add `--use_galore true`")
        if self._value("use_galore") and self._value("optim") not in ("adamw_torch", "adamw_torch_fused"):
            raise ValueError(f"`--use_galore` works with AdamW: drop `--optim {self._value('optim')}`")
        if self._given("gradient_checkpointing_kwargs") and not self._value("gradient_checkpointing"):
            raise ValueError(
                "`--gradient_checkpointing_kwargs` is about what `--gradient_checkpointing false` turns off: drop one "
                "of them"
            )
        if self._value("use_cache") and self._value("gradient_checkpointing"):
            raise ValueError(
                "`--use_cache` keeps what `--gradient_checkpointing` computes again: drop it, or add "
                "`--gradient_checkpointing false`"
            )
        return self

    @model_validator(mode="after")
    def _check_optimizer(self) -> Self:
        optim = self._value("optim")
        if self._given("optim_target_modules") and not any(kind in optim for kind in _LOW_RANK):
            raise ValueError(
                f"`--optim_target_modules {self._text('optim_target_modules')}` is for optimizers in low "
                f"rank, and `--optim {optim}` is none: drop it (`--use_galore` has `--galore_target_modules`)"
            )
        for part in (self._value("optim_args") or "").split(","):
            if part.strip() and part.count("=") != 1:
                raise ValueError(f"--optim_args {self._text('optim_args')}: write name=value, name=value")
        return self

    @model_validator(mode="after")
    def _check_schedule(self) -> Self:
        if self._value("max_steps") == 0:
            raise ValueError("--max_steps 0: give at least 1, or -1 to leave it to `--num_train_epochs`")
        kind = self._value("lr_scheduler_type")
        needed = _NEEDED_KWARGS.get(kind, ())
        settings: Mapping[str, Any] = self._value("lr_scheduler_kwargs") or {}
        if needed and not any(name in settings for name in needed):
            example = {"num_decay_steps": '{"num_decay_steps": 100}'}.get(needed[0], '{"min_lr": 1e-6}')
            raise ValueError(
                f"`--lr_scheduler_type {kind}` needs {' or '.join(needed)} in `--lr_scheduler_kwargs`: give '{example}'"
            )
        if "min_lr" in settings and "min_lr_rate" in settings:
            raise ValueError("`--lr_scheduler_kwargs`: min_lr and min_lr_rate are one setting: give one of them")
        return self

    @model_validator(mode="after")
    def _check_best(self) -> Self:
        if not self._value("load_best_model_at_end"):
            return self
        if self._value("save_strategy") == "no":
            raise ValueError(
                "`--load_best_model_at_end` chooses among checkpoints, and `--save_strategy no` writes none: drop one "
                "of them"
            )
        save, measure = self._value("save_steps"), self._value("eval_steps") or self._value("save_steps")
        by_steps = self._value("save_strategy") == "steps" == self._value("eval_strategy")
        if by_steps and save >= 1 and measure >= 1 and save % measure:
            raise ValueError(
                f"`--load_best_model_at_end` needs a validation at each checkpoint: make `--save_steps {save:g}` a "
                f"multiple of `--eval_steps {measure:g}`"
            )
        return self

    @model_validator(mode="after")
    def _check_loader(self) -> Self:
        workers = self._value("dataloader_num_workers")
        for name in (
            "dataloader_prefetch_factor",
            "dataloader_persistent_workers",
            "dataloader_multiprocessing_context",
        ):
            if not workers and self._given(name):
                raise ValueError(
                    f"`--{name} {self._text(name)}` is about processes that load batches: add "
                    "`--dataloader_num_workers`, such as 2"
                )
        return self

    @model_validator(mode="after")
    def _check_adalora_schedule(self) -> Self:
        if self._value("train_type") != "adalora" or self._value("max_steps") < 1:
            return self
        steps, first, last = (self._value(name) for name in ("max_steps", "adalora_tinit", "adalora_tfinal"))
        if max(first, 1) + last >= steps:
            raise ValueError(
                f"`--adalora_tinit {first}` and `--adalora_tfinal {last}` leave none of the run's {steps} steps "
                "for ranks to fall in: lower one of them"
            )
        return self

    @model_validator(mode="after")
    def _check_values(self) -> Self:
        """Values that transformers does not look at, or that leave nothing."""
        for name in ("lora_dropout", "vera_dropout", "boft_dropout"):
            if self._value(name) == 1:
                raise ValueError(f"--{name} 1 drops everything, and nothing is learnt: give a share below 1")
        for name in ("eval_accumulation_steps", "torch_empty_cache_steps"):
            if self._value(name) is not None and self._value(name) < 1:
                raise ValueError(f"--{name} {self._value(name)}: must be at least 1")
        seen = str(self._value("include_num_input_tokens_seen")).lower()
        if seen not in ("no", "all", "non_padding", "true", "false"):
            raise ValueError(f"--include_num_input_tokens_seen {seen}: choose from no, all, non_padding")
        for name, fixed in (("label_names", "labels"), ("length_column_name", "length")):
            if self._given(name) and self._value(name) not in (fixed, [fixed]):
                raise ValueError(f"--{name} {self._text(name)}: rows have `{fixed}`, always: drop it")
        if "none" in self._value("report_to") and len(self._value("report_to")) > 1:
            others = [name for name in self._value("report_to") if name != "none"]
            raise ValueError(
                f"`--report_to none {shorten(others)}`: none goes with nothing else: drop it, or the others"
            )
        return self

    def _text(self, name: str) -> str:
        """A value as it would be typed."""
        value = self._value(name)
        return str(value).lower() if isinstance(value, bool) else shorten(value)

    def _value(self, name: str) -> Any:
        return getattr(self, name)
