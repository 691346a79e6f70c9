"""The arguments of `martlet pt`: `PtArguments(model="org/name", dataset=["texts.jsonl"])`."""

from typing import ClassVar, Literal

from stages.arguments.base import option
from stages.arguments.commands.sft import SftArguments

__all__ = ["PtArguments"]


class PtArguments(SftArguments):
    """Pre-training: whole texts, every token learnt."""

    NAME: ClassVar[str] = "pt"

    use_chat_template: bool = option(False)
    loss_scale: Literal["default", "last_round", "all", "react", "agentflan", "alpha_umi"] = option("all")
