"""Secrets stay where they are: strings in every slot for a credential, then every byte a run leaves is searched."""

from __future__ import annotations

import base64
import contextlib
import gzip
import io
import json
import re
import sqlite3
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest
import yaml
from fault_server import Answer, Asked, FaultServer, Folder, Mounted, Plan, StacItems, serve
from run_samples import PRODUCTS, Program, World, blobs, draw_world, program, write_config
from stac_samples import found_scenes, item

from pipeline.catalog import fetch, signing
from pipeline.catalog.faults import FetchPolicy

CANARY = "CaNaRy7f3b"
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": f"{CANARY}AWSID", "AWS_SECRET_ACCESS_KEY": f"{CANARY}AWSKEY", "AWS_REGION": "us-west-2",
    "AWS_SESSION_TOKEN": f"{CANARY}AWSTOKEN", "PREFECT_API_KEY": f"{CANARY}PREFECT",
    "PC_SDK_SUBSCRIPTION_KEY": f"{CANARY}PC", "AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ALLOW_HTTP": "true",
}  # fmt: skip


def texts(name: str, content: bytes, depth: int = 0) -> Iterator[tuple[str, bytes]]:
    """Everything that can be read out of a file: its bytes, and what is packed in them in any way known here."""
    yield name, content
    if depth > 4 or len(content) < 8:
        return
    inner: list[tuple[str, bytes]] = []
    if content.startswith(b"PK\3\4"):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            inner += [(member, archive.read(member)) for member in archive.namelist()]
    if content.startswith(b"\x1f\x8b"):
        inner.append(("gzip", gzip.decompress(content)))
    if content.startswith(b"PAR1"):
        table = pyarrow.parquet.read_table(io.BytesIO(content))
        inner.append(("rows", repr(table.to_pylist()).encode()))
        inner.append(("metadata", repr(table.schema.metadata).encode()))
    if content.startswith(b"SQLite format 3\0"):
        inner += list(_cells(content))
    if content.startswith(b"\x93NUMPY"):
        inner.append(("array", np.load(io.BytesIO(content), allow_pickle=False).tobytes()))
    for found in re.finditer(rb"base64,([A-Za-z0-9+/=]{16,})", content):
        with contextlib.suppress(ValueError):
            inner.append(("base64", base64.b64decode(found[1])))
    if re.fullmatch(rb"(?:[0-9a-fA-F]{2}){16,}\s*", content):
        inner.append(("hex", bytes.fromhex(content.decode())))
    for found in re.finditer(rb"x\x9c|x\xda|x\x5e|x\x01", content[:4_000_000]):
        with contextlib.suppress(zlib.error):
            inner.append(("zlib", zlib.decompressobj().decompress(content[found.start() :], 1 << 20)))
    for kind, piece in inner:
        yield from texts(f"{name}:{kind}", piece, depth + 1)


