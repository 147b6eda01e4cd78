"""The experts in models/: manifests that tell the truth, and grammars that accept what they should."""

import hashlib
import json
from pathlib import Path

import pytest
from support.earley import Grammar, GrammarError, read

MODELS = Path(__file__).parents[1] / "models"
SHARED = Path(__file__).parents[1].parent / "shared"
EXPERTS = ["expert-sql", "expert-elastic", "expert-json"]
WITH_GRAMMAR = ["expert-sql", "expert-json"]

SQL_ACCEPTED = [
    "SELECT 1 FROM t",
    "SELECT * FROM users;",
    "SELECT * FROM users ;",
    "SELECT\n  u.name\nFROM users AS u",
    "SELECT u.*, o.total FROM users u JOIN orders o ON o.user_id = u.id",
    "SELECT a b, c AS d FROM s.t",
    "SELECT DISTINCT language FROM podcasts",
    "SELECT COUNT(DISTINCT city) AS cities FROM users",
    "SELECT count(*) FROM users",
    "SELECT a FROM t LEFT JOIN u ON t.id = u.t_id RIGHT OUTER JOIN v USING (id) CROSS JOIN w",
    "SELECT a FROM t FULL JOIN u ON TRUE INNER JOIN v ON t.id = v.id AND v.x > 1",
    "SELECT a FROM t, u AS v WHERE t.id = v.id",
    "SELECT a FROM t WHERE b IN (1, 2,3)",
    "SELECT a FROM t WHERE b NOT IN ('x', 'y') AND NOT c = 1",
    "SELECT a FROM t WHERE b IN (SELECT id FROM u WHERE c IS NULL)",
    "SELECT a FROM t WHERE b BETWEEN 1 AND 2 AND c NOT BETWEEN -1 AND x + 1",
    "SELECT a FROM t WHERE b LIKE '%x%' OR c NOT ILIKE 'y_'",
    "SELECT a FROM t WHERE b IS NULL AND c IS NOT NULL AND d IS TRUE AND e IS NOT DISTINCT FROM f",
    "SELECT a FROM t WHERE (b = 1 OR c = 2) AND (d <> 3)",
    "SELECT a FROM t WHERE name = 'O''Brien' AND path = 'c:\\dir' AND note = ''",
    "SELECT a FROM t WHERE NOT EXISTS (SELECT * FROM u WHERE u.id = t.id)",
    "SELECT a FROM t WHERE created_at >= CURRENT_DATE - INTERVAL '10 days'",
    "SELECT a FROM t WHERE created_at < DATE '2024-01-01' AND b = -1 + 2",
    "SELECT a, SUM(b) AS total FROM t GROUP BY a HAVING SUM(b) > 50 ORDER BY total DESC, a ASC",
    "SELECT a FROM t GROUP BY a, LOWER(b) ORDER BY a NULLS LAST LIMIT 5 OFFSET 10",
    "SELECT a FROM t ORDER BY b OFFSET 3 LIMIT 1",
    "SELECT CASE WHEN a > 1 THEN 'x' WHEN a < 0 THEN 'y' ELSE 'z' END AS kind FROM t",
    "SELECT CASE a WHEN 1 THEN 2 END FROM t",
    "SELECT (a + b) * -c / 2 % 3 FROM t",
    "SELECT a || ' ' || b AS full_name FROM t",
    "SELECT a::DATE, CAST(b AS NUMERIC(10, 2)), c::text FROM t",
    "SELECT EXTRACT(YEAR FROM created_at) AS year, DATE_TRUNC('month', created_at) FROM t",
    "SELECT COALESCE(a, 0), NULLIF(b, 0), NOW(), ROUND(AVG(c), 2) FROM t",
    "SELECT s.a FROM (SELECT a FROM t ORDER BY a LIMIT 3) AS s",
    "SELECT a FROM t WHERE b = (SELECT MAX(b) FROM t)",
    'SELECT "Group"."a""b" FROM "Group"',
    "SELECT userId, T.Name FROM Users AS T",
    "SELECT a FROM t WHERE s.g.code = g.code AND b > 1.5e-3",
]

