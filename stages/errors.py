"""Every exception that Martlet raises on purpose, and the exit code that it ends a command with.

MartletError
├── UserError            exit 2: the input is wrong; retrying cannot help
│   ├── ArgumentsError   a flag, a recipe, a conflict between two of them
│   ├── DataError        a dataset that is missing, empty or malformed
│   ├── ModelError       a model folder that is missing, incomplete or corrupt
│   ├── UnknownReference a digest, run or stage that the store does not know
│   ├── MissingPackage   a library, environment or device that is not here
│   └── WrongWorker      a machine whose code or libraries are not those of the flow that asked
├── StageFailed          exit 1: a stage broke down; retrying may help
│   ├── StoreError       the store cannot be read or written (no space, no permission)
│   └── CorruptArtifact  a blob is not what it was when it was stored
└── Interrupted          exit 130: told to stop; the scratch folder keeps what was done
"""

from __future__ import annotations

__all__ = [
    "ArgumentsError",
    "CorruptArtifact",
    "DataError",
    "Interrupted",
    "MartletError",
    "MissingPackage",
    "ModelError",
    "StageFailed",
    "StoreError",
    "UnknownReference",
    "UserError",
    "WrongWorker",
]


class MartletError(Exception):
    """The root: its message is one line, ready to be shown after `error: `."""

    exit_code = 1


class UserError(MartletError):
    """The input is wrong: the fact, the value given, the choices or closest match, the next command."""

    exit_code = 2


class ArgumentsError(UserError, ValueError):
    """A flag, a recipe key or a combination of them cannot be honoured. A ValueError too, as pydantic's are."""


class DataError(UserError):
    """A dataset is missing, empty or malformed."""


class ModelError(UserError):
    """A model folder is missing, incomplete or corrupt."""


class UnknownReference(UserError):
    """A digest, run or stage that the store does not know."""


class MissingPackage(UserError):
    """A library, environment or device that the request needs is not on this machine."""


class WrongWorker(UserError):
    """A machine was asked for a result that its code, libraries or Python would not give."""


class StageFailed(MartletError):
    """A stage broke down; the same command may succeed later and resumes where it can."""


class StoreError(StageFailed):
    """The store cannot be read or written."""


class CorruptArtifact(StageFailed):
    """A blob in the store is not what it was when it was stored."""


class Interrupted(MartletError):
    """The run was told to stop; what is in the scratch folder is kept for the next try."""

    exit_code = 130
