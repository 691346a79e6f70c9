from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from stages.errors import ModelError
from stages.sources.model_folder import check_model_folder, choose_model_files, link_model_files


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_model, tmp_path / "model")


def test_a_whole_folder_tells_its_facts(model: Path) -> None:
    from safetensors import safe_open

    with safe_open(model / "model.safetensors", "pt") as file:
        count = sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118 - not a dict
    facts = check_model_folder(model)
    assert (facts.architecture, facts.dtype, facts.num_parameters) == ("LlamaForCausalLM", "F32", count)
    assert facts.weights_bytes == (model / "model.safetensors").stat().st_size


def write(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def cut(keep: int) -> Callable[[Path], object]:
    def cut_file(folder: Path) -> None:
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:keep])

    return cut_file


def index(weight_map: dict[str, str]) -> Callable[[Path], object]:
    return write("model.safetensors.index.json", json.dumps({"weight_map": weight_map}).encode())


def bad_head(folder: Path) -> None:
    head = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}).encode()
    (folder / "model.safetensors").write_bytes(len(head).to_bytes(8, "little") + head + bytes(4))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut(0), "model/model.safetensors is damaged: its head"),
        (cut(5), "is damaged: its head"),
        (cut(200), "is damaged: its head"),
        (cut(-1), "bytes long, while its head tells of"),
        (write("model.safetensors", b"<!DOCTYPE html><html>" * 100), "is damaged: its head"),
        (write("model.safetensors", (10).to_bytes(8, "little") + b'{"a": [1]}'), "lists something that is no tensor"),
        (bad_head, "is damaged: 72 bytes long|is damaged"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model/model.safetensors is missing"),
        (write("config.json", b"{"), "model/config.json is not JSON"),
        (write("config.json", b"[]"), "model/config.json holds no JSON object"),
        (write("config.json", b"{}"), "names neither architectures nor model_type"),
        (index({}), "lists no weights"),
        (index({"a": "model-00001-of-00002.safetensors"}), "model-00001-of-00002.safetensors is missing"),
        (index({"no.such": "model.safetensors"}), "looks for no.such in model.safetensors"),
    ],
)
def test_damage_is_found_without_loading(model: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(model)
    with pytest.raises(ModelError, match=message) as caught:
        check_model_folder(model)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["config.json", "pytorch_model.bin"], r"pickles \(pytorch_model\.bin\).*save_pretrained"),
        (["adapter_config.json", "adapter_model.safetensors"], "is an adapter, not a model"),
        (["config.json"], "has no weights"),
        (["README.md", "a.Q4.gguf"], "GGUF files: fetch one, such as a.Q4.gguf"),
        ([], "has no config.json"),
    ],
)
def test_what_is_no_model_is_refused(names: list[str], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        choose_model_files(names, "owner/name")


def test_only_what_a_model_needs_is_chosen() -> None:
    needed = [
        "LICENSE", "chat_template.jinja", "config.json", "generation_config.json", "merges.txt",
        "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json",
        "special_tokens_map.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json",
    ]  # fmt: skip
    others = [
        "README.md", "optimizer.pt", "pytorch_model.bin", "consolidated.safetensors", "onnx/model.onnx",
        "original/tokenizer.model", "modeling_x.py", "tf_model.h5", "training_args.bin", "model.safetensors",
    ]  # fmt: skip
    assert choose_model_files(needed + others, "owner/name") == sorted(needed)


def test_files_are_linked_and_not_copied(model: Path, tmp_path: Path) -> None:
    (model / "optimizer.pt").write_bytes(b"x")
    (model / "checkpoint-10").mkdir()
    (model / "checkpoint-10" / "config.json").write_text("{}")
    out = tmp_path / "out"
    out.mkdir()
    assert link_model_files(model, out) == ["checkpoint-10/config.json", "optimizer.pt"]
    assert (out / "model.safetensors").samefile(model / "model.safetensors")
    check_model_folder(out)
