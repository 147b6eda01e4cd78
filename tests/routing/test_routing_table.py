"""Prompts, the kind of expert that each is for, and for some a reason that must be given."""

from __future__ import annotations

import pytest
from routing_samples import OWN, PUBLISHED, WRITTEN, candidates_in, kind_of

from hivellm_ort.routing import Router

TABLE: list[tuple[str, str | None, str | None]] = [
    # The reference router sends these to the wrong expert, or to none.
    ("Show how to join two tables", "sql", 'keyword "join"'),
    ("Fix this invalid JSON: {a:1}", "json", 'keyword "'),
    ("What is the SQL to count orders per customer? Group by the customer id.", "sql", 'keyword "group by"'),
    ("How do I create an index template in Elasticsearch?", "elastic", 'keyword "index template"'),
    ("Explain how to ingest nginx logs with an Elasticsearch pipeline.", "elastic", 'keyword "elasticsearch"'),
    ("why is this malformed JSON: [1,2,", "json", 'keyword "'),
    # Questions that belong to SQL.
    ("Write a SQL query that returns the ten newest invoices.", "sql", 'keyword "sql"'),
    ("SELECT name FROM users ORDER BY age: add the city column to the table", "sql", 'keyword "order by"'),
    ("Dialect: postgres\nSchema:\nCREATE TABLE dogs (id INT, age INT);\nSelect all dogs older than 3", "sql", None),
    ("In the database, count the customers of each city.", "sql", 'keyword "database"'),
    ("Which employees earn more than the average? Query the PostgreSQL database.", "sql", None),
    ("Join the orders table with the products table.", "sql", 'keyword "table"'),
    ("GROUP\tBY\n department and select the average salary", "sql", 'keyword "group by"'),
    ("text2sql please: all suppliers from Oslo in one SQL statement", "sql", None),
    ("Sum the amounts per month, group  by month.", "sql", 'keyword "group by"'),
    # JSON.
    ("json: repair it {'a': 1,}", "json", 'keyword "json"'),
    ("There is a trailing comma in my JSON, remove it.", "json", None),
    ("Is this valid (JSON)? {\"x\": 01}", "json", 'keyword "json"'),
    ("Correct this OpenAPI response: {\"status\": \"ok\"", "json", 'keyword "openapi"'),
    ("Fix this invalid JSON:\n{\"select\": 1, \"from\": \"table\"}", "json", None),
    ("The JSON has a syntax error somewhere near line 3.", "json", None),
    ("My OpenAPI file is malformed", "json", 'keyword "malformed"'),
    ("Make this \"JSON\" parse again: {\"id\": 7 \"n\": 2}", "json", None),
    ("\uff2a\uff33\uff2f\uff2e in full width letters, malformed", "json", 'keyword "json"'),
    ("Arregla este JSON por favor: {\"a\": }", "json", 'keyword "json"'),
    # Elasticsearch.
    ("Write an Elasticsearch query for errors of the last hour.", "elastic", 'keyword "elasticsearch"'),
    ("Create an ECS mapping for apache logs with fields status and event.type.", "elastic", 'keyword "ecs"'),
    ("Show a Kibana filter for failed logins", "elastic", 'keyword "kibana"'),
    ("Query DSL: documents where tags is staging AND category is error", "elastic", 'keyword "query dsl"'),
    ("Ingest pipeline with a grok processor for nginx", "elastic", 'keyword "ingest"'),
    ("Search nested metadata in the documents where id equals 201.", "elastic", None),
    ("Cardinality aggregation on user.id in elastic", "elastic", None),
    ("Elasticsearch: get all documents from the logs index and show the fields", "elastic", None),
    ("Erstelle ein Index-Mapping für Elasticsearch.", "elastic", 'keyword "elasticsearch"'),
    # Two subjects in one prompt: the exclude words decide.
    ("Turn this SQL query into Elasticsearch query DSL: documents by city", "elastic", 'keyword "query dsl"'),
    ("Create an index template in Elasticsearch as JSON", "elastic", 'keyword "index template"'),
    # For no expert.
    ("What's the weather?", None, None),
    ("", None, None),
    (" \n\t ", None, None),
    ("?!", None, None),
    ("Hello, how are you?", None, None),
    ("Tell me about the history of Rome.", None, None),
    ("Get me a list of good books from the library and show it.", None, None),
    ("Who is the president of France?", None, None),
    ("Where is the nearest station? Find it and list the way from here.", None, None),
    ("Book a table for two at eight.", None, None),
    ("It was a joint effort of jsonian tabletop sqlite fans.", None, None),
    ("The elasticity of a databased, selective, reordered listing", None, None),
    ("Schreibe ein Gedicht über den Herbst.", None, None),
    ("Traduza esta frase para o inglês.", None, None),
    ("En español, por favor, en verano.", None, None),
    ("今天天气怎么样?", None, None),
    ("😀" * 40, None, None),
    ("\ud800 \x00 \u202e", None, None),
]  # fmt: skip

FURTHER: list[tuple[str, str | None, str | None]] = [
    ("Find all people connected to Alice in the graph", "cypher", 'keyword "connected to"'),
    ("Cypher for the shortest path between two stations", "cypher", 'keyword "shortest path"'),
    ("Which NEO4J node has the most relationships?", "cypher", 'keyword "neo4j"'),
    (
        "Write a TypeScript function that adds two numbers",
        "typescript",
        "capability task:typescript_function",
    ),
    ("Type guards in TypeScript, please", "typescript", "capability feature:type-guards"),
    ("Parse a file in C++", "cpp", 'keyword "c++"'),
    ("c++17: how do I sort a std::vector?", "cpp", 'keyword "std::vector"'),
    ("What is vitamin C?", None, None),
    ("What does #included mean", None, None),
    ("Write ES|QL that counts errors", "esql", 'keyword "es|ql"'),
    ("esql, not sequel", "esql", 'keyword "esql"'),
    ("请用数据库查询所有用户", "chinese", 'keyword "数据库"'),
]

PUBLISHED_CANDIDATES = candidates_in(PUBLISHED, "*.json", "published-")
SIX = Router([*OWN, *PUBLISHED_CANDIDATES])
EIGHT = Router([*OWN, *WRITTEN])


def check(router: Router, prompt: str, kind: str | None, reason: str | None) -> None:
    """The best expert is of this kind, and says why."""
    routes = router.rank(prompt)
    shown = "\n".join(map(str, router.rank(prompt, include_unfit=True)))
    assert kind == (kind_of(routes[0].name) if routes else None), shown
    if reason is not None:
        assert any(
            reason in given for route in routes if kind_of(route.name) == kind for given in route.reasons
        ), shown


@pytest.mark.parametrize(("prompt", "kind", "reason"), TABLE)
def test_six_experts(prompt: str, kind: str | None, reason: str | None) -> None:
    """Three experts of this repository and three published ones share the prompts."""
    if not PUBLISHED_CANDIDATES:
        pytest.skip("the published manifests are not here")
    check(SIX, prompt, kind, reason)


@pytest.mark.parametrize(("prompt", "kind", "reason"), TABLE + FURTHER)
def test_eight_experts(prompt: str, kind: str | None, reason: str | None) -> None:
    """Three experts of this repository and five of other kinds share the prompts."""
    check(EIGHT, prompt, kind, reason)
