from __future__ import annotations

import datetime
import gc
import json
import logging
import os
import stat
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from pilotfish_cloud.auth import Authenticator, ServerSecret, Tenants
from pilotfish_cloud.keyring import Keyring, create_key, revoke_key
from pilotfish_core.admission import ResumePolicy, TenantSettings
from pilotfish_core.errors import FileFormatError, InvalidParameter, PilotfishError, Unauthenticated

NOW = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)
SECRET = ServerSecret(b"s" * 32)


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def test_a_key_is_shown_once_and_stays_a_hash(keys: Path) -> None:
    key = create_key(keys, "acme")
    prefix, identity, secret = key.split("_", 2)
    assert (prefix, len(identity), len(secret)) == ("pf", 12, 43)
    text = keys.read_text(encoding="utf-8")
    assert secret not in text
    assert stat.S_IMODE(keys.stat().st_mode) == 0o600
    keyring = Keyring.load(keys)
    assert keyring.entries[identity].tenant == "acme"
    assert keyring.tenant_of(key, NOW + datetime.timedelta(days=36500)) == "acme"


def test_keys_made_at_the_same_time_are_all_kept(keys: Path) -> None:
    made: list[str] = []
    threads = [threading.Thread(target=lambda: made.append(create_key(keys, "acme"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    keyring = Keyring.load(keys)
    assert len(keyring.entries) == len({keyring.tenant_of(key, NOW) + key for key in made}) == 8
    assert [file.name for file in keys.parent.iterdir()] == ["keys.json"]


def test_expired_and_revoked_keys(keys: Path) -> None:
    now = datetime.datetime.now(datetime.UTC)
    key = create_key(keys, "acme", expires=now + datetime.timedelta(hours=1))
    other = create_key(keys, "acme")
    assert Keyring.load(keys).tenant_of(key, now) == "acme"
    with pytest.raises(Unauthenticated, match="is expired"):
        Keyring.load(keys).tenant_of(key, now + datetime.timedelta(hours=1))
    identity = other.split("_")[1]
    revoke_key(keys, identity)
    revoke_key(keys, identity)
    with pytest.raises(Unauthenticated, match=f"{identity} is revoked"):
        Keyring.load(keys).tenant_of(other, now)
    with pytest.raises(InvalidParameter, match="key id is 'nobody'"):
        revoke_key(keys, "nobody")
    with pytest.raises(InvalidParameter, match="--expires"):
        create_key(keys, "acme", expires=now - datetime.timedelta(hours=1))


@pytest.mark.parametrize("tenant", ["", "a\nb", "x" * 101])
def test_a_tenant_without_a_proper_name(keys: Path, tenant: str) -> None:
    with pytest.raises(InvalidParameter, match="--tenant"):
        create_key(keys, tenant)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_a_file_that_others_can_read_or_change_is_refused(keys: Path, mode: int) -> None:
    create_key(keys, "acme")
    keys.chmod(mode)
    with pytest.raises(FileFormatError, match=f"mode {mode:04o}"):
        Keyring.load(keys)
    with pytest.raises(FileFormatError, match="chmod 600"):
        create_key(keys, "acme")


def damaged(document: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return document | {"keys": [document["keys"][0] | changes]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda document: "{", "not JSON"),
        (lambda document: "[]", "not a keys file"),
        (lambda document: document | {"version": 9}, "version 9"),
        (lambda document: {key: document[key] for key in ("format", "version")}, "damaged: 'keys'"),
        (lambda document: document | {"keys": document["keys"] * 2}, "twice"),
        (lambda document: damaged(document, id="x"), "12 hexadecimal"),
        (lambda document: damaged(document, sha256="00"), "64 hexadecimal"),
        (lambda document: damaged(document, tenant=""), "expected a name"),
        (lambda document: damaged(document, created=None), "time of creation"),
        (lambda document: damaged(document, expires="2026-01-01T00:00:00"), "time zone"),
        (lambda document: damaged(document, expires=5), "not a time"),
        (lambda document: damaged(document, revoked="soon"), "soon"),
        (lambda document: document | {"keys": [7]}, "damaged"),
    ],
)
def test_a_damaged_file_is_named(keys: Path, change: Any, message: str) -> None:
    create_key(keys, "acme")
    changed = change(json.loads(keys.read_text(encoding="utf-8")))
    keys.write_text(changed if isinstance(changed, str) else json.dumps(changed), encoding="utf-8")
    with pytest.raises(FileFormatError, match=message) as caught:
        Keyring.load(keys)
    assert str(keys) in str(caught.value)


def test_what_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="cannot be read"):
        Keyring.load(tmp_path / "nothing")
    pipe = tmp_path / "pipe"
    pipe.mkdir()
    with pytest.raises(FileFormatError, match="keys file"):
        Keyring.load(pipe)
    with pytest.raises(FileFormatError, match="not a folder"):
        create_key(tmp_path / "no" / "keys.json", "acme")


@pytest.mark.parametrize(
    "header",
    [
        "Bearer x",
        "Bearer pf_000000000000_x",
        "Bearer pf_{id}_wrong",
        "Bearer {key}x",
        "Bearer " + "{key}" * 50,
        "Bearer \udcff",
        "Bearer",
        "Bearer  ",
        "Basic {key}",
        "{key}",
        "",
        None,
    ],
)
def test_wrong_keys_get_one_answer_and_are_never_repeated(
    keys: Path, header: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    key = create_key(keys, "acme")
    authenticate = Authenticator(SECRET, keys_file=keys)
    shown = None if header is None else header.replace("{key}", key).replace("{id}", key.split("_")[1])
    with pytest.raises(Unauthenticated) as caught:
        authenticate(shown)
    assert key.split("_", 2)[2] not in str(caught.value) + str(caught.value.private) + caplog.text
    assert authenticate.refused == 1
    assert authenticate(f"bearer  {key} ").tenant == "acme"


def test_ten_thousand_wrong_keys_leave_nothing_behind(keys: Path) -> None:
    key = create_key(keys, "acme")
    authenticate = Authenticator(SECRET, keys_file=keys)

    def guess(count: int) -> None:
        for number in range(count):
            with pytest.raises(Unauthenticated):
                authenticate(f"Bearer pf_{number:012x}_{os.urandom(32).hex()}")

    guess(100)
    tracemalloc.start()
    guess(100)
    before, _ = tracemalloc.get_traced_memory()
    guess(10_000)
    gc.collect()
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert after - before < 20_000
    assert authenticate.refused == 10_200
    assert authenticate(f"Bearer {key}").tenant == "acme"


def test_without_a_keys_file_everybody_is_the_same() -> None:
    authenticate = Authenticator(SECRET)
    assert not authenticate.needs_keys
    assert authenticate(None) == authenticate("Bearer anything")
    assert authenticate(None).tenant == ""


def test_salts_come_from_tenant_and_secret(keys: Path, tmp_path: Path) -> None:
    one, two = create_key(keys, "one"), create_key(keys, "two")
    file = tmp_path / "secret"
    file.write_text("0123456789abcdef" * 4 + "\n", encoding="utf-8")
    file.chmod(0o600)
    here, there = (Authenticator(ServerSecret.load(file), keys_file=keys) for _ in range(2))
    elsewhere = Authenticator(ServerSecret(), keys_file=keys)
    salts = {ring(f"Bearer {key}").cache_salt for ring in (here, there, elsewhere) for key in (one, two)}
    assert len(salts) == 4
    assert here(f"Bearer {one}") == there(f"Bearer {one}")
    assert SECRET.derive("a", "bc") != SECRET.derive("ab", "c")


def test_a_secret_that_is_too_short_or_open_to_others(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("short", encoding="utf-8")
    file.chmod(0o600)
    with pytest.raises(FileFormatError, match="5 bytes; expected at least 32"):
        ServerSecret.load(file)
    file.chmod(0o644)
    with pytest.raises(FileFormatError, match="mode 0644"):
        ServerSecret.load(file)


def test_settings_of_tenants(tmp_path: Path, keys: Path) -> None:
    file = tmp_path / "tenants.toml"
    file.write_text(
        "[default]\nmax_generations = 4\nresume = 'ticket'\n[tenants.acme]\nmax_generations = 9\nrows_per_s = 50\n",
        encoding="utf-8",
    )
    tenants = Tenants.load(file)
    assert tenants.of("other") == TenantSettings(max_generations=4, resume=ResumePolicy.TICKET)
    assert tenants.of("acme") == TenantSettings(max_generations=9, rows_per_s=50, resume=ResumePolicy.TICKET)
    key = create_key(keys, "acme")
    assert Authenticator(SECRET, keys_file=keys, tenants_file=file)(f"Bearer {key}").settings == tenants.of("acme")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x", "not TOML"),
        ("[defualt]", "unknown key 'defualt'; did you mean 'default'"),
        ("[default]\nmax_generation = 1", "unknown key 'max_generation'; did you mean 'max_generations'"),
        ("[tenants.a]\nrows_per_s = -1", r"\[tenants.a\] rows_per_s is -1; expected a positive number"),
        ("[tenants.a]\nresume = 'maybe'", r"resume is 'maybe'; expected trust, ticket, refuse"),
        ("tenants = 1", "tenants is not a table"),
        ("[tenants]\na = 1", "tenants.a is not a table"),
    ],
)
def test_a_tenants_file_that_says_something_else(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "tenants.toml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(PilotfishError, match=message) as caught:
        Tenants.load(file)
    assert str(file) in str(caught.value)


def test_a_reload_that_fails_keeps_what_was_in_force(keys: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = create_key(keys, "acme")
    authenticate = Authenticator(SECRET, keys_file=keys)
    second = create_key(keys, "acme")
    with pytest.raises(Unauthenticated):
        authenticate(f"Bearer {second}")
    assert authenticate.reload()
    assert authenticate(f"Bearer {second}").tenant == "acme"
    keys.write_text("{", encoding="utf-8")
    assert not authenticate.reload()
    assert "stay in force" in caplog.text
    assert str(keys) in caplog.text
    assert authenticate(f"Bearer {first}").tenant == "acme"
