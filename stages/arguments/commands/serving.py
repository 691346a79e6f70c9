"""The arguments of the commands that generate: `InferArguments(ckpt_dir="output/m/v0-…/checkpoint-20")`."""

from typing import ClassVar, Self

from pydantic import model_validator

from stages.arguments.commands.given_model import GivenModelArguments
from stages.arguments.deployment import DeploymentArguments
from stages.arguments.evaluation import EvaluationArguments
from stages.arguments.generation import GenerationArguments
from stages.arguments.inference import InferenceArguments
from stages.arguments.lmdeploy import LmdeployArguments
from stages.arguments.merge import MergeLoraArguments, SaveArguments
from stages.arguments.model import AttentionArguments, DeviceArguments, ModelFamilyArguments
from stages.arguments.quantization import QuantizeOnLoadArguments
from stages.arguments.stages import PreprocessArguments, TokenizeArguments
from stages.arguments.vllm import VllmArguments

__all__ = ["DeployArguments", "EvalArguments", "InferArguments"]


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
