"""Requests and bytes per block and band file: windows against whole files and against GDAL's own reading over HTTP.

Bands of a simulated scene are written as COGs and served on loopback by a server that counts. Loss is drawn in
clusters over 1 % and 30 % of the land; patches are laid and windows listed by the functions of a run. Each band file is
then brought whole, by its windows (with several gaps between tiles that one request spans), and read through GDAL's
/vsicurl with several settings, block after block in one process. Only bodies are counted. Needs no model.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import get_context
from pathlib import Path
from threading import Lock, Thread

import numpy as np
import rasterio
import rasterio.shutil
import scipy.ndimage
from rasterio.windows import Window

from pipeline.catalog import windows
from pipeline.catalog.fetch import Fetcher
from pipeline.catalog.scene import Asset
from pipeline.demo import ROOT, write_province
from pipeline.grid import RunGrid
from pipeline.imagery import list_reads
from pipeline.lattice import BlockLoss, PatchLayout, lattice_window, listed, meeting, needed
from pipeline.patches import draw_patches
from pipeline.simulate import ProvinceParams

LAYOUT = PatchLayout()
GDAL: dict[str, dict[str, str]] = {
    "GDAL as it comes": {},
    "GDAL, chunks of 16 kB": {"CPL_VSIL_CURL_CHUNK_SIZE": "16384"},
    "GDAL, chunks of 64 kB": {"CPL_VSIL_CURL_CHUNK_SIZE": "65536"},
    "GDAL, chunks of 512 kB": {"CPL_VSIL_CURL_CHUNK_SIZE": "524288"},
}
SENSIBLE = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_HTTP_MERGE_CONSECUTIVE_RANGES": "YES",
    "GDAL_HTTP_MULTIPLEX": "YES",
    "GDAL_INGESTED_BYTES_AT_OPEN": "32768",
    "CPL_VSIL_CURL_USE_HEAD": "NO",
    "CPL_VSIL_CURL_CACHE_SIZE": "200000000",
    "VSI_CACHE": "TRUE",
    "VSI_CACHE_SIZE": "50000000",
}
"""For all of GDAL's rows but the first."""
_Windows = dict[str, list[tuple[int, int, int, int]]]


@dataclass
class Counts:
    """Requests and bytes of bodies."""

    requests: int = 0
    bytes: int = 0
    lock: Lock = field(default_factory=Lock)

    def take(self) -> tuple[int, int]:
        """What was counted since the last call."""
        with self.lock:
            found = self.requests, self.bytes
            self.requests = self.bytes = 0
        return found


@contextmanager
def counting_server(folder: Path) -> Iterator[tuple[str, Counts]]:
    """Serve a folder with ranges and ETags on loopback: its address, and what it has served."""
    counts = Counts()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            del format, args

        def do_HEAD(self) -> None:
            path = folder / self.path.lstrip("/")
            self.send_response(200 if path.is_file() else 404)
            self.send_header("Content-Length", str(path.stat().st_size if path.is_file() else 0))
            self.send_header("Accept-Ranges", "bytes")
            self.end_headers()
            with counts.lock:
                counts.requests += 1

        def do_GET(self) -> None:
            path = folder / self.path.lstrip("/")
            if not path.is_file():
                self.send_error(404)
                return
            total, asked = path.stat().st_size, re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            first = int(asked[1]) if asked else 0
            end = min(int(asked[2]) + 1 if asked and asked[2] else total, total)
            with path.open("rb") as stream:
                stream.seek(first)
                body = stream.read(end - first)
            self.send_response(206 if asked else 200)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", f'"{total}"')
            if asked:
                self.send_header("Content-Range", f"bytes {first}-{end - 1}/{total}")
            self.end_headers()
            with counts.lock:
                counts.requests += 1
                counts.bytes += len(body)
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/", counts
    finally:
        server.shutdown()
        server.server_close()


def write_cogs(bundle: Path, bands: list[str], out: Path, tile: int) -> list[str]:
    """Write bands of a bundle as COGs with tiles of this size and overviews, deflated as USGS does: their names."""
    out.mkdir(parents=True, exist_ok=True)
    for band in bands:
        if not (out / f"{band}.tif").exists():
            how = {"COMPRESS": "DEFLATE", "PREDICTOR": "2", "BLOCKSIZE": str(tile), "LEVEL": "6"}
            source = next(bundle.glob(f"*_{band}.TIF"))
            rasterio.shutil.copy(source, out / f"{band}.part.tif", driver="COG", **how)
            (out / f"{band}.part.tif").rename(out / f"{band}.tif")
    return [f"{band}.tif" for band in bands]


