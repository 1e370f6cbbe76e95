"""The compose file against itself and the verifier's configuration; its preparation for real. No Docker."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.files import DEPLOY, ROOT, VARIABLES, configuration, documents, seconds

FOLDER = DEPLOY / "compose"
COMPOSE = documents(FOLDER / "compose.yaml")[0]
SERVICES: dict[str, Any] = COMPOSE["services"]
VERIFIERS = ("verifier-1", "verifier-2")


def mounts(service: str) -> list[list[str]]:
    """Source and target of each volume."""
    return [re.split(r":(?=/)", volume.removesuffix(":ro")) for volume in SERVICES[service].get("volumes", [])]


def test_what_is_referred_to_is_there() -> None:
    for name, service in SERVICES.items():
        for source, target in mounts(name):
            assert target.startswith("/")
            if source.startswith("./secrets/"):  # prepare.sh makes them
                continue
            if source.startswith("."):
                assert (FOLDER / source).exists(), source
            elif not source.startswith("$"):
                assert source in COMPOSE["volumes"]
        assert set(service.get("depends_on", ())) <= set(SERVICES)
        assert set(service["networks"]) <= set(COMPOSE["networks"])
        assert set(service.get("secrets", ())) <= set(COMPOSE["secrets"])
        assert re.search(r":[\w.-]*\d", service["image"]) or service["image"] == "pilotfish-verifier"  # no moving tag
        build = service.get("build")
        if build is not None:
            assert (FOLDER / build["context"]).resolve() == ROOT
            assert (ROOT / build["dockerfile"]).is_file()


def test_only_what_has_tls_or_stays_on_the_machine_is_published() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published.keys() == {"nginx", "grafana"}
    assert all(port.startswith("127.0.0.1:") for port in published["grafana"])
    assert COMPOSE["networks"]["inside"]["internal"]
    assert all(SERVICES[name]["networks"] == ["inside"] for name in (*VERIFIERS, "redis"))


def test_the_verifiers_know_their_configuration() -> None:
    names, journals = set(), set()
    for name in VERIFIERS:
        environment = SERVICES[name]["environment"]
        assert environment.keys() <= VARIABLES
        config = configuration(FOLDER / "config" / "pilotfish.toml", PILOTFISH_MODEL="/models/target")
        assert seconds(SERVICES[name]["stop_grace_period"]) >= config.shutdown_timeout_s + 10
        sources = {target: source for source, target in mounts(name)}
        for path in (config.secret_file, config.keys_file, config.tenants_file, config.redis_password_file):
            assert path is not None
            inside = Path(os.path.relpath(path, FOLDER)).parent
            assert sources[f"/etc/pilotfish/{inside}"] == f"./{inside}"
        assert sources[str(Path(environment["PILOTFISH_CONFIG"]).parent)] == "./config"
        assert config.redis_url == "redis://redis:6379/0"
        names.add(environment["PILOTFISH_REPLICA_NAME"])
        journals.add(environment["PILOTFISH_USAGE_JOURNAL"])
        assert environment["PILOTFISH_USAGE_JOURNAL"].startswith("/var/lib/pilotfish/")
        assert "/var/lib/pilotfish" in sources
    assert len(names) == len(journals) == 2


def test_what_is_read_again_is_mounted_by_its_folder() -> None:
    """Files are replaced by renaming another one to their name; a mount of a single file stays with the old one."""
    for name in (*VERIFIERS, "nginx"):
        files = {source for source, _ in mounts(name) if Path(source).suffix}
        assert files <= {"../nginx/pilotfish.conf"}


def test_others_name_the_verifiers() -> None:
    nginx = (DEPLOY / "nginx" / "pilotfish.conf").read_text()
    assert set(re.findall(r"server (\S+):50051", nginx)) == set(VERIFIERS)
    (scraped,) = documents(DEPLOY / "prometheus" / "prometheus.yml")[0]["scrape_configs"]
    assert scraped["static_configs"][0]["targets"] == [f"{name}:8000" for name in VERIFIERS]
    files = {Path(source).name: target for source, target in mounts("prometheus")}
    assert Path(files["rules.yml"]).parent == Path(files["prometheus.yml"]).parent
    provider = documents(DEPLOY / "grafana" / "dashboards.yaml")[0]["providers"][0]
    assert provider["options"]["path"] == str(Path(dict(mounts("grafana"))["../grafana/pilotfish.json"]).parent)
    published = {port.split(":")[0] for port in SERVICES["nginx"]["ports"]}
    assert published == set(re.findall(r"listen (\d+)", nginx))


@pytest.mark.slow
def test_preparation_makes_what_a_verifier_takes(tmp_path: Path) -> None:
    folder = tmp_path / "compose"
    shutil.copytree(FOLDER, folder, ignore=shutil.ignore_patterns("secrets", ".env"))
    commands = tmp_path / "bin"
    commands.mkdir()
    (commands / "pilotfish-cloud").write_text(f'#!/bin/sh\nexec {sys.executable} -m pilotfish_cloud "$@"\n')
    (commands / "pilotfish-cloud").chmod(0o755)
    environment = os.environ | {"PATH": f"{commands}{os.pathsep}{os.environ['PATH']}"}
    for _ in range(2):  # the second time nothing is made anew
        done = subprocess.run(
            ["sh", str(folder / "prepare.sh")], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        found = [path for path in (folder / "secrets").rglob("*") if path.is_file()]
        made = {str(path.relative_to(folder / "secrets")): path.read_bytes() for path in found}
    verifiers = {"verifier/secret", "verifier/redis-password", "verifier/keys.json"}
    assert made.keys() == verifiers | {"nginx/server.key", "nginx/server.pem"}
    assert len(json.loads(made["verifier/keys.json"])["keys"]) == 1
    assert all(path.stat().st_mode & 0o77 == 0 for path in (folder / "secrets").rglob("*"))
    assert (folder / ".env").read_text() == f"PILOTFISH_USER={os.getuid()}:{os.getgid()}\n"
    container = tmp_path / "etc"  # as compose mounts it
    config = container / "config" / "pilotfish.toml"
    shutil.copytree(folder / "secrets" / "verifier", container / "secrets" / "verifier")
    shutil.copytree(folder / "config", container / "config")
    checked = subprocess.run(
        [str(commands / "pilotfish-cloud"), "check", "--config", str(config), "--json"],
        env=environment
        | {
            "PILOTFISH_MODEL": str(ROOT / "reference" / "target"),
            "PILOTFISH_USAGE_JOURNAL": str(tmp_path / "verifier-1.journal"),
            "PILOTFISH_PORT": "0",
            "PILOTFISH_HTTP_PORT": "0",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert json.loads(checked.stdout)["problems"] == []
