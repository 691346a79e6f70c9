"""SWIFT's deployment parameters: an OpenAI-compatible server."""

from typing import ClassVar, Self

from pydantic import model_validator

from stages.arguments.base import Arguments, option

__all__ = ["DeploymentArguments"]


class DeploymentArguments(Arguments):
    """The server."""

    GROUP: ClassVar[str] = "Deployment Parameters"

    host: str = option("0.0.0.0")
    """Address to listen on; 0.0.0.0 is every network the machine is in."""
    port: int = option(8000, ge=1, le=65535)
    """Port to listen on; the next free one if it is taken."""
    api_key: str | None = option(None)
    """Key that clients have to show."""
    ssl_keyfile: str | None = option(None)
    """Private key for HTTPS."""
    ssl_certfile: str | None = option(None)
    """Certificate for HTTPS."""
    owned_by: str = option("swift")
    """Owner shown in the list of models."""
    served_model_name: str | None = option(None)
    """Name that clients ask for; the last part of model if left out."""
    verbose: bool = option(True)
    """Log each request."""
    log_interval: int = option(20, ge=0)
    """Seconds between two lines of statistics; 0 for none."""
    max_logprobs: int = option(20, ge=0)
    """Log-probabilities of one token that a client may ask for."""

    @model_validator(mode="after")
    def _check_ssl(self) -> Self:
        if (self.ssl_keyfile is None) != (self.ssl_certfile is None):
            raise ValueError("HTTPS needs both `--ssl_keyfile` and `--ssl_certfile`: give the other one too")
        return self
