"""The arguments of `martlet infer`: `InferArguments(ckpt_dir="output/m/v0-…/checkpoint-20")`."""

from typing import ClassVar, Self

from pydantic import model_validator

from stages.arguments.commands.given_model import GivenModelArguments
from stages.arguments.generation import GenerationArguments
from stages.arguments.inference import InferenceArguments
from stages.arguments.lmdeploy import LmdeployArguments
from stages.arguments.merge import MergeLoraArguments, SaveArguments
from stages.arguments.model import AttentionArguments, DeviceArguments, ModelFamilyArguments
from stages.arguments.quantization import QuantizeOnLoadArguments
from stages.arguments.stages import PreprocessArguments, TokenizeArguments
from stages.arguments.vllm import VllmArguments

__all__ = ["InferArguments"]


class InferArguments(
    GivenModelArguments,
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
