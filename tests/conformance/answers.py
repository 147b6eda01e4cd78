"""Lines whose outcome a model gives: what is asked, without the answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

__all__ = ["answer_lines"]

Line = dict[str, Any]

_EXPERTS = {
    "lora": "LoRA",
    "rslora": "rank-stabilised LoRA",
    "dora": "DoRA on three modules a layer",
    "adalora": "AdaLoRA",
    "ia3": "IA3",
    "sql": "a signed package",
    "json": "DoRA on every module",
    "merged": "DoRA folded into the base",
    "lokr": "LoKr folded into the base",
    "short": "a llama with scaled rotary embeddings",
    "windowed": "a mistral with a sliding window",
    "thinking": "a qwen2 with biases",
    "reference": "PEFT's files, prepared when they are loaded",
}
_PROMPTS = ("select the users", "count", "Größe, 東京 🙂", "where x = 1\nand y = 2", "0")


def answer_lines() -> dict[str, list[Line]]:
    """Lines by file, without `expect` and `error`."""
    return {
        "generate": [*_greedy(), *_penalties(), *_ends()],
        "sampling": list(_sampling()),
        "stops": list(_stops()),
        "constrained": list(_constrained()),
        "batches": list(_batches()),
        "streams": list(_streams()),
        "thinking": list(_thinking()),
        "tools": list(_tools()),
        "scores": list(_scores()),
    }


def _line(call: str, about: str, package: str, prompt: Any = None, **fields: Any) -> Line:
    options = fields.pop("options", {})
    line = {"about": about, "packages": {package: f"{package}.expert"}, "call": call}
    if prompt is not None:
        line["prompt"] = prompt
    line |= fields
    return {**line, "options": options} if options else line


def _greedy() -> Iterator[Line]:
    for package, what in _EXPERTS.items():
        for number, prompt in enumerate(_PROMPTS[:3]):
            options = {"temperature": 0, "max_tokens": 16 + 8 * number}
            yield _line("generate", f"Greedy answer of {what}.", package, prompt, options=options)
    for package in ("lora", "dora", "short", "windowed", "thinking"):
        options = {"temperature": 0, "max_tokens": 6, "logprobs": 3}
        yield _line(
            "generate",
            "Log probabilities of the tokens and of the likeliest.",
            package,
            "count",
            options=options,
        )
    long = {"temperature": 0, "max_tokens": 100}
    yield _line(
        "generate", "An answer that is longer than the sliding window.", "windowed", "zzz", options=long
    )
    yield _line(
        "generate",
        "A long answer.",
        "lora",
        "a list of 7 cities, sorted",
        options={**long, "max_tokens": 300},
    )
    prompt = "select name from users where age > 30 " * 8
    yield _line("generate", "A long prompt.", "dora", prompt, options={"temperature": 0, "max_tokens": 12})
    yield _line(
        "generate",
        "Without max_tokens the context ends the answer.",
        "short",
        "x",
        options={"temperature": 0},
    )


def _penalties() -> Iterator[Line]:
    common = {"temperature": 0, "max_tokens": 24}
    for about, options in (
        ("A penalty on tokens of prompt and answer.", {"repetition_penalty": 1.3}),
        ("A penalty below 1 favours them.", {"repetition_penalty": 0.8}),
        ("A penalty on generated tokens.", {"presence_penalty": 1.5}),
        ("A penalty on generated tokens, as often as each came.", {"frequency_penalty": 0.7}),
        ("A negative penalty favours them.", {"frequency_penalty": -0.5}),
        ("No two tokens in a row twice.", {"no_repeat_ngram_size": 2}),
        ("No token twice.", {"no_repeat_ngram_size": 1}),
        ("A bias on two tokens.", {"logit_bias": {"40": 2.5, "41": -3.0}}),
        (
            "All of them together.",
            {"repetition_penalty": 1.1, "presence_penalty": 0.5, "no_repeat_ngram_size": 3},
        ),
    ):
        yield _line("generate", about, "lora", _PROMPTS[0], options={**common, **options})
    words = {**common, "bad_words": ["e", "sel"]}
    yield _line("generate", "Texts that the answer must not hold.", "lora", _PROMPTS[0], options=words)


def _ends() -> Iterator[Line]:
    likely = {"2": 6.0}
    for about, options in (
        ("A likely end token ends the answer.", {"logit_bias": likely, "max_tokens": 40}),
        ("No end before so many tokens.", {"logit_bias": likely, "max_tokens": 40, "min_tokens": 7}),
        ("An end token as the first.", {"logit_bias": {"2": 1000.0}, "max_tokens": 5}),
        ("One token.", {"max_tokens": 1}),
    ):
        yield _line("generate", about, "lora", "count", options={"temperature": 0, **options})


def _sampling() -> Iterator[Line]:
    settings: list[tuple[str, dict[str, Any]]] = [
        ("Temperature alone.", {"temperature": 1.0}),
        ("A low temperature.", {"temperature": 0.3}),
        ("A high temperature.", {"temperature": 2.5}),
        ("The nucleus of 80 %.", {"temperature": 1.0, "top_p": 0.8}),
        ("The 5 best.", {"temperature": 1.2, "top_k": 5}),
        ("The best alone.", {"temperature": 1.2, "top_k": 1}),
        ("A least share of the best token's.", {"temperature": 1.5, "min_p": 0.2}),
        ("Locally typical sampling.", {"temperature": 1.0, "typical_p": 0.6}),
        (
            "All filters together.",
            {"temperature": 0.9, "top_k": 40, "top_p": 0.9, "min_p": 0.02, "typical_p": 0.95},
        ),
        (
            "With penalties.",
            {"temperature": 0.8, "top_p": 0.95, "repetition_penalty": 1.2, "frequency_penalty": 0.3},
        ),
    ]
    for about, options in settings:
        for package, seed in (("lora", 0), ("dora", 7), ("thinking", 2**40 + 1)):
            yield _line(
                "generate",
                f"Seeded sampling. {about}",
                package,
                _PROMPTS[3],
                options={**options, "seed": seed, "max_tokens": 20},
            )
    options = {"temperature": 1.0, "seed": 3, "max_tokens": 5, "logprobs": 2}
    yield _line(
        "generate",
        "Log probabilities are the model's own, before the temperature.",
        "lora",
        "0",
        options=options,
    )


def _stops() -> Iterator[Line]:
    # The greedy answer of `lora` to this prompt is cut at texts of its own: the maker replaces {begin:end}.
    common = {"temperature": 0, "max_tokens": 40}
    for begin, end in ((0, 1), (3, 4), (5, 8), (9, 14), (17, 18)):
        for include in (False, True):
            options = {**common, "stop": [f"{{{begin}:{end}}}"], "include_stop": include}
            about = "A stop that is part of the text." if include else "The text ends where the stop begins."
            yield _line("generate", about, "lora", _PROMPTS[0], options=options)
    several = {**common, "stop": ["never there", "{12:14}", "{6:8}"]}
    yield _line("generate", "The first of several stops in the text.", "lora", _PROMPTS[0], options=several)
    yield _line(
        "generate", "A stop that never comes.", "lora", _PROMPTS[0], options={**common, "stop": "never there"}
    )
    yield _line(
        "stream",
        "What may be the beginning of a stop is held back.",
        "lora",
        _PROMPTS[0],
        options={**common, "stop": "{9:14}", "prompt_lookup": False},
    )


_ITEM = {
    "type": "object",
    "properties": {"id": {"type": "integer"}, "name": {"enum": ["kettle", "cup"]}},
    "required": ["id", "name"],
    "additionalProperties": False,
}


def _constrained() -> Iterator[Line]:
    common = {"temperature": 0, "max_tokens": 60}
    cases: list[tuple[str, dict[str, Any]]] = [
        ("GBNF: letters, and an end.", {"grammar": 'root ::= [a-d]+ "."'}),
        ("GBNF: a sequence with a choice.", {"grammar": 'root ::= "SELECT " ("a" | "b" | "*") " FROM t;"'}),
        ("GBNF: only one text.", {"grammar": 'root ::= "the only answer"'}),
        ("GBNF: rules with repetition.", {"grammar": 'root ::= item (", " item){2,3}\nitem ::= [0-9]{1,3}'}),
        ("GBNF: left recursion.", {"grammar": 'root ::= sum\nsum ::= sum "+" [0-9] | [0-9]'}),
        ("GBNF: characters beyond ASCII.", {"grammar": "root ::= [äöüß東]{3}"}),
        ("A regular expression.", {"regex": "[0-9]{4}-[0-9]{2}-[0-9]{2}"}),
        ("A regular expression with a choice.", {"regex": "(yes|no|maybe)!?"}),
        ("A regular expression for a number.", {"regex": r"-?\d+\.\d{2}"}),
        ("One of two texts.", {"choice": ["yes", "no"]}),
        ("One of texts that begin alike.", {"choice": ["select", "selected", "selection"]}),
        ("One of texts beyond ASCII.", {"choice": ["Größe", "東京"]}),
        ("A JSON schema: an object.", {"json_schema": _ITEM}),
        (
            "A JSON schema: a list of bounded length.",
            {"json_schema": {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 3}},
        ),
        ("A JSON schema: one of constants.", {"json_schema": {"enum": ["red", 7, None]}}),
        (
            "A JSON schema: a number in a range.",
            {"json_schema": {"type": "integer", "minimum": 10, "maximum": 99}},
        ),
        ("A JSON schema: a string of bounded length.", {"json_schema": {"type": "string", "maxLength": 6}}),
        (
            "A JSON schema: a nested object.",
            {
                "json_schema": {
                    "type": "object",
                    "properties": {"item": _ITEM, "sold": {"type": "boolean"}},
                    "required": ["item", "sold"],
                    "additionalProperties": False,
                }
            },
        ),
        (
            "A JSON schema: one of several types.",
            {"json_schema": {"anyOf": [{"type": "boolean"}, {"const": "none"}]}},
        ),
    ]
    for about, options in cases:
        yield _line("generate", about, "lora", "id 7", options={**common, **options})
    for about, options in cases[::3]:
        sampled = {"temperature": 1.0, "seed": 5, "max_tokens": 60, **options}
        yield _line("generate", f"Sampled. {about}", "dora", "id 7", options=sampled)
    cut = {"temperature": 0, "max_tokens": 6, "json_schema": _ITEM}
    yield _line("generate", "An answer that is cut is not complete.", "lora", "id 7", options=cut)
    yield _line("generate", "The package's own grammar, which its manifest asks for.", "grammar", "count")
    off = {"grammar": False, "max_tokens": 10}
    yield _line("generate", "The package's grammar switched off.", "grammar", "count", options=off)
    told = {"grammar": "root ::= [x-z]{3}", "temperature": 0, "max_tokens": 5, "logprobs": 1}
    yield _line(
        "generate",
        "Log probabilities are those of the model without the grammar.",
        "lora",
        "count",
        options=told,
    )


def _batches() -> Iterator[Line]:
    def batch(about: str, packages: list[str], prompts: Any, **options: Any) -> Line:
        line = {"about": about, "packages": {name: f"{name}.expert" for name in packages}, "call": "batch"}
        return {**line, "prompts": prompts, "options": {"temperature": 0, "max_tokens": 12, **options}}

    prompts = list(_PROMPTS)
    yield batch("Prompts of different lengths answer as alone.", ["lora"], prompts)
    yield batch("A value for each prompt.", ["lora"], prompts[:3], max_tokens=[3, 9, 1])
    yield batch(
        "Each prompt with a temperature and a seed of its own.",
        ["lora"],
        prompts[:3],
        temperature=[0, 1.0, 0.7],
        seed=[None, 14, 15],
    )
    yield batch("A flat list of stops is for all prompts.", ["lora"], prompts[:2], stop=["a", "e"])
    yield batch("A list of lists of stops has one for each.", ["lora"], prompts[:2], stop=[["a"], None])
    yield batch("One prompt under a grammar, one without.", ["lora"], prompts[:2], regex=["[0-9]{3}", None])
    yield batch("More prompts than rows.", ["dora"], prompts, batch_size=2)
    yield batch("A batch of a quantised kind of adapter.", ["ia3"], prompts[:3])
    pairs = [["lora", prompts[0]], ["dora", prompts[0]], ["ia3", prompts[1]], ["lora", prompts[2]]]
    yield batch("Different experts of one base in one batch.", ["lora", "dora", "ia3"], pairs)
    pairs = [["lora", prompts[0]], ["short", prompts[0]], ["windowed", prompts[0]]]
    yield batch("Experts of different bases.", ["lora", "short", "windowed"], pairs)
    yield {
        "about": "An expert of a manager by name.",
        "packages": {"a": "lora.expert", "b": "dora.expert"},
        "call": "generate",
        "expert": "b",
        "prompt": prompts[0],
        "options": {"temperature": 0, "max_tokens": 12},
    }


def _streams() -> Iterator[Line]:
    common = {"prompt_lookup": False}
    for prompt in _PROMPTS:
        options = {"temperature": 0, "max_tokens": 20, **common}
        yield _line(
            "stream", "The pieces of a greedy answer, whole characters each.", "lora", prompt, options=options
        )
    for seed in (1, 2):
        options = {"temperature": 1.0, "seed": seed, "max_tokens": 20, **common}
        yield _line("stream", "The pieces of a sampled answer.", "dora", _PROMPTS[0], options=options)
    options = {"temperature": 0, "max_tokens": 40, "choice": ["Größe 🙂"], **common}
    yield _line("stream", "Pieces of characters of several bytes.", "lora", "x", options=options)


def _scores() -> Iterator[Line]:
    texts = ["SELECT", "SELECT 1", "no", "Größe"]
    for package in ("lora", "dora", "short", "thinking"):
        yield _line("score", "How likely given answers are.", package, _PROMPTS[0], answers=texts)
    yield _line("score", "One answer.", "lora", _PROMPTS[0], answers=["yes"])
    yield _line("score", "Answers of one token each.", "lora", _PROMPTS[1], answers=["a", "b", "c"])
    begun = ["a", "ab", "abc"]
    yield _line(
        "score", "An answer that others begin with counts with its end.", "lora", _PROMPTS[1], answers=begun
    )
    system = {"system": "Be brief."}
    yield _line(
        "score", "Answers after a system message.", "dora", _PROMPTS[1], answers=texts, options=system
    )


def _tools() -> Iterator[Line]:
    schema = {
        "type": "object",
        "properties": {"x": {"enum": [7, 8]}},
        "required": ["x"],
        "additionalProperties": False,
    }
    one: Any = [{"name": "f", "parameters": schema}]
    two: Any = [{"name": "g"}, {"name": "h"}]
    common = {"temperature": 0, "max_tokens": 64}
    named = {"type": "function", "function": {"name": "h"}}
    for about, tools, choice in (
        ("A call that is required.", one, "required"),
        ("A call of one of several tools.", two, "required"),
        ("A call of the tool that is named; one without parameters takes no arguments.", two, named),
        ("Nothing is held to the tools.", two, "none"),
    ):
        options = {**common, "tool_choice": choice, "parallel_tool_calls": False}
        yield _line("generate", about, "thinking", "why", tools=tools, options=options)
    cut = {**common, "max_tokens": 42, "tool_choice": "required"}
    yield _line("generate", "A call that is cut off.", "thinking", "why", tools=one, options=cut)


def _thinking() -> Iterator[Line]:
    common = {"temperature": 0, "max_tokens": 24}
    script = 'root ::= "<think>\\n" [a-c]{5} "\\n</think>\\n\\n" [x-z]{4}'
    yield _line(
        "generate", "Without thinking the prompt has an empty block.", "thinking", "why", options=common
    )
    yield _line(
        "generate",
        "With thinking it has none.",
        "thinking",
        "why",
        options={**common, "enable_thinking": True},
    )
    after = {
        **common,
        "max_tokens": 80,
        "enable_thinking": True,
        "choice": ["yes", "no"],
        "logit_bias": {"273": 5.0, "274": 2.0},
        "presence_penalty": 2.0,
        "frequency_penalty": 1.0,
    }
    yield _line("generate", "A grammar begins behind the block.", "thinking", "why", options=after)
    off = {**common, "max_tokens": 60, "grammar": script}
    yield _line(
        "generate", "A block in an answer is reasoning, and not text.", "thinking", "why", options=off
    )
    yield _line(
        "stream",
        "Reasoning is not in the pieces.",
        "thinking",
        "why",
        options={**off, "prompt_lookup": False},
    )
