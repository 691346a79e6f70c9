"""Publishes on the Hugging Face hub, or on what HF_ENDPOINT names: `HuggingFace(token).upload(folder, repo_id, …)`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from stages.publishing.hub import Published, causes, public_already, reporting, retried

__all__ = ["HuggingFace"]

T = TypeVar("T")
REFUSED = (401, 403)


class HuggingFace:
    """The hub of huggingface_hub, with one token."""

    title = "Hugging Face"
    token_name = "HF_TOKEN"

    def __init__(self, token: str) -> None:
        """Asks nothing yet."""
        from huggingface_hub import HfApi

        self._token = token
        self._api = HfApi(token=token)

    def user(self) -> str:
        """Whom the token belongs to.

        Raises:
            UserError: the token is refused.
        """
        return str(self._ask("the account", lambda: self._api.whoami(cache=False))["name"])

    def make_repository(self, repo_id: str, *, private: bool) -> None:
        """Makes the repository if it is not there.

        Raises:
            ArgumentsError: it is there and public, and `private` is asked for.
        """
        self._ask(repo_id, lambda: self._api.create_repo(repo_id, private=private, exist_ok=True))
        if private and not self._ask(repo_id, lambda: self._api.repo_info(repo_id)).private:
            raise public_already(repo_id, self.title)

    def upload(self, folder: Path, repo_id: str, message: str) -> Published:
        """Uploads all of a folder in one commit; what an earlier attempt has sent is not sent again."""
        made = self._ask(
            repo_id, lambda: self._api.upload_folder(folder_path=folder, repo_id=repo_id, commit_message=message)
        )
        return Published(str(made.oid), f"{self._api.endpoint}/{repo_id}")

    def _ask(self, what: str, call: Callable[[], T]) -> T:
        from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

        bars = not are_progress_bars_disabled()
        disable_progress_bars()
        try:
            with reporting(self, what, self._token, _is_refusal):
                return retried(call, _passes)
        finally:
            if bars:
                enable_progress_bars()


def _status(error: Exception) -> int | None:
    """The hub's answer, however deep in the error it is."""
    answers = (getattr(getattr(one, "response", None), "status_code", None) for one in causes(error))
    return next((status for status in answers if status is not None), None)


def _is_refusal(error: Exception) -> bool:
    from huggingface_hub.errors import LocalTokenNotFoundError

    return _status(error) in REFUSED or isinstance(error, LocalTokenNotFoundError)


def _passes(error: Exception) -> bool:
    status = _status(error)
    if status is not None:
        return status >= 500 or status == 429
    import httpx2

    return any(isinstance(one, (httpx2.TransportError, ConnectionError, TimeoutError)) for one in causes(error))
