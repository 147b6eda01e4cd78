"""The decode loop: one step of all running generations at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TypeVar

from hivellm_ort.errors import InterruptedRunError
from hivellm_ort.grammar.matcher import fill_masks
from hivellm_ort.serving.generation import Generation, Step
from hivellm_ort.serving.row import Model, Row

__all__ = ["Loop"]

_StepT = TypeVar("_StepT", bound=Step | None)

# Up to this number of forced tokens per row are computed in steps of all rows. A separate pass for one row takes as
# long as a step of several rows.
_FEW_PER_ROW = 2


class Loop:
    """Runs generations on the rows of a model. Generations may start and end at any step.

    Each yielded step comes with its generation. The joined texts of a generation's steps are its answer. Only the
    last step has a `finish_reason` or an `error`. A failing generation ends alone, unless the model fails on a step
    of all rows.

    Args:
        model: The rows of the engine, all unused.
    """

    def __init__(self, model: Model):
        self._model = model
        self._rows: list[Row] = []
        self._again = False  # a step was interrupted and must be repeated

    @property
    def active(self) -> int:
        """Number of running generations."""
        return len(self._rows)

    def begin(self, generation: Generation) -> Iterator[tuple[Generation, Step]]:
        """Read the prompt into the next free row, and generate the first token."""
        row = Row(generation)
        index = len(self._rows)
        last: Step | None = None
        for step in _guarded(row, row.begin(self._model, index)):
            if step is None:
                # Cancelled rows end now: reading this prompt may take long. Their rows are freed after it.
                yield from self._end_cancelled()
            elif row.finished:
                last = step
            else:
                yield generation, step
        if row.started and not row.failed:
            # Requests with the same prefix can use it before this answer ends.
            self._model.save_prefix(index, row.token_ids)
        if not row.finished:
            self._rows.append(row)
        self._remove_finished()
        if last is not None:
            yield generation, last

    def step(self) -> Iterator[tuple[Generation, Step]]:
        """Generate the next token of every generation. A generation alone may get several."""
        self._again = True
        while self._again:
            self._again = False
            last: list[tuple[Generation, Step]] = []
            for generation, step in self._next_tokens():
                if step.last:
                    last.append((generation, step))
                else:
                    yield generation, step
            # When the end of an answer is reported, its row is free and its prefix is cached.
            self._remove_finished()
            yield from last

    def _next_tokens(self) -> Iterator[tuple[Generation, Step]]:
        rows, model = self._rows, self._model
        if len(rows) == 1:
            for step in _guarded(rows[0], rows[0].advance(model)):
                yield rows[0].generation, step
        elif rows:
            try:
                for index, row in enumerate(rows):
                    row.catch_up(model, index, _FEW_PER_ROW * len(rows))
                greedy_only = all(row.greedy_only for row in rows)
                logits = model.step([row.next_unread for row in rows], greedy=greedy_only)
            except InterruptedRunError:
                self._again = True  # repeat the step for the other rows
                yield from self._end_cancelled()
            except BaseException as error:  # the state of these rows is unknown
                for row in rows:
                    yield row.generation, row.fail(error)
            else:
                choosing = [row.generation.constraint for row in rows if row.chooses]
                # If one fails, `apply` computes each mask alone and raises the error of its row.
                with contextlib.suppress(BaseException):
                    fill_masks([constraint for constraint in choosing if constraint is not None])
                for row, scores in zip(rows, logits, strict=True):
                    for step in _guarded(row, row.read(scores)):
                        yield row.generation, step

    def _end_cancelled(self) -> Iterator[tuple[Generation, Step]]:
        """End the generations that were cancelled."""
        for row in self._rows:
            if not row.finished:
                for step in _guarded(row, row.end_if_cancelled()):
                    yield row.generation, step

    def _remove_finished(self) -> None:
        """Free the rows of finished generations. The rows in use stay the first ones."""
        rows = self._rows
        for index in reversed(range(len(rows))):
            if rows[index].finished:
                if not rows[index].failed:
                    self._model.save_prefix(index, rows[index].token_ids)
                last = len(rows) - 1
                if index != last:
                    self._model.move(last, index)
                    rows[index] = rows[last]
                rows.pop()


def _guarded(row: Row, steps: Iterator[_StepT]) -> Iterator[_StepT | Step]:
    """Yield the steps. An error of grammar, processor or model on this row becomes the last step."""
    step: _StepT | Step
    while not row.failed:
        try:
            step = next(steps)
        except StopIteration:
            return
        except BaseException as error:
            step = row.fail(error)
        # Outside `try`: closing this generator is not a failure of the row.
        yield step
