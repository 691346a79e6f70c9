"""A child process: what it tells arrives, what it raises is raised, and it never outlives the one who started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from stages.errors import DataError, Interrupted, StageFailed
from stages.processes import run_child


def write(folder: Path, code: str) -> Path:
    script = folder / "script.py"
    script.write_text(code)
    return script


def is_running(number: int) -> bool:
    try:
        state = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def wait_for(condition: Any, seconds: float = 20.0) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return bool(condition())


def test_events_arrive_in_order_and_words_go_to_the_log(tmp_path: Path) -> None:
    code = (
        "import os, sys\nfor n in range(3): os.write(int(os.environ['MARTLET_EVENTS']), b'{\"n\": %d}\\n' % n)\n"
        "print('said', sys.argv[1], os.getcwd())"
    )
    events: list[dict[str, Any]] = []
    log = tmp_path / "log"
    run_child(
        sys.executable, write(tmp_path, code), ["word"], log=log, title="it", on_event=events.append, folder=tmp_path
    )
    assert events == [{"n": 0}, {"n": 1}, {"n": 2}]
    assert log.read_text() == f"said word {tmp_path}\n"


def test_a_file_runs_without_its_folder_on_the_path(tmp_path: Path) -> None:
    """Else a neighbour called `report.py` would stand in for a library of that name."""
    (tmp_path / "json.py").write_text("raise SystemExit('the neighbour')")
    run_child(sys.executable, write(tmp_path, "import json"), [], log=tmp_path / "log", title="it")


@pytest.mark.parametrize(
    ("code", "kind", "message"),
    [
        ("from stages.errors import DataError\nraise DataError('no row')", DataError, "no row"),
        ("raise ValueError('bad shape\\nmore')", StageFailed, "it failed: ValueError: bad shape"),
        ("print('last words'); raise SystemExit(3)", StageFailed, "it ended with exit code 3: last words"),
        ("import os, signal; os.kill(os.getpid(), 9)", StageFailed, "it ended with signal 9, as when memory runs out"),
    ],
)
def test_what_goes_wrong_is_one_line(code: str, kind: type[Exception], message: str, tmp_path: Path) -> None:
    with pytest.raises(kind) as error:
        run_child(sys.executable, write(tmp_path, code), [], log=tmp_path / "log", title="it")
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_a_child_of_the_child_that_holds_the_pipe_holds_up_nobody(tmp_path: Path) -> None:
    code = "import os, time\nif os.fork() == 0:\n    time.sleep(30)"
    began = time.monotonic()
    run_child(sys.executable, write(tmp_path, code), [], log=tmp_path / "log", title="it")
    assert time.monotonic() - began < 10


def test_told_to_stop_it_ends_the_child(tmp_path: Path) -> None:
    place = tmp_path / "pid"
    code = f"import os, time\nopen({str(place)!r}, 'w').write(str(os.getpid()))\ntime.sleep(60)"
    with pytest.raises(Interrupted):
        run_child(
            sys.executable, write(tmp_path, code), [], log=tmp_path / "log", title="it", stop_requested=place.exists
        )
    assert wait_for(lambda: not is_running(int(place.read_text())))


def test_killed_without_a_word_it_takes_the_child_along(tmp_path: Path) -> None:
    place = tmp_path / "pid"
    child = write(tmp_path, f"import os, time\nopen({str(place)!r}, 'w').write(str(os.getpid()))\ntime.sleep(60)")
    parent = (
        f"import sys; from pathlib import Path; from stages.processes import run_child\n"
        f"run_child(sys.executable, Path({str(child)!r}), [], log=Path({str(tmp_path / 'log')!r}), title='it')"
    )
    process = subprocess.Popen([sys.executable, "-c", parent])
    try:
        assert wait_for(lambda: place.exists() and place.read_text().isdigit())
        number = int(place.read_text())
        assert is_running(number)
        os.kill(process.pid, signal.SIGKILL)
        assert wait_for(lambda: not is_running(number))
    finally:
        process.kill()
        process.wait()
