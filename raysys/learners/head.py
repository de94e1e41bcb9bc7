"""The head on the two towers: a small network over features and text vectors, fitted listwise.

The towers say what fits a user's taste; when it is due, what it costs and how it sells they cannot
know. The head reads both, "wide and deep" (Cheng et al. 2016, arXiv:1606.07792), and being no tree
it errs elsewhere than trees do. The loss is the top-one cross-entropy of ListNet (Cao et al.,
ICML 2007). Scoring is plain numpy: a replica needs no torch for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
from pydantic import Field

from raysys.config import Settings
from raysys.features.batch import Batch
from raysys.features.negatives import inverse_weights
from raysys.learners.quantile_scale import Scale
from raysys.learners.validation import chosen_features
from raysys.storage import CheckpointFolder

if TYPE_CHECKING:
    import torch

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]

_WHERE: Final = "two_tower: head"
_SMALLER: Final = "take a smaller head.width, head.vector_size or head.batch_size"


class HeadSettings(Settings):
    """The network and how it is fitted.

    Attributes:
        width: of both hidden layers.
        vector_size: what a text vector is projected to.
        dropout: share of hidden values left out in each step.
        epochs: how often every request comes up.
        batch_size: requests a step and worker.
        learning_rate: at its highest.
        weight_decay: of the weights.
        candidates: at most so many of a request, all that were wanted among them; 0: all.
        correct_sampling: a negative that was drawn stands for all that could have been: its share
            of the softmax's sum is divided by its probability (Bengio and Senécal 2008, eq. 4).
        exclude: names or patterns of features not to read.
    """

    width: int = Field(128, ge=1, le=4096)
    vector_size: int = Field(48, ge=1, le=1024)
    dropout: float = Field(0.2, ge=0, lt=1)
    epochs: float = Field(6, gt=0)
    batch_size: int = Field(32, ge=1)
    learning_rate: float = Field(4e-3, gt=0)
    weight_decay: float = Field(0.05, ge=0)
    candidates: int = Field(60, ge=0)
    correct_sampling: bool = True
    exclude: tuple[str, ...] = ()

    def chosen(self, names: Sequence[str]) -> tuple[str, ...]:
        """Those features that are read.

        Raises:
            UserError: a pattern that matches nothing, or nothing is left.
        """
        return chosen_features(names, (), self.exclude, where="head")

    def read(self, batch: Batch) -> Batch:
        """The batch with those features alone; see `chosen`."""
        names = self.chosen(batch.names)
        return replace(batch, names=names, features=batch.columns(names))


@dataclass(frozen=True)
class Head:
    """A fitted head; plain arrays.

    Attributes:
        requires: names of the features it reads; the towers' score comes after them.
        scale: of these columns.
        center: float32[d], mean of the text vectors when fitted.
        project: float32[p, d], of centred vectors.
        layers: weights float32[out, in] and biases float32[out] of the network.
    """

    requires: tuple[str, ...]
    scale: Scale
    center: Float32
    project: Float32
    layers: tuple[tuple[Float32, Float32], ...]

    def projected(self, vectors: Float32) -> Float32:
        """What the network sees of text vectors: float32[n, d] -> float32[n, p]."""
        return standard(vectors, self.center) @ self.project.T

    def score(self, columns: Float32, items: Float32, users: Float32) -> Float32:
        """Scores float32[n].

        Args:
            columns: float32[n, f + 1], the features and the towers' score.
            items: float32[n, p], projected vectors of the candidates.
            users: float32[n, p], mean of the projected vectors of each row's history.
        """
        values = np.concatenate([self.scale(columns), items, items * users], axis=1)
        for weight, bias in self.layers[:-1]:
            values = values @ weight.T
            values += bias
            gate = np.maximum(values, -60)
            np.negative(gate, out=gate)
            np.exp(gate, out=gate)
            gate += 1
            values /= gate  # SiLU
        weight, bias = self.layers[-1]
        return (values @ weight.T + bias)[:, 0].astype(np.float32)

    def contributions(
        self, columns: Float32, items: Float32, users: Float32, steps: int = 16
    ) -> npt.NDArray[np.float64]:
        """What each column of float32[n, f], the text, and text by history add: float64[n, f + 2].

        Integrated gradients (Sundararajan, Taly & Yan 2017) from an item in the middle of every
        column with the mean text; arguments as in `score`.
        """
        scaled = self.scale(columns)
        values = np.concatenate([scaled, items, items * users], axis=1).astype(np.float64)
        slope = np.zeros_like(values)
        for step in range(steps):
            slope += self._slope(values * ((step + 0.5) / steps))
        parts = values * slope / steps
        width, size = columns.shape[1], items.shape[1]
        return np.concatenate(
            [
                parts[:, :width] + parts[:, width : 2 * width],
                parts[:, 2 * width : 2 * width + size].sum(axis=1, keepdims=True),
                parts[:, 2 * width + size :].sum(axis=1, keepdims=True),
            ],
            axis=1,
        )

    def _slope(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Gradient of the score by what the network reads: float64[n, inputs]."""
        slopes = []
        for weight, bias in self.layers[:-1]:
            values = values @ weight.T + bias
            sigmoid = 1 / (1 + np.exp(-np.maximum(values, -60)))
            slopes.append(sigmoid * (1 + values * (1 - sigmoid)))
            values = values * sigmoid
        slope = np.broadcast_to(self.layers[-1][0][0], values.shape)
        for (weight, _), inner in zip(self.layers[-2::-1], slopes[::-1], strict=True):
            slope = (slope * inner) @ weight
        return slope

    def arrays(self) -> dict[str, Float32]:
        """Everything but the names, for safetensors."""
        found = {
            "head.knots": np.concatenate(self.scale.knots),
            "head.counts": np.array([len(knots) for knots in self.scale.knots], np.float32),
            "head.center": self.center,
            "head.project": self.project,
        }
        for at, (weight, bias) in enumerate(self.layers):
            found |= {f"head.{at}.weight": weight, f"head.{at}.bias": bias}
        return found

    @classmethod
    def of(cls, requires: tuple[str, ...], arrays: Mapping[str, Float32]) -> Head:
        """What `arrays` gave, as a head again."""
        ends = np.cumsum(arrays["head.counts"]).astype(int)[:-1]
        layers: list[tuple[Float32, Float32]] = []
        while f"head.{len(layers)}.weight" in arrays:
            at = len(layers)
            layers.append((arrays[f"head.{at}.weight"], arrays[f"head.{at}.bias"]))
        scale = Scale(tuple(np.split(arrays["head.knots"], ends)))
        return cls(requires, scale, arrays["head.center"], arrays["head.project"], tuple(layers))


