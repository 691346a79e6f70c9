"""The store after kill -9 at any moment: what counts is whole, what is not whole does not count."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

from stages.artifacts.store import LocalStore
from stages.artifacts.verify import verify
from stages.run import run_stage

ROUNDS = 10

# Runs a stage with one key after the other for as long as it lives.
LOOP = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[4])
from tiny import REPEAT, TinyArguments
from stages.artifacts.store import open_store
from stages.run import run_stage
store = open_store(sys.argv[1])
print("ready", flush=True)
for times in range(int(sys.argv[3]), 401):
    run_stage(REPEAT, TinyArguments(times=times), {"text": Path(sys.argv[2])}, store=store)
"""


def killed(store: Path, text: Path, first: int, more: int, seconds: float, tiny: ModuleType) -> None:
    """Kills the loop some time after it has done `more` keys."""
    folder = str(Path(str(tiny.__file__)).parent)
    command = [sys.executable, "-c", LOOP, str(store), str(text), str(first), folder]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    deadline = time.monotonic() + 60
    while len(list((store / "actions").glob("*"))) < first - 1 + more and time.monotonic() < deadline:
        time.sleep(0.002)
    time.sleep(seconds)
    process.kill()
    process.communicate()


def test_kill_at_random_moments(tmp_path: Path, text_file: Path, tiny: ModuleType) -> None:
    moments = random.Random(time.time_ns())  # another sample each time: a failure names its moment
    root = tmp_path / "artifacts"
    done = 0
    for _ in range(ROUNDS):
        more, seconds = moments.randint(0, 2), moments.uniform(0.0, 0.06)
        killed(root, text_file, done + 1, more, seconds, tiny)
        store = LocalStore(root)
        # A folder killed between its making and its locking is empty, and swept when it is old.
        assert [path for folder in (root / "tmp").iterdir() for path in folder.iterdir()] == [], seconds
        assert verify(store).problems == (), seconds
        keys = [path.stem for path in (root / "actions").glob("*.json")]
        assert all(store.action(key) for key in keys), seconds
        assert len(keys) >= done + more, seconds
        done = len(keys)
    result = run_stage(tiny.REPEAT, tiny.TinyArguments(times=done + 1), {"text": text_file}, store=store)
    fresh = LocalStore(tmp_path / "fresh")
    undisturbed = run_stage(tiny.REPEAT, tiny.TinyArguments(times=done + 1), {"text": text_file}, store=fresh)
    assert result.artifact == undisturbed.artifact


def test_what_a_dead_process_left_is_swept_and_what_a_living_one_has_is_not(tmp_path: Path) -> None:
    root = tmp_path / "artifacts"
    code = (
        "import sys, time; from stages.artifacts.store import open_store; store = open_store(sys.argv[1]);"
        "store.workspace.file().write_text('half'); print('ready', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(root)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    LocalStore(root)
    assert [path.read_text() for path in (root / "tmp").glob("*/*[!k]")] == ["half"]
    process.kill()
    process.communicate()
    LocalStore(root)
    assert list((root / "tmp").iterdir()) == []


def test_a_process_leaves_nothing_behind(tmp_path: Path, text_file: Path, tiny: ModuleType) -> None:
    root = tmp_path / "artifacts"
    command = [sys.executable, str(tiny.__file__), str(root), str(text_file), "{}"]
    subprocess.run(command, check=True, capture_output=True)
    for name in ("tmp", "leases", "scratch"):
        assert list((root / name).iterdir()) == [], name


def test_a_work_folder_is_removed(store: LocalStore) -> None:
    with store.work_folder() as folder:
        (folder / "x").write_text("x")
        assert folder.stat().st_dev == store.root.stat().st_dev
    assert not folder.exists()


def test_processes_that_make_one_store_together(tmp_path: Path, text_file: Path, tiny: ModuleType) -> None:
    """Each with a key of its own, on a place where there is nothing yet."""
    root = tmp_path / "deep" / "artifacts"
    commands = [
        [sys.executable, str(tiny.__file__), str(root), str(text_file), f'{{"times": {number}}}']
        for number in range(1, 7)
    ]
    processes = [
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) for command in commands
    ]
    errors = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * 6, errors
    store = LocalStore(root)
    assert verify(store).problems == ()
    assert len(list(store.actions_of("repeat"))) == 6
