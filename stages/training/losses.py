"""The loss that `--loss_type` asks for: `choose_loss(arguments, weighted=False)`.

None, `cross_entropy` and `loss_scale` are `token_loss`, which weighs tokens where they have weights. Others are a
plugin's functions.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stages.arguments.training import OURS
from stages.errors import ArgumentsError
from stages.training.plugins import LOSSES, blamed, check_registered
from stages.training.rows import IGNORED

if TYPE_CHECKING:
    from torch import Tensor

    from stages.arguments import TrainArguments

__all__ = ["RegisteredLoss", "choose_loss"]


@dataclass(frozen=True)
class RegisteredLoss:
    """A plugin's function; see `stages.training.plugins.Loss`.

    Attributes:
        name: what it is registered as.
        function: the function.
        takes: which of the keywords it can be given.
        label_smoothing: share of probability that the loss gives to other tokens.
    """

    name: str
    function: Any
    takes: frozenset[str]
    label_smoothing: float = 0.0

    def __call__(
        self, outputs: Any, labels: Tensor, loss_scale: Tensor | None, num_items: Tensor | int | None
    ) -> Tensor:
        """The part that a batch has in the loss of an optimizer step: a scalar, 0 where no token is predicted.

        Raises:
            ArgumentsError: the function fails, or gives something else.
        """
        import torch

        predicted = (labels[:, 1:] != IGNORED).sum()
        if not predicted:  # the mean of nothing is no number
            nothing: Tensor = outputs.logits[:0].float().sum()
            return nothing
        given = {
            "loss_scale": loss_scale,
            "num_items_in_batch": num_items,
            "label_smoothing": self.label_smoothing,
        }
        with blamed("loss_type", self.name):
            loss = self.function(outputs, labels, **{name: given[name] for name in self.takes})
        if not isinstance(loss, torch.Tensor) or loss.dim() or not loss.is_floating_point():
            what = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else type(loss).__name__
            raise ArgumentsError(f"`--loss_type {self.name}`: the function gave {what}, and not one number as a tensor")
        if torch.is_grad_enabled() and not loss.requires_grad:
            raise ArgumentsError(f"`--loss_type {self.name}`: what the function gave has no gradient")
        if num_items is not None and "num_items_in_batch" not in self.takes:  # it is a mean over this batch
            loss = loss * predicted / num_items
        return loss


def choose_loss(arguments: TrainArguments, *, weighted: bool) -> RegisteredLoss | None:
    """The function of a plugin; None: `token_loss`.

    Args:
        arguments: with `loss_type`; the plugins have been loaded.
        weighted: whether tokens have weights.

    Raises:
        ArgumentsError: no plugin registers the name, or the loss cannot do what other parameters ask for.
    """
    name, smoothing = arguments.loss_type, arguments.label_smoothing_factor
    if name == "cross_entropy" and weighted:
        raise ArgumentsError(
            "`--loss_type cross_entropy` learns all tokens alike, and these have the weights of a `--loss_scale`: "
            "give `--loss_type loss_scale`, or tokenize with `--loss_scale default`"
        )
    if name is None or name in OURS["loss_type"]:
        return None
    check_registered("loss_type", name)
    _check_logits(arguments, name)
    takes = _keywords(LOSSES[name])
    if weighted and "loss_scale" not in takes:
        raise ArgumentsError(
            f"`--loss_type {name}` does not take loss_scale, and these tokens have the weights of a `--loss_scale`: "
            "let the function take it, or tokenize with `--loss_scale default`"
        )
    if smoothing and "label_smoothing" not in takes:
        raise ArgumentsError(
            f"`--loss_type {name}` does not take label_smoothing: let the function take it, or drop "
            f"`--label_smoothing_factor {smoothing:g}`"
        )
    return RegisteredLoss(name, LOSSES[name], takes, smoothing)


def _check_logits(arguments: TrainArguments, name: str) -> None:
    keep_from_it = {
        f"--sequence_parallel_size {arguments.sequence_parallel_size}": arguments.sequence_parallel_size > 1,
        "--parallelism_config": arguments.parallelism_config is not None,
        "--use_liger true": arguments.use_liger,
        "--use_liger_kernel true": arguments.use_liger_kernel,
    }
    for flag, given in keep_from_it.items():
        if given:
            raise ArgumentsError(
                f"`--loss_type {name}` sees all logits of a row, and with `{flag}` they are not there: drop one of them"
            )


def _keywords(function: Any) -> frozenset[str]:
    """Which of the keywords of `Loss` a function takes."""
    names = ("loss_scale", "num_items_in_batch", "label_smoothing")
    try:
        found = inspect.signature(function).parameters
    except (TypeError, ValueError):  # of something built in
        return frozenset()
    if any(one.kind is inspect.Parameter.VAR_KEYWORD for one in found.values()):
        return frozenset(names)
    return frozenset(name for name in names if name in found)
