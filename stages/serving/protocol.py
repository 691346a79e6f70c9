"""What the OpenAI-compatible server is asked: `ChatRequest.model_validate({"model": …, "messages": […]})`.

Fields that a client sends and the server does not know are ignored, as OpenAI's own does; those that it knows and
cannot honour are refused.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

__all__ = ["ChatMessage", "ChatRequest", "CompletionRequest", "RequestError"]


class RequestError(Exception):
    """A request that cannot be answered, in OpenAI's terms.

    Attributes:
        status: the HTTP status.
        code: for programs: `model_not_found`.
    """

    def __init__(self, status: int, message: str, code: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class TextPart(BaseModel):
    """A part of a message; only text is taken."""

    type: str
    text: str | None = None


class ChatMessage(BaseModel):
    """One turn."""

    role: str
    content: str | list[TextPart] | None = None

    def text(self) -> str:
        """The turn's text, its parts joined.

        Raises:
            RequestError: a part that is not text.
        """
        if isinstance(self.content, list):
            for part in self.content:
                if part.type != "text":
                    raise RequestError(400, f"content of type {part.type!r} is not supported", "unsupported_content")
            return "".join(part.text or "" for part in self.content)
        return self.content or ""


class GenerationRequest(BaseModel):
    """What chat and plain completions have in common."""

    model: str | None = None
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    repetition_penalty: float | None = Field(None, gt=0)
    stop: str | list[str] | None = None
    seed: int | None = None
    n: int | None = None
    stream: bool | None = None
    logprobs: bool | int | None = None

    def check(self) -> None:
        """Refuses what would otherwise be ignored without a word.

        Raises:
            RequestError: naming the parameter.
        """
        for name, refused in (("stream", self.stream), ("logprobs", self.logprobs), ("n", (self.n or 1) > 1)):
            if refused:
                raise RequestError(400, f"{name} is not supported yet", "unsupported_parameter")

    def sampling(self) -> dict[str, Any]:
        """As `Sampling.updated` takes it."""
        names = ("temperature", "top_p", "top_k", "repetition_penalty", "seed")
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return {name: getattr(self, name) for name in names} | {
            "max_new_tokens": self.max_tokens,
            "stop": tuple(text for text in stop if text),
        }


class ChatRequest(GenerationRequest):
    """POST /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)

    def sampling(self) -> dict[str, Any]:
        """OpenAI's newer name for the limit counts too."""
        values = super().sampling()
        values["max_new_tokens"] = self.max_completion_tokens or self.max_tokens
        return values


class CompletionRequest(GenerationRequest):
    """POST /v1/completions."""

    prompt: str
