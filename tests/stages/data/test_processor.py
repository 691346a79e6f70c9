"""Rows with pictures as the model gets them: text, what is trained, pixels; and every way in which one is bad."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stages.data.encode import EncodedRow, EncoderSettings
from stages.data.grounding import Notation, choose_notation, ground
from stages.data.images import open_images, rescale
from stages.data.media_encode import MediaEncoder, open_media_encoder
from stages.data.processor import open_processor
from stages.data.rows import RowError
from stages.data.templates import TemplateSettings
from stages.data.tokenizer import load_tokenizer
from stages.errors import ArgumentsError, DataError, MissingPackage, ModelError, StageFailed, UserError
from tests.stages.vision import picture_row, write_picture

HEAD = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
TWO = "<|vision_start|><|image_pad|><|image_pad|><|vision_end|>"
SPLIT = (
    "<fake_token_around_image><row_1_col_1><image><fake_token_around_image><row_1_col_2><image>\n"
    "<fake_token_around_image><row_2_col_1><image><fake_token_around_image><row_2_col_2><image>\n"
    "\n<fake_token_around_image><global-img><image><fake_token_around_image>"
)

Make = Callable[..., MediaEncoder]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A dataset artifact with one picture of 60 x 40 pixels, which Qwen2-VL sees as 56 x 28: two tokens."""
    write_picture(tmp_path / "media" / "red.png", (60, 40))
    return tmp_path


@pytest.fixture
def make(tiny_qwen2_vl: Path, folder: Path) -> Make:
    def encoder(model: Path = tiny_qwen2_vl, template: TemplateSettings | None = None, **given: Any) -> MediaEncoder:
        return open_media_encoder(model, EncoderSettings(template or TemplateSettings(), **given), folder)

    return encoder


def talk(*turns: str, system: str | None = None) -> list[dict[str, Any]]:
    messages = [] if system is None else [{"role": "system", "content": system}]
    roles = ("user", "assistant")
    return [*messages, *({"role": roles[index % 2], "content": turn} for index, turn in enumerate(turns))]


def read(encoder: MediaEncoder, row: dict[str, Any]) -> tuple[str, list[str]]:
    """The whole text, and the runs of it that are trained."""
    encoded = encoder.encode(row)
    return text_of(encoder, encoded), trained(encoder, encoded)


def text_of(encoder: MediaEncoder, encoded: EncodedRow) -> str:
    tokenizer = encoder.processor.tokenizer.tokenizer
    return str(tokenizer.decode(encoded.input_ids.tolist(), skip_special_tokens=False))


def trained(encoder: MediaEncoder, encoded: EncodedRow) -> list[str]:
    tokenizer = encoder.processor.tokenizer.tokenizer
    runs: list[list[int]] = [[]]
    for token, label in zip(encoded.input_ids.tolist(), encoded.labels.tolist(), strict=True):
        assert label in (token, -100)
        if label != -100:
            runs[-1].append(token)
        elif runs[-1]:
            runs.append([])
    return [tokenizer.decode(run, skip_special_tokens=False) for run in runs if run]


