"""Turns pydantic's errors into Martlet's one line: `--lora_rank 0: must be at least 1`."""

from __future__ import annotations

from pydantic import BaseModel, ValidationError

__all__ = ["error_line"]


def error_line(error: ValidationError, model: type[BaseModel] | None = None) -> str:
    """One line for the first error."""
    first = error.errors(include_url=False)[0]
    return f"--{'.'.join(map(str, first['loc']))}: {first['msg']}"
