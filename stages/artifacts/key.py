"""The action key: what a stage's result depends on, as one digest; and why it differs: `explain(body, previous)`.

`key, body = action_key(STAGE, arguments, {"model": tree.view_digest(["**"])})`
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from stages.artifacts.hashing import digest_of_json

if TYPE_CHECKING:
    from stages.arguments.base import Arguments
    from stages.stage import Stage

__all__ = ["action_key", "changes", "compact", "explain", "library_versions"]

NEVER_RUN = "never run before"
MAX_CHANGES = 4
MAX_VALUE_LENGTH = 40
NOT_GIVEN = object()


def action_key(stage: Stage[Any], arguments: Arguments, inputs: Mapping[str, str]) -> tuple[str, dict[str, Any]]:
    """The key of a stage's run, and its body, which is kept beside the result so that a change can be explained.

    Args:
        stage: its name, version and libraries enter the key.
        arguments: those that differ from their default and change the output do.
        inputs: the digest of what the stage reads of each input, by the input's name.
    """
    body = {
        "stage": stage.name,
        "version": stage.version,
        "arguments": arguments.key_fields(),
        "inputs": dict(inputs),
        "libraries": library_versions(stage.libraries_of(arguments)),
    }
    return digest_of_json(body), body


def library_versions(distributions: Iterable[str]) -> dict[str, str | None]:
    """The version of each distribution, None where there is none.

    Args:
        distributions: what is installed here; as `environment/name`, what another environment's lock holds.
    """
    versions = {}
    for distribution in sorted(distributions):
        environment, _, name = distribution.rpartition("/")
        versions[name] = _locked_version(environment, name) if environment else _library_version(name)
    return versions


@lru_cache
def _locked_version(environment: str, distribution: str) -> str | None:
    """What `containers/ENVIRONMENT/requirements.lock` pins: an environment that is not made from it is refused."""
    from stages.environments import PROJECT

    lock = PROJECT / "containers" / environment / "requirements.lock"
    pinned = (line.split(" ")[0].partition("==") for line in lock.read_text().splitlines())
    return next((pin.split("+")[0] for name, _, pin in pinned if name == distribution), None)


@lru_cache
def _library_version(distribution: str) -> str | None:
    try:
        return version(distribution).split("+")[0]  # torch 2.13.0+cpu and 2.13.0 are one version
    except PackageNotFoundError:
        return None


def explain(
    body: Mapping[str, Any], previous: Iterable[Mapping[str, Any]], defaults: Mapping[str, Any] | None = None
) -> str:
    """Why a stage has to run, against the most similar run before: `learning_rate 1e-4 → 2e-4`.

    Args:
        body: the body of the key that was not found.
        previous: the bodies that were, newest first.
        defaults: the default of each argument, to be shown where one of the two runs did not give it.
    """
    closest: list[str] | None = None
    for other in previous:
        found = changes(other, body, defaults or {})
        if closest is None or len(found) < len(closest):
            closest = found
    if closest is None:
        return NEVER_RUN
    if not closest:
        return "its result is no longer whole in the store"
    more = len(closest) - MAX_CHANGES
    return ", ".join(closest[:MAX_CHANGES]) + (f" and {more} more" if more > 0 else "")


def changes(before: Mapping[str, Any], after: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[str]:
    """Every difference between two bodies, in words, the most telling first."""
    found = []
    if before["version"] != after["version"]:
        found.append(f"stage version {before['version']} → {after['version']}")
    found += [
        f"{name} {_shown(old, name, defaults)} → {_shown(new, name, defaults)}"
        for name, old, new in _differences(before["arguments"], after["arguments"])
    ]
    for name, old, new in _differences(before["inputs"], after["inputs"]):
        what = "added" if old is NOT_GIVEN else "removed" if new is NOT_GIVEN else "changed"
        found.append(f"input {name} {what}")
    for name, old, new in _differences(before["libraries"], after["libraries"]):
        found.append(f"{name} {_version(old)} → {_version(new)}")
    return found


def _differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterable[tuple[str, Any, Any]]:
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name, NOT_GIVEN), after.get(name, NOT_GIVEN)
        if old is NOT_GIVEN or new is NOT_GIVEN or old != new:
            yield name, old, new


def _shown(value: Any, name: str, defaults: Mapping[str, Any]) -> str:
    if value is NOT_GIVEN:
        return compact(defaults[name]) if name in defaults else "default"
    return compact(value)


def _version(value: Any) -> str:
    return "not installed" if value is None or value is NOT_GIVEN else str(value)


def compact(value: Any) -> str:
    """A value as a person would write it on a command line: 1e-4, 0.05, true, q_proj v_proj."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return _compact_float(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        text = " ".join(compact(part) for part in value) or "nothing"
    else:
        text = str(value) or '""'
    return text if len(text) <= MAX_VALUE_LENGTH else text[: MAX_VALUE_LENGTH - 1] + "…"


def _compact_float(value: float) -> str:
    if not math.isfinite(value):
        return str(value)
    plain = repr(value).removesuffix(".0")
    if value == 0 or 0.01 <= abs(value) < 1e6:
        return plain
    mantissa, exponent = f"{value:.15e}".split("e")
    short = f"{mantissa.rstrip('0').removesuffix('.')}e{int(exponent)}"
    return min(plain, short, key=len)