@pytest.mark.parametrize(
    ("template", "messages", "num_images", "text", "runs"),
    [
        (
            TemplateSettings(),
            talk("<image>what is it?", "red"),
            1,
            f"{HEAD}<|im_start|>user\n{TWO}what is it?<|im_end|>\n<|im_start|>assistant\nred<|im_end|>\n",
            ["red<|im_end|>"],
        ),
        (
            TemplateSettings(),
            talk("what?<image>it<image>", "red <image> one", "and?", " blue", system="Be square."),
            3,
            f"<|im_start|>system\nBe square.<|im_end|>\n<|im_start|>user\nwhat?{TWO}it{TWO}<|im_end|>\n"
            f"<|im_start|>assistant\nred {TWO} one<|im_end|>\n<|im_start|>user\nand?<|im_end|>\n"
            "<|im_start|>assistant\n blue<|im_end|>\n",
            ["red <|vision_start|>", "<|vision_end|> one<|im_end|>", " blue<|im_end|>"],
        ),
        (
            TemplateSettings(system="", loss_scale="last_round"),
            talk("<image>", "red", "it?", "blue", system=""),
            1,
            f"<|im_start|>system\n<|im_end|>\n<|im_start|>user\n{TWO}<|im_end|>\n<|im_start|>assistant\nred<|im_end|>\n"
            "<|im_start|>user\nit?<|im_end|>\n<|im_start|>assistant\nblue<|im_end|>\n",
            ["blue<|im_end|>"],
        ),
        (
            TemplateSettings(template="qwen"),
            talk("<image>what is it?", "red"),
            1,
            f"{HEAD}<|im_start|>user\n{TWO}what is it?<|im_end|>\n<|im_start|>assistant\nred<|im_end|>\n",
            ["red<|im_end|>"],
        ),
        (
            TemplateSettings(use_chat_template=False),
            talk("<image>what is it?", "red"),
            1,
            f"{TWO}what is it?red<|im_end|>",
            ["red<|im_end|>"],
        ),
        (
            TemplateSettings(),
            talk("what is it?", "red"),
            0,
            f"{HEAD}<|im_start|>user\nwhat is it?<|im_end|>\n<|im_start|>assistant\nred<|im_end|>\n",
            ["red<|im_end|>"],
        ),
    ],
)
def test_what_qwen2_vl_reads(
    make: Make, template: TemplateSettings, messages: Any, num_images: int, text: str, runs: list[str]
) -> None:
    row = {"messages": messages, "images": ["media/red.png"] * num_images}
    assert read(make(template=template), row) == (text, runs)


def test_what_idefics3_reads(make: Make, tiny_idefics3: Path) -> None:
    """Its template reads nothing but parts; a picture becomes many tokens, with newlines between them."""
    text, runs = read(make(tiny_idefics3), picture_row("media/red.png", "red square"))
    assert text == (f"<|im_start|>User:{SPLIT}what is it?<end_of_utterance>\nAssistant: red square<end_of_utterance>\n")
    assert runs == [" red square<end_of_utterance>"]


@pytest.mark.parametrize("model", ["tiny_qwen2_vl", "tiny_idefics3"])
def test_training_reads_what_serving_reads(
    model: str, make: Make, folder: Path, request: pytest.FixtureRequest
) -> None:
    """Ids, pixels and all, as transformers' processor makes them of the parts of a conversation."""
    import torch

    write_picture(folder / "media" / "blue.png", (90, 31), "blue")
    encoder = make(request.getfixturevalue(model))
    row = {"messages": talk("<image>one<image>two", "red"), "images": ["media/red.png", "media/blue.png"]}
    paths = [str(folder / name) for name in row["images"]]
    parts = [
        *[{"type": "image", "path": paths[0]}, {"type": "text", "text": "one"}],
        *[{"type": "image", "path": paths[1]}, {"type": "text", "text": "two"}],
    ]
    conversation = [
        {"role": "user", "content": parts},
        {"role": "assistant", "content": [{"type": "text", "text": "red"}]},
    ]
    theirs = encoder.processor.processor.apply_chat_template(
        conversation, tokenize=True, return_dict=True, return_tensors="pt"
    )
    ours = encoder.encode(row)
    assert ours.input_ids.tolist() == theirs.pop("input_ids")[0].tolist()
    theirs.pop("attention_mask")
    assert theirs.keys() == ours.tensors.keys()
    assert all(torch.equal(tensor, ours.tensors[name]) for name, tensor in theirs.items())


def test_a_template_that_has_no_place_for_pictures(make: Make) -> None:
    """What would be served is another text than what is trained: a chat template of Martlet's own writes no images."""
    encoder = make(template=TemplateSettings(template="chatml"))
    with pytest.raises(
        ArgumentsError, match="`--template chatml` has no place for <image>: drop it for the model's own"
    ):
        encoder.encode_row(picture_row("media/red.png", "red"))
    assert read(encoder, {"messages": talk("it?", "red")})[1] == ["red<|im_end|>"]


