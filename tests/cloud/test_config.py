from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pilotfish_cloud.cli import main
from pilotfish_cloud.config import DEMO_FOLDER, ServerConfig
from pilotfish_cloud.keyring import create_key
from pilotfish_cloud.options import add_flags, options_of
from pilotfish_core.errors import InvalidParameter, PilotfishError

TARGET = Path(__file__).resolve().parents[2] / "reference" / "target"
PORTS = ["--port", "0", "--http-port", "0"]


def parsed(*flags: str, file: Path | None = None, environment: dict[str, str] | None = None) -> ServerConfig:
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_flags(parser, options_of(ServerConfig))
    return ServerConfig.of(file=file, environment=environment or {}, flags=parser.parse_args(flags))[0]


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    file = tmp_path / "pilotfish.toml"
    file.write_text(
        'model = "my-model"\nport = 1000\nhttp-port = 1001\nhold_cap = 20\ndeterministic = true\nthreads = 2\n',
        encoding="utf-8",
    )
    return file


def test_flags_go_before_the_environment_and_that_before_the_file(toml: Path) -> None:
    config = parsed(file=toml)
    assert (config.port, config.http_port, config.hold_cap_ms, config.deterministic) == (1000, 1001, 20.0, True)
    assert config.model == toml.parent / "my-model"
    assert config.served_model_name == "my-model"
    environment = {"PILOTFISH_PORT": "2000", "PILOTFISH_THREADS": "3", "PILOTFISH_DETERMINISTIC": "off"}
    config = parsed("--port", "3000", file=toml, environment=environment)
    assert (config.port, config.http_port, config.threads, config.deterministic) == (3000, 1001, 3, False)
    config = parsed("other", "--no-deterministic", "--served-model-name", "x", file=toml, environment={})
    assert (config.model, config.deterministic, config.served_model_name) == (Path("other"), False, "x")


def test_one_object_has_all_defaults() -> None:
    config = parsed("m")
    assert config == ServerConfig(model=Path("m"), served_model_name="m")
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.port = 1  # type: ignore[misc]


def test_every_option_has_a_name_in_each_layer() -> None:
    entries = options_of(ServerConfig)
    assert {entry.field for entry in entries.values()} == {field.name for field in dataclasses.fields(ServerConfig)}
    for key, entry in entries.items():
        assert entry.variable == f"PILOTFISH_{key.upper()}"
        assert entry.flag == "--" + key.replace("_", "-")
        assert entry.help


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_num_seq = 1", "unknown key 'max_num_seq'; did you mean 'max_num_seqs'"),
        ("zzz = 1", "unknown key 'zzz'; known are allow_origin, demo, deterministic, device"),
        ("port = '1'", "port is '1'; expected an integer"),
        ("port = true", "port is True; expected an integer"),
        ("deterministic = 1", "deterministic is 1; expected true or false"),
        ("hold_cap = 'x'", "hold_cap is 'x'; expected a number"),
        ("model = 7", "model is 7; expected text, a path"),
        ("dtype = ['float32']", "expected text"),
        ("=", "not TOML"),
        ("[table]\nport = 1", "unknown key 'table'"),
    ],
)
def test_what_a_file_may_not_say(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "pilotfish.toml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(PilotfishError, match=message) as caught:
        parsed("m", file=file)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"PILOTFISH_PORT": "x"}, "PILOTFISH_PORT is 'x'; expected an integer"),
        ({"PILOTFISH_INSECURE": "maybe"}, "PILOTFISH_INSECURE is 'maybe'; expected true or false"),
        ({"PILOTFISH_HOLD_CAP": "nan"}, "--hold-cap is nan"),
        ({"PILOTFISH_DTYPE": "int4"}, "--dtype is 'int4'; expected float32 or bfloat16"),
    ],
)
def test_what_the_environment_may_not_say(environment: dict[str, str], message: str) -> None:
    with pytest.raises(InvalidParameter, match=message):
        parsed("m", environment=environment)


