"""What runs inside AutoGluon's own environment: fit a table, score another; nothing of ours."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path


def main(folder: Path) -> None:
    """Read `task.json`, `train.parquet`, `test.parquet`; write `said.parquet`, `facts.json`."""
    import pandas as pd
    from autogluon.common import __version__
    from autogluon.tabular import TabularPredictor

    task = json.loads((folder / "task.json").read_text())
    train = pd.read_parquet(folder / "train.parquet")
    began = time.monotonic()
    predictor = TabularPredictor(
        label="label",
        problem_type=task["problem"],
        eval_metric=task["metric"],
        groups="group",
        path=str(folder / "models"),
        verbosity=1,
    ).fit(
        train,
        presets=task["preset"],
        time_limit=task["seconds"],
        num_cpus=task["cores"],
        num_gpus=0,
        dynamic_stacking=False,  # it would spend a quarter of the time on a rehearsal
        ag_args_ensemble={"fold_fitting_strategy": "sequential_local"},
    )
    seconds = time.monotonic() - began
    test = pd.read_parquet(folder / "test.parquet")
    if task["problem"] == "binary":
        said = predictor.predict_proba(test)[1]
    else:
        said = predictor.predict(test)
    pd.DataFrame({"said": said.astype("float32").to_numpy()}).to_parquet(folder / "said.parquet")
    facts = {
        "version": __version__, "models": len(predictor.model_names()), "seconds": seconds,
        "limit": task["seconds"], "rows": len(train), "cores": task["cores"],
        "best": predictor.model_best,
    }  # fmt: skip
    (folder / "facts.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
