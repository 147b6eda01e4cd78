"""Options of generation, shared by all functions that generate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from numbers import Integral, Real
from typing import Any, NamedTuple, TypedDict, cast

from hivellm_ort.errors import OptionError, OptionTypeError, argument
from hivellm_ort.grammar.grammar import Grammar

__all__ = [
    "GenerateOptions",
    "ScoreOptions",
    "check_answers",
    "check_flag",
    "check_names",
    "check_options",
    "check_prompt",
    "check_prompts",
    "check_requests",
    "check_text",
    "check_whole",
    "options_of_rows",
]


class GenerateOptions(TypedDict, total=False):
    """Keyword options of `Expert.generate` and similar functions. `None` means the default.

    Sampling options mean what they mean in transformers and vLLM; `SamplingParams` gives their ranges. The default
    is the value of the manifest, else the neutral value.

    In a batch, a list has one value per prompt and any other value applies to all prompts. `messages`, `prompt_ids`,
    `tools`, `stop`, `bad_words`, `choice` and `processors` are lists themselves: a flat list applies to all prompts,
    and a list of lists or None has one item per prompt.

    Attributes:
        schema: What the answer is about (DDL, graph schema, JSON schema), put into the system message.
        system: The system message, instead of the one made from the expert's capabilities.
        messages: Earlier turns in the form of OpenAI's API: `role`, `content` and, of tools, `tool_calls` and
            `tool_call_id`.
        prompt_ids: Tokens of the whole prompt. The model reads them unchanged, without a template. They exclude a
            prompt, `messages`, `system`, `schema` and `tools`. Reasoning is not separated from the answer.
        tools: JSON schemas of the functions that the model may call, for its chat template to show. None and an empty
            list are the same. Calls in the answer are in `result.tool_calls`.
        tool_choice: Which calls the answer may have: "none"; "auto", text or calls; "required", a call from the first
            token on; or `{"type": "function", "function": {"name": …}}`, a call of that tool. Names and arguments of
            calls are enforced. Default: "auto" if there are tools and no grammar. Under a grammar that is given, or
            the package's, the default enforces no calls; "auto" allows calls beside answers of that grammar.
        parallel_tool_calls: Whether an answer may have more than one call, if the model's format allows several.
            Default: True.
        enable_thinking: Whether a thinking model may think before it answers; off by default.
        temperature: 0 is greedy, the default.
        top_p: Nucleus in (0, 1].
        top_k: 0 is off.
        min_p: Least probability, as a share of the best token's; 0 is off.
        typical_p: Locally typical sampling; 1 is off.
        repetition_penalty: Divides the logits of tokens in prompt and answer; 1 is off.
        presence_penalty: Subtracted from the logits of generated tokens; 0 is off.
        frequency_penalty: Subtracted from the logits of generated tokens as often as each was; 0 is off.
        no_repeat_ngram_size: No n-gram of this size occurs twice; 0 is off.
        logit_bias: Added to the logits, by token id; -inf forbids a token.
        bad_words: Texts that the answer must not contain, in any position and any tokenization.
        min_tokens: Least tokens of the answer.
        max_tokens: Most tokens to generate. Default: the manifest's `max_new_tokens`, else 512, where the context has
            room.
        stop: A string or several. Each ends the answer and is not part of it. The manifest's stops apply too.
        include_stop: Whether the stop string is part of the answer.
        timeout: Most seconds from now on, waiting included. Then the answer ends as if cancelled: at most 0.25 s
            late, plus the time of the running graph operator.
        seed: Seed of the random numbers. The same request with the same seed gives the same tokens.
        logprobs: Return the log probability of every token, and of this many likeliest tokens, 0 to 20.
        grammar: The grammar of the answer: a GBNF text or a `Grammar`; True for the package's own, False for
            none. Default: the package's if its manifest says `use_grammar`. Give only one of `grammar`,
            `json_schema`, `regex` and `choice`.
        json_schema: The answer must be JSON of this schema, written with ", " and ": " on one line: a dict, JSON
            text, a Pydantic model class or a TypeAdapter; True is any JSON.
        lenient: Whether to leave out parts of a JSON schema that cannot be enforced, with a warning in the result.
            Default: they are refused.
        regex: The whole answer must match this regular expression.
        choice: The answer must be one of these texts.
        processors: Functions `(token_ids int64 [n], logits float32 [vocab]) -> logits float32 [vocab]`, called in
            order after the penalties. They may also change the logits in place and return None.
        prompt_lookup: Whether to guess tokens from the prompt and check several at once. Default: on in fp32,
            where the answer stays the same; off for quantised models, whose kernels compute several tokens slightly
            differently from one.
    """

    schema: str | None
    system: str | None
    messages: Sequence[Mapping[str, Any]] | None
    prompt_ids: Sequence[int] | None
    tools: Sequence[Mapping[str, Any]] | None
    tool_choice: str | Mapping[str, Any] | None
    parallel_tool_calls: bool | None
    enable_thinking: bool | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    typical_p: float | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    no_repeat_ngram_size: int | None
    logit_bias: Mapping[int, float] | None
    bad_words: Sequence[str] | None
    min_tokens: int | None
    max_tokens: int | None
    stop: str | Sequence[str] | None
    include_stop: bool | None
    timeout: float | None
    seed: int | None
    logprobs: int | None
    grammar: Grammar | str | bool | None
    json_schema: Any
    lenient: bool | None
    regex: str | None
    choice: Sequence[str] | None
    processors: Sequence[Callable[[Any, Any], Any]] | None
    prompt_lookup: bool | None


class ScoreOptions(TypedDict, total=False):
    """Keyword options of `Expert.score`; they mean what they mean in `GenerateOptions`."""

    schema: str | None
    system: str | None
    messages: Sequence[Mapping[str, Any]] | None
    prompt_ids: Sequence[int] | None
    tools: Sequence[Mapping[str, Any] | Callable[..., Any]] | None
    timeout: float | None


_MOST_ANSWERS = 1000  # each may take a forward pass

# Options whose values are lists, with the types of their items.
_LISTS: dict[str, type | tuple[type, ...]] = {
    "messages": Mapping,
    "tools": Mapping,
    "stop": str,
    "bad_words": str,
    "prompt_ids": Integral,
    "choice": str,
    "processors": Callable,  # type: ignore[dict-item]
}


class _Kind(NamedTuple):
    """The type of an option, and its description for messages."""

    types: type | tuple[type, ...]
    wanted: str
    boolean: bool = False  # whether True and False are allowed


_TEXT = _Kind(str, "a text (str)")
_FLAG = _Kind(bool, "True or False", boolean=True)
_NUMBER = _Kind(Real, "a number (float)")
_WHOLE = _Kind(Integral, "a whole number (int)")
_KINDS = {
    "schema": _TEXT,
    "system": _TEXT,
    "messages": _Kind(Sequence, "a list of turns, such as [{'role': 'user', 'content': 'Count all orders'}]"),
    "prompt_ids": _Kind(Sequence, "a list of token ids (int), such as [1, 42]"),
    # checked_tools checks tools.
    "tool_choice": _Kind((str, Mapping), "'none', 'auto', 'required' or a dict that names a function"),
    "parallel_tool_calls": _FLAG,
    "enable_thinking": _FLAG,
    "temperature": _NUMBER,
    "top_p": _NUMBER,
    "top_k": _WHOLE,
    "min_p": _NUMBER,
    "typical_p": _NUMBER,
    "repetition_penalty": _NUMBER,
    "presence_penalty": _NUMBER,
    "frequency_penalty": _NUMBER,
    "no_repeat_ngram_size": _WHOLE,
    "logit_bias": _Kind(Mapping, "a dict of token ids (int) and numbers, such as {42: -1.5}"),
    "bad_words": _Kind(Sequence, "a list of texts, such as ['DROP']"),
    "min_tokens": _WHOLE,
    "max_tokens": _WHOLE,
    "stop": _Kind(Sequence, "a text or a list of texts, such as [';']"),
    "include_stop": _FLAG,
    "timeout": _NUMBER,
    "seed": _WHOLE,
    "logprobs": _WHOLE,
    "grammar": _Kind((str, Grammar), "a GBNF text, a Grammar, True or False", boolean=True),
    # Grammar.json_schema checks schemas.
    "lenient": _FLAG,
    "regex": _TEXT,
    "choice": _Kind(Sequence, "a list of texts, such as ['yes', 'no']"),
    "processors": _Kind(Sequence, "a list of functions, such as [f]"),
    "prompt_lookup": _FLAG,
}


def check_options(options: Mapping[str, Any], of: type[Any] = GenerateOptions) -> None:
    """Check names and types. Ranges are checked where the values are used.

    Args:
        options: The options.
        of: The allowed options: `GenerateOptions` or `ScoreOptions`.

    Raises:
        OptionTypeError: An option does not exist, or a value has a wrong type.
    """
    check_names(options, of, "a score" if of is ScoreOptions else "a generation")
    for name, value in options.items():
        _check(name, value, argument(name))


def check_prompt(prompt: object, where: str = "prompt") -> None:
    """Check that a prompt is a text or None.

    Raises:
        OptionTypeError: It is not.
    """
    if prompt is not None and not isinstance(prompt, str):
        raise OptionTypeError(f"{where} is {_described(prompt)}: pass {_TEXT.wanted}")


def check_answers(answers: object) -> None:
    """Check the answers for `score`.

    Raises:
        OptionTypeError: They are not a list of texts.
        OptionError: The list is empty or too long, an answer is empty, or two are equal.
    """
    if isinstance(answers, str | bytes) or not isinstance(answers, Sequence):
        raise OptionTypeError(
            f"answers is {_described(answers)}: pass a list of texts, such as ['yes', 'no']"
        )
    for index, answer in enumerate(answers):
        if not isinstance(answer, str):
            raise OptionTypeError(f"answers[{index}] is {_described(answer)}: pass {_TEXT.wanted}")
        if not answer:
            raise OptionError(f"answers[{index}] is empty: an answer has at least one character")
    if not 1 <= len(answers) <= _MOST_ANSWERS:
        raise OptionError(f"answers has {len(answers)} texts: give 1 to {_MOST_ANSWERS}")
    if len(set(answers)) < len(answers):
        twice = next(answer for answer in answers if answers.count(answer) > 1)
        raise OptionError(f"answers has {twice!r} twice: give each answer once")


def check_prompts(prompts: object) -> None:
    """Check the prompts of a batch.

    Raises:
        OptionTypeError: They are not a list of texts.
    """
    if isinstance(prompts, str | bytes) or not isinstance(prompts, Sequence):
        raise OptionTypeError(
            f"prompts is {type(prompts).__name__}: pass a list of texts, such as ['Count all orders']"
        )
    for index, prompt in enumerate(prompts):
        check_prompt(prompt, f"prompts[{index}]")


def check_requests(requests: object) -> None:
    """Check the requests of a batch to several experts.

    Raises:
        OptionTypeError: They are not a list of pairs of texts.
    """
    wanted = "pass a list of pairs (expert, prompt), such as [('sql', 'Count all orders')]"
    if isinstance(requests, str | bytes) or not isinstance(requests, Sequence):
        raise OptionTypeError(f"requests is {type(requests).__name__}: {wanted}")
    for index, pair in enumerate(requests):
        if not isinstance(pair, tuple | list):
            raise OptionTypeError(f"requests[{index}] is {_described(pair)}: {wanted}")
        if len(pair) != 2:
            raise OptionTypeError(f"requests[{index}] has {len(pair)} parts and not two: {wanted}")
        name, prompt = pair
        if not isinstance(name, str):
            raise OptionTypeError(f"requests[{index}]: the expert is {_described(name)}: {wanted}")
        check_prompt(prompt, f"requests[{index}]: the prompt")


def check_names(options: Mapping[str, Any], of: type[Any], what: str) -> None:
    """Check that all options exist.

    Args:
        options: The options.
        of: The typed dict with the names.
        what: What the options are for, for the message.

    Raises:
        OptionTypeError: An option does not exist.
    """
    known = of.__annotations__
    for name in options.keys() - known.keys():
        near = get_close_matches(str(name), known, 1)
        hint = f"; did you mean {near[0]}?" if near else f"; see help(hivellm_ort.{of.__name__})"
        raise OptionTypeError(f"{name}: no option of {what}{hint}")


def check_flag(name: str, value: object) -> None:
    """Check that an option is True or False. Raises OptionTypeError."""
    if not isinstance(value, bool):
        raise OptionTypeError(f"{argument(name)} is {_described(value)}: pass {_FLAG.wanted}")


def check_text(name: str, value: object) -> None:
    """Check that an option is a text or None. Raises OptionTypeError."""
    if value is not None and not isinstance(value, str):
        raise OptionTypeError(f"{argument(name)} is {_described(value)}: pass {_TEXT.wanted}, or None")


def check_whole(name: str, value: object, least: int, most: int | None = None) -> None:
    """Check that an option is None or a whole number in a range.

    Args:
        name: The name of the option.
        value: Its value.
        least: The least number.
        most: The greatest number; None for no limit.

    Raises:
        OptionTypeError: The value is not a whole number.
        OptionError: The value is out of range.
    """
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise OptionTypeError(f"{argument(name)} is {_described(value)}: pass {_WHOLE.wanted}, or None")
    if value < least or (most is not None and value > most):
        upto = "" if most is None else f" to {most}"
        raise OptionError(f"{argument(name)} is {value}: it must be an integer from {least}{upto}, or None")


def options_of_rows(options: Mapping[str, Any], rows: int) -> list[GenerateOptions]:
    """Return the options of each row of a batch (see `GenerateOptions`).

    Raises:
        OptionError: A list and the batch differ in length.
        OptionTypeError: As `check_options`.
    """
    columns = {name: _column(name, value, rows) for name, value in options.items()}
    if not rows:
        check_options({name: value for name, value in options.items() if not isinstance(value, list)})
    return [cast(GenerateOptions, {name: column[i] for name, column in columns.items()}) for i in range(rows)]


def _column(name: str, value: Any, rows: int) -> Sequence[Any]:
    if not isinstance(value, list) or (name in _LISTS and not any(_is_of_one_row(one) for one in value)):
        check_options({name: value})
        return [value] * rows
    if len(value) != rows:
        raise OptionError(
            f"{name} is a list of {len(value)} values for a batch of {rows}: pass one for each prompt"
        )
    check_options({name: None})
    for index, one in enumerate(value):
        if name in _LISTS and not (_is_of_one_row(one) or (name == "stop" and isinstance(one, str))):
            raise OptionTypeError(
                f"{name}[{index}] is {type(one).__name__} beside lists: pass a list, or None, for each prompt"
            )
        _check(name, one, f"{name}[{index}]")
    return value


def _is_of_one_row(value: object) -> bool:
    return value is None or isinstance(value, list | tuple)


def _check(name: str, value: Any, where: str) -> None:
    kind = _KINDS.get(name)
    if value is None or kind is None:
        return
    sound = kind.boolean if isinstance(value, bool) else isinstance(value, kind.types)
    inner = _LISTS.get(name)
    if inner is not None and isinstance(value, str | bytes):
        sound = name == "stop" and isinstance(value, str)
    if not sound:
        raise OptionTypeError(f"{where} is {_described(value)}: pass {kind.wanted}")
    if inner is not None and not isinstance(value, str):
        for index, one in enumerate(value):
            if isinstance(one, bool) or not isinstance(one, inner):
                raise OptionTypeError(f"{where}[{index}] is {_described(one)}: pass {kind.wanted}")
    if name == "logit_bias":
        for token_id, bias in value.items():
            if isinstance(token_id, bool) or not isinstance(token_id, Integral):
                raise OptionTypeError(
                    f"{where}: the token id {token_id!r} is {_described(token_id)}, not int"
                )
            if isinstance(bias, bool) or not isinstance(bias, Real):
                raise OptionTypeError(f"{where}[{token_id}] is {_described(bias)}: pass {_NUMBER.wanted}")


def _described(value: object) -> str:
    """Return the type of a value, and the value itself if it is short."""
    shown = repr(value) if isinstance(value, str | int | float) else ""
    return f"{type(value).__name__} {shown}" if 0 < len(shown) <= 40 else type(value).__name__
