"""One error for users' mistakes: what is wrong, where, and how to mend it."""

from __future__ import annotations


class UserError(Exception):
    """A mistake the user can mend; the CLI prints it without a traceback and exits with 2.

    Args:
        what: what is wrong, with the offending value.
        where: the file, YAML path, column or endpoint that holds it.
        mend: what to do about it.
    """

    def __init__(self, what: str, *, where: str = "", mend: str = "") -> None:
        super().__init__(what, where, mend)
        self.what = what
        self.where = where
        self.mend = mend

    def __str__(self) -> str:
        head = f"{self.where}: {self.what}" if self.where else self.what
        return f"{head}\n  mend: {self.mend}" if self.mend else head

    def __reduce__(self) -> tuple[object, ...]:
        """Cross processes whole: Ray pickles what a worker raises."""
        return _rebuilt, (type(self), self.what, self.where, self.mend)


def _rebuilt(kind: type[UserError], what: str, where: str, mend: str) -> UserError:
    return kind(what, where=where, mend=mend)


def missing_extra(package: str, extra: str) -> UserError:
    """The error for an optional package that is not installed; names the extra that brings it."""
    return UserError(
        f"the package {package!r} is not installed",
        mend=f"pip install 'raysys[{extra}]'",
    )
