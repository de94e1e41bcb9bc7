"""Folders of Parquet with a manifest: atomic, fingerprinted, on a disk of this machine.

A stage writes into a hidden folder beside its own, then swaps the two: readers see the old run
or the new one, never half of either.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import platform
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from raysys.errors import UserError

MANIFEST = "manifest.json"
_DAY_S = 86_400
_FULL = re.compile(
    rf"\(os error ({errno.ENOSPC}|{errno.EDQUOT})\)$|^\d+ requested and \d+ written$"
)
_PACKAGES = ("raysys", "ray", "torch", "transformers", "lightgbm", "pyarrow", "polars", "numpy")


def on_disk(folder: Path) -> Path:
    """A folder to write into, made absolute.

    Raises:
        UserError: it is an address such as s3://bucket/runs, which would become a folder `s3:`.
    """
    if re.match(r"[a-z][a-z0-9+.-]+:/", str(folder)):
        raise UserError(
            "no folder of this machine",
            where=str(folder).replace(":/", "://", 1),  # a Path folds the slashes
            mend="write to a disk, or a mount of that storage; addresses are for what is read",
        )
    return folder.absolute()


@dataclass(frozen=True)
class Workspace:
    """The folder that one pipeline lives in; every stage owns one folder under it.

    Its path is made absolute at once: Ray's workers run in folders of their own.

    Raises:
        UserError: see `on_disk`.
    """

    root: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", on_disk(self.root))

    @property
    def ingest(self) -> Path:
        """Events, items, users, promotions and the quality report."""
        return self.root / "ingest"

    @property
    def pieces(self) -> Path:
        """What the log's files held, clean and by date: the next ingest reads only new files."""
        return self.root / "ingest.pieces"

    @property
    def features(self) -> Path:
        """Requests, examples, catalogue and the feature state at the end of the log."""
        return self.root / "features"

    @property
    def audit(self) -> Path:
        """What the point-in-time check of the features found, and their drift."""
        return self.root / "audit"

    @property
    def tune(self) -> Path:
        """Searches, one folder each, and the best settings they found."""
        return self.root / "tune"

    @property
    def train(self) -> Path:
        """Out-of-fold base scores and what the training says of itself."""
        return self.root / "train"

    @property
    def text(self) -> Path:
        """Text tasks, one folder each: rows by split, models, predictions, report."""
        return self.root / "text"

    @property
    def pretrain(self) -> Path:
        """A transformer that knows the shop's texts: `model`, report, outcomes."""
        return self.root / "pretrain"

    @property
    def registry(self) -> Path:
        """Bundles and the pointers that name them."""
        return self.root / "registry"

    @property
    def eventlog(self) -> Path:
        """What the deployment took in over HTTP, and its rolled Parquet."""
        return self.root / "eventlog"

    @property
    def shown_lists(self) -> Path:
        """Where a deployment leaves what it has shown."""
        return self.root / "shown_lists"

    @property
    def exposures(self) -> Path:
        """Which arm of which experiment a user got, as a deployment records it."""
        return self.root / "exposures"

    @property
    def compress(self) -> Path:
        """What smaller and faster models cost and lose: HTML and JSON, one folder a bundle."""
        return self.root / "compress"

    @property
    def learn(self) -> Path:
        """Rounds of learning from new events: a report each, and their journal."""
        return self.root / "learn"

    @property
    def evaluate(self) -> Path:
        """The report on the last period: HTML and JSON."""
        return self.root / "evaluate"


