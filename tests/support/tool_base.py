"""A base whose chat template shows tools and calls, and a model that says a given text."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Tokenizer

from support.golden import BASE
from support.running import replace_files

__all__ = ["TEMPLATE", "scripted", "write_tool_base"]

# As Qwen3: tools, turns with their calls, and thinking that can be switched off.
TEMPLATE = (
    "{% for tool in tools or [] %}{{ tool | tojson }}\n{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content or '' }}"
    "{% for call in m.tool_calls or [] %}{{ '\\n' if m.content or not loop.first else '' }}<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}\n</tool_call>'
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


def write_tool_base(folder: Path, source: Path = BASE) -> Path:
    """Write a base, the golden one by default, with such a template and its tags as tokens. Return the folder."""
    shutil.copytree(source, folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tags = ("<think>", "</think>", "<tool_call>", "</tool_call>")
    assert len(tags) == tokenizer.add_tokens([AddedToken(tag, special=False) for tag in tags])
    replace_files(folder, {"chat_template.jinja": TEMPLATE, "tokenizer.json": tokenizer.to_str()})
    return folder


def scripted(script: Sequence[int], begin: int) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Return a processor that makes a model say tokens, wherever it has a choice. It repeats the last one.

    Args:
        script: The tokens.
        begin: How many tokens the prompt has.
    """

    def process(token_ids: np.ndarray, logits: np.ndarray) -> np.ndarray:
        wanted = logits - 1000
        wanted[script[min(len(token_ids) - begin, len(script) - 1)]] = 1000
        return wanted

    return process
