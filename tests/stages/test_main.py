"""`python -m stages`: a stage from the command line, in this process and as one of its own."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from stages.__main__ import main
from stages.artifacts.store import LocalStore, open_store

# The tiny stage stands where a stage file would: `merge` is as good a name as any.
AS_MERGE = """
import sys
sys.path.insert(0, sys.argv.pop(1))
import tiny
sys.modules["stages.merge"] = tiny
from stages.__main__ import main
sys.exit(main())
"""


@pytest.fixture
def as_merge(tiny: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "stages.merge", tiny)


@pytest.fixture(autouse=True)
def own_logging() -> Iterator[None]:
    """A command sets up the log lines of its process; here that process goes on to other tests."""
    logger = logging.getLogger("martlet")
    before = logger.level, logger.propagate, list(logger.handlers)
    yield
    logger.level, logger.propagate, logger.handlers = before


@pytest.fixture
def default_store(own_store: Path) -> LocalStore:
    store = open_store()
    assert isinstance(store, LocalStore)
    assert store.root == own_store
    return store


def start(tiny: ModuleType, *argv: str) -> subprocess.Popen[str]:
    folder = str(Path(str(tiny.__file__)).parent)
    return subprocess.Popen(
        [sys.executable, "-c", AS_MERGE, folder, *argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def last_json(out: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(out.splitlines()[-1])
    return record


@pytest.mark.usefixtures("as_merge")
def test_a_stage_and_then_a_hit(text_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["merge", "--input", f"text={text_file}", "--times", "3", "--json"]) == 0
    first = last_json(capsys.readouterr().out)
    assert (first["stage"], first["status"], first["metrics"]["times"]) == ("repeat", "ran", 3)
    assert set(first["artifact"]) == {"kind", "digest", "size"}
    assert main(["merge", "--times=3", f"--input=text={text_file}", "--json"]) == 0
    second = last_json(capsys.readouterr().out)
    assert (second["status"], second["key"], second["artifact"]) == ("cached", first["key"], first["artifact"])
    assert main(["merge", "--times=3", f"--input=text={text_file}", "--json", "--force"]) == 0
    assert last_json(capsys.readouterr().out)["status"] == "ran"


@pytest.mark.usefixtures("as_merge")
def test_a_line_for_people(text_file: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "here"
    assert main(["merge", "--input", f"text={text_file}", "--output", str(out)]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("repeat: ran in 0.")
    assert printed.out.endswith(f"(2.0 MB), copied to {out}\n")
    assert "\x1b" not in printed.err
    assert "\r" not in printed.err
    assert (out / "sub" / "repeated.txt").read_text() == "swift\n" * 2


@pytest.mark.usefixtures("as_merge")
def test_an_input_by_digest(
    text_file: Path, capsys: pytest.CaptureFixture[str], default_store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = default_store.take_in(text_file)
    keys = set()
    monkeypatch.chdir(text_file.parent)
    for value in (ref.digest, ref.digest[:15], ref.digest[7:20], str(text_file), text_file.name):
        assert main(["merge", "--input", f"text={value}", "--json"]) == 0
        keys.add(last_json(capsys.readouterr().out)["key"])
    assert len(keys) == 1


@pytest.mark.usefixtures("as_merge")
@pytest.mark.parametrize(
    ("argv", "exit_code", "message"),
    [
        (["megre"], 2, "unknown stage 'megre'. Choose from: download, "),
        (["--input", "text=x"], 2, "a stage comes first, then --input"),
        (["merge"], 2, "repeat needs its input text (--input text=DIGEST_OR_PATH)"),
        (["merge", "--input"], 2, "--input needs a value: --input NAME=DIGEST_OR_PATH, an artifact in the store"),
        (["merge", "--input", "--times", "3"], 2, "--input needs a value"),
        (["merge", "--input", "text"], 2, "--input text is not NAME=DIGEST_OR_PATH"),
        (["merge", "--output"], 2, "--output needs a value: --output DIR, also copy the result into this folder"),
        (["merge", "--input", "txt=x"], 2, "repeat has no input 'txt'. Did you mean text? Choose from: text, extra"),
        (["merge", "--input", "text=/no/where"], 2, "--input text=/no/where: there is no such file or folder"),
        (["merge", "--input", "text=sha256:0123456789"], 2, "no artifact sha256:0123456789 in the store"),
        (["merge", "--input", "text=sha256:01"], 2, "'sha256:01' is not a digest"),
        (["merge", "--input", "text=a", "--input", "text=b"], 2, "--input text is given twice: a and b"),
        (["merge", "--tmies", "3"], 2, "Did you mean --times?"),
        (["merge", "--times", "x"], 2, "times"),
        (["merge", "--input", "text=FILE", "--fault", "user"], 2, "no usable row in train.jsonl"),
        (["merge", "--input", "text=FILE", "--fault", "crash"], 1, "repeat failed: RuntimeError: shapes do not match"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_errors_are_one_line(
    argv: list[str], exit_code: int, message: str, text_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word.replace("FILE", str(text_file)) for word in argv]
    assert main(words) == exit_code
    printed = capsys.readouterr()
    errors = [line for line in printed.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert "Traceback" not in printed.err
    assert printed.out == ""


@pytest.mark.usefixtures("as_merge")
def test_errors_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["merge", "--json"]) == 2
    record = last_json(capsys.readouterr().out)
    assert (record["stage"], record["status"]) == ("merge", "failed")
    assert record["error"].startswith("repeat needs its input text")


@pytest.mark.usefixtures("as_merge")
def test_verbose_shows_the_traceback(text_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["merge", "--input", f"text={text_file}", "--fault", "crash", "--verbose"]) == 1
    assert "at line 3" in capsys.readouterr().err


@pytest.mark.usefixtures("as_merge")
def test_help_of_a_stage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["merge", "--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("python -m stages repeat: Repeats a text in ten steps")
    for words in ("  text          files or model\n", "  extra         model, optional\n", "--force"):
        assert words in out


def test_help_of_a_real_stage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["download", "--help"]) == 0
    out = capsys.readouterr().out
    assert "  source        files" in out
    assert "--model TEXT" in out


def test_no_argument_of_a_stage_hides_an_option_of_every_stage() -> None:
    from stages.registry import STAGE_NAMES, get_stage

    options = {"input", "output", "force", "json", "verbose", "help"}
    for name in STAGE_NAMES:
        assert not options & set(get_stage(name).arguments.model_fields), name


@pytest.mark.parametrize(("argv", "exit_code"), [([], 2), (["--help"], 0), (["-h"], 0)])
def test_general_help(argv: list[str], exit_code: int, capsys: pytest.CaptureFixture[str]) -> None:
    from stages.registry import STAGE_NAMES

    assert main(argv) == exit_code
    out = capsys.readouterr().out
    for name in STAGE_NAMES:
        line = next(line for line in out.splitlines() if line.startswith(f"  {name} "))
        assert len(line.split()) > 3
        assert len(line) <= 120


def test_a_reader_that_has_read_enough() -> None:
    """`python -m stages download --help | head -1`."""
    command = [sys.executable, "-m", "stages", "download", "--help"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    process.wait()


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_lets_the_stage_save(
    number: signal.Signals, exit_code: int, text_file: Path, tiny: ModuleType, own_store: Path
) -> None:
    argv = ["merge", "--input", f"text={text_file}", "--pause_seconds", "0.1", "--json"]
    process = start(tiny, *argv)
    wait_for_a_step(own_store)
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert process.returncode == exit_code, err
    assert "error: stopped after step" in err
    assert last_json(out)["status"] == "failed"
    done = start(tiny, *argv)
    out, err = done.communicate(timeout=20)
    assert (done.returncode, last_json(out)["status"]) == (0, "resumed"), err
    assert last_json(out)["metrics"]["first_step"] > 0


def test_a_second_signal_ends_a_stage_that_does_not_look(text_file: Path, tiny: ModuleType, own_store: Path) -> None:
    argv = ["merge", "--input", f"text={text_file}", "--pause_seconds", "2", "--looks", "false"]
    process = start(tiny, *argv)
    wait_for(lambda: list(own_store.glob("scratch/*/work")))
    process.send_signal(signal.SIGTERM)
    assert process.stderr is not None
    assert "SIGTERM: saving, then ending; once more ends at once" in process.stderr.readline()
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 143
    assert time.monotonic() - began < 1.5
    assert err == "error: repeat was stopped\n"
    assert list(own_store.glob("actions/*")) == []


def test_the_grace_ends(text_file: Path) -> None:
    """In a process of its own, with a short grace and a stage that never looks."""
    code = (
        "import os, signal, sys, time\n"
        "from stages.stopping import StopSignals\n"
        "with StopSignals(grace_seconds=0.3) as stop:\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        time.sleep(10)\n"
        "    except KeyboardInterrupt:\n"
        "        sys.exit(stop.exit_code)\n"
    )
    began = time.monotonic()
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 143
    assert time.monotonic() - began < 5


def test_signals_are_given_back() -> None:
    from stages.stopping import StopSignals

    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with StopSignals() as stop:
        assert not stop.is_requested()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.is_requested()
        assert stop.exit_code == 143
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def wait_for_a_step(store: Path) -> None:
    wait_for(lambda: list(store.glob("scratch/*/work/step")))


def wait_for(condition: Any) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
