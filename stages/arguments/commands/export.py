"""The arguments of `martlet export`: `ExportArguments(ckpt_dir="output/m/v0-…/checkpoint-20", merge_lora=True)`."""

from typing import ClassVar, Self

from pydantic import model_validator

from stages.arguments.base import option
from stages.arguments.commands.given_model import GivenModelArguments
from stages.arguments.export import PushToHubSwitch
from stages.arguments.generation import GenerationArguments
from stages.arguments.merge import MergeLoraArguments
from stages.arguments.model import AttentionArguments, ModelFamilyArguments
from stages.arguments.quantization import HqqArguments
from stages.arguments.stages import (
    MergeArguments,
    PreprocessArguments,
    PushToHubArguments,
    QuantizeArguments,
    TokenizeArguments,
)
from stages.arguments.training import OutputDirArguments

__all__ = ["ExportArguments"]


class ExportArguments(
    GivenModelArguments,
    PreprocessArguments,
    TokenizeArguments,
    MergeLoraArguments,
    MergeArguments,
    QuantizeArguments,
    PushToHubArguments,
    PushToHubSwitch,
    OutputDirArguments,
    AttentionArguments,
    ModelFamilyArguments,
    GenerationArguments,
    HqqArguments,
):
    """Merging, quantizing, publishing what was trained."""

    NAME: ClassVar[str] = "export"

    split_dataset_ratio: float = option(0.0, ge=0, le=1)
    """Share of each dataset that calibration does not see."""

    @model_validator(mode="after")
    def _settle_export(self) -> Self:
        if self.max_length is not None and self.max_length != self.quant_seqlen:
            if self._given("quant_seqlen"):
                raise ValueError(
                    f"`--max_length {self.max_length}` and `--quant_seqlen {self.quant_seqlen}` are one parameter "
                    "in export: give it once"
                )
            self._resolve(quant_seqlen=self.max_length)
        if self.quant_method in ("gptq", "awq") and not self.dataset:
            raise ValueError(f"`--quant_method {self.quant_method}` needs rows to calibrate on: add `--dataset`")
        if self.hqq_axis is not None:
            raise ValueError(f"`--hqq_axis {self.hqq_axis}` is for training: export quantizes by bnb or gptq, drop it")
        if self.merge_lora and not self.adapters:
            raise ValueError("`--merge_lora` needs an adapter: add `--ckpt_dir` or `--adapters`")
        if not (self.merge_lora or self.quant_method or self.push_to_hub):
            raise ValueError("nothing to export: add `--merge_lora`, `--quant_method` or `--push_to_hub`")
        if len(self.adapters) > 1:
            raise ValueError(f"`--adapters` takes one adapter in export, not {len(self.adapters)}")
        return self
