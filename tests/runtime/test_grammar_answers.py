"""Answers under a grammar: what they look like, how they end, and that they are the same however they are asked."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from support.earley import read
from support.running import PROMPT, Packages, engine_of

from hivellm_ort import Expert, ExpertManager, Grammar, GrammarError, InferenceError, LoadError
from hivellm_ort.engine.forward_pass import ForwardPass

PLAN = {
    "type": "object",
    "properties": {
        "tool": {"enum": ["search", "read"]},
        "arguments": {
            "type": "object",
            "properties": {
                "query": {"type": "string", "maxLength": 6},
                "limit": {"type": "integer", "minimum": 1, "maximum": 99},
            },
            "required": ["query", "limit"],
            "additionalProperties": False,
        },
    },
    "required": ["tool", "arguments"],
    "additionalProperties": False,
}
# Left recursion, and strings of any character: some are several tokens of the tiny tokenizer.
SUMS = 'root ::= sum\nsum ::= sum "+" term | term\nterm ::= [0-9]{1,3} | "(" sum ")" | "\\"" [^"\\\\\\n]{0,9} "\\""\n'
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0, "max_tokens": 120, "prompt_lookup": False},
    "seeded": {"temperature": 1.5, "seed": 7, "max_tokens": 120, "prompt_lookup": False},
}
KINDS: dict[str, dict[str, Any]] = {
    "json_schema": {"json_schema": PLAN},
    "gbnf": {"grammar": SUMS},
    "regex": {"regex": r"(GET|PUT) /[a-z]{1,8}(\?[a-z]=[0-9]+)?"},
    "choice": {"choice": ["select", "select from", "where", "größer"]},
    "lark": {"grammar": Grammar.lark('start: "a" /[bc]+/ "!"')},
}
PROMPTS = [PROMPT, "count all orders of the last month", "a", '{"tool": "search", "arguments": {"query": ']


def satisfies(kind: str, text: str) -> bool:
    """Whether an answer is what its grammar says, told without the engine that enforced it."""
    if kind == "json_schema":
        value = json.loads(text)
        jsonschema.validate(value, PLAN)
        return json.dumps(value, ensure_ascii=False) == text or "\\" in text
    if kind == "gbnf":
        return read(SUMS).accepts(text)
    if kind == "choice":
        return text in KINDS["choice"]["choice"]
    return re.fullmatch(KINDS["regex"]["regex"] if kind == "regex" else "a[bc]+!", text) is not None


@pytest.fixture
def manager(packages: Packages) -> Iterator[ExpertManager]:
    """Three experts on one base."""
    with ExpertManager(cache_dir=packages.cache, threads=1, trust="off") as manager:
        for name in ("lora", "dora", "ia3"):
            manager.load_expert(name, getattr(packages, name))
        yield manager


@pytest.mark.parametrize("kind", KINDS)
def test_answers_satisfy_their_grammar(kind: str, lora: Expert) -> None:
    """At a high temperature too every finished answer is in the language, and an unfinished one is whole text."""
    finished = 0
    for seed in range(15):
        options = {"temperature": 1.5, "max_tokens": 120, "seed": seed, **KINDS[kind]}
        result = lora.generate(PROMPT, **options)
        assert result.grammar_complete == (result.finish_reason in ("eos", "grammar"))
        assert "\N{REPLACEMENT CHARACTER}" not in result.text
        if result.grammar_complete:
            finished += 1
            assert satisfies(kind, result.text), result.text
    assert finished >= 10


@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_however_it_is_asked(kind: str, options: dict[str, Any], manager: ExpertManager) -> None:
    """Alone, batched with other experts, streamed, awaited, guessed and with probabilities: one answer."""
    grammar = KINDS[kind]
    requests = [(name, prompt) for prompt in PROMPTS for name in ("lora", "dora", "ia3")]
    expected = [manager.generate(name, prompt, **options, **grammar) for name, prompt in requests]
    for batch_size in (3, 8):
        batched = manager.generate_batch(requests, batch_size=batch_size, **options, **grammar)
        assert [one.tokens for one in expected] == [one.tokens for one in batched]
        assert [one.grammar_complete for one in expected] == [one.grammar_complete for one in batched]
        assert [one.forced_tokens for one in expected] == [one.forced_tokens for one in batched]
    for (name, prompt), one in zip(requests, expected, strict=True):
        stream = manager.generate_stream(name, prompt, **options, **grammar)
        assert one.text == "".join(stream)
        assert (
            one.tokens
            == manager.generate(name, prompt, **{**options, "prompt_lookup": True}, **grammar).tokens
        )
        told = manager.generate(name, prompt, logprobs=1, **options, **grammar)
        assert one.tokens == told.tokens
        assert told.logprobs is not None
        assert len(told.tokens) == len(told.logprobs)
        assert one.tokens == asyncio.run(manager.agenerate(name, prompt, **options, **grammar)).tokens


def test_mixed_grammars_in_one_batch(manager: ExpertManager) -> None:
    """Each row has a grammar of its own, or none."""
    requests = [("lora", PROMPT), ("dora", PROMPT), ("ia3", PROMPT), ("lora", "a")]
    schemas = [PLAN, None, True, None]
    choices = [None, ["yes", "no"], None, None]
    results = manager.generate_batch(requests, json_schema=schemas, choice=choices, max_tokens=40)
    alone = [
        manager.generate(name, prompt, json_schema=schema, choice=choice, max_tokens=40)
        for (name, prompt), schema, choice in zip(requests, schemas, choices, strict=True)
    ]
    assert [one.tokens for one in alone] == [one.tokens for one in results]
    assert results[1].text in ("yes", "no")
    assert results[3].grammar_complete is None


def test_forced_tokens_save_passes(lora: Expert, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens that the grammar forces are read in one pass with the next token."""
    passes: list[int] = []
    run = ForwardPass.run

    def counted(self: Any, token_ids: Any, *rest: Any, **options: Any) -> Any:
        passes.append(len(token_ids[0]))
        return run(self, token_ids, *rest, **options)

    monkeypatch.setattr(ForwardPass, "run", counted)
    result = lora.generate(PROMPT, json_schema=PLAN, max_tokens=200, prompt_lookup=False)
    assert result.forced_tokens > 20
    assert len(passes) == result.completion_tokens - result.forced_tokens
    assert max(passes[1:]) > 3


