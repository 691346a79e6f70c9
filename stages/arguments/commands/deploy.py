"""The arguments of `martlet deploy`: `DeployArguments(model="org/name", port=8000)`."""

from typing import ClassVar

from stages.arguments.commands.infer import InferArguments
from stages.arguments.deployment import DeploymentArguments

__all__ = ["DeployArguments"]


class DeployArguments(InferArguments, DeploymentArguments):
    """A server for a model."""

    NAME: ClassVar[str] = "deploy"
