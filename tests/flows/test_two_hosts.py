"""Two hosts, a scheduler and a worker on each, TLS between them: the product of a run on one machine.

The hosts are network namespaces joined by a pair of virtual cables to a third one, which plays the switch and where the
run itself lives; cutting a host off is taking its cable down.
"""

from __future__ import annotations

import datetime
import ipaddress
import json
import os
import shutil
import subprocess
import sys
import time

import pytest
from run_samples import ROOT, assert_same_results, checkpoints, command, write_config

from pipeline.config import load_config

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
SPACES = ("cc-flow", "cc-one", "cc-two")


def ip(*arguments):
    return subprocess.run(["ip", *map(str, arguments)], check=True, capture_output=True, text=True)


@pytest.fixture
def hosts():
    """Three namespaces: the flow's, with a bridge 10.77.0.1, and hosts 10.77.0.2 and 10.77.0.3."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        if os.environ.get("CI"):
            pytest.fail("network namespaces need root and iproute2")
        pytest.skip("network namespaces need root and iproute2")
    clean()
    try:
        for space in SPACES:
            ip("netns", "add", space)
            ip("-n", space, "link", "set", "lo", "up")
        ip("-n", "cc-flow", "link", "add", "br0", "type", "bridge")
        ip("-n", "cc-flow", "addr", "add", "10.77.0.1/24", "dev", "br0")
        ip("-n", "cc-flow", "link", "set", "br0", "up")
        for number, space in enumerate(SPACES[1:], 2):
            ip("-n", "cc-flow", "link", "add", f"to{number}", "type", "veth", "peer", "name", "eth0", "netns", space)
            ip("-n", "cc-flow", "link", "set", f"to{number}", "master", "br0", "up")
            ip("-n", space, "addr", "add", f"10.77.0.{number}/24", "dev", "eth0")
            ip("-n", space, "link", "set", "eth0", "up")
    except subprocess.CalledProcessError as error:
        clean()
        if os.environ.get("CI"):
            raise
        pytest.skip(f"no network namespaces here: {error.stderr}")
    yield SPACES
    clean()


def clean():
    for space in SPACES:
        subprocess.run(["ip", "netns", "delete", space], check=False, capture_output=True)


@pytest.fixture
def certificates(tmp_path):
    """An authority, and one certificate that it signed for all hosts, as Dask's configuration names them."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    now = datetime.datetime.now(datetime.UTC)
    keys = {name: ec.generate_private_key(ec.SECP256R1()) for name in ("authority", "host")}
    names = {name: x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]) for name in keys}
    for name, authority in (("authority", True), ("host", False)):
        places = [x509.IPAddress(ipaddress.ip_address(f"10.77.0.{k}")) for k in (1, 2, 3)]
        made = (
            x509.CertificateBuilder()
            .subject_name(names[name]).issuer_name(names["authority"]).public_key(keys[name].public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1)).not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(places), critical=False)
            .sign(keys["authority"], hashes.SHA256())
        )  # fmt: skip
        (tmp_path / f"{name}.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
        (tmp_path / f"{name}.key").write_bytes(
            keys[name].private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
    tls = {"ca-file": str(tmp_path / "authority.pem")}
    tls |= {r: {"cert": str(tmp_path / "host.pem"), "key": str(tmp_path / "host.key")} for r in ("scheduler", "worker")}
    tls["client"] = tls["worker"]
    settings = {
        "comm": {"require-encryption": True, "tls": tls, "timeouts": {"tcp": "12s", "connect": "10s"}},
        "scheduler": {"worker-ttl": "15s"},
    }
    folder = tmp_path / "dask"
    folder.mkdir()
    (folder / "distributed.yaml").write_text(json.dumps({"distributed": settings}))
    return folder


@pytest.fixture
def inside(hosts, certificates, tmp_path):
    """Start programs in a namespace, with Dask's configuration; they are ended with the test."""
    started = []

    def start(space, name, *arguments):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "DASK_CONFIG": str(certificates)}
        with (tmp_path / f"{name}.log").open("w") as log:
            process = subprocess.Popen(
                ["ip", "netns", "exec", space, *map(str, arguments)], cwd=tmp_path, env=environment, stdout=log,
                stderr=log,
            )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait(30)


def dask(kind, *arguments):
    return [sys.executable, "-m", f"distributed.cli.dask_{kind}", *arguments, "--no-dashboard"]


@pytest.fixture
def address(inside):
    """A scheduler on the first host and a worker on both."""
    inside("cc-one", "scheduler", *dask("scheduler", "--host", "tls://10.77.0.2", "--port", "8786"))
    address = "tls://10.77.0.2:8786"
    for number, space in enumerate(SPACES[1:], 2):
        options = ("--host", f"tls://10.77.0.{number}", "--nthreads", "1", "--memory-limit", "3GiB")
        inside(space, f"worker-{number}", *dask("worker", address, "--name", space, *options))
    return address


def wait_until(condition, process, seconds=600):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "the run ended too early"
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("cut", [False, True], ids=["whole", "one host cut off midway"])
def test_two_hosts_give_the_product_of_one(cut, inside, address, world, reference, tiny_model, tmp_path):
    """A host whose cable is pulled is missed after `worker-ttl`; its block is computed by the other one."""
    changes = {"grid__block": 32, "compute__executor": address}
    config = write_config(tmp_path / "run", world, tiny_model, **changes)
    process = inside("cc-flow", "run", *command("run", config, "--no-prefect"))
    if cut:
        wait_until(lambda: len(checkpoints(config)) >= 4, process)
        ip("-n", "cc-flow", "link", "set", "to3", "down")
    process.wait(900)
    said = (tmp_path / "run.log").read_text()
    assert process.returncode == 0, said
    product = load_config(config).output.dir
    assert_same_results(product, reference)


def test_without_the_certificate_nobody_gets_in(inside, address, world, tiny_model, tmp_path):
    config = write_config(tmp_path / "run", world, tiny_model, compute__executor=address)
    line = command("run", config, "--no-prefect")
    process = inside("cc-flow", "run", "env", "-u", "DASK_CONFIG", *line)
    assert process.wait(300) == 2
    said = (tmp_path / "run.log").read_text()
    assert f"error: compute.executor {address}: no Dask scheduler answers there" in said
    assert "distributed.comm.tls" in said
    assert "Traceback" not in said
