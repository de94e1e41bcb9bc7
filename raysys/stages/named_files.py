"""Files that settings name: what a stage made of them is done only as long as they stay."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from raysys.storage import file_digest


def named_files(settings: object) -> dict[str, str]:
    """Fingerprints of weights and tables that settings name: they may be written anew there."""
    if isinstance(settings, Mapping):
        settings = list(settings.values())
    if isinstance(settings, list | tuple):
        return {name: told for each in settings for name, told in named_files(each).items()}
    if not isinstance(settings, str) or not settings.strip():
        return {}
    place = Path(settings).expanduser()
    if place.suffix in (".csv", ".parquet") and place.is_file():
        return {settings: file_digest(place)[:16]}
    weights = [path for each in ("*", "*/*") for path in sorted(place.glob(f"{each}.safetensors"))]
    return {f"{settings}/{path.relative_to(place)}": file_digest(path)[:16] for path in weights}
