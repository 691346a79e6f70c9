"""What push_to_hub needs of a hub, and what the hubs' clients have in common: `check_repo_id("me/name")`."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from stages.errors import ArgumentsError, MartletError, StageFailed, UserError

__all__ = ["Hub", "Published", "causes", "check_repo_id", "public_already", "reporting", "retried"]

REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
MAX_NAME_LENGTH = 96
ATTEMPTS = 4
FIRST_PAUSE_SECONDS = 0.5

T = TypeVar("T")
logger = logging.getLogger("martlet.push_to_hub")


@dataclass(frozen=True)
class Published:
    """Where a model is now.

    Attributes:
        commit: that holds it.
        url: of the repository's page.
    """

    commit: str
    url: str


class Hub(Protocol):
    """One hub, with a token.

    Attributes:
        title: for people.
        token_name: the secret that it wants.
    """

    title: str
    token_name: str

    def user(self) -> str:
        """Whom the token belongs to."""

    def make_repository(self, repo_id: str, *, private: bool) -> None:
        """Makes the repository if it is not there; refuses one that is public where a private one is wanted."""

    def upload(self, folder: Path, repo_id: str, message: str) -> Published:
        """Uploads all of a folder in one commit."""


def check_repo_id(repo_id: str) -> None:
    """Refuses what no hub takes for the name of a repository.

    Raises:
        ArgumentsError: saying what a name looks like.
    """
    name = repo_id.partition("/")[2]
    if (
        not REPO_ID.fullmatch(repo_id)
        or len(repo_id) > MAX_NAME_LENGTH
        or any(bad in repo_id for bad in ("--", ".."))
        or name.endswith((".git", ".", "-"))
    ):
        raise ArgumentsError(
            f"`--hub_model_id {repo_id}` is no repository: give group/name, of letters, digits, single - and ., and _"
        )


def public_already(repo_id: str, title: str) -> UserError:
    """The refusal to put into a public repository what was meant to be private."""
    return ArgumentsError(
        f"`--hub_private_repo true`: {repo_id} is a public repository on {title}: make it private there, "
        "or give another `--hub_model_id`"
    )


def retried(call: Callable[[], T], passes: Callable[[Exception], bool]) -> T:
    """Calls again, after a pause that doubles, while what went wrong may pass by itself.

    Args:
        call: what can be done twice.
        passes: whether an error may pass: a server's 5xx, a lost connection.
    """
    pause = FIRST_PAUSE_SECONDS
    for attempt in range(1, ATTEMPTS):
        try:
            return call()
        except Exception as error:
            if isinstance(error, MartletError) or not passes(error):
                raise
            logger.warning("attempt %d of %d failed (%s); again in %.1f s", attempt, ATTEMPTS, _reason(error), pause)
            time.sleep(pause)
            pause *= 2
    return call()


@contextmanager
def reporting(hub: Hub, repo_id: str, token: str, refused: Callable[[Exception], bool]) -> Iterator[None]:
    """What a hub's library raises, as one line that does not hold the token.

    Args:
        hub: which.
        repo_id: the repository.
        token: taken out of messages.
        refused: whether an error means that the token is not good enough.
    """
    try:
        yield
    except MartletError:
        raise
    except Exception as error:
        if refused(error):
            raise UserError(
                f"{hub.title} refuses the token in {hub.token_name} for {repo_id}: it is wrong, has expired, "
                "or may not write there"
            ) from None
        reason = _reason(error).replace(token, "***")
        raise StageFailed(f"{repo_id} could not be pushed to {hub.title}: {reason}") from None


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error, and what it was raised from: the clients wrap an upload's failure in one that says nothing."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__


def _reason(error: Exception) -> str:
    lines = []
    for one in causes(error):
        first = next((line.strip() for line in str(one).splitlines() if line.strip()), type(one).__name__)
        lines.append(first[:300])
    return " ".join(lines)