def test_a_system_message_is_served_as_it_is_trained(make: Make, tiny_idefics3: Path) -> None:
    from stages.data.chat_template import ChatTemplate

    encoder = make(tiny_idefics3, template=TemplateSettings(system="Be square."))
    text, _ = read(encoder, picture_row("media/red.png", "red"))
    assert text == (
        f"<|im_start|>System: Be square.<end_of_utterance>\nUser:{SPLIT}what is it?<end_of_utterance>\n"
        "Assistant: red<end_of_utterance>\n"
    )
    exported = encoder.writer.template.chat_template()
    assert exported is not None
    parts = [{"type": "image"}, {"type": "text", "text": "what is it?"}]
    served = ChatTemplate(exported, {}).render([{"role": "user", "content": parts}], add_generation_prompt=True)  # type: ignore[dict-item]
    assert served == (
        "<|im_start|>System: Be square.<end_of_utterance>\nUser:<image>what is it?<end_of_utterance>\nAssistant:"
    )


def test_what_the_tokenizer_adds_by_itself_is_there_in_training_too(
    make: Make, tiny_qwen2_vl: Path, folder: Path, tmp_path: Path
) -> None:
    """As at serving time: LLaVA's tokenizer puts <s> in front, its template does not."""
    from tokenizers import Tokenizer, processors

    model = shutil.copytree(tiny_qwen2_vl, tmp_path / "model")
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing("<|endoftext|> $0", None, [("<|endoftext|>", 0)])
    tokenizer.save(str(model / "tokenizer.json"))
    config = json.loads((model / "tokenizer_config.json").read_text()) | {"bos_token": "<|endoftext|>"}
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    encoder = make(model)
    row = picture_row("media/red.png", "red")
    parts = [{"type": "image", "path": str(folder / "media" / "red.png")}, {"type": "text", "text": "what is it?"}]
    served = encoder.processor.processor.apply_chat_template(
        [{"role": "user", "content": parts}], tokenize=True, return_dict=True, add_generation_prompt=True
    )["input_ids"][0]
    encoded = encoder.encode(row)
    assert encoded.input_ids.tolist()[: len(served)] == served
    assert served[0] == 0
    assert text_of(encoder, encoded).startswith("<|endoftext|><|im_start|>system")
    assert trained(encoder, encoded) == ["red<|im_end|>"]


def test_weights_stay_with_their_words(make: Make) -> None:
    from stages.data.encode import NOT_TRAINED

    row = picture_row("media/red.png", "Action: it\nAction Input: {}\nObservation:")
    encoded = make(template=TemplateSettings(loss_scale="react")).encode(row)
    assert encoded.loss_scale is not None
    assert encoded.loss_scale.shape == encoded.input_ids.shape
    assert sorted(set(encoded.loss_scale.tolist())) == [0.0, 1.0, 2.0]
    assert ((encoded.loss_scale > 0) == (encoded.labels != NOT_TRAINED)).all()


@pytest.mark.parametrize(
    ("size", "max_pixels", "expected"),
    [
        ((60, 40), None, (60, 40)),
        ((60, 40), 2400, (60, 40)),
        ((60, 40), 2399, (58, 39)),
        ((60, 40), 600, (30, 20)),
        ((1000, 10), 100, (100, 1)),
        ((10, 1000), 100, (1, 100)),
        ((1000, 1), 100, (100, 1)),
        ((5, 7), 1, (1, 1)),
    ],
)
def test_larger_pictures_are_made_smaller(
    size: tuple[int, int], max_pixels: int | None, expected: tuple[int, int]
) -> None:
    from PIL import Image

    scaled = rescale(Image.new("RGB", size), max_pixels)
    assert scaled.size == expected
    assert max_pixels is None or scaled.width * scaled.height <= max_pixels


@pytest.mark.parametrize(("max_pixels", "tokens"), [(None, 16), (5000, 4), (1000, 1)])
def test_fewer_pixels_are_fewer_tokens(make: Make, folder: Path, max_pixels: int | None, tokens: int) -> None:
    write_picture(folder / "media" / "large.png", (400, 400))
    text, runs = read(make(max_pixels=max_pixels), picture_row("media/large.png", "red"))
    assert text.count("<|image_pad|>") == tokens
    assert runs == ["red<|im_end|>"]
    assert read(make(max_pixels=1), {"messages": talk("it?", "red")})[1] == ["red<|im_end|>"]


