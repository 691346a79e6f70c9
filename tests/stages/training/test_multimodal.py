"""Training on rows with pictures: batches as the processor makes them, losses that see the picture."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from stages.data.encode import EncoderSettings
from stages.data.media_encode import MediaEncoder, needs_processor, open_media_encoder
from stages.errors import ModelError
from stages.training.multimodal import (
    check_batches,
    check_collation,
    collate_media,
    language_part,
    load_class,
)
from stages.training.rows import IGNORED
from tests.stages.vision import picture_row, write_picture

X = IGNORED


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A tokens artifact whose rows are encoded later: four with pictures of several sizes, one without."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    media = tmp_path / "tokens" / "media"
    rows = [
        picture_row(write_picture(media / "red.png", (60, 40), "red"), "red square"),
        picture_row(write_picture(media / "blue.png", (90, 90), "blue"), "blue circle it is."),
        picture_row(write_picture(media / "green.png", (28, 28), "green"), "green"),
        {"messages": [{"role": "user", "content": "what is it?"}, {"role": "assistant", "content": "one two"}]},
        picture_row("media/red.png", "one red", "<image>what?<image>"),
    ]
    rows[-1]["images"] = ["media/red.png", "media/blue.png"]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "tokens" / "train.parquet")
    (tmp_path / "tokens" / "encoder.json").write_text(EncoderSettings().to_json())
    return tmp_path / "tokens"


def read(dataset: Path) -> list[dict[str, Any]]:
    from stages.data.standard_rows import read_standard_rows

    return [row for rows in read_standard_rows(dataset / "train.parquet") for row in rows]


def items(encoder: MediaEncoder, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    encoded = [encoder.encode(row) for row in rows]
    return [{"input_ids": one.input_ids, "labels": one.labels, **one.tensors} for one in encoded]


@pytest.mark.parametrize("model", ["tiny_qwen2_vl", "tiny_idefics3"])
def test_a_batch_is_what_the_processor_makes_of_the_rows(
    model: str, dataset: Path, request: pytest.FixtureRequest
) -> None:
    encoder = open_media_encoder(request.getfixturevalue(model), EncoderSettings(), dataset)
    check_batches(encoder, dataset)
    rows = read(dataset)
    batch = collate_media(items(encoder, [rows[0], rows[3]]))
    lengths = batch["attention_mask"].sum(dim=1).tolist()
    assert lengths[1] < lengths[0] == batch["input_ids"].shape[1]
    assert batch["input_ids"][1, lengths[1] :].unique().tolist() == [0]
    assert batch["labels"][1, lengths[1] :].unique().tolist() == [X]
    assert "pixel_values" not in collate_media(items(encoder, [rows[3]]))


def test_a_batch_put_together_in_another_way_is_refused(
    tiny_qwen2_vl: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a future processor might do: pictures in another order."""
    encoder = open_media_encoder(tiny_qwen2_vl, EncoderSettings(), dataset)
    own = type(encoder.processor.processor).__call__

    def turned(self: Any, **given: Any) -> Any:
        out = own(self, **given)
        if len(given["text"]) > 1:
            out["pixel_values"] = out["pixel_values"].flip(0)
        return out

    monkeypatch.setattr(type(encoder.processor.processor), "__call__", turned)
    with pytest.raises(ModelError, match="Qwen2VLProcessor, puts pixel_values of several rows together in a way of"):
        check_collation(encoder, read(dataset))


@pytest.mark.parametrize("model", ["tiny_qwen2_vl", "tiny_idefics3"])
def test_the_loss_of_a_batch_is_that_of_its_rows(model: str, dataset: Path, request: pytest.FixtureRequest) -> None:
    """With text and pictures side by side, and it depends on the picture."""
    import torch

    folder = request.getfixturevalue(model)
    encoder = open_media_encoder(folder, EncoderSettings(), dataset)
    network = load(folder)
    rows = read(dataset)
    batches = items(encoder, rows)
    with torch.no_grad():
        whole = network(**collate_media(batches)).loss
        single = [network(**collate_media([one])).loss for one in batches]
        counts = torch.tensor([float((one["labels"] != X).sum()) for one in batches])
        assert whole.item() == pytest.approx(float((torch.stack(single) * counts).sum() / counts.sum()), abs=1e-5)
        other = items(encoder, [{**rows[0], "images": ["media/inverted.png"]}])[0] if invert(dataset) else None
        assert other is not None
        assert other["input_ids"].tolist() == batches[0]["input_ids"].tolist()
        assert abs(network(**collate_media([other])).loss.item() - single[0].item()) > 1e-6


