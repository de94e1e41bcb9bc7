"""Files opened anywhere: what fails while bytes are fetched is told apart from what they say.

Clients of object stores and of HTTP raise errors of their own that are no `OSError`, and Arrow
wraps what a file raises into words of its own. So it does not count which error arrives, but where
it arose: whatever `read`, `seek` or opening raises is the storage's, the rest the content's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import IO, TypeVar, cast

import fsspec

from raysys.errors import UserError

Answer = TypeVar("Answer")


class StorageError(OSError):
    """Storage did not give a file, or not whole; another time it may.

    Stands for errors that are no `OSError`, and for those without a number, which decoders raise
    for damage (see `of_storage`).
    """


def error_text(error: Exception) -> str:
    """What an error says, with its kind where a package made it or it says nothing."""
    kind, said = type(error), str(error)
    if said and kind.__module__ == "builtins":
        return said
    return f"{kind.__name__}: {said}" if said else kind.__name__


def of_storage(error: OSError) -> bool:
    """Whether storage failed (a timeout, a permission, a file that is gone), not the content.

    Another time the same file may be read. Decoders raise a bare OSError without a number.
    """
    return type(error) is not OSError or error.errno is not None


@contextlib.contextmanager
def opened(path: str) -> Iterator[IO[bytes]]:
    """A file's bytes as they are, from its beginning; can be sought.

    Once storage has failed, what leaves the block is that failure, whatever the reader of the
    bytes made of it: half a file parses as badly as a broken one, or not at all.

    Args:
        path: local, or any fsspec URI.

    Raises:
        OSError: storage failed; `of_storage` holds for it.
        UserError: the package that knows this storage is not installed here.
    """
    with contextlib.ExitStack() as stack:
        fetched = _Fetched(_asked(lambda: _open(path, stack)))
        try:
            yield cast("IO[bytes]", fetched)
        except Exception as error:
            if fetched.failure is None or error is fetched.failure:
                raise
            raise fetched.failure from error
        if fetched.failure is not None:  # its reader took it for the end, or for nothing
            raise fetched.failure


def _open(path: str, stack: contextlib.ExitStack) -> IO[bytes]:
    try:
        file: IO[bytes] = fsspec.open(path, "rb").open()
    except ImportError as error:
        raise UserError(
            f"cannot be opened: {error}", where=path, mend="install it on every node"
        ) from None
    stack.callback(_close, file)
    return file


def _close(file: IO[bytes]) -> None:
    """Close a file that was read: what that raises takes nothing from what it gave."""
    with contextlib.suppress(Exception):
        file.close()


def _asked(ask: Callable[[], Answer]) -> Answer:
    """What storage answers.

    Raises:
        OSError: it failed; `of_storage` holds for it.
    """
    try:
        return ask()
    except (UserError, MemoryError):
        raise
    except OSError as error:
        if of_storage(error):
            raise
        raise StorageError(error_text(error)) from error
    except Exception as error:
        raise StorageError(error_text(error)) from error


class _Fetched:
    """A file that remembers whether storage failed, as Arrow wants files to be."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.failure: OSError | None = None

    def _fetch(self, ask: Callable[[], Answer]) -> Answer:
        try:
            return _asked(ask)
        except OSError as error:
            self.failure = error
            raise

    def read(self, size: int = -1) -> bytes:
        return self._fetch(lambda: self._file.read(size))

    def seek(self, place: int, whence: int = 0) -> int:
        return self._fetch(lambda: self._file.seek(place, whence))

    def tell(self) -> int:
        return self._fetch(self._file.tell)

    def close(self) -> None:
        """Leave it to whoever opened it."""

    @property
    def closed(self) -> bool:
        return self._file.closed

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False
