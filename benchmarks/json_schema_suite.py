"""How the official JSON-Schema-Test-Suite fares: schemas taken and refused, instances accepted and rejected.

    git clone --depth 1 https://github.com/json-schema-org/JSON-Schema-Test-Suite
    python benchmarks/json_schema_suite.py JSON-Schema-Test-Suite

Instances are compared as the grammar writes JSON: one line, ", " and ": ", keys in the schema's order. A valid one
whose keys come in another order is rejected for that reason alone, and counted apart.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import islice, permutations, product
from pathlib import Path
from typing import Any

from hivellm_ort import Grammar, GrammarError
from hivellm_ort.grammar.report import accepts, check_grammar

_ORDERS = 200


def main() -> int:
    """Print the counts; the exit status is 1 if an invalid instance is accepted."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("suite", type=Path, help="the folder of the suite")
    parser.add_argument("--draft", default="draft2020-12")
    parser.add_argument("--optional", action="store_true", help="the optional tests too, the formats apart")
    parser.add_argument("--lenient", action="store_true", help="what cannot be enforced is left out")
    parser.add_argument("--show", action="store_true", help="print what is refused, rejected and wrong")
    arguments = parser.parse_args()
    folder = arguments.suite / "tests" / arguments.draft
    files = sorted(folder.glob("*.json")) + (
        sorted(folder.glob("optional/*.json")) if arguments.optional else []
    )
    if not files:
        parser.error(f"{folder}: no tests; name the folder of the suite")
    counts: Counter[str] = Counter()
    for file in files:
        for case in json.loads(file.read_text(encoding="utf-8")):
            for outcome, said in outcomes(case, arguments.lenient):
                counts[outcome] += 1
                if arguments.show and outcome not in ("schemas taken", "valid accepted", "invalid rejected"):
                    print(f"{outcome}: {file.name}: {case['description']}: {said}")
    taken, refused = counts["schemas taken"], counts["schemas refused"]
    print(f"schemas taken                 {taken} of {taken + refused}")
    print(f"invalid instances accepted    {counts['invalid accepted']} of {_total(counts, 'invalid')}")
    print(f"valid instances rejected      {_rejected(counts)} of {_total(counts, 'valid')}")
    print(f"  by the order of keys        {counts['valid rejected: order']}")
    print(f"  numbers written otherwise   {counts['valid rejected: number']}")
    print(f"  for another reason          {counts['valid rejected: other']}")
    return 1 if counts["invalid accepted"] else 0


def outcomes(case: dict[str, Any], lenient: bool) -> Iterator[tuple[str, str]]:
    """Yield what became of a schema and of each of its instances."""
    try:
        grammar = Grammar.json_schema(case["schema"], lenient=lenient)
        check_grammar(grammar)
    except GrammarError as error:
        # That no value satisfies it is the right answer, where none is valid.
        right = "no value satisfies" in str(error) and not any(test["valid"] for test in case["tests"])
        yield ("schemas taken" if right else "schemas refused"), str(error)
        return
    yield "schemas taken", ""
    for test in case["tests"]:
        kind = "valid" if test["valid"] else "invalid"
        text = json.dumps(test["data"], ensure_ascii=False)
        if accepts(grammar, [text]) == [None]:
            yield f"{kind} accepted", text
        elif kind == "invalid":
            yield "invalid rejected", text
        else:
            yield f"valid rejected: {_reason(grammar, test['data'])}", text


def _reason(grammar: Grammar, instance: Any) -> str:
    texts = [json.dumps(one, ensure_ascii=False) for one in islice(_orders(instance), _ORDERS)]
    if None in accepts(grammar, texts):
        return "order"
    whole = json.dumps(_whole(instance), ensure_ascii=False)
    return "number" if accepts(grammar, [whole]) == [None] else "other"


def _orders(value: Any) -> Iterator[Any]:
    """The value with its keys in every order."""
    if isinstance(value, dict):
        for names in permutations(value):
            for parts in product(*(list(_orders(value[name])) for name in names)):
                yield dict(zip(names, parts, strict=True))
    elif isinstance(value, list):
        yield from map(list, product(*(list(_orders(one)) for one in value)))
    else:
        yield value


def _whole(value: Any) -> Any:
    """The value with 1.0 written as 1."""
    if isinstance(value, dict):
        return {name: _whole(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_whole(one) for one in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _total(counts: Counter[str], kind: str) -> int:
    return sum(count for outcome, count in counts.items() if outcome.startswith(f"{kind} "))


def _rejected(counts: Counter[str]) -> int:
    return sum(count for outcome, count in counts.items() if outcome.startswith("valid rejected"))


if __name__ == "__main__":
    sys.exit(main())
