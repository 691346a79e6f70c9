"""A conversation with a model in the terminal: `python -m stages.serving.chat output/M/v0-…/checkpoint-30-merged`."""

from __future__ import annotations

import sys
from pathlib import Path

from stages.errors import ArgumentsError, MartletError
from stages.training.cores import share_cores

__all__ = ["main"]

USAGE = "usage: python -m stages.serving.chat FOLDER [QUESTION]"


def main(argv: list[str] | None = None) -> int:
    """Answers one question, or as many as are typed; an empty line ends it."""
    words = sys.argv[1:] if argv is None else argv
    if not words or words[0] in ("-h", "--help") or len(words) > 2:
        print(USAGE)
        return 0 if words and len(words) < 3 else 2
    share_cores()
    try:
        return _chat(Path(words[0]), words[1] if len(words) == 2 else None)
    except MartletError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except (EOFError, KeyboardInterrupt):
        print()
        return 0


def _chat(folder: Path, question: str | None) -> int:
    if not (folder / "config.json").is_file():
        raise ArgumentsError(f"{folder} is not a model folder: it has no config.json")
    from stages.serving.engine import Engine, Sampling
    from stages.training.quiet import quiet

    with quiet():
        engine = Engine.open(folder)
    messages: list[dict[str, str]] = []
    while True:
        text = question if question is not None else input("> ")
        if not text.strip():
            return 0
        messages.append({"role": "user", "content": text})
        answer = engine.chat(messages, Sampling(max_new_tokens=256, temperature=0.0)).text
        messages.append({"role": "assistant", "content": answer})
        print(answer)
        if question is not None:
            return 0


if __name__ == "__main__":
    sys.exit(main())
