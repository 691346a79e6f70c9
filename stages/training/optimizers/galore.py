"""GaLore (arXiv 2403.03507), full training with an optimizer that sees gradients in low rank: `make_galore(…)`."""

from __future__ import annotations

from math import sqrt
from typing import TYPE_CHECKING, Any

from stages.errors import ArgumentsError
from stages.training.optimizers.plain import plain_optimizer
from stages.training.optimizers.projection import find_projection, project, project_back

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import Seq2SeqTrainingArguments

    from stages.arguments import TrainArguments

__all__ = ["AtOnce", "GaloreAdamW", "make_galore", "projected_modules"]


def make_galore(arguments: TrainArguments, model: Any, settings: Seq2SeqTrainingArguments) -> tuple[Any, None]:
    """AdamW, in low rank for the matrices of `projected_modules`, as it always is for the rest.

    Raises:
        ArgumentsError: nothing is to be projected, or `optim` is not AdamW.
    """
    import torch
    from transformers import Trainer

    kind, given = plain_optimizer(settings, "--use_galore")
    if kind is not torch.optim.AdamW:
        raise ArgumentsError(f"`--use_galore` works with AdamW: drop `--optim {settings.optim.value}`")

    if arguments.galore_optim_per_parameter and (settings.fp16 or settings.world_size > 1):
        raise ArgumentsError(
            "`--galore_optim_per_parameter` steps before gradients are unscaled or come from other processes: "
            "drop it, or train in bfloat16 and in one process"
        )

    class Galore(GaloreAdamW, torch.optim.Optimizer):  # type: ignore[misc]
        pass

    class GaloreAtOnce(AtOnce, Galore):  # type: ignore[misc]
        pass

    matrices = {id(module.weight): module.weight for module in projected_modules(model, arguments).values()}
    decays = set(Trainer.get_decay_parameter_names(None, model))
    others = [(name, one) for name, one in model.named_parameters() if one.requires_grad and id(one) not in matrices]
    projected = {
        "rank": arguments.galore_rank,
        "update_proj_gap": arguments.galore_update_proj_gap,
        "scale": arguments.galore_scale,
        "proj_type": arguments.galore_proj_type,
    }
    groups = [
        {"params": list(matrices.values()), "weight_decay": settings.weight_decay, **projected},
        {"params": [one for name, one in others if name in decays], "weight_decay": settings.weight_decay},
        {"params": [one for name, one in others if name not in decays], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    defaults = {"lr": given["lr"], "betas": given["betas"], "eps": given["eps"]}
    if arguments.galore_quantization:
        from stages.training.optimizers.qgalore import make_qgalore

        groups[0] |= {
            "proj_quant": arguments.galore_proj_quant,
            "proj_bits": arguments.galore_proj_bits,
            "proj_group_size": arguments.galore_proj_group_size,
            "cos_threshold": arguments.galore_cos_threshold,
            "gamma_proj": arguments.galore_gamma_proj,
            "queue_size": arguments.galore_queue_size,
        }
        return make_qgalore(groups, **defaults), None
    made = GaloreAtOnce if arguments.galore_optim_per_parameter else Galore
    return made(groups, defaults), None


def projected_modules(model: Any, arguments: TrainArguments) -> dict[str, nn.Module]:
    """The linear layers and embeddings whose gradients are projected, by path; of two that share a matrix the first.

    Raises:
        ArgumentsError: `galore_target_modules` names nothing.
    """
    from torch import nn

    from stages.training.tuners.targets import HEADS, find_targets

    names = arguments.galore_target_modules
    all_linear = set(find_targets(model, ["all-linear"], None))
    wanted: dict[str, nn.Module] = {}
    for path, module in model.named_modules():
        last = path.rpartition(".")[2]
        named = any(name in path for name in names or ())
        if isinstance(module, nn.Embedding) and (named or arguments.galore_with_embedding):
            wanted[path] = module
        elif isinstance(module, nn.Linear):
            by_default = names is None and last not in HEADS and not all_linear.isdisjoint({last, path})
            if named or by_default:
                wanted[path] = module
    for name in names or ():
        if not any(name in path for path in wanted):
            raise ArgumentsError(
                f"`--galore_target_modules {name}`: no linear layer or embedding has it in its name. "
                f"There are {', '.join(sorted(all_linear))}"
            )
    firsts = {id(module.weight): path for path, module in reversed(wanted.items())}
    return {path: module for path, module in wanted.items() if path in firsts.values() and module.weight.requires_grad}


class GaloreAdamW:
    """AdamW whose moments, for groups with a `rank`, are those of the projected gradient.

    As galore-torch computes it: epsilon is added before the bias is corrected, weights decay after the step. What
    galore-torch keeps in an object are tensors of the state here: a checkpoint holds them.
    """

    param_groups: list[dict[str, Any]]
    state: dict[Any, dict[str, Any]]

    def step(self, closure: Any = None) -> None:
        """One step for every parameter that has a gradient."""
        import torch

        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        self._update(parameter, group)

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        import torch

        state = self.state[parameter]
        gradient = parameter.grad
        assert gradient is not None
        done = state.get("step", 0)
        if "rank" in group:
            if done % group["update_proj_gap"] == 0:
                state["left"], state["right"] = find_projection(gradient, group["rank"], group["proj_type"])
            gradient = project(gradient, (state["left"], state["right"]))
        if not done:
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(gradient), torch.zeros_like(gradient)
        state["step"] = done + 1
        first, second = group["betas"]
        state["exp_avg"].mul_(first).add_(gradient, alpha=1 - first)
        state["exp_avg_sq"].mul_(second).addcmul_(gradient, gradient, value=1 - second)
        change = state["exp_avg"] / state["exp_avg_sq"].sqrt().add_(group["eps"])
        if "rank" in group:
            change = project_back(change, (state["left"], state["right"])) * group["scale"]
        rate = group["lr"] * sqrt(1 - second ** state["step"]) / (1 - first ** state["step"])
        parameter.add_(change, alpha=-rate)
        if group["weight_decay"] > 0:
            parameter.add_(parameter, alpha=-group["lr"] * group["weight_decay"])


class AtOnce:
    """Steps each parameter as soon as its gradient is there, and drops it: the backward pass never holds all of them.

    Attributes:
        due: whether a gradient that comes is complete; the trainer knows.
    """

    param_groups: list[dict[str, Any]]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Hooks into the backward pass."""
        super().__init__(*args, **kwargs)
        self.due = True
        self._squares = 0.0
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.register_post_accumulate_grad_hook(self._gradient_is_there)

    def take_norm(self) -> float:
        """The norm of all gradients since it was last asked for."""
        norm, self._squares = sqrt(self._squares), 0.0
        return norm

    def _gradient_is_there(self, parameter: Tensor) -> None:
        import torch

        if not self.due or parameter.grad is None:
            return
        self._squares += float(parameter.grad.float().norm()) ** 2
        group = next(group for group in self.param_groups if any(one is parameter for one in group["params"]))
        with torch.no_grad():
            self._update(parameter, group)  # type: ignore[attr-defined]
        parameter.grad = None
