"""The tokenizer of a base model's folder, as any transformers version writes it.

`tokenizer.json` is complete: it is read as it is, whatever class `tokenizer_config.json` names. Transformers 5 writes
classes that version 4 does not have. Other settings of that file (special tokens, templates) are first renamed as in
version 4. If the two files contradict each other, the export is refused: the ids of the training are not known.

No code of the folder is run, and no file outside of it is read.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import transformers
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING, tokenizer_class_from_name

from hivellm_export.huggingface.files import read_object, read_text, shown
from hivellm_ort.errors import ExportError, LoadError
from hivellm_ort.text.tokenizer_file import parse_tokenizer

__all__ = ["check_size", "load_tokenizer"]

_CONFIG, _TOKENIZER = "tokenizer_config.json", "tokenizer.json"
_MODEL = "config.json"
_TEMPLATE, _TEMPLATES = "chat_template.jinja", "additional_chat_templates"
_SPECIAL = ("special_tokens_map.json", "added_tokens.json")
# Internal settings of transformers: values from the folder could make it read other files.
_DROPPED = (
    "auto_map", "backend", "chat_template", "fast_tokenizer_files", "from_slow", "is_local", "local_files_only",
    "merges_file", "model_specific_special_tokens", "name_or_path", "tokenizer_class", "tokenizer_file",
    "tokenizer_object", "vocab_file",
)  # fmt: skip
_PARTS = ("normalizer", "pre_tokenizer", "model", "decoder")


def load_tokenizer(folder: Path, config: Any) -> Any:
    """Load the fast tokenizer of a Hugging Face folder.

    Args:
        folder: A folder with `tokenizer.json`, or `vocab.json` and `merges.txt`, or `tokenizer.model`. The last needs
            the package sentencepiece.
        config: The model's configuration object. It decides the class if no file does.

    Raises:
        ExportError: A file is missing or malformed, or two files contradict each other.
    """
    document = read_object(folder / _MODEL) if (folder / _MODEL).is_file() else {}
    settings = read_object(folder / _CONFIG) if (folder / _CONFIG).is_file() else {}
    complete = read_object(folder / _TOKENIZER) if (folder / _TOKENIZER).is_file() else None
    _check_settings(settings)
    _check_vocabulary(folder, complete)
    templates = _templates(folder, settings)
    known = _class_of(settings, document, config)
    if known is None and complete is None:
        raise ExportError(
            f"{_CONFIG}: tokenizer_class {shown(settings.get('tokenizer_class'))} is not one of transformers "
            f"{transformers.__version__}, and the folder has no {_TOKENIZER}"
        )
    staged = _as_version_4(settings)
    if templates:
        staged["chat_template"] = templates
    if complete is not None:
        _keep_prefix_space(staged, complete, known)
    with tempfile.TemporaryDirectory() as work:
        stage = Path(work)
        _write(stage / _CONFIG, staged)
        _write(stage / _MODEL, {key: document.get(key) for key in ("model_type", "transformers_version")})
        _stage_vocabulary(folder, stage, complete)
        tokenizer = (known or transformers.PreTrainedTokenizerFast).from_pretrained(
            stage, local_files_only=True
        )
    if not tokenizer.is_fast:
        raise ExportError(
            f"{folder.name}: the tokenizer has no {_TOKENIZER} form; the runtime reads only that"
        )
    if complete is not None:
        _check_unchanged(folder / _TOKENIZER, tokenizer)
    return tokenizer


def check_size(tokenizer: Any, folder: Path, name: str, rows: int) -> None:
    """Check that a tokenizer has no more tokens than a model has rows in its embedding.

    Args:
        tokenizer: The tokenizer.
        folder: Its folder, for messages.
        name: The model, for messages.
        rows: Rows of the embedding.

    Raises:
        ExportError: It has more tokens.
    """
    last = max(tokenizer.get_vocab().values(), default=-1)
    if last >= rows:
        raise ExportError(
            f"{folder}: the tokenizer has a token {last}, but the embedding of {name} has {rows} rows: this is the "
            "tokenizer of another model"
        )


def _check_settings(settings: Mapping[str, Any]) -> None:
    name = settings.get("tokenizer_class")
    if name is not None and not isinstance(name, str):
        raise ExportError(f"{_CONFIG}: tokenizer_class must be a text, it is {shown(name)}")
    for key, why in (
        ("auto_map", "names code in the folder, which is never run"),
        ("split_special_tokens", "splits special tokens, which tokenizer.json cannot express"),
        ("fast_tokenizer_files", "names a different file for each version of transformers"),
    ):
        if settings.get(key):
            raise ExportError(
                f"{_CONFIG}: {key} = {shown(settings[key])} {why}: remove it if {_TOKENIZER} alone is right"
            )


def _check_vocabulary(folder: Path, complete: Mapping[str, Any] | None) -> None:
    if complete is not None:
        try:
            parse_tokenizer(json.dumps(complete).encode())
        except LoadError as error:
            raise ExportError(str(error)) from error
        return
    if all((folder / name).is_file() for name in ("vocab.json", "merges.txt")):
        return
    if not (folder / "tokenizer.model").is_file():
        raise ExportError(
            f"{folder.name}: no tokenizer: {_TOKENIZER} is missing, and so are vocab.json with merges.txt"
        )
    if find_spec("sentencepiece") is None:
        raise ExportError(
            f"tokenizer.model: {_TOKENIZER} is missing, and converting this file needs sentencepiece: pip install "
            f"sentencepiece, or save the tokenizer with transformers, which writes {_TOKENIZER}"
        )


def _class_of(settings: Mapping[str, Any], document: Mapping[str, Any], config: Any) -> Any:
    """The fast class that the folder names; None if transformers 4 does not have it."""
    name = settings.get("tokenizer_class") or document.get("tokenizer_class")
    if not isinstance(name, str):
        return TOKENIZER_MAPPING[type(config)][1]
    for candidate in (f"{name.removesuffix('Fast')}Fast", name):
        found = tokenizer_class_from_name(candidate)
        if isinstance(found, type) and issubclass(found, transformers.PreTrainedTokenizerFast):
            return found
    return None


def _as_version_4(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Rename settings as in version 4, where lists of extra special tokens have another name."""
    staged = {key: value for key, value in settings.items() if key not in _DROPPED}
    extra = staged.pop("extra_special_tokens", None)
    named = settings.get("model_specific_special_tokens")
    for key, value in (("model_specific_special_tokens", named), ("extra_special_tokens", extra)):
        wanted = (dict, list) if key == "extra_special_tokens" else (dict,)
        if value is not None and not isinstance(value, wanted):
            raise ExportError(f"{_CONFIG}: {key} must be an object of tokens, it is {shown(value)}")
    names = {**(named or {}), **(extra if isinstance(extra, dict) else {})}
    if names:
        staged["extra_special_tokens"] = names
    if isinstance(extra, list):
        listed = staged.get("additional_special_tokens") or []
        if not isinstance(listed, list):
            raise ExportError(f"{_CONFIG}: additional_special_tokens must be a list, it is {shown(listed)}")
        staged["additional_special_tokens"] = [*listed, *(token for token in extra if token not in listed)]
    return staged


