"""The arguments of SWIFT's seven commands, and of the flow from rows to a published model.

`SftArguments(model="org/name", dataset=["rows.jsonl"])`. Each is made of the stages that the command runs;
`arguments.for_stage(TrainArguments)` gives one stage its part.

Names that mean two things: in `SftThenExportArguments`, quant_method, quant_bits, group_size and bnb_* are the
*export's*, and temperature and max_new_tokens are those of evaluation. To train on a quantized base there as well
(QLoRA), give the load's parameters names of their own in that class (load_quant_method …), add
QuantizeOnLoadArguments to TrainArguments, and let its `for_stage` rename them for the train stage.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import model_validator

from stages.arguments.alignment import AlignmentArguments
from stages.arguments.base import Strings, option
from stages.arguments.checkpoint import Checkpoint, read_checkpoint
from stages.arguments.deployment import DeploymentArguments
from stages.arguments.evaluation import EvaluationArguments, ReportArguments
from stages.arguments.export import PushToHubSwitch
from stages.arguments.generation import GenerationArguments
from stages.arguments.inference import CheckpointArguments, InferenceArguments
from stages.arguments.lmdeploy import LmdeployArguments
from stages.arguments.merge import MergeLoraArguments, SaveArguments
from stages.arguments.model import AttentionArguments, DeviceArguments, ModelFamilyArguments
from stages.arguments.quantization import HqqArguments, QuantizeOnLoadArguments
from stages.arguments.stages import (
    DownloadArguments,
    EvaluateArguments,
    MergeArguments,
    PreprocessArguments,
    PushToHubArguments,
    QuantizeArguments,
    TokenizeArguments,
    TrainArguments,
)
from stages.arguments.training import OutputArguments, OutputDirArguments
from stages.arguments.vllm import VllmArguments

__all__ = [
    "DeployArguments",
    "EvalArguments",
    "ExportArguments",
    "InferArguments",
    "PtArguments",
    "RLHFArguments",
    "SftArguments",
    "SftThenExportArguments",
]


class _TrainingArguments(DownloadArguments, PreprocessArguments, TokenizeArguments, TrainArguments, OutputArguments):
    """What every command that trains has."""

    dataset: Strings = option(..., min_length=1)

    @model_validator(mode="after")
    def _settle_validation(self) -> Self:
        if self.eval_strategy == "no" and "eval_strategy" in self.model_fields_set and not self.val_dataset:
            self._resolve(split_dataset_ratio=0.0)
        return self


class SftArguments(_TrainingArguments, GenerationArguments, QuantizeOnLoadArguments, PushToHubSwitch):
    """Supervised fine-tuning."""

    NAME: ClassVar[str] = "sft"


class PtArguments(SftArguments):
    """Pre-training: whole texts, every token learnt."""

    NAME: ClassVar[str] = "pt"

    use_chat_template: bool = option(False)
    loss_scale: Literal["default", "last_round", "all", "react", "agentflan", "alpha_umi"] = option("all")


class RLHFArguments(SftArguments, AlignmentArguments):
    """Learning from preferences."""

    NAME: ClassVar[str] = "rlhf"


class _GivenModelArguments(CheckpointArguments, DownloadArguments):
    """A model that is named, or that a checkpoint knows."""

    model: str = option("")

    @model_validator(mode="after")
    def _settle_checkpoint(self) -> Self:
        if self.ckpt_dir is not None:
            self._follow(read_checkpoint(self.ckpt_dir))
        if not self.model and not getattr(self, "eval_url", None):
            raise ValueError("`--model` is required: a hub id or a local folder (or `--ckpt_dir` of a trained one)")
        return self

    def _follow(self, checkpoint: Checkpoint) -> None:
        path = str(checkpoint.path)
        if checkpoint.kind == "model":
            if self.model and Path(self.model) != checkpoint.path:
                raise ValueError(f"`--ckpt_dir {self.ckpt_dir}` is a whole model: drop `--model {self.model}`")
            self._resolve(model=path)
            return
        if self.adapters and self.adapters != [path]:
            raise ValueError(f"`--ckpt_dir {self.ckpt_dir}` is an adapter: drop `--adapters {' '.join(self.adapters)}`")
        if not self.model and not checkpoint.base_model:
            raise ValueError(f"`--ckpt_dir {self.ckpt_dir}` does not say which model it belongs to: add `--model`")
        self._resolve(adapters=[path], model=self.model or checkpoint.base_model)
        inherited = ("model_revision", "use_hf", "system", "torch_dtype", "attn_impl")
        for name in inherited:
            if name in type(self).model_fields and name not in self.model_fields_set and name in checkpoint.saved:
                self._resolve(**{name: checkpoint.saved[name]})


class InferArguments(
    _GivenModelArguments,
    PreprocessArguments,
    TokenizeArguments,
    DeviceArguments,
    AttentionArguments,
    ModelFamilyArguments,
    GenerationArguments,
    QuantizeOnLoadArguments,
    MergeLoraArguments,
    SaveArguments,
    VllmArguments,
    LmdeployArguments,
    InferenceArguments,
):
    """Answers to prompts."""

    NAME: ClassVar[str] = "infer"

    @model_validator(mode="after")
    def _check_engine(self) -> Self:
        if self.merge_lora and self.quant_method is not None:
            raise ValueError("`--merge_lora` needs a float model: drop `--quant_method`")
        if self.infer_backend != "pt" and self.num_beams > 1:
            raise ValueError(f"`--num_beams` above 1 needs `--infer_backend pt`, not {self.infer_backend}")
        return self


class DeployArguments(InferArguments, DeploymentArguments):
    """A server for a model."""

    NAME: ClassVar[str] = "deploy"


class EvalArguments(EvaluationArguments, DeployArguments):
    """Benchmarks for a model."""

    NAME: ClassVar[str] = "eval"

    @model_validator(mode="after")
    def _check_evaluation(self) -> Self:
        if self.eval_url is not None and (not self.model or self.api_key is None):
            raise ValueError("`--eval_url` needs `--model` (the name asked for) and `--api_key`")
        return self


class ExportArguments(
    _GivenModelArguments,
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
            if "quant_seqlen" in self.model_fields_set:
                raise ValueError(
                    f"`--max_length {self.max_length}` and `--quant_seqlen {self.quant_seqlen}` are one parameter "
                    "in export: give it once"
                )
            self._resolve(quant_seqlen=self.max_length)
        if self.quant_method in ("gptq", "awq") and not self.dataset:
            raise ValueError(f"`--quant_method {self.quant_method}` needs rows to calibrate on: add `--dataset`")
        if self.merge_lora and not self.adapters:
            raise ValueError("`--merge_lora` needs an adapter: add `--ckpt_dir` or `--adapters`")
        if len(self.adapters) > 1:
            raise ValueError(f"`--adapters` takes one adapter in export, not {len(self.adapters)}")
        return self


class SftThenExportArguments(
    _TrainingArguments,
    MergeLoraArguments,
    MergeArguments,
    QuantizeArguments,
    EvaluateArguments,
    PushToHubArguments,
    PushToHubSwitch,
    ReportArguments,
):
    """Fine-tuning, then merging, quantizing, evaluating and publishing."""

    NAME: ClassVar[str] = "sft-then-export"

    merge_lora: bool = option(True)
    """Fold the adapter into the model, as this flow always does."""

    @model_validator(mode="after")
    def _check_flow(self) -> Self:
        if not self.merge_lora:
            raise ValueError("`--merge_lora false` leaves nothing to export: use `martlet sft` to stop at the adapter")
        return self
