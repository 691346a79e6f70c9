"""Publishes on ModelScope, or on what MODELSCOPE_ENDPOINT names: `ModelScope(token).upload(folder, repo_id, …)`."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, TypeVar

from stages.publishing.hub import Published, public_already, reporting

__all__ = ["ModelScope"]

T = TypeVar("T")


class ModelScope:
    """The hub of modelscope_hub, with one token."""

    title = "ModelScope"
    token_name = "MODELSCOPE_API_TOKEN"

    def __init__(self, token: str) -> None:
        """Asks nothing yet."""
        from modelscope_hub import HubApi
        from modelscope_hub.config import HubConfig

        self._token = token
        config = HubConfig(token=token)
        self._endpoint = str(config.endpoint).rstrip("/")
        self._api = HubApi(config)

    def user(self) -> str:
        """Whom the token belongs to.

        Raises:
            UserError: the token is refused.
        """
        return str(self._ask("the account", self._api.whoami).username)

    def make_repository(self, repo_id: str, *, private: bool) -> None:
        """Makes the repository if it is not there.

        Raises:
            ArgumentsError: it is there and public, and `private` is asked for.
        """
        if self._ask(repo_id, lambda: self._api.repo_exists(repo_id, "model")):
            if private and not _is_private(self._ask(repo_id, lambda: self._api.get_repo(repo_id, "model"))):
                raise public_already(repo_id, self.title)
            return
        visibility = "private" if private else "public"
        self._ask(repo_id, lambda: self._api.create_repo(repo_id, "model", visibility=visibility))

    def upload(self, folder: Path, repo_id: str, message: str) -> Published:
        """Uploads all of a folder; many or large files become several commits, of which the last is answered."""
        made = self._ask(
            repo_id,
            lambda: self._api.upload_folder(
                repo_id, "model", folder, commit_message=message, disable_tqdm=True, use_cache=False
            ),
        )
        last: Any = made[-1] if isinstance(made, list) else made
        return Published(_commit(last), f"{self._endpoint}/models/{repo_id}")

    def _ask(self, what: str, call: Callable[[], T]) -> T:
        # The client tries again by itself, for about a minute.
        with reporting(self, what, self._token, _is_refusal), _hushed():
            return call()


@contextmanager
def _hushed() -> Iterator[None]:
    """The client prints a table to stdout, where `--json` has its one line, and logs each step by itself."""
    chatter = logging.getLogger("modelscope_hub")
    level = chatter.level
    chatter.setLevel(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        chatter.setLevel(level)


def _is_private(repo: Any) -> bool:
    from modelscope_hub.constants import Visibility

    return bool(repo.private) or repo.visibility == Visibility.PRIVATE


def _commit(answer: Any) -> str:
    """The id of a commit, under whichever name the server gives it; empty if nothing had changed."""
    if not isinstance(answer, dict):
        return ""
    for name in ("oid", "commit_id", "CommitId", "Id", "Sha", "sha"):
        if answer.get(name):
            return str(answer[name])
    return _commit(answer.get("Data"))


def _is_refusal(error: Exception) -> bool:
    from modelscope_hub.errors import AuthenticationError, PermissionDeniedError

    return isinstance(error, (AuthenticationError, PermissionDeniedError))