SQL_REJECTED = [
    "",
    ";",
    "SELECT",
    "SELECTaFROMt",
    "SELECT aFROM t",
    "SELECT a FROMt",
    "SELECT a FROM t WHEREb = 1",
    "SELECT a FROM t WHERE b = 1AND c = 2",
    "SELECT a FROM t ORDERBY a",
    "SELECT a FROM t LIMIT5",
    "SELECT a FROM",
    "SELECT a FROM t WHERE",
    "SELECT a FROM t WHERE b =",
    "SELECT a FROM t WHERE b = = 1",
    "SELECT a FROM t WHERE b = c = d",
    "SELECT a FROM t GROUP a",
    "SELECT a, FROM t",
    "SELECT a FROM t,",
    "SELECT FROM t",
    "SELECT a FROM WHERE b = 1",
    "SELECT a FROM t JOIN u",
    "SELECT a FROM t WHERE b IN ()",
    "SELECT a FROM t WHERE b IN (1,)",
    "SELECT a FROM t WHERE b BETWEEN 1",
    "SELECT a FROM t WHERE (b = 1",
    "SELECT a FROM t WHERE b = 1)",
    "SELECT a FROM t WHERE b = 'x",
    "SELECT a FROM t WHERE b = 'x'y'",
    "SELECT a FROM t WHERE b IS 1",
    "SELECT a FROM t WHERE b = 1 --2",
    "SELECT a--1 FROM t",
    "SELECT a /* x */ FROM t",
    "SELECT a FROM t WHERE b !=-1",
    "SELECT COALESCE() FROM t",
    "SELECT SUM(*, 1) FROM t",
    "SELECT CASE END FROM t",
    "SELECT a FROM t HAVING a > 1 WHERE b = 1",
    "SELECT a FROM t LIMIT -1",
    "SELECT a FROM t LIMIT 1 LIMIT 2",
    "SELECT a FROM (SELECT b FROM t)",
    "SELECT a FROM t;;",
    "SELECT a FROM t; SELECT b FROM t",
    "SELECT 1a FROM t",
    "select a from t",
    "DELETE FROM t",
    "DROP TABLE t",
    "Here is the query: SELECT a FROM t",
    "<think></think>SELECT a FROM t",
]

JSON_ACCEPTED = [
    "{}",
    "[]",
    " { } ",
    "[ ]",
    '{"a":1}',
    '\r\n{\t"a" : [ 1 , 2 ] , "b" : { "c" : null } }\n',
    '[0, -0, 10, -1.5, 2e10, 2E+10, 1.25e-3, true, false, null, ""]',
    r'["\" \\ \/ \b \f \n \r \t \u00e9 \uD83D\uDE00"]',
    '["é", "\U0001f600", "\x7f", "\u2028"]',
    '{"": [[[[]]]], "a": {"a": {"a": {}}}}',
]

JSON_REJECTED = [
    "",
    " ",
    "1",
    '"text"',
    "null",
    "{",
    "[1",
    "{]",
    "[1,]",
    "[,1]",
    "[1 2]",
    '{"a":1,}',
    '{"a"}',
    '{"a":}',
    "{a:1}",
    "{'a':1}",
    '{"a":1 "b":2}',
    '{"a":1}}',
    '{"a":1}{"b":2}',
    "[01]",
    "[+1]",
    "[1.]",
    "[.5]",
    "[-]",
    "[1e]",
    "[0x1]",
    "[NaN]",
    "[Infinity]",
    "[True]",
    "[nulll]",
    '["a\nb"]',
    '["a\tb"]',
    '["\x00"]',
    '["\x1f"]',
    r'["\x41"]',
    r'["\u12g4"]',
    r'["\u123"]',
    '["a]',
    "[1]\x0c",
    "\ufeff{}",
    "[1] // note",
]


