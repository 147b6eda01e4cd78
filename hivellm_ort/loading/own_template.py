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
    bos, eos = own.bos_token or base.bos_token, own.eos_token or base.eos_token
    if own.file is None or (own.source, bos, eos) == (base.source, base.bos_token, base.eos_token):
        return None, own.eos_token
    template = ChatTemplate(
        own.source, bos_token=bos, eos_token=eos, name=f"{folder.resolve().name}/{own.file}"
    )
    return template, own.eos_token


def _source(folder: Path) -> TemplateSource:
    try:
        return read_template_source(folder)
    except LoadError as error:
        raise LoadError(f"{folder.resolve().name}/{error}") from error