def test_a_choice_of_one_is_not_even_read(lora: Expert, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where every token is forced no pass is needed."""
    monkeypatch.setattr(ForwardPass, "run", None)
    result = lora.generate(PROMPT, choice=["select from"])
    assert ("select from", "grammar", True) == (result.text, result.finish_reason, result.grammar_complete)
    assert result.completion_tokens == result.forced_tokens


def test_cut_by_length(lora: Expert) -> None:
    """`max_tokens` inside a grammar cuts between characters, and the result says that it is not complete."""
    whole = lora.generate(PROMPT, grammar='root ::= "é東🙂" "!"').text
    assert "é東🙂!" == whole
    texts = []
    for count in range(1, 11):
        result = lora.generate(PROMPT, grammar='root ::= "é東🙂" "!"', max_tokens=count)
        assert whole.startswith(result.text)
        assert (result.finish_reason == "grammar") == result.grammar_complete == (result.text == whole)
        texts.append(result.text)
    assert ["", "é", "é東", "é東🙂", "é東🙂!"] == list(dict.fromkeys(texts))


def test_cancelled(lora: Expert) -> None:
    """A cancelled answer is not complete, one left after its end is."""
    stream = lora.generate_stream(PROMPT, json_schema=PLAN, max_tokens=100)
    next(stream)
    stream.close()
    assert ("cancelled", False) == (stream.result.finish_reason, stream.result.grammar_complete)


def test_end_tokens_are_known(packages: Packages) -> None:
    """Every end token of the base ends a complete answer, but not an incomplete one."""

    def eager(_: Any, logits: np.ndarray) -> np.ndarray:
        logits = logits.copy()
        logits[packages.eos] += 1000
        return logits

    with packages.load("ending") as expert:
        result = expert.generate(PROMPT, regex="ab(c*)", processors=[eager])
        assert ("ab", "eos", True) == (result.text, result.finish_reason, result.grammar_complete)
        assert packages.eos == result.tokens[-1]


def wanting(expert: Expert, text: str) -> Any:
    """A processor that likes the next token of a text best."""
    script = expert._base.tokenizer.encode(text)

    def process(token_ids: np.ndarray, logits: np.ndarray) -> np.ndarray:
        place = token_ids.size - process.start  # type: ignore[attr-defined]
        logits = logits.copy()
        if place < len(script):
            logits[script[place]] += 1000
        return logits

    process.start = len(expert.builder.build(PROMPT, {}).request.prompt_ids)  # type: ignore[attr-defined]
    return process


def test_stop_of_one_token_ends_a_complete_answer(lora: Expert) -> None:
    """A stop string that the grammar does not allow ends the answer when the grammar is complete."""
    options: dict[str, Any] = {"regex": "a+", "stop": ";", "max_tokens": 20}
    result = lora.generate(PROMPT, processors=[wanting(lora, "aaa;")], **options)
    assert ("aaa", "stop", True) == (result.text, result.finish_reason, result.grammar_complete)
    result = lora.generate(PROMPT, processors=[wanting(lora, "aaa;")], include_stop=True, **options)
    assert ("aaa;", True) == (result.text, result.grammar_complete)
    early = lora.generate(PROMPT, processors=[wanting(lora, ";aaa;")], **options)
    assert not early.text.startswith(";")


@pytest.mark.parametrize(
    ("stop", "text", "complete"),
    [(["bc"], "aa", True), (["cd"], "aab", False), (["d"], "aabc", False), (["zz"], "aabcde", True)],
)
def test_stop_inside_an_answer(stop: list[str], text: str, complete: bool, lora: Expert) -> None:
    """A caller's stop string always cuts the text, and the result says whether the rest is complete."""
    result = lora.generate(
        PROMPT, regex="aa(bcde)?", stop=stop, processors=[wanting(lora, "aabcde")], max_tokens=20
    )
    assert (text, complete) == (result.text, result.grammar_complete)
    assert ("grammar" if stop == ["zz"] else "stop") == result.finish_reason


def test_dead_end(lora: Expert) -> None:
    """Processors that forbid all tokens of the grammar end the answer with an error."""

    def forbid(token_ids: np.ndarray, logits: np.ndarray) -> np.ndarray:
        return np.full_like(logits, -np.inf) if token_ids.size > limit else logits

    limit = len(lora.builder.build(PROMPT, {}).request.prompt_ids) + 4
    with pytest.raises(InferenceError, match="every token is masked"):
        lora.generate(PROMPT, regex="[ab]{10}", processors=[forbid])
    assert lora.generate(PROMPT, regex="[ab]{10}").grammar_complete


def test_a_limit_is_an_error(lora: Expert) -> None:
    """A parser that gives up ends the answer with an error, never without the grammar."""
    exploding = "root ::= " + "(" * 12 + '[a-z]? "b"?' + "){0,40}" * 12
    with pytest.raises(GrammarError) as caught:
        lora.generate(PROMPT, grammar=exploding, max_tokens=30)
    assert isinstance(caught.value.text, str)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"grammar": 'root ::= "a'}, GrammarError, "line 1, column 10"),
        ({"grammar": True}, GrammarError, "none in its package"),
        ({"grammar": 3}, TypeError, "grammar is int"),
        ({"regex": "("}, GrammarError, "regex"),
        ({"json_schema": {"type": "strong"}}, GrammarError, "json_schema"),
        ({"json_schema": "{"}, GrammarError, "line 1"),
        ({"choice": []}, GrammarError, "choice is empty"),
        ({"regex": "a", "choice": ["b"]}, ValueError, "regex and choice"),
        ({"grammar": False, "json_schema": {}}, ValueError, "grammar=False and json_schema"),
        ({"regex": "a", "enable_thinking": True}, None, ""),
    ],
)
def test_bad_grammars(
    options: dict[str, Any], error: type[Exception] | None, message: str, lora: Expert
) -> None:
    """A grammar with a fault is refused before anything is generated."""
    if error is None:
        assert "a" == lora.generate(PROMPT, **options).text
        return
    with pytest.raises(error, match=message):
        lora.generate(PROMPT, **options)


