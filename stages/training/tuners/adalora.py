"""AdaLoRA (arXiv 2303.10512): ΔW = B diag(E) A, whose entries of E are given to the layers that need them.

`--train_type adalora`. After each optimizer step peft measures what each entry is worth and sets the least ones to
zero, fewer or more as the schedule says. A term of the loss keeps A and B orthogonal; peft would add it to each part of
a step, and to the validation, so it is added here, once. What is stored leaves out entries that are zero.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from stages.errors import ArgumentsError, ModelError
from stages.training.checkpoints import TUNER_FILES
from stages.training.tuners.peft_folder import CONFIG, PeftTuner, swaps_sides

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import TrainerCallback

__all__ = ["AdaLoraTuner"]

Pattern = Mapping[str, Sequence[bool]]
"""Which entries of each `….lora_E` are kept."""
PATTERN, STATE = TUNER_FILES


@dataclass(frozen=True)
class AdaLoraTuner(PeftTuner):
    """Trains A, B and E, which starts at zero."""

    planned: dict[str, int] = field(default_factory=dict, init=False)
    """How many `steps` the run has."""

    METHOD: ClassVar[str] = "AdaLoRA"
    SAME: ClassVar[Sequence[str]] = ("lora_alpha", "init_r")

    def plan(self, steps: int) -> None:
        """Takes in how many steps there will be.

        Raises:
            ArgumentsError: none would be left in which ranks can fall.
        """
        given = self.arguments
        if max(given.adalora_tinit, 1) + given.adalora_tfinal >= steps:  # nothing is known before the first step
            raise ArgumentsError(
                f"`--adalora_tinit {given.adalora_tinit}` and `--adalora_tfinal {given.adalora_tfinal}` leave none of "
                f"the run's {steps} steps for ranks to fall in: lower one of them"
            )
        self.planned["steps"] = steps

    def config(self, model: Any) -> Any:
        """See `PeftTuner`."""
        from peft import AdaLoraConfig

        given = self.arguments
        self._check_settings()
        places = self.places(model)
        self.linear_targets(model, places["target_modules"])
        return AdaLoraConfig(
            **places,
            init_r=given.adalora_init_r,
            target_r=given.adalora_target_r,
            tinit=given.adalora_tinit,
            tfinal=given.adalora_tfinal,
            deltaT=given.adalora_deltaT,
            beta1=given.adalora_beta1,
            beta2=given.adalora_beta2,
            orth_reg_weight=0.0,
            total_step=self.planned.get("steps", given.adalora_tinit + given.adalora_tfinal + 1),
            lora_alpha=given.lora_alpha,
            lora_dropout=given.lora_dropout,
            init_lora_weights=given.init_lora_weights != "false",
            fan_in_fan_out=swaps_sides(model),
        )

    def callbacks(self) -> Sequence[TrainerCallback]:
        """Allocates ranks once the optimizer has stepped, while gradients are still there."""
        from transformers import TrainerCallback

        class Allocation(TrainerCallback):  # type: ignore[misc]
            def on_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **others: Any) -> None:
                model.base_model.update_and_allocate(state.global_step + 1)

        return (Allocation(),)

    def extra_loss(self, model: Any) -> Tensor | None:
        """How far A Aᵀ and Bᵀ B are from one, a mean over all matrices (equation 4; as in peft not squared)."""
        import torch

        weight = self.arguments.adalora_orth_reg_weight
        if weight == 0:
            return None
        distances = []
        for name, matrix in model.named_parameters():
            if ".lora_A." in name or ".lora_B." in name:
                product = matrix @ matrix.T if ".lora_A." in name else matrix.T @ matrix
                distances.append((product - torch.eye(len(product)).to(product)).norm())
        return weight * torch.stack(distances).mean()

    def tensors(self, model: Any) -> dict[str, Tensor]:
        """See `PeftTuner`; only the entries that are kept."""
        tensors = self._full(model)
        for name, keep in (self._pattern(model) or {}).items():
            for role, dim in (("A", 0), ("E", 0), ("B", 1)):
                key = _key(name, role)
                tensors[key] = tensors[key][keep] if dim == 0 else tensors[key][:, keep]
        return tensors

    def described(self, model: Any) -> dict[str, Any]:
        """See `PeftTuner`."""
        own = {"orth_reg_weight": self.arguments.adalora_orth_reg_weight, "rank_pattern": self._pattern(model)}
        return super().described(model) | own

    def fitted(self, model: Any, tensors: dict[str, Tensor], checkpoint: Path) -> dict[str, Tensor]:
        """See `PeftTuner`; entries that were left out are zero again, their rows and columns those of the start."""
        from stages.sources.model_folder import read_json

        config = read_json(checkpoint / CONFIG) if (checkpoint / CONFIG).is_file() else {}
        pattern: Pattern | None = config.get("rank_pattern")
        ours, tensors = self._full(model), dict(tensors)
        for name, keep in (pattern or {}).items():
            for role, dim in (("A", 0), ("E", 0), ("B", 1)):
                key = _key(name, role)
                if key not in ours or key not in tensors:
                    continue  # which is then found not to fit
                full = ours[key].clone() if role != "E" else ours[key].new_zeros(ours[key].shape)
                if len(keep) != full.shape[dim] or sum(keep) != tensors[key].shape[dim]:
                    raise ModelError(
                        f"the checkpoint {checkpoint.name} is damaged: {key} does not fit its rank_pattern"
                    )
                if dim == 0:
                    full[keep] = tensors[key].to(full)
                else:
                    full[:, keep] = tensors[key].to(full)
                tensors[key] = full
        return tensors

    def load(self, model: Any, checkpoint: Path) -> None:
        """See `PeftTuner`."""
        from stages.sources.model_folder import read_json

        super().load(model, checkpoint)
        if (checkpoint / CONFIG).is_file():  # only now: peft would give the modules other sizes
            model.peft_config["default"].rank_pattern = read_json(checkpoint / CONFIG).get("rank_pattern")

    def save_state(self, model: Any, checkpoint: Path) -> None:
        """Every entry, also those that are zero now and may come back, and what each has been worth."""
        from safetensors.torch import save_file

        allocator = model.base_model.rankallocator
        state = {f"weight/{name}": tensor for name, tensor in self._full(model).items()}
        state |= {f"worth/{name}": tensor for name, tensor in allocator.exp_avg_ipt.items()}
        state |= {f"doubt/{name}": tensor for name, tensor in allocator.exp_avg_unc.items()}
        state = {name: state[name].detach().cpu().contiguous().clone() for name in sorted(state)}
        save_file(state, checkpoint / STATE, metadata={"format": "pt"})
        text = json.dumps({"rank_pattern": _short(model.peft_config["default"].rank_pattern)}, sort_keys=True)
        (checkpoint / PATTERN).write_text(text + "\n", encoding="utf-8")

    def load_state(self, model: Any, checkpoint: Path) -> None:
        """See `Tuner`.

        Raises:
            ModelError: the checkpoint has none.
        """
        import torch
        from safetensors.torch import load_file

        from stages.sources.model_folder import read_json

        if not (checkpoint / STATE).is_file():
            raise ModelError(
                f"the checkpoint {checkpoint.name} has no {STATE}, which says what each rank was worth: give "
                "`--resume_only_model true` to take only its weights"
            )
        state = load_file(checkpoint / STATE)
        allocator = model.base_model.rankallocator
        parameters = dict(model.base_model.model.named_parameters())
        config = model.peft_config["default"]
        config.rank_pattern = None  # peft would give the modules other sizes
        weights = {name.removeprefix("weight/"): state[name] for name in state if name.startswith("weight/")}
        self.put(model, weights)
        for kind, kept in (("worth", allocator.exp_avg_ipt), ("doubt", allocator.exp_avg_unc)):
            kept.clear()
            for name in state:
                if name.startswith(f"{kind}/"):
                    parameter = name.removeprefix(f"{kind}/")
                    kept[parameter] = state[name].to(parameters[parameter].device)
                    allocator.ipt[parameter] = torch.zeros_like(kept[parameter])
        config.rank_pattern = read_json(checkpoint / PATTERN)["rank_pattern"]

    def _full(self, model: Any) -> dict[str, Tensor]:
        """All entries: peft leaves some out as soon as there is a pattern."""
        config = model.peft_config["default"]
        pattern, config.rank_pattern = config.rank_pattern, None
        try:
            return super().tensors(model)
        finally:
            config.rank_pattern = pattern

    def _pattern(self, model: Any) -> Pattern | None:
        """What was allocated last; None if entries that were then set to zero have moved since."""
        pattern = _short(model.peft_config["default"].rank_pattern)
        full = self._full(model)
        for name, keep in (pattern or {}).items():
            left_out = [not kept for kept in keep]
            if full[_key(name, "E")][left_out].any():
                return None
        return pattern

    def _check_settings(self) -> None:
        given = self.arguments
        for flag, wrong in (
            ("use_dora true", given.use_dora),
            ("use_rslora true", given.use_rslora),
            (f"init_lora_weights {given.init_lora_weights}", given.init_lora_weights not in ("true", "false")),
        ):
            if wrong:
                raise ArgumentsError(f"`--{flag}` is for `--train_type lora`, AdaLoRA has none: drop one of them")
        for name in ("adalora_beta1", "adalora_beta2"):
            if not 0 < getattr(given, name) < 1:
                raise ArgumentsError(f"`--{name} {getattr(given, name):g}` must lie between 0 and 1: 0.85 is usual")


def _key(name: str, role: str) -> str:
    """The name that peft writes, of a matrix beside the `….lora_E` that a pattern names."""
    return f"base_model.model.{name.removesuffix('lora_E')}lora_{role}"


def _short(pattern: Pattern | None) -> Pattern | None:
    """Without the adapter's name, which peft takes out sooner or later."""
    return None if pattern is None else {name.removesuffix(".default"): keep for name, keep in pattern.items()}
