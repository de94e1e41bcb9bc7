"""What `raysys compress` tried: one row each, and the report on all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysys.evaluation.intervals import Interval
from raysys.report import Report, new_figure
from raysys.stages.compressible import Quality
from raysys.text.compression.export import VARIANTS, Variant
from raysys.text.compression.probe import Cost

if TYPE_CHECKING:
    from raysys.stages.compress import CompressSettings


@dataclass(frozen=True)
class Row:
    """One way to run the transformer, or to keep the vectors, and what came of it.

    Attributes:
        name: of the variant, after the number of layers where there are fewer.
        quality: on validation.
        loss: share of the whole model's quality that is lost, with its interval.
        cost: None for vectors.
        size_mb: of the weights, or of the vectors.
        folder: of the transformer; None for vectors.
    """

    name: str
    quality: Quality
    loss: tuple[float, float, float]
    cost: Cost | None
    size_mb: float
    folder: Path | None = None

    @property
    def variant(self) -> Variant:
        """How the transformer is run."""
        return next(each for name, each in VARIANTS.items() if self.name.endswith(name))

    @property
    def latency(self) -> float:
        """Milliseconds of the first shape."""
        assert self.cost is not None
        return next(iter(self.cost.milliseconds.values()))

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name,
            "quality": self.quality.value,
            "loss": Interval(*self.loss).to_dict(),
            "size_mb": round(self.size_mb, 2),
            **({} if self.cost is None else asdict(self.cost)),
        }


def headers(measure: str, row: Mapping[str, Any], *, memory: bool = True) -> list[str]:
    """Of a table of rows like this one (see `Row.to_dict`)."""
    shapes = [f"ms {shape}" for shape in row.get("milliseconds", {})]
    grown = ["MB used"] if memory and shapes else []
    return ["", measure, "loss, 95%", *shapes, *grown, "MB"]


def cells(row: Mapping[str, Any], *, memory: bool = True) -> list[str]:
    """Of one row under such headers."""
    loss = row["loss"]
    told = f"{loss['value']:+.1%}"
    if loss["low"] is not None:
        told += f" ({100 * loss['low']:+.1f} to {100 * loss['high']:+.1f})"
    cells = [row["name"], f"{row['quality']:.4f}", told]
    cells += [f"{spent:.1f}" for spent in row.get("milliseconds", {}).values()]
    cells += [f"{row['memory_mb']:.0f}"] if memory and "memory_mb" in row else []
    return [*cells, f"{row['size_mb']:.1f}"]


def write_report(
    settings: CompressSettings,
    measure: str,
    rows: Sequence[Row],
    kept: Sequence[Row],
    chosen: tuple[Row, Row | None],
    folder: Path,
    device: str = "cpu",
) -> None:
    """`report.html`: quality against cost, and the tables."""
    best, small = chosen
    shape = f"{settings.shapes[0][0]} × {settings.shapes[0][1]}"
    whole = rows[0].latency / max(best.latency, 1e-9)
    page = Report(
        "Compression",
        f"{best.name} answers {whole:.1f} times as fast as the whole model and loses "
        f"{best.loss[0]:.2%} of {measure}, of {settings.largest_loss:.2%} allowed.",
    )
    box = page.section("Transformer")
    figure, axes = new_figure(height=3.6)
    for at, row in enumerate(sorted(rows, key=lambda row: row.latency)):
        picked = row is best
        axes.scatter(row.latency, row.quality.value, s=140 if picked else 50, zorder=3,
                     color="#0b7a75" if picked else "#8aa0ad")  # fmt: skip
        below = -16 * (at % 2)  # neighbours on one height would write over each other
        axes.annotate(row.name, (row.latency, row.quality.value), fontsize=8,
                      xytext=(6, 6 + below), textcoords="offset points")  # fmt: skip
    axes.axhline(
        rows[0].quality.value * (1 - settings.largest_loss), color="#b4472e", lw=1, ls="--"
    )
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    axes.margins(x=0.12, y=0.12)
    axes.set_xlabel(f"milliseconds a batch of {shape} tokens, threads: {settings.threads}")
    axes.set_ylabel(measure)
    box.plot(figure, "Below the broken line more is lost than is allowed. The chosen one is large.")
    dicts = [row.to_dict() for row in rows]
    box.table(headers(measure, dicts[0]), [cells(each) for each in dicts], [rows.index(best)])
    box.note(
        "Quality: on the validation fold, with the items' vectors made anew by the variant. "
        "Milliseconds: median, in a process of its own; memory: what opening and running it added."
    )
    if device != "cpu":
        box.note(
            "Milliseconds are those of the CPU. This machine serves on a GPU, which only what "
            "PyTorch runs makes use of: the others were not chosen from."
        )
    if kept:
        box = page.section("Vectors of items")
        dicts = [row.to_dict() for row in kept]
        strong = [kept.index(small)] if small is not None else []
        box.table(headers(measure, dicts[0]), [cells(each) for each in dicts], strong)
    page.write(folder / "report.html")
