"""How the addresses of a source are signed, at the moment they are read. Signed addresses are never stored."""

from __future__ import annotations

from threading import Lock

from pipeline.catalog.fetch import Sign, unsigned

_LEFT_S = 600.0
"""Seconds that a token must still be good for when a download begins."""


def signer(source: str) -> Sign:
    """Return how hrefs of a source are signed."""
    return _PlanetaryComputer() if source == "planetary-computer" else unsigned


class _PlanetaryComputer:
    """Signs with SAS tokens: one request for each container and token life, in all threads of this process."""

    def __init__(self) -> None:
        self._lock = Lock()

    def __call__(self, href: str, anew: bool = False) -> str:
        from planetary_computer import sas

        with self._lock:
            for key, token in list(sas.TOKEN_CACHE.items()):
                # the library keeps a token until a minute before its end, which a large file outlives
                if anew or token.ttl() < _LEFT_S:
                    del sas.TOKEN_CACHE[key]
            return str(sas.sign_url(href))