def standard(vectors: Float32, center: Float32) -> Float32:
    """Unit vectors float32[n, d] centred."""
    return vectors - center


def fit_head(
    batch: Batch,
    tower: Float32,
    codes: npt.NDArray[np.int32],
    vectors: Float32,
    users: Float32,
    center: Float32,
    settings: HeadSettings,
    *,
    steps: int,
    seed: int,
    device: Any,
    wrap: Callable[[Any], Any] | None = None,
    after_step: Callable[[int, Callable[[], Head]], None] | None = None,
    checkpoint: CheckpointFolder | None = None,
    parts: int = 1,
) -> Head:
    """A head that ranks the wanted candidates of each request first.

    Where memory runs out a step goes on in parts; its batch and loss stay what they are.

    Args:
        batch: labelled rows of requests that have something wanted.
        tower: float32[n], the towers' score of each row.
        codes: int32[n], the text of each row.
        vectors: float32[n_texts, d], centred, see `standard`.
        users: float32[r, d], mean centred vector of each request's history.
        center: float32[d], what was taken off.
        settings: see `HeadSettings`.
        steps: of training, the same in every worker.
        seed: of weights, order and dropout.
        device: to run on.
        wrap: makes the module a distributed one.
        after_step: told the step (from 1) and what gives the head as it stands.
        checkpoint: where the training leaves its state, and takes it up from, alone.
        parts: of a step, to begin with.

    Raises:
        UserError: a loss, gradients or weights that are no numbers; not enough memory for one row.
        MorePartsNeeded: memory ran out in one of several workers.
    """
    import torch
    from torch import nn

    from raysys.learners.head_network import HeadNetwork, whitening
    from raysys.text.training.astray import require_finite, require_finite_weights
    from raysys.text.training.parts import Parts
    from raysys.text.training.resuming import resumed, write_state

    assert batch.label is not None and batch.weight is not None
    columns = np.concatenate([batch.features, tower[:, None]], axis=1)
    scale = _agreed(Scale.fit(columns, seed), device)
    wide = torch.from_numpy(scale(columns))
    of_text, of_user = torch.from_numpy(vectors).to(device), torch.from_numpy(users).to(device)
    gain = batch.label * batch.weight
    stands_for = _stands_for(batch) if settings.correct_sampling else None
    torch.manual_seed(seed)
    project = whitening(vectors, settings.vector_size)
    network = HeadNetwork(wide.shape[1], project, settings.width, settings.dropout)
    network.to(device)
    module = wrap(network) if wrap else network
    optimiser = torch.optim.AdamW(
        module.parameters(), settings.learning_rate, weight_decay=settings.weight_decay, fused=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, settings.learning_rate, total_steps=steps + 1, pct_start=0.1
    )
    network.train()

    def as_it_stands() -> Head:
        state = {name: each.detach().cpu().numpy() for name, each in network.state_dict().items()}
        linear = sorted({name.rsplit(".", 1)[0] for name in state if name.startswith("body.")})
        layers = [(state[f"{name}.weight"].copy(), state[f"{name}.bias"].copy()) for name in linear]
        project = state["project.weight"].copy()
        return Head(batch.names, scale, center, project, tuple(layers))

    def there(values: npt.NDArray[Any]) -> Any:
        return torch.from_numpy(values).to(device)

    def gradients(parts: int, chosen: Int64) -> torch.Tensor:
        """Of some requests; their loss."""
        network.parts = parts
        sizes = batch.sizes[chosen]
        row = np.repeat(np.arange(len(chosen)), sizes)
        place = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        rows = batch.offsets[chosen][row] + place
        at = there(row), there(place)
        texts, text = np.unique(codes[rows].astype(np.int64), return_inverse=True)
        items, mine = of_text[there(texts)], of_user[there(chosen)]
        scores = module(wide[torch.from_numpy(rows)].to(device), items, there(text), mine, at[0])
        shape = (len(chosen), int(sizes.max()))
        if stands_for is not None:
            scores = scores + there(stands_for[rows])
        listed = torch.full(shape, -1e9, device=device).index_put(at, scores)
        wanted = torch.zeros(shape, device=device).index_put(at, there(gain[rows]))
        share = wanted / wanted.sum(1, keepdim=True)
        loss = -(share * torch.log_softmax(listed, 1)).sum(1).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    rng = np.random.default_rng(seed)
    queue = np.empty(0, dtype=np.int64)
    memory = Parts(_WHERE, "one row", _SMALLER, number=parts, alone=wrap is None)
    done = resumed(checkpoint, network, optimiser, schedule)
    for step in range(1, steps + 1):
        if len(queue) < min(settings.batch_size, batch.n_requests):
            queue = np.concatenate([queue, rng.permutation(batch.n_requests)])
        chosen, queue = queue[: settings.batch_size], queue[settings.batch_size :]
        if step <= done:
            continue
        optimiser.zero_grad(set_to_none=True)
        n_rows = int(batch.sizes[chosen].sum())
        of_chosen = partial(gradients, chosen=chosen)
        loss = memory.compute(step, n_rows, of_chosen, optimiser.zero_grad)
        norm = nn.utils.clip_grad_norm_(module.parameters(), 5.0)
        require_finite(
            *(float(loss), float(norm), step, steps, network, optimiser, checkpoint),
            where=_WHERE,
            rate="head.learning_rate",
        )
        optimiser.step()
        schedule.step()
        if after_step is not None:
            after_step(step, as_it_stands)
        if checkpoint is not None and (checkpoint.due(step) or step == steps):
            write_state(checkpoint, step, network, optimiser)
    require_finite_weights(network, steps, where=_WHERE, rate="head.learning_rate")
    return as_it_stands()


def _stands_for(batch: Batch) -> Float32 | None:
    """What the softmax adds to each row's score: the logarithm of how many rows it stands for.

    What was wanted is there for certain, so it stands for itself: float32[n], ≥ 0. None where
    nothing was drawn.
    """
    assert batch.label is not None
    drawn = batch.sampling_probability
    if drawn is None or (drawn >= 1).all():
        return None
    many = np.where(batch.label > 0, np.float32(1), inverse_weights(drawn.astype(np.float64)))
    return np.log(many).astype(np.float32)


def _agreed(scale: Scale, device: Any) -> Scale:
    """The first worker's, in all of them: they train one network."""
    import torch.distributed as group

    if not (group.is_available() and group.is_initialized() and group.get_world_size() > 1):
        return scale
    box = [scale]
    group.broadcast_object_list(box, src=0, device=device)
    return box[0]
