"""What README and prefect.yaml name is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from flows.cli import COMMANDS
from flows.pipeline import PIPELINE_NAMES, get_pipeline
from stages.arguments.command_line import parse
from stages.registry import STAGE_NAMES, get_stage

PROJECT = Path(__file__).resolve().parents[1]
README = (PROJECT / "README.md").read_text()
DEPLOYMENTS = yaml.safe_load((PROJECT / "prefect.yaml").read_text())["deployments"]


def console_lines(program: str) -> list[list[str]]:
    """The commands of README's console blocks that begin with a program's name."""
    blocks = re.findall(r"```console\n(.*?)```", README, flags=re.S)
    lines = [line.split("#")[0].split() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line and line[0] == program]


def flow_of(deployment: dict[str, str]) -> str:
    return deployment["entrypoint"].rsplit(".", 1)[-1]


def test_every_command_has_a_line_in_the_readme() -> None:
    named = set(re.findall(r"`(?:martlet )?([a-z]+)[^`]*`", "".join(re.findall(r"^\| .* \|$", README, flags=re.M))))
    not_yet = {name for name, (_, text) in COMMANDS.items() if "not supported yet" in text}
    assert set(COMMANDS) - not_yet <= named


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (PROJECT / "Makefile").read_text(), flags=re.M))
    assert {line[1] for line in console_lines("make")} == {"quickstart", "test"}
    assert {"quickstart", "test", "check"} <= targets


@pytest.mark.parametrize("line", console_lines("martlet"), ids=" ".join)
def test_the_readmes_martlet_commands_are_accepted(
    line: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command, words = line[1], line[2:]
    assert command in COMMANDS
    if command in PIPELINE_NAMES:
        monkeypatch.chdir(tmp_path)
        for folder in [word for word in words if word.startswith("output/")]:
            (tmp_path / folder).mkdir(parents=True)
            (tmp_path / folder / "adapter_config.json").write_text('{"base_model_name_or_path": "M"}')
        parse(words, get_pipeline(command).arguments, prog="martlet")
    elif command == "run":
        assert (PROJECT / words[0]).is_file()


def test_the_readmes_deployments_exist() -> None:
    known = {f"{flow_of(deployment).replace('_', '-')}/{deployment['name']}" for deployment in DEPLOYMENTS}
    named = set(re.findall(r"prefect deployment run ([a-z-]+/[a-z]+)", README))
    assert named
    assert named <= known


def test_every_flow_and_every_stage_is_deployed_on_the_queue_that_it_needs() -> None:
    flows = {name.replace("-", "_") for name in PIPELINE_NAMES}
    by_flow = {flow_of(deployment): deployment for deployment in DEPLOYMENTS if flow_of(deployment) not in flows}
    assert set(by_flow) == {*STAGE_NAMES, "check"}
    places = {
        (flow_of(deployment), deployment["name"]): deployment["work_pool"]["work_queue_name"]
        for deployment in DEPLOYMENTS
        if flow_of(deployment) in flows
    }
    assert places == {(flow, name): queue for flow in flows for name, queue in (("local", "gpu"), ("workers", "cpu"))}
    for name in STAGE_NAMES:
        need = get_stage(name).need
        deployment = by_flow[name]
        assert (deployment["name"], deployment["work_pool"]["work_queue_name"], deployment["tags"]) == (
            need,
            need,
            ["martlet", need],
        )
