"""Grammars made to take long or much memory."""

from __future__ import annotations

from typing import Any

from hivellm_ort.grammar.grammar import Grammar

AMBIGUOUS = Grammar.lark('start: e\ne: e e | "a" | e e e')


def chain(length: int, body: str) -> str:
    """Return a grammar in which each rule is made from the next one."""
    rules = [f"a{number} ::= {body.format(f'a{number + 1}')}" for number in range(length)]
    return "\n".join(["root ::= a0", *rules, f'a{length} ::= "x"'])


GBNF = {
    "deep groups": f'root ::= {"(" * 200}"a"{")" * 200}',
    "deep groups with loops": f"""root ::= {'("a" ' * 200}"a"{' | "b")*' * 200}""",
    "deep recursive groups": f"""root ::= "c" | {'("a" root ' * 200}"a"{' | "b")*' * 200}""",
    "deeper groups": f'root ::= {"(" * 100_000}"a"{")" * 100_000}',
    "stacked repetitions": f'root ::= "a"{"?*+" * 60}',
    "more stacked repetitions": f'root ::= "a"{"?" * 500_000}',
    "exponential length": chain(100, "{0} {0}"),
    "exponential repetition": chain(100, "{0}{{300}}"),
    "long chain": chain(9_000, '"(" {0} ")"'),
    "long recursive chain": chain(3_000, '"(" {0} ")" | root "y"'),
    "repetition": 'root ::= "a"{2000}',
    "nested repetition": 'root ::= (("a"{2000}){2000}){2000}',
    "nested optional repetition": 'root ::= (([a-z]{0,30} | "x" root){0,30} "b"){0,30}',
    "nested repetition of classes": "root ::= ([a-z]{1,300}){1,300}",
    "repetition of nothing": 'root ::= (""{2000}){2000} "a"',
    "many alternatives": "root ::= " + " | ".join(f'"k{number}"' for number in range(20_000)),
    "empty alternatives": 'root ::= "a"' + "|" * 500_000,
    "many rules": "\n".join(f'r{number} ::= "k{number}"' for number in range(20_000)),
    "giant literal": f'root ::= "{"a" * 90_000}"',
    "giant text": "# " + "a" * 5_000_000,
    "giant class": "root ::= [" + "".join(f"\\u{0x1000 + 2 * number:04x}" for number in range(20_000)) + "]*",
    "giant name": f"root ::= {'a' * 900_000}",
    "ambiguous": 'root ::= root root | "a" | "" | root*',
    "unit cycle": 'root ::= a | "x"\na ::= b\nb ::= a | root | "y"',
    "many optional items": "root ::= " + " ".join(f'"k{number}"?' for number in range(2_000)),
    "overlapping loops": "root ::= "
    + " | ".join(f'[a-z]{{{number}}} "b" root' for number in range(1, 120))
    + ' | ""',
}


def _nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


def _doubled(depth: int) -> dict[str, Any]:
    definitions: dict[str, Any] = {f"d{depth}": {"const": "a"}}
    for level in range(depth):
        below = {"$ref": f"#/$defs/d{level + 1}"}
        definitions[f"d{level}"] = {
            "type": "array",
            "prefixItems": [below, below],
            "items": False,
            "minItems": 2,
        }
    return {"$ref": "#/$defs/d0", "$defs": definitions}


GRAMMARS = {
    "regex of many states": Grammar.regex("(a|b)*a(a|b){20}"),
    "regex of large counts": Grammar.regex("(a{1000}){1000}"),
    "nested stars": Grammar.regex("(((a*)*)*)*b"),
    "deep groups of a regex": Grammar.regex("(" * 5_000 + "a" + ")" * 5_000),
    "deep groups of Lark": Grammar.lark("start: " + "(" * 20_000 + '"a"' + ")" * 20_000),
    "deep groups of GBNF": Grammar.gbnf("root ::= " + "(" * 20_000 + '"a"' + ")" * 20_000),
    "counts of counts": Grammar.lark('start: x{100}\nx: y{100}\ny: z{100}\nz: "a"?'),
    "counts of counts of GBNF": Grammar.gbnf('root ::= ((("a"{0,1000}){0,1000}){0,1000}){0,1000}'),
    "exponential rules": Grammar.gbnf(
        "root ::= r0\n" + "\n".join(f"r{i} ::= r{i + 1} r{i + 1}" for i in range(40)) + '\nr40 ::= "a"'
    ),
    "exponential empty rules": Grammar.gbnf(
        "root ::= r0\n" + "\n".join(f"r{i} ::= r{i + 1} r{i + 1}" for i in range(40)) + '\nr40 ::= "a"?'
    ),
    "ambiguous": AMBIGUOUS,
    "many options": Grammar.choice([f"option {i} of many" for i in range(20_000)]),
    "one long option": Grammar.choice(["ab" * 100_000]),
    "deep schema": Grammar.json_schema(_nested(100)),
    "very deep schema": Grammar.json_schema('{"type": "array", "items": ' * 900 + "{}" + "}" * 900),
    "exponential schema": Grammar.json_schema(_doubled(30)),
    "many alternatives": Grammar.json_schema({"anyOf": [{"const": f"x{i}"} for i in range(3_000)]}),
    "all of any of": Grammar.json_schema(
        {"allOf": [{"anyOf": [{"minimum": i}, {"maximum": -i}]} for i in range(1, 12)]}
    ),
    "long strings": Grammar.json_schema({"type": "string", "minLength": 100_000, "maxLength": 200_000}),
    "many items": Grammar.json_schema({"type": "array", "minItems": 100_000}),
    "many properties": Grammar.json_schema(
        {"properties": {f"p{i}": {"type": "integer"} for i in range(2_000)}}
    ),
    "pattern of many states": Grammar.json_schema({"type": "string", "pattern": "^(a|b)*a(a|b){25}$"}),
}
