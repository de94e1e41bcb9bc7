"""The file of keys, the ring that a server reads from it, and `raysys key`."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from raysys.errors import UserError
from raysys.serving import keys as module
from raysys.serving.keys import KeyFile, KeyRing
from raysys.stages import doctor


@pytest.fixture
def file(tmp_path: Path) -> KeyFile:
    return KeyFile(tmp_path / "deep" / "keys.json")


def test_a_key_is_shown_once_and_kept_as_a_hash(file: KeyFile) -> None:
    key, secret = file.create("storefront", ("read",), days=90, per_second=50)
    assert re.fullmatch(rf"rsk_{key.id}_[0-9A-Za-z]{{43}}", secret)
    text = file.path.read_text()
    assert secret not in text and secret.split("_")[2] not in text
    assert file.path.stat().st_mode & 0o777 == 0o600
    (kept,) = file.read()
    assert kept == key and kept.roles == ("read",) and kept.per_second == 50
    assert key.expires and key.expires - key.created == timedelta(days=90)
    assert KeyRing(file.path).find(secret) == key


def test_no_two_keys_are_alike(file: KeyFile) -> None:
    made = [file.create("a", ("read",)) for _ in range(30)]
    assert len({key.id for key, _ in made}) == len({secret for _, secret in made}) == 30
    ring = KeyRing(file.path)
    assert all(ring.find(secret) == key for key, secret in made)


def test_what_is_no_key_finds_nothing(file: KeyFile) -> None:
    key, secret = file.create("a", ("read",))
    _, other = file.create("b", ("admin",))
    ring = KeyRing(file.path)
    wrong = "0" if secret[-1] != "0" else "1"
    for sent in (
        "",
        key.id,
        secret[:-1],
        secret[:-1] + wrong,
        secret + "0",
        secret.upper(),
        f" {secret}",
        f"{secret}\n",
        f"rsk_{key.id}_{other.split('_')[2]}",  # another key's secret
        f"rsk_00000000_{secret.split('_')[2]}",
        key.sha256,  # what leaks with the file opens nothing
        "rsk_é" + "x" * 50,
        "\ud800",
    ):
        assert ring.find(sent) is None


def test_states(file: KeyFile) -> None:
    key, secret = file.create("a", ("read",), days=1)
    now = datetime.now(UTC)
    assert key.state(now) == "valid" and key.state(now + timedelta(days=2)) == "expired"
    assert key.expires and key.state(key.expires) == "expired"
    (ended,) = file.revoke(key.id)
    assert ended.state(now) == "revoked" and ended.state(now + timedelta(days=2)) == "revoked"
    assert file.revoke(key.id) == []  # it was already
    found = KeyRing(file.path).find(secret)
    assert found is not None and found.state(now) == "revoked"


def test_a_name_ends_all_its_keys(file: KeyFile) -> None:
    for name in ("a", "b", "a"):
        file.create(name, ("read",))
    assert [key.name for key in file.revoke("a")] == ["a", "a"]
    assert [key.revoked is None for key in file.read()] == [False, True, False]
    with pytest.raises(UserError, match=r"no key 'c'[\s\S]*\(b\)"):
        file.revoke("c")


def test_many_writers_lose_no_key(file: KeyFile) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda n: file.create(f"k{n}", ("read",))[0].id, range(24)))
    assert sorted(made) == sorted(key.id for key in file.read())
    assert [path.name for path in file.path.parent.iterdir() if "tmp" in path.name] == []


def test_a_server_learns_of_changes(
    file: KeyFile, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    key, secret = file.create("a", ("read",))
    ring = KeyRing(file.path)
    file.revoke(key.id)
    later, later_secret = file.create("b", ("admin",))
    assert ring.find(later_secret) is None  # it looks once a second
    clock[0] += 1.5
    assert ring.find(later_secret) == later
    found = ring.find(secret)
    assert found is not None and found.revoked

    text = file.path.read_text()
    for damage in ("{", "[]", '{"keys": [{"id": "x"}]}', text.replace('"keys"', '"kies"')):
        file.path.write_text(damage)
        clock[0] += 1.5
        assert ring.find(later_secret) == later  # the last good ones stay
        assert "stay as they were" in caplog.text
        caplog.clear()
    file.path.unlink()
    clock[0] += 1.5
    assert ring.find(later_secret) is None and "gone" in caplog.text


@pytest.mark.parametrize(
    ("content", "mode", "said"),
    [
        (None, 0, "No such file"),
        ("{", 0o600, "damaged"),
        ("[]", 0o600, "damaged"),
        ('{"version": 2}', 0o600, "version"),
        ('{"keys": [{"id": "zz"}]}', 0o600, "keys.0.id"),
        ("{}", 0o620, "others may write"),
        ("{}", 0o602, "others may write"),
    ],
)
def test_a_file_that_cannot_be_trusted_is_refused(
    tmp_path: Path, content: str | None, mode: int, said: str
) -> None:
    path = tmp_path / "keys.json"
    if content is not None:
        path.write_text(content)
        path.chmod(mode)
    for call in (KeyFile(path).read, lambda: KeyRing(path)):
        with pytest.raises(UserError, match=said) as caught:
            call()
        assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"name": ""}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"roles": ()}, "roles"),
        ({"roles": ("root",)}, "'read', 'events' or 'admin'"),
        ({"days": 0}, "--days"),
        ({"days": float("nan")}, "--days"),
        ({"per_second": 0}, "per_second"),
    ],
)
def test_bad_keys_are_not_made(file: KeyFile, given: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        file.create(**{"name": "a", "roles": ("read",), **given})
    assert not file.path.exists()


def raysys(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "raysys", *words], capture_output=True, text=True)


@pytest.mark.long
def test_the_command_line(tmp_path: Path) -> None:
    made = raysys(
        "key", "create", "shop", "--role", "read", "--role", "events", "-w", str(tmp_path)
    )
    assert made.returncode == 0, made.stderr
    secret = made.stdout.strip()  # nothing else is on stdout
    assert KeyRing(tmp_path / "keys.json").find(secret) and secret not in made.stderr
    told = raysys("key", "list", "--json", "-w", str(tmp_path))
    (key,) = json.loads(told.stdout)
    assert key["roles"] == ["read", "events"] and key["state"] == "valid" and "sha256" not in key
    assert raysys("key", "revoke", "shop", "-w", str(tmp_path)).returncode == 0
    assert "revoked" in raysys("key", "list", "--keys", str(tmp_path / "keys.json")).stdout
    wrong = raysys("key", "create", "shop", "--role", "root", "-w", str(tmp_path))
    assert wrong.returncode == 2 and "read, events, admin" in wrong.stderr


def test_the_doctor_looks_at_keys(file: KeyFile) -> None:
    def found() -> tuple[str, str]:
        (finding,) = doctor.keys(file.path)
        return finding.state, finding.found

    assert found() == (doctor.OK, "none: only this machine is answered")
    key, _ = file.create("a", ("read",), days=3)
    state, said = found()
    assert state == doctor.WARN and key.id in said
    file.create("b", ("read",), days=300)
    file.revoke("a")
    assert found() == (doctor.OK, "1 valid of 2")
    file.path.chmod(0o644)
    assert found()[0] == doctor.WARN
    file.path.write_text("{")
    assert found()[0] == doctor.FAIL