UNIQUE = {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3, "uniqueItems": True}


def test_what_is_not_enforced_is_in_the_result(lora: Expert) -> None:
    """A schema that cannot be enforced as a whole is refused, or with `lenient` told of in the result."""
    with pytest.raises(GrammarError, match="json_schema, at /uniqueItems: it cannot be enforced"):
        lora.generate(PROMPT, json_schema=UNIQUE)
    result = lora.generate(PROMPT, json_schema=UNIQUE, lenient=True, temperature=1.5, seed=1, max_tokens=60)
    assert set(json.loads(result.text)) <= {"a", "b"}
    (warning,) = result.warnings
    assert warning.startswith("json_schema, at /uniqueItems: not enforced: ")
    assert [warning] == result.to_dict()["warnings"]
    with lora.generate_stream(PROMPT, json_schema=UNIQUE, lenient=True, max_tokens=60) as stream:
        "".join(stream)
    assert (warning,) == stream.result.warnings
    first, second = lora.generate_batch([PROMPT, "a"], json_schema=[UNIQUE, {"const": 1}], lenient=True)
    assert ((warning,), ()) == (first.warnings, second.warnings)
    assert () == lora.generate(PROMPT, max_tokens=2, lenient=True).warnings


def test_integers_that_no_double_holds(lora: Expert) -> None:
    """They are written digit by digit."""
    number = 1234567890123456789
    schema = {"type": "object", "properties": {"id": {"enum": [number]}}, "required": ["id"]}
    schema["additionalProperties"] = False
    assert f'{{"id": {number}}}' == lora.generate(PROMPT, json_schema=schema).text