def _templates(folder: Path, settings: Mapping[str, Any]) -> str | dict[str, str] | None:
    """The chat template, or several by name. As in transformers, files override `tokenizer_config.json`."""
    found: dict[str, Any] = {}
    if (folder / _TEMPLATE).is_file():
        found["default"] = read_text(folder / _TEMPLATE)
    for file in sorted((folder / _TEMPLATES).glob("*.jinja")):
        found[file.name.removesuffix(".jinja")] = read_text(file)
    where = f"{_TEMPLATE} and {_TEMPLATES}"
    if not found:
        where = f"{_CONFIG}: chat_template"
        found = _named(settings.get("chat_template"), where)
    if found and "default" not in found:
        raise ExportError(
            f"{where}: no template is named default, only {', '.join(sorted(map(str, found)))}: save the one to "
            f"use as {_TEMPLATE}"
        )
    for name, text in found.items():
        if not text.strip():
            raise ExportError(f"{where}: the template {name} is empty: remove it, or write one")
    return found["default"] if len(found) == 1 else found or None


def _named(value: Any, where: str) -> dict[str, Any]:
    if value is None:
        return {}
    if isinstance(value, str):
        return {"default": value}
    if isinstance(value, list) and all(
        isinstance(item, dict) and {"name", "template"} <= {*item} for item in value
    ):
        value = {item["name"]: item["template"] for item in value}
    if not isinstance(value, dict) or any(
        not isinstance(text, str) for item in value.items() for text in item
    ):
        raise ExportError(f"{where} must be a text, or a list of objects with name and template")
    return value


