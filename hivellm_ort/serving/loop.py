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

# So many forced tokens per row of a batch go with the steps of all rows: one more row makes a step little longer, and
# a pass for the tokens of one row alone takes as long as a step of several.
_FEW_PER_ROW = 2


class Loop:
    """Runs generations on the rows of a model; they may come and go at any time.

    Every step that it yields comes with its generation. The texts of a generation's steps joined are its answer; its
    last step, and only it, has a `finish_reason` or an `error`. A generation that fails ends alone, unless the model
    fails on a step of all rows.

    Args:
        model: Rows of the engine, none of them in use.
    """

    def __init__(self, model: Model):
        self._model = model
        self._rows: list[Row] = []
        self._again = False  # whether the rows were to take a step, and did not

    @property
    def active(self) -> int:
        """How many generations are running."""
        return len(self._rows)

    def begin(self, generation: Generation) -> Iterator[tuple[Generation, Step]]:
        """Read the prompt into the next free row, and generate the first token."""
        row = Row(generation)
        index = len(self._rows)
        last: Step | None = None
        for step in _guarded(row, row.begin(self._model, index)):
            if step is None:
                # The others wait for this row, which may take for ever: theirs are given back when it has begun.
                yield from self._end_cancelled()
            elif row.finished:
                last = step
            else:
                yield generation, step
        if row.started and not row.failed:
            # Others may begin alike, and need not wait for the end of this answer.
            self._model.keep(index, row.token_ids)
        if not row.finished:
            self._rows.append(row)
        self._remove_finished()
        if last is not None:
            yield generation, last

    def step(self) -> Iterator[tuple[Generation, Step]]:
        """Generate the next token of every generation, of a single one perhaps several."""
        self._again = True
        while self._again:
            self._again = False
            last: list[tuple[Generation, Step]] = []
            for generation, step in self._next_tokens():
                if step.last:
                    last.append((generation, step))
                else:
                    yield generation, step
            # Whoever learns that an answer has ended may rely on its row being free, and its prefix kept.
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
                self._again = True  # the others take the step again at once
                yield from self._end_cancelled()
            except BaseException as error:  # nothing of these rows can be trusted any more
                for row in rows:
                    yield row.generation, row.fail(error)
            else:
                choosing = [row.generation.constraint for row in rows if row.chooses]
                # One of them failed: `apply` does it for each alone, and tells.
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
        """Free the rows of finished generations; the rows in use stay the first ones."""
        rows = self._rows
        for index in reversed(range(len(rows))):
            if rows[index].finished:
                if not rows[index].failed:
                    self._model.keep(index, rows[index].token_ids)
                last = len(rows) - 1
                if index != last:
                    self._model.move(last, index)
                    rows[index] = rows[last]
                rows.pop()


def _guarded(row: Row, steps: Iterator[_StepT]) -> Iterator[_StepT | Step]:
    """Yield the steps; what a grammar, a processor or the model raises on this row becomes the last of them."""
    step: _StepT | Step
    while not row.failed:
        try:
            step = next(steps)
        except StopIteration:
            return
        except BaseException as error:
            step = row.fail(error)
        # Not under that `try`: what closes this generator is no failure of the row.
        yield step
