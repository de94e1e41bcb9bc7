"""Where bundles live: immutable folders of safe formats, verified before they are loaded.

    registry/bundles/<id>/manifest.json   every file with SHA-256 and size, causes, figures
    registry/bundles/<id>/features/       LiveFeatures: catalogue, plan and state
    registry/bundles/<id>/learners/NAME/  one folder a fitted learner
    registry/bundles/<id>/ensemble.json   weights of the full ensemble and of every fallback
    registry/bundles/<id>/search/         words and vectors of the catalogue
    registry/bundles/<id>/text.json, model/  of a text task, instead of all these: see `TextBundle`
    registry/champion.json                a pointer: which bundle has this name, and had it before

A bundle is written beside its place, hashed, then renamed into it: readers see all of it or
nothing. Its id ends with a hash of its manifest, which holds the hashes of all files, so that
neither a file nor the manifest can change without notice. Hashes guard against damage and
mix-ups; who can write into the registry can publish a bundle, so guard the folder as you guard
the programs that read it.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from raysys.errors import UserError
from raysys.storage import MANIFEST, digest, file_digest, versions, write_atomic

if TYPE_CHECKING:
    from raysys.catalogue import Catalogue
    from raysys.ensemble import Ensemble
    from raysys.features.live import LiveFeatures
    from raysys.learners.protocol import Model, TextEncoder
    from raysys.learners.text_protocol import Task, TextModel
    from raysys.retrieval.search import Search

SAFE = frozenset(
    {
        ".arrow",
        ".json",
        ".npy",
        ".onnx",
        ".parquet",
        ".safetensors",
        ".txt",
        ".ubj",
        ".usearch",
        ".yaml",
    }
)
"""What a bundle may hold: formats whose readers run no code of the file."""

TEXT = "text"
"""Surface of bundles of text tasks."""

TEXT_FILE = "text.json"
MODEL_FOLDER = "model"

_History = list[dict[str, str]]  # where `list` is a method's name
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_-]|\.(?!\.)){0,99}")
_counter = itertools.count()


@dataclass(frozen=True)
class BundleManifest:
    """What a bundle says of itself.

    Attributes:
        id: its folder's name.
        surface: which lists it was trained for.
        learners: name -> family of every learner in it, in the ensemble's order.
        files: path -> {"sha256", "size"} of every file but the manifest itself.
        data: fingerprints of what it was trained on.
        settings: those of the training.
        figures: what the training measured.
        versions: Python and packages that wrote it.
        created: UTC, ISO 8601; not part of the id.
    """

    id: str
    surface: str
    learners: dict[str, str]
    files: dict[str, dict[str, Any]]
    data: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    created: str = ""

    @property
    def content_hash(self) -> str:
        """Hex, over everything but the id and the time of writing."""
        return digest({k: v for k, v in self.__dict__.items() if k not in ("id", "created")})

    @classmethod
    def read(cls, folder: Path) -> BundleManifest:
        """The manifest in a bundle's folder.

        Raises:
            UserError: missing or damaged.
        """
        path = folder / MANIFEST
        mend = "publish the bundle again (`raysys train`) or roll back to another one"
        if not path.is_file():
            raise UserError("the bundle has no manifest", where=str(path), mend=mend)
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise UserError(f"damaged manifest: {error}", where=str(path), mend=mend) from None


class Registry:
    """Bundles under one folder, and the names that point at them.

    Args:
        root: the registry's folder; made when the first bundle is published.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
        self.bundles = self.root / "bundles"

    def publish(
        self,
        write: Callable[[Path], None],
        *,
        name_hint: str = "bundle",
        surface: str = "recommend",
        learners: Mapping[str, str] | None = None,
        data: Mapping[str, str] | None = None,
        settings: Mapping[str, Any] | None = None,
        figures: Mapping[str, Any] | None = None,
    ) -> str:
        """Add a bundle at once, and get its id; a bundle that is there already stays as it is.

        Args:
            write: fills an empty folder with the bundle's files; no manifest.
            name_hint: the readable beginning of the id.
            surface: which lists the bundle is for.
            learners: name -> family, in the ensemble's order.
            data: fingerprints of what it was trained on.
            settings: those of the training (anything JSON can say).
            figures: what the training measured (anything JSON can say).

        Raises:
            UserError: a file whose format may run code on loading, or a bad name.
        """
        _check_name(name_hint, "name_hint")
        self.bundles.mkdir(parents=True, exist_ok=True)
        with _fresh_folder(self.bundles) as fresh:
            write(fresh)
            manifest = BundleManifest(
                id="",
                surface=surface,
                learners=dict(learners or {}),
                files=_inventory(fresh),
                data=dict(data or {}),
                settings=_plain(settings),
                figures=_plain(figures),
                versions=versions(),
            )
            bundle_id = f"{name_hint}-{manifest.content_hash}"
            content = {
                **manifest.__dict__,
                "id": bundle_id,
                "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            }
            (fresh / MANIFEST).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
            target = self.bundles / bundle_id
            try:
                fresh.rename(target)
            except OSError:  # the same content is there: only a whole one may be kept
                if not target.exists():
                    raise
                verify(target)
        return bundle_id

    def point(self, name: str, bundle_id: str) -> None:
        """Give a bundle a name such as `champion`; the bundle is verified first.

        Raises:
            UserError: bad name, no such bundle, or a damaged one.
        """
        _check_name(name, "pointer")
        self.verify(bundle_id)
        with self._locked():
            pointer = self._pointer(name) or {"history": []}
            history = pointer["history"]
            if pointer.get("bundle") == bundle_id:
                return
            if "bundle" in pointer:
                history = [{"bundle": pointer["bundle"], "since": pointer["since"]}, *history]
            self._write_pointer(name, bundle_id, history)

    def rollback(self, name: str) -> str:
        """Point the name at the bundle it meant before; returns that bundle's id.

        Raises:
            UserError: the name never meant another bundle, or that one is gone or damaged.
        """
        with self._locked():
            pointer = self._pointer(name)
            if not pointer or not pointer["history"]:
                raise UserError(
                    f"{name!r} has no earlier bundle",
                    where=str(self.root),
                    mend=f"choose one of: {', '.join(self.list()) or 'none published yet'}",
                )
            earlier, *history = pointer["history"]
            self.verify(earlier["bundle"])
            self._write_pointer(name, earlier["bundle"], history)
        return str(earlier["bundle"])

    def resolve(self, name: str) -> str:
        """The bundle id that a pointer or an id means.

        Raises:
            UserError: there is neither.
        """
        _check_name(name, "bundle")
        pointer = self._pointer(name)
        bundle_id = str(pointer["bundle"]) if pointer else name
        if not (self.bundles / bundle_id).is_dir():
            known = [*self.pointers(), *self.list()]
            raise UserError(
                f"no bundle {bundle_id!r}",
                where=str(self.root),
                mend=f"there are: {', '.join(known)}"
                if known
                else "publish one first: `raysys train`, or `raysys text fit` for a text task",
            )
        return bundle_id

    def path(self, name: str) -> Path:
        """The folder of a bundle, by pointer or id; not verified."""
        return self.bundles / self.resolve(name)

    def verify(self, name: str) -> BundleManifest:
        """Check every file of a bundle; see `verify`."""
        return verify(self.path(name))

    def load(self, name: str) -> Bundle:
        """Verify and load a bundle by pointer or id."""
        return Bundle.load(self.path(name))

    def list(self) -> list[str]:
        """Ids of all bundles, newest first."""
        if not self.bundles.is_dir():
            return []
        folders = [p for p in self.bundles.iterdir() if not p.name.startswith(".") and p.is_dir()]
        return [p.name for p in sorted(folders, key=lambda p: (-p.stat().st_mtime_ns, p.name))]

    def pointers(self) -> dict[str, str]:
        """Name -> bundle id of every pointer."""
        found = {}
        for path in sorted(self.root.glob("*.json")):
            if _NAME.fullmatch(path.stem) and (pointer := self._pointer(path.stem)):
                found[path.stem] = str(pointer["bundle"])
        return found

    def history(self, name: str) -> tuple[str, ...]:
        """Ids that the name meant before, newest first; without the present one."""
        _check_name(name, "pointer")
        pointer = self._pointer(name)
        return tuple(str(entry["bundle"]) for entry in pointer["history"]) if pointer else ()

    def _pointer(self, name: str) -> dict[str, Any] | None:
        path = self.root / f"{name}.json"
        if not path.is_file():
            return None
        try:
            content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            _check_name(content["bundle"], f"{path}: bundle")
            _ = content["since"], list(content["history"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"damaged pointer: {error!r}",
                where=str(path),
                mend=f"delete the file, then point {name!r} at a bundle again",
            ) from None
        return content

    def _write_pointer(self, name: str, bundle_id: str, history: _History) -> None:
        since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        content = {"bundle": bundle_id, "since": since, "history": history}
        write_atomic(self.root / f"{name}.json", json.dumps(content, indent=1) + "\n")

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """One writer of pointers at a time: they are read, changed and written back."""
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


@dataclass(frozen=True)
class Bundle:
    """Everything needed to serve one trained surface, in memory.

    Attributes:
        id: the bundle's id.
        manifest: what it says of itself.
        features: candidates and features of the live state.
        learners: fitted learners by name.
        families: family of every learner, for the ensemble's fallbacks.
        ensemble: turns base scores into one.
        search: finds items by words and meaning.
    """

    id: str
    manifest: BundleManifest
    features: LiveFeatures
    learners: dict[str, Model]
    families: dict[str, str]
    ensemble: Ensemble
    search: Search

    @classmethod
    def load(cls, folder: Path) -> Bundle:
        """Verify every file of the bundle, then load it.

        Raises:
            UserError: a file is missing, added or changed; names it.
        """
        from raysys.ensemble import Ensemble
        from raysys.features.live import LiveFeatures
        from raysys.learners import load_model
        from raysys.retrieval.search import Search

        manifest = verify(folder)
        if manifest.surface == TEXT:
            raise UserError(
                f"{folder.name} is of a text task and ranks nothing",
                where=str(folder),
                mend="name it under `text` of a serve config, or give it to `raysys score`",
            )
        features = LiveFeatures.load(folder / "features")
        learners = {
            name: load_model(name, folder / "learners" / name, features.catalogue)
            for name in manifest.learners
        }
        # by name: `isinstance` would read `item_vectors`, which may be made anew at each look
        encoder = next((model for model in learners.values() if hasattr(model, "encode")), None)
        return cls(
            id=manifest.id,
            manifest=manifest,
            features=features,
            learners=learners,
            families=dict(manifest.learners),
            ensemble=Ensemble.load(folder / "ensemble.json"),
            search=Search.load(folder / "search", cast("TextEncoder | None", encoder)),
        )


@dataclass(frozen=True)
class TextBundle:
    """A fitted text task, in memory.

    Attributes:
        id: the bundle's id.
        manifest: what it says of itself.
        task: classify, entities, sentiment or relevance.
        model: predicts; thread-safe.
        columns: which columns of a shop's files were its text, joined by `join`.
        join: between texts of several columns.
    """

    id: str
    manifest: BundleManifest
    task: Task
    model: TextModel
    columns: tuple[str, ...]
    join: str

    @classmethod
    def load(cls, folder: Path) -> TextBundle:
        """Verify every file of the bundle, then load it.

        Raises:
            UserError: a file is missing, added or changed, or it is no bundle of a text task.
        """
        from raysys.learners.text import load_text_model

        manifest = verify(folder)
        if manifest.surface != TEXT:
            raise UserError(
                f"{folder.name} is no bundle of a text task, but of {manifest.surface!r}",
                where=str(folder),
                mend="give one that `raysys text fit` published",
            )
        content = json.loads((folder / TEXT_FILE).read_text(encoding="utf-8"))
        model = load_text_model(folder / MODEL_FOLDER)
        columns = tuple(content["columns"])
        return cls(manifest.id, manifest, content["task"], model, columns, content["join"])


def write_text(
    folder: Path, name: str, model: TextModel, columns: Sequence[str], join: str
) -> None:
    """Fill the empty folder of a text task's bundle.

    Args:
        folder: see `Registry.publish`.
        name: of the model's learner.
        model: fitted.
        columns: which columns of the files were the text.
        join: between them.
    """
    from raysys.learners.text import save_text_model

    save_text_model(name, model, folder / MODEL_FOLDER)
    content = {"task": model.task, "columns": list(columns), "join": join}
    (folder / TEXT_FILE).write_text(json.dumps(content, ensure_ascii=False) + "\n", "utf-8")


def write_search(folder: Path, catalogue: Catalogue, encoder: TextEncoder | None) -> None:
    """Write a bundle's `search/` folder: words of all items and, given an encoder, their vectors.

    Args:
        folder: made if it is missing.
        catalogue: its texts are what can be found.
        encoder: a fitted learner that places texts and items in one space; None: words only.
    """
    from raysys.retrieval.lexical import FIELD_WEIGHTS
    from raysys.retrieval.search import Search

    folder.mkdir(parents=True, exist_ok=True)
    fields = {name: catalogue.table[name].to_pylist() for name in FIELD_WEIGHTS}
    Search.build(catalogue.texts, encoder, fields).save(folder)


def verify(folder: Path) -> BundleManifest:
    """The manifest of a bundle whose every file is as it was published.

    Raises:
        UserError: a file is missing, was added or was changed, or the manifest was; names it.
    """
    manifest = BundleManifest.read(folder)
    mend = "publish the bundle again (`raysys train`) or roll back to another one"
    if manifest.id != folder.name or not manifest.id.endswith(f"-{manifest.content_hash}"):
        raise UserError(
            "the manifest was changed after the bundle was published",
            where=str(folder / MANIFEST),
            mend=mend,
        )
    present = {path.relative_to(folder).as_posix(): path for path in _walk(folder)}
    present.pop(MANIFEST, None)
    for name in sorted(manifest.files.keys() - present.keys()):
        raise UserError("a file of the bundle is missing", where=str(folder / name), mend=mend)
    for name in sorted(present.keys() - manifest.files.keys()):
        raise UserError(
            "the bundle holds a file that was not published with it",
            where=str(folder / name),
            mend=f"remove it, or {mend}",
        )
    for name, path in present.items():
        expected = manifest.files[name]
        same = path.stat().st_size == expected["size"] and file_digest(path) == expected["sha256"]
        if not same:
            raise UserError(
                "the file was changed after the bundle was published", where=str(path), mend=mend
            )
    return manifest


def _walk(folder: Path) -> Iterator[Path]:
    """Every file under a bundle; links are refused, they lead out of what was hashed."""
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise UserError(
                "a bundle holds plain files only, this is a link or a device",
                where=str(path),
                mend="copy the file itself into the bundle",
            )
        if path.is_file():
            yield path


def _inventory(folder: Path) -> dict[str, dict[str, Any]]:
    """Hash and size of every file, after checking that its format is safe."""
    files = {}
    for path in _walk(folder):
        name = path.relative_to(folder).as_posix()
        if path.suffix not in SAFE or name == MANIFEST:
            raise UserError(
                f"a bundle may not hold {name!r}",
                where=str(folder),
                mend=f"write safe formats only: {', '.join(sorted(SAFE))}; no manifest",
            )
        if path.suffix == ".npy":
            _refuse_objects(path, name)
        path.chmod(0o444)  # what is hashed stays as it is; and safetensors writes for one user only
        files[name] = {"sha256": file_digest(path), "size": path.stat().st_size}
    return files


def _refuse_objects(path: Path, name: str) -> None:
    """A .npy file of Python objects is a pickle in disguise."""
    try:
        np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise UserError(f"{name!r} is not a plain array: {error}", where=str(path.parent)) from None


def _check_name(name: object, where: str) -> None:
    """Names become file names: no separators, no leading dot, no `..`."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UserError(
            f"{name!r} is not a name",
            where=where,
            mend="use 1 to 100 letters, digits, '-', '_' and single dots, no path",
        )


def _plain(content: Mapping[str, Any] | None) -> dict[str, Any]:
    """What JSON keeps of a mapping, so that the hash before writing is the one after reading."""
    plain: dict[str, Any] = json.loads(json.dumps(dict(content or {}), default=str))
    return plain


@contextlib.contextmanager
def _fresh_folder(parent: Path) -> Iterator[Path]:
    """An empty hidden folder; left-overs of killed writers go, and so does this one if it stays."""
    for leftover in parent.glob(".new.*"):
        pid = leftover.name.split(".")[2]
        if not (pid.isdigit() and Path(f"/proc/{pid}").exists()):
            shutil.rmtree(leftover, ignore_errors=True)
    fresh = parent / f".new.{os.getpid()}.{next(_counter)}"
    fresh.mkdir()
    try:
        yield fresh
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