def manifest(name: str) -> dict:
    """Return the manifest of the expert."""
    return json.loads((MODELS / name / "manifest.json").read_text(encoding="utf-8"))


def adapter(name: str) -> dict:
    """Return the only adapter entry of the expert's only base model."""
    (base,) = manifest(name)["base_models"]
    (entry,) = base["adapters"]
    return entry


def grammar(name: str) -> Grammar:
    """Return the expert's grammar, read."""
    return read((MODELS / name / "grammar.gbnf").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def sql() -> Grammar:
    """Return the grammar of expert-sql."""
    return grammar("expert-sql")


@pytest.fixture(scope="module")
def json_text() -> Grammar:
    """Return the grammar of expert-json."""
    return grammar("expert-json")


def records(expert: str, file: str) -> list[dict]:
    """Return the lines of a shared JSONL file, or skip where it is not there."""
    path = SHARED / "experts" / expert / file
    if not path.is_file():
        pytest.skip("the shared evaluation data lies beside the repository, and it is not there")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def is_json(text: str) -> bool:
    """Say whether Python reads the text as a JSON object or array."""
    try:
        value = json.loads(text)
    except ValueError:
        return False
    return isinstance(value, dict | list)


def test_the_folder_holds_the_three_experts() -> None:
    """Every folder in models/ is one of the experts that these tests check."""
    assert sorted(EXPERTS) == sorted(path.name for path in MODELS.iterdir() if path.is_dir())


@pytest.mark.parametrize("name", EXPERTS)
def test_files_of_an_expert(name: str) -> None:
    """Each expert has its licence, its README and its weights, and a grammar exactly where the manifest says so."""
    always = {"LICENSE", "README.md", "adapter_config.json", "adapter_model.safetensors", "manifest.json"}
    named = manifest(name)["training"]["decoding"].get("grammar_file")
    assert always | ({named} if named else set()) == {path.name for path in (MODELS / name).iterdir()}
    assert (name in WITH_GRAMMAR) == (named == "grammar.gbnf")


@pytest.mark.parametrize("name", EXPERTS)
def test_manifest_identity(name: str) -> None:
    """The manifest carries the folder's name, the schema version and the base model."""
    read_back = manifest(name)
    assert (name, "0.1.0", "2.0") == (read_back["name"], read_back["version"], read_back["schema_version"])
    (base,) = read_back["base_models"]
    expected = ("HuggingFaceTB/SmolLM2-135M-Instruct", "chatml")
    assert expected == (base["name"], base["prompt_template"])


@pytest.mark.parametrize("name", EXPERTS)
def test_manifest_names_the_weights(name: str) -> None:
    """Size and SHA-256 in the manifest are those of the adapter file."""
    data = (MODELS / name / "adapter_model.safetensors").read_bytes()
    entry = adapter(name)
    assert (len(data), hashlib.sha256(data).hexdigest()) == (entry["size_bytes"], entry["sha256"])


@pytest.mark.parametrize("name", EXPERTS)
def test_manifest_agrees_with_the_adapter_config(name: str) -> None:
    """Rank, alpha, method and target modules are the same in the manifest and in PEFT's configuration."""
    config = json.loads((MODELS / name / "adapter_config.json").read_text(encoding="utf-8"))
    entry, trained = adapter(name), manifest(name)["training"]["config"]
    assert (config["r"], config["lora_alpha"]) == (entry["r"], entry["alpha"])
    assert (config["r"], config["lora_alpha"]) == (trained["rank"], trained["alpha"])
    assert sorted(config["target_modules"]) == sorted(entry["target_modules"])
    assert entry["target_modules"] == trained["target_modules"]
    assert ("dora" if config["use_dora"] else "lora") == entry["type"] == trained["adapter_type"]
    assert config["base_model_name_or_path"] == manifest(name)["base_models"][0]["name"]


@pytest.mark.parametrize("name", EXPERTS)
def test_manifest_decodes_greedily(name: str) -> None:
    """The manifest asks for what the figures were taken with: greedy decoding, no grammar, no stop strings."""
    decoding = manifest(name)["training"]["decoding"]
    expected = {"temperature": 0.0, "top_p": 1.0, "use_grammar": False}
    assert expected == {key: decoding[key] for key in expected}
    assert "stop_sequences" not in decoding


@pytest.mark.parametrize("name", EXPERTS)
def test_manifest_passes_the_published_schema(name: str) -> None:
    """The published JSON schema has nothing to say against the manifest."""
    jsonschema = pytest.importorskip("jsonschema")
    path = SHARED / "hivellm" / "schema" / "expert-manifest.schema.json"
    if not path.is_file():
        pytest.skip("the published schema lies beside the repository, and it is not there")
    validator = jsonschema.Draft7Validator(json.loads(path.read_text(encoding="utf-8")))
    assert not [error.message for error in validator.iter_errors(manifest(name))]


@pytest.mark.parametrize("name", EXPERTS)
def test_metrics_are_the_measured_ones(name: str) -> None:
    """The quality figures in the manifest are those of the shared evaluation."""
    path = SHARED / "experts" / name / "metrics.json"
    if not path.is_file():
        pytest.skip("the shared evaluation data lies beside the repository, and it is not there")
    measured = json.loads(path.read_text(encoding="utf-8"))["expert"]["all"]
    told = manifest(name)["quality_metrics"]
    assert measured["n"] == told["test_queries"]
    assert measured["exact"] == told["heldout_exact"]
    assert measured["ended"] == told["heldout_ended"]
    assert measured.get("json_valid") == told.get("heldout_valid_json")


@pytest.mark.parametrize("name", WITH_GRAMMAR)
def test_grammars_are_portable(name: str) -> None:
    """The grammars have LF ends, use every rule, and have neither left recursion nor names llama.cpp refuses."""
    assert b"\r" not in (MODELS / name / "grammar.gbnf").read_bytes()
    rules = grammar(name)
    assert not rules.left_recursive()
    assert not rules.unreachable()
    assert not [rule for rule in rules.rules if "_" in rule]


@pytest.mark.parametrize("text", SQL_ACCEPTED)
def test_sql_grammar_accepts(sql: Grammar, text: str) -> None:
    """The statement is in the language."""
    assert len(text) == sql.viable(text)
    assert sql.accepts(text)


@pytest.mark.parametrize("text", SQL_REJECTED)
def test_sql_grammar_rejects(sql: Grammar, text: str) -> None:
    """The text is not in the language."""
    assert not sql.accepts(text)


@pytest.mark.parametrize("text", JSON_ACCEPTED)
def test_json_grammar_accepts(json_text: Grammar, text: str) -> None:
    """The text is in the language, and Python reads it too."""
    assert json_text.accepts(text)
    assert is_json(text)


@pytest.mark.parametrize("text", JSON_REJECTED)
def test_json_grammar_rejects(json_text: Grammar, text: str) -> None:
    """The text is not in the language."""
    assert not json_text.accepts(text)


@pytest.mark.parametrize("name", WITH_GRAMMAR)
def test_grammars_accept_the_heldout_answers(name: str) -> None:
    """Every reference answer that the expert was measured against is in its grammar's language."""
    rules = grammar(name)
    answers = [record["answer"] for record in records(name, "heldout.jsonl")]
    assert not [answer for answer in answers if not rules.accepts(answer)]


def test_sql_grammar_accepts_what_the_expert_writes(sql: Grammar) -> None:
    """Every recorded output of expert-sql is in the language."""
    outputs = [record["expert_text"] for record in records("expert-sql", "references.jsonl")]
    assert not [output for output in outputs if not sql.accepts(output)]


@pytest.mark.parametrize("name", ["expert-elastic", "expert-json"])
@pytest.mark.parametrize("column", ["answer", "expert_text", "base_text"])
def test_json_grammar_agrees_with_python(json_text: Grammar, name: str, column: str) -> None:
    """On recorded texts, valid and broken, the grammar and Python's reader come to the same verdict."""
    texts = [record[column] for record in records(name, "references.jsonl")]
    assert [is_json(text) for text in texts] == [json_text.accepts(text) for text in texts]


NOTATION = r"""# a comment with "quotes" | and ::= signs
root ::=   # after the sign
    word ("," [ \t]? word)* |

    "\x41\u00e9\U0001F600" tail |
    [^a-z\]-]{2,3} | "" end   # the last one
word ::= [a-cx-]+
tail ::= ( "(" . ")" |
  "["
  "]" ){0,2}
end_of-1 ::= "!"{2}
end ::= end_of-1 "\\\"\n\r\t"
"""

NOTATION_TEXTS = {
    "a": True,
    "ab-x,\tc": True,
    "a,\t\tb": False,
    "d": False,
    "A\u00e9\U0001f600": True,
    "A\u00e9\U0001f600(\n)[]": True,
    "A\u00e9\U0001f600[][][]": False,
    "QQ": True,
    "Q": False,
    "QQQ": True,
    "QQQQ": False,
    "Q-": False,
    '!!\\"\n\r\t': True,
    '!\\"\n\r\t': False,
    "": False,
}


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
@pytest.mark.parametrize(("text", "accepted"), NOTATION_TEXTS.items())
def test_reader_knows_the_notation(ends: str, text: str, accepted: bool) -> None:
    """Comments, CRLF, line breaks, classes, escapes, groups and repetitions mean what llama.cpp says they mean."""
    assert accepted == read(NOTATION.replace("\n", ends)).accepts(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "undefined rules: root"),
        ('root ::= "a" b', "undefined rules: b"),
        ('root ::= "a"\nroot ::= "b"', "line 2: rule 'root' is defined twice"),
        ('root ::= "a', "line 1: the grammar ends too early"),
        ("root ::= [a", "line 1: the grammar ends too early"),
        ('root ::= ("a"', "line 1: expected ')'"),
        ('root ::= "a")', "line 1: unexpected ')'"),
        ('\nroot = "a"', "line 2: expected '::='"),
        ("root ::= *", "line 1: nothing before '*' to repeat"),
        ('root ::= "a"{2,1}', "line 1: a repetition ends below its start"),
        ('root ::= "a"{x}', "line 1: a repetition is {m}, {m,} or {m,n}"),
        (r'root ::= "\q"', r"line 1: unknown escape \q"),
        (r'root ::= "\xg1"', r"line 1: bad escape \xg1"),
        ('root ::= "a"\n  | "b"', "line 2: expected a rule name"),
    ],
)
def test_reader_names_the_fault(text: str, message: str) -> None:
    """A broken grammar is refused with its line and its fault."""
    with pytest.raises(GrammarError) as caught:
        read(text)
    assert message == str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('root ::= "a" root | "b"', []),
        ('root ::= root "a" | "b"', ["root"]),
        ('root ::= x "a" | "b"\nx ::= ws root\nws ::= " "*', ["root", "x"]),
        ('root ::= x*\nx ::= "a"', []),
        ('root ::= x*\nx ::= "a"?', ["root"]),
    ],
)
def test_left_recursion_is_found(text: str, expected: list[str]) -> None:
    """Left recursion is found where it is direct, indirect, behind empty rules, or in a repetition."""
    assert expected == read(text).left_recursive()


@pytest.mark.parametrize(
    ("text", "viable", "accepted"),
    [("n", 1, True), ("n+n+n+n+n", 9, True), ("n+n+", 4, False), ("n+-", 2, False), ("", 0, False)],
)
def test_recogniser_handles_hard_grammars(text: str, viable: int, accepted: bool) -> None:
    """Left recursion, ambiguity, empty rules and cycles neither hang the recogniser nor mislead it."""
    rules = read('root ::= e\ne ::= e "+" e | nothing e nothing | "n"\nnothing ::= ""')
    assert viable == rules.viable(text)
    assert accepted == rules.accepts(text)
