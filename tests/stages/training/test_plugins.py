"""Optimizers and losses of a user's own file: what they do to a training, how it goes on, what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stages.arguments import TrainArguments
from stages.data.plugins import load_plugins
from stages.errors import ArgumentsError
from stages.train import prepare
from stages.training.losses import choose_loss
from stages.training.optimizers import choose_optimizer
from stages.training.plugins import LOSSES, METRICS, OPTIMIZERS, load_for_training
from tests.stages.test_train import tokens as tokens
from tests.stages.training.lab import SHORT, Lab, cut_off_and_whole
from tests.stages.training.reference import ROW, STEADY, losses, losses_by_hand, write_one_row
from tests.stages.training.tokens import write_arrow

HEAD = "import torch\nfrom stages.training.plugins import register_loss, register_metric, register_optimizer\n"
MINE = (
    HEAD
    + """
@register_optimizer("momentum")
def momentum(args, model, train_dataset):
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=args.learning_rate * len(train_dataset), momentum=0.9)
    return optimizer, torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5)

@register_optimizer("plain")
def plain(args, model, train_dataset):
    return torch.optim.SGD([one for one in model.parameters() if one.requires_grad], lr=args.learning_rate)

def token_losses(outputs, labels):
    kept = labels[:, 1:] != -100
    return torch.nn.functional.cross_entropy(outputs.logits[:, :-1][kept], labels[:, 1:][kept], reduction="none"), kept

@register_loss("focal")
def focal(outputs, labels, num_items_in_batch=None):
    loss, kept = token_losses(outputs, labels)
    return ((1 - (-loss).exp()) ** 2 * loss).sum() / (kept.sum() if num_items_in_batch is None else num_items_in_batch)

@register_loss("mean_focal")
def mean_focal(outputs, labels):
    loss, _ = token_losses(outputs, labels)
    return ((1 - (-loss).exp()) ** 2 * loss).mean()

@register_loss("weighted")
def weighted(outputs, labels, *, loss_scale=None, num_items_in_batch=None):
    loss, kept = token_losses(outputs, labels)
    return (loss if loss_scale is None else loss * loss_scale[:, 1:][kept]).sum() / num_items_in_batch

@register_loss("smooth")
def smooth(outputs, labels, **given):
    kept = labels[:, 1:] != -100
    smoothing = given["label_smoothing"]
    loss = torch.nn.functional.cross_entropy(
        outputs.logits[:, :-1][kept], labels[:, 1:][kept], reduction="sum", label_smoothing=smoothing
    )
    return loss / given["num_items_in_batch"]