NO_HTTP_URLS = (
    *("", "host", "host:8000", "//host", "ftp://host", "javascript:alert(1)", "http://", "https:///x", "http:/host"),
    *("https://host:", "https://host:x", "https://host:0", "https://host:70000", "https://:8000", "https://a:b:c"),
    *("https://me:word@host", "https://host?x", "https://host#x", "https://ho st", "https://host\n", " https://host"),
)
NO_ORIGINS = ("", "null", "app.example", "https://", "https://app.example/", "https://App.example", "https://*.example")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"port": 5, "http_port": 5}, "--http-port is 5; expected another one than --port"),
        ({"max_model_len": 1}, "at least 2"),
        ({"shutdown_timeout_s": -1.0}, "--shutdown-timeout is -1"),
        ({"max_generations": 0}, "--max-generations is 0"),
        ({"log_format": "xml"}, "text or json"),
        ({"tls_cert": Path("c")}, "belong together"),
        ({"tls_client_ca": Path("c")}, "needs --tls-cert"),
        ({"resume": "ticket"}, "needs --secret-file"),
        ({"host": "0.0.0.0"}, r"without TLS \(--tls-cert, --tls-key\) and keys"),
        ({"host": "::", "keys_file": Path("k")}, r"without TLS \(--tls-cert, --tls-key\);"),
        ({"host": "example", "tls_cert": Path("c"), "tls_key": Path("k")}, "without keys"),
        ({"allow_origins": ("*",), "keys_file": Path("k")}, "name the origins"),
        *(({"http_url": url}, "--http-url is .*; expected http://HOST") for url in NO_HTTP_URLS),
        *(({"allow_origins": (origin,)}, "--allow-origin is .*; expected an origin") for origin in NO_ORIGINS),
    ],
)
def test_what_does_not_fit_together(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidParameter, match=message):
        ServerConfig(model=Path("m"), served_model_name="m", **fields)


@pytest.mark.parametrize("url", ["http://host", "https://host:8443", "https://host/files/", "http://[::1]:8000"])
def test_where_the_http_port_is_reached(url: str) -> None:
    assert ServerConfig(model=Path("m"), served_model_name="m", http_url=url).http_url == url


def test_an_option_of_several_values(tmp_path: Path) -> None:
    file = tmp_path / "pilotfish.toml"
    file.write_text("allow_origin = ['https://a.example', 'capacitor://localhost']", encoding="utf-8")
    assert parsed("m", file=file).allow_origins == ("https://a.example", "capacitor://localhost")
    file.write_text("allow_origin = 'https://a.example'", encoding="utf-8")
    assert parsed("m", file=file).allow_origins == ("https://a.example",)
    environment = {"PILOTFISH_ALLOW_ORIGIN": "https://b.example, http://[::1]:5173"}
    assert parsed("m", file=file, environment=environment).allow_origins == ("https://b.example", "http://[::1]:5173")
    flags = ("m", "--allow-origin", "https://c.example", "--allow-origin", "*")
    assert parsed(*flags, file=file, environment=environment).allow_origins == ("https://c.example", "*")
    file.write_text("allow_origin = [1]", encoding="utf-8")
    with pytest.raises(InvalidParameter, match="text, or a list of texts"):
        parsed("m", file=file)


def test_an_option_that_needs_no_value(tmp_path: Path) -> None:
    file = tmp_path / "pilotfish.toml"
    assert parsed("m").demo is None
    assert parsed("m", "--demo").demo == DEMO_FOLDER
    assert parsed("m", "--demo", "there").demo == Path("there")
    assert parsed("m", environment={"PILOTFISH_DEMO": "1"}).demo == DEMO_FOLDER
    assert parsed("m", environment={"PILOTFISH_DEMO": "there"}).demo == Path("there")
    for text, found in (("true", DEMO_FOLDER), ("false", None), ("'there'", tmp_path / "there")):
        file.write_text(f"demo = {text}", encoding="utf-8")
        assert parsed("m", file=file).demo == found
    assert parsed("m", file=file, environment={"PILOTFISH_DEMO": "off"}).demo is None
    with pytest.raises(InvalidParameter, match="before --demo"):
        parsed("--demo", "m")


@pytest.mark.parametrize(
    "fields",
    [
        {"host": "::1"},
        {"host": "0.0.0.0", "insecure": True},
        {"host": "0.0.0.0", "keys_file": Path("k"), "tls_cert": Path("c"), "tls_key": Path("k")},
        {"host": "0.0.0.0", "tls_client_ca": Path("k"), "tls_cert": Path("c"), "tls_key": Path("k")},
    ],
)
def test_who_may_be_reached_from_elsewhere(fields: dict[str, Any]) -> None:
    ServerConfig(model=Path("m"), served_model_name="m", **fields)


# -- the command ---------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def own_logging() -> Iterator[None]:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield
    root.handlers[:] = before
    root.setLevel(level)