def windows_of(grid: RunGrid, share: float, seed: int) -> _Windows:
    """The windows that each block reads where clustered loss covers this share of the grid."""
    field_ = scipy.ndimage.gaussian_filter(
        np.random.default_rng(seed).normal(size=(grid.height, grid.width)).astype(np.float32), 8
    )
    # driver fronts: loss gathers in some quarters of the land
    field_ += (
        scipy.ndimage.gaussian_filter(np.random.default_rng(seed + 1).normal(size=field_.shape).astype(np.float32), 200)
        * (200 / 8)
        * 1.0
    )
    labels, _ = scipy.ndimage.label(field_ > np.quantile(field_, 1 - share), np.ones((3, 3)))
    edge = LAYOUT.size
    padded = np.pad(labels.astype(np.int32), edge)
    found: _Windows = {}
    drawn = draw_patches(LAYOUT, grid, np.zeros((0, 4), np.int64))
    for block in grid.blocks():
        row0, col0, height, width = lattice_window(block, LAYOUT)
        part = padded[row0 + edge : row0 + edge + height, col0 + edge : col0 + edge + width]
        lost = BlockLoss(block, row0, col0, part)
        if lost.inside.any():
            patches = listed(needed(meeting(drawn, LAYOUT.size, block), LAYOUT.size, lost))
            found[block.id] = [read.window for read in list_reads([patches], block, LAYOUT)]
    return found


def through_gdal(hrefs: list[str], reads: _Windows, settings: dict[str, str]) -> None:
    """Read every block's windows of files on their own grid through /vsicurl."""
    with rasterio.Env(GDAL_CACHEMAX=256 << 20, GDAL_NUM_THREADS="1", **settings):
        for group in reads.values():
            for href in hrefs:
                with rasterio.open(f"/vsicurl/{href}", driver="GTiff") as file:
                    for row, col, height, width in group:
                        top, left = max(row, 0), max(col, 0)
                        high, wide = min(row + height, file.height) - top, min(col + width, file.width) - left
                        if high > 0 and wide > 0:
                            file.read(1, window=Window(left, top, wide, high))


def measure(cogs: Path, names: list[str], reads: _Windows, gaps: list[int]) -> Iterator[dict[str, object]]:
    """Yield a row for each way of reading."""
    with counting_server(cogs) as (base, counts):
        hrefs, blocks = [base + name for name in names], len(reads)

        def row(way: str) -> dict[str, object]:
            requests, taken = counts.take()
            per = blocks * len(hrefs)
            return {
                "way": way,
                "requests_per_block_and_file": round(requests / per, 2),
                "kB_per_block_and_file": round(taken / per / 1e3, 1),
                "requests": requests,
                "MB": round(taken / 1e6, 2),
            }

        def boxes(_: Path) -> dict[str, list[windows.Box]]:
            return {block: [(r, c, r + h, c + w) for r, c, h, w in group] for block, group in reads.items()}

        for name, gap in [("whole files", None), *((f"windows, gap {gap >> 10} kB", gap) for gap in gaps)]:
            cache = cogs / "cache"
            shutil.rmtree(cache, ignore_errors=True)
            windows.GAP = windows.GAP if gap is None else gap
            fetcher = Fetcher(cache, ("127.0.0.1",))
            for href in hrefs:
                fetcher.bring(Asset(href), None if gap is None else boxes)
            yield row(name)
        for name, settings in GDAL.items():
            # GDAL keeps what it read of an address for the life of a process
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                pool.submit(through_gdal, hrefs, reads, settings | (SENSIBLE if settings else {})).result()
            yield row(name)


def main() -> None:
    """Measure and print one JSON line for each way and loss cover."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "bench-fetching")
    parser.add_argument("--size", type=int, default=4000)
    parser.add_argument("--block", type=int, default=2048)
    parser.add_argument("--share", type=float, nargs="+", default=[0.01, 0.30])
    parser.add_argument("--tile", type=int, nargs="+", default=[512, 256])
    parser.add_argument("--bands", nargs="+", default=["SR_B4", "SR_B5", "QA_PIXEL"])
    parser.add_argument("--gap", type=int, nargs="+", default=[0, 1 << 14, 1 << 16, 1 << 18, 1 << 20])
    args = parser.parse_args()
    params = ProvinceParams(size=args.size, seed=7, loss_share=0.01, dates=3)
    bundle = min((write_province(args.out / f"province-{args.size}", params)).scenes.iterdir())
    for tile in args.tile:
        cogs = args.out / f"cogs-{args.size}-{tile}"
        names = write_cogs(bundle, args.bands, cogs, tile)
        with rasterio.open(cogs / names[0]) as file:
            place, size = file.transform, file.shape
            grid = RunGrid(str(file.crs), place.a, place.c, place.f, *size, LAYOUT.whole_cells(args.block))
        for share in args.share:
            reads = windows_of(grid, share, seed=1)
            for row in measure(cogs, names, reads, args.gap):
                told = {"tile": tile, "side": size, "loss_share": share, "blocks": len(reads)}
                print(json.dumps({**told, **row}), flush=True)


if __name__ == "__main__":
    main()
