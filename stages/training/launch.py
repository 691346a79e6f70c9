"""Trains in several processes, which torchrun starts: `train_in_processes(arguments, inputs, out, context)`.

This process waits for them: it passes on what the first of them shows, tells them to stop, and makes one line of what
went wrong. They hold the other end of a pipe and end when this process does, however it ends. A job and the processes'
words are files in scratch/processes; see `worker.py` for the other side.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages import child, errors
from stages.context import Context
from stages.errors import Interrupted, MartletError, StageFailed, UserError
from stages.training.checkpoints import Checkpoints

if TYPE_CHECKING:
    from stages.arguments import TrainArguments
    from stages.stage import Inputs, Metrics

__all__ = [
    "ACKNOWLEDGED",
    "JOB",
    "LOG",
    "PROGRESS",
    "STOP",
    "Processes",
    "event_file",
    "torchrun",
    "train_in_processes",
    "variables",
]

JOB, LOG, PROGRESS, STOP, ACKNOWLEDGED = "job.json", "processes.log", "progress.json", "stop", "acknowledged"
POLL_SECONDS = 0.1
GRACE_SECONDS = 5.0
SECRETS = {"hub_token"}
ROOT_CAUSE = re.compile(r"Root Cause.*?rank\s*:\s*(\d+).*?exitcode\s*:\s*(-?\d+)", re.DOTALL)


def event_file(folder: Path, index: int) -> Path:
    """Where process `index` writes what it has to say, a JSON object a line."""
    return folder / f"events-{index}.jsonl"


def train_in_processes(arguments: TrainArguments, inputs: Inputs, out: Path, context: Context) -> Metrics:
    """Trains as the stage does in one process; each of the processes takes its share of every batch.

    Args:
        arguments: `nproc_per_node` says how many.
        inputs: see the stage.
        out: the first process writes the artifact there.
        context: what it shows and logs comes here.

    Raises:
        UserError: what one of them refuses.
        StageFailed: one of them broke down.
        Interrupted: told to stop; a checkpoint is there.
    """
    folder = context.scratch / "processes"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    Checkpoints(context.scratch).sweep()
    _write_job(folder, arguments, inputs, out, context)
    context.reporter.progress(0, 1, f"starting {arguments.nproc_per_node} processes")
    processes = Processes(folder, arguments.nproc_per_node or 1, context)
    processes.run(torchrun(folder, processes.size), variables(processes.size))
    metrics = processes.result()
    shutil.rmtree(folder)
    return metrics


def _write_job(folder: Path, arguments: TrainArguments, inputs: Inputs, out: Path, context: Context) -> None:
    job = {
        "arguments": arguments.model_dump(mode="json", exclude_defaults=True, exclude=SECRETS),
        "inputs": {name: str(path.absolute()) for name, path in inputs.items()},
        "out": str(out.absolute()),
        "scratch": str(context.scratch.absolute()),
        "attachments": str(context.attachments.absolute()),
    }
    (folder / JOB).write_text(json.dumps(job), encoding="utf-8")


def torchrun(folder: Path, size: int) -> list[str]:
    """The command of torchrun, which a thread ends when this process is gone; the workers have such a thread too."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["torch.distributed.run", "--nnodes=1", "--node_rank=0", f"--nproc_per_node={size}", "--max_restarts=0",
             "--rdzv_backend=static", "--master_addr=127.0.0.1", f"--master_port={port}"]  # fmt: skip
    return [sys.executable, "-P", child.__file__, *words, "-m", "stages.training.worker", str(folder)]


