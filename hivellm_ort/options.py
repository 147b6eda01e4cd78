"""The options of one generation, the same for every way of asking for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict, cast

from hivellm_ort.grammar.grammar import Grammar

__all__ = ["GenerateOptions", "check_options", "options_of_rows"]


class GenerateOptions(TypedDict, total=False):
    """Keyword options of `Expert.generate` and its relatives; `None` is the same as leaving one out.

    Sampling options mean what they mean in transformers and vLLM; `SamplingParams` gives their ranges. Where nothing
    is said the manifest's value holds, and where it has none the neutral one.
    """

    schema: str | None
    """What the answer is about (DDL, graph schema, JSON schema), put into the system message."""
    system: str | None
    """The system message, instead of the one made from the expert's capabilities."""
    messages: Sequence[Mapping[str, str]] | None
    """Earlier turns, `role` and `content` each."""
    enable_thinking: bool | None
    """Whether a thinking model may think before it answers; off by default."""
    temperature: float | None
    """0 is greedy, the default."""
    top_p: float | None
    """Nucleus in (0, 1]."""
    top_k: int | None
    """0 is off."""
    min_p: float | None
    """Least probability, as a share of the best token's; 0 is off."""
    typical_p: float | None
    """Locally typical sampling; 1 is off."""
    repetition_penalty: float | None
    """Divides the logits of tokens in prompt and answer; 1 is off."""
    presence_penalty: float | None
    """Subtracted from the logits of generated tokens; 0 is off."""
    frequency_penalty: float | None
    """Subtracted from the logits of generated tokens as often as each was; 0 is off."""
    no_repeat_ngram_size: int | None
    """No run of so many tokens twice; 0 is off."""
    logit_bias: Mapping[int, float] | None
    """Added to the logits, by token id; -inf forbids a token."""
    bad_words: Sequence[str] | None
    """Words that the answer must not hold."""
    min_tokens: int | None
    """No end of the answer before so many tokens."""
    max_tokens: int | None
    """Most tokens to generate. Default: the manifest's `max_new_tokens`, else 512, where the context has room."""
    stop: str | Sequence[str] | None
    """Strings that end the answer and are not part of it, beside those of the manifest."""
    include_stop: bool | None
    """Whether such a string is part of the answer after all."""
    timeout: float | None
    """Most seconds from now on, waiting included; then the answer ends as if cancelled."""
    seed: int | None
    """Of the random numbers; the same request with the same seed gives the same tokens."""
    logprobs: int | None
    """Give the log probability of every token, and of so many of the likeliest in its place, 0 to 20."""
    grammar: Grammar | str | bool | None
    """What the answer must look like: a GBNF text or a `Grammar`; True for the package's own, False for none.
    Default: the package's, where its manifest says `use_grammar`. Of this and the next three give only one."""
    json_schema: Any
    """The answer must be JSON of this schema, written with ", " and ": " on one line: a dict, JSON text, a Pydantic
    model class or a TypeAdapter; True is any JSON."""
    lenient: bool | None
    """Whether what of a JSON schema cannot be enforced is left out, with a warning in the result. Default: it is
    refused."""
    regex: str | None
    """The answer must match this regular expression from its beginning to its end."""
    choice: Sequence[str] | None
    """The answer must be one of these texts."""
    processors: Sequence[Callable[[Any, Any], Any]] | None
    """Functions `(token_ids int64 [n], logits float32 [vocab]) -> logits`, called in order after the penalties."""
    prompt_lookup: bool | None
    """Whether to guess tokens from the prompt and check several at once. In fp32 the answer is the same, and it is on
    by default; quantised kernels compute several tokens a little differently from one, and it is off."""


# A value of these is a list itself.
_LISTS: dict[str, type | tuple[type, ...]] = {
    "messages": Mapping,
    "stop": (),
    "bad_words": str,
    "choice": str,
    "processors": Callable,  # type: ignore[dict-item]
}


def check_options(options: Mapping[str, Any]) -> None:
    """Raise TypeError for a name that is no option."""
    unknown = sorted(options.keys() - GenerateOptions.__annotations__.keys())
    if unknown:
        raise TypeError(f"{', '.join(unknown)}: no option of a generation; see hivellm_ort.GenerateOptions")


def options_of_rows(options: Mapping[str, Any], rows: int) -> list[GenerateOptions]:
    """The options of each row of a batch.

    A list has one value per row, any other value holds for every row. Of an option whose value is a list itself
    (`messages`, `bad_words`, `processors`) a list of lists has one per row. A list of as many stop strings as there
    are rows has one per row; one of another length, or a tuple, holds for every row.

    Raises:
        ValueError: a list has another length than the batch.
        TypeError: as `check_options`.
    """
    check_options(options)
    columns = {name: _column(name, value, rows) for name, value in options.items()}
    return [cast(GenerateOptions, {name: column[i] for name, column in columns.items()}) for i in range(rows)]


def _column(name: str, value: Any, rows: int) -> Sequence[Any]:
    inner = _LISTS.get(name)
    if not isinstance(value, list) or (inner and value and isinstance(value[0], inner)):
        return [value] * rows
    if len(value) == rows:
        return value
    if inner is not None and all(isinstance(one, str) for one in value):
        return [value] * rows
    raise ValueError(f"{name} is a list of {len(value)} values for a batch of {rows}")
