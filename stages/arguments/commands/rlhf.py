"""The arguments of `martlet rlhf`: `RLHFArguments(model="org/name", dataset=["pairs.jsonl"], rlhf_type="dpo")`."""

from typing import ClassVar

from stages.arguments.alignment import AlignmentArguments
from stages.arguments.commands.sft import SftArguments

__all__ = ["RLHFArguments"]


class RLHFArguments(SftArguments, AlignmentArguments):
    """Learning from preferences."""

    NAME: ClassVar[str] = "rlhf"
