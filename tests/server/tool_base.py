"""A base whose chat template shows tools and calls."""

from __future__ import annotations

import shutil
from pathlib import Path

from support.golden import BASE
from support.running import replace_files
from tokenizers import AddedToken, Tokenizer

__all__ = ["write_tool_base"]

# As Qwen3: tools, turns with their calls, and thinking that can be switched off.
_TEMPLATE = (
    "{% for tool in tools or [] %}{{ tool | tojson }}\n{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content or '' }}"
    "{% for call in m.tool_calls or [] %}{{ '\\n' if m.content or not loop.first else '' }}<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}\n</tool_call>'
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


def write_tool_base(folder: Path) -> Path:
    """Write the golden base with such a template, and its tags as tokens. Returns the folder."""
    shutil.copytree(BASE, folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tags = ("<think>", "</think>", "<tool_call>", "</tool_call>")
    assert len(tags) == tokenizer.add_tokens([AddedToken(tag, special=False) for tag in tags])
    replace_files(folder, {"chat_template.jinja": _TEMPLATE, "tokenizer.json": tokenizer.to_str()})
    return folder
