from __future__ import annotations

import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from raysys.errors import UserError
from raysys.registry import Moved, Registry
from raysys.storage import writer_mark


def writer(text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "learners" / "a").mkdir(parents=True)
        (folder / "learners" / "a" / "model.json").write_text(text)
        (folder / "ensemble.json").write_text("{}")

    return write


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "registry")


def test_publish_gives_a_bundle_that_verifies_and_says_what_went_in(registry: Registry) -> None:
    bundle = registry.publish(
        writer("1"),
        name_hint="shop",
        learners={"a": "tree"},
        data={"features": "abc"},
        settings={"seed": 3},
        figures={"ndcg": 0.2},
    )
    manifest = registry.verify(bundle)
    assert bundle.startswith("shop-") and manifest.id == bundle
    assert set(manifest.files) == {"learners/a/model.json", "ensemble.json"}
    assert manifest.files["ensemble.json"]["size"] == 2
    assert manifest.learners == {"a": "tree"}
    assert manifest.data == {"features": "abc"} and manifest.figures == {"ndcg": 0.2}


def test_equal_content_is_one_bundle_and_other_content_another(registry: Registry) -> None:
    first = registry.publish(writer("1"))
    assert registry.publish(writer("1")) == first
    assert registry.publish(writer("2")) != first
    assert registry.publish(writer("1"), settings={"seed": 1}) != first
    assert len(registry.list()) == 3


def test_the_id_of_a_bundle_names_no_other(registry: Registry) -> None:
    first, second = registry.publish(writer("1")), registry.publish(writer("2"))
    with pytest.raises(UserError, match="id of a bundle"):
        registry.point(first, second)
    assert registry.resolve(first) == first and registry.pointers() == {}


def test_a_writer_that_fails_leaves_nothing(registry: Registry) -> None:
    def write(folder: Path) -> None:
        (folder / "half.json").write_text("{")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        registry.publish(write)
    assert registry.list() == [] and list(registry.bundles.iterdir()) == []


def test_left_overs_of_a_killed_writer_are_removed(registry: Registry) -> None:
    registry.publish(writer("1"))
    host, pid, started, _ = writer_mark().split("-")
    dead = registry.bundles / f".new.{host}-999999999-1-0"
    ours_before = registry.bundles / f".new.{host}-{pid}-{int(started) - 1}-0"  # as after a restart
    old = registry.bundles / ".new.elsewhere-1-1-0"
    gone = [dead, ours_before, old]
    alive = [registry.bundles / f".new.{host}-{pid}-{started}-0"]
    alive += [registry.bundles / ".new.another-1-1-0"]  # of another machine, still written
    for folder in gone + alive:
        folder.mkdir()
    os.utime(old, (0, 0))
    registry.publish(writer("2"))
    assert not any(folder.exists() for folder in gone)
    assert all(folder.exists() for folder in alive)


@pytest.mark.parametrize(
    "name", ["model.pkl", "model.pt", "weights.bin", "run.sh", "manifest.json"]
)
def test_formats_that_may_run_code_are_refused(registry: Registry, name: str) -> None:
    with pytest.raises(UserError, match=name):
        registry.publish(lambda folder: (folder / name).write_text("x") and None)
    assert registry.list() == []


def test_a_pickle_disguised_as_an_array_is_refused(registry: Registry) -> None:
    objects = np.array([{"a": 1}], dtype=object)
    with pytest.raises(UserError, match=r"x\.npy"):
        registry.publish(lambda folder: np.save(folder / "x.npy", objects, allow_pickle=True))


def test_links_are_refused(registry: Registry, tmp_path: Path) -> None:
    secret = tmp_path / "secret.json"
    secret.write_text("{}")
    with pytest.raises(UserError, match="link"):
        registry.publish(lambda folder: (folder / "a.json").symlink_to(secret))


def tamper_change(folder: Path) -> Path:
    path = folder / "learners" / "a" / "model.json"
    path.chmod(0o644)
    path.write_text("9")  # same size
    return path


def tamper_grow(folder: Path) -> Path:
    path = folder / "ensemble.json"
    path.chmod(0o644)
    path.write_text("{} ")
    return path


def tamper_remove(folder: Path) -> Path:
    path = folder / "ensemble.json"
    path.unlink()
    return path


def tamper_add(folder: Path) -> Path:
    path = folder / "learners" / "extra.json"
    path.write_text("{}")
    return path


def tamper_link(folder: Path) -> Path:
    path = folder / "ensemble.json"
    path.unlink()
    path.symlink_to("/etc/hostname")
    return path


def tamper_manifest(folder: Path) -> Path:
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    content["files"]["ensemble.json"]["sha256"] = "0" * 64
    path.write_text(json.dumps(content))
    return path


def tamper_figures(folder: Path) -> Path:
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    content["figures"] = {"ndcg": 0.99}
    path.write_text(json.dumps(content))
    return path


