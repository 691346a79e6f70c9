"""One stage from the command line, without any orchestrator: what a container runs.

python -m stages merge --input model=sha256:ab12cd34 --input adapter=output/checkpoint-30 --json
"""

from __future__ import annotations

import difflib
import json
import os
import re
import sys
import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.errors import ArgumentsError, MartletError, UnknownReference
from stages.registry import STAGE_NAMES, get_stage
from stages.training.cores import share_cores

if TYPE_CHECKING:
    from stages.artifacts.store import Store
    from stages.request import Source
    from stages.run import StageResult
    from stages.stage import Stage

__all__ = ["main"]

USAGE = "usage: python -m stages STAGE [--input NAME=DIGEST_OR_PATH …] [--name value …]"

OPTIONS = """options of every stage:
  --input NAME=DIGEST_OR_PATH   an artifact in the store (sha256: and 8 digits or more), or a file or folder
  --output DIR                  also copy the result into this folder
  --force                       run even if the store has the result
  --json                        the result as one JSON object, stdout's last line
  --verbose                     debug lines, tracebacks among them
  --help                        this text

The store is MARTLET_STORE, a folder (by default ~/.cache/martlet) or s3://bucket/prefix, whose address and credentials
are AWS_ENDPOINT_URL, AWS_REGION, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, and whose local part is in MARTLET_CACHE."""


@dataclass
class Options:
    """What the command line says besides the stage's own arguments."""

    inputs: dict[str, str] = field(default_factory=dict)
    output: Path | None = None
    force: bool = False
    as_json: bool = False
    verbose: bool = False
    help: bool = False


def main(argv: list[str] | None = None) -> int:
    """Runs a stage and answers the exit code: 0, 1 (the stage failed), 2 (the user's error), 130 or 143 (stopped)."""
    share_cores()
    words = sys.argv[1:] if argv is None else argv
    if not words or words[0] in ("-h", "--help"):
        print(_general_help())
        return 0 if words else 2
    name, as_json = words[0], "--json" in words
    try:
        if name.startswith("-"):
            raise ArgumentsError(f"a stage comes first, then {name}. {USAGE}")
        stage = get_stage(name)
        options, rest = _split(words[1:])
        if options.help:
            print(_stage_help(stage))
            return 0
        return _run(stage, options, rest)
    except MartletError as error:
        return _failed(name, str(error), error.exit_code, as_json=as_json)


def _failed(stage: str, message: str, exit_code: int, *, as_json: bool) -> int:
    print(f"error: {message}", file=sys.stderr)
    if as_json:
        print(json.dumps({"stage": stage, "status": "failed", "error": message}), flush=True)
    return exit_code


def _run(stage: Stage[Any], options: Options, rest: list[str]) -> int:
    from stages.arguments.command_line import parse
    from stages.artifacts.store import open_store
    from stages.errors import Interrupted
    from stages.reporting import TerminalReporter, set_up_logging
    from stages.run import run_stage
    from stages.stopping import StopSignals

    arguments = parse(rest, stage.arguments, prog=f"python -m stages {stage.name}")
    output = options.output
    if output is not None and output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise ArgumentsError(f"--output {output} exists and is not an empty folder: name another")
    store = open_store()
    inputs = {name: _source(stage, name, value, store) for name, value in options.inputs.items()}
    set_up_logging(verbose=options.verbose)
    reporter = TerminalReporter(stage.name)
    with StopSignals() as stop:
        try:
            result = run_stage(
                stage,
                arguments,
                inputs,
                store=store,
                reporter=reporter,
                stop_requested=stop.is_requested,
                force=options.force,
            )
            if options.output is not None:
                store.copy_out(result.artifact, options.output)
        except (Interrupted, KeyboardInterrupt) as stopped:
            reporter.close()
            message = str(stopped) or f"{stage.name} was stopped"
            return _failed(stage.name, message, stop.exit_code, as_json=options.as_json)
        finally:
            reporter.close()
    print(json.dumps(result.to_json()) if options.as_json else _line(result, options.output), flush=True)
    return 0


