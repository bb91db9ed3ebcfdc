"""Object stores, on moto's S3 server on loopback: products published and read, checkpoints kept, faults told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from hypothesis import given
from hypothesis import strategies as st
from moto.server import ThreadedMotoServer
from pydantic import ValidationError
from pytest_httpserver import HTTPServer
from run_samples import SAME, Program, World, assert_same_results, checkpoints, layer, run, write_config

from pipeline.artifacts import file_sha256
from pipeline.config import Output, load_config
from pipeline.errors import OutputError, ProductError
from pipeline.product.record import PRODUCT_FILES
from pipeline.store_address import bucket_and_prefix, local_part, store_address
from pipeline.stores.checkpoints import CheckpointStore
from pipeline.stores.objects import Store
from pipeline.stores.products import POINTER, at_hand, check_store, publish, read_pointer, read_record

ADDRESS = "s3://maps/country/riau"
CANARY = "CANARYCANARY"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    for key, value in {
        "AWS_ENDPOINT_URL": server, "AWS_ALLOW_HTTP": "true", "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": CANARY, "AWS_DEFAULT_REGION": "us-east-1", "AWS_REGION": "us-east-1",
    }.items():  # fmt: skip
        monkeypatch.setenv(key, value)
    client = boto3.client("s3", endpoint_url=server)
    client.create_bucket(Bucket="maps")
    yield client
    for entry in client.list_objects_v2(Bucket="maps").get("Contents", []):
        client.delete_object(Bucket="maps", Key=entry["Key"])
    client.delete_bucket(Bucket="maps")


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """This machine's cache folder, empty; the drawn model needs no exported graph."""
    monkeypatch.setenv("CLEARCAUSE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def keys(bucket: Any) -> list[str]:
    return [entry["Key"] for entry in bucket.list_objects_v2(Bucket="maps").get("Contents", [])]


def write_files(folder: Path, number: int, count: int = 6, size: int = 2000) -> Path:
    """A folder whose files all hold one number; as far as a store goes it is a product."""
    folder.mkdir(parents=True)
    for k in range(count):
        (folder / f"part{k}.bin").write_bytes(f"{number}\n".encode() * size)
    (folder / "run.json").write_text(json.dumps({"number": number}))
    return folder


def number_of(folder: Path) -> int:
    """The number in the files of a folder, which must be one and the same."""
    held = {path.read_bytes().split(b"\n")[0] for path in folder.glob("*.bin")}
    (one,) = held
    assert json.loads((folder / "run.json").read_text()) == {"number": int(one)}
    return int(one)


def gdal_checksum(path: Path | str) -> str:
    """GDAL's checksum of a raster, in a process of its own: GDAL waits while it holds what moto's server needs."""
    environment = {
        **os.environ, "AWS_HTTPS": "NO", "AWS_VIRTUAL_HOSTING": "FALSE",
        "AWS_S3_ENDPOINT": os.environ["AWS_ENDPOINT_URL"].removeprefix("http://"),
    }  # fmt: skip
    code = "import rasterio, sys; print(rasterio.open(sys.argv[1]).checksum(1))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout


# ---------------------------------------------------------------------------------------------- addresses


def test_an_address_survives_being_taken_for_a_path() -> None:
    assert store_address(Path("s3://maps/country/riau")) == ADDRESS
    assert store_address("s3://maps/country/riau/") == ADDRESS
    assert store_address(Path("out/riau")) == store_address("/s3/maps") == ""


@given(st.text(st.sampled_from("ab./-_:?#@%~ \\\n"), max_size=30))
def test_no_address_lies_outside_the_cache_folder(text: str) -> None:
    try:
        folder = local_part(f"s3://maps/{text}")
    except ValueError:
        return
    root = local_part("s3://maps/x").parents[2]
    assert root in folder.resolve().parents
    assert "?" not in str(folder)


@pytest.mark.parametrize(
    "dir_", ["s3://maps", "s3://Maps/x", "s3://maps/a?b=c", "s3://user:pw@maps/x", "s3://maps/../x"]
)
def test_what_is_no_address_is_refused(dir_: str) -> None:
    with pytest.raises((ValidationError, ValueError)):
        Output.model_validate({"dir": dir_})
    with pytest.raises(ValueError, match="write s3://bucket/prefix"):
        bucket_and_prefix(dir_)


def test_a_folder_and_a_store_may_both_be_named_and_a_variant_goes_beside_both(tmp_path: Path) -> None:
    both = Output.model_validate({"dir": str(tmp_path / "out"), "store": ADDRESS})
    assert (both.dir, both.store) == (tmp_path / "out", ADDRESS)
    assert both.beside("b") == Output.model_validate({"dir": str(tmp_path / "out-b"), "store": f"{ADDRESS}-b"})
    alone = Output.model_validate({"dir": ADDRESS})
    assert (alone.dir, alone.store) == (local_part(ADDRESS), ADDRESS)
    assert alone.beside("b") == Output.model_validate({"dir": f"{ADDRESS}-b"})
    assert Output.model_validate(json.loads(alone.model_dump_json())) == alone
    with pytest.raises(ValidationError, match="both name a store"):
        Output.model_validate({"dir": ADDRESS, "store": ADDRESS})


# ---------------------------------------------------------------------------------------------- publishing


def test_a_product_is_published_replaced_and_brought_back(bucket: Any, cache: Path, tmp_path: Path) -> None:
    assert read_pointer(Store(ADDRESS)) is None
    assert read_record(ADDRESS) is None
    for number in range(1, 5):
        product = write_files(tmp_path / f"p{number}", number)
        publish(ADDRESS, product)
        found = at_hand(Path(ADDRESS))
        assert number_of(found) == number
        assert {p.name: p.read_bytes() for p in found.iterdir()} == {p.name: p.read_bytes() for p in product.iterdir()}
        assert read_record(ADDRESS) == {"number": number}
        time.sleep(1.1)  # a store tells times to the second
    # the current version and the one before, for whoever still reads it
    assert len({key.split("/")[3] for key in keys(bucket) if "/versions/" in key}) == 2
    assert len(list((local_part(ADDRESS).with_name("versions")).iterdir())) == 2
    before = sorted(keys(bucket))
    publish(ADDRESS, product)
    assert sorted(keys(bucket)) == before


def test_an_object_that_was_altered_is_refused(bucket: Any, cache: Path, tmp_path: Path) -> None:
    version = publish(ADDRESS, write_files(tmp_path / "p", 1))
    key = f"country/riau/versions/{version}/part3.bin"
    content = bucket.get_object(Bucket="maps", Key=key)["Body"].read()
    bucket.put_object(Bucket="maps", Key=key, Body=content[:-1] + b"x")
    with pytest.raises(ProductError, match=r"part3.bin: is not what current.json says"):
        at_hand(Path(ADDRESS))
    assert not list(cache.rglob("part*.bin"))


FOREIGN = (
    b"", b"{}", b"[]", b'{"format": 2}', b'{"format": 1, "version": "../x", "files": {}}',
    b'{"format": 1, "version": "a", "files": {"../x": {"bytes": 1, "sha256": ""}}}',
)  # fmt: skip


@pytest.mark.parametrize("content", FOREIGN)
def test_a_pointer_of_someone_else_is_refused(bucket: Any, cache: Path, content: bytes) -> None:
    bucket.put_object(Bucket="maps", Key=f"country/riau/{POINTER}", Body=content)
    with pytest.raises(OutputError, match="is no pointer of this version"):
        at_hand(Path(ADDRESS))


def test_readers_in_a_loop_never_see_half_a_product(bucket: Any, cache: Path, tmp_path: Path) -> None:
    products = [write_files(tmp_path / f"p{k}", k) for k in range(20)]
    publish(ADDRESS, products[0])
    seen, over = [], threading.Event()

    def read() -> None:
        while not over.is_set():
            seen.append(number_of(at_hand(Path(ADDRESS))))

    reader = threading.Thread(target=read)
    reader.start()
    for product in products[1:]:
        publish(ADDRESS, product)
    over.set()
    reader.join(60)
    assert number_of(at_hand(Path(ADDRESS))) == 19
    assert seen == sorted(seen), "an earlier product never comes back"
    assert len(set(seen)) > 3


def test_a_publisher_that_is_killed_leaves_the_earlier_product(
    bucket: Any, cache: Path, tmp_path: Path, root: Path
) -> None:
    publish(ADDRESS, write_files(tmp_path / "old", 1))
    new = write_files(tmp_path / "new", 2, count=60, size=400_000)
    code = "import sys, pathlib, pipeline.stores.products as p; p.publish(sys.argv[1], pathlib.Path(sys.argv[2]))"
    before = len(keys(bucket))
    job = subprocess.Popen([sys.executable, "-c", code, ADDRESS, str(new)], cwd=root, env=os.environ)
    while len(keys(bucket)) < before + 3:
        assert job.poll() is None, "it ended before it was killed"
        time.sleep(0.02)
    job.send_signal(signal.SIGKILL)
    job.wait()
    assert len(keys(bucket)) < before + 61
    assert number_of(at_hand(Path(ADDRESS))) == 1
    publish(ADDRESS, new)
    assert number_of(at_hand(Path(ADDRESS))) == 2


# ---------------------------------------------------------------------------------------------- faults


def test_a_bucket_that_is_not_there_and_a_server_that_is_not(
    bucket: Any, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(OutputError, match=r"^s3://nowhere/x/.writable: no such bucket; make it, or name another$"):
        check_store("s3://nowhere/x")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(OutputError, match=r"the store does not answer; check AWS_ENDPOINT_URL"):
        check_store(ADDRESS)
    monkeypatch.setenv("AWS_ALLOW_HTTP", "false")
    with pytest.raises(OutputError, match=r"AWS_ALLOW_HTTP=true") as caught:
        check_store(ADDRESS)
    assert CANARY not in str(caught.value)


def test_credentials_come_from_a_profile_too(
    bucket: Any, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "credentials").write_text(f"[mine]\naws_access_key_id = me\naws_secret_access_key = {CANARY}\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(key)
    monkeypatch.setenv("AWS_PROFILE", "mine")
    check_store(ADDRESS)
    monkeypatch.setenv("AWS_PROFILE", "another")
    with pytest.raises(OutputError, match="AWS_PROFILE another cannot be used"):
        check_store(ADDRESS)


def test_credentials_that_are_refused(httpserver: HTTPServer, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in {
        "AWS_ENDPOINT_URL": httpserver.url_for("").rstrip("/"), "AWS_ALLOW_HTTP": "true", "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": CANARY, "AWS_REGION": "us-east-1",
    }.items():  # fmt: skip
        monkeypatch.setenv(key, value)
    body = f"<Error><Code>SignatureDoesNotMatch</Code><Message>{CANARY}</Message></Error>"
    httpserver.expect_request("/maps/country/riau/.writable").respond_with_data(body, status=403)
    with pytest.raises(
        OutputError, match=r"refused; check the credentials of the environment \(AWS_\.\.\.\)"
    ) as caught:
        check_store(ADDRESS)
    assert CANARY not in str(caught.value)


def test_errors_of_the_program_are_one_line_without_secrets(
    bucket: Any, cache: Path, world: World, tiny_model: Path, tmp_path: Path, cli: Program
) -> None:
    config = write_config(tmp_path, world, tiny_model, output__dir="s3://nowhere/riau")
    for command in (("run", config, "--no-prefect"), ("plan", config), ("inspect", "s3://maps/none")):
        ended = cli(*command)
        assert ended.code == 2
        assert CANARY not in ended.error
        assert "s3://" in ended.error
    assert "no product was published there" in ended.error
    assert cli("status", "s3://maps/none").code == 2
    assert cli("status", "s3://maps").code == 2


# ---------------------------------------------------------------------------------------------- whole runs


def test_a_run_into_a_store_gives_the_local_product(
    bucket: Any, cache: Path, world: World, tiny_model: Path, tmp_path: Path, cli: Program,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    local = run(write_config(tmp_path / "local", world, tiny_model)).product
    config = write_config(tmp_path / "remote", world, tiny_model, output__dir=ADDRESS)
    ended = cli("run", config, "--no-prefect")
    assert ended.code == 0, ended.err
    assert f"published: {ADDRESS}" in ended.out
    found = at_hand(Path(ADDRESS))
    # seconds of blocks stand in the GeoPackage
    for name in set(PRODUCT_FILES) - {"run.json", "drivers.gpkg", "item.json", "collection.json"}:
        assert file_sha256(found / name) == file_sha256(local / name), name
    assert_same_results(found, local, SAME)
    assert CANARY.encode() not in b"".join(path.read_bytes() for path in [*found.iterdir(), *cache.rglob("run.log")])
    assert ADDRESS not in (found / "run.json").read_text()

    assert "nothing to do, the product is current" in cli("run", config, "--no-prefect").out
    assert cli("inspect", ADDRESS).code == 0
    assert "done, the product is current" in cli("status", ADDRESS).out
    monkeypatch.chdir(tmp_path)
    assert cli("export", ADDRESS, "--to", "csv").code == 0
    assert (tmp_path / "riau-export").is_dir()
    pointer = read_pointer(Store(ADDRESS))
    assert pointer is not None
    path = f"/vsis3/maps/country/riau/versions/{pointer['version']}/drivers.tif"
    assert gdal_checksum(path) == gdal_checksum(local / "drivers.tif")

    # what was published is taken away: the blocks are there, the product is made of them again
    bucket.delete_object(Bucket="maps", Key=f"country/riau/{POINTER}")
    again = cli("run", config, "--no-prefect")
    assert f"published: {ADDRESS}" in again.out
    assert "block " not in again.err, "no block was computed anew"


def test_another_machine_goes_on_from_the_checkpoints_in_the_store(
    bucket: Any, cache: Path, world: World, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config(tmp_path, world, tiny_model, output__dir=ADDRESS)
    wanted = ("r0000c0000", "r0000c0001", "r0001c0000")
    assert run(config, blocks=wanted).status == "partial"
    kept = CheckpointStore(ADDRESS)
    assert {name.partition("-")[0] for name in kept.names} == set(wanted)
    # one that says it is whole and is not
    damaged = sorted(kept.names)[0]
    bucket.put_object(Bucket="maps", Key=f"country/riau/checkpoints/{damaged}/sums.parquet", Body=b"ruined")

    monkeypatch.setenv("CLEARCAUSE_CACHE", str(tmp_path / "another machine"))
    computed: list[str] = []
    outcome = run(config, progress=lambda record: computed.append(record.block))
    assert outcome.status == "published"
    blocks = {name.partition("-")[0] for name in (path.name for path in checkpoints(config))}
    assert set(computed) == blocks - set(wanted) | {damaged.partition("-")[0]}
    assert {name.partition("-")[0] for name in CheckpointStore(ADDRESS).names} == blocks
    plain = run(write_config(tmp_path / "plain", world, tiny_model)).product
    assert_same_results(at_hand(Path(ADDRESS)), plain)
    assert load_config(config).output.dir.is_relative_to(tmp_path / "another machine")
    assert len(layer(plain, "events")) > 0
