"""Tiny random models that see, as Hugging Face folders, and pictures: `write_tiny_qwen2_vl(folder)`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TEXT = "user assistant system what is in the image a red square blue circle green You are helpful. it one two"

# The template of Qwen2-VL's own folders, without the numbers of pictures.
QWEN2_VL = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n{% else %}"
    "{% for content in message['content'] %}{% if content['type'] == 'image' or 'image' in content %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% elif content['type'] == 'video' or 'video' in content %}"
    "<|vision_start|><|video_pad|><|vision_end|>{% elif 'text' in content %}{{ content['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# The template of Idefics3's and SmolVLM's folders: it reads nothing but parts.
IDEFICS3 = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)

QWEN_TOKENS = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>",
]  # fmt: skip
IDEFICS_TOKENS = [
    "<|endoftext|>", "<|im_start|>", "<end_of_utterance>", "<fake_token_around_image>", "<image>", "<global-img>",
    *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)),
]  # fmt: skip


def write_tiny_qwen2_vl(folder: Path) -> Path:
    """A picture becomes a quarter of as many tokens as it has patches of 14 x 14 pixels: 60 x 40 becomes two."""
    import torch
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    folder.mkdir(parents=True, exist_ok=True)
    ids = _write_tokenizer(folder, QWEN_TOKENS, "<|im_end|>", QWEN2_VL)
    _write_json(
        folder / "preprocessor_config.json",
        processor_class="Qwen2VLProcessor",
        image_processor_type="Qwen2VLImageProcessor",
        min_pixels=28 * 28,
        max_pixels=28 * 28 * 16,
        patch_size=14,
        temporal_patch_size=2,
        merge_size=2,
        image_mean=[0.48, 0.46, 0.41],
        image_std=[0.27, 0.26, 0.28],
    )
    config = Qwen2VLConfig(
        text_config={
            **_language(ids["<|im_end|>"]),
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]},
        },
        vision_config={
            "depth": 1,
            "embed_dim": 32,
            "hidden_size": 32,
            "num_heads": 2,
            "mlp_ratio": 2,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    Qwen2VLForConditionalGeneration(config).save_pretrained(folder)
    return folder


def write_tiny_idefics3(folder: Path) -> Path:
    """A picture of 28 x 28 pixels becomes one token; a larger one is cut into such pieces, with itself as the last."""
    import torch
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration

    folder.mkdir(parents=True, exist_ok=True)
    ids = _write_tokenizer(folder, IDEFICS_TOKENS, "<end_of_utterance>", IDEFICS3)
    _write_json(
        folder / "preprocessor_config.json",
        processor_class="Idefics3Processor",
        image_processor_type="Idefics3ImageProcessor",
        size={"longest_edge": 56},
        max_image_size={"longest_edge": 28},
        do_image_splitting=True,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    _write_json(folder / "processor_config.json", processor_class="Idefics3Processor", image_seq_len=1)
    config = Idefics3Config(
        text_config={"model_type": "llama", **_language(ids["<end_of_utterance>"]), "pad_token_id": 0},
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
        },
        image_token_id=ids["<image>"],
        scale_factor=2,
        pad_token_id=0,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    Idefics3ForConditionalGeneration(config).save_pretrained(folder)
    return folder


def write_picture(path: Path, size: tuple[int, int], colour: str = "red") -> str:
    """A square of another colour on a plain one; gives `media/NAME`, as rows have it."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.new("RGB", size, colour)
    picture.paste("white", (0, 0, size[0] // 2, size[1] // 2))
    picture.save(path)
    return f"{path.parent.name}/{path.name}"


def picture_row(name: str, answer: str, question: str = "<image>what is it?") -> dict[str, Any]:
    """A standard row with one picture."""
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": messages, "images": [name]}


def _language(eos: int) -> dict[str, Any]:
    return {
        "vocab_size": 384,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": 0,
        "eos_token_id": eos,
        "pad_token_id": 0,
    }


def _write_tokenizer(folder: Path, special: list[str], eos: str, template: str) -> dict[str, int]:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT] * 20, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=eos, pad_token="<|endoftext|>")
    fast.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return {token: tokenizer.token_to_id(token) for token in special}


def _write_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
