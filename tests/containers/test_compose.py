"""compose.yaml: valid, keeps to itself; started for real, with Postgres under the server and its page by HTTP."""

from __future__ import annotations

import httpx
import pytest
import yaml

from tests.containers.conftest import Compose, Stack


def test_it_is_valid_and_keeps_to_itself(compose_command: list[str]) -> None:
    services = yaml.safe_load(Compose(compose_command)("config"))["services"]
    assert set(services) == {"database", "server", "setup", "evaluate", "worker-cpu", "worker-gpu"}
    published = [port for service in services.values() for port in service.get("ports", [])]
    assert len(published) == 1
    assert "127.0.0.1" in str(published[0])
    for name in ("worker-cpu", "worker-gpu", "server", "setup"):
        assert services[name]["read_only"] is True
    for name in ("cpu", "gpu"):
        command = services[f"worker-{name}"]["command"]
        assert command[command.index("--work-queue") + 1] == name
    built = {service["build"]["args"]["ENVIRONMENT"] for service in services.values() if "build" in service}
    assert built == {"core", "evaluate", "worker"}


@pytest.mark.docker
@pytest.mark.slow
def test_the_server_keeps_its_runs_in_postgres_and_shows_its_page(stack: Stack) -> None:
    query = ["--tuples-only", "--command", "select count(*) from deployment"]
    rows = stack.compose("exec", "-T", "database", "psql", "--username", "prefect", *query)
    assert int(rows) == stack.post("deployments/count", {}) > 10
    page = stack.url.removesuffix("/api")
    assert httpx.get(page + "/", timeout=30, follow_redirects=True).status_code == 200
    assert httpx.get(page + "/ui-settings", timeout=30).json()["api_url"] == "/api"
