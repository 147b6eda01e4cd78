"""Constraints that llguidance enforces."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from functools import cache
from itertools import takewhile
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from hivellm_ort.errors import GrammarError
from hivellm_ort.grammar.constraint import Constraint, FloatArray
from hivellm_ort.grammar.failures import dead_end, run_failure

if TYPE_CHECKING:
    from llguidance import LLExecutor, LLMatcher

    from hivellm_ort.grammar.vocabulary import Vocabulary

__all__ = ["MatcherConstraint", "fill_masks"]

_Bytes = npt.NDArray[np.uint8]

# Upper bounds of 8 logits for each byte of a mask. A lookup takes the same time for every mask, a fifth of
# `numpy.where`.
_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
_BOUNDS = np.where(_BITS == 1, np.float32(np.inf), np.float32(-np.inf))


class MatcherConstraint:
    """The state of one answer under a grammar; see `Constraint`.

    Args:
        matcher: New, for this answer only.
        vocabulary: The vocabulary of the matcher.
        end_token_ids: Allowed exactly when the grammar is complete.
        closing_token_ids: Allowed when the grammar is complete, or where the grammar itself allows them.
        source: Source of the grammar, for messages.
    """

    def __init__(
        self,
        matcher: LLMatcher,
        vocabulary: Vocabulary,
        *,
        end_token_ids: Collection[int] = (),
        closing_token_ids: Collection[int] = (),
        source: str = "grammar",
    ) -> None:
        self.matcher = matcher
        self.vocabulary = vocabulary
        self._ends = frozenset(end for end in end_token_ids if 0 <= end < vocabulary.width)
        self._closing = frozenset(end for end in closing_token_ids if 0 <= end < vocabulary.width)
        self._source = source
        self._accepted = 0
        self._mask: _Bytes | None = None  # of the current state
        self._bounds: FloatArray | None = None

    @property
    def complete(self) -> bool:
        """Whether the accepted tokens satisfy the grammar."""
        return self.matcher.is_accepting()

    @property
    def finished(self) -> bool:
        """Whether the grammar is complete and nothing can follow."""
        return self.matcher.is_accepting() and self.matcher.is_stopped()

    def apply(self, logits: FloatArray) -> FloatArray:
        """Return the logits with -inf for every forbidden token; see `Constraint`."""
        if self._mask is None:
            fill_masks([self])
        mask = self.require_token()
        if self._bounds is None:
            self._bounds = np.empty((mask.size, 8), np.float32)
        # Every byte is a valid index; this mode avoids a copy.
        np.take(_BOUNDS, mask, axis=0, out=self._bounds, mode="clip")
        bounds: FloatArray = self._bounds.reshape(-1)[: self.vocabulary.width]
        return np.minimum(logits, bounds, out=bounds)

    def accept(self, token_id: int) -> None:
        """Take the next token; see `Constraint`."""
        if self.matcher.try_consume_tokens([token_id]) != 1:
            self._require_sound()
            raise GrammarError(f"{self._source}: the grammar does not allow the token {token_id} here")
        self._accepted += 1
        self._mask = None

    def forced_tokens(self) -> list[int]:
        """Return the tokens that must come next; see `Constraint`."""
        tokens = self.matcher.compute_ff_tokens()
        self._require_sound()
        # A grammar may name an end token, but only the loop may choose it.
        return list(takewhile(lambda token: token not in self._ends, tokens))

    def validate_tokens(self, token_ids: Sequence[int]) -> int:
        """Return how many of these tokens are allowed; see `Constraint`."""
        plain = list(takewhile(lambda token: token not in self._ends, token_ids))
        count = self.matcher.validate_tokens(plain)
        self._require_sound()
        return count

    def rollback(self, count: int) -> None:
        """Take back the last `count` accepted tokens; see `Constraint`."""
        if not 0 <= count <= self._accepted:
            raise ValueError(f"count is {count}: {self._accepted} tokens were accepted")
        if count == 0:
            return
        self.matcher.rollback(count)
        self._require_sound()
        self._accepted -= count
        self._mask = None

    def take_mask(self, mask: _Bytes) -> None:
        """Take the mask that llguidance computed for the current state, one bit per token, and complete it.

        If the parser failed there is no mask, and `apply` raises the error.
        """
        if self.matcher.is_error():
            return
        # Ids beyond the last token are forbidden, including llguidance's own end token.
        whole, rest = divmod(self.vocabulary.size, 8)
        mask[whole] &= (1 << rest) - 1
        mask[whole + 1 :] = 0
        complete = self.complete
        for end in self._ends:
            mask[end >> 3] &= 255 - (1 << (end & 7))
        if complete:
            for end in self._ends | self._closing:
                mask[end >> 3] |= 1 << (end & 7)
        self._mask = mask

    def require_token(self) -> _Bytes:
        """Return the mask of the current state, uint8 [bytes].

        Raises:
            GrammarError: It allows no token, or the parser failed.
        """
        self._require_sound()
        mask = self._mask
        if mask is None or not (mask.any() or self.complete):
            raise dead_end(self._source)
        return mask

    @property
    def known(self) -> bool:
        """Whether the mask of the current state was computed."""
        return self._mask is not None

    def _require_sound(self) -> None:
        """Raise GrammarError for a failed matcher, whose masks would allow only an end token."""
        if self.matcher.is_error():
            raise run_failure(self.matcher.get_error(), source=self._source)


def fill_masks(constraints: Iterable[Constraint]) -> None:
    """Compute the masks of several answers of one base in parallel, on threads without the GIL.

    Without this call, `apply` computes the mask. Errors are raised by `apply`. Other kinds of constraints are
    skipped.
    """
    unknown = [one for one in constraints if isinstance(one, MatcherConstraint) and not one.known]
    if not unknown:
        return
    words = -(-unknown[0].vocabulary.tokenizer.vocab_size // 32)
    masks = np.zeros((len(unknown), 4 * words), np.uint8)
    if len(unknown) == 1:
        unknown[0].matcher.unsafe_compute_mask_ptr(masks.ctypes.data, masks.nbytes)
    else:
        pairs = [(constraint.matcher, row) for row, constraint in enumerate(unknown)]
        _executor(os.getpid()).unsafe_compute_mask_ptr(pairs, masks.ctypes.data, 4 * words, len(unknown))
    for constraint, mask in zip(unknown, masks, strict=True):
        constraint.take_mask(mask)


@cache
def _executor(process: int) -> LLExecutor:
    """Return the thread pool of this process. A forked process has none of its parent's threads."""
    from llguidance import LLExecutor

    return LLExecutor()