def _cells(content: bytes) -> Iterator[tuple[str, bytes]]:
    with contextlib.closing(sqlite3.connect(":memory:")) as database:
        database.deserialize(content)
        for (table,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            with contextlib.suppress(sqlite3.OperationalError):
                for row in database.execute(f'SELECT * FROM "{table}"'):
                    yield from (
                        (table, cell if isinstance(cell, bytes) else cell.encode())
                        for cell in row
                        if isinstance(cell, str | bytes)
                    )


def holds(content: bytes) -> bool:
    """Whether the canary stands there, in some letter case and in some encoding."""
    word, lowered = CANARY.lower(), content.lower()
    return any(word.encode(code) in lowered for code in ("utf-8", "utf-16-le", "utf-32-le"))


def leaks(folder: Path) -> list[str]:
    found = []
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if holds(name.encode()):
            found.append(f"the name {name}")
        if path.is_file() and not path.is_symlink():
            found += [where for where, content in texts(name, path.read_bytes()) if holds(content)]
    return found


def test_the_search_finds_what_is_hidden(tmp_path: Path) -> None:
    """The net is whole: a canary in each kind of file that a run writes is found."""
    secret = f"https://example.org/b.tif?sig={CANARY}"
    pd.DataFrame({"a": [secret] * 3}).to_parquet(tmp_path / "rows.parquet", compression="zstd")
    np.savez_compressed(tmp_path / "array.npz", a=np.array([secret]))
    (tmp_path / "text.json.gz").write_bytes(gzip.compress(secret.encode()))
    (tmp_path / "page.html").write_text(f'<img src="data:x;base64,{base64.b64encode(secret.encode()).decode()}">')
    (tmp_path / "tile.bin").write_bytes(b"head" + zlib.compress(secret.encode()))
    with contextlib.closing(sqlite3.connect(tmp_path / "p.gpkg")) as database:
        project = io.BytesIO()
        with zipfile.ZipFile(project, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("project.qgs", secret * 9)
        database.execute("CREATE TABLE qgis_projects (content TEXT)")
        database.execute("INSERT INTO qgis_projects VALUES (?)", (project.getvalue().hex(),))
        database.commit()
    (tmp_path / CANARY.upper()).write_text("x")
    assert {leak.split(":")[0] for leak in leaks(tmp_path)} == {
        "rows.parquet", "array.npz", "text.json.gz", "page.html", "tile.bin", "p.gpkg", f"the name {CANARY.upper()}",
    }  # fmt: skip


# --------------------------------------------------------------------------------------------------------------- runs


@pytest.fixture(scope="module")
def small_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return draw_world(tmp_path_factory.mktemp("small"), blobs(3, (96, 96)))


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Secrets in every place of the environment where one may stand, and short waits."""
    for key, value in ENVIRONMENT.items():
        monkeypatch.setenv(key, value)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    waits = {"attempts": 3, "deadline_s": 5.0, "backoff_s": 0.01, "most_backoff_s": 0.05, "read_s": 2.0}
    defaults = dict(zip(FetchPolicy.__dataclass_fields__, FetchPolicy.__init__.__defaults__ or (), strict=True))
    monkeypatch.setattr(FetchPolicy.__init__, "__defaults__", tuple((defaults | waits).values()))


def items(world: World, base: str) -> list[dict[str, Any]]:
    """Items whose hrefs somebody signed beforehand, each in another way."""
    made = [item(scene, world.scenes, base, True) for scene in found_scenes(world)]
    ways = (
        f"?sv=2023&sig={CANARY}%2B{quote(CANARY)}", f"?X-Amz-Credential={CANARY}&X-Amz-Signature={CANARY}#{CANARY}",
        f"?token={CANARY}", f"?subscription-key={CANARY}", f"?{CANARY}", f"#{CANARY}", f"?a=b?sig={CANARY}",
    )  # fmt: skip
    for tree in made:
        for way, asset in zip(ways, tree["assets"].values(), strict=True):
            asset["href"] = asset["href"] + way
        tree["properties"]["note"] = CANARY
    third = json.loads(json.dumps(made[0]))
    third["id"] = PRODUCTS[0].replace("20230723", "20230724")
    third["properties"]["datetime"] = "2023-07-24T14:00:00Z"
    for asset in third["assets"].values():
        asset["href"] = asset["href"].replace("://", f"://user:{CANARY}@")
    fourth = json.loads(json.dumps(third))
    fourth["id"] = PRODUCTS[0].replace("20230723", "20230725")
    fourth["properties"]["datetime"] = "2023-07-25T14:00:00Z"
    for band, asset in fourth["assets"].items():
        asset["href"] = f"s3://a-bucket/{band}.TIF?X-Amz-Signature={CANARY}"
    return [*made, third, fourth]


@contextmanager
def archive(world: World, plan: Plan, change: Callable[[Answer], Answer] = lambda answer: answer) -> Iterator[Any]:
    stac = StacItems([], page=10)

    class Changed:
        def answer(self, asked: Asked) -> Answer:
            return change(stac.answer(asked))

    with serve(Mounted({"stac": Changed(), "files": Folder(world.scenes)}), plan) as server:
        stac.url, stac.items = server.url("stac"), items(world, server.url("files/"))
        yield server


def remote(folder: Path, world: World, model: Path, server: FaultServer, **imagery: object) -> Path:
    source = {"source": server.url("stac"), "allow_hosts": ["127.0.0.1"], "cache": str(folder / "cache"), **imagery}
    return write_config(folder, world, model, imagery=source, grid__block=256, output__chips=2)


def assert_none(folder: Path, *said: str) -> None:
    assert leaks(folder) == []
    assert [text for text in said if holds(text.encode())] == []


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize("read", ["window", "cache"])
def test_of_a_complete_run_and_what_follows_it(
    cli: Program, tmp_path: Path, small_world: World, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, read: str
) -> None:
    signed: list[str] = []

    def sign(href: str, anew: bool = False) -> str:
        signed.append(href)
        return f"{href}?sig={CANARY}" if href.startswith("http") else href

    monkeypatch.setattr(signing, "signer", lambda source: sign)
    with archive(small_world, Plan(token=None)) as server:
        config = remote(tmp_path, small_world, tiny_model, server, read=read)
        calls = [("plan", config), ("fetch", config), ("run", config, "--no-prefect"), ("doctor", config)]
        ended = [cli(*call) for call in [*calls, ("inspect", tmp_path / "product")]]
        assert [one.code for one in ended][:3] == [0, 0, 0], ended
        assert signed
        assert any(CANARY in query for query in server.queries), "the signature is used where the file is read"
    assert (tmp_path / "product" / "run.json").is_file()
    reasons = [line for line in ended[0].out.splitlines() if line.startswith("refused")]
    assert any("credentials" in line for line in reasons), "an address with a password is refused"
    assert_none(tmp_path, *(text for one in ended for text in (one.out, one.err)))


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize("read", ["window", "cache"])
def test_of_a_run_whose_files_are_all_refused(
    cli: Program, tmp_path: Path, small_world: World, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, read: str
) -> None:
    monkeypatch.setattr(signing, "signer", lambda source: lambda href, anew=False: f"{href}?sig={CANARY}")
    # the API answers as it should, no file does
    with archive(small_world, Plan(share=1.0, faults=("expired",), only="/files/")) as server:
        config = remote(tmp_path, small_world, tiny_model, server, read=read)
        ended = cli("run", config, "--no-prefect")
        again = cli("fetch", config)
    assert ended.code == 0, ended
    assert "403" in json.dumps(again.out) + (tmp_path / "product.work" / "plan.json").read_text()
    assert_none(tmp_path, ended.out, ended.err, again.out, again.err)


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize(
    "answer",
    [
        Answer(f"<html>key {CANARY} is wrong</html>".encode(), 403),
        Answer(json.dumps({"detail": f"token {CANARY} expired", CANARY: CANARY}).encode(), 400),
        Answer(json.dumps({"type": CANARY, "links": [{"rel": CANARY}], "id": CANARY}).encode()),
        Answer(f'{{"a": "{CANARY}'.encode()),
        Answer(b"", 302, {"Location": f"http://user:{CANARY}@10.0.0.1/?sig={CANARY}"}),
        Answer(b"", 302, {"Location": f"http://127.0.0.2/?sig={CANARY}"}),
    ],
)
def test_of_a_refused_run(cli: Program, tmp_path: Path, small_world: World, tiny_model: Path, answer: Answer) -> None:
    with archive(small_world, Plan(), lambda _: answer) as server:
        config = remote(tmp_path, small_world, tiny_model, server)
        ended = cli("run", config, "--no-prefect")
        looked = cli("doctor", config)
    assert ended.code == 2
    assert ended.error.startswith("error: imagery.source: ")
    assert "Traceback" in (tmp_path / "product.work" / "run.log").read_text()
    assert_none(tmp_path, ended.out, ended.err, looked.out, looked.err)


@pytest.mark.usefixtures("environment")
def test_of_an_error_that_nobody_foresaw(
    cli: Program, tmp_path: Path, small_world: World, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signing, "signer", lambda source: lambda href, anew=False: f"{href}?sig={CANARY}")

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("nobody foresaw this")

    monkeypatch.setattr(fetch, "confirm", broken)
    with archive(small_world, Plan()) as server:
        config = remote(tmp_path, small_world, tiny_model, server, read="cache")
        ended = cli("run", config, "--no-prefect")
    assert ended.code == 1
    assert "nobody foresaw this" in (tmp_path / "product.work" / "run.log").read_text()
    assert_none(tmp_path, ended.out, ended.err)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("imagery.source", f"https://user:{CANARY}@example.org/stac"),
        ("imagery.source", f"https://example.org/stac?subscription-key={CANARY}"),
        ("imagery.source", f"ftp://user:{CANARY}@example.org/"),
        ("loss.archive", f"https://user:{CANARY}@example.org/gfc"),
    ],
)
def test_a_configuration_holds_none(
    cli: Program, tmp_path: Path, small_world: World, tiny_model: Path, key: str, value: str
) -> None:
    config = write_config(tmp_path, small_world, tiny_model)
    ended = cli("run", config, "--no-prefect", "-o", f"{key}={value}")
    assert ended.code == 2
    assert f"{key}: an address here holds no credentials and no query" in ended.error
    assert_none(tmp_path, ended.out, ended.err)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_of_a_run_under_prefect_and_dask(tmp_path: Path, small_world: World, tiny_model: Path) -> None:
    home = tmp_path / "prefect"
    secrets = {key: value for key, value in ENVIRONMENT.items() if key != "PREFECT_API_KEY"}
    with archive(small_world, Plan()) as server:
        config = remote(tmp_path, small_world, tiny_model, server)
        # 403 for one band of one scene: what Prefect is told holds a loss with its reason
        (bands := yaml.safe_load(config.read_text()))["compute"] = {"executor": "local", "workers": 1}
        config.write_text(yaml.safe_dump(bands))
        ended = program("run", config, timeout=800, PREFECT_HOME=str(home), **secrets)
    assert ended.code == 0, ended.err
    (database,) = home.rglob("*.db")
    with contextlib.closing(sqlite3.connect(database)) as opened:
        # what stands in the log beside it goes into the database, where its cells are searched
        assert opened.execute("PRAGMA journal_mode = DELETE").fetchone() == ("delete",)
        assert opened.execute("SELECT count(*) FROM flow_run").fetchone()[0] > 0
    assert_none(tmp_path, ended.out, ended.err)
