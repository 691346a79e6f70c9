"""Fetches models and datasets from the Hugging Face hub and from ModelScope, always at one commit.

`resolve_commit("hf", "model", "Qwen/Qwen3-0.6B", "main")`, then `fetch_model("hf", …, commit, folder)`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from stages.errors import DataError, MartletError, ModelError, StageFailed, UserError
from stages.sources.hub_progress import hugging_face_bar, modelscope_callback
from stages.sources.model_folder import choose_model_files, link_model_files

__all__ = ["HubName", "RepoType", "fetch_dataset", "fetch_model", "reporting", "resolve_commit"]

HubName = Literal["hf", "ms"]
RepoType = Literal["model", "dataset"]
Progress = Callable[[float, float, str], None]
COMMIT = re.compile(r"[0-9a-f]{40}")
TIMEOUT_SECONDS = 10.0
TITLES = {"hf": "Hugging Face", "ms": "ModelScope"}
DATA_FILES = ["*.json", "*.jsonl", "*.csv", "*.tsv", "*.parquet", "*.txt", "*.arrow", "*.gz", "*.zst", "*.zip", "*.md"]


def resolve_commit(hub: HubName, kind: RepoType, repo: str, revision: str | None, *, token: str | None = None) -> str:
    """The commit that a branch or tag stands for now; a commit is returned as it is, without asking.

    Raises:
        UserError: no such repository or revision, no access (a ModelError or a DataError).
        StageFailed: the hub cannot be reached.
    """
    if revision and COMMIT.fullmatch(revision):
        return revision
    with reporting(hub, kind, repo, revision):
        return _hf_commit(kind, repo, revision, token) if hub == "hf" else _ms_commit(kind, repo, revision, token)


def fetch_model(
    hub: HubName, repo: str, commit: str, folder: Path, *, progress: Progress, token: str | None = None
) -> None:
    """Puts the files that a model needs into `folder`; what an earlier try left there is gone on with.

    Raises:
        ModelError: the repository holds no model in safetensors.
        StageFailed: the hub cannot be reached.
    """
    with reporting(hub, "model", repo, commit):
        if hub == "hf" and _hf_is_offline():
            folder.mkdir(parents=True, exist_ok=True)
            link_model_files(_hf_cached("model", repo, commit), folder)
            return
        names = choose_model_files(_list_files(hub, "model", repo, commit, token), repo)
        _download(hub, "model", repo, commit, folder, names, token, progress)


def fetch_dataset(
    hub: HubName, repo: str, commit: str, folder: Path, *, progress: Progress, token: str | None = None
) -> None:
    """Puts a dataset's files into `folder`.

    Raises:
        DataError: no access.
        StageFailed: the hub cannot be reached.
    """
    with reporting(hub, "dataset", repo, commit):
        _download(hub, "dataset", repo, commit, folder, DATA_FILES, token, progress)


def _hf_commit(kind: RepoType, repo: str, revision: str | None, token: str | None) -> str:
    from huggingface_hub import HfApi

    if _hf_is_offline():
        return _hf_cached(kind, repo, revision).name
    info = HfApi(token=token).repo_info(repo, repo_type=kind, revision=revision, timeout=TIMEOUT_SECONDS)
    assert info.sha is not None, repo
    return str(info.sha)


def _hf_is_offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _hf_cached(kind: RepoType, repo: str, revision: str | None) -> Path:
    """The snapshot in the hub's own cache, for use with HF_HUB_OFFLINE; the folder is named after its commit."""
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(repo, repo_type=kind, revision=revision, local_files_only=True))


def _ms_commit(kind: RepoType, repo: str, revision: str | None, token: str | None) -> str:
    """ModelScope names no commit for a branch: it is the newest one that any of the files was changed in."""
    from modelscope_hub import HubApi

    files = HubApi(token=token).legacy.list_repo_files(repo, kind, revision or "master")
    changes = [(file.get("CommittedDate") or 0, file["Revision"]) for file in files if file.get("Revision")]
    if not changes:
        raise _error(kind)(f"ModelScope has no files of {repo} at revision {revision or 'master'!r}")
    return str(max(changes)[1])


