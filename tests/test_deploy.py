from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import helm_python
import kubernetes_validate
import pytest
import yaml
from deploy_samples import BIN, DEPLOY, GIVEN, project, resolve, services

DIGEST = "sha256:" + "0" * 64
VALUES: dict[str, Any] = {
    "image": {"repository": "registry.example/clearcause", "digest": DIGEST},
    "database": {"host": "database.example"},
    "storage": {"claim": "runs"},
    "regions": {"configMap": "regions"},
}


# ---------------------------------------------------------------------------------------------- compose


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("engine")


@pytest.fixture(scope="module")
def compose(engine: Path) -> dict[str, Any]:
    return services(engine, GIVEN, "cpu", "gpu")


def test_compose_file_is_one() -> None:
    argv = [BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", DEPLOY / "compose.yaml"]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_services_are_those_of_the_system(compose: dict[str, Any]) -> None:
    assert set(compose["services"]) == {
        "database", "server", "runner", "scheduler", "worker", "worker-gpu", "store"
    }  # fmt: skip


@pytest.mark.parametrize("name", GIVEN)
def test_nothing_starts_without(name: str, engine: Path) -> None:
    done = resolve(engine, {**GIVEN, name: ""})
    assert done.returncode != 0
    assert f"required variable {name} is missing" in done.stderr


def test_only_harmless_settings_have_defaults() -> None:
    text = (DEPLOY / "compose.yaml").read_text("utf-8")
    used = re.findall(r"\$\{(\w+)(:[-?])?([^}]*)\}", text)
    assert {name for name, sign, _ in used if sign == ":?"} == set(GIVEN)
    assert {(name, default) for name, sign, default in used if sign != ":?"} == {
        ("TORCH_WHEELS", ""), ("AWS_ENDPOINT_URL", "http://store:7070"), ("AWS_REGION", "us-east-1"),
        ("PC_SDK_SUBSCRIPTION_KEY", ""), ("WORKER_MEMORY", "6g"), ("WORKERS", "2"), ("RUNS", "1"),
    }  # fmt: skip


def test_example_of_env_names_each_setting_and_holds_no_secret() -> None:
    lines = [line.partition("=") for line in (DEPLOY / ".env.example").read_text("utf-8").splitlines()]
    given = {key: value for key, sign, value in lines if sign and not key.startswith("#")}
    used = set(re.findall(r"\$\{(\w+)", (DEPLOY / "compose.yaml").read_text("utf-8")))
    assert set(given) == used | {"COMPOSE_PROFILES"}
    assert {key for key, value in given.items() if not value} == set(GIVEN) - {"ACCELERATOR"} | {
        "TORCH_WHEELS", "PC_SDK_SUBSCRIPTION_KEY"
    }  # fmt: skip


def test_ports_end_at_loopback(compose: dict[str, Any]) -> None:
    published = {name: service.get("ports", []) for name, service in compose["services"].items()}
    assert {name for name, ports in published.items() if ports} == {"server", "scheduler"}
    for port in [port for ports in published.values() for port in ports]:
        assert re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port)
    for service in compose["services"].values():
        assert "network_mode" not in service


def test_images_of_services_are_pinned(compose: dict[str, Any]) -> None:
    version = project()["project"]["version"]
    for service in compose["services"].values():
        if "build" in service:
            assert service["image"] == f"clearcause:{version}-cpu"
            assert service["pull_policy"] == "build"
        else:
            assert re.fullmatch(r"[\w/]+:[\w.-]+@sha256:[0-9a-f]{64}", service["image"])


