"""The chat template that an expert brings: the one that it was trained on goes before its base's."""

from __future__ import annotations

from pathlib import Path

from hivellm_ort.errors import LoadError
from hivellm_ort.text.template import ChatTemplate
from hivellm_ort.text.template_source import TemplateSource, read_template_source

__all__ = ["own_template"]


def own_template(folder: Path, bundle: Path) -> tuple[ChatTemplate | None, str | None]:
    """Read the chat template and the end token of an expert.

    Args:
        folder: with the expert's `chat_template.jinja` and `tokenizer_config.json`, or without.
        bundle: its base bundle, whose special tokens a template has that brings none.

    Returns:
        The template, None where there is none or it is the base's; and the end token, None where there is none.

    Raises:
        LoadError: a file is unreadable or malformed, or the template does not compile.
    """
    own, base = _source(folder), _source(bundle)
    tokens = {**base.tokens, **own.tokens}
    end = own.tokens.get("eos_token")
    if own.file is None or (own.source, own.tool_use, tokens) == (base.source, base.tool_use, base.tokens):
        return None, end
    template = ChatTemplate(
        own.source,
        bos_token=tokens.get("bos_token"),
        eos_token=tokens.get("eos_token"),
        name=f"{folder.resolve().name}/{own.file}",
        tokens=tokens,
        tool_use=own.tool_use,
    )
    return template, end


def _source(folder: Path) -> TemplateSource:
    try:
        return read_template_source(folder)
    except LoadError as error:
        raise LoadError(f"{folder.resolve().name}/{error}") from error