def invert(dataset: Path) -> bool:
    from PIL import Image, ImageOps

    ImageOps.invert(Image.open(dataset / "media" / "red.png")).save(dataset / "media" / "inverted.png")
    return True


def load(folder: Path) -> Any:
    from transformers import AutoConfig

    return load_class(AutoConfig.from_pretrained(folder)).from_pretrained(folder)


@pytest.mark.parametrize(
    ("architectures", "model_type", "expected"),
    [
        (["LlamaForCausalLM"], "llama", "AutoModelForCausalLM"),
        (["Qwen2VLForConditionalGeneration"], "qwen2_vl", "AutoModelForImageTextToText"),
        (None, "llava", "AutoModelForImageTextToText"),
        (["Gemma3ForConditionalGeneration"], "gemma3", "AutoModelForImageTextToText"),
        (["Gemma3ForCausalLM"], "gemma3_text", "AutoModelForCausalLM"),
        (["Qwen2AudioForConditionalGeneration"], "qwen2_audio", "AutoModelForMultimodalLM"),
    ],
)
def test_the_class_that_loads_a_model(architectures: list[str] | None, model_type: str, expected: str) -> None:
    from transformers import AutoConfig

    config = AutoConfig.for_model(model_type)
    config.architectures = architectures
    assert load_class(config).__name__ == expected


def test_the_part_that_speaks(tiny_qwen2_vl: Path, tiny_idefics3: Path, tiny_model: Path) -> None:
    from stages.training.loading import load_skeleton
    from stages.training.tuners.targets import find_targets

    skeletons = [load_skeleton(folder) for folder in (tiny_qwen2_vl, tiny_idefics3, tiny_model)]
    assert [language_part(one) for one in skeletons] == ["model.language_model", "model.text_model", None]
    names = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    layers = [f"model.text_model.layers.{n}.{'self_attn' if name[0] in 'kqvo' else 'mlp'}.{name}"
              for n in range(2) for name in names]  # fmt: skip
    assert find_targets(skeletons[1], ["all-linear"], None) == sorted(layers)
    assert find_targets(skeletons[2], ["all-linear"], None) == names


def test_rows_with_media_are_known_by_their_columns(dataset: Path, tiny_model: Path, tiny_qwen2_vl: Path) -> None:
    import pyarrow.parquet as pq

    assert needs_processor(tiny_model, dataset)
    path = dataset / "train.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["images"]), path)
    assert not needs_processor(tiny_qwen2_vl, dataset)
    (dataset / "stream.json").write_text("{}")
    assert needs_processor(tiny_qwen2_vl, dataset)
    assert not needs_processor(tiny_qwen2_vl, dataset, packing=True)
    assert not needs_processor(tiny_model, dataset)


def test_a_row_with_pictures_is_not_encoded_without_them(tiny_model: Path, dataset: Path) -> None:
    from stages.data.encode import open_encoder

    encoded = open_encoder(tiny_model, EncoderSettings()).encode_row(read(dataset)[0])
    assert encoded == "its images need the model's processor, which is not used here"


