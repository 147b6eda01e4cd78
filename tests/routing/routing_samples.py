"""Experts to route to: those of this repository, published ones, and some that only stand here."""

from __future__ import annotations

from pathlib import Path

from hivellm_ort.package.manifest import ExpertManifest
from hivellm_ort.package.manifest_parts import Routing
from hivellm_ort.routing import Candidate

MODELS = Path(__file__).parents[2] / "models"
PUBLISHED = Path(__file__).parents[2].parent / "shared" / "hivellm" / "manifests"
"""Published manifests; not part of the repository."""


def candidates_in(folder: Path, pattern: str, prefix: str) -> list[Candidate]:
    """The experts of some manifests, with a prefix before their names."""
    manifests = [ExpertManifest.from_file(path) for path in sorted(folder.glob(pattern))]
    return [Candidate(prefix + one.name, one.routing, one.capabilities) for one in manifests]


def candidate(
    name: str,
    *keywords: str,
    exclude: tuple[str, ...] = (),
    hint: str | None = None,
    priority: float | None = None,
    capabilities: tuple[str, ...] = (),
) -> Candidate:
    """One expert, from its keywords."""
    return Candidate(name, Routing(keywords, exclude, hint, priority), capabilities)


OWN = candidates_in(MODELS, "*/manifest.json", "own-")

WRITTEN = [
    candidate(
        "expert-cypher",
        *("cypher", "neo4j", "graph", "node", "relationship", "connected to", "shortest path", "match"),
        exclude=("sql", "json"),
        hint="database=neo4j OR tech=neo4j OR task=text2cypher",
        priority=0.9,
        capabilities=("database:neo4j", "query:cypher", "task:text2cypher", "language:en"),
    ),
    # As published: no routing at all, and a capability with a hyphen.
    candidate(
        "expert-typescript",
        capabilities=(
            "language:typescript",
            "task:typescript_function",
            "feature:type-guards",
            "language:en",
        ),
    ),
    candidate("expert-cpp", "c++", "std::vector", "cmake", "#include", priority=0.8),
    candidate("expert-esql", "es|ql", "esql", priority=0.8),
    candidate("expert-chinese", "数据库", "查询", priority=0.8, capabilities=("language:zh",)),
]
"""Experts of other kinds, with the oddities that published manifests have."""


def kind_of(name: str) -> str:
    """What an expert is for: `own-expert-sql` and `published-expert-sql` are of one kind."""
    return name.rsplit("-", 1)[-1]
