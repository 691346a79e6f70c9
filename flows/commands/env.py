"""`martlet env create NAME|all`, `martlet env list`: environments from the locks in containers/, without Docker."""

from __future__ import annotations

import json

from stages.environments import create, environments

from flows.commands.common import split_json
from stages.errors import ArgumentsError

__all__ = ["main"]

USAGE = "usage: martlet env create NAME|all\n       martlet env list [--json]"


def main(_command: str, argv: list[str]) -> int:
    """Makes or lists environments."""
    argv, as_json = split_json(argv)
    if not argv or "--help" in argv or "-h" in argv:
        print(USAGE)
        return 0
    known = environments()
    if argv == ["list"]:
        if as_json:
            print(json.dumps([{"name": e.name, "state": e.state, "path": str(e.path)} for e in known]))
        else:
            for environment in known:
                print(f"{environment.name:<12} {environment.state:<10} {environment.path}")
        return 0
    if len(argv) != 2 or argv[0] != "create":
        raise ArgumentsError(f"martlet env takes `list` or `create NAME`. {USAGE.splitlines()[0]}")
    names = [environment.name for environment in known]
    if argv[1] not in [*names, "all"]:
        raise ArgumentsError(f"unknown environment {argv[1]!r}. Choose from: {', '.join(names)}, all")
    for name in names if argv[1] == "all" else [argv[1]]:
        print(f"{name}: {create(name)}")
    return 0
