"""A flow has two signatures: all parameters for those who call it, a shorter list for the form."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from prefect.utilities.callables import get_call_parameters, parameter_schema

from flows.deployments import get_flow


@pytest.fixture(scope="module")
def quantize() -> Any:
    return get_flow("quantize")


def test_a_call_takes_what_the_form_leaves_out(quantize: Any) -> None:
    called = get_call_parameters(quantize.fn, (), {"model": "sha256:1", "artifacts": {"model": "sha256:2"}})
    assert called["artifacts"] == {"model": "sha256:2"}
    assert called["quant_bits"] is None
    assert "artifacts" not in inspect.signature(quantize).parameters


def test_what_a_stage_reads_comes_before_its_arguments(quantize: Any) -> None:
    fields = parameter_schema(quantize).model_dump_for_openapi()["properties"]
    assert list(fields)[:5] == ["model", "tokens", "force", "quant_method", "quant_bits"]
    assert fields["model"]["type"] == "string"
    assert fields["model"]["description"].endswith("model, as sha256:… from the store, or a path.")
    assert fields["tokens"]["description"].endswith("Not needed.")
    assert fields["force"]["default"] is False


def test_a_flow_under_another_name_is_called_alike(quantize: Any) -> None:
    named = quantize.with_options(flow_run_name="quant_bits 8")
    assert named.flow_run_name == "quant_bits 8"
    assert "asked" in inspect.signature(named.fn).parameters


def test_no_schema_is_made_of_a_flow_that_only_runs(quantize: Any) -> None:
    for made in (quantize, quantize.with_options(name="other")):
        assert set(made.parameters.properties) == {"parameters"}


def test_the_whole_flow_leaves_where_it_runs_to_the_deployment() -> None:
    flow = get_flow("sft_then_export")
    assert "run_on" not in inspect.signature(flow).parameters
    assert "run_on" in inspect.signature(flow.fn).parameters
