"""Where a run starts: anew, from its own last checkpoint, or from one that the user gives: `find_start(…)`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.errors import ArgumentsError, ModelError
from stages.training import group
from stages.training.devices import shards_weights

if TYPE_CHECKING:
    from stages.arguments import TrainArguments
    from stages.training.checkpoints import Checkpoints

__all__ = ["Start", "find_start"]

NEEDED = ("trainer_state.json", "optimizer.pt", "scheduler.pt")


@dataclass(frozen=True)
class Start:
    """Where a run starts.

    Attributes:
        checkpoint: its weights are taken, if there is one.
        resumes: whether step, optimizer, random state and the order of rows are taken too.
        state: the trainer's state in it.
        ours: whether this very run has written it.
        stopped_early: whether the run had ended there, as its validations did not become better.
    """

    checkpoint: Path | None = None
    resumes: bool = False
    state: dict[str, Any] | None = None
    ours: bool = False
    stopped_early: bool = False

    @property
    def finished(self) -> bool:
        """Whether the run had done its last step and was then interrupted."""
        if not self.ours or self.state is None:
            return False
        return self.stopped_early or self.state["global_step"] >= self.state["max_steps"]


def find_start(
    arguments: TrainArguments, checkpoints: Checkpoints, given: Path | None, num_steps: int, adapter: Path | None = None
) -> Start:
    """Its own last checkpoint, else the given one, else the weights of an adapter, else none.

    Args:
        arguments: whether only weights are taken from the given one.
        checkpoints: the run's own.
        given: the folder of another run's.
        num_steps: optimizer steps of the whole run.
        adapter: whose weights are taken, and nothing else.

    Raises:
        ModelError: the given checkpoint lacks what going on from it needs.
        ArgumentsError: both are given; the checkpoint has done all steps, or lacks the best checkpoint of its run,
            which is to be compared with.
    """
    if given is not None and adapter is not None:
        raise ArgumentsError("training starts either from the input checkpoint or from the input adapter: give one")
    own = checkpoints.newest()
    if own is not None:
        state = _read_state(own)
        return Start(own, True, state, ours=True, stopped_early=_stopped_early(arguments, state))
    if given is None:
        return Start(adapter)
    if arguments.resume_only_model:
        return Start(given)
    needed = NEEDED if shards_weights(arguments) is None else NEEDED[:1]  # others keep an optimizer in their own way
    missing = [name for name in needed if not (given / name).is_file()]
    if missing:
        raise ModelError(
            f"`--resume_from_checkpoint`: the checkpoint has no {missing[0]}: give `--resume_only_model true` "
            "to take only its weights"
        )
    _check_processes(given)
    state = _read_state(given)
    if state["global_step"] >= num_steps:
        raise ArgumentsError(
            f"the checkpoint is at step {state['global_step']} of {num_steps}: nothing is left to train. "
            "Raise `--num_train_epochs` or `--max_steps`, or give `--resume_only_model true`"
        )
    best = state.get("best_global_step")
    if arguments.load_best_model_at_end and best not in (None, state["global_step"]):
        raise ArgumentsError(
            f"`--load_best_model_at_end` compares with step {best} of the run that the checkpoint is from, which it "
            "does not hold: start from that checkpoint, or drop one of the two flags"
        )
    return Start(given, True, state)


def _stopped_early(arguments: TrainArguments, state: dict[str, Any]) -> bool:
    from stages.training.best import best_by
    from stages.training.early_stopping import validations_since_best

    best = best_by(arguments)
    if best is None or arguments.early_stop_interval is None:
        return False
    return validations_since_best(state["log_history"], best) >= arguments.early_stop_interval


def _check_processes(checkpoint: Path) -> None:
    """Each process has a random state of its own, and batches are theirs together.

    Raises:
        ArgumentsError: the checkpoint is of another number of processes.
    """
    several = len(list(checkpoint.glob("rng_state_*.pth")))
    then = several or int((checkpoint / "rng_state.pth").is_file())
    if then not in (0, group.size()):
        raise ArgumentsError(
            f"the checkpoint {checkpoint.name} is of {then} {'processes' if then > 1 else 'process'}, and this run has "
            f"{group.size()}: give `--nproc_per_node {then}`, or `--resume_only_model true` to take only its weights"
        )


def _read_state(checkpoint: Path) -> dict[str, Any]:
    from stages.sources.model_folder import read_json

    state = read_json(checkpoint / "trainer_state.json")
    if not isinstance(state.get("global_step"), int) or not isinstance(state.get("max_steps"), int):
        raise ModelError(f"{checkpoint.name}/trainer_state.json is not that of a training")
    return state
