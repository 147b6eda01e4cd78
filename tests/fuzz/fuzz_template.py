"""Chat templates: a template renders within its budget, or is refused."""

from __future__ import annotations

import json
import random
import tempfile
from pathlib import Path

from attempts import refusing
from hostile_templates import HOSTILE
from mutations import bytes_changed, json_changed, mutated, words_changed
from template_samples import (
    ALTERNATING,
    CHATML_LIKE,
    DEEPSEEK_LIKE,
    DROPPING,
    HERMES_LIKE,
    ITEMS_LIKE,
    LLAMA_LIKE,
    MISTRAL_LIKE,
    PARTS_LIKE,
)
from tokenizer_samples import byte_level_tokenizer

from hivellm_ort.errors import InferenceError, LoadError, OptionError
from hivellm_ort.text.template import ChatTemplate, end_of_turn_ids
from hivellm_ort.text.tokenizer import TextTokenizer

WORDS = [
    "{{ ", " }}", "{% ", " %}", "{%- ", "{# ", "{% endfor %}", "{% for m in messages %}", "{% if tools %}",
    "{% endif %}", "{% set ns = namespace(x=[]) %}", "{% macro f(n) %}", "{% endmacro %}", "{% raw %}", "messages",
    "m['content']", "loop.index0", "range(99999)", "| tojson", "| join", "| list", "| map('string')", "| format(1)",
    "| safe", "| batch(9)", "| sort", "| groupby('role')", ".split('a')", ".join('ab')", ".format(1)", ".items()",
    "* 99999", "~", "** 99", "% 7", "'%99999d'", "raise_exception('no')", "strftime_now('%Y')", "namespace()",
    "cycler(1, 2)", "joiner()", "self", "caller()", "loop(messages)", "is defined", "not in", "[1:]", "[::-1]",
    "<|im_start|>", "<|im_end|>", "\ud7ff", "\0", "__class__", "bos_token", "add_generation_prompt", "recursive",
]  # fmt: skip
_CONFIG_WORDS = [
    "chat_template",
    "default",
    "tool_use",
    "name",
    "template",
    "bos_token",
    "content",
    "eos_token",
]
_TEXT_WAYS = (words_changed(WORDS), words_changed(WORDS), bytes_changed)
_CONFIG_WAYS = (json_changed(_CONFIG_WORDS), words_changed(WORDS))
_FOLDER = Path(tempfile.mkdtemp(prefix="hivellm-fuzz-"))
_TOKENIZER = TextTokenizer(byte_level_tokenizer())
_MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "a <|im_start|>b"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}],
    },
    {"role": "tool", "content": "é"},
]
_SAMPLES = [
    CHATML_LIKE, HERMES_LIKE, LLAMA_LIKE, MISTRAL_LIKE, ITEMS_LIKE, DEEPSEEK_LIKE, PARTS_LIKE, ALTERNATING, DROPPING,
]  # fmt: skip
_TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]


def samples() -> list[bytes]:
    """Templates of the families in use, those that would never end, and configurations that hold a template."""
    config = {"bos_token": {"content": "<s>"}, "eos_token": "<|im_end|>", "chat_template": _SAMPLES[0]}
    named = {"chat_template": [{"name": name, "template": _SAMPLES[1]} for name in ("default", "tool_use")]}
    configs = [json.dumps(one) for one in (config, named)]
    return [text.encode() for text in (*_SAMPLES, *HOSTILE.values(), *configs)]


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Another template, or another configuration."""
    return mutated(data, rng, _CONFIG_WAYS if _is_json(data) else _TEXT_WAYS)


def _is_json(data: bytes) -> bool:
    return data[:2] == b'{"' or data[:2] == b"{\n"


def target(data: bytes) -> None:
    """Read it as a bundle's, and render a conversation with and without tools."""
    config = _is_json(data)
    for name, chosen in (("tokenizer_config.json", config), ("chat_template.jinja", not config)):
        if chosen:
            (_FOLDER / name).write_bytes(data)
        else:
            (_FOLDER / name).unlink(missing_ok=True)
    with refusing(LoadError, OptionError):
        template = ChatTemplate.from_folder(_FOLDER, _TOKENIZER)
        with refusing(InferenceError):
            end_of_turn_ids(template, _TOKENIZER)
        for messages, tools in ((_MESSAGES[1:2], None), (_MESSAGES, _TOOLS)):
            with refusing(InferenceError, OptionError):
                template.encode(messages, _TOKENIZER, tools=tools)
        with refusing(InferenceError, OptionError):
            template.fit(_MESSAGES, _TOOLS)