def test_a_class_that_gives_its_schema(lora: Expert) -> None:
    """A class of Pydantic is taken as it is; what gives no schema is an error that says what to pass."""

    class Answer:
        @classmethod
        def model_json_schema(cls) -> dict[str, Any]:
            return {"enum": ["yes", "no"]}

    assert lora.generate(PROMPT, json_schema=Answer).text in ('"yes"', '"no"')
    with pytest.raises(TypeError, match="json_schema is list: it must be a dict"):
        lora.generate(PROMPT, json_schema=[Answer])


def test_one_of_two_thousand(lora: Expert) -> None:
    """A long list of texts is enforced to the end of the answer."""
    options = [f"größer {index} als die übrigen {index * 7919 % 2000}" for index in range(2000)]
    for seed in range(3):
        result = lora.generate(PROMPT, choice=options, temperature=2.0, seed=seed, max_tokens=120)
        assert result.text in options


@pytest.fixture
def with_grammar(packages: Packages, tmp_path: Path) -> Any:
    """Make a package folder whose manifest and files say something about a grammar, and load it."""

    def make(decoding: dict[str, Any], **files: str) -> Expert:
        folder = Path(shutil.copytree(packages.lora_folder, tmp_path / "expert"))
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        manifest.setdefault("training", {})["decoding"] = decoding
        (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
        for name, text in files.items():
            (folder / name.replace("_", ".")).write_text(text, encoding="utf-8")
        with packages.load("lora") as expert:
            bundle = engine_of(expert).folder
        return Expert.load(folder, base=bundle, cache_dir=packages.cache, threads=1, trust="off")

    return make


ONLY_X = 'root ::= "x"+ "y"'


def test_grammar_of_the_package(with_grammar: Any) -> None:
    """`use_grammar` enforces the package's grammar; a caller's own and False win."""
    with with_grammar({"use_grammar": True}, grammar_gbnf=ONLY_X) as expert:
        result = expert.generate(PROMPT, max_tokens=30)
        assert {"x"} == set(result.text.removesuffix("y"))
        assert "b" == expert.generate(PROMPT, choice=["b"]).text
        assert expert.generate(PROMPT, grammar=False, max_tokens=10).grammar_complete is None


def test_grammar_that_is_not_wanted(with_grammar: Any) -> None:
    """Without `use_grammar` the package's grammar is there for `grammar=True` only."""
    with with_grammar({"grammar_file": "own.lark"}, own_lark='start: "x"+ "y"') as expert:
        assert expert.generate(PROMPT, max_tokens=10).grammar_complete is None
        assert {"x"} == set(expert.generate(PROMPT, grammar=True, max_tokens=30).text.removesuffix("y"))


def test_lenient_with_the_grammar_of_the_package(with_grammar: Any) -> None:
    """The caller says how strict the package's schema is."""
    decoding = {"use_grammar": True, "grammar_file": "own.json"}
    with with_grammar(decoding, own_json=json.dumps(UNIQUE)) as expert:
        with pytest.raises(GrammarError, match=r"own\.json, at /uniqueItems"):
            expert.generate(PROMPT)
        (warning,) = expert.generate(PROMPT, lenient=True, max_tokens=60).warnings
        assert "own.json, at /uniqueItems: not enforced" in warning


def test_json_without_a_file(with_grammar: Any) -> None:
    """If a manifest requires a grammar of type json and the package has none, it is that of any JSON."""
    with with_grammar({"use_grammar": True, "grammar_type": "json"}) as expert:
        result = expert.generate(PROMPT, max_tokens=200, temperature=1.5, seed=3)
        assert result.grammar_complete is not None


def test_other_types_without_a_file(with_grammar: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Of other types a warning says that nothing is enforced."""
    with with_grammar({"use_grammar": True, "grammar_type": "sql"}) as expert:
        assert expert.generate(PROMPT, max_tokens=5).grammar_complete is None
    assert "answers are not constrained" in caplog.text


@pytest.mark.parametrize(
    ("decoding", "files", "message"),
    [
        ({"use_grammar": True}, {"grammar_gbnf": "root ::= missing"}, "grammar.gbnf: line 1"),
        ({"use_grammar": True, "grammar_file": "other.gbnf"}, {}, "grammar_file is 'other.gbnf'"),
        ({"use_grammar": True, "grammar_file": "../x.gbnf"}, {}, "grammar_file"),
    ],
)
def test_bad_grammar_of_the_package(
    decoding: dict[str, Any], files: dict[str, str], message: str, with_grammar: Any
) -> None:
    """A package whose wanted grammar cannot be used is not loaded."""
    with pytest.raises(LoadError, match=re.escape(message)):
        with_grammar(decoding, **files)
