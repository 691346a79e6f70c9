"""From what a user typed, on whichever surface, to checked arguments and the folder that the results go to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.output import OutputFolder, model_suffix
from stages.arguments import ExportArguments
from stages.arguments.base import Arguments
from stages.arguments.training import OutputArguments
from stages.artifacts.store import open_store

if TYPE_CHECKING:
    from flows.tasks import How

__all__ = ["deployed_output_folder", "given_parameters", "output_folder"]


def given_parameters(arguments: Arguments) -> dict[str, Any]:
    """What the user gave, as JSON values: what a flow run is called with, recorded with and repeated with."""
    return arguments.model_dump(mode="json", include=set(arguments.model_fields_set), exclude_defaults=True)


def output_folder(arguments: Arguments) -> OutputFolder:
    """Where a run's results go: `output/<model>/v<N>-<time>`, or beside the checkpoint that is exported.

    Raises:
        ArgumentsError: the folder for an export exists and is not a former export.
    """
    store = open_store()
    if isinstance(arguments, OutputArguments):
        root = Path(arguments.output_dir or Path("output") / model_suffix(getattr(arguments, "model", "")))
        output = OutputFolder(store, root, arguments.add_version, arguments)
        output.check_run_folder()
        return output
    if isinstance(arguments, ExportArguments):
        return _export_folder(arguments, OutputFolder(store, Path(), add_version=False, arguments=arguments))
    raise TypeError(type(arguments).__name__)


def deployed_output_folder(arguments: Arguments, how: How) -> OutputFolder | None:
    """The folder of a run that a worker started: none where stages run on other workers, unless one was named.

    Such a run's own disk is a container's; `martlet artifacts export` brings the result to wherever it is wanted.
    """
    if how.run_on == "workers" and not getattr(arguments, "output_dir", None):
        return None
    return output_folder(arguments)


def _export_folder(arguments: ExportArguments, output: OutputFolder) -> OutputFolder:
    products = ["merged"] if arguments.adapters and (arguments.merge_lora or arguments.quant_method) else []
    if arguments.quant_method:
        products.append(f"{arguments.quant_method}-int{arguments.quant_bits}")
    if arguments.output_dir and len(products) == 1:
        output.single = Path(arguments.output_dir)
    elif arguments.output_dir:
        output.root = Path(arguments.output_dir)
    if arguments.adapters and not arguments.output_dir:
        output.checkpoint = Path(arguments.adapters[0])
    output.check_free(products)
    return output
