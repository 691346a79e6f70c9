"""Digests as people write them: `name_of(ref)`, `digits_of("sha256:ab12cd34")`, `the_one(names, prefix, location)`."""

from __future__ import annotations

import re
from collections.abc import Sequence

from stages.artifacts.interface import Reference
from stages.artifacts.reference import ArtifactRef
from stages.errors import UnknownReference

__all__ = ["digits_of", "name_of", "the_one", "unknown"]

SHORTEST_PREFIX = 8


def name_of(reference: Reference) -> str:
    """The 64 hexadecimal digits that name an artifact's tree."""
    digest = reference.digest if isinstance(reference, ArtifactRef) else reference
    return digest.removeprefix("sha256:")


def digits_of(prefix: str) -> str:
    """The digits of a digest that may be cut short: `sha256:` (may be left out) and 8 digits or more.

    Raises:
        UnknownReference: it is none.
    """
    digits = prefix.removeprefix("sha256:").rstrip("….").lower()
    if not re.fullmatch(f"[0-9a-f]{{{SHORTEST_PREFIX},64}}", digits):
        raise UnknownReference(
            f"{prefix!r} is not a digest: give sha256: and {SHORTEST_PREFIX} to 64 hexadecimal digits"
        )
    return digits


def the_one(digests: Sequence[str], prefix: str, location: str) -> str:
    """The only digest of those that begin with `prefix`.

    Raises:
        UnknownReference: there is none, or there are several.
    """
    if not digests:
        raise UnknownReference(unknown(prefix, location))
    if len(digests) > 1:
        shown = len("sha256:") + len(digits_of(prefix)) + 8
        raise UnknownReference(
            f"{prefix} is ambiguous: it may be {', '.join(digest[:shown] for digest in digests[:5])}"
        )
    return digests[0]


def unknown(digest: str, location: str) -> str:
    """The line for an artifact that a store does not have."""
    return f"no artifact {digest} in the store {location}; `martlet artifacts list` shows what there is"