def _list_files(hub: HubName, kind: RepoType, repo: str, commit: str, token: str | None) -> list[str]:
    if hub == "hf":
        from huggingface_hub import HfApi

        return list(HfApi(token=token).list_repo_files(repo, repo_type=kind, revision=commit))
    from modelscope_hub import HubApi

    return [file.path for file in HubApi(token=token).list_repo_files(repo, kind, revision=commit) if not file.is_dir]


def _download(
    hub: HubName,
    kind: RepoType,
    repo: str,
    commit: str,
    folder: Path,
    patterns: Sequence[str],
    token: str | None,
    progress: Progress,
) -> None:
    chosen: dict[str, Any] = {"revision": commit, "local_dir": folder, "allow_patterns": list(patterns)}
    if hub == "hf":
        from huggingface_hub import snapshot_download

        bar = hugging_face_bar(progress, repo)
        snapshot_download(repo, repo_type=kind, token=token, tqdm_class=bar, **chosen)
        return
    from modelscope_hub import HubApi

    api = HubApi(token=token)
    files = api.list_repo_files(repo, kind, revision=commit)
    total = sum(file.size for file in files if any(fnmatchcase(file.path, pattern) for pattern in patterns))
    api.download_repo(repo, kind, progress_callbacks=[modelscope_callback(progress, repo, total)], **chosen)


@contextmanager
def reporting(hub: HubName, kind: RepoType, repo: str, revision: str | None) -> Iterator[None]:
    """What the hubs' libraries raise, as one line each."""
    logging.getLogger("modelscope_hub").setLevel(logging.ERROR)  # it warns of every try that it repeats
    try:
        yield
    except MartletError:
        raise
    except Exception as error:
        raise _translated(error, hub, kind, f"{TITLES[hub]} {kind} {repo!r}", revision) from error


def _translated(error: Exception, hub: HubName, kind: RepoType, where: str, revision: str | None) -> Exception:
    import httpx2
    import requests
    from huggingface_hub import errors as hf
    from modelscope_hub import errors as ms

    token = "HF_TOKEN" if hub == "hf" else "MODELSCOPE_API_TOKEN"
    other = "--use_hf true" if hub == "ms" else "ms::"
    offline = (
        f"cannot be looked up: HF_HUB_OFFLINE is set and revision {revision or 'main'!r} is not in the hub's cache"
    )
    absent: tuple[type[Exception], ...] = (hf.OfflineModeIsEnabled,)
    if _hf_is_offline():  # online, the library says the same of a connection that broke
        absent = (*absent, hf.LocalEntryNotFoundError)
    lines: tuple[tuple[tuple[type[Exception], ...], str], ...] = (
        (absent, offline),
        ((hf.RevisionNotFoundError, hf.RevisionResolutionError), f"has no revision {revision!r}"),
        ((hf.GatedRepoError,), "is gated: ask for access on its page and set HF_TOKEN"),
        (
            (hf.RepositoryNotFoundError, hf.HFValidationError, ms.NotExistError),
            f"does not exist, or is private and needs {token}; for the other hub use {other}",
        ),
        ((ms.AuthenticationError, ms.PermissionDeniedError), f"refuses access: set {token}"),
    )
    for classes, line in lines:
        if isinstance(error, classes):
            return _error(kind)(f"{where} {line}")
    broken = (httpx2.HTTPError, requests.RequestException, ms.HubError, hf.LocalEntryNotFoundError, ConnectionError)
    if isinstance(error, broken):
        reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        return StageFailed(f"{where} cannot be reached: {reason:.120}")
    return error


def _error(kind: RepoType) -> type[UserError]:
    return ModelError if kind == "model" else DataError
