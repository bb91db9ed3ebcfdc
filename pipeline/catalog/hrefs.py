"""Where a STAC asset may point: unsigned http(s) and s3 addresses, and files below one folder. Hrefs are untrusted."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from pipeline.catalog.check import REMOTE


def shown(value: object) -> str:
    """Return `value` for a message: ASCII, quoted, at most 120 characters, so that nothing in it can disturb a log."""
    return ascii(value if isinstance(value, str | int | float | None) else type(value).__name__)[:120]


def remote_href(href: object) -> str:
    """Return an http(s) or s3 address without query and fragment (unsigned); raises ValueError for anything else."""
    if not isinstance(href, str) or not href.lower().startswith(REMOTE):
        raise ValueError(f"{shown(href)} is no http(s) or s3 address")
    parts = urlsplit(href)
    if not parts.hostname:
        raise ValueError(f"{shown(href)} names no host")
    return urlunsplit((parts.scheme, parts.netloc, parts.path, "", ""))


def local_path(href: object, folder: Path, root: Path) -> Path:
    """Return the path of a local `href` relative to `folder`; raises ValueError where it leads out of `root`.

    Links are followed before that is judged. `root` must be resolved already.
    """
    if not isinstance(href, str) or not href:
        raise ValueError(f"{shown(href)} is no path")
    text = unquote(urlsplit(href).path) if href.lower().startswith("file://") else href
    if "://" in text:
        raise ValueError(f"{shown(href)} is neither a file nor an http(s) or s3 address")
    try:
        path = (folder / text).resolve()
    except (OSError, RuntimeError) as error:
        raise ValueError(f"{shown(href)} is no path") from error
    if not path.is_relative_to(root):
        raise ValueError(f"{shown(href)} lies outside {root}; only files below that folder are read")
    return path


def any_href(href: object, folder: Path, root: Path) -> str:
    """Return a remote address or a local path as text; raises ValueError as the two above do."""
    if isinstance(href, str) and href.lower().startswith(REMOTE):
        return remote_href(href)
    return str(local_path(href, folder, root))
