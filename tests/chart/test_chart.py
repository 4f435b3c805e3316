"""The chart: what it renders is what Kubernetes takes, what a hardened cluster lets in, and what its table says."""

from __future__ import annotations

import copy
import os
import re
import tarfile
import tomllib
from typing import TYPE_CHECKING, Any

import kubernetes_validate
import pytest
import yaml
from cloudcoil.models.prometheus_operator import v1 as operator

from server.config.load import load_config
from tests.chart.fakecluster import fake_cluster
from tests.chart.rendering import (
    CHART,
    NEWEST,
    OLDEST,
    ROOT,
    SETS,
    Thing,
    container,
    helm,
    of_kind,
    refusal,
    rendered,
    secret_text,
    the,
)

if TYPE_CHECKING:
    from pathlib import Path

MINIMAL, EVERYTHING, SEED = SETS["minimal"], SETS["everything"], SETS["seed"]
# The custom resources of the Prometheus operator are in none of Kubernetes' schemas.
OPERATORS = {"ServiceMonitor": operator.ServiceMonitor, "PrometheusRule": operator.PrometheusRule}

every_set = pytest.mark.parametrize("values", SETS.values(), ids=SETS)


def check_schema(thing: Thing, version: str) -> None:
    """Raise unless the object fits its schema and has no other field."""
    model = OPERATORS.get(thing["kind"])
    if model is None:
        kubernetes_validate.validate(thing, version, strict=True)
        return
    # The model leaves out what it does not know, so compare.
    assert (
        model.model_validate(copy.deepcopy(thing)).model_dump(mode="json", by_alias=True, exclude_unset=True) == thing
    )


def pod_specs(things: list[Thing]) -> list[Thing]:
    """The pods that come of the objects: the forwarder's, and `helm test`'s."""
    pods = [thing["spec"] for thing in of_kind(things, "Pod")]
    return [*pods, the(things, "StatefulSet")["spec"]["template"]["spec"]]


@every_set
def test_it_lints_strictly(values: Path) -> None:
    done = helm("lint", "--strict", CHART, "--values", values)
    assert done.returncode == 0, done.stdout


@every_set
@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_every_object_fits_its_schema(values: Path, version: str) -> None:
    things = rendered(values, version=version)
    for thing in things:
        check_schema(thing, version)
    names = [(thing["kind"], thing["metadata"]["name"]) for thing in things]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("kind", ["StatefulSet", "NetworkPolicy", "ServiceMonitor", "PrometheusRule"])
def test_the_schemas_know_what_does_not_belong(kind: str) -> None:
    thing = the(rendered(EVERYTHING), kind)
    thing["spec"]["replica"] = 1
    with pytest.raises((kubernetes_validate.ValidationError, AssertionError)):
        check_schema(thing, NEWEST)


def test_with_everything_on_everything_is_there() -> None:
    assert {thing["kind"] for thing in rendered(EVERYTHING)} == {
        *("StatefulSet", "Service", "Secret", "ConfigMap", "Pod"),
        *("ServiceMonitor", "PrometheusRule", "NetworkPolicy", "PodDisruptionBudget"),
    }


