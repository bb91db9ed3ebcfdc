"""Columns of integers as few bytes: zigzag, LEB128 and deflate; `templates/report.js` reads them back."""

from __future__ import annotations

import base64
import json
import zlib

import numpy as np

_SEVEN_BITS = np.uint64(7)


def varints(values: np.ndarray) -> bytes:
    """Return unsigned LEB128 of integers [n], 0 <= value < 2**35 (Protocol Buffers' base-128 varints)."""
    left = np.asarray(values).astype(np.uint64)
    length = np.ones(len(left), np.int64)
    for k in range(1, 5):
        length += left >= np.uint64(1 << 7 * k)
    start = np.cumsum(length) - length
    out = np.zeros(int(length.sum()) if len(left) else 0, np.uint8)
    for k in range(int(length.max()) if len(left) else 0):
        has, more = length > k, length > k + 1
        digit = (left & np.uint64(127)).astype(np.uint8) | (more.astype(np.uint8) << 7)
        out[start[has] + k] = digit[has]
        left = left >> _SEVEN_BITS
    return out.tobytes()


def signed(values: np.ndarray) -> bytes:
    """Return varints of signed integers [n], |value| < 2**34: 0, -1, 1, -2, ... become 0, 1, 2, 3, ... (zigzag)."""
    whole = np.asarray(values).astype(np.int64)
    return varints((whole << 1) ^ (whole >> 63))


def deltas(values: np.ndarray) -> bytes:
    """Return the first of signed integers [n] and then each one's difference to the one before."""
    return signed(np.diff(np.asarray(values).astype(np.int64), prepend=0))


def packed(columns: dict[str, bytes]) -> str:
    """Return columns as base64 of a zlib stream: a line of JSON [[name, bytes], ...], then the columns themselves."""
    head = json.dumps([[name, len(data)] for name, data in columns.items()]) + "\n"
    content = head.encode("ascii") + b"".join(columns.values())
    return base64.b64encode(zlib.compress(content, 9)).decode("ascii")
