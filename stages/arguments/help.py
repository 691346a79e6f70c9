"""What `--help` says: `help_text(SftArguments, "martlet sft")`.

The words are the docstrings under the fields, read from the source only when somebody asks.
"""

from __future__ import annotations

import ast
import inspect
import shutil
import sys
import textwrap
from functools import cache

from pydantic.fields import FieldInfo

from stages.arguments.base import Arguments
from stages.arguments.command_line import Shape, shape
from stages.arguments.unsupported import UNSUPPORTED, UNSUPPORTED_COMMANDS, applies, unsupported_values

__all__ = ["FieldHelp", "descriptions", "groups", "help_text"]

_COLUMN = 34
_NAMES = {int: "N", float: "X", str: "TEXT", dict: "JSON"}


@cache
def _docstrings(module: str) -> dict[tuple[str, str], str]:
    """The docstring under each field of each class of a module, by (class, field)."""
    found: dict[tuple[str, str], str] = {}
    for node in ast.parse(inspect.getsource(sys.modules[module])).body:
        if not isinstance(node, ast.ClassDef):
            continue
        for field, text in zip(node.body, node.body[1:], strict=False):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(text, ast.Expr)
                and isinstance(text.value, ast.Constant)
                and isinstance(text.value.value, str)
            ):
                found[node.name, field.target.id] = inspect.cleandoc(text.value.value)
    return found


def _owner(model: type[Arguments], name: str) -> tuple[str, str]:
    """SWIFT's heading for a field, and its docstring, from the nearest class that has them."""
    group = text = ""
    for base in model.__mro__:
        if name not in vars(base).get("__annotations__", {}):
            continue
        group = group or vars(base).get("GROUP", "")
        text = text or _docstrings(base.__module__).get((base.__name__, name), "")
        if group and text:
            break
    return group, text


def descriptions(model: type[Arguments]) -> dict[str, str]:
    """One line of help for each field."""
    return {name: _owner(model, name)[1] for name in model.model_fields}


def groups(model: type[Arguments]) -> dict[str, list[str]]:
    """The fields under each of SWIFT's headings; within one, in the order of the classes that declare them."""
    found: dict[str, list[str]] = {group: [] for group in GROUPS}
    for base in model.__mro__:
        for name in vars(base).get("__annotations__", {}):
            group = _owner(model, name)[0] if name in model.model_fields else ""
            if group and name not in found[group]:
                found[group].append(name)
    return {group: names for group, names in found.items() if names}


GROUPS = (
    "Model Parameters",
    "Data Parameters",
    "Template Parameters",
    "Generation Parameters",
    "Quantization Parameters",
    "LoRA Parameters",
    "Pre-training and Fine-tuning Parameters",
    "NEFTune Parameters",
    "LoRA+ Fine-tuning Parameters",
    "FourierFt Parameters",
    "BOFT Parameters",
    "Vera Parameters",
    "GaLore Fine-tuning Parameters",
    "LISA Fine-tuning Parameters",
    "LLAMAPRO Fine-tuning Parameters",
    "AdaLoRA Fine-tuning Parameters",
    "ReFT Fine-tuning Parameters",
    "Liger Fine-tuning Parameters",
    "TorchAcc Parameters",
    "Human Alignment Parameters",
    "LMDeploy Parameters",
    "vLLM Parameters",
    "Merge Parameters",
    "Inference Parameters",
    "Deployment Parameters",
    "Evaluation Parameters",
    "Export Parameters",
    "Retraining Parameters",
    "Transformers Trainer Parameters",
)
"""SWIFT's headings in the order of `--help`."""


class FieldHelp:
    """What there is to say about one field."""

    def __init__(self, name: str, field: FieldInfo, model: type[Arguments]) -> None:
        self.name = name
        self.field = field
        self.scope = model.NAME
        self.shape: Shape = shape(field.rebuild_annotation())
        self.text = _owner(model, name)[1]

    @property
    def placeholder(self) -> str:
        """What stands after the flag."""
        if (
            self.shape.choices
            and len(", ".join(map(str, self.shape.choices))) <= 30
            and not self.shape.kinds - {type(None)}
        ):
            word = "{" + ",".join(map(str, self.shape.choices)) + "}"
        elif self.shape.kinds == {bool}:
            word = "[true|false]"
        else:
            word = next((text for kind, text in _NAMES.items() if kind in self.shape.kinds), "TEXT")
        return f"{word} …" if self.shape.many else word

    @property
    def default(self) -> str:
        """The default, as it would be typed; empty where the help says what happens without a value."""
        if self.field.is_required():
            return "required"
        value = self.field.get_default(call_default_factory=True)
        if value is None or value == [] or value == "":
            return ""
        if isinstance(value, bool):
            return f"default: {str(value).lower()}"
        if isinstance(value, list):
            return f"default: {' '.join(map(str, value))}"
        return f"default: {value:g}" if isinstance(value, float) else f"default: {value}"

    @property
    def not_yet(self) -> str:
        """Whether, or for which choices, it is not acted upon yet."""
        rules = [rule for rule in UNSUPPORTED.get(self.name, ()) if applies(rule, self.scope)]
        if not rules:
            return ""
        if not rules[0].values:
            return "not supported yet"
        refused = [str(choice) for choice in self.shape.choices if self._refused(choice)] or [rules[0].note]
        return f"not supported yet: {', '.join(refused)}"

    def _refused(self, value: object) -> bool:
        return unsupported_values(self.name, value, self.scope) is not None

    def line(self) -> str:
        """The help, its choices if they do not stand after the flag, the default, and what is not there yet."""
        choices = ""
        if self.shape.choices and not self.placeholder.startswith("{"):
            choices = f" One of: {', '.join(map(str, self.shape.choices))}."
        notes = "; ".join(note for note in (self.default, self.not_yet) if note)
        return f"{self.text}{choices}{f' ({notes})' if notes else ''}"


def help_text(model: type[Arguments], prog: str) -> str:
    """Every parameter of `model`, with default, choices and what is not supported yet, as wide as the terminal."""
    width = max(72, min(shutil.get_terminal_size((120, 24)).columns, 140))
    lines = [f"usage: {prog} {_usage(model)}[--name value …]"]
    if model.NAME in UNSUPPORTED_COMMANDS:
        lines += ["", f"{prog} is not supported yet; these are the parameters it will take."]
    for group, names in groups(model).items():
        lines += ["", f"{group}:"]
        fields = [FieldHelp(name, model.model_fields[name], model) for name in names]
        for field in sorted(fields, key=lambda field: field.not_yet == "not supported yet"):
            lines += _entry(field, width)
    return "\n".join(lines)


def _usage(model: type[Arguments]) -> str:
    required = [name for name, field in model.model_fields.items() if field.is_required()]
    return "".join(f"--{name} {name.upper()} " for name in sorted(required, reverse=True))


def _entry(field: FieldHelp, width: int) -> list[str]:
    flag = f"  --{field.name} {field.placeholder}"
    text = textwrap.wrap(field.line(), width - _COLUMN, break_long_words=False, break_on_hyphens=False)
    if len(flag) >= _COLUMN:
        return [flag, *(" " * _COLUMN + line for line in text)]
    return [flag.ljust(_COLUMN) + text[0], *(" " * _COLUMN + line for line in text[1:])]
