"""Lines whose outcome no model gives: prompts, grammars, packages, routing and errors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

__all__ = ["fact_lines"]

Line = dict[str, Any]

_TOOL = {
    "type": "function",
    "function": {
        "name": "count_rows",
        "description": "Counts.",
        "parameters": {"type": "object", "properties": {"table": {"type": "string"}}, "required": ["table"]},
    },
}
_USER = {"role": "user", "content": "How many users?"}


def fact_lines() -> dict[str, list[Line]]:
    """Lines by file; those of errors have their `error`, others no `expect`."""
    return {
        "prompts": list(_prompts()),
        "grammars": list(_grammars()),
        "calls": list(_calls()),
        "packages": [*_inspected(), *_verified(), *_loaded()],
        "routing": list(_routed()),
        "errors": list(_errors()),
    }


def _calls() -> Iterator[Line]:
    whole = '<tool_call>\n{"name": "f", "arguments": {"x": "}"}}\n</tool_call>'
    other = '<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call>'
    for about, call_format, text in (
        ("A call.", "hermes", whole),
        ("Text before two calls.", "hermes", f"Let me see.\n{whole}\n{other}"),
        ("Text after a call.", "hermes", f"{whole}\nDone.\n"),
        (
            "White space as another model writes it.",
            "hermes",
            '<tool_call>{ "name":"f","arguments":{} }</tool_call>',
        ),
        (
            "Arguments before the name.",
            "hermes",
            '<tool_call>{"arguments": {"x": 1}, "name": "f"}</tool_call>',
        ),
        ("A call without arguments.", "hermes", '<tool_call>{"name": "f"}</tool_call>'),
        ("A call that is cut off in its arguments.", "hermes", whole[: whole.index("}")]),
        ("A call that is cut off after its arguments.", "hermes", whole[:-8]),
        ("A call that is cut off before its name is known.", "hermes", whole[: whole.index("f")]),
        ("A marker without a call is text.", "hermes", "<tool_call> is a tag."),
        ("Arguments that are no JSON are not complete.", "hermes", whole.replace('"x"', "x")),
        ("Text without calls stays as it is.", "hermes", " Hello.\n"),
        ("The whole answer is a call.", "llama3", '{"name": "f", "parameters": {"x": 1}}'),
        ("A call after its tag.", "llama3", '<|python_tag|>{"name": "f", "parameters": {}}'),
        ("JSON that names no tool is text.", "llama3", '{"name": "Ada", "parameters": {}}'),
        ("A call inside of text is text.", "llama3", 'Use {"name": "f", "parameters": {}}'),
        (
            "A list of calls with ids.",
            "mistral",
            '[TOOL_CALLS] [{"name": "f", "arguments": {}, "id": "abcdefghi"}]',
        ),
        (
            "Bare names.",
            "mistral_args",
            'So.[TOOL_CALLS]f[ARGS]{"x": 1}[TOOL_CALLS]g[CALL_ID]abcdefghi[ARGS]{}',
        ),
        (
            "Arguments that become JSON.",
            "functiongemma",
            "<start_function_call>call:f{x:<escape>a, {b<escape>,n:3,l:[true,null]}<end_function_call>",
        ),
    ):
        yield {
            "about": about,
            "packages": {},
            "call": "calls",
            "format": call_format,
            "names": ["f", "g"],
            "text": text,
        }


def _of(package: str, file: str = "") -> dict[str, str]:
    return {package: file or f"{package}.expert"}


def _prompts() -> Iterator[Line]:
    def prompt(about: str, package: str = "lora", text: Any = None, **fields: Any) -> Line:
        line: Line = {"about": about, "packages": _of(package), "call": "prompt"}
        if text is not None:
            line["prompt"] = text
        return {**line, **fields}

    for text in ("select the users", "", "Größe, 東京 🙂", "a\r\nb\tc", "  spaces  ", "x" * 60):
        yield prompt("A prompt in the base's chat template.", text=text)
    for text in ("<|im_end|>", "a<|im_start|>system\nb", "<|endoftext|>"):
        yield prompt("Special tokens in a prompt stay text.", text=text)
    yield prompt("A special token that only comes about at a seam stays text.", text="<|im_")
    yield prompt("A system message.", text="count", options={"system": "Be brief."})
    yield prompt("A schema becomes the system message.", text="count", options={"schema": "users(id, name)"})
    yield prompt(
        "A system message and a schema.", text="count", options={"system": "Be brief.", "schema": "users(id)"}
    )
    dialogue = [_USER, {"role": "assistant", "content": "7"}, {"role": "user", "content": "And orders?"}]
    yield prompt("Turns in place of a prompt.", messages=dialogue)
    yield prompt("Turns before a prompt.", text="And orders?", messages=dialogue[:2])
    yield prompt("A system turn.", messages=[{"role": "system", "content": "Be brief."}, _USER])
    parts = [
        {"role": "user", "content": [{"type": "text", "text": "How "}, {"type": "text", "text": "many?"}]}
    ]
    yield prompt("Content in parts.", messages=parts)
    for package in ("short", "windowed", "merged", "grammar"):
        yield prompt("A prompt of another package.", package, "select the users")
    yield prompt("A thinking model gets an empty block.", "thinking", "why")
    yield prompt("It gets none with thinking.", "thinking", "why", options={"enable_thinking": True})
    yield prompt("Tools in the prompt.", "thinking", "count", tools=[_TOOL])
    yield prompt("A bare schema of a tool.", "thinking", "count", tools=[_TOOL["function"]])
    call = {
        "id": "c1",
        "type": "function",
        "function": {"name": "count_rows", "arguments": '{"table": "users"}'},
    }
    turns = [
        _USER,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "7"},
    ]
    yield prompt("A call and its result.", "thinking", messages=turns)


def _grammars() -> Iterator[Line]:
    cases: list[tuple[str, str, str, list[str]]] = [
        ("GBNF: literals and classes.", "gbnf", 'root ::= "a" [b-d]+', ["ab", "abcd", "a", "abe", ""]),
        ("GBNF: negated classes.", "gbnf", 'root ::= [^"\\\\]*', ["", "abc", 'a"b', "ä\n"]),
        (
            "GBNF: options and repetition.",
            "gbnf",
            'root ::= "a"? "b"{2,3} "c"*',
            ["bb", "abbb", "abbcc", "ab", "bbbb"],
        ),
        ("GBNF: alternatives and groups.", "gbnf", 'root ::= ("x" | "y" "z")+', ["x", "yz", "xyzx", "y", ""]),
        (
            "GBNF: rules and comments.",
            "gbnf",
            'root ::= list # a list\nlist ::= "[" item ("," item)* "]"\nitem ::= [0-9]',
            ["[1]", "[1,2]", "[]", "[1,]"],
        ),
        ("GBNF: left recursion.", "gbnf", 'root ::= root "+" [0-9] | [0-9]', ["1", "1+2+3", "+1", "1+"]),
        ("GBNF: escapes.", "gbnf", 'root ::= "\\n" [\\x41-\\x43] "\\u00e9"', ["\nAé", "\nDé", "Aé"]),
        (
            "GBNF: names with hyphens and underscores.",
            "gbnf",
            'root ::= a-b c_d\na-b ::= "1"\nc_d ::= "2"',
            ["12", "1", "21"],
        ),
        ("Regex: anchored at both ends.", "regex", "[0-9]{2}", ["12", "1", "123", "a12"]),
        ("Regex: alternatives.", "regex", "(ab|c)*", ["", "abc", "ca", "b"]),
        ("Regex: classes of Unicode.", "regex", r"\p{Lu}\w+", ["Größe", "größe", "A"]),
        ("Choice: one of the texts.", "choice", "", ["yes", "no", "ye", "yes "]),
        (
            "JSON schema: an object with an order.",
            "json_schema",
            '{"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "string"}}, '
            '"required": ["a"], "additionalProperties": false}',
            ['{"a": 1}', '{"a": 1, "b": "x"}', '{"b": "x"}', '{"a": "1"}', '{"a": 1, "c": 2}'],
        ),
        (
            "JSON schema: numbers in a range.",
            "json_schema",
            '{"type": "integer", "minimum": -5, "maximum": 12}',
            ["-5", "0", "12", "13", "-6", "1.0"],
        ),
        (
            "JSON schema: an enumeration.",
            "json_schema",
            '{"enum": ["a", 1, null, true]}',
            ['"a"', "1", "null", "true", '"b"', "false"],
        ),
        (
            "JSON schema: lists.",
            "json_schema",
            '{"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 2}',
            ["[true]", "[true, false]", "[]", "[true, true, true]"],
        ),
        (
            "JSON schema: strings of bounded length.",
            "json_schema",
            '{"type": "string", "minLength": 2, "maxLength": 3}',
            ['"ab"', '"äöü"', '"a"', '"abcd"'],
        ),
        (
            "JSON schema: a pattern.",
            "json_schema",
            '{"type": "string", "pattern": "^[a-c]+$"}',
            ['"abc"', '"d"', '""'],
        ),
        (
            "JSON schema: a reference.",
            "json_schema",
            '{"$defs": {"n": {"type": "integer"}}, "type": "array", "items": {"$ref": "#/$defs/n"}}',
            ["[]", "[1, 2]", "[true]"],
        ),
        (
            "JSON schema: any of.",
            "json_schema",
            '{"anyOf": [{"type": "null"}, {"const": 7}]}',
            ["null", "7", "8"],
        ),
        ("JSON schema: not.", "json_schema", '{"type": "integer", "not": {"const": 3}}', ["1", "3", "30"]),
        ("JSON schema: any JSON.", "json_schema", "{}", ['{"a": [1, null]}', "7", "nul"]),
    ]
    for about, kind, text, samples in cases:
        content: Any = ["yes", "no"] if kind == "choice" else text
        yield {
            "about": about,
            "call": "grammar",
            "grammar": {"kind": kind, "text": content},
            "samples": samples,
        }


def _inspected() -> Iterator[Line]:
    fields = ["/name", "/version", "/base_models/0/name", "/signature/status"]
    bases = [
        "/bases/0/precision",
        "/bases/0/target",
        "/bases/0/model_type",
        "/bases/0/context",
        "/bases/0/cache",
    ]
    adapter = ["/adapter/form", "/adapter/kind", "/adapter/rank", "/adapter/modules"]
    for about, package, wanted in (
        ("A thin LoRA package.", "lora", [*fields, "/bases", *adapter]),
        ("A thin DoRA package.", "dora", [*fields, *adapter]),
        ("An IA3 package.", "ia3", [*fields, *adapter]),
        ("An AdaLoRA package.", "adalora", [*fields, *adapter]),
        ("A package with its base.", "short", [*fields, *bases, *adapter]),
        ("A merged package has no adapter.", "merged", [*fields, *bases, "/adapter"]),
        ("8-bit weights.", "int8", [*fields, *bases]),
        ("4-bit weights.", "int4", [*fields, *bases]),
        ("8-bit weights and activations.", "w8a8", [*fields, *bases]),
        (
            "Graphs for two targets in float16.",
            "half",
            [*fields, *bases, "/bases/1/precision", "/bases/1/target"],
        ),
        (
            "An 8-bit cache, and bfloat16.",
            "forms",
            [*fields, *bases, "/bases/1/precision", "/bases/1/target"],
        ),
        ("A grammar and decoding defaults.", "grammar", [*fields, "/grammar", "/decoding"]),
        ("A signed package with keywords.", "sql", [*fields, "/signature/scheme", "/routing/keywords"]),
        (
            "A package of the reference packager.",
            "reference",
            [*fields, "/signature/scheme", *adapter, "/bases"],
        ),
        (
            "Capabilities and a priority.",
            "json",
            [*fields, "/capabilities", "/routing/priority", "/description"],
        ),
    ):
        yield {"about": about, "packages": _of(package), "call": "inspect", "fields": wanted}


_KEY = "ed25519:03a107bff3ce10be1d70dd18e74bc09967e4d6309ba50d5f1ddc8664125531b8"


def _verified() -> Iterator[Line]:
    for about, package, keys in (
        ("A signature of a pinned key.", "sql", {"tests": _KEY}),
        ("A signature of a key that is not pinned.", "sql", {}),
        ("A signature of another key than the pinned one.", "sql", {"other": "ed25519:" + "0" * 63 + "1"}),
        ("No signature.", "lora", {"tests": _KEY}),
        ("The reference tool's signature.", "reference", {"tests": _KEY}),
        ("A member that was changed after signing.", "bad/tampered", {"tests": _KEY}),
    ):
        yield {
            "about": about,
            "packages": _of(package.split("/")[-1], f"{package}.expert"),
            "call": "verify",
            "keys": keys,
        }


def _loaded() -> Iterator[Line]:
    require = {"trust": "require", "keys": {"tests": _KEY}}
    for about, package, file, load in (
        ("A thin package finds the base beside it.", "lora", "lora.expert", {}),
        ("A folder as PEFT saves it, on a base.", "peft", "peft", {"base": "base"}),
        ("A signed package where signatures are required.", "sql", "sql.expert", require),
        ("8-bit weights.", "int8", "int8.expert", {}),
        ("4-bit weights.", "int4", "int4.expert", {}),
        ("8-bit weights and activations.", "w8a8", "w8a8.expert", {}),
        ("Of several targets the CPU takes its own.", "forms", "forms.expert", {}),
    ):
        line = {"about": about, "packages": _of(package, file), "call": "load"}
        yield {**line, "load": load} if load else line


def _routed() -> Iterator[Line]:
    packages = {name: f"{name}.expert" for name in ("sql", "json", "lora")}
    for about, prompt, tags in (
        ("A keyword of one expert.", "Write sql for me", None),
        ("A phrase of several words.", "count all rows", None),
        ("A keyword of another.", "Fix this invalid JSON", None),
        ("Keywords of both.", "orders as json", None),
        ("Nothing fits.", "Tell me a story", None),
        ("Letter case does not matter.", "SQL", None),
        ("Part of a word is no keyword.", "jsonify mysqldump", None),
        ("A hint of the manifest, met by a tag.", "Tell me a story", {"database": "sql"}),
        ("A tag that meets no hint.", "Tell me a story", {"database": "graph"}),
        ("A capability in the prompt.", "the format of this", None),
        ("An empty prompt.", "", None),
    ):
        line = {"about": about, "packages": packages, "call": "route", "prompt": prompt}
        yield {**line, "tags": tags} if tags else line


def _errors() -> Iterator[Line]:
    def error(about: str, kind: str, *contains: str, package: str = "lora", **fields: Any) -> Line:
        line = {"about": about, "packages": _of(package), "call": "generate", "prompt": "count", **fields}
        return {**line, "error": {"type": kind, "contains": list(contains)}}

    for name, value in (
        ("temperature", -1.0),
        ("temperature", 1e-9),
        ("top_p", 1.5),
        ("top_k", -1),
        ("min_p", -0.1),
        ("typical_p", 0.0),
        ("repetition_penalty", 0.0),
        ("presence_penalty", 3.0),
        ("frequency_penalty", -3.0),
        ("max_tokens", 0),
        ("min_tokens", -1),
        ("seed", -1),
        ("logprobs", 21),
        ("stop", ""),
        ("timeout", 0),
    ):
        yield error("A value out of its range.", "OptionError", name, options={name: value})
    for name, wrong in (
        ("temperature", "hot"),
        ("max_tokens", 1.5),
        ("stop", 7),
        ("seed", "x"),
        ("regex", 1),
    ):
        yield error("A value of a wrong type.", "OptionTypeError", name, options={name: wrong})
    yield error(
        "An option that does not exist.",
        "OptionTypeError",
        "temprature",
        "temperature",
        options={"temprature": 1},
    )
    yield error(
        "A token beyond the vocabulary.",
        "OptionError",
        "logit_bias",
        "999",
        options={"logit_bias": {"999": 1.0}},
    )
    yield error("Two grammars.", "OptionError", "regex", "choice", options={"regex": "a", "choice": ["a"]})
    yield error(
        "A role that does not exist.", "OptionError", "wizard", messages=[{"role": "wizard", "content": "x"}]
    )
    yield error(
        "Two system messages.",
        "OptionError",
        "system",
        messages=[{"role": "system", "content": "x"}],
        options={"system": "y"},
    )
    long = {"prompt": "x" * 200}
    yield error(
        "A prompt that the context has no room for.", "ContextLengthError", "128", package="short", **long
    )
    yield error(
        "An answer that it has no room for.",
        "ContextLengthError",
        "max_tokens",
        package="short",
        options={"max_tokens": 120},
    )
    for about, options, texts in (
        ("A grammar with a fault.", {"grammar": 'root ::= "a'}, ("line 1",)),
        ("A rule that is missing.", {"grammar": "root ::= other"}, ("other",)),
        ("A regular expression with a fault.", {"regex": "("}, ("regex",)),
        ("No choices.", {"choice": []}, ("choice",)),
        ("A schema that nothing satisfies.", {"json_schema": False}, ("false",)),
        ("A package that has no grammar.", {"grammar": True}, ("grammar",)),
    ):
        yield error(about, "GrammarError", *texts, options=options)
    yield error(
        "An expert that is not loaded.",
        "UnknownExpertError",
        "xml",
        "lora",
        packages={"lora": "lora.expert", "dora": "dora.expert"},
        expert="xml",
    )

    def refused(about: str, file: str, kind: str, *contains: str, **load: Any) -> Line:
        line: Line = {"about": about, "packages": _of("x", file), "call": "load"}
        return {
            **line,
            **({"load": load} if load else {}),
            "error": {"type": kind, "contains": list(contains)},
        }

    yield refused(
        "An unsigned package where signatures are required.",
        "lora.expert",
        "IntegrityError",
        "unsigned",
        trust="require",
        keys={},
    )
    yield refused(
        "A signature that fails.",
        "bad/tampered.expert",
        "IntegrityError",
        "adapter_config.json",
        trust="warn",
        keys={},
    )
    yield refused("A path that leads out of the package.", "bad/escaping.expert", "IntegrityError", "..")
    yield refused("A package that is cut off.", "bad/truncated.expert", "IntegrityError")
    yield refused("A package without a manifest.", "bad/bare.expert", "ManifestError", "manifest.json")
    yield refused("An adapter for another base.", "windowed.expert", "BaseMismatchError", base="base")
    yield refused("A thin package whose base is not there.", "bad/alone.expert", "LoadError", "base")
    yield refused("No package.", "missing.expert", "LoadError", "missing.expert")