def test_a_longer_row_is_cut_before_its_first_picture_or_not_at_all(make: Make) -> None:
    row = picture_row("media/red.png", "red")
    whole = make().encode(row)
    length = len(whole.input_ids)
    first = whole.input_ids.tolist().index(make().processor.tokenizer.tokenizer.token_to_id("<|vision_start|>"))
    assert 0 < first < length
    kept = make(max_length=length - first).encode(row)
    assert text_of(make(), kept) == f"{TWO}what is it?<|im_end|>\n<|im_start|>assistant\nred<|im_end|>\n"
    assert trained(make(), kept) == ["red<|im_end|>"]
    assert kept.tensors["mm_token_type_ids"].shape == (1, length - first)
    assert kept.tensors["mm_token_type_ids"][0, :4].tolist() == [0, 1, 1, 0]
    assert kept.tensors["pixel_values"].shape == whole.tensors["pixel_values"].shape
    assert make(max_length=length - first - 1).encode_row(row) == "an image would be cut"
    assert make(max_length=length - 1, truncation="delete").encode_row(row) == "too long"
    assert make(max_length=2).encode_row({"messages": talk("it?", "red")}) != "too long"
    assert make(max_length=1).encode_row({"messages": talk("it?", "red")}) == "nothing to train"


QWEN, PLAIN = Notation("qwen", "norm_1000"), Notation("plain", "norm_1000")


@pytest.mark.parametrize(
    ("objects", "notation", "expected"),
    [
        (
            [{"caption": "the dog", "bbox": [10, 20, 100, 200], "bbox_type": "real", "image": 0}],
            QWEN,
            "<|object_ref_start|>the dog<|object_ref_end|>: <|box_start|>(50,50),(500,500)<|box_end|>",
        ),
        (
            [{"caption": "the dog", "bbox": [10, 20, 100, 200], "bbox_type": "real", "image": 0}],
            PLAIN,
            "the dog: [50,50,500,500]",
        ),
        (
            [{"caption": "it", "bbox": [10, 20, 100, 200], "bbox_type": "real", "image": 1}],
            PLAIN,
            "it: [10,40,100,400]",
        ),
        (
            [{"caption": "it", "bbox": [1, 2, 3, 999], "bbox_type": "norm_1000"}],
            QWEN,
            "<|object_ref_start|>it<|object_ref_end|>: <|box_start|>(1,2),(3,999)<|box_end|>",
        ),
        ([{"caption": "it", "bbox": [0.1, 0.25, 0.5, 1.0], "bbox_type": "norm_1"}], PLAIN, "it: [100,250,500,1000]"),
        (
            [{"caption": "it", "bbox": [0.5, 0.5], "bbox_type": "norm_1"}],
            QWEN,
            "<|object_ref_start|>it<|object_ref_end|>: <|box_start|>(500,500)<|box_end|>",
        ),
        (
            [{"caption": "all", "bbox": [[0, 0, 1, 1], [0.5, 0, 1, 1]], "bbox_type": "norm_1"}],
            PLAIN,
            "all: [0,0,1000,1000][500,0,1000,1000]",
        ),
        (  # pixels of the picture as the model sees it, a half as large as the file
            [{"caption": "it", "bbox": [10, 20, 100, 200]}],
            Notation("plain", "pixels"),
            "it: [5,10,50,100]",
        ),
    ],
)
def test_objects_become_words(objects: Any, notation: Notation, expected: str) -> None:
    row = {"messages": talk("Where?", "<ref-object>: <bbox>"), "objects": json.dumps(objects)}
    grounded = ground(row, [(200, 400), (1000, 500)], [(100, 200), (500, 250)], notation)
    assert grounded["messages"][1]["content"] == expected
    assert row["messages"][1]["content"] == "<ref-object>: <bbox>"


