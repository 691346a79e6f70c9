"""What a store in a bucket costs: throughput of put and pull, and the requests and round trips of a cached plan.

    python benchmarks/remote_store.py [--json] [--rounds 3] [--megabytes 200] [--delay 0.2]

The server is moto's, on this machine and on the same cores: the throughput is what it leaves over, a floor and no
figure of a real bucket. Beside it stands what plain obstore makes of the same server with the same files, one after the
other: the difference is the store's own cost, or its gain from several requests at once. For the round trips the server
waits `--delay` seconds before each answer, as a distant bucket would: a plan's time, less that without delay, in
delays. Needs the test environment (moto).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from stages.artifacts.manifest import Manifest
from stages.artifacts.remote_store import RemoteStore
from stages.artifacts.store import open_store

SERVER = """
import sys, time
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server
application = DomainDispatcherApplication(create_backend_app)
delay, asked = float(sys.argv[1]), 0
def delayed(environ, start):
    global asked
    if environ["PATH_INFO"] == "/-/asked":
        start("200 OK", [])
        return [str(asked).encode()]
    asked += 1
    time.sleep(delay)
    return application(environ, start)
server = make_server("127.0.0.1", 0, delayed, threaded=True)
print(server.server_port, flush=True)
server.serve_forever()
"""
STAGES = 8
FILES = 12  # of a result: shards, tokenizer, configuration


@contextmanager
def server(delay: float) -> Iterator[str]:
    """An S3 server with a bucket, and the variables that name it; answers its address."""
    import boto3

    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(delay)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    url = f"http://127.0.0.1:{int(process.stdout.readline())}"
    os.environ.update(
        AWS_ENDPOINT_URL=url,
        AWS_ALLOW_HTTP="true",
        AWS_ACCESS_KEY_ID="benchmark",
        AWS_SECRET_ACCESS_KEY="benchmark",
        AWS_REGION="us-east-1",
    )
    try:
        boto3.client("s3", endpoint_url=url).create_bucket(Bucket="benchmark")
        yield url
    finally:
        process.kill()
        process.communicate()


def opened(folder: Path, prefix: str, cache: str) -> RemoteStore:
    """A store with a cache of its own."""
    os.environ["MARTLET_CACHE"] = str(folder / cache)
    store = open_store(f"s3://benchmark/{prefix}")
    assert isinstance(store, RemoteStore)
    return store


def seconds(function: Callable[[], object]) -> float:
    """What a call takes."""
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def throughput(folder: Path, megabytes: int, rounds: int) -> dict[str, float]:
    """MB/s of the fastest round: put, put again where all is there, pull, and plain obstore's put and get."""
    import obstore

    source = folder / "source"
    source.mkdir()
    shares = [0.4, 0.3, 0.2] + [0.1 / 20] * 20
    for number, share in enumerate(shares):
        (source / f"{number}.bin").write_bytes(os.urandom(int(megabytes * 1e6 * share)))
    total = sum(path.stat().st_size for path in source.iterdir()) / 1e6
    best: dict[str, float] = {}

    def time_one(name: str, function: Callable[[], object]) -> None:
        best[name] = max(best.get(name, 0.0), round(total / seconds(function), 1))

    with server(0.0):
        for number in range(rounds):
            a, b = opened(folder, f"{number}", f"a{number}"), opened(folder, f"{number}", f"b{number}")
            time_one("put", lambda: a.put(source, "model"))  # noqa: B023 - called at once
            again = opened(folder, f"{number}", f"c{number}")
            time_one("put_again", lambda: again.put(source, "model"))  # noqa: B023
            ref = a.put(source, "model")
            time_one("pull", lambda: b.check_out(ref, folder / "out"))  # noqa: B023
            client, plain = a.objects._large, [(f"plain/{path.name}", path) for path in source.iterdir()]
            time_one("plain_put", lambda: [obstore.put(client, name, path) for name, path in plain])  # noqa: B023
            time_one("plain_get", lambda: [obstore.get(client, name).bytes() for name, _ in plain])  # noqa: B023
            for rest in ("out", f"a{number}", f"b{number}", f"c{number}"):
                shutil.rmtree(folder / rest)
    return {f"{name}_mb_per_second": value for name, value in best.items()}


def plan(folder: Path, delay: float) -> dict[str, float]:
    """Looks up what a recipe of several stages would: all cached, on a host that has seen none of it."""
    from urllib.request import urlopen

    taken = {}
    asked = 0
    for pause in (0.0, delay):
        with server(pause) as url:
            store = opened(folder, "plan", f"plan-{pause}")
            keys = []
            for number in range(STAGES):
                output = folder / f"output-{pause}-{number}"
                output.mkdir()
                for file in range(FILES):
                    (output / f"{file}.json").write_text(f"{number} {file}")
                body = {"stage": "train", "version": 1, "arguments": {}, "inputs": {}, "libraries": {}}
                key = f"{number:064}"
                store.commit(Manifest(store.put(output, "model"), "train", key, body, {}))
                keys.append(key)

            def look_up(name: str, keys: list[str]) -> None:
                other = opened(folder, "plan", name)
                assert all(other.action(key) for key in keys)

            look_up(f"warm-{pause}", keys[:1])  # what is imported and connected first
            before = int(urlopen(f"{url}/-/asked").read())
            taken[pause] = seconds(lambda: look_up(f"cold-{pause}", keys))  # noqa: B023 - called at once
            asked = int(urlopen(f"{url}/-/asked").read()) - before
            taken[-pause - 1] = seconds(lambda: look_up(f"cold-{pause}", keys))  # noqa: B023 - trees in the cache now
    return {
        "stages": STAGES,
        "files_of_a_stage": FILES,
        "requests": asked,
        "seconds": round(taken[0.0], 3),
        "seconds_with_delay": round(taken[delay], 3),
        "delay_seconds": delay,
        "round_trips": round((taken[delay] - taken[0.0]) / delay, 1),
        "round_trips_with_warm_cache": round((taken[-delay - 1] - taken[-1.0]) / delay, 1),
    }


def main() -> int:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--delay", type=float, default=0.2, help="seconds added to each answer")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="remote-store-") as folder:
        found = throughput(Path(folder), options.megabytes, options.rounds)
        planned = plan(Path(folder), options.delay)
    if options.json:
        print(json.dumps({"throughput": found, "plan": planned, "cores": os.cpu_count()}))
        return 0
    for name, value in found.items():
        print(f"{name.removesuffix('_mb_per_second').replace('_', ' '):<12}{value:8.1f} MB/s")
    print(
        f"cached plan of {STAGES} stages with {FILES} files each: {planned['requests']} requests, "
        f"{planned['round_trips']} round trips ({planned['round_trips_with_warm_cache']} with trees in the cache), "
        f"{planned['seconds']:.2f} s here, {planned['seconds_with_delay']:.2f} s with {options.delay} s each"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
