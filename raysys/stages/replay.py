"""`raysys replay`: a recorded answer, given again and compared."""

from __future__ import annotations

from pathlib import Path

from raysys.errors import UserError
from raysys.serving.replay import Replayed, as_json, replay

_FROM = {
    "inputs": "scored again from the recorded features",
    "state": "scored again from the state of the bundle",
    "nothing": "not scored again: the state has moved on, and the features of this answer were not "
    "among the recorded share (shown_lists.inputs_share); arranged again from the recorded scores",
}


def run(
    request_id: str, shown_lists: Path, registry: Path | None = None, *, machine: bool = False
) -> bool:
    """Print what came of it; whether it is the same to the last bit.

    Raises:
        UserError: the folder, the record, or its bundle is not there.
    """
    if not shown_lists.is_dir():
        raise UserError(
            "no folder of shown lists",
            where=str(shown_lists),
            mend="give --shown-lists the folder that the serve config names (`shown_lists.folder`)",
        )
    replayed = replay(shown_lists, request_id, registry)
    print(as_json(replayed) if machine else as_text(replayed))
    return not replayed.differences


def as_text(replayed: Replayed) -> str:
    """For people."""
    record = replayed.record
    who = record["user_id"] or record["session_id"] or "a stranger"
    called = record.get("http_request_id")  # records of earlier versions have none
    lines = [
        f"{record['surface']} for {who} at {record['timestamp']:%Y-%m-%d %H:%M:%S} UTC, "
        f"bundle {record['bundle']}",
        *([f"HTTP request {called}, as log lines name it"] if called else []),
        *(
            f"{place:>3}  {item}  propensity {propensity:.4g}"
            for place, (item, propensity) in enumerate(
                zip(replayed.item_ids, replayed.propensities, strict=True), start=1
            )
        ),
        _FROM[replayed.scored_from],
    ]
    if replayed.differences:
        lines += ["DIFFERENT:", *(f"  {difference}" for difference in replayed.differences)]
    elif replayed.scored_from == "nothing":
        lines.append(
            "the same list from the recorded scores; whether they would be the same, "
            "nothing can say now"
        )
    else:
        lines.append("the same, to the last bit")
    return "\n".join(lines)
