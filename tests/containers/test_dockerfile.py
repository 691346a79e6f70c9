"""What the Dockerfile and its companions promise, without building anything."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
CONTAINERS = PROJECT / "containers"
DOCKERFILE = (CONTAINERS / "Dockerfile").read_text()
TRACKED = [
    *(CONTAINERS / name for name in ("Dockerfile", "Dockerfile.dockerignore", "install.sh", "build.sh")),
    *(CONTAINERS / name for name in ("stand_in_base.sh", "debian_engine.sh", "compose.yaml")),
    *(CONTAINERS / "pools").glob("*.json"),
]


def test_every_environment_has_an_image() -> None:
    locks = {lock.parent.name for lock in CONTAINERS.glob("*/requirements.lock")} - {"dev"}
    assert set(re.findall(r"^FROM tools AS (\w+)-packages$", DOCKERFILE, re.MULTILINE)) == locks
    for name in locks:
        assert re.search(rf"^FROM (base|core) AS {name}$", DOCKERFILE, re.MULTILINE)
        assert f"COPY --from={name}-packages /opt/environments /opt/environments" in DOCKERFILE


def test_the_image_and_the_local_environments_are_made_by_the_same_uv() -> None:
    versions = set()
    for path in (CONTAINERS / "install.sh", PROJECT / "Makefile"):
        versions |= set(re.findall(r"uv==([\d.]+)", path.read_text()))
    assert len(versions) == 1


def test_prefect_is_the_same_in_every_environment() -> None:
    for package in ("prefect", "fastapi"):
        pinned = {
            lock.parent.name: version.group(1)
            for lock in CONTAINERS.glob("*/requirements.lock")
            if (version := re.search(rf"^{package}==(\S+)", lock.read_text(), re.MULTILINE))
        }
        assert {"core", "worker"} <= set(pinned)
        assert len(set(pinned.values())) == 1, pinned


@pytest.mark.parametrize("path", TRACKED, ids=lambda path: path.name)
def test_no_front_end_no_registry_no_path_of_a_machine_is_baked_in(path: Path) -> None:
    text = path.read_text()
    assert "# syntax=" not in text
    assert not re.search(r"https?://(?!127\.0\.0\.1|server:)", text)
    assert not re.search(r"--(index-url|trusted-host|extra-index-url)", text)
    assert "ARG PIP_" not in text
    assert "ARG UV_INDEX" not in text
