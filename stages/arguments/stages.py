"""What each of the eight stages is told: `TrainArguments(learning_rate=2e-4)`."""

from typing import Any, ClassVar, Self

from pydantic import model_validator

from stages.arguments.acceleration import LigerArguments, ProcessArguments, TorchAccArguments
from stages.arguments.base import option
from stages.arguments.conflicts import ConflictArguments
from stages.arguments.data import DataSeedArguments, DatasetArguments, PluginArguments, RowWorkArguments
from stages.arguments.evaluation import BenchmarkArguments
from stages.arguments.export import ExportQuantizationArguments, PushArguments
from stages.arguments.galore import GaloreArguments
from stages.arguments.generation import SamplingArguments
from stages.arguments.lora import LoraArguments, LoraPlusArguments, TunerArguments
from stages.arguments.merge import SaveArguments
from stages.arguments.model import (
    AttentionArguments,
    DeviceArguments,
    HubArguments,
    ModelArguments,
    ModelFamilyArguments,
    RopeArguments,
)
from stages.arguments.neftune import LisaArguments, NeftuneArguments
from stages.arguments.quantization import QuantizeOnLoadArguments
from stages.arguments.template import (
    LOSS_SCALES,
    LengthArguments,
    LossScaleArguments,
    MaxLengthArguments,
    SequenceParallelArguments,
    TemplateArguments,
)
from stages.arguments.training import (
    CheckModelArguments,
    EvalBatchArguments,
    LossArguments,
    PreflightArguments,
    ResumeArguments,
    TokenizeModeArguments,
    TrainerDefaultsArguments,
)
from stages.arguments.tuners import (
    AdaloraArguments,
    BoftArguments,
    FourierFtArguments,
    LlamaProArguments,
    LongLoraArguments,
    ReftArguments,
    VeraArguments,
)
from stages.arguments.validation import ValidationArguments

__all__ = [
    "DownloadArguments",
    "EvaluateArguments",
    "MergeArguments",
    "PreprocessArguments",
    "PushToHubArguments",
    "QuantizeArguments",
    "TokenizeArguments",
    "TrainArguments",
]


class DownloadArguments(MaxLengthArguments, ModelArguments, RopeArguments, CheckModelArguments):
    """Which model to fetch; its positions are stretched here, so that every later stage sees the same model."""

    NAME: ClassVar[str] = "download"

    @model_validator(mode="after")
    def _settle_length(self) -> Self:
        if self.rope_scaling is not None and self.max_length is None:
            raise ValueError("`--rope_scaling` stretches positions up to `--max_length`: add it")
        if self.NAME == "download" and self.rope_scaling is None:
            self._resolve(max_length=None)  # nothing depends on it, the key least of all
        return self


class PreprocessArguments(DatasetArguments, HubArguments):
    """Which rows to read, and how to split them."""

    NAME: ClassVar[str] = "preprocess"


class TokenizeArguments(
    TemplateArguments, LengthArguments, LossScaleArguments, TokenizeModeArguments, RowWorkArguments
):
    """How rows become tokens and labels."""

    NAME: ClassVar[str] = "tokenize"

    @model_validator(mode="after")
    def _check_loss_scale(self) -> Self:
        unknown = [name for name in self.loss_scale.split("+") if name not in LOSS_SCALES]
        if unknown and not self.custom_register_path:
            raise ValueError(
                f"`--loss_scale {self.loss_scale:.60}`: unknown {unknown[0]!r:.30}. "
                f"Choose from: {', '.join(LOSS_SCALES)}; join them by +"
            )
        return self


class TrainArguments(
    ConflictArguments,  # the first is checked last
    PluginArguments,
    TunerArguments,
    LoraArguments,
    LongLoraArguments,
    TrainerDefaultsArguments,
    NeftuneArguments,
    ResumeArguments,
    PreflightArguments,
    QuantizeOnLoadArguments,
    DeviceArguments,
    AttentionArguments,
    ModelFamilyArguments,
    DataSeedArguments,
    LossArguments,
    ValidationArguments,
    LoraPlusArguments,
    FourierFtArguments,
    BoftArguments,
    VeraArguments,
    GaloreArguments,
    LisaArguments,
    LlamaProArguments,
    AdaloraArguments,
    ReftArguments,
    LigerArguments,
    TorchAccArguments,
    ProcessArguments,
    SequenceParallelArguments,
):
    """What is trained, and how."""

    NAME: ClassVar[str] = "train"

    @model_validator(mode="after")
    def _check_device_map(self) -> Self:
        if self.deepspeed is not None and self.device_map is not None:
            raise ValueError("`--deepspeed` places the weights itself: drop `--device_map`")
        return self


class MergeArguments(SaveArguments):
    """How the merged model is stored."""

    NAME: ClassVar[str] = "merge"


class QuantizeArguments(ExportQuantizationArguments, SaveArguments, DeviceArguments, DataSeedArguments):
    """How a model is quantized; where only `--quant_bits` is given, by bitsandbytes, which needs no rows."""

    NAME: ClassVar[str] = "quantize"

    @model_validator(mode="before")
    @classmethod
    def _choose_method(cls, given: Any) -> Any:
        if cls.NAME != "quantize" or not isinstance(given, dict) or given.get("quant_bits") is None:
            return given
        return given if given.get("quant_method") else {**given, "quant_method": "bnb"}

    @model_validator(mode="after")
    def _check_method(self) -> Self:
        if self.NAME == "quantize" and self.quant_method is None:
            raise ValueError("quantize needs `--quant_method`: choose from bnb, gptq, awq")
        return self


class EvaluateArguments(
    BenchmarkArguments,
    TemplateArguments,
    EvalBatchArguments,
    DeviceArguments,
    AttentionArguments,
    SamplingArguments,
):
    """What a model is measured with."""

    NAME: ClassVar[str] = "evaluate"

    temperature: float = option(0.0, ge=0)
    """0 takes the likeliest token."""


class PushToHubArguments(HubArguments, PushArguments):
    """Where to publish."""

    NAME: ClassVar[str] = "push_to_hub"

    @model_validator(mode="after")
    def _check_repository(self) -> Self:
        if self.NAME == "push_to_hub" and not self.hub_model_id:
            raise ValueError("push_to_hub needs `--hub_model_id`: give group/name")
        return self