"""
)
HANDED_IN = {"custom_register_path": ["local::plugins"]}


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """What plugins have registered is forgotten where others are loaded."""
    yield
    load_plugins([])
    assert not OPTIMIZERS | LOSSES | METRICS  # type: ignore[operator]


def write_plugin(folder: Path, text: str = MINE) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mine.py").write_text(text)
    return folder


def lab_with(folder: Path, model: Path, tokens: Path, text: str = MINE) -> Lab:
    lab = Lab(folder, model, tokens)
    lab.inputs["plugins"] = write_plugin(folder / "plugins", text)
    return lab


def load(folder: Path, text: str = MINE) -> None:
    load_for_training(write_plugin(folder, text), folder)


# Arguments.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"optimizer": "defalt"},
            "--optimizer defalt: choose from default, galore, lorap, or add the file that registers it, "
            "`--custom_register_path`. Did you mean default?",
        ),
        (
            {"loss_type": "focal"},
            "--loss_type focal: choose from cross_entropy, loss_scale, or add the file that registers it, "
            "`--custom_register_path`",
        ),
        (
            {"optimizer": "lorap"},
            "`--optimizer lorap` needs the ratio of its two rates: add `--lorap_lr_ratio 16`",
        ),
        (
            {"optimizer": "galore", "use_galore": False, "train_type": "full"},
            "`--optimizer galore` and `--use_galore false` contradict each other: drop one of them",
        ),
        ({"optimizer": "galore"}, "`--use_galore` trains all weights: add `--train_type full`"),
    ],
)
def test_names_that_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentsError) as raised:
        TrainArguments(**arguments)
    assert str(raised.value) == message


@pytest.mark.parametrize(
    ("named", "same"),
    [
        ({"optimizer": "default"}, {}),
        ({"optimizer": "lorap", "lorap_lr_ratio": 4}, {"lorap_lr_ratio": 4}),
        ({"optimizer": "galore", "train_type": "full"}, {"use_galore": True, "train_type": "full"}),
        ({"custom_register_path": ["templates.py"]}, {}),
    ],
)
def test_two_ways_to_say_one_thing_have_one_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: dict[str, Any], same: dict[str, Any]
) -> None:
    """A plugin that training does not ask for is neither an input nor in the key."""
    monkeypatch.chdir(tmp_path)
    Path("templates.py").write_text("")
    prepared = prepare(TrainArguments(**named))
    assert prepared.arguments.key_fields() == TrainArguments(**same).key_fields()
    assert not prepared.inputs


@pytest.mark.parametrize("asked", [{"optimizer": "momentum"}, {"loss_type": "focal"}])
def test_a_plugin_that_is_asked_for_is_an_input(tmp_path: Path, asked: dict[str, Any]) -> None:
    file = write_plugin(tmp_path) / "mine.py"
    prepared = prepare(TrainArguments(custom_register_path=[str(file)], **asked))
    assert prepared.inputs == {"plugins": (file,)}
    fields = prepared.arguments.key_fields()
    assert fields["custom_register_path"] == ["local::plugins"]
    assert str(tmp_path) not in str(fields)
    again = prepare(prepared.arguments)
    assert (again.arguments, dict(again.inputs)) == (prepared.arguments, {})


@pytest.mark.parametrize(
    ("text", "asked", "message"),
    [
        (MINE, {"loss_type": "mine"}, "`--loss_type mine`: no file of `--custom_register_path` registers it. Choose"),
        (MINE, {"optimizer": "mine"}, "`--optimizer mine`: no file of `--custom_register_path` registers it. Choose"),
        ("broken(", {"optimizer": "mine"}, "`--custom_register_path`: mine.py line 1: SyntaxError: '(' was never"),
    ],
)
def test_what_is_wrong_with_a_plugin_is_said_before_anything_runs(
    tmp_path: Path, text: str, asked: dict[str, str], message: str
) -> None:
    file = write_plugin(tmp_path, text) / "mine.py"
    with pytest.raises(ArgumentsError) as raised:
        prepare(TrainArguments(custom_register_path=[str(file)], **asked))
    assert str(raised.value).startswith(message)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for asked in ({}, {"optimizer": "mine"}):  # also one that training would not need
        with pytest.raises(ArgumentsError, match=r"`--custom_register_path .*none.py` does not exist"):
            prepare(TrainArguments(custom_register_path=[str(tmp_path / "none.py")], **asked))


# Registering.


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def broken(:\n", "mine.py line 3: SyntaxError: invalid syntax"),
        (
            "register_loss('cross_entropy')(print)",
            "mine.py line 3: there is a loss 'cross_entropy' already: choose another name",
        ),
        (
            "for _ in 'ab':\n    register_optimizer('mine')(print)",
            "mine.py line 4: there is an optimizer 'mine' already: choose another name",
        ),
        ("register_metric('')(print)", "mine.py line 3: a metric needs a name"),
        ("register_optimizer('mine')(3)", "mine.py line 3: an optimizer 'mine' is a int: give a function"),
    ],
)
def test_a_file_that_cannot_be_executed(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ArgumentsError) as raised:
        load(tmp_path, HEAD + text)
    assert str(raised.value) == f"`--custom_register_path`: {message}"


def test_the_plugins_of_the_tokens_stay_and_others_are_forgotten(tmp_path: Path) -> None:
    from stages.data.loss_scale import RULES

    load(tmp_path / "old", HEAD + "register_loss('old')(print)")
    scale = (
        "from stages.data.loss_scale import register_loss_scale\nregister_loss_scale('of_tokens', lambda a, q: [])\n"
    )
    load_plugins(write_plugin(tmp_path / "tokens" / "plugins", scale))
    load_for_training(write_plugin(tmp_path / "new"), tmp_path / "tokens")
    assert "of_tokens" in RULES
    assert sorted(LOSSES) == ["focal", "mean_focal", "smooth", "weighted"]
    assert sorted(OPTIMIZERS) == ["momentum", "plain"]
    load_plugins([])
    assert "of_tokens" not in RULES


# What is chosen.


@pytest.mark.parametrize(
    ("arguments", "weighted", "message"),
    [
        (
            {"loss_type": "cross_entropy"},
            True,
            "`--loss_type cross_entropy` learns all tokens alike, and these have the weights of a `--loss_scale`: "
            "give `--loss_type loss_scale`, or tokenize with `--loss_scale default`",
        ),
        (
            {"loss_type": "focl", **HANDED_IN},
            False,
            "`--loss_type focl`: no file of `--custom_register_path` registers it. "
            "Choose from: cross_entropy, loss_scale, focal, mean_focal, weighted, smooth. Did you mean focal?",
        ),
        (
            {"loss_type": "focal", **HANDED_IN},
            True,
            "`--loss_type focal` does not take loss_scale, and these tokens have the weights of a `--loss_scale`: "
            "let the function take it, or tokenize with `--loss_scale default`",
        ),
        (
            {"loss_type": "focal", "label_smoothing_factor": 0.1, **HANDED_IN},
            False,
            "`--loss_type focal` does not take label_smoothing: let the function take it, or drop "
            "`--label_smoothing_factor 0.1`",
        ),
        (
            {"loss_type": "focal", "sequence_parallel_size": 2, **HANDED_IN},
            False,
            "`--loss_type focal` sees all logits of a row, and with `--sequence_parallel_size 2` they are not there: "
            "drop one of them",
        ),
    ],
)
def test_losses_that_are_refused(tmp_path: Path, arguments: dict[str, Any], weighted: bool, message: str) -> None:
    load(tmp_path)
    with pytest.raises(ArgumentsError) as raised:
        choose_loss(TrainArguments(**arguments), weighted=weighted)
    assert str(raised.value) == message


@pytest.mark.parametrize("loss_type", [None, "cross_entropy", "loss_scale"])
def test_our_own_losses_are_one(loss_type: str | None) -> None:
    assert choose_loss(TrainArguments(loss_type=loss_type), weighted=loss_type == "loss_scale") is None


def test_an_optimizer_that_nobody_registers(tmp_path: Path) -> None:
    load(tmp_path)
    with pytest.raises(ArgumentsError) as raised:
        choose_optimizer(TrainArguments(optimizer="momentun", **HANDED_IN), [])
    assert str(raised.value) == (
        "`--optimizer momentun`: no file of `--custom_register_path` registers it. "
        "Choose from: default, galore, lorap, momentum, plain. Did you mean momentum?"
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"lorap_lr_ratio": 4}, "train: --lorap_lr_ratio 4 goes before --optimizer mine, which makes nothing"),
        (
            {"use_galore": True, "train_type": "full"},
            "train: --use_galore true goes before --optimizer mine, which makes nothing",
        ),
    ],
)
def test_what_goes_before_an_optimizer_is_said(
    caplog: pytest.LogCaptureFixture, arguments: dict[str, Any], said: str
) -> None:
    given = TrainArguments(optimizer="mine", **arguments)
    with caplog.at_level("INFO", logger="martlet"):
        made = choose_optimizer(given, [])
    assert made is not None
    assert made.func.__name__ == ("make_lorap" if "lorap_lr_ratio" in arguments else "make_galore")  # type: ignore[attr-defined]
    assert said in caplog.messages
    assert not prepare(given).inputs


# What a function or a factory gives.

BATCH = [[-100, 3, -100, 4, 1], [2, -100, 0, 6, -100]]
"""Five tokens are predicted: two in each row but for one."""


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("None", "`--loss_type own`: the function gave NoneType, and not one number as a tensor"),
        ("3.5", "`--loss_type own`: the function gave float, and not one number as a tensor"),
        (
            "outputs.logits.sum(-1)",
            "`--loss_type own`: the function gave a tensor of shape (2, 5), and not one number as a tensor",
        ),
        ("outputs.logits.detach().sum()", "`--loss_type own`: what the function gave has no gradient"),
        (
            "outputs.logits[9]",
            "`--loss_type own`: mine.py line 5: IndexError: index 9 is out of bounds for dimension 0",
        ),
        ("helper(labels)", "`--loss_type own`: mine.py line 7: ZeroDivisionError: division by zero"),
    ],
)
def test_a_function_that_gives_nonsense(tmp_path: Path, body: str, message: str) -> None:
    import torch

    text = (
        f"@register_loss('own')\ndef own(outputs, labels):\n    return {body}\ndef helper(labels):\n    return 1 / 0\n"
    )
    load(tmp_path, HEAD + text)
    loss = choose_loss(TrainArguments(loss_type="own", **HANDED_IN), weighted=False)
    assert loss is not None
    outputs = SimpleNamespace(logits=torch.zeros(2, 5, 7, requires_grad=True))
    with pytest.raises(ArgumentsError) as raised:
        loss(outputs, torch.tensor(BATCH), None, 10)
    assert str(raised.value).startswith(message)


def test_a_mean_has_the_weight_of_its_tokens(tmp_path: Path) -> None:
    import torch

    load(tmp_path)
    outputs = SimpleNamespace(logits=torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0)).requires_grad_())
    found = {}
    for name in ("focal", "mean_focal"):
        loss = choose_loss(TrainArguments(loss_type=name, **HANDED_IN), weighted=False)
        assert loss is not None
        found[name] = [loss(outputs, torch.tensor(BATCH), None, count).item() for count in (None, 5, torch.tensor(12))]
    assert found["mean_focal"] == pytest.approx(found["focal"], rel=1e-6)
    assert found["focal"][1] == pytest.approx(found["focal"][2] * 12 / 5)


def test_a_batch_without_labels_counts_for_nothing(tmp_path: Path) -> None:
    """A row that cannot be used, or one that fills up a step of several processes."""
    import torch

    load(tmp_path)
    loss = choose_loss(TrainArguments(loss_type="mean_focal", **HANDED_IN), weighted=False)
    assert loss is not None
    logits = torch.full((2, 5, 7), float("inf"), requires_grad=True)
    found = loss(SimpleNamespace(logits=logits), torch.full((2, 5), -100), None, 10)
    found.backward()
    assert found.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("'sgd'", "the factory gave a str, and not an optimizer of torch, or (optimizer, scheduler)"),
        ("None", "the factory gave None, and not an optimizer of torch, or (optimizer, scheduler)"),
        ("(1, 2, 3)", "the factory gave (int, int, int), and not an optimizer of torch, or (optimizer, scheduler)"),
        ("(torch.optim.SGD(model.parameters()), 'cosine')", "the factory gave a str as scheduler"),
        (
            "torch.optim.SGD([torch.nn.Parameter(torch.ones(1))])",
            "the optimizer has none of the parameters that are to be trained",
        ),
        ("torch.optim.SGD([])", "mine.py line 5: ValueError: optimizer got an empty parameter list"),
        ("args.nothing", "mine.py line 5: AttributeError: 'types.SimpleNamespace' object has no attribute 'nothing'"),
    ],
)
def test_a_factory_that_gives_nonsense(tmp_path: Path, body: str, message: str) -> None:
    import torch

    load(tmp_path, HEAD + f"@register_optimizer('own')\ndef own(args, model, train_dataset):\n    return {body}\n")
    made = choose_optimizer(TrainArguments(optimizer="own", **HANDED_IN), [])
    assert made is not None
    with pytest.raises(ArgumentsError) as raised:
        made(torch.nn.Linear(2, 2), SimpleNamespace())
    assert str(raised.value) == f"`--optimizer own`: {message}"


def test_parameters_that_an_optimizer_leaves_out_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    import torch

    text = "@register_optimizer('own')\ndef own(args, model, rows):\n    return torch.optim.SGD([model.weight])\n"
    load(tmp_path, HEAD + text)
    made = choose_optimizer(TrainArguments(optimizer="own", **HANDED_IN), [])
    assert made is not None
    with caplog.at_level("WARNING", logger="martlet"):
        made(torch.nn.Linear(2, 2), SimpleNamespace())
    assert caplog.messages == ["train: --optimizer own leaves 1 of 2 trained parameters as they are: bias"]


def test_an_unknown_name_is_said_before_weights_are_loaded(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("weights are loaded")

    monkeypatch.setattr("stages.training.loading.load_model", fail)
    for asked in ({"optimizer": "nobody"}, {"loss_type": "nobody"}):
        name = next(iter(asked))
        lab = lab_with(tmp_path / name, tiny_model, write_one_row(tmp_path / f"tokens-{name}"))
        with pytest.raises(ArgumentsError, match="nobody`: no file of `--custom_register_path` registers it"):
            lab.run(STEADY | HANDED_IN | asked)


# Training.


def start(folder: Path, model: Path) -> Any:
    """An adapter, neither of whose matrices is zero."""
    lab = Lab(folder, model, write_one_row(folder / "tokens"))
    lab.run(STEADY | {"max_steps": 2})
    return lab.out


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    return start(tmp_path_factory.mktemp("adapter"), tiny_model)  # type: ignore[no-any-return]


def tuned(model: Path, adapter: Path) -> Any:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), adapter, is_trainable=True)


@pytest.mark.slow
def test_momentum_and_its_schedule(tmp_path: Path, tiny_model: Path, adapter: Path) -> None:
    """The factory's optimizer and scheduler, against momentum written out."""
    lab = lab_with(tmp_path, tiny_model, write_one_row(tmp_path / "tokens"))
    lab.inputs["adapter"] = adapter
    lab.run(STEADY | HANDED_IN | {"optimizer": "momentum", "learning_rate": 0.01})

    model, rows = tuned(tiny_model, adapter), 12
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    speeds = [0 * parameter.detach() for parameter in trained]

    def step(number: int) -> None:
        for parameter, speed in zip(trained, speeds, strict=True):
            speed.mul_(0.9).add_(parameter.grad)
            parameter.data.sub_(0.01 * rows * 0.5 ** (number // 2) * speed)

    by_hand = losses_by_hand(model, step)
    assert losses(lab) == pytest.approx(by_hand, abs=1e-5)
    assert by_hand[0] - by_hand[-1] > 0.01


def write_rows(folder: Path, *, weights: bool = False) -> Path:
    """Four rows of two lengths, which make one step of two batches; some tokens weigh twice."""
    folder.mkdir(parents=True)
    ids = [ROW, ROW[:6], ROW[2:], ROW[3:8]]
    labels = [[-100, -100, *row[2:]] for row in ids]
    columns: dict[str, Any] = {"input_ids": ids, "labels": labels}
    if weights:
        columns["loss_scale"] = [[1.0 + (place % 3 == 0) for place in range(len(row))] for row in ids]
    for name in ("train", "validation"):
        write_arrow(folder / f"{name}.arrow", columns)
    return folder


def loss_by_hand(model: Any, kind: str, smoothing: float = 0.0) -> float:
    """Of the rows of `write_rows`, each by itself: a sum over all tokens divided by their number."""
    import torch

    total, count = 0.0, 0
    for row in (ROW, ROW[:6], ROW[2:], ROW[3:8]):
        values = model(torch.tensor([row])).logits[0].double().log_softmax(-1)
        for place in range(2, len(row)):
            loss = -values[place - 1, row[place]].item()
            if smoothing:
                loss = (1 - smoothing) * loss - smoothing * values[place - 1].mean().item()
            weight = 1 + (place % 3 == 0) if kind == "weighted" else 1
            total += weight * ((1 - 2.718281828459045**-loss) ** 2 * loss if kind == "focal" else loss)
            count += 1
    return total / count


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss_type", "kind"),
    [
        (None, "plain"),
        ("cross_entropy", "plain"),
        ("loss_scale", "plain"),
        (None, "weighted"),
        ("loss_scale", "weighted"),
        ("focal", "focal"),
        ("mean_focal", "focal"),
        ("weighted", "weighted"),
        ("weighted", "plain"),
    ],
)
def test_the_loss_of_a_step_is_a_mean_over_its_tokens(
    tmp_path: Path, tiny_model: Path, adapter: Path, loss_type: str | None, kind: str
) -> None:
    """Over batches of several sizes, in training and in validation."""
    lab = lab_with(tmp_path, tiny_model, write_rows(tmp_path / "tokens", weights=kind == "weighted"))
    lab.inputs["adapter"] = adapter
    arguments = STEADY | HANDED_IN | {"max_steps": 1, "gradient_accumulation_steps": 2, "loss_type": loss_type}
    sizes = {"per_device_train_batch_size": 2, "per_device_eval_batch_size": 3}
    metrics = lab.run(arguments | sizes | {"eval_strategy": "steps", "eval_steps": 1, "eval_on_start": True})
    by_hand = loss_by_hand(tuned(tiny_model, adapter), kind)
    assert losses(lab) == pytest.approx([by_hand], abs=1e-5)
    assert metrics["first_eval_loss"] == pytest.approx(by_hand, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("loss_type", [None, "cross_entropy", "loss_scale", "smooth"])
def test_label_smoothing_is_part_of_every_loss(
    tmp_path: Path, tiny_model: Path, adapter: Path, loss_type: str | None
) -> None:
    lab = lab_with(tmp_path, tiny_model, write_rows(tmp_path / "tokens"))
    lab.inputs["adapter"] = adapter
    arguments = STEADY | HANDED_IN | {"max_steps": 1, "gradient_accumulation_steps": 2, "loss_type": loss_type}
    lab.run(arguments | {"per_device_train_batch_size": 2, "label_smoothing_factor": 0.2})
    model = tuned(tiny_model, adapter)
    assert losses(lab) == pytest.approx([loss_by_hand(model, "plain", 0.2)], abs=1e-5)
    assert abs(loss_by_hand(model, "plain", 0.2) - loss_by_hand(model, "plain")) > 1e-3


@pytest.mark.slow
def test_the_gradient_is_that_of_the_loss(tmp_path: Path, tiny_model: Path, adapter: Path) -> None:
    """Six steps down the focal loss, against a loop."""
    import torch

    lab = lab_with(tmp_path, tiny_model, write_rows(tmp_path / "tokens"))
    lab.inputs["adapter"] = adapter
    asked = {"optimizer": "plain", "loss_type": "mean_focal", "learning_rate": 0.2, "max_grad_norm": 0}
    lab.run(STEADY | HANDED_IN | asked | {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2})

    model = tuned(tiny_model, adapter)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    found = []
    for _ in range(6):
        parts = []
        for row in (ROW, ROW[:6], ROW[2:], ROW[3:8]):
            logits, ids = model(torch.tensor([row])).logits[0, 1:-1], torch.tensor(row[2:])
            parts.append(torch.nn.functional.cross_entropy(logits, ids, reduction="none"))
        each = torch.cat(parts)
        loss = ((1 - (-each).exp()) ** 2 * each).mean()
        gradients = torch.autograd.grad(loss, trained)
        for parameter, gradient in zip(trained, gradients, strict=True):
            parameter.data.sub_(0.2 * gradient)
        found.append(loss.item())
    assert losses(lab) == pytest.approx(found, abs=1e-5)
    assert found[0] - found[-1] > 0.01


@pytest.mark.slow
def test_a_run_that_was_cut_off_ends_in_the_same_bytes(tmp_path: Path, tiny_model: Path, tokens: Path) -> None:
    """With the momentum and the schedule of a plugin, which the checkpoint has kept."""
    import torch

    plugins = write_plugin(tmp_path / "plugins")
    asked = {"optimizer": "momentum", "loss_type": "focal", "learning_rate": 1e-3, "lora_dropout": 0.2, **HANDED_IN}
    lab, _, _ = cut_off_and_whole(tmp_path, tiny_model, tokens, SHORT | asked, inputs={"plugins": plugins})
    state = torch.load(lab.attachments / "checkpoint-4" / "optimizer.pt", weights_only=True)["state"]
    assert {name for one in state.values() for name in one} == {"momentum_buffer"}
    plain = Lab(tmp_path / "plain", tiny_model, tokens)
    plain.inputs["plugins"] = plugins
    plain.run(SHORT | asked | {"optimizer": "plain"})
    assert (plain.out / "adapter_model.safetensors").read_bytes() != (
        lab.out / "adapter_model.safetensors"
    ).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("adds", ["a mixture of experts", "adalora"])
def test_what_is_added_to_a_loss_is_added_to_a_plugins(tmp_path: Path, tiny_model: Path, adds: str) -> None:
    """Cross entropy out of a plugin is cross entropy, also where the model or the method has a term of its own."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    model, tokens = tiny_model, write_rows(tmp_path / "tokens")
    more: dict[str, Any] = {"train_type": "adalora", "adalora_tinit": 1, "adalora_tfinal": 1}
    without: dict[str, Any] = {"adalora_orth_reg_weight": 1e-9}
    if adds == "a mixture of experts":
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
        experts = {"num_local_experts": 4, "num_key_value_heads": 2, "output_router_logits": True}
        torch.manual_seed(0)
        config = AutoConfig.for_model("mixtral", vocab_size=384, router_aux_loss_coef=0.5, **sizes, **experts)
        AutoModelForCausalLM.from_config(config).save_pretrained(model := tmp_path / "model")
        more, without = {"target_modules": ["q_proj"]}, {}
    found = []
    for asked in ({}, {"loss_type": "weighted"}, {"loss_type": "loss_scale"}, without):
        lab = lab_with(tmp_path / f"run{len(found)}", model, tokens)
        lab.run(STEADY | HANDED_IN | {"max_steps": 3, "per_device_train_batch_size": 1} | more | asked)
        found.append(losses(lab))
    assert found[1] == pytest.approx(found[0], abs=1e-5)
    assert found[2] == found[0]
    if adds == "adalora":
        assert found[0][0] - found[3][0] > 0.1
    else:
        assert found[0][0] > 5.95 + 0.4  # ln 384, and 0.5 times the balance, which is at least 1
