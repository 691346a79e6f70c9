"""Where a remote store is, and the folder on this machine that stands in front of it: `parse_address("s3://b/p")`."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from stages.errors import UserError

__all__ = ["Address", "parse_address"]

FORM = "s3://bucket/prefix"


@dataclass(frozen=True)
class Address:
    """A bucket and a prefix in it; whose they are is said by the AWS_* variables.

    Attributes:
        bucket: its name.
        prefix: without a slash at either end; may be empty.
    """

    bucket: str
    prefix: str

    @property
    def location(self) -> str:
        """What `open_store` takes."""
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    def cache(self) -> Path:
        """The folder on this machine, one for each store and endpoint: below MARTLET_CACHE, else the user's cache."""
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
        server = urlsplit(endpoint).netloc.rpartition("@")[2]
        name = re.sub(r"[^A-Za-z0-9.-]+", "-", f"{self.bucket}-{self.prefix}".strip("-"))[:80]
        digest = hashlib.sha256(f"{server} {self.location}".encode()).hexdigest()[:12]
        given = os.environ.get("MARTLET_CACHE")
        default = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "martlet-remote"
        return (Path(given) if given else default) / f"{name}-{digest}"


def parse_address(place: str) -> Address:
    """The address in a text.

    Raises:
        UserError: another scheme, no bucket, or credentials, which are not repeated.
    """
    scheme, _, rest = place.partition("://")
    if scheme != "s3":
        raise UserError(
            f"a store at {scheme}:// is not supported. Choose from: a folder's path, {FORM} (MARTLET_STORE)"
        )
    bucket, _, prefix = rest.partition("/")
    if "@" in bucket or "?" in rest:
        raise UserError(
            f"the address of a store holds no credentials or options, only {FORM}: set AWS_ACCESS_KEY_ID, "
            "AWS_SECRET_ACCESS_KEY and AWS_ENDPOINT_URL"
        )
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", bucket):
        raise UserError(f"{place!r} names no bucket (3 to 63 of a-z, 0-9, - and .): give {FORM} (MARTLET_STORE)")
    parts = [part for part in prefix.split("/") if part]
    if any(part in (".", "..") for part in parts):
        raise UserError(f"{place!r} has a . or .. in its prefix: give {FORM} (MARTLET_STORE)")
    return Address(bucket, "/".join(parts))
