"""What each of the eight stages is told: `TrainArguments(learning_rate=2e-4)`."""

from typing import Any, ClassVar, Self

from pydantic import model_validator

from stages.arguments.acceleration import LigerArguments, TorchAccArguments
from stages.arguments.base import option
from stages.arguments.data import DataSeedArguments, DatasetArguments, RowWorkArguments
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
)
from stages.arguments.neftune import LisaArguments, NeftuneArguments
from stages.arguments.template import (
    LengthArguments,
    LossScaleArguments,
    SequenceParallelArguments,
    TemplateArguments,
)
from stages.arguments.training import (
    CheckModelArguments,
    EvalBatchArguments,
    LossArguments,
    PredictArguments,
    ResumeArguments,
    TokenizeModeArguments,
    TrainerDefaultsArguments,
)
from stages.arguments.tuners import (
    AdaloraArguments,
    BoftArguments,
    FourierFtArguments,
    LlamaProArguments,
    ReftArguments,
    VeraArguments,
)

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


class DownloadArguments(ModelArguments, CheckModelArguments):
    """Which model to fetch."""

    NAME: ClassVar[str] = "download"


class PreprocessArguments(DatasetArguments, HubArguments):
    """Which rows to read, and how to split them."""

    NAME: ClassVar[str] = "preprocess"


class TokenizeArguments(
    TemplateArguments, LengthArguments, LossScaleArguments, TokenizeModeArguments, RowWorkArguments
):
    """How rows become tokens and labels."""

    NAME: ClassVar[str] = "tokenize"


class TrainArguments(
    TunerArguments,
    LoraArguments,
    TrainerDefaultsArguments,
    NeftuneArguments,
    ResumeArguments,
    DeviceArguments,
    AttentionArguments,
    ModelFamilyArguments,
    DataSeedArguments,
    LossArguments,
    PredictArguments,
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