@pytest.mark.parametrize("train_type", ["lora", "full"])
def test_two_steps(train_type: str, tiny_qwen2_vl: Path, dataset: Path, tmp_path: Path) -> None:
    """The stage itself: finite losses, weights that move, a whole artifact; a validation row lacks its picture."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    import torch
    from safetensors.torch import load_file

    from stages.arguments import TrainArguments
    from stages.context import Context
    from stages.train import train

    arguments = TrainArguments(
        train_type=train_type, max_steps=2, learning_rate=1e-2, per_device_train_batch_size=2, logging_steps=1,
        eval_strategy="steps", eval_steps=1, save_strategy="no", report_to=["none"],
    )  # fmt: skip
    rows = [picture_row("media/blue.png", "blue"), picture_row("media/none.png", "none")]
    pq.write_table(pa.Table.from_pylist(rows), dataset / "validation.parquet")
    out, scratch, attachments = (tmp_path / name for name in ("out", "scratch", "attachments"))
    for folder in (out, scratch, attachments):
        folder.mkdir()
    metrics = train(arguments, {"model": tiny_qwen2_vl, "tokens": dataset}, out, Context(scratch, attachments))
    assert metrics["global_step"] == 2
    assert 0 < metrics["last_loss"] < 20
    assert 0 < metrics["eval_loss"] != metrics["first_eval_loss"] < 20
    if train_type == "lora":
        tensors = load_file(out / "adapter_model.safetensors")
        assert all("language_model" in name for name in tensors)
        assert any(tensor.abs().max() > 0 for name, tensor in tensors.items() if "lora_B" in name)
        return
    before, after = (load_file(folder / "model.safetensors") for folder in (tiny_qwen2_vl, out))
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert any("visual.patch_embed" in name for name in moved)
    assert any("layers.1.mlp" in name for name in moved)
    assert json.loads((out / "preprocessor_config.json").read_text())["image_processor_type"] == "Qwen2VLImageProcessor"


@pytest.mark.parametrize("model", ["tiny_qwen2_vl", "tiny_idefics3"])
def test_an_adapter_is_merged_into_a_model_that_sees(
    model: str, dataset: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Qwen2-VL is stored under the names that its modules had once."""
    import torch
    from peft import LoraConfig, get_peft_model

    from stages.arguments import MergeArguments
    from stages.context import Context
    from stages.merge import merge
    from stages.training.tuners.targets import find_targets

    folder = request.getfixturevalue(model)
    base = load(folder)
    tuned = get_peft_model(base, LoraConfig(target_modules=find_targets(base, ["all-linear"], None)))
    torch.manual_seed(1)
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    tuned.save_pretrained(tmp_path / "adapter")
    out = tmp_path / "merged"
    out.mkdir()
    merge(MergeArguments(), {"model": folder, "adapter": tmp_path / "adapter"}, out, Context(tmp_path, tmp_path))
    encoder = open_media_encoder(out, EncoderSettings(), dataset)
    batch = collate_media(items(encoder, read(dataset)[:2]))
    with torch.no_grad():
        expected, found = tuned.eval()(**batch).logits, load(out).eval()(**batch).logits
    assert torch.allclose(found, expected, atol=1e-4)
    assert not torch.allclose(found, load(folder).eval()(**batch).logits, atol=1e-2)


@pytest.mark.parametrize("model", ["tiny_qwen2_vl", "tiny_idefics3"])
def test_held_out_rows_with_pictures_are_measured(
    model: str, dataset: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """The mean over tokens, of rows side by side; a row that lacks its picture is left out."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    import torch

    from stages.arguments import EvaluateArguments
    from stages.context import Context
    from stages.evaluate import evaluate

    folder, rows = request.getfixturevalue(model), read(dataset)
    pq.write_table(pa.Table.from_pylist([*rows, picture_row("media/none.png", "x")]), dataset / "validation.parquet")
    out, scratch = tmp_path / "out", tmp_path / "scratch"
    out.mkdir()
    scratch.mkdir()
    arguments = EvaluateArguments(per_device_eval_batch_size=2)
    metrics = evaluate(arguments, {"model": folder, "tokens": dataset}, out, Context(scratch, scratch))
    network, total, count = load(folder), 0.0, 0
    for item in items(open_media_encoder(folder, EncoderSettings(), dataset), rows):
        labels = int((item["labels"][1:] != X).sum())
        with torch.no_grad():
            total += network(**collate_media([item])).loss.item() * labels
        count += labels
    assert (metrics["num_samples"], metrics["num_tokens"]) == (5, count)
    assert metrics["eval_loss"] == pytest.approx(total / count, abs=1e-4)


def test_text_alone_trains_a_model_that_sees(tiny_qwen2_vl: Path) -> None:
    """Rows of tokens, as tokenize writes them for rows without pictures."""
    import torch

    from stages.training.batches import collate

    network = load(tiny_qwen2_vl)
    row = {"input_ids": list(range(20, 40)), "labels": list(range(20, 40))}
    encoded = network(**collate([row]))
    encoded.loss.backward()
    assert torch.isfinite(encoded.loss)
    assert network.get_input_embeddings().weight.grad.abs().max() > 0


def test_rows_with_pictures_and_a_model_that_only_reads(tiny_model: Path, dataset: Path) -> None:
    with pytest.raises(ModelError, match="the model, LlamaForCausalLM, has no processor for images: it has no prepro"):
        open_media_encoder(tiny_model, EncoderSettings(), dataset)


def test_a_damaged_processor_is_one_clear_line(tiny_qwen2_vl: Path, dataset: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_qwen2_vl, tmp_path / "model")
    (model / "preprocessor_config.json").write_text("{")
    with pytest.raises(ModelError, match="the model's processor cannot be opened: ") as caught:
        open_media_encoder(model, EncoderSettings(), dataset)
    assert "\n" not in str(caught.value)