@every_set
def test_every_pod_is_restricted(values: Path) -> None:
    """As Pod Security Standards' level "restricted" wants it, and with a root that can't be written."""
    for pod in pod_specs(rendered(values)):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        for each in pod["containers"]:
            assert each["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }


@every_set
def test_what_is_mounted_is_there(values: Path) -> None:
    things = rendered(values)
    stateful_set = the(things, "StatefulSet")
    claims = stateful_set["spec"].get("volumeClaimTemplates", [])
    volumes = stateful_set["spec"]["template"]["spec"]["volumes"]
    names = [volume["name"] for volume in volumes] + [claim["metadata"]["name"] for claim in claims]
    mounts = container(stateful_set)["volumeMounts"]
    assert sorted(names) == sorted(mount["name"] for mount in mounts)
    assert len({mount["mountPath"] for mount in mounts}) == len(mounts)
    made = {secret["metadata"]["name"] for secret in of_kind(things, "Secret")}
    used = {volume["secret"]["secretName"] for volume in volumes if "secret" in volume}
    assert made <= used
    assert used - made <= set(re.findall(r"existingSecret: ([\w-]+)", values.read_text()))


@every_set
def test_no_password_or_token_is_anywhere_but_in_secrets(values: Path, tmp_path: Path) -> None:
    given = yaml.safe_load(values.read_text())
    given = {key: given[key] for key in given if key not in {"existingSecret", "env"}}
    given["config"] = "mqtt: {credentials: {password: canary-password}}"
    path = tmp_path / "values.yaml"
    path.write_text(yaml.safe_dump(given))
    things = rendered(path)
    secrets = of_kind(things, "Secret")
    tokens = [secret_text(secret, key) for secret in secrets for key in secret["data"] if key != "config.yaml"]
    elsewhere = yaml.safe_dump([thing for thing in things if thing["kind"] != "Secret"])
    for canary in ["canary-password", *tokens]:
        assert canary not in elsewhere
    assert (
        sum("canary-password" in secret_text(each, "config.yaml") for each in secrets if "config.yaml" in each["data"])
        == 1
    )


def test_the_service_finds_the_forwarder_and_not_the_test() -> None:
    things = rendered(EVERYTHING)
    selector = the(things, "Service")["spec"]["selector"]
    assert selector == the(things, "StatefulSet")["spec"]["selector"]["matchLabels"]
    assert selector.items() <= the(things, "StatefulSet")["spec"]["template"]["metadata"]["labels"].items()
    assert not selector.items() <= the(things, "Pod")["metadata"]["labels"].items()
    assert (
        the(things, "ServiceMonitor")["spec"]["selector"]["matchLabels"].items()
        <= the(things, "Service")["metadata"]["labels"].items()
    )
    for kind in ("PodDisruptionBudget", "NetworkPolicy"):
        spec = the(things, kind)["spec"]
        assert (spec.get("selector") or spec["podSelector"])["matchLabels"] == selector


def test_ports_that_are_named_are_named_somewhere() -> None:
    things = rendered(EVERYTHING)
    forwarder = container(the(things, "StatefulSet"))
    ports = {port["name"] for port in forwarder["ports"]}
    probes = {forwarder[f"{probe}Probe"]["httpGet"]["port"] for probe in ("startup", "liveness", "readiness")}
    (service,) = the(things, "Service")["spec"]["ports"]
    (ingress,) = the(things, "NetworkPolicy")["spec"]["ingress"]
    assert {*probes, service["targetPort"], *(port["port"] for port in ingress["ports"])} <= ports
    (endpoint,) = the(things, "ServiceMonitor")["spec"]["endpoints"]
    assert endpoint["port"] == service["name"]


def test_the_pod_has_the_time_that_a_drain_takes_and_nodes_can_be_drained() -> None:
    things = rendered(MINIMAL)
    assert the(things, "StatefulSet")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == 45
    assert the(things, "PodDisruptionBudget")["spec"]["maxUnavailable"] == 1


def test_there_is_one_pod_with_a_volume() -> None:
    spec = the(rendered(MINIMAL), "StatefulSet")["spec"]
    assert spec["replicas"] == 1
    (claim,) = spec["volumeClaimTemplates"]
    assert claim["spec"] == {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}


def test_the_seed_s_values_mean_here_what_they_meant_there() -> None:
    things = rendered(SEED)
    assert the(things, "StatefulSet")["metadata"]["name"] == "mqtt-kafka-forwarding-service"
    forwarder = container(the(things, "StatefulSet"))
    assert forwarder["image"] == "ghcr.io/maibornwolff/mqtt-kafka-forwarding-service:dev"
    assert forwarder["livenessProbe"]["httpGet"]["path"] == "/health"
    assert forwarder["resources"]["limits"]["memory"] == "128Mi"
    assert {"name": "CONFIG_FILE", "value": "/forwarding-config/config.yaml"} in forwarder["env"]
    assert {"name": "MKF_LOG_LEVEL", "value": "warning"} in forwarder["env"]
    assert the(things, "ServiceMonitor")["spec"]["endpoints"][0]["interval"] == "30s"


def test_a_configuration_may_be_text_or_yaml(tmp_path: Path) -> None:
    values = tmp_path / "values.yaml"
    config = yaml.safe_load(yaml.safe_load(SEED.read_text())["config"])
    values.write_text(yaml.safe_dump({"config": config}))
    texts = [
        secret_text(
            next(each for each in of_kind(rendered(path), "Secret") if "config.yaml" in each["data"]), "config.yaml"
        )
        for path in (SEED, values)
    ]
    assert yaml.safe_load(texts[0]) == yaml.safe_load(texts[1]) == config


def test_a_changed_configuration_starts_the_pod_anew_and_an_unchanged_one_does_not() -> None:
    def checksum(*more: str) -> str:
        metadata = the(rendered(MINIMAL, *more), "StatefulSet")["spec"]["template"]["metadata"]
        return str(metadata["annotations"]["checksum/config"])

    assert checksum() == checksum("--set", "service.port=81")
    assert checksum() != checksum("--set", "config=mqtt: {}")


def test_a_token_is_made_with_256_bits_and_another_for_each_release() -> None:
    tokens = {
        secret_text(
            next(s for s in of_kind(rendered(MINIMAL), "Secret") if s["metadata"]["name"].endswith("-admin")),
            "admin-token",
        )
        for _ in range(2)
    }
    assert len(tokens) == 2
    # 62 ** 43 is more than 2 ** 256.
    assert all(re.fullmatch(r"mkf_[A-Za-z0-9]{43}", token) for token in tokens)


def test_the_service_is_told_where_its_token_is_or_that_there_is_none() -> None:
    forwarder = container(the(rendered(MINIMAL), "StatefulSet"))
    (token,) = (each["value"] for each in forwarder["env"] if each["name"] == "MKF_ADMIN_TOKEN_FILE")
    (mount,) = (each for each in forwarder["volumeMounts"] if each["name"] == "admin-token")
    assert token == f"{mount['mountPath']}/admin-token"
    assert {"name": "MKF_AUTH", "value": "none"} in container(the(rendered(SETS["open"]), "StatefulSet"))["env"]


def test_with_a_certificate_everything_that_asks_the_api_asks_by_https() -> None:
    things = rendered(EVERYTHING)
    forwarder = container(the(things, "StatefulSet"))
    assert {forwarder[f"{probe}Probe"]["httpGet"]["scheme"] for probe in ("startup", "liveness", "readiness")} == {
        "HTTPS"
    }
    assert {"name": "MKF_TLS_CERT", "value": "/etc/mkf/tls/api/tls.crt"} in forwarder["env"]
    assert {"name": "MKF_TLS_KEY", "value": "/etc/mkf/tls/api/tls.key"} in forwarder["env"]
    (endpoint,) = the(things, "ServiceMonitor")["spec"]["endpoints"]
    assert endpoint["scheme"] == "https"
    (test,) = the(things, "Pod")["spec"]["containers"]
    assert {"name": "URL", "value": "https://forwarder:80"} in test["env"]


def test_a_release_without_a_configuration_is_refused_with_what_to_set() -> None:
    said = refusal()
    for name in ("config ", "existingSecret", "CONFIG_FILE"):
        assert name in said


def test_a_configuration_from_two_places_is_refused() -> None:
    assert "config and existingSecret are both set" in refusal("--values", MINIMAL, "--set", "existingSecret=x")
    assert "env names a CONFIG_FILE" in refusal("--values", SETS["open"], "--set", "existingSecret=x")


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("replicaCount=2", "replicaCount"),
        ("pod.resource.limits.cpu=1", "resource"),
        ("logLevel=forwarder=debug", "logLevel"),
        ("pod.terminationGracePeriodSeconds=10", "terminationGracePeriodSeconds"),
        ("service.enabled=false,prometheus.enabled=true", "prometheus.enabled needs service.enabled"),
    ],
)
def test_values_that_mean_nothing_here_are_refused_by_name(setting: str, named: str) -> None:
    assert named in refusal("--values", MINIMAL, "--set", setting)


