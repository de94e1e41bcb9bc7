"""A step of a short training in parts, more of them each time that memory runs out.

The parts of a step make the loss of the whole batch, so that nothing that is compared within it
gets fewer rivals. (Trainings that go through `loop` have micro-batches.)
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from raysys.errors import UserError
from raysys.text.training.precision import is_out_of_memory

log = logging.getLogger("raysys")


class MorePartsNeeded(UserError):  # noqa: N818  as `SmallerMicroBatches`
    """Memory ran out in one of several workers: all begin again, with more parts."""


class Parts:
    """In how many parts the steps of a training are computed; twice as many after each failure.

    Args:
        where: the learner, and the part of it.
        one: what a part holds at least, such as `one text`.
        mend: what to do where there is no memory for that.
        number: of parts, to begin with.
        alone: nobody else waits within the step.
    """

    def __init__(
        self, where: str, one: str, mend: str, *, number: int = 1, alone: bool = True
    ) -> None:
        self.number = number
        self._where, self._one, self._mend = where, one, mend
        self._alone = alone

    def compute(
        self,
        step: int,
        most: int,
        gradients: Callable[[int], Tensor],
        forget: Callable[[], None],
    ) -> Tensor:
        """What `gradients` gives: the loss of a step, gradients being where they belong.

        Args:
            step: from 1, to be told.
            most: parts that the batch can be cut into.
            gradients: given the number of parts; draws the same numbers from torch each time.
            forget: removes gradients of a try that failed.

        Raises:
            UserError: not enough memory for the smallest parts.
            MorePartsNeeded: memory ran out, and others wait.
        """
        drawn = torch.get_rng_state()
        on_device = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
        while True:
            try:
                return gradients(min(self.number, most))
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            # out of the handler: the error held every activation
            forget()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            if self.number >= most:
                raise UserError(
                    f"not enough memory for {self._one} at a time",
                    where=self._where,
                    mend=self._mend,
                )
            told = f"out of memory at step {step}"
            if not self._alone:
                raise MorePartsNeeded(told, where=self._where, mend=self._mend)
            self.number *= 2
            log.warning(
                "%s: %s: going on in %d parts a step, whose batch and loss stay what they are",
                *(self._where, told, self.number),
            )
            torch.set_rng_state(drawn)
            if on_device is not None:
                torch.cuda.set_rng_state(on_device)


@contextmanager
def out_of_memory_told(where: str = "", mend: str = "") -> Iterator[None]:
    """Memory that runs out in here is told as what a user can mend.

    Raises:
        UserError: memory ran out.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"memory ran out while training: {error}",
            where=where,
            mend=mend or "take a smaller batch_size, a smaller model, or fewer tokens",
        ) from error
