"""A lease on a key between hosts that share only a bucket: `with remote_lease(objects, key, home, …) as held: …`.

The lease is an object that its holder renews. Hosts' clocks are not compared: whoever waits watches the object's ETag,
and takes the lease over once it has not changed, by the waiter's own clock, for as long as its holder promised to renew
it within. Each step is a conditional write, so that of several who try one succeeds, and a holder that was cut off
from the server for too long finds at its next renewal that the object is no longer its own.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from stages.artifacts.objects import Objects
from stages.errors import Interrupted, StoreError

__all__ = ["LEASE_SECONDS", "Held", "remote_lease"]

LEASE_SECONDS = 20.0
RENEWALS = 4  # in the time after which a lease that is not renewed may be taken over
FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 1.0

logger = logging.getLogger("martlet.store")


@dataclass
class Held:
    """A lease that this process holds, unless it has lost it.

    Attributes:
        objects: where the lease is.
        key: on what.
        home: the cache folder of the holder, in which it holds the local lease on the same key too.
        seconds: how long a lease stands without being renewed.
    """

    objects: Objects
    key: str
    home: str
    seconds: float = LEASE_SECONDS
    _holder: str = field(default_factory=lambda: os.urandom(16).hex())
    _number: int = 0
    _tag: str | None = None
    _lost: bool = False
    _writing: threading.Lock = field(default_factory=threading.Lock)

    @property
    def name(self) -> str:
        """The lease's object."""
        return f"leases/{self.key}"

    def take(self, over: str | None) -> bool:
        """Tries to become the holder.

        Args:
            over: the ETag of a lease that has not been renewed; None if there is no lease.
        """
        record = self._record()
        if over is None:
            self._tag = self.objects.create(self.name, record)
        else:
            self._tag = self.objects.replace(self.name, record, over)
        return self._tag is not None or self._is_mine()

    def renew(self) -> None:
        """Tells the others that the holder lives.

        Raises:
            StoreError: another has the lease, or the server cannot be asked.
        """
        with self._writing:
            if self._lost or self._tag is None:
                raise self._taken()
            self._number += 1
            tag = self.objects.replace(self.name, self._record(), self._tag)
            if tag is not None:
                self._tag = tag
            elif not self._is_mine():
                self._lost = True
                raise self._taken()

    def keep(self, ended: threading.Event) -> None:
        """Renews until the holder has ended; a server that cannot be asked for a while is asked again."""
        while not ended.wait(self.seconds / RENEWALS):
            try:
                self.renew()
            except StoreError as error:
                logger.warning("the lease on %s could not be renewed: %s", self.key[:12], error)
                if self._lost:
                    return

    def release(self) -> None:
        """Removes the lease; one that another has taken over is left alone."""
        try:
            self.renew()  # fresh, it cannot be taken over before it is removed
            self.objects.delete([self.name])
        except StoreError as error:
            logger.warning("the lease on %s is left to run out: %s", self.key[:12], error)

    def _record(self) -> bytes:
        record = {
            "holder": self._holder,
            "host": socket.gethostname(),
            "process": os.getpid(),
            "home": self.home,
            "seconds": self.seconds,
            "renewals": self._number,
        }
        return json.dumps(record).encode()

    def _is_mine(self) -> bool:
        """Whether a write that seemed to fail was one of ours: it was sent again after its answer was lost."""
        found = self.objects.get_tagged(self.name)
        if found is None or _read(found[0]).get("holder") != self._holder:
            return False
        self._tag = found[1]
        return True

    def _taken(self) -> StoreError:
        return StoreError(
            f"the lease on {self.key[:12]} was lost: this host had no answer from {self.objects.location} for more "
            f"than {self.seconds:.0f} s, and another may compute the same; run it again"
        )


@contextmanager
def remote_lease(
    held: Held,
    on_wait: Callable[[str], None] | None = None,
    stop_requested: Callable[[], bool] = lambda: False,
) -> Iterator[Held]:
    """Holds a lease; it is renewed in the background.

    Args:
        held: the lease to be.
        on_wait: called once, with a text that names the holder, if another host or process has it.
        stop_requested: looked at while waiting.

    Raises:
        Interrupted: `stop_requested` became true while waiting.
        StoreError: the server cannot be asked.
    """
    _wait_for(held, on_wait, stop_requested)
    ended = threading.Event()
    keeper = threading.Thread(target=held.keep, args=(ended,), name="martlet-lease", daemon=True)
    keeper.start()
    try:
        yield held
    finally:
        ended.set()
        keeper.join()
        held.release()


def _wait_for(held: Held, on_wait: Callable[[str], None] | None, stop_requested: Callable[[], bool]) -> None:
    if held.take(None):
        return
    seen, since, pause = "", time.monotonic(), FIRST_PAUSE_SECONDS
    while True:
        found = held.objects.get_tagged(held.name)
        if found is None:
            if held.take(None):
                return
            continue
        record, tag = _read(found[0]), found[1]
        if tag != seen:
            seen, since = tag, time.monotonic()
        silent = time.monotonic() - since
        # Whoever holds the key in the same cache folder holds the local lease too, and that one is ours.
        is_dead = record.get("home") == held.home or silent > float(record.get("seconds", held.seconds))
        if is_dead and held.take(tag):
            logger.info("took the lease on %s over from %s, which is gone", held.key[:12], _who(record))
            return
        if on_wait is not None:
            on_wait(_who(record))
            on_wait = None
        if stop_requested():
            raise Interrupted("stopped while waiting for another run of the same stage")
        time.sleep(pause)
        pause = min(pause * 1.5, LONGEST_PAUSE_SECONDS)


def _read(data: bytes) -> dict[str, Any]:
    with suppress(ValueError):
        record = json.loads(data)
        if isinstance(record, dict):
            return record
    return {}


def _who(record: dict[str, Any]) -> str:
    if "process" in record and "host" in record:
        return f"process {record['process']} on {record['host']}"
    return "another process"