def _keep_prefix_space(staged: dict[str, Any], complete: Mapping[str, Any], known: Any) -> None:
    """Keep the setting of `tokenizer.json`, which version 4 would replace by a default."""
    asked = staged.pop("add_prefix_space", None)
    own = _prefix_space(complete)
    plain = known in (None, transformers.PreTrainedTokenizerFast)
    steps = complete.get("pre_tokenizer")
    if own is None or (plain and isinstance(steps, dict) and steps.get("type") == "Sequence"):
        return  # no version changes it inside a sequence
    if asked is not None and asked != own:
        raise ExportError(
            f"{_CONFIG}: add_prefix_space is {json.dumps(asked)}, but {json.dumps(own)} in {_TOKENIZER}: correct "
            "the one that is wrong"
        )
    if not own or not isinstance(steps, dict) or steps.get("type") != "ByteLevel":
        return
    if asked is None and known is not None:
        raise ExportError(
            f"{_TOKENIZER}: its pre_tokenizer adds a space before a text, which transformers 4 and 5 handle "
            f"differently: write add_prefix_space, true or false, into {_CONFIG}"
        )
    # With any value, classes of sentencepiece build the tokenizer anew from tokenizer.model.
    if plain or not str(known.vocab_files_names.get("vocab_file")).endswith(".model"):
        staged["add_prefix_space"] = own


def _prefix_space(complete: Mapping[str, Any]) -> bool | None:
    """Whether a `tokenizer.json` puts a space before a text; None if it does not say."""
    for step in _steps(complete.get("normalizer"), "normalizers"):
        if step.get("type") == "Prepend":
            return True
    for step in _steps(complete.get("pre_tokenizer"), "pretokenizers"):
        if step.get("type") == "Metaspace" and "prepend_scheme" in step:
            return bool(step["prepend_scheme"] != "never")
        if isinstance(step.get("add_prefix_space"), bool):
            return bool(step["add_prefix_space"])
    return None


def _steps(part: Any, key: str) -> list[dict[str, Any]]:
    if not isinstance(part, dict):
        return []
    steps = part.get(key, []) if part.get("type") == "Sequence" else [part]
    return [step for step in steps if isinstance(step, dict)]


def _stage_vocabulary(folder: Path, stage: Path, complete: Mapping[str, Any] | None) -> None:
    for name in _SPECIAL:
        if (folder / name).is_file():
            _write(stage / name, read_object(folder / name))
    if complete is not None:
        _write(stage / _TOKENIZER, complete)
        return
    for name in ("vocab.json", "merges.txt"):
        if (folder / name).is_file():
            (stage / name).write_text(read_text(folder / name), encoding="utf-8", newline="\n")
    if (folder / "tokenizer.model").is_file():
        shutil.copyfile(folder / "tokenizer.model", stage / "tokenizer.model")


def _check_unchanged(path: Path, tokenizer: Any) -> None:
    """Check that the class of transformers kept all parts: some classes rebuild parts for their own model."""
    own = json.loads(parse_tokenizer(path.read_bytes()).tokenizer.to_str())
    loaded = json.loads(tokenizer.backend_tokenizer.to_str())
    for part in _PARTS:
        if own[part] != loaded[part]:
            raise ExportError(
                f"{_TOKENIZER}: its {part} differs from that of {type(tokenizer).__name__}, the class in {_CONFIG}: "
                f"write PreTrainedTokenizerFast there if {_TOKENIZER} is right"
            )


def _write(path: Path, document: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")
