"""One run of a session, and its errors."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hivellm_ort.engine.providers import import_onnxruntime
from hivellm_ort.engine.watchdog import Watchdog
from hivellm_ort.errors import InferenceError, InterruptedRunError, OutOfMemoryError

__all__ = ["NOT_RECORDED", "run_bound", "run_options", "tokens_of_vocabulary"]

NOT_RECORDED = -1
"""Number of a run that is neither recorded nor repeated."""


def run_options(recording: int = NOT_RECORDED) -> Any:
    """ONNX Runtime's options of a run.

    Args:
        recording: its number, for a provider that records runs and repeats them: the same for all runs that are the
            same but for the values of what is bound.
    """
    options = import_onnxruntime().RunOptions()
    options.log_severity_level = 4  # what it would print is in the error that it raises
    # Also for the CPU: ONNX Runtime asks for the number in every run, and where there is none that takes 40 us.
    options.add_run_config_entry("gpu_graph_id", str(recording))
    return options


def run_bound(
    session: Any,
    binding: Any,
    options: Any,
    watchdog: Watchdog | None = None,
    *,
    size: tuple[int, int],
    position: int,
) -> None:
    """Run what is bound.

    Args:
        session: of ONNX Runtime.
        binding: an IOBinding of it.
        options: of the run.
        watchdog: who may end it; None for nobody.
        size: rows and tokens per row, for messages.
        position: tokens of the longest row, for messages.

    Raises:
        InterruptedRunError: it was ended.
        OutOfMemoryError: it cannot allocate.
        InferenceError: it fails otherwise.
    """
    try:
        if watchdog is None:
            session.run_with_iobinding(binding, options)
        else:
            watchdog.run(session, binding, options)
    except InterruptedRunError:
        raise
    except Exception as error:  # ONNX Runtime raises a dozen types of its own
        kind = OutOfMemoryError if "allocat" in str(error) else InferenceError
        raise kind(
            f"the model failed on {size[0]} x {size[1]} tokens at position {position}: {error}"
        ) from error


def tokens_of_vocabulary(token_ids: NDArray[np.int64], vocab_size: int) -> NDArray[np.int64]:
    """Tokens that a graph chose, -1 in place of what is none.

    Where no logit is greater than all others, CUDA's ArgMax has been seen to give 2147483647.
    """
    return np.where((token_ids < 0) | (token_ids >= vocab_size), np.int64(-1), token_ids)