def test_objects_are_taken_in_turn() -> None:
    objects = [{"caption": "a", "bbox": [1, 1, 2, 2]}, {"caption": "b", "bbox": [3, 3, 4, 4]}]
    row = {
        "messages": talk("<ref-object> or <ref-object>?", "<bbox>", "and?", "<bbox>"),
        "objects": json.dumps(objects),
    }
    grounded = ground(row, [(1000, 1000)], [], PLAIN)
    assert [turn["content"] for turn in grounded["messages"]] == ["a or b?", "[1,1,2,2]", "and?", "[3,3,4,4]"]


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        ([{"caption": "a", "bbox": [1, 2, 3, 4]}], "the text has more <bbox> than there are objects"),
        ([{"caption": "a"}] * 2, "cannot be read: 'bbox'"),
        ([{"caption": "a", "bbox": [1, 2, 3, 4], "image": 1}] * 2, "cannot be read: list index out of range"),
        ([{"caption": "a", "bbox": [1, 2, 3, 4], "bbox_type": "feet"}] * 2, "cannot be read: 'feet'"),
    ],
)
def test_objects_that_do_not_fit(objects: Any, message: str) -> None:
    row = {"messages": talk("Where?", "<ref-object> <bbox> <bbox>"), "objects": json.dumps(objects)}
    with pytest.raises(RowError, match=message):
        ground(row, [(100, 100)], [], PLAIN)


@pytest.mark.parametrize(
    ("model_type", "tokens", "expected"),
    [
        ("qwen2_vl", True, Notation("qwen", "norm_1000")),
        ("qwen2_5_vl", True, Notation("qwen", "pixels")),
        ("qwen3_vl", True, Notation("qwen", "norm_1000")),
        ("idefics3", False, Notation("plain", "norm_1000")),
    ],
)
def test_how_a_model_writes_boxes(model_type: str, tokens: bool, expected: Notation) -> None:
    added = ["<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>", "<|im_end|>"]
    assert choose_notation(model_type, added if tokens else ["<image>"]) == expected


@pytest.mark.parametrize("max_pixels", [None, 600])
def test_a_box_stays_on_its_object_when_the_picture_is_scaled(
    make: Make, tiny_qwen2_vl: Path, tmp_path: Path, max_pixels: int | None
) -> None:
    """Measured in pixels of the file. Qwen2-VL writes thousandths; Qwen2.5-VL pixels of the picture that it sees."""
    objects = json.dumps([{"caption": "it", "bbox": [15, 10, 30, 20], "bbox_type": "real"}])
    row = {**picture_row("media/red.png", "<ref-object> <bbox>"), "objects": objects}
    word = "<|object_ref_start|>it<|object_ref_end|>"
    assert read(make(max_pixels=max_pixels), row)[1] == [
        f"{word} <|box_start|>(250,250),(500,500)<|box_end|><|im_end|>"
    ]
    model = shutil.copytree(tiny_qwen2_vl, tmp_path / "model")
    config = json.loads((model / "config.json").read_text()) | {"model_type": "qwen2_5_vl"}
    (model / "config.json").write_text(json.dumps(config))
    seen = {None: "(14,7),(28,14)", 600: "(7,7),(14,14)"}[max_pixels]  # of 56 x 28 and of 28 x 28
    assert read(make(model, max_pixels=max_pixels), row)[1] == [f"{word} <|box_start|>{seen}<|box_end|><|im_end|>"]


def test_pictures_of_every_kind(folder: Path) -> None:
    """Grey, with a palette, transparent, in CMYK, turned by the camera, animated, as a data URI."""
    from PIL import Image

    names = []
    for mode, suffix in [("L", "png"), ("P", "gif"), ("RGBA", "webp"), ("CMYK", "jpg"), ("1", "bmp"), ("I;16", "tiff")]:
        Image.new(mode, (30, 20)).save(folder / "media" / f"{mode.strip(';')}.{suffix}")
        names.append(f"media/{mode.strip(';')}.{suffix}")
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.new("RGB", (20, 30)).save(folder / "media" / "turned.jpg", exif=exif)
    data = base64.b64encode((folder / "media" / "L.png").read_bytes()).decode()
    names += ["media/turned.jpg", f"data:image/png;base64,{data}", str(folder / "media" / "L.png")]
    images = open_images(names, folder)
    assert {(image.mode, image.size) for image in images} == {("RGB", (30, 20))}


