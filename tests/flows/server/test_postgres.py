"""Postgres as the Prefect server's database: `martlet setup`, a worker and a deployment, all on Debian's packages."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.flows.conftest import Martlet, answers, free_port, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.server]

PASSWORD = "only-for-this-test"


@contextmanager
def running(command: list[str], log: Path, environment: dict[str, str], **options: object) -> Iterator[None]:
    """A process that lasts as long as the block."""
    with log.open("w") as file:
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=file, **options)  # type: ignore[call-overload]
        try:
            yield
        finally:
            process.terminate()
            process.wait(30)


@dataclass(frozen=True)
class Postgres:
    """A database server on 127.0.0.1 with a database and a role `prefect`."""

    programs: Path
    port: int

    @property
    def url(self) -> str:
        """As Prefect wants it."""
        return f"postgresql+asyncpg://prefect:{PASSWORD}@127.0.0.1:{self.port}/prefect"

    def ask(self, query: str) -> str:
        """The answer of psql, without its table."""
        command = [str(self.programs / "psql"), "-h", "127.0.0.1", "-p", str(self.port), "-U", "prefect", "-Atc", query]
        environment = {**os.environ, "PGPASSWORD": PASSWORD}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=False)
        return done.stdout.strip()


def programs() -> Path:
    """The folder of initdb and postgres; Debian does not put it on the path."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    for folder in reversed(folders):
        if all((folder / program).exists() for program in ("initdb", "postgres", "psql")):
            return folder
    pytest.skip("needs Postgres: apt-get install postgresql")


def unprivileged() -> dict[str, str]:
    """Options that start a process as somebody else where root runs the tests: Postgres refuses to run as root."""
    if os.getuid() != 0:
        return {}
    names = {entry.pw_name for entry in pwd.getpwall()}
    return {"user": "postgres" if "postgres" in names else "nobody"}


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    """A fresh cluster, in a folder that another user than the tests' own may enter."""
    bin_folder, options = programs(), unprivileged()
    with tempfile.TemporaryDirectory(prefix="postgres-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        (folder / "password").write_text(PASSWORD)
        if options:
            for path in (folder, folder / "password"):
                shutil.chown(path, options["user"])
        initdb = [bin_folder / "initdb", "--pgdata", folder / "data", "--username", "prefect", "--no-sync"]
        initdb += [
            "--pwfile",
            folder / "password",
            "--auth",
            "scram-sha-256",
            "--encoding",
            "UTF8",
            "--locale",
            "C.UTF-8",
        ]
        subprocess.run(initdb, cwd=folder, stdout=subprocess.DEVNULL, timeout=120, check=True, **options)
        server = Postgres(bin_folder, free_port())
        settings = {
            "port": server.port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": folder,
            "fsync": "off",
        }
        words = [word for key, value in settings.items() for word in ("-c", f"{key}={value}")]
        command = [str(bin_folder / "postgres"), "-D", str(folder / "data"), *words]
        (folder / "log").touch()
        with running(command, folder / "log", dict(os.environ), cwd=folder, **options):
            create = [bin_folder / "createdb", "-h", "127.0.0.1", "-p", str(server.port), "-U", "prefect", "prefect"]
            given = {**os.environ, "PGPASSWORD": PASSWORD}
            wait_until(lambda: subprocess.run(create, env=given, capture_output=True, check=False).returncode == 0, 30)
            yield server


@pytest.fixture(scope="module")
def martlet(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Martlet]:
    """`martlet` on a Prefect server that keeps everything in Postgres."""
    folder = tmp_path_factory.mktemp("on-postgres")
    port = free_port()
    environment = {
        **os.environ,
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "MARTLET_STORE": str(folder / "store"),
        "COLUMNS": "200",
    }
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    on_postgres = {**environment, "PREFECT_SERVER_DATABASE_CONNECTION_URL": postgres.url}
    with running(command, folder / "server.log", on_postgres):
        wait_until(lambda: answers(f"http://127.0.0.1:{port}/api/health"), 120)
        yield Martlet(environment, folder)


def test_setup_and_a_deployment_on_a_worker(postgres: Postgres, martlet: Martlet) -> None:
    assert "created" in martlet("setup").stdout
    deployments = postgres.ask("select count(*) from deployment")
    assert int(deployments) > 8
    assert "created" not in martlet("setup").stdout
    assert postgres.ask("select count(*) from deployment") == deployments

    (martlet.folder / "rows.jsonl").write_text('{"query": "q", "response": "r"}\n' * 4)
    worker = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "martlet"]
    run = [sys.executable, "-m", "prefect", "deployment", "run", "preprocess/cpu", "-p", 'dataset=["rows.jsonl"]']
    log = martlet.folder / "worker.log"
    with running(worker, log, martlet.environment, cwd=martlet.folder):
        done = subprocess.run(
            [*run, "--watch"], cwd=martlet.folder, env=martlet.environment, capture_output=True, text=True, timeout=120,
            check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr + log.read_text()[-3000:]
    assert postgres.ask("select state_name from flow_run") == "Completed"
    assert [made["kind"] for made in martlet.json("artifacts", "list")] == ["dataset", "files"]
    assert not list((martlet.folder / "prefect").glob("*.db"))