def test_services_are_confined(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert not {"privileged", "cap_add", "pid", "ipc", "userns_mode", "devices"} & set(service)
        # the others' image has an unprivileged user
        assert service.get("user", "0").partition(":")[0] in ({"999", "1000"} if "build" not in service else {"0"})
        assert not any("docker.sock" in volume for volume in service.get("volumes", []))


def test_database_and_store_are_reached_by_those_who_use_them_alone(compose: dict[str, Any]) -> None:
    assert {name for name, settings in compose["networks"].items() if (settings or {}).get("internal")} == {
        "database", "cluster"
    }  # fmt: skip
    on = {name: set(service["networks"]) for name, service in compose["services"].items()}
    assert {name for name, networks in on.items() if "database" in networks} == {"database", "server"}
    assert on["database"] == {"database"}
    assert on["store"] == {"cluster"}


def test_runs_lie_under_one_path_for_whoever_computes(compose: dict[str, Any]) -> None:
    for name in ("runner", "worker", "worker-gpu"):
        assert {"data:/data", "/regions:/regions:ro"} <= set(compose["services"][name]["volumes"])


def test_secrets_go_where_they_are_needed(compose: dict[str, Any]) -> None:
    def holders(mark: str) -> set[str]:
        return {
            name
            for name, service in compose["services"].items()
            if mark in map(str, service.get("environment", {}).values())
        }

    assert holders(GIVEN["PREFECT_AUTH_STRING"]) == {"server", "runner"}
    assert holders(GIVEN["DATABASE_PASSWORD"]) == {"server", "database"}
    assert holders(GIVEN["STORE_SECRET_KEY"]) == {"store", "runner", "worker", "worker-gpu"}
    assert {name for name, service in compose["services"].items() if service.get("secrets")} == {
        "runner", "scheduler", "worker", "worker-gpu"
    }  # fmt: skip


# ---------------------------------------------------------------------------------------------- chart


def _render(**values: Any) -> list[dict[str, Any]]:
    with helm_python.Chart.load(DEPLOY / "chart") as chart:
        rendered = chart.render({**VALUES, **values}, name="prod", namespace="clearcause")
    return [manifest for text in rendered.values() for manifest in yaml.safe_load_all(text) if manifest]


@pytest.fixture(scope="module")
def manifests() -> list[dict[str, Any]]:
    return _render()


def _of(manifests: list[dict[str, Any]], kind: str) -> dict[str, dict[str, Any]]:
    label = "app.kubernetes.io/component"
    return {item["metadata"]["labels"][label]: item for item in manifests if item["kind"] == kind}


def test_linter_finds_nothing_in_the_chart() -> None:
    found = helm_python.lint(DEPLOY / "chart", VALUES, strict=True)
    assert found["errors"] == []
    # Helm would like a picture
    assert [message["error"] for message in found["messages"]] == ["icon is recommended"]


@pytest.mark.parametrize("version", ["1.29", kubernetes_validate.latest_version()])
@pytest.mark.parametrize(
    "values",
    [
        {},
        {"worker": {"gpus": 1, "tolerations": [{"key": "gpu", "operator": "Exists"}], "nodeSelector": {"gpu": "yes"}}},
        {"secrets": {"archives": "archives"}, "image": {**VALUES["image"], "pullSecret": "registry"}},
    ],
    ids=["plain", "gpu", "secrets"],
)
def test_what_the_chart_makes_is_kubernetes(version: str, values: dict[str, Any]) -> None:
    made = _render(**values)
    assert len(made) == 10
    for manifest in made:
        kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize(
    "values",
    [
        {"image": {"repository": "registry.example/clearcause", "digest": ""}},
        {"image": {"repository": "", "digest": DIGEST}},
        {"image": {"repository": "clearcause", "digest": "latest"}},
        {"database": {"host": ""}},
        {"storage": {"claim": ""}},
        {"regions": {"configMap": ""}},
        {"secrets": {"prefect": ""}},
        {"server": {"url": "http://prefect.example"}},
        {"server": {"url": "https://prefect.example/api"}},
        {"worker": {"gpus": 2}},
        {"worker": {"replicas": 0}},
        {"worker": {"memory": "lots"}},
        {"runner": {"runs": 0}},
        {"password": "x"},
        {"server": {"password": "x"}},
    ],
    ids=json.dumps,
)
def test_values_that_cannot_work_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(helm_python.HelmError, match="schema"):
        _render(**values)


def test_pods_are_confined(manifests: list[dict[str, Any]]) -> None:
    deployments = _of(manifests, "Deployment")
    assert set(deployments) == {"server", "runner", "scheduler", "worker"}
    for role, deployment in deployments.items():
        pod = deployment["spec"]["template"]["spec"]
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == 1000
        (container,) = pod["containers"]
        assert container["securityContext"] == {
            "readOnlyRootFilesystem": True, "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}
        }  # fmt: skip
        assert container["image"] == f"registry.example/clearcause@{DIGEST}"
        assert "memory" in container["resources"]["limits"]
        assert {"name": "CLEARCAUSE_ROLE", "value": role} in container["env"]
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)


def test_secrets_are_named_and_never_written(manifests: list[dict[str, Any]]) -> None:
    secret = re.compile("PASSWORD|AUTH_STRING|SECRET|TOKEN")
    found = [
        variable
        for deployment in _of(manifests, "Deployment").values()
        for variable in deployment["spec"]["template"]["spec"]["containers"][0]["env"]
        if secret.search(variable["name"])
    ]
    assert len(found) == 4
    for variable in found:
        assert variable["valueFrom"]["secretKeyRef"]["name"] == "clearcause-prefect"
        assert "value" not in variable
    assert not [manifest for manifest in manifests if manifest["kind"] == "Secret"]


def test_each_role_lets_in_whom_it_serves(manifests: list[dict[str, Any]]) -> None:
    policies = _of(manifests, "NetworkPolicy")
    assert set(policies) == set(_of(manifests, "Deployment"))
    label = "app.kubernetes.io/component"
    comes_in = {
        role: {peer["podSelector"]["matchLabels"][label] for rule in policy["spec"]["ingress"] for peer in rule["from"]}
        for role, policy in policies.items()
    }
    assert comes_in == {
        "server": {"runner"}, "runner": set(), "scheduler": {"runner", "worker"},
        "worker": {"runner", "scheduler", "worker"},
    }  # fmt: skip
    for service in _of(manifests, "Service").values():
        assert service["spec"]["type"] == "ClusterIP"