def _split(words: list[str]) -> tuple[Options, list[str]]:
    """Takes what belongs to every stage out of a command line; the rest is the stage's own."""
    options = Options()
    rest: list[str] = []
    remaining = iter(words)
    for word in remaining:
        name, equals, value = word.partition("=")
        if name in ("--input", "--output"):
            value = value if equals else next(remaining, "")
            if not value or value.startswith("--"):
                raise ArgumentsError(f"{name} needs a value: {_explained(name)}")
            if name == "--output":
                options.output = Path(value)
            else:
                _add_input(options.inputs, value)
        elif word in ("--force", "--json", "--verbose"):
            setattr(options, {"--json": "as_json"}.get(word, word[2:]), True)
        elif word in ("-h", "--help"):
            options.help = True
        else:
            rest.append(word)
    return options, rest


def _explained(option: str) -> str:
    """The line of an option in the help, in one sentence."""
    line = next(line for line in OPTIONS.splitlines() if line.strip().startswith(option))
    return ", ".join(re.split(r"\s{2,}", line.strip(), maxsplit=1))


def _add_input(inputs: dict[str, str], text: str) -> None:
    name, equals, value = text.partition("=")
    if not name or not equals or not value:
        raise ArgumentsError(f"--input {text} is not NAME=DIGEST_OR_PATH")
    if name in inputs:
        raise ArgumentsError(f"--input {name} is given twice: {inputs[name]} and {value}")
    inputs[name] = value


def _source(stage: Stage[Any], name: str, value: str, store: Store) -> Source:
    """What `--input name=value` means: a digest, if it looks like one and no such path is there, else a path."""
    if name not in stage.inputs:
        close = difflib.get_close_matches(name, stage.inputs, n=1)
        hint = f"Did you mean {close[0]}? " if close else ""
        raise ArgumentsError(
            f"{stage.name} has no input {name!r}. {hint}Choose from: {', '.join(stage.inputs) or 'none'}"
        )
    if value.startswith("sha256:"):
        return store.find(value)
    path = Path(value).expanduser()
    if path.exists():
        return path
    if re.fullmatch(r"[0-9a-f]{8,64}", value):
        return store.find(value)
    raise UnknownReference(
        f"--input {name}={value}: there is no such file or folder, and it is no digest (sha256: and 8 digits or more)"
    )


def _line(result: StageResult, output: Path | None) -> str:
    from stages.artifacts.describe import describe_ref

    place = f", copied to {output}" if output else ""
    return f"{result.stage}: {result.status} in {result.seconds:.1f} s → {describe_ref(result.artifact)}{place}"


def _general_help() -> str:
    lines = [f"  {name:<14}{_summary(get_stage(name))}" for name in STAGE_NAMES]
    return "\n".join(
        [
            USAGE,
            "",
            "stages:",
            *lines,
            "",
            OPTIONS,
            "",
            "python -m stages STAGE --help lists a stage's inputs and arguments.",
        ]
    )


def _stage_help(stage: Stage[Any]) -> str:
    from stages.arguments.command_line import help_text

    lines = [f"python -m stages {stage.name}: {_summary(stage)}", "", "inputs:"]
    for name, wanted in stage.inputs.items():
        kinds = " or ".join(wanted.kinds) + ("" if wanted.required else ", optional")
        lines.append(f"  {name:<14}{kinds}{': ' + wanted.help if wanted.help else ''}")
    if not stage.inputs:
        lines.append("  none")
    program = f"python -m stages {stage.name}"
    return "\n".join([*lines, "", OPTIONS, "", help_text(stage.arguments, program)])


def _summary(stage: Stage[Any]) -> str:
    first_line = (stage.function.__doc__ or "").strip().split("\n")[0]
    return textwrap.shorten(first_line, 100, placeholder=" …")


if __name__ == "__main__":
    try:
        code = main()
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read has read enough, as in `… --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code)