def bad(name: str = "media/red.png", **row: Any) -> dict[str, Any]:
    return picture_row(name, "red") | row


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (bad("media/none.png"), "images[0] 'media/none.png' is missing: no such file"),
        (bad("media/text.png"), "images[0] 'media/text.png' is not an image"),
        (bad("media"), "images[0] 'media' is missing: no such file"),
        (bad("media/cut.png"), "images[0] 'media/cut.png' is a damaged image: "),
        (bad("data:image/png;base64,%%%"), "images[0] is a data URI, but not base64: "),
        (bad("data:image/png;base64,AAAA"), "images[0] 'data:image/png;base64,AAAA' is not an image"),
        (bad("http://[x/red.png"), "images[0] http://[x/red.png cannot be fetched: "),
        (bad(messages=talk("<image><image>it?", "red")), "2 tags <image> for 1 images"),
        (bad(messages=talk("it?", "red")), "0 tags <image> for 1 images"),
        (bad(images=[]), "1 tags <image> for 0 images"),
        (
            bad(messages=talk("<image><|image_pad|>", "red")),
            "Qwen2VLProcessor refuses it: The total number of <|image_p",
        ),
        (bad("media/thin.png"), "Qwen2VLProcessor refuses it: absolute aspect ratio must be smaller than 200"),
        ({"messages": talk("<|image_pad|>", "red")}, "Qwen2VLProcessor refuses it: Found 1 <|image_pad|> tokens"),
        (bad(objects="{"), "objects '{' cannot be read: "),
    ],
)
def test_a_bad_row_is_one_clear_line(make: Make, folder: Path, row: dict[str, Any], message: str) -> None:
    (folder / "media" / "text.png").write_text("red")
    (folder / "media" / "cut.png").write_bytes((folder / "media" / "red.png").read_bytes()[:60])
    write_picture(folder / "media" / "thin.png", (3000, 2))
    reason = make().encode_row(row)
    assert isinstance(reason, str)
    assert reason.startswith(message)
    assert "\n" not in reason


@pytest.mark.parametrize(("status", "drops"), [(404, True), (403, True), (429, False), (503, False), (None, False)])
def test_the_network_does_not_decide_which_rows_are_learnt(
    make: Make, monkeypatch: pytest.MonkeyPatch, status: int | None, drops: bool
) -> None:
    import requests

    def get(address: str, timeout: float) -> requests.Response:
        if status is None:
            raise requests.ConnectionError("no route to host")
        answer = requests.Response()
        answer.status_code, answer.url = status, address
        return answer

    monkeypatch.setattr(requests, "get", get)
    row = bad("http://host.invalid/red.png")
    if drops:
        assert str(make().encode_row(row)).startswith("images[0] http://host.invalid/red.png cannot be fetched: ")
    else:
        with pytest.raises(StageFailed, match=r"^images\[0\] http://host\.invalid/red\.png cannot be fetched: "):
            make().encode_row(row)


