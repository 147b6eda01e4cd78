"""Finds the chat template of a bundle and its special tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hivellm_ort.errors import LoadError
from hivellm_ort.jsonfiles.reading import read_json
from hivellm_ort.textfile import decode_text

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["CHATML", "CHATML_STOPS", "MAX_SOURCE", "TemplateSource", "read_template_source"]

CHATML = """\
{% for message in messages %}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\\n' }}
{%- endif %}
"""
"""Plain ChatML, without a default system message: the template of a bundle that has none."""

CHATML_STOPS = ("<|im_end|>",)
"""Where an answer in ChatML ends if the tokenizer has no such token."""

MAX_SOURCE = 1 << 18
"""Most characters of a template, and bytes of its file."""

_FILE = "chat_template.jinja"
_TOOL_USE = "additional_chat_templates/tool_use.jinja"
_CONFIG = "tokenizer_config.json"

# Values of the configuration that transformers passes to templates.
_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class TemplateSource:
    """The source of a template, of the template for tools, and the special tokens.

    `file` holds the first source; None if the bundle has no template and the source is plain ChatML.
    """

    source: str
    tool_use: str | None
    tokens: dict[str, Any]
    file: str | None


def read_template_source(folder: Path) -> TemplateSource:
    """Return `chat_template.jinja`, else `chat_template` of `tokenizer_config.json`, else plain ChatML.

    Args:
        folder: The unpacked base bundle or expert package.

    Raises:
        LoadError: A file is unreadable or malformed.
    """
    config = _read_config(folder / _CONFIG)
    file = folder / _FILE
    tokens = _tokens(config)
    if file.exists():
        tool_use = folder / _TOOL_USE
        return TemplateSource(_read(file), _read(tool_use) if tool_use.exists() else None, tokens, _FILE)
    value = config.get("chat_template")
    if value is None:
        return TemplateSource(CHATML, None, tokens, None)
    named = {t.get("name"): t.get("template") for t in value} if _is_listing(value) else {"default": value}
    default, other = named.get("default"), named.get("tool_use")
    if not isinstance(default, str) or not isinstance(other, str | None):
        raise LoadError(
            f'{_CONFIG}: chat_template must be a text, or a list with one named "default"; add one, '
            f"or put it into {_FILE}"
        )
    # A template inside JSON may also begin with a byte order mark.
    return TemplateSource(
        default.removeprefix("\ufeff"), other and other.removeprefix("\ufeff"), tokens, _CONFIG
    )


def _read(file: Path) -> str:
    """Return the text of a template file. Refuse large files."""
    try:
        if file.stat().st_size > MAX_SOURCE:
            raise LoadError(f"{file.name}: longer than {MAX_SOURCE} bytes; shorten it")
        return decode_text(file.read_bytes())
    except (OSError, UnicodeDecodeError) as error:
        raise LoadError(f"{file.name}: cannot be read as UTF-8 text; export the base again") from error


def _read_config(file: Path) -> dict[str, Any]:
    """Return `tokenizer_config.json`; empty if it does not exist."""
    return read_json(file) if file.exists() else {}


def _is_listing(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(one, dict) and isinstance(one.get("name"), str) for one in value
    )


def _tokens(config: dict[str, Any]) -> dict[str, Any]:
    """Return the special tokens of the configuration, by their names in transformers."""
    extra = config.get("extra_special_tokens")
    tokens: dict[str, Any] = {key: _content(config.get(key)) for key in _TOKENS}
    tokens |= {key: _content(value) for key, value in extra.items()} if isinstance(extra, dict) else {}
    more = config.get("additional_special_tokens")
    if isinstance(more, list) and more:
        tokens["additional_special_tokens"] = [_content(value) for value in more]
    for key in ("bos_token", "eos_token"):
        if tokens[key] is None and config.get(key) is not None:
            raise LoadError(
                f"{_CONFIG}: {key} must be a text or an object with content; export the base again"
            )
    return {key: token for key, token in tokens.items() if token is not None}


def _content(value: object) -> str | None:
    """Return a special token, given as a text or as an object with `content`."""
    token = value.get("content") if isinstance(value, dict) else value
    return token if isinstance(token, str) else None
