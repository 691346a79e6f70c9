"""SWIFT's evaluation parameters: which benchmarks, how much of them, against what."""

from typing import ClassVar

from stages.arguments.base import Arguments, Strings, option

__all__ = ["BenchmarkArguments", "EvaluationArguments", "ReportArguments"]


class BenchmarkArguments(Arguments):
    """What a model is measured with."""

    GROUP: ClassVar[str] = "Evaluation Parameters"

    eval_dataset: Strings = option([])
    """Benchmarks: general_qa:PATH or general_mcq:PATH with a local folder or file."""
    eval_limit: int | None = option(None, ge=1)
    """Rows of each benchmark at most; all if left out."""


class ReportArguments(Arguments):
    """Where results go."""

    GROUP: ClassVar[str] = "Evaluation Parameters"

    eval_output_dir: str = option("eval_output", in_key=False)
    """Folder for results."""


class EvaluationArguments(BenchmarkArguments, ReportArguments):
    """How a server is measured."""

    GROUP: ClassVar[str] = "Evaluation Parameters"

    temperature: float = option(0.0, ge=0)
    """0 takes the likeliest token."""
    verbose: bool = option(False)
    """Log each request that the measured server gets."""
    max_batch_size: int | None = option(None, ge=1)
    """Requests at a time; 256 for text and 16 for multimodal models if left out."""
    eval_url: str | None = option(None)
    """A running server to measure instead of starting one; needs model and api_key."""
