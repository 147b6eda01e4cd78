"""A base whose template knows `enable_thinking`, as Qwen3's does."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from running import PROMPT, Packages, engine_of

from hivellm_ort import Expert
from hivellm_ort.text.tokenizer import TextTokenizer

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
EMPTY = "<think>\n\n</think>\n\n"


@pytest.fixture
def thinker(packages: Packages, tmp_path: Path) -> Iterator[Expert]:
    """The LoRA expert on a copy of its base with such a template."""
    with packages.load("lora") as expert:
        bundle = Path(shutil.copytree(engine_of(expert).folder, tmp_path / "bundle"))
    (bundle / "chat_template.jinja").unlink()
    (bundle / "chat_template.jinja").write_text(TEMPLATE)
    path = bundle / "decoder.json"
    document = json.loads(path.read_bytes())
    content = TEMPLATE.encode()
    document["files"]["chat_template.jinja"] = {
        "size": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    path.unlink()
    path.write_text(json.dumps(document))
    with Expert.load(packages.lora, base=bundle, cache_dir=packages.cache, threads=1, trust="off") as expert:
        yield expert


def saying(text: str, tokenizer: TextTokenizer) -> Callable[[Any, np.ndarray], np.ndarray]:
    """A processor that makes the model say a text and end."""
    script = iter([*tokenizer.encode(text), 2])

    def process(_: Any, logits: np.ndarray) -> np.ndarray:
        forced = np.full_like(logits, -np.inf)
        forced[next(script)] = 0
        return forced

    return process


def test_thinking_is_off_unless_asked_for(thinker: Expert) -> None:
    """By default an empty think block is in the prompt; with `enable_thinking` there is none."""
    tokenizer = thinker._base.tokenizer
    without, with_ = (
        tokenizer.decode(thinker.ask(PROMPT, {"enable_thinking": flag}).request.prompt_ids)
        for flag in (None, True)
    )
    assert with_ + EMPTY == without
    off = thinker.ask(PROMPT, {"enable_thinking": False}).request.prompt_ids
    assert thinker.ask(PROMPT, {}).request.prompt_ids == off


@pytest.mark.parametrize("lookup", [False, True])
def test_reasoning_is_apart_from_the_answer(lookup: bool, thinker: Expert) -> None:
    """What is in the think block is `reasoning`; the stream and `text` have the answer only."""
    process = saying("<think>\nCount; them;\n</think>\n\nSELECT 1;", thinker._base.tokenizer)
    stream = thinker.generate_stream(
        PROMPT, enable_thinking=True, processors=[process], stop=";", prompt_lookup=lookup, max_tokens=100
    )
    pieces = list(stream)
    result = stream.result
    assert ("Count; them;", "SELECT 1", "stop") == (result.reasoning, result.text, result.finish_reason)
    assert "SELECT 1" == "".join(pieces)


def test_thought_that_never_ends(thinker: Expert) -> None:
    """An answer that is cut off while thinking has no text."""
    process = saying("<think>\nand so on and so on", thinker._base.tokenizer)
    result = thinker.generate(PROMPT, enable_thinking=True, processors=[process], max_tokens=100)
    assert ("and so on and so on", "", "eos") == (result.reasoning, result.text, result.finish_reason)
