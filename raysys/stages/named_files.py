"""Files that settings name: what a stage made of them is done only as long as they stay."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from raysys.storage import file_digest


def named_files(settings: object) -> dict[str, str]:
    """Fingerprints of weights, tables and thesauri that settings name.

    They may be written anew where they are.
    """
    if isinstance(settings, Mapping):
        thesauri = settings.get("thesaurus") or ()
        found = _thesauri([thesauri] if isinstance(thesauri, str) else thesauri)
        return {**named_files(list(settings.values())), **found}
    if isinstance(settings, list | tuple):
        return {name: told for each in settings for name, told in named_files(each).items()}
    if not isinstance(settings, str) or not settings.strip():
        return {}
    place = Path(settings).expanduser()
    if place.suffix in (".csv", ".parquet") and place.is_file():
        return {settings: file_digest(place)[:16]}
    weights = [path for each in ("*", "*/*") for path in sorted(place.glob(f"{each}.safetensors"))]
    return {f"{settings}/{path.relative_to(place)}": file_digest(path)[:16] for path in weights}


def _thesauri(sources: Iterable[str]) -> dict[str, str]:
    """Of files of words and of folders of a WordNet; what a package brings has none."""
    found = {}
    for source in sources:
        place = Path(source)
        if place.is_file():
            found[source] = file_digest(place)[:16]
        for path in sorted(place.glob("*.*")):
            if path.stem in ("data", "index"):
                found[f"{source}/{path.name}"] = file_digest(path)[:16]
    return found
