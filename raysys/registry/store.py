"""The registry itself: publishing bundles, and the names that point at them."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from raysys.errors import UserError
from raysys.registry.bundle import Bundle
from raysys.registry.manifest import BundleManifest, inventory, verify
from raysys.storage import MANIFEST, is_left_over, versions, write_atomic, writer_mark

_History = list[dict[str, str]]  # where `list` is a method's name
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_-]|\.(?!\.)){0,99}")
JOURNAL = "journal.jsonl"
"""Beside the pointers: every change of them."""


@dataclass(frozen=True)
class Change:
    """A line of the journal: what happened to a pointer.

    Attributes:
        at: UTC, ISO 8601.
        name: of the pointer.
        before: id of the bundle it meant; empty: none.
        after: id of the bundle it means since.
        cause: published, promoted, rolled back, and by whom or what.
    """

    at: str
    name: str
    before: str
    after: str
    cause: str


class Moved(UserError):  # noqa: N818  a state, like LogBusy
    """A name came to mean another bundle while somebody judged whether to change it."""


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
                files=inventory(fresh),
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

    def point(
        self, name: str, bundle_id: str, *, cause: str = "published", expected: str | None = None
    ) -> None:
        """Give a bundle a name such as `champion`; the bundle is verified first.

        Args:
            name: the pointer.
            bundle_id: what it means from now on.
            cause: why, for the journal.
            expected: id of the bundle against which this was judged; empty: none had the name.
                None: whatever the name means by now.

        Raises:
            UserError: bad name, or a bundle's id; no such bundle, or a damaged one.
            Moved: the name means another bundle than expected.
        """
        _check_name(name, "pointer")
        if (self.bundles / name).is_dir():
            raise UserError(
                f"{name!r} is the id of a bundle, and can mean no other",
                where=str(self.root),
                mend="choose a name that no bundle has",
            )
        self.verify(bundle_id)
        with self._locked():
            pointer = self._pointer(name) or {"history": []}
            history = pointer["history"]
            if pointer.get("bundle") == bundle_id:
                return
            if expected is not None and pointer.get("bundle", "") != expected:
                raise Moved(
                    f"{name!r} means another bundle by now: {pointer.get('bundle', 'none')}",
                    where=str(self.root),
                    mend="look at it, and try again",
                )
            if "bundle" in pointer:
                history = [{"bundle": pointer["bundle"], "since": pointer["since"]}, *history]
            self._write_pointer(name, bundle_id, history)
            self._note(name, pointer.get("bundle"), bundle_id, cause)

    def earlier(self, name: str) -> str | None:
        """Id of the bundle that `rollback` would give the name back to; None: there is none."""
        pointer = self._pointer(name)
        return str(pointer["history"][0]["bundle"]) if pointer and pointer["history"] else None

    def rollback(self, name: str, *, cause: str = "rolled back") -> str:
        """Point the name at the bundle it meant before; returns that bundle's id.

        Args:
            name: the pointer.
            cause: why, for the journal.

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
            self._note(name, pointer["bundle"], earlier["bundle"], cause)
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

    def journal(self, name: str | None = None) -> tuple[Change, ...]:
        """Every change of a pointer (None: of all), the oldest first; nothing is ever removed."""
        path = self.root / JOURNAL
        if not path.is_file():
            return ()
        changes = []
        for line in path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError, TypeError):  # a line that a crash cut off
                changes.append(Change(**json.loads(line)))
        return tuple(change for change in changes if name in (None, change.name))

    def _note(self, name: str, before: object, after: str, cause: str) -> None:
        """Append to the journal; the caller holds the lock."""
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        change = Change(at, name, str(before or ""), after, cause)
        path = self.root / JOURNAL
        with path.open("a+b") as file:
            if file.tell() and not _ends_a_line(path):
                file.write(b"\n")
            file.write(json.dumps(asdict(change)).encode() + b"\n")

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


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


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
        if is_left_over(leftover, leftover.name.removeprefix(".new.")):
            shutil.rmtree(leftover, ignore_errors=True)
    fresh = parent / f".new.{writer_mark()}"
    fresh.mkdir()
    try:
        yield fresh
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
