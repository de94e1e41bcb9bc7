"""What the doctor says: one finding a line."""

from __future__ import annotations

from dataclasses import dataclass

OK, WARN, FAIL = "ok", "warn", "fail"


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's report.

    Attributes:
        area: versions, ray, gpu, memory, disk, ports, auth or data.
        name: what was looked at.
        state: `ok`, `warn` (works, with a catch) or `fail` (will not work).
        found: what there is.
        mend: what to do about it; empty when ok.
    """

    area: str
    name: str
    state: str
    found: str
    mend: str = ""