# ---------------------------------------------------------------------------------------------- settings


def _environments(compose: dict[str, Any], manifests: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, str]]]:
    """Variables of each role in the compose file and in the chart."""
    charted = {
        role: {
            variable["name"]: str(variable.get("value", variable.get("valueFrom")))
            for variable in deployment["spec"]["template"]["spec"]["containers"][0]["env"]
        }
        for role, deployment in _of(manifests, "Deployment").items()
    }
    composed = {name: compose["services"][name]["environment"] for name in charted}
    return {"compose": composed, "chart": charted}


def _prefect_settings() -> set[str]:
    from prefect.settings import Settings

    def walk(model: Any, prefix: tuple[str, ...]) -> Iterator[str]:
        for name, field in model.model_fields.items():
            if hasattr(field.annotation, "model_fields"):
                yield from walk(field.annotation, (*prefix, name))
            else:
                yield "_".join((*prefix, name)).upper()

    return set(walk(Settings, ("prefect",)))


def test_variables_are_settings_of_prefect_and_dask(compose: dict[str, Any], manifests: list[dict[str, Any]]) -> None:
    import dask.config
    import distributed  # noqa: F401  its defaults join Dask's

    known = _prefect_settings()
    count = 0
    for roles in _environments(compose, manifests).values():
        for name in (name for variables in roles.values() for name in variables):
            if name.startswith("PREFECT_"):
                assert name in known
                count += 1
            elif name.startswith("DASK_"):
                dask.config.get(name.removeprefix("DASK_").lower().replace("__", "."))
                count += 1
    assert count > 60


def test_compose_and_chart_set_the_same(compose: dict[str, Any], manifests: list[dict[str, Any]]) -> None:
    by_file = _environments(compose, manifests)
    own = {"DASK_DISTRIBUTED__WORKER__MEMORY__TERMINATE"}
    for role, charted in by_file["chart"].items():
        composed = by_file["compose"][role]
        ours = re.compile("PREFECT_|DASK_|CLEARCAUSE_")
        assert {name for name in composed if ours.match(name)} == {n for n in charted if ours.match(n)} - own, role


def test_server_is_closed(compose: dict[str, Any], manifests: list[dict[str, Any]]) -> None:
    for roles in _environments(compose, manifests).values():
        server = roles["server"]
        assert server["PREFECT_SERVER_API_CSRF_PROTECTION_ENABLED"] == "true"
        assert server["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"
        assert server["PREFECT_SERVER_DATABASE_DRIVER"] == "postgresql+asyncpg"
        assert server["PREFECT_SERVER_DOCKET_URL"] == "memory://"
        assert server["PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS"] == "http://127.0.0.1:4200"
        for role in ("runner", "scheduler", "worker"):
            assert roles[role]["DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION"] == "true"


# ---------------------------------------------------------------------------------------------- certificates


def _certificates(folder: Path) -> dict[str, str]:
    done = subprocess.run([DEPLOY / "certificates.sh", folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    names = {"tls_ca_file": "ca.pem"}
    for role in ("scheduler", "worker", "client"):
        names |= {f"tls_{role}_cert": "certificate.pem", f"tls_{role}_key": "key.pem"}
    return {key: str(folder / name) for key, name in names.items()}


def test_only_who_holds_the_certificate_speaks_with_dask(tmp_path: Path) -> None:
    import asyncio

    from distributed import Client, Scheduler, Security, Worker

    ours = Security(require_encryption=True, **_certificates(tmp_path / "ours"))
    other = Security(require_encryption=True, **_certificates(tmp_path / "other"))
    assert sorted(path.name for path in (tmp_path / "ours").iterdir()) == ["ca.pem", "certificate.pem", "key.pem"]
    assert all(path.stat().st_mode & 0o077 == 0 for path in (tmp_path / "ours").iterdir())

    async def refused(address: str, security: Security | None) -> bool:
        try:
            async with Client(address, security=security, asynchronous=True, timeout="3s", set_as_default=False):
                return False
        except OSError:
            return True

    async def run() -> None:
        async with (
            Scheduler(host="127.0.0.1", protocol="tls://", security=ours, dashboard_address=":0") as scheduler,
            Worker(scheduler.address, security=ours, dashboard_address=":0"),
        ):
            async with Client(scheduler.address, security=ours, asynchronous=True, set_as_default=False) as client:
                assert await client.submit(sum, [1, 2]) == 3
            assert await refused(scheduler.address, other)
            assert await refused(scheduler.address.replace("tls://", "tcp://"), None)

    asyncio.run(run())