def tamper_no_json(folder: Path) -> Path:
    path = folder / "manifest.json"
    path.write_text("{nope")
    return path


def tamper_no_manifest(folder: Path) -> Path:
    path = folder / "manifest.json"
    path.unlink()
    return path


@pytest.mark.parametrize(
    "tamper",
    [
        tamper_change,
        tamper_grow,
        tamper_remove,
        tamper_add,
        tamper_link,
        tamper_manifest,
        tamper_figures,
        tamper_no_json,
        tamper_no_manifest,
    ],
)
def test_a_tampered_bundle_is_refused_and_the_file_named(
    registry: Registry, tamper: Callable[[Path], Path]
) -> None:
    bundle = registry.publish(writer("1"))
    registry.point("champion", bundle)
    touched = tamper(registry.path(bundle))
    for call in (registry.verify, registry.load, lambda name: registry.point("challenger", name)):
        with pytest.raises(UserError) as caught:
            call(bundle)
        assert str(touched) in caught.value.where
        assert caught.value.mend


def test_a_renamed_bundle_is_refused(registry: Registry) -> None:
    bundle = registry.publish(writer("1"))
    registry.path(bundle).rename(registry.bundles / "other-0000000000000000")
    with pytest.raises(UserError, match="manifest was changed"):
        registry.verify("other-0000000000000000")


def test_pointers_name_bundles_and_roll_back(registry: Registry) -> None:
    first, second, third = (registry.publish(writer(text)) for text in "123")
    for bundle in (first, second, second, third):
        registry.point("champion", bundle)
    assert registry.resolve("champion") == third
    assert registry.history("champion") == (second, first)
    assert registry.rollback("champion") == second
    assert registry.rollback("champion") == first
    with pytest.raises(UserError, match="no earlier bundle"):
        registry.rollback("champion")
    assert registry.pointers() == {"champion": first}
    assert registry.resolve(second) == second
    assert set(registry.list()) == {first, second, third}


def test_a_name_changes_only_if_it_means_what_was_expected(registry: Registry) -> None:
    first, second, third = (registry.publish(writer(text)) for text in "123")
    with pytest.raises(Moved, match="another bundle by now: none"):
        registry.point("champion", first, expected=second)
    registry.point("champion", first, expected="")
    registry.point("champion", second, expected=first)
    for expected in ("", first, third):
        with pytest.raises(Moved, match=f"another bundle by now: {second}"):
            registry.point("champion", third, expected=expected)
    registry.point("champion", second, expected=first)  # what was wanted is so
    assert registry.history("champion") == (first,)
    assert len(registry.journal()) == 2


def test_rollback_to_a_damaged_bundle_changes_nothing(registry: Registry) -> None:
    first, second = registry.publish(writer("1")), registry.publish(writer("2"))
    registry.point("champion", first)
    registry.point("champion", second)
    tamper_change(registry.path(first))
    with pytest.raises(UserError, match="changed"):
        registry.rollback("champion")
    assert registry.resolve("champion") == second


@pytest.mark.parametrize(
    "name",
    ["../champion", "a/b", "..", "", ".hidden", "a..b", "x" * 101, "a\n", "é", "/etc/passwd"],
)
def test_names_that_lead_elsewhere_are_refused(registry: Registry, name: str) -> None:
    bundle = registry.publish(writer("1"))
    for call in (
        lambda: registry.resolve(name),
        lambda: registry.path(name),
        lambda: registry.verify(name),
        lambda: registry.rollback(name),
        lambda: registry.point(name, bundle),
        lambda: registry.point("champion", name),
        lambda: registry.publish(writer("2"), name_hint=name),
    ):
        with pytest.raises(UserError):
            call()


def test_an_unknown_name_says_which_there_are(registry: Registry) -> None:
    with pytest.raises(UserError, match="raysys train"):
        registry.resolve("champion")
    bundle = registry.publish(writer("1"))
    with pytest.raises(UserError, match=bundle):
        registry.resolve("champion")


def test_a_damaged_pointer_is_named(registry: Registry) -> None:
    registry.point("champion", registry.publish(writer("1")))
    for content in ("{", "[]", '{"bundle": "../x", "since": "", "history": []}', '{"bundle": 3}'):
        (registry.root / "champion.json").write_text(content)
        with pytest.raises(UserError) as caught:
            registry.resolve("champion")
        assert "champion.json" in str(caught.value) and caught.value.mend


def test_many_writers_at_once_lose_nothing(registry: Registry) -> None:
    def publish_and_point(number: int) -> str:
        bundle = registry.publish(writer(str(number % 5)))
        registry.point("champion", bundle)
        return bundle

    with ThreadPoolExecutor(8) as pool:
        bundles = set(pool.map(publish_and_point, range(40)))
    assert set(registry.list()) == bundles and len(bundles) == 5
    for bundle in bundles:
        registry.verify(bundle)
    assert registry.resolve("champion") in bundles
    assert not [path for path in registry.bundles.iterdir() if path.name.startswith(".")]