@pytest.fixture(autouse=True)
def never_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is wrong here is to be found without the weights."""

    def load(config: ServerConfig) -> None:
        raise AssertionError("the weights were loaded")

    monkeypatch.setattr("pilotfish_cloud.engine.engine.EmbeddedEngine.load", load)


def test_check_prints_what_would_be_used(toml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(TARGET), *PORTS, "--config", str(toml), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["problems"] == []
    assert (shown["configuration"]["threads"], shown["origins"]["threads"]) == (2, str(toml))
    assert (shown["configuration"]["port"], shown["origins"]["port"]) == (0, "--port")
    assert shown["origins"]["dtype"] == "default"
    assert main(["check", str(TARGET), *PORTS]) == 0
    assert "ok: a server could begin with this" in capsys.readouterr().out


def test_check_shows_no_secret(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys, secret = tmp_path / "keys.json", tmp_path / "secret"
    key = create_key(keys, "acme")
    secret.write_text("0123456789abcdef0123456789abcdef", encoding="utf-8")
    secret.chmod(0o600)
    arguments = ["--keys-file", str(keys), "--secret-file", str(secret), "--otlp-endpoint", "http://me:pass@host:4317"]
    assert main(["check", str(TARGET), *PORTS, *arguments]) == 0
    out = capsys.readouterr().out
    for hidden in (key.split("_", 2)[2], "0123456789abcdef", "me:pass"):
        assert hidden not in out
    assert "***@host" in out


def test_check_says_all_that_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(tmp_path), *PORTS, "--keys-file", str(tmp_path / "none"), "--json"]) == 1
    problems = json.loads(capsys.readouterr().out)["problems"]
    assert [problem["kind"] for problem in problems] == ["file_format_error", "model_load_error"]
    assert str(tmp_path / "config.json") in problems[1]["message"]


def files(folder: Path) -> dict[str, str]:
    (folder / "open").write_text("0123456789abcdef0123456789abcdef", encoding="utf-8")
    (folder / "open").chmod(0o644)
    (folder / "junk").write_text("junk", encoding="utf-8")
    (folder / "junk").chmod(0o600)
    return {"OPEN": str(folder / "open"), "JUNK": str(folder / "junk"), "NONE": str(folder / "none")}


@pytest.mark.parametrize("command", ["serve", "check"])
@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--keys-file", "NONE"], ["keys file", "NONE", "cannot be read"]),
        (["--keys-file", "OPEN"], ["keys file", "OPEN", "chmod 600"]),
        (["--keys-file", "JUNK"], ["keys file", "JUNK", "not JSON"]),
        (["--tenants-file", "JUNK"], ["tenants file", "JUNK", "not TOML"]),
        (["--secret-file", "OPEN"], ["secret file", "chmod 600"]),
        (["--secret-file", "JUNK"], ["secret file", "4 bytes"]),
        (["--tls-cert", "JUNK", "--tls-key", "JUNK"], ["JUNK", "PEM"]),
        (["--otlp-endpoint", "host:4317"], ["--otlp-endpoint", "http://host:4317"]),
        (["--demo", "NONE"], ["--demo", "NONE", "index.html", "make mobile-demo"]),
        (["--http-url", "host:8000"], ["--http-url", "'host:8000'", "https://HOST"]),
    ],
)
def test_what_is_wrong_is_said_before_the_weights_are_loaded(
    command: str, arguments: list[str], parts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = files(tmp_path)
    arguments = [names.get(argument, argument) for argument in arguments]
    assert main([command, str(TARGET), *PORTS, *arguments]) == 1
    captured = capsys.readouterr()
    [line] = [line for line in (captured.out + captured.err).splitlines() if ": " in line and " = " not in line]
    for part in parts:
        assert names.get(part, part) in line


@pytest.mark.parametrize("flag", ["--port", "--http-port"])
def test_a_port_that_is_taken(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert main(["serve", str(TARGET), *PORTS, flag, str(taken.getsockname()[1])]) == 1
    assert f"({flag})" in capsys.readouterr().err


def test_no_model_at_all(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PILOTFISH_MODEL", raising=False)
    assert main(["serve"]) == 1
    assert "give the model" in capsys.readouterr().err


def test_keys_are_made_listed_and_revoked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = ["--file", str(tmp_path / "keys.json")]
    assert main(["keys", "create", "--tenant", "acme", "--expires", "90d", *file]) == 0
    captured = capsys.readouterr()
    key = captured.out.strip()
    identity, secret = key.split("_", 2)[1:]
    assert secret not in captured.err
    assert main(["keys", "list", *file]) == 0
    listed = capsys.readouterr().out
    assert listed.startswith(f"{identity}  valid    acme  (created ")
    assert secret not in listed
    assert main(["keys", "revoke", identity, *file, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"id": identity, "state": "revoked"}
    assert main(["keys", "create", "--tenant", "b", "--expires", "2099-01-31", *file, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["key"].startswith("pf_")
    assert main(["keys", "list", *file, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["tenant"], row["state"]) for row in rows] == [("acme", "revoked"), ("b", "valid")]
    assert rows[1]["expires"] == "2099-01-31T00:00:00+00:00"


@pytest.mark.parametrize("when", ["soon", "2001-01-01", "99999d" * 2, "90"])
def test_an_expiry_that_is_none(when: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["keys", "create", "--tenant", "a", "--expires", when, "--file", str(tmp_path / "keys.json")]
    assert main(arguments) == 1
    assert "--expires is" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
