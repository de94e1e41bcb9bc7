"""The report of a text task: an HTML page with plots, and the same figures as JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raysys.evaluation.intervals import Interval
from raysys.evaluation.text_judge import Reliability, TextVerdict
from raysys.report import COLOURS, Report, Section, new_figure
from raysys.storage import write_atomic

NAMES = {
    "macro_f1": "macro F1",
    "micro_f1": "micro F1",
    "accuracy": "accuracy",
    "accuracy_level_1": "top level",
    "accuracy_level_2": "two levels",
    "precision": "precision",
    "recall": "recall",
    "answered": "answered",
    "rating_rmse": "RMSE of the rating",
    "ndcg@10": "NDCG@10",
    "rmse": "RMSE of the grade",
    "relevant_f1": "F1 of relevant",
    "brier": "Brier score",
    "brier_before": "Brier score of the bare grade",
    "calibration_error": "calibration error",
    "calibration_error_before": "calibration error of the bare grade",
}
"""How figures are called in tables."""

_CONFUSED = 16  # labels in the matrix
_LABELS = 60  # in the table
_PACE = ("step", "epoch", "learning_rate")  # of a history: where it stood, not how well
_SPANS = ("spans", "predicted_spans")
_ENDS = ("value", "low", "high")
_LONG = 220  # characters of a text that an example shows


@dataclass(frozen=True)
class TextEvaluation:
    """Everything the report shows.

    Attributes:
        task: classify, entities, sentiment or relevance.
        title: name of the task in the registry.
        bundle: id of the bundle that was published.
        counts: rows by split and aside by reason.
        notes: what a person should know of the data.
        criterion: by which figure learners were chosen on validation.
        chosen: the learner that was published.
        baseline: the best baseline on validation; None where there is none.
        against: the learner that `gain` compares with; None where there is only one.
        gain: of the criterion on the test, with its interval.
        families: of every learner.
        seconds: that each took to fit.
        histories: evaluations of each while it was trained.
        validation, test: verdicts by learner.
        said: of validation and test, what was true and what the chosen learner said.
        examples: how many of its errors are shown.
        relevant: for relevance: `from`, the grade from which a text is relevant, and by learner
            what was calibrated on validation; None: it is another task.
    """

    task: str
    title: str
    bundle: str
    counts: Mapping[str, int]
    notes: Sequence[str]
    criterion: str
    chosen: str
    baseline: str | None
    against: str | None
    gain: Mapping[str, float | None] | None
    families: Mapping[str, str]
    seconds: Mapping[str, float]
    histories: Mapping[str, Sequence[Mapping[str, float]]]
    validation: Mapping[str, TextVerdict]
    test: Mapping[str, TextVerdict]
    said: pa.Table
    examples: int
    relevant: Mapping[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """All figures, as JSON can say them."""

        def told(verdict: TextVerdict) -> dict[str, Any]:
            return {name: figure.to_dict() for name, figure in verdict.figures.items()}

        return {
            "task": self.task,
            "bundle": self.bundle,
            "counts": dict(self.counts),
            "notes": list(self.notes),
            "criterion": self.criterion,
            "chosen": self.chosen,
            "baseline": self.baseline,
            "against": self.against,
            "gain": None if self.gain is None else dict(self.gain),
            "seconds": {name: round(value, 2) for name, value in self.seconds.items()},
            "validation": {name: told(verdict) for name, verdict in self.validation.items()},
            "test": {name: told(verdict) for name, verdict in self.test.items()},
            "by_label": [vars(label) for label in self.test[self.chosen].by_label],
            **({} if self.relevant is None else {"relevant": dict(self.relevant)}),
            "histories": {name: [dict(e) for e in h] for name, h in self.histories.items() if h},
        }


def conclusion(
    chosen: str,
    baseline: str | None,
    against: str | None,
    gain: Mapping[str, float | None] | None,
    criterion: str,
) -> str:
    """Who won, by how much, and whether chance explains it: one sentence."""
    if gain is None or against is None:
        return f"{chosen} is the only learner: nothing says how a simpler one would fare."
    ends = [gain[key] for key in _ENDS]
    value, low, high = (np.nan if end is None else end for end in ends)
    between = "no interval" if np.isnan(low) else f"95%: {low:+.4f} to {high:+.4f}"
    told = f"{NAMES[criterion]} {value:+.4f} on the test, {between}"
    if chosen == baseline:
        lead = f"The simple baseline {chosen} wins and is used: on validation nothing is better"
        return f"{lead} by more than a standard error (over {against}: {told})."
    kind = "the baseline " if against == baseline else ""
    if low > 0:
        return f"{chosen} beats {kind}{against}, and chance does not explain it ({told})."
    lead = f"{chosen} was best on validation and is used; on the test"
    return f"{lead} chance may explain what lies between it and {kind}{against} ({told})."


def write_text_report(evaluation: TextEvaluation, folder: Path) -> None:
    """Write `report.html` and `report.json` into `folder`."""
    content = json.dumps(evaluation.to_dict(), indent=1, ensure_ascii=False)
    write_atomic(folder / "report.json", content + "\n")
    page = Report(
        f"Text task: {evaluation.title}",
        f"Bundle {evaluation.bundle}. Chosen on validation, judged on a test that nothing was "
        "fitted or chosen on.",
    )
    verdict = evaluation.test[evaluation.chosen]
    figure = verdict.figures[evaluation.criterion]
    counts = evaluation.counts
    short = page.section("In short").facts(
        [
            (f"{NAMES[evaluation.criterion]} of {evaluation.chosen}", f"{figure.value:.4f}"),
            *[(name, f"{counts[name]:,}") for name in ("train", "validation", "test")],
            ("put aside", f"{counts.get('aside', 0):,}"),
        ]
    )
    short.text(
        conclusion(
            evaluation.chosen,
            evaluation.baseline,
            evaluation.against,
            evaluation.gain,
            evaluation.criterion,
        )
    )
    for note in evaluation.notes:
        short.note(note)
    _learners(page, evaluation)
    _curves(page, evaluation)
    if verdict.by_label:
        _labels(page.section("By label"), verdict)
    if evaluation.task in ("classify", "sentiment"):
        _confusion(page.section("Confusion"), evaluation)
    if verdict.reliability is not None:
        section = page.section("Probabilities")
        _relevant(section, evaluation)
        true = "relevant" if evaluation.task == "relevance" else "right"
        _reliability(section, verdict.reliability, f"share that was {true}")
    _examples(page.section("Where it errs"), evaluation, verdict)
    aside = [(name[6:], n) for name, n in counts.items() if name.startswith("aside.")]
    if aside:
        page.section("Put aside").table(["reason", "rows"], aside)
    page.write(folder / "report.html")


def _learners(page: Report, evaluation: TextEvaluation) -> None:
    names = sorted(
        evaluation.test,
        key=lambda name: -evaluation.validation[name].figures[evaluation.criterion].value,
    )
    keys = list(dict.fromkeys(k for name in names for k in evaluation.test[name].figures))
    criterion = NAMES[evaluation.criterion]
    verdicts = [evaluation.test[name].figures for name in names]
    valid = [evaluation.validation[name].figures[evaluation.criterion].value for name in names]
    rows: list[list[str]] = [
        [f"{criterion}, validation", *(f"{value:.4f}" for value in valid)],
        *(
            [
                NAMES.get(key, key.replace("_", " ")),
                *(_told(figures[key]) if key in figures else "" for figures in verdicts),
            ]
            for key in keys
        ),
        ["seconds to fit", *(f"{evaluation.seconds[name]:.1f}" for name in names)],
        ["family", *(evaluation.families[name] for name in names)],
    ]
    section = page.section("Learners on the test")
    # figures down, learners across: there are many of those and few of these
    section.table(["", *names], rows, strong=[1 + keys.index(evaluation.criterion)])
    section.text(f"Published: {evaluation.chosen}.")
    section.note(
        "95% bootstrap intervals; texts of one group, or pairs of one query, are drawn together."
    )


def _told(figure: Interval) -> str:
    if np.isnan(figure.low):
        return f"{figure.value:.4f}"
    return f"{figure.value:.4f} [{figure.low:.4f}, {figure.high:.4f}]"


def _curves(page: Report, evaluation: TextEvaluation) -> None:
    """How each trained learner came along, where it was evaluated more than once."""
    told = {name: h for name, h in evaluation.histories.items() if len(h) > 1}
    if not told:
        return
    section = page.section("Learning curves")
    for name, history in told.items():
        keys = [key for key in history[0] if key not in _PACE]
        figure, axes = new_figure(9, 2.6)
        for key, colour in zip(keys, COLOURS, strict=False):
            points = [(e.get("step", at), e[key]) for at, e in enumerate(history) if key in e]
            axes.plot(*zip(*points, strict=True), label=key, color=colour, marker=".")
        axes.set_xlabel("step")
        axes.legend(frameon=False)
        section.plot(figure, name)


def _labels(section: Section, verdict: TextVerdict) -> None:
    rows = [
        (label.label, label.support, label.precision, label.recall, label.f1)
        for label in verdict.by_label[:_LABELS]
    ]
    shown = [(name, n, f"{p:.3f}", f"{r:.3f}", f"{f:.3f}") for name, n, p, r, f in rows]
    section.table(["label", "in the test", "precision", "recall", "F1"], shown)
    if len(verdict.by_label) > _LABELS:
        section.note(
            f"The {_LABELS} most frequent of {len(verdict.by_label)}; report.json has all."
        )


def _confusion(section: Section, evaluation: TextEvaluation) -> None:
    said = _test(evaluation.said)
    truth, given = said["label"].to_pylist(), said["predicted_label"].to_pylist()
    frequent, columns, matrix = confused(truth, given)
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    figure, axes = new_figure(9, 1.2 + 0.42 * len(frequent))
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axes.grid(False)
    axes.set_yticks(range(len(frequent)), [_short(name) for name in frequent])
    axes.set_xticks(range(len(columns)), [_short(n) for n in columns], rotation=60, ha="right")
    for row, column in zip(*np.nonzero(matrix), strict=True):
        dark = "white" if share[row, column] > 0.5 else "black"
        axes.text(
            column, row, int(matrix[row, column]), ha="center", va="center", color=dark, fontsize=8
        )
    section.plot(figure, "Rows: what it is; columns: what was said. The most frequent labels.")


def confused(
    truth: Sequence[str], given: Sequence[str | None]
) -> tuple[list[str], list[str], npt.NDArray[np.float64]]:
    """The most frequent labels (rows), what was said of them (columns), and how often."""
    frequent = [name for name, _ in Counter(truth).most_common(_CONFUSED)]
    others = {*truth, *given} - {*frequent, None}  # train may have labels that the test lacks
    columns = [*frequent, *(["others"] if others else []), "no label"]
    place = {name: at for at, name in enumerate(frequent)}
    other = len(frequent)
    matrix = np.zeros((len(frequent), len(columns)))
    for true, guess in zip(truth, given, strict=True):
        if true in place:
            at = len(columns) - 1 if guess is None else place.get(guess, other)
            matrix[place[true], at] += 1
    return frequent, columns, matrix


def _short(name: str) -> str:
    return name if len(name) <= 34 else f"…{name[-33:]}"


def _relevant(section: Section, evaluation: TextEvaluation) -> None:
    """What a probability is of, where texts are graded, and what calibrating it changed."""
    told = (evaluation.relevant or {}).get(evaluation.chosen)
    if evaluation.relevant is None or told is None:
        return
    section.text(
        f"Relevant is a text with a grade of {evaluation.relevant['from']:g} or more. It is said "
        f"to be from the probability {told['threshold']:.3f} on, which has the largest F1 on "
        "validation."
    )
    section.note(
        f"On validation, where it was fitted, calibration took the Brier score from "
        f"{told['brier_before']:.4f} to {told['brier_after']:.4f} and the calibration error from "
        f"{told['error_before']:.4f} to {told['error_after']:.4f}; before it, the place of a grade "
        "between the lowest and the highest is taken as a probability."
    )


def _reliability(section: Section, found: Reliability, true: str) -> None:
    figure, axes = new_figure(9, 3.4)
    axes.plot([0, 1], [0, 1], color=COLOURS[5], linewidth=1)
    axes.plot(found.promised, found.true, marker="o", color=COLOURS[0])
    axes.set_xlabel("probability that was promised")
    axes.set_ylabel(true)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    section.plot(figure, f"Expected calibration error {found.error:.4f}; on the line is honest.")


def _examples(section: Section, evaluation: TextEvaluation, verdict: TextVerdict) -> None:
    """The surest errors, as they teach most."""
    said = _test(evaluation.said)
    at = np.flatnonzero(verdict.wrong)
    section.text(f"{len(at):,} of {said.num_rows:,} rows of the test.")
    if not len(at):
        return
    if evaluation.task == "relevance":
        error = np.abs(said["predicted_grade"].to_numpy() - said["grade"].to_numpy())
        at = at[np.argsort(-error[at], kind="stable")][: evaluation.examples]
        rows = [
            (
                row["query"],
                _cut(row["text"]),
                f"{row['grade']:.2f}",
                f"{row['predicted_grade']:.2f}",
            )
            for row in said.take(pa.array(at)).to_pylist()
        ]
        section.table(["query", "text", "judged", "said"], rows)
        return
    if evaluation.task == "entities":
        found = [
            (_cut(row["text"]), *(_spans(row[key], row["text"]) for key in _SPANS))
            for row in said.take(pa.array(at[: evaluation.examples])).to_pylist()
        ]
        section.table(["text", "there is", "was found"], found)
        return
    sure = said["predicted_probability"].to_numpy()
    at = at[np.argsort(-sure[at], kind="stable")][: evaluation.examples]
    rows = [
        (
            _cut(row["text"]),
            row["label"],
            row["predicted_label"] or "(none)",
            f"{row['predicted_probability']:.3f}",
        )
        for row in said.take(pa.array(at)).to_pylist()
    ]
    section.table(["text", "it is", "was said", "probability"], rows)


def _spans(spans: Sequence[Mapping[str, Any]] | None, text: str) -> str:
    return (
        "; ".join(f"{s['label']}: {text[s['start'] : s['end']]}" for s in spans or ()) or "nothing"
    )


def _test(said: pa.Table) -> pa.Table:
    return said.filter(pc.equal(said["split"], "test"))


def _cut(text: str) -> str:
    return text if len(text) <= _LONG else f"{text[:_LONG]}…"