@dataclass
class Manifest:
    """What a stage did: what went in (by fingerprint), settings, counts, figures, versions.

    `variant` tells it from other outcomes of the same plan: the same files may be read again.
    """

    stage: str
    inputs: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    versions: dict[str, str] = field(default_factory=dict)
    created: str = ""
    variant: str = ""

    @property
    def fingerprint(self) -> str:
        """Names the plan (hex) by stage, inputs, settings and code version."""
        cause = [self.stage, self.inputs, self.settings, self.versions.get("raysys", "")]
        return digest(cause)

    @property
    def outcome(self) -> str:
        """Names what came of the plan (hex), for those whose input it is."""
        return digest([self.fingerprint, self.variant]) if self.variant else self.fingerprint

    def write(self, folder: Path) -> None:
        """Write `manifest.json` into `folder`."""
        self.versions = self.versions or versions()
        self.created = self.created or time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        content = {**self.__dict__, "fingerprint": self.fingerprint}
        (folder / MANIFEST).write_text(json.dumps(content, indent=2, default=str) + "\n")


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a finished stage.

    Raises:
        UserError: the stage has not run, or its manifest is damaged.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(
            "nothing here yet",
            where=str(folder),
            mend=f"run `raysys {folder.name}` first, with the same --workspace",
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        content.pop("fingerprint", None)
        return Manifest(**content)
    except (ValueError, TypeError) as error:
        raise UserError(
            f"damaged manifest: {error}", where=str(path), mend=f"run `raysys {folder.name}` again"
        ) from None


def is_done(folder: Path, planned: Manifest) -> bool:
    """Whether `folder` holds the outcome of exactly this plan (same inputs, settings, version)."""
    planned.versions = planned.versions or versions()  # a first run is known by them too
    if not (folder / MANIFEST).is_file():
        return False
    try:
        return read_manifest(folder).fingerprint == planned.fingerprint
    except UserError:  # damaged: the stage runs again, as its message says
        return False


def outcome_folder(folder: Path, stage: str) -> Path:
    """The folder that a stage's outcome goes into, made absolute, before the work begins.

    `replacing` removes what was there: that may be an earlier outcome of this stage, nothing else.

    Raises:
        UserError: it holds other things, is a file, or see `on_disk`.
    """
    folder = on_disk(folder)
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return folder
    with contextlib.suppress(UserError):
        if read_manifest(folder).stage == stage:
            return folder
    what = "the folder holds other things" if folder.is_dir() else "a file stands there"
    raise UserError(what, where=str(folder), mend="give a new --output")


def working_folder(outcome: Path, planned: Manifest, force: bool) -> Path:
    """Where a stage's run with this plan keeps what it has so far; that of other plans is removed.

    Args:
        outcome: the folder that the run will write.
        planned: of the run, with its version (`is_done` sees to it).
        force: begin anew.
    """
    home = outcome.with_name(f".{outcome.name}.work")
    work = home / planned.fingerprint
    if home.exists():
        for leftover in home.iterdir():
            if leftover != work or force:
                shutil.rmtree(leftover, ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    return work


def is_full_disk(error: BaseException) -> bool:
    """Whether a write failed because its disk, or somebody's share of it, is full.

    What is written in Rust (polars, safetensors) tells it in words alone, numpy in how many values
    there was room for.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return _FULL.search(str(error)) is not None


@contextlib.contextmanager
def naming_full_disk(folder: Path) -> Iterator[None]:
    """Say of a full disk where it is: in the file that the error names, else below `folder`.

    Raises:
        UserError: the disk is full.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not is_full_disk(error):
            raise
        raise UserError(
            "the disk is full",
            where=str(getattr(error, "filename", None) or folder),
            mend="free some space, or give another --workspace",
        ) from None


@contextlib.contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Give an empty folder to write into; on success it takes the place of `folder` at once.

    On an error, or a kill, `folder` stays as it was. Left-overs of killed writers are removed.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    begin = f".{folder.name}."
    if not folder.exists():  # a writer was killed before it put the new one there
        for old in folder.parent.glob(f"{begin}old.*.tmp"):
            if is_left_over(old, _mark_of(old)):
                old.rename(folder)
                break
    remove_left_overs(folder.parent, begin)
    mark = writer_mark()
    fresh = folder.parent / f"{begin}{mark}.tmp"
    fresh.mkdir()
    try:
        yield fresh
        old = folder.parent / f"{begin}old.{mark}.tmp"
        if folder.exists():
            folder.rename(old)
        try:
            fresh.rename(folder)
        except OSError:
            if old.exists() and not folder.exists():
                old.rename(folder)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def remove_left_overs(parent: Path, begin: str = ".") -> None:
    """Remove the folders whose names begin so and that killed writers left half-written."""
    for leftover in parent.glob(f"{begin}*.tmp"):
        if is_left_over(leftover, _mark_of(leftover)):
            shutil.rmtree(leftover, ignore_errors=True)


def _mark_of(leftover: Path) -> str:
    return leftover.name.removesuffix(".tmp").rpartition(".")[2]


def writer_mark() -> str:
    """Names what this call writes, wherever the folder is mounted: HOST-PID-START-RANDOM."""
    return f"{_host()}-{os.getpid()}-{_started(os.getpid())}-{uuid.uuid4().hex[:8]}"


def is_left_over(path: Path, mark: str) -> bool:
    """Whether whoever wrote a folder under a mark is dead.

    A process number is given again, and after a container's restart it is the same (1, mostly):
    the moment at which a process began tells them apart. Of other machines nobody can tell; what
    has been as it is for a day is left over.
    """
    host, pid, started = (*mark.rsplit("-", 3), "", "")[:3]
    if pid.isdigit() and host == _host():
        return _started(int(pid)) != started
    try:
        return time.time() - path.stat().st_mtime > _DAY_S
    except OSError:
        return False  # gone already


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9]", "", platform.node())[:40] or "localhost"


def _started(pid: int) -> str:
    """When a process began, in the system's ticks; empty: there is none."""
    try:
        told = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    return told.rpartition(")")[2].split()[19]


def write_atomic(path: Path, content: str) -> None:
    """Write a small text file, durably: readers see the old content or the new, nothing between."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{writer_mark()}.tmp")
    try:
        with fresh.open("w", encoding="utf-8") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # or a power cut may leave the name with nothing in it
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    file = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(file)
    except OSError as error:
        if error.errno != errno.EINVAL:  # which says that a share (SMB) cannot do this at all
            raise
    finally:
        os.close(file)


def digest(content: Any) -> str:
    """Hex fingerprint (16 digits of SHA-256) of anything JSON can say, keys sorted."""
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_digest(path: Path) -> str:
    """Full SHA-256 of a file, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def versions() -> dict[str, str]:
    """Versions of Python and of the packages whose behaviour the outcome depends on."""
    found = {"python": platform.python_version()}
    for name in (*_PACKAGES, "xgboost-cpu", "xgboost"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


@dataclass(frozen=True)
class CheckpointFolder:
    """Where a fit leaves what it has done, every so many steps, and finds it again after a kill.

    Attributes:
        root: of one fit alone, on a disk that whoever takes the fit up sees.
        every: steps between two checkpoints.
    """

    root: Path
    every: int

    def of(self, part: str) -> CheckpointFolder:
        """That of one part of the fit."""
        return CheckpointFolder(self.root / part, self.every)

    def due(self, step: int) -> bool:
        """Whether a checkpoint is to be written after so many steps."""
        return step % self.every == 0

    def last(self) -> Path | None:
        """The newest checkpoint; None: there is none."""
        return max(self.root.glob("step-*"), default=None, key=lambda path: path.name)

    @contextlib.contextmanager
    def writing(self, step: int) -> Iterator[Path]:
        """Give an empty folder; on success it becomes the last checkpoint, and the only one.

        Written under another name and moved: a kill leaves the one before.
        """
        fresh = self.root / "new"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        yield fresh
        place = self.root / f"step-{step:09d}"
        shutil.rmtree(place, ignore_errors=True)
        fresh.rename(place)
        for older in self.root.glob("step-*"):
            if older != place:
                shutil.rmtree(older, ignore_errors=True)