def variables(size: int) -> dict[str, str]:
    """The cores are shared out; the processes are on this machine, so that gloo needs no name of it."""
    root = str(Path(child.__file__).parents[1])
    paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    own = {"PYTHONPATH": paths, "PYTHONUNBUFFERED": "1"}
    defaults = {"OMP_NUM_THREADS": str(max(1, _num_cores() // size))}
    if sys.platform == "linux":
        defaults["GLOO_SOCKET_IFNAME"] = "lo"
    return defaults | os.environ | own


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Processes:
    """The processes of one run, as their parent sees them."""

    def __init__(self, folder: Path, size: int, context: Context) -> None:
        self.folder, self.size, self.context = folder, size, context
        self._read = [0] * size
        self._failures: list[tuple[int, dict[str, Any]]] = []
        self._interrupted: str | None = None
        self._metrics: dict[str, Any] | None = None
        self._warned: set[str] = set()
        self._shown = ""
        self._code = 0

    def run(self, command: list[str], environment: dict[str, str]) -> None:
        """Starts them, and listens until they have ended; none is left behind."""
        with (self.folder / LOG).open("ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # what a terminal sends to all of its processes is for this one alone
            )
        try:
            while process.poll() is None:
                self.listen()
                if self.context.stop_requested():
                    (self.folder / STOP).touch()
                try:
                    process.wait(POLL_SECONDS)
                except subprocess.TimeoutExpired:
                    continue
            self.listen()
        finally:
            _end(process)
        self._code = process.returncode

    def result(self) -> dict[str, Any]:
        """What the first process measured.

        Raises:
            MartletError: see `train_in_processes`.
        """
        refused = [failure for _, failure in self._failures if issubclass(_kind(failure), UserError)]
        if refused:
            raise _kind(refused[0])(refused[0]["message"])
        if self._interrupted is not None:
            raise Interrupted(self._interrupted)
        if self._code or self._metrics is None:
            raise StageFailed(self._worded())
        return self._metrics

    def _worded(self) -> str:
        """What broke first: when one has gone, the others lose their connection to it, and break down too."""
        self.context.logger.info("train: what the processes said is in %s", self.folder / LOG)
        log = (self.folder / LOG).read_text(encoding="utf-8", errors="replace")
        if (cause := ROOT_CAUSE.search(log)) and int(cause[2]) < 0:
            number = -int(cause[2])
            hint = ", as when memory runs out" if number == 9 else ""
            return f"train failed: process {cause[1]} of {self.size} was ended by signal {number}{hint}"
        if self._failures:
            index, failure = min(self._failures, key=lambda one: one[1]["time"])
            for line in failure["traceback"]:
                self.context.logger.error("%s", line)
            return f"train failed in process {index} of {self.size}: {failure['error']}: {failure['message']}"
        last = log.strip().splitlines()[-1:] or ["they said nothing"]
        return f"train failed: the processes ended with exit code {self._code}: {last[0].strip():.300}"

    def listen(self) -> None:
        """Takes in what they have said since."""
        for index in range(self.size):
            for event in self._events(index):
                self._take(index, event)
        progress = self.folder / PROGRESS
        if progress.is_file() and (text := progress.read_text(encoding="utf-8")) != self._shown:
            self._shown = text
            self.context.reporter.progress(*json.loads(text))

    def _events(self, index: int) -> Iterator[dict[str, Any]]:
        """The lines that are new, as far as they are whole."""
        path = event_file(self.folder, index)
        if not path.is_file():
            return
        with path.open("rb") as file:
            file.seek(self._read[index])
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._read[index] += len(line)
                yield json.loads(line)

    def _take(self, index: int, event: dict[str, Any]) -> None:
        context = self.context
        match event:
            case {"error": _}:
                self._failures.append((index, event))
            case {"interrupted": text}:
                self._interrupted = text
            case {"result": metrics}:
                self._metrics = metrics
            case {"log": text, "level": level}:
                if level < logging.WARNING or text not in self._warned:  # once, if all of them say so
                    self._warned.add(text)
                    context.logger.log(level, "%s", text)
            case {"metrics": values, "step": step}:
                context.reporter.metrics(step, values)
            case {"image": name, "path": path}:
                context.reporter.image(name, Path(path))
            case {"checkpoints": paths, "number": number}:
                context.checkpointed([Path(path) for path in paths])
                (self.folder / f"{ACKNOWLEDGED}-{number}").touch()


def _kind(failure: Mapping[str, Any]) -> type[MartletError]:
    """The class of ours that was raised; StageFailed for any other."""
    kind = getattr(errors, failure["error"], None)
    return kind if isinstance(kind, type) and issubclass(kind, MartletError) else StageFailed


def _end(process: subprocess.Popen[bytes]) -> None:
    """The end of the pipe is the end of torchrun and of the workers, which are not its children in every sense."""
    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
