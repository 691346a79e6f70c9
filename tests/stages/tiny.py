"""Two tiny real stages, and a program that runs one: `python tests/stages/tiny.py STORE SOURCE '{"times": 3}'`.

The tests import it, and start it as a process of its own where they kill, race or signal one.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from pathlib import Path

from stages.arguments.base import Arguments, option
from stages.artifacts.store import open_store
from stages.context import Context
from stages.errors import DataError, Interrupted
from stages.run import run_stage
from stages.stage import Input, Inputs, Metrics, Prepared, Stage


class TinyArguments(Arguments):
    """What the tiny stages take."""

    times: int = option(2, ge=1)
    """How often the text is repeated."""
    learning_rate: float = 1e-4
    """Nothing depends on it but the key."""
    path: str | None = None
    """A local file, handed over by `prepare`."""
    calls: str | None = option(None, in_key=False)
    """A file that gets one line for each call of the function."""
    pause_seconds: float = option(0.0, in_key=False)
    """Time spent before each of ten steps."""
    looks: bool = option(True, in_key=False)
    """Whether the stage looks at `stop_requested`."""
    fault: str = option("", in_key=False)
    """What goes wrong."""


def prepare(arguments: TinyArguments) -> Prepared[TinyArguments]:
    """Takes the path out of the arguments."""
    paths = {} if arguments.path is None else {"text": Path(arguments.path)}
    return Prepared(arguments.model_copy(update={"path": None}), paths)


def repeat(arguments: TinyArguments, inputs: Inputs, out: Path, context: Context) -> Metrics:
    """Repeats a text in ten steps, keeping the steps in its scratch folder."""
    if arguments.calls:
        with Path(arguments.calls).open("a") as file:
            file.write(f"{os.getpid()}\n")
    if arguments.fault:
        fail(arguments.fault, inputs, out)
    state = context.scratch / "step"
    first = int(state.read_text()) if state.exists() else 0
    for step in range(first, 10):
        time.sleep(arguments.pause_seconds)
        state.with_name("next").write_text(str(step + 1))
        state.with_name("next").replace(state)
        context.reporter.progress(step + 1, 10, f"step {step + 1}/10")
        if arguments.looks and context.stop_requested():
            raise Interrupted(f"stopped after step {step + 1}")
    text = next(inputs["text"].iterdir()).read_text()
    (out / "sub").mkdir()
    (out / "sub" / "repeated.txt").write_text(text * arguments.times)
    (out / "large.bin").write_bytes(b"\0" * 2_000_000)
    with (context.attachments / "log.txt").open("a") as log:
        log.write(f"from step {first}\n")
    context.logger.info("repeated %d times", arguments.times)
    return {"times": arguments.times, "first_step": first}


def fail(fault: str, inputs: Inputs, out: Path) -> None:
    """Breaks down in one of several ways."""
    if fault == "user":
        raise DataError("no usable row in train.jsonl")
    if fault == "crash":
        raise RuntimeError("shapes do not match\nat line 3")
    if fault == "interrupt":
        raise KeyboardInterrupt
    if fault == "write input":
        file = next(inputs["text"].iterdir())
        file.chmod(0o644)
        file.write_text("changed in place")
    if fault == "pipe":
        os.mkfifo(out / "pipe")


REPEAT = Stage(
    name="repeat",
    version=1,
    arguments=TinyArguments,
    inputs={"text": Input(("files", "model"), reads=("*.txt",)), "extra": Input(("model",), required=False)},
    output="model",
    function=repeat,
    libraries=("pydantic",),
    prepare=prepare,
    can_resume=lambda scratch: (scratch / "step").exists(),
)


def nothing(arguments: TinyArguments, inputs: Inputs, out: Path, context: Context) -> Metrics:
    """Leaves its output empty, but for a folder."""
    (out / "empty").mkdir()
    return {}


NOTHING = Stage("nothing", 1, TinyArguments, {}, "report", nothing)


def announce(arguments: TinyArguments, inputs: Inputs, out: Path, context: Context) -> Metrics:
    """Has an effect elsewhere, so that a hit would be wrong."""
    (out / "publication.json").write_text("{}")
    return {}


ANNOUNCE = Stage("announce", 1, TinyArguments, {}, "publication", announce, cacheable=False)

STAGE = REPEAT  # what `stages.registry` would look for, were this a stage file


def main() -> None:
    """Runs REPEAT once and prints its result as JSON."""
    store, source, values = sys.argv[1:4]
    logging.basicConfig(level="INFO", stream=sys.stderr, format="%(message)s")
    result = run_stage(REPEAT, TinyArguments(**json.loads(values)), {"text": Path(source)}, store=open_store(store))
    print(json.dumps(result.to_json()), flush=True)


if __name__ == "__main__":
    main()
