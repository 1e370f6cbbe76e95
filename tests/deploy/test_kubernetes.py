"""The manifests against Kubernetes' own schemas, against each other and against what the verifier knows. No cluster."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
from redis import Redis

from tests.cloud.shared_state.redis_server import free_port
from tests.deploy.files import DEPLOY, VARIABLES, configuration, documents
from tests.e2e.certificates import issue

FOLDER = DEPLOY / "kubernetes"
KUSTOMIZATION = documents(FOLDER / "kustomization.yaml")[0]
OBJECTS = [document for name in KUSTOMIZATION["resources"] for document in documents(FOLDER / name)]
SECRETS = {"pilotfish-secrets", "pilotfish-tls"}  # that docs/deployment.md says to make
VERSIONS = ("1.30.0", "1.37.0")


def one(kind: str, name: str) -> Any:
    (found,) = [item for item in OBJECTS if (item["kind"], item["metadata"]["name"]) == (kind, name)]
    return found


VERIFIER = one("StatefulSet", "verifier")["spec"]
POD = VERIFIER["template"]["spec"]
CONTAINER = POD["containers"][0]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("item", OBJECTS, ids=lambda item: f"{item['kind']}-{item['metadata']['name']}")
def test_the_schema(item: dict[str, Any], version: str) -> None:
    kubernetes_validate.validate(item, version, strict=True)


def test_the_schema_finds_what_is_wrong() -> None:
    broken = one("PodDisruptionBudget", "verifier") | {"spec": {"maxUnavailable": 1, "selektor": {}}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, VERSIONS[-1], strict=True)


def test_all_files_are_in_the_kustomization() -> None:
    generated = {name for generator in KUSTOMIZATION["configMapGenerator"] for name in generator["files"]}
    named = {*KUSTOMIZATION["resources"], *generated, "kustomization.yaml", "adapter-values.yaml"}
    assert {path.name for path in FOLDER.iterdir()} == named
    assert all(item["metadata"].get("namespace", "pilotfish") == "pilotfish" for item in OBJECTS)
    assert one("Namespace", KUSTOMIZATION["namespace"])


def test_what_is_referred_to_is_there() -> None:
    maps = {generator["name"]: set(generator["files"]) for generator in KUSTOMIZATION["configMapGenerator"]}
    for item in OBJECTS:
        template = item["spec"].get("template") if "spec" in item else None
        if template is None:
            continue
        spec = template["spec"]
        claims = {claim["metadata"]["name"] for claim in item["spec"].get("volumeClaimTemplates", [])}
        volumes = {volume["name"] for volume in spec.get("volumes", [])} | claims
        for volume in spec.get("volumes", []):
            assert volume.get("configMap", {}).get("name", next(iter(maps))) in maps
            assert volume.get("secret", {}).get("secretName", "pilotfish-tls") in SECRETS
        for container in spec["containers"]:
            assert {mount["name"] for mount in container.get("volumeMounts", [])} == volumes
            ports = {port["name"] for port in container["ports"]}
            probes = [value for key, value in container.items() if key.endswith("Probe")]
            named = {probe[kind]["port"] for probe in probes for kind in ("httpGet", "tcpSocket") if kind in probe}
            assert named <= ports
            assert container["resources"]["requests"]
        labels = template["metadata"]["labels"].items()
        assert item["spec"]["selector"]["matchLabels"].items() <= labels
        budgets = [one for one in OBJECTS if one["kind"] in ("PodDisruptionBudget", "NetworkPolicy")]
        for budget in budgets:
            selector = budget["spec"].get("selector") or budget["spec"]["podSelector"]
            assert any(
                selector["matchLabels"].items() <= other["spec"]["template"]["metadata"]["labels"].items()
                for other in OBJECTS
                if "template" in other.get("spec", {})
            )
    assert one("Service", VERIFIER["serviceName"])["spec"]["clusterIP"] == "None"
    assert one("HorizontalPodAutoscaler", "verifier")["spec"]["scaleTargetRef"]["kind"] == "StatefulSet"
    assert {image["name"] for image in KUSTOMIZATION["images"]} == {CONTAINER["image"]}


def test_the_verifier_knows_its_configuration() -> None:
    config = configuration(FOLDER / "pilotfish.toml")
    names = {entry["name"] for entry in CONTAINER["env"]}
    assert names <= VARIABLES
    assert {"PILOTFISH_CONFIG", "PILOTFISH_REPLICA_NAME", "PILOTFISH_USAGE_JOURNAL"} <= names
    assert CONTAINER["args"] == ["serve"]
    assert {port["name"]: port["containerPort"] for port in CONTAINER["ports"]} == {
        "grpc": config.port,
        "http": config.http_port,
    }
    mounts = {mount["mountPath"]: mount for mount in CONTAINER["volumeMounts"]}
    for path in (config.secret_file, config.keys_file, config.redis_password_file, config.tenants_file):
        assert path is not None
        inside = path.relative_to(FOLDER)
        assert f"/etc/pilotfish/{inside.parent}" in mounts
    redis = one("Service", "redis")["spec"]["ports"][0]["port"]
    assert config.redis_url == f"redis://redis:{redis}/0"


def test_no_service_is_taken_for_an_option() -> None:
    """The kubelet tells a pod of each Service as NAME_PORT and so on: of ours as PILOTFISH_PORT=tcp://..."""
    assert "PILOTFISH_PORT" in VARIABLES
    assert one("Service", "pilotfish")
    pods = [item["spec"]["template"]["spec"] for item in OBJECTS if "template" in item.get("spec", {})]
    assert len(pods) == 3
    for pod in pods:
        assert pod["enableServiceLinks"] is False