def test_a_long_name_still_leaves_room_for_what_is_added_to_it() -> None:
    things = rendered(MINIMAL, "--set", f"fullnameOverride={'x' * 80}")
    # The label controller-revision-hash is the name and 11 characters more.
    assert len(the(things, "StatefulSet")["metadata"]["name"]) == 52
    assert all(len(thing["metadata"]["name"]) <= 63 for thing in things)


def leaves(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values by their full names; lists, free maps and Kubernetes' own objects count as one."""
    whole = {"podSecurityContext", "securityContext", "pod.updateStrategy", "pod.resources", "dashboard.labels"}
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value and name not in whole and not name.endswith("Probe"):
            found |= leaves(value, f"{name}.")
        else:
            found[name] = value
    return found


def test_the_table_in_the_readme_has_every_value_with_its_default() -> None:
    table = dict(re.findall(r"^\| `([\w.]+)` \| (.+?) \|", (CHART / "README.md").read_text(), re.MULTILINE))
    defaults = leaves(yaml.safe_load((CHART / "values.yaml").read_text()))
    assert list(table) == list(defaults)
    literal = {name: yaml.safe_load(text[1:-1]) for name, text in table.items() if text[0] == text[-1] == "`"}
    # Where the default is too long for a table, the table describes it.
    described = {name for name in table if name not in literal}
    probes = {name for name in literal if name.endswith("Probe")}
    assert {name: literal[name] for name in literal if name not in probes} == {
        name: defaults[name] for name in literal if name not in probes
    }
    assert all(defaults[name]["httpGet"]["path"] == literal[name] for name in probes)
    assert described == {"podSecurityContext", "securityContext", "pod.ports", "pod.resources", "networkPolicy.egress"}


def test_the_files_that_a_configuration_names_are_mounted() -> None:
    things = rendered(EVERYTHING)
    text = "".join(secret_text(secret, "config.yaml") for secret in of_kind(things, "Secret"))
    named = {path.rpartition("/")[0] for path in re.findall(r"/etc/mkf/\S+", text)}
    assert named == {"/etc/mkf/tls/mqtt", "/etc/mkf/tls/kafka"}
    assert named <= {mount["mountPath"] for mount in container(the(things, "StatefulSet"))["volumeMounts"]}


@pytest.mark.parametrize("name", ["minimal", "seed", "everything"])
def test_the_configurations_of_the_sets_are_valid(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MQTT_PASSWORD", "secret")
    texts = [
        secret_text(each, "config.yaml")
        for each in of_kind(rendered(SETS[name]), "Secret")
        if "config.yaml" in each["data"]
    ]
    (tmp_path / "config.yaml").write_text(*texts)
    assert len(load_config(tmp_path / "config.yaml", os.environ).forwarding) == 1


def test_the_package_has_what_it_needs_and_the_version_of_the_service(tmp_path: Path) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == version
    assert f"ARG VERSION={version}\n" in (ROOT / "Dockerfile").read_text()
    assert helm("package", CHART, "--destination", tmp_path).returncode == 0
    with tarfile.open(tmp_path / f"{chart['name']}-{version}.tgz") as package:
        names = {name.removeprefix(f"{chart['name']}/") for name in package.getnames()}
    assert {"values.schema.json", "README.md", "files/alerts.yaml", "files/dashboard.json", "files/answers.py"} <= names
    assert not any(name.startswith("ci/") for name in names)


def installed(folder: Path, values: Path, *there: Thing) -> str:
    """What `helm install` says in a cluster with those objects, without doing it."""
    with fake_cluster(folder, *there) as env:
        done = helm("install", "r", CHART, "--dry-run=server", "--disable-openapi-validation", "-f", values, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_token_that_was_made_before_is_kept(tmp_path: Path) -> None:
    name = "r-mqtt-kafka-forwarder-admin"
    release = {"meta.helm.sh/release-name": "r", "meta.helm.sh/release-namespace": "default"}
    metadata = {"name": name, "labels": {"app.kubernetes.io/managed-by": "Helm"}, "annotations": release}
    before = {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": {"admin-token": "b2xk"}}
    assert "admin-token: b2xk\n" in installed(tmp_path, MINIMAL, before)
    assert "admin-token: b2xk\n" not in installed(tmp_path, MINIMAL)


def test_the_notes_say_how_to_reach_it_and_what_is_open(tmp_path: Path) -> None:
    closed = installed(tmp_path, EVERYTHING).split("NOTES:")[1]
    assert "get secret my-token" in closed
    assert '{{index .data "token" | base64decode}}' in closed
    assert "WARNING" not in closed
    assert installed(tmp_path, SETS["open"]).split("NOTES:")[1].count("WARNING") == 2
