"""Where a STAC asset may point: unsigned http(s) and s3 addresses, and files below one folder. Hrefs are untrusted.

A query is never kept, as signatures stand there: what needs one is signed when it is read. So a catalog whose items
hold addresses that somebody signed beforehand can be read only where the source has a signer, or the files are public.
"""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from pipeline.catalog.check import REMOTE

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
"""Names of S3 buckets (docs.aws.amazon.com/AmazonS3/latest/userguide/bucketnamingrules.html)."""


def shown(value: object) -> str:
    """Return `value` for a message: ASCII, quoted, at most 120 characters, so that nothing in it can disturb a log."""
    return ascii(value if isinstance(value, str | int | float | None) else type(value).__name__)[:120]


def shown_href(href: object) -> str:
    """Return an href for a message: as `shown`, without what may be secret, its query, fragment and credentials."""
    if isinstance(href, str):
        href = re.sub(r"[?#].*", "", href, flags=re.DOTALL)
        if "@" in href:
            href = re.sub(r"^([^/]*//)?.*@", r"\1", href, flags=re.DOTALL)
    return shown(href)


def remote_href(href: object) -> str:
    """Return an http(s) or s3 address without query and fragment (unsigned); raises ValueError for anything else."""
    # neither half a surrogate, which cannot even be hashed, nor what reorders text on a screen
    if not isinstance(href, str) or not href.lower().startswith(REMOTE) or not href.isprintable():
        raise ValueError(f"{shown_href(href)} is no http(s) or s3 address")
    try:
        parts = urlsplit(href)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise ValueError(f"{shown_href(href)} is no http(s) or s3 address") from None
    if not host:
        raise ValueError(f"{shown_href(href)} names no host")
    if "@" in parts.netloc:
        raise ValueError(f"{shown_href(href)} holds credentials; those come from the environment only")
    if parts.scheme == "s3" and not _BUCKET.fullmatch(parts.netloc):
        raise ValueError(f"{shown_href(href)} names no bucket")
    return urlunsplit((parts.scheme, parts.netloc, parts.path, "", ""))


def local_path(href: object, folder: Path, root: Path) -> Path:
    """Return the path of a local `href` relative to `folder`; raises ValueError where it leads out of `root`.

    Links are followed before that is judged. `root` must be resolved already.
    """
    if not isinstance(href, str) or not href:
        raise ValueError(f"{shown_href(href)} is no path")
    text = unquote(urlsplit(href).path) if href.lower().startswith("file://") else href.partition("?")[0]
    if "://" in text:
        raise ValueError(f"{shown_href(href)} is neither a file nor an http(s) or s3 address")
    try:
        path = (folder / text).resolve()
    except (OSError, RuntimeError) as error:
        raise ValueError(f"{shown_href(href)} is no path") from error
    if not path.is_relative_to(root):
        raise ValueError(f"{shown_href(href)} lies outside {root}; only files below that folder are read")
    return path


def any_href(href: object, folder: Path, root: Path) -> str:
    """Return a remote address or a local path as text; raises ValueError as the two above do."""
    if isinstance(href, str) and href.lower().startswith(REMOTE):
        return remote_href(href)
    return str(local_path(href, folder, root))
