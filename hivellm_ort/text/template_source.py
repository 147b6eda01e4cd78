"""Where the chat template of a bundle is found, and the special tokens it names."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hivellm_ort.errors import LoadError
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

MAX_SOURCE = 1 << 20
"""Most characters of a template, and bytes of its file."""

_FILE = "chat_template.jinja"
_CONFIG = "tokenizer_config.json"


@dataclass(frozen=True)
class TemplateSource:
    """A template not yet compiled, the special tokens it may name, and where it comes from.

    `file` is None if the bundle has no template and the source is plain ChatML.
    """

    source: str
    bos_token: str | None
    eos_token: str | None
    file: str | None


def read_template_source(folder: Path) -> TemplateSource:
    """Return `chat_template.jinja`, else `chat_template` of `tokenizer_config.json`, else plain ChatML.

    Args:
        folder: The unpacked base bundle or expert package.

    Raises:
        LoadError: If one of the files is unreadable or malformed.
    """
    config = _read_config(folder / _CONFIG)
    file = folder / _FILE
    found: str | None
    if file.exists():
        source, found = _read(file), _FILE
    elif config.get("chat_template") is not None:
        source, found = _default_template(config["chat_template"]), _CONFIG
    else:
        source, found = CHATML, None
    return TemplateSource(source, _token(config, "bos_token"), _token(config, "eos_token"), found)


def _read(file: Path) -> str:
    """Return the text of a template file, refusing to read a large one."""
    try:
        if file.stat().st_size > MAX_SOURCE:
            raise LoadError(f"{file.name}: longer than {MAX_SOURCE} bytes; shorten it")
        return decode_text(file.read_bytes())
    except (OSError, UnicodeDecodeError) as error:
        raise LoadError(f"{file.name}: cannot be read as UTF-8 text; export the base again") from error


def _read_config(file: Path) -> dict[str, Any]:
    """Return tokenizer_config.json, or nothing if there is none."""
    if not file.exists():
        return {}
    try:
        config = json.loads(decode_text(file.read_bytes()))
    except OSError as error:
        raise LoadError(f"{file.name}: cannot be read ({error.strerror}); export the base again") from error
    except (ValueError, RecursionError) as error:
        raise LoadError(f"{file.name}: not valid JSON ({error}); export the base again") from error
    if not isinstance(config, dict):
        raise LoadError(f"{file.name}: must be a JSON object; export the base again")
    return config


def _default_template(value: object) -> str:
    """Return the template of a configuration: the text itself, or the one named "default"."""
    if isinstance(value, list):
        named = (t for t in value if isinstance(t, dict) and t.get("name") == "default")
        value = next(named, {}).get("template")
    if not isinstance(value, str):
        raise LoadError(
            f'{_CONFIG}: chat_template must be a text, or a list with one named "default"; add one, '
            f"or put it into {_FILE}"
        )
    return value


def _token(config: dict[str, Any], key: str) -> str | None:
    """Return a special token, which is written as a text or as an object with its `content`."""
    value = config.get(key)
    token = value.get("content") if isinstance(value, dict) else value
    if value is not None and not isinstance(token, str):
        raise LoadError(f"{_CONFIG}: {key} must be a text or an object with content; export the base again")
    return token
