"""What commands share that start from a model which is named, or which a checkpoint knows."""

from pathlib import Path
from typing import Self

from pydantic import model_validator

from stages.arguments.base import option
from stages.arguments.checkpoint import Checkpoint, read_checkpoint
from stages.arguments.inference import CheckpointArguments
from stages.arguments.stages import DownloadArguments

__all__ = ["GivenModelArguments"]


class GivenModelArguments(CheckpointArguments, DownloadArguments):
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
