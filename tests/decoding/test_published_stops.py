"""Published stops on real answers: the experts' reference answers lose nothing but whitespace at their end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from stopping import feed

from hivellm_ort.decoding.stops import StopMatcher

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared"
MANIFESTS = sorted([*ROOT.glob("models/*/manifest.json"), *SHARED.glob("hivellm/manifests/*.json")])
ANSWERS = sorted(SHARED.glob("experts/*/*.jsonl"))
# Of the six experts that HiveLLM has published; the manifests of some are not at hand.
PUBLISHED = {
    "sql": [";", "\n\n"],
    "neo4j": ["\n\n", "```", "};", ");"],
    "json": ["\n\n"],
    "elastic": ["\n\n"],
    "tools": ["```", "}", "\n\n"],
}


def answers(path: Path) -> list[str]:
    """Return the reference answers of a file, and what the trained expert answered."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [row[key] for row in rows for key in ("answer", "expert_text") if key in row]


def loses_nothing(answer: str, stops: list[str]) -> bool:
    """Tell whether an answer stays whole but for whitespace at its end, alone and where more follows."""
    pieces = [answer[i : i + 4] for i in range(0, len(answer), 4)]
    alone = feed(StopMatcher([], stops), pieces)
    followed = feed(StopMatcher([], stops), [*pieces, "\n\n", "And then"])
    return answer.rstrip() == alone.rstrip() and followed.startswith(answer.rstrip())


@pytest.mark.skipif(not MANIFESTS or not ANSWERS, reason="no manifests or no answers beside the repository")
@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_manifests_leave_every_reference_answer_whole(manifest: Path) -> None:
    """The stops of every manifest at hand, on every expert's answers."""
    decoding = json.loads(manifest.read_text(encoding="utf-8"))["training"]["decoding"]
    stops = decoding.get("stop_sequences", [])

    assert [] == [text for path in ANSWERS for text in answers(path) if not loses_nothing(text, stops)]


@pytest.mark.skipif(not ANSWERS, reason="no answers beside the repository")
@pytest.mark.parametrize("stops", [*PUBLISHED.values(), sorted(set().union(*PUBLISHED.values()))])
def test_published_stops_leave_every_reference_answer_whole(stops: list[str]) -> None:
    """Those of all published experts, each expert's own and all together, on every expert's answers."""
    assert [] == [text for path in ANSWERS for text in answers(path) if not loses_nothing(text, stops)]


@pytest.mark.skipif(not ANSWERS, reason="no answers beside the repository")
def test_strict_stops_would_not() -> None:
    """Matched literally and removed, the stops of the tools expert spoil every JSON object."""
    objects = [text for path in ANSWERS for text in answers(path) if text.startswith("{")]

    assert objects
    assert not any(feed(StopMatcher(["}"]), [text]).endswith("}") for text in objects)
