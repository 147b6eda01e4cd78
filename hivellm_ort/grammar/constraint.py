"""The interface between grammars and the decode loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["Constraint", "FloatArray"]

FloatArray: TypeAlias = npt.NDArray[np.float32]


class Constraint(Protocol):
    """The state of one answer under a grammar. Not thread-safe.

    End tokens and closing tokens of the request are allowed exactly when `complete`. They are never passed to
    `accept`, because the answer ends with them. Every method raises GrammarError after a limit of the grammar was
    reached.

    Attributes:
        complete: Whether the accepted tokens satisfy the grammar.
        finished: Whether it is complete and nothing can follow except an end token.
    """

    @property
    def complete(self) -> bool:
        """See above."""

    @property
    def finished(self) -> bool:
        """See above."""

    def apply(self, logits: FloatArray) -> FloatArray:
        """Return the logits with -inf for every forbidden token.

        Args:
            logits: float32 [vocab], as wide as the model's; not changed.

        Returns:
            float32 [vocab], an array of the constraint, valid until the next call.

        Raises:
            GrammarError: No token is allowed.
        """

    def accept(self, token_id: int) -> None:
        """Take the next token.

        Raises:
            GrammarError: The grammar does not allow it. The state is unchanged.
        """

    def forced_tokens(self) -> list[int]:
        """Return the tokens that must come next, in the usual tokenization; often none. Does not accept them."""

    def validate_tokens(self, token_ids: Sequence[int]) -> int:
        """Return how many of these tokens are allowed one after another. Does not change the state.

        Counting stops before an end token.
        """

    def rollback(self, count: int) -> None:
        """Take back the last `count` accepted tokens. `count` is at most the number of accepted tokens."""
