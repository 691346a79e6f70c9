"""An S3 server (moto's) in a process of its own, and a log of what it was asked: `python s3_server.py HOST PORT LOG`.

A line of the log: client, method, path with query, bytes received, bytes sent. It prints its port once it listens.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

Start = Callable[..., Any]


CONDITIONS = ("HTTP_IF_MATCH", "HTTP_IF_NONE_MATCH")


class Logged:
    """A WSGI application, and a line for each of its answers.

    Conditional writes are made one after the other: S3 promises that of two that try to create an object one succeeds,
    and moto, which looks first and writes then, in several threads, does not keep the promise by itself.
    """

    def __init__(self, application: Any, log: str) -> None:
        self.application = application
        self.file = open(log, "a", buffering=1)  # noqa: PTH123, SIM115 - open as long as the process lives
        self.writing = threading.Lock()
        self.changing = threading.Lock()

    def __call__(self, environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        writes = environ["REQUEST_METHOD"] in ("PUT", "POST", "DELETE")
        conditional = any(name in environ for name in CONDITIONS) or environ["REQUEST_METHOD"] == "DELETE"
        with self.changing if writes and conditional else nullcontext():
            content = b"".join(self.application(environ, start))
        query = f"?{environ['QUERY_STRING']}" if environ["QUERY_STRING"] else ""
        words = (environ["REMOTE_ADDR"], environ["REQUEST_METHOD"], environ["PATH_INFO"] + query)
        with self.writing:  # before the client knows that it was answered
            print(*words, environ.get("CONTENT_LENGTH") or 0, len(content), file=self.file)
        return [content]


def main() -> None:
    """Serves until its parent is gone."""
    host, port, log = sys.argv[1:]
    application = Logged(DomainDispatcherApplication(create_backend_app), log)
    server = make_server(host, int(port), application, threaded=True)
    print(server.server_port, flush=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    while os.read(0, 1):  # the parent holds the other end
        pass


if __name__ == "__main__":
    main()
