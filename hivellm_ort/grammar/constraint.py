"""What a grammar is to the decode loop: it says which tokens may come next, and takes the one that came."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["Constraint", "FloatArray"]

FloatArray: TypeAlias = npt.NDArray[np.float32]


class Constraint(Protocol):
    """The state of one answer under a grammar. Not for use by several threads at a time.

    End tokens, those of the request and its closing ones, are allowed exactly when `complete`; they are never
    accepted, because the answer ends there. Every method raises GrammarError once a limit of the grammar is reached.

    Attributes:
        complete: What was accepted satisfies the grammar.
        finished: Complete, and nothing can follow; only an end token is allowed.
    """

    @property
    def complete(self) -> bool:
        """See above."""

    @property
    def finished(self) -> bool:
        """See above."""

    def apply(self, logits: FloatArray) -> FloatArray:
        """Return the logits with -inf for every token that must not come next.

        Args:
            logits: float32 [vocab], as wide as the model's; left as it is.

        Returns:
            float32 [vocab], the constraint's own array: valid until the next call.

        Raises:
            GrammarError: If no token may come next.
        """

    def accept(self, token_id: int) -> None:
        """Take the next token.

        Raises:
            GrammarError: If the grammar does not allow it. The state is unchanged then.
        """

    def forced_tokens(self) -> list[int]:
        """Return the tokens that must come next, as the tokenizer writes their text; often none. Accepts nothing."""

    def validate_tokens(self, token_ids: Sequence[int]) -> int:
        """Return how many of these tokens could come next, one after another. Changes nothing.

        The count ends before an end token.
        """

    def rollback(self, count: int) -> None:
        """Take back the last `count` accepted tokens, as many as were accepted at most."""