def tokenized(model: Path, folder: Path, rows: list[Any], **given: Any) -> tuple[list[str], dict[str, Any]]:
    """The files that the stage leaves, and its metrics."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from stages.arguments import TokenizeArguments
    from stages.context import Context
    from stages.tokenize import tokenize

    pq.write_table(pa.Table.from_pylist(rows), folder / "train.parquet")
    out, scratch = folder / "out", folder / "scratch"
    out.mkdir()
    scratch.mkdir()
    inputs = {"dataset": folder, "model": model}
    metrics = tokenize(TokenizeArguments(**given), inputs, out, Context(scratch, scratch))
    return sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()), dict(metrics)


@pytest.mark.parametrize("model", ["tiny_qwen2_vl", "tiny_idefics3"])
def test_tokenize_hands_rows_with_pictures_on(model: str, folder: Path, request: pytest.FixtureRequest) -> None:
    """As they are, with their pictures and all that decides how they are encoded; some are tried."""
    rows = [picture_row("media/red.png", "red"), picture_row("media/none.png", "red"), {"messages": talk("it?", "red")}]
    files, metrics = tokenized(request.getfixturevalue(model), folder, rows, max_pixels=600)
    assert files == ["encoder.json", "media/red.png", "tokens.json", "train.parquet"]
    settings = EncoderSettings.from_json((folder / "out" / "encoder.json").read_text())
    assert {"pillow", "torchvision"} < settings.versions.keys()
    assert (settings.max_pixels, settings.max_length, settings.truncation) == (600, 512, "left")
    assert (metrics["train_rows"], metrics["rows_tried"], metrics["rows_tried_and_dropped"]) == (3, 3, 1)


@pytest.mark.parametrize(
    ("model", "name", "given", "kind", "message"),
    [
        (
            "tiny_model",
            "red",
            {},
            ModelError,
            "the model, LlamaForCausalLM, has no processor for images: it has no prep",
        ),
        (
            "tiny_qwen2_vl",
            "none",
            {},
            DataError,
            r"none of the first 1 rows can be trained on: row 1: images\[0\] 'media",
        ),
        (
            "tiny_qwen2_vl",
            "none",
            {"strict": True},
            DataError,
            r"row 1: images\[0\] 'media/none.png' is missing: no su",
        ),
        ("tiny_qwen2_vl", "red", {"lazy_tokenize": False}, DataError, "drop `--lazy_tokenize false`"),
        (
            "tiny_qwen2_vl",
            "red",
            {"template": "chatml"},
            ArgumentsError,
            "`--template chatml` has no place for <image>",
        ),
    ],
)
def test_tokenize_refuses(
    model: str, name: str, given: Any, kind: type[UserError], message: str, folder: Path, request: pytest.FixtureRequest
) -> None:
    with pytest.raises(kind, match=message):
        tokenized(request.getfixturevalue(model), folder, [picture_row(f"media/{name}.png", "red")], **given)


def without(model: Path, to: Path, *names: str) -> Path:
    shutil.copytree(model, to)
    for name in names:
        (to / name).unlink()
    return to


def test_media_that_nothing_here_reads(make: Make, tiny_qwen2_vl: Path, tiny_idefics3: Path, tiny_model: Path) -> None:
    """Not with torchvision: there the first one would ask for a decoder, or be taken."""
    cases: list[tuple[Path, list[str], type[UserError], str]] = [
        (tiny_qwen2_vl, ["videos"], MissingPackage, "Qwen2VLProcessor takes videos only with torchvision and av "),
        (
            tiny_idefics3,
            ["videos"],
            ModelError,
            "processor, Idefics3Processor, takes no videos: drop the column videos",
        ),
        (tiny_qwen2_vl, ["images", "audios"], ModelError, "Qwen2VLProcessor, takes no audios: drop the column audios"),
        (tiny_model, ["videos"], ModelError, "the model, LlamaForCausalLM, has no processor for videos: it has no pre"),
    ]
    for model, columns, kind, message in cases:
        with pytest.raises(kind, match=message):
            open_processor(model, columns)
    with pytest.raises(MissingPackage, match="takes videos only"):
        make().encode_row({"messages": talk("<video>it?", "red"), "videos": ["media/red.mp4"]})


def test_the_tokenizer_alone_reads_text_rows_of_a_model_that_sees(tiny_idefics3: Path, tmp_path: Path) -> None:
    """Its template wants parts even for text; tags are words there. Older folders keep it in chat_template.json."""
    messages = talk("What is <image>?", "A tag.")
    expected = "<|im_start|>User: What is <image>?<end_of_utterance>\nAssistant: A tag.<end_of_utterance>\n"
    template = load_tokenizer(tiny_idefics3).template
    assert template is not None
    assert template.render(messages) == expected
    older = without(tiny_idefics3, tmp_path / "older", "chat_template.jinja")
    text = (tiny_idefics3 / "chat_template.jinja").read_text()
    (older / "chat_template.json").write_text(json.dumps({"chat_template": text}))
    template = load_tokenizer(older).template
    assert template is not None
    assert template.render(messages) == expected