def test_there_is_time_to_drain() -> None:
    before = float(CONTAINER["lifecycle"]["preStop"]["exec"]["command"][1])
    drain = configuration(FOLDER / "pilotfish.toml").shutdown_timeout_s
    assert POD["terminationGracePeriodSeconds"] >= before + drain + 10
    ready, live = CONTAINER["readinessProbe"], CONTAINER["livenessProbe"]
    assert ready["httpGet"]["path"] == "/readyz"
    assert live["httpGet"]["path"] == "/livez"
    assert ready["periodSeconds"] * ready["failureThreshold"] <= before  # nobody is sent there when SIGTERM comes
    assert one("PodDisruptionBudget", "verifier")["spec"]["maxUnavailable"] == 1


def test_secrets_are_private_as_the_verifier_sees_it() -> None:
    """Root's files, which the pod's group may read: see tests/cloud/test_files.py."""
    (secrets,) = [volume["secret"] for volume in POD["volumes"] if volume["name"] == "secrets"]
    assert secrets["defaultMode"] == 0o440
    assert POD["securityContext"]["fsGroup"] == POD["securityContext"]["runAsGroup"]
    assert POD["securityContext"]["runAsNonRoot"]


def test_nginx_names_each_pod_that_there_may_be() -> None:
    most = one("HorizontalPodAutoscaler", "verifier")["spec"]["maxReplicas"]
    text = (FOLDER / "pilotfish.conf").read_text()
    service, namespace = VERIFIER["serviceName"], KUSTOMIZATION["namespace"]
    for name, port in (("verifiers", 50051), ("http", 8000), ("sockets", 8000)):
        hosts = [f"verifier-{number}.{service}.{namespace}.svc.cluster.local:{port}" for number in range(most)]
        (upstream,) = re.findall(rf"^upstream pilotfish_{name} {{(.*?)^}}", text, flags=re.MULTILINE | re.DOTALL)
        assert re.findall(r"^    server (\S+) resolve", upstream, flags=re.MULTILINE) == hosts


def test_nginx_is_as_the_one_that_is_tested() -> None:
    """Apart from the servers and how they are found it is deploy/nginx/pilotfish.conf, which tests/e2e run."""

    def rest(path: Path) -> list[str]:
        lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
        return [line for line in lines if line and not re.match(r"\s*(server verifier-|resolver|zone )", line)]

    assert rest(FOLDER / "pilotfish.conf") == rest(DEPLOY / "nginx" / "pilotfish.conf")


@pytest.mark.slow
@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_redis_has_the_password_that_verifiers_read(tmp_path: Path, end: str) -> None:
    """A Secret keeps the end of its file's line; the commands run as they are, but for folder and port."""
    (container,) = one("StatefulSet", "redis")["spec"]["template"]["spec"]["containers"]
    port = free_port()
    script = container["args"][0].replace("/data", str(tmp_path)) + f" --bind 127.0.0.1 --port {port}"
    environment = os.environ | {"REDIS_PASSWORD": f"open sesame{end}"}
    probe = container["readinessProbe"]["exec"]["command"]
    assert probe[:2] == container["command"] == ["sh", "-c"]
    server = subprocess.Popen(["sh", "-c", script], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        assert server.stdout is not None
        until = (line for line in server.stdout if b"Ready to accept connections" in line)
        assert next(until, None) is not None
        asked = probe[2].replace("redis-cli", f"redis-cli -p {port}")
        assert subprocess.run(["sh", "-c", asked], env=environment, check=False).returncode == 0
        wrong = environment | {"REDIS_PASSWORD": "another"}
        assert subprocess.run(["sh", "-c", asked], env=wrong, check=False, stderr=subprocess.DEVNULL).returncode != 0
        with Redis(port=port, password="open sesame") as client:
            assert client.ping()
    finally:
        server.kill()
        server.communicate()


@pytest.mark.slow
def test_nginx_takes_it(tmp_path: Path) -> None:
    """``resolve`` is newer than Debian's nginx, so that the names are addresses here."""
    program = shutil.which("nginx", path=f"{os.environ['PATH']}{os.pathsep}/usr/sbin")
    if program is None:
        pytest.fail("nginx is missing; say: make servers")
    issue(tmp_path, "server", issue(tmp_path, "authority"))
    text = (FOLDER / "pilotfish.conf").read_text().replace("/etc/pilotfish/", f"{tmp_path}/")
    text = re.sub(r"verifier-(\d)\.\S+?:(\d+) resolve", r"127.0.0.1\1:\2", text).replace("127.0.0.1", "127.0.0.")
    text = re.sub(r"127\.0\.0\.(\d)", lambda found: f"127.0.0.{int(found[1]) + 1}", text)
    text = text.replace("kube-dns.kube-system.svc.cluster.local", "127.0.0.1")
    (tmp_path / "pilotfish.conf").write_text(text)
    (tmp_path / "nginx.conf").write_text(
        f"pid {tmp_path}/pid; error_log stderr; events {{}}\n"
        f"http {{ access_log off; include {tmp_path}/pilotfish.conf; }}"
    )
    command = [program, "-t", "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf")]
    tested = subprocess.run(command, capture_output=True, text=True, check=False)
    assert tested.returncode == 0, tested.stderr
