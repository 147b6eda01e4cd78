"""Read the tokenizer keys of a GGUF file: tokens, their types, merges or scores, begin and end tokens.

If a key is missing, the default is that of llama.cpp (`llama-vocab.cpp`), or the key is required.
"""

# ruff: noqa: RUF001 - DeepSeek writes its tokens with these bars
from __future__ import annotations

import enum
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from hivellm_export.gguf.file import GgufFile
from hivellm_export.gguf.pretokenizers import PRE_TOKENIZERS, PreTokenizer
from hivellm_ort.errors import ExportError

__all__ = [
    "OPTION",
    "TokenType",
    "Vocabulary",
    "begin_id",
    "end_ids",
    "read_template",
    "read_tokens",
    "read_vocabulary",
]

OPTION = "give the model's original tokenizer with --tokenizer FOLDER"
_MODELS = ("gpt2", "llama")
_PREFIX = "tokenizer.ggml."
# Keys that change nothing here with any value: infilling is not supported.
_HARMLESS = {
    *("token_type_count", "seperator_token_id", "mask_token_id", "cls_token_id", "add_sep_token"),
    *(f"fim_{name}_token_id" for name in ("pre", "suf", "mid", "pad", "rep", "sep")),
    *("prefix_token_id", "suffix_token_id", "middle_token_id"),
}
_READ = {
    *("model", "pre", "tokens", "token_type", "scores", "merges", "add_bos_token", "add_eos_token"),
    *("add_space_prefix", "remove_extra_whitespaces"),
    *(f"{name}_token_id" for name in ("bos", "eos", "eot", "eom", "unknown", "padding")),
}
# llama.cpp ends an answer at these, and treats them as special tokens, whatever their types in the file.
_ENDS = {
    *("<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>"),
    *("<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>", "<eos>"),
    *("<end_of_turn>", "<end_of_utterance>", "<turn|>", "<|tool_response>", "<｜end▁of▁sentence｜>", "[e~["),
}
# llama.cpp treats these marks for infilling as special too, if the file names no token of the kind.
_INFILLING = {
    "pre": "<|fim_prefix|> <fim-prefix> <fim_prefix> <｜fim▁begin｜> <PRE> ▁<PRE> <|code_prefix|> <|prefix|>",
    "suf": "<|fim_suffix|> <fim-suffix> <fim_suffix> <｜fim▁hole｜> <SUF> ▁<SUF> <|code_suffix|> <|suffix|>",
    "mid": "<|fim_middle|> <fim-middle> <fim_middle> <｜fim▁end｜> <MID> ▁<MID> <|code_middle|> <|middle|>",
    "pad": "<|fim_pad|> <fim-pad> <fim_pad> <PAD> [PAD]",
    "rep": "<|fim_repo|> <|repo_name|> <fim-repo> <REPO> <reponame>",
    "sep": "<|file_sep|>",
}
_USER_DEFINED = ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>")


class TokenType(enum.IntEnum):
    """Type of a token, as in `tokenizer.ggml.token_type`."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


_ADDED = (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.USER_DEFINED)


@dataclass(frozen=True)
class Vocabulary:
    """The checked tokenizer keys of a file.

    Attributes:
        model: `gpt2` merges bytes; `llama` merges characters by score (SentencePiece).
        tokens: Text of each token, by id; all different.
        kinds: Types of the tokens, as llama.cpp corrects them.
        merges: For `gpt2`: pairs in order.
        scores: For `llama`: a score for each token. The pair with the highest score of its token is merged first.
        pre: For `gpt2`: how a text is split into words.
        bos: Id of the begin token; None if there is none.
        eos: Id of the end token; None if there is none.
        unknown: Id of the unknown token; None if there is none.
        padding: Id of the padding token; None if there is none.
        add_bos: Whether `bos` is put before a text.
        add_eos: Whether `eos` is put after a text.
        space_prefix: For `llama`: whether a space is put before each text between special tokens.
        strips: Ids of added tokens that remove the white space after them.
    """

    model: str
    tokens: list[str]
    kinds: list[TokenType]
    merges: list[tuple[str, str]]
    scores: list[float]
    pre: PreTokenizer | None
    bos: int | None
    eos: int | None
    unknown: int | None
    padding: int | None
    add_bos: bool
    add_eos: bool
    space_prefix: bool
    strips: frozenset[int]

    @cached_property
    def added(self) -> dict[int, bool]:
        """Ids of tokens that are found in a text before it is split, and whether each is special."""
        return {i: kind is not TokenType.USER_DEFINED for i, kind in enumerate(self.kinds) if kind in _ADDED}


def read_vocabulary(file: GgufFile) -> Vocabulary:
    """Read and check the keys `tokenizer.ggml.*`.

    Raises:
        ExportError: A key is missing, malformed or not supported. The message names it.
    """
    model = file.value(f"{_PREFIX}model", str)
    if model not in _MODELS:
        raise ExportError(
            f"{file.name}: {_PREFIX}model {model!r} is not supported; supported are {', '.join(_MODELS)}"
        )
    for key in file.keys:
        if key.startswith(_PREFIX) and key.removeprefix(_PREFIX) not in _READ | _HARMLESS:
            raise ExportError(f"{file.name}: the exporter does not know {key}: {OPTION}")
    for name in ("remove_extra_whitespaces", *(("add_space_prefix",) if model == "gpt2" else ())):
        if file.value(f"{_PREFIX}{name}", bool, False):
            raise ExportError(f"{file.name}: {_PREFIX}{name} is not supported with {model}: {OPTION}")
    tokens = read_tokens(file)
    _check_unique(file, tokens)
    kinds = _kinds(file, tokens)
    pre = _pre(file) if model == "gpt2" else None
    sentences = model == "llama"
    defaults = {"bos": 1, "eos": 2, "unknown": 0} if sentences else {}
    ids = {
        name: _id(file, f"{name}_token_id", len(tokens), defaults.get(name))
        for name in ("bos", "eos", "unknown", "padding")
    }
    for name in ("bos", "eos"):
        token_id = ids[name]
        if token_id is not None and kinds[token_id] not in _ADDED:
            raise ExportError(
                f"{file.name}: {_PREFIX}{name}_token_id is {token_id}, {tokens[token_id]!r}, but by token_type this "
                f"is not a special token: {OPTION}"
            )
    adds = {
        "bos": file.value(f"{_PREFIX}add_bos_token", bool, sentences or (pre is not None and pre.add_bos)),
        "eos": file.value(f"{_PREFIX}add_eos_token", bool, False),
    }
    for name, add in adds.items():
        if add and ids[name] is None:
            raise ExportError(
                f"{file.name}: {_PREFIX}{name}_token_id is missing, but it must be added to every text: {OPTION}"
            )
    return Vocabulary(
        model=model,
        tokens=tokens,
        kinds=kinds,
        merges=[] if sentences else _merges(file, set(tokens)),
        scores=_scores(file, len(tokens)) if sentences else [],
        pre=pre,
        **ids,
        add_bos=adds["bos"],
        add_eos=adds["eos"],
        space_prefix=sentences and file.value(f"{_PREFIX}add_space_prefix", bool, True),
        strips=_strips(file, tokens, kinds),
    )


def end_ids(file: GgufFile) -> list[int]:
    """Ids that end an answer: eos, eot, eom, and control tokens whose texts end one in llama.cpp.

    Raises:
        ExportError: A key is malformed, or not the id of a token.
    """
    tokens = read_tokens(file)
    kinds = file.value(f"{_PREFIX}token_type", list, [])
    named = (_id(file, f"{name}_token_id", len(tokens), None) for name in ("eos", "eot", "eom"))
    pairs = enumerate(zip(tokens, kinds, strict=False))  # `read_vocabulary` reports wrong lengths
    written = (i for i, (token, kind) in pairs if kind == TokenType.CONTROL and token in _ENDS)
    return sorted({i for i in (*named, *written) if i is not None})


def read_template(file: GgufFile) -> str | dict[str, str] | None:
    """The chat template; if there are several, a dictionary with the usual one as `default`."""
    prefix = "tokenizer.chat_template"
    keys = [key for key in file.keys if key.startswith(f"{prefix}.")]
    found = {key.removeprefix(f"{prefix}."): file.value(key, str) for key in keys}
    usual = file.value(prefix, str, None)
    return usual if not found else found if usual is None else {"default": usual, **found}


def read_tokens(file: GgufFile) -> list[str]:
    """Texts of the tokens by id, unchecked. A token without a text gets llama.cpp's name for it."""
    return [token or f"[EMPTY_{i}]" for i, token in enumerate(_list(file, f"{_PREFIX}tokens", str))]


def begin_id(file: GgufFile) -> int | None:
    """Id of the begin token; None if the file names none."""
    default = 1 if file.value(f"{_PREFIX}model", str, None) == "llama" else None
    return _id(file, "bos_token_id", len(read_tokens(file)), default)


def _check_unique(file: GgufFile, tokens: list[str]) -> None:
    first: dict[str, int] = {}
    for i, token in enumerate(tokens):
        if first.setdefault(token, i) != i:
            raise ExportError(
                f"{file.name}: {_PREFIX}tokens has {token!r} twice, as {first[token]} and {i}: {OPTION}"
            )


def _kinds(file: GgufFile, tokens: list[str]) -> list[TokenType]:
    key = f"{_PREFIX}token_type"
    kinds = []
    for i, number in enumerate(_list(file, key, int, len(tokens))):
        if number not in TokenType.__members__.values():
            raise ExportError(f"{file.name}: {key} of token {i} ({tokens[i]!r}) is {number}: {OPTION}")
        kinds.append(TokenType(number))
    special = set(_ENDS)
    for name, texts in _INFILLING.items():
        if f"{_PREFIX}fim_{name}_token_id" not in file.keys:
            special.update(texts.split())
    for i, token in enumerate(tokens):
        if token in special:
            kinds[i] = TokenType.CONTROL
        elif token in _USER_DEFINED:
            kinds[i] = TokenType.USER_DEFINED
    return kinds


def _pre(file: GgufFile) -> PreTokenizer:
    key = f"{_PREFIX}pre"
    name = file.value(key, str, None)
    if name is None:
        raise ExportError(f"{file.name}: {key} is missing, so it is unknown how words are split: {OPTION}")
    if name not in PRE_TOKENIZERS:
        raise ExportError(
            f"{file.name}: {key} {name!r} is not supported; supported are {', '.join(sorted(PRE_TOKENIZERS))}: "
            f"{OPTION}"
        )
    return PRE_TOKENIZERS[name]


def _merges(file: GgufFile, tokens: set[str]) -> list[tuple[str, str]]:
    key = f"{_PREFIX}merges"
    merges: dict[tuple[str, str], None] = {}  # of two equal merges, llama.cpp keeps the first
    for i, text in enumerate(_list(file, key, str)):
        left, _, right = text[1:].partition(" ")
        pair = (text[:1] + left, right)
        if not {*pair, "".join(pair)} <= tokens:
            raise ExportError(
                f"{file.name}: {key}[{i}], {text!r}, is not two tokens that form a third: {OPTION}"
            )
        merges[pair] = None
    return list(merges)


def _scores(file: GgufFile, count: int) -> list[float]:
    return [float(score) for score in _list(file, f"{_PREFIX}scores", (int, float), count)]


def _id(file: GgufFile, name: str, count: int, default: int | None) -> int | None:
    found = file.value(f"{_PREFIX}{name}", int, default if default is not None and default < count else None)
    if found is not None and not 0 <= found < count:
        raise ExportError(f"{file.name}: {_PREFIX}{name} is {found}, but there are {count} tokens: {OPTION}")
    return found


def _strips(file: GgufFile, tokens: list[str], kinds: list[TokenType]) -> frozenset[int]:
    """Ids of special tokens that remove white space after them: in llama.cpp only for Phi-3, by its name."""
    name = file.value("general.name", str, "").lower()
    if "phi-3" not in name and "phi3" not in name:
        return frozenset()
    return frozenset(
        i
        for i, kind in enumerate(kinds)
        if kind in _ADDED and tokens[i] not in ("<unk>", "<s>", "<|endoftext|>")
    )


def _list(file: GgufFile, key: str, kind: Any, count: int | None = None) -> list[Any]:
    if key not in file.keys:
        raise ExportError(f"{file.name}: {key} is missing: {OPTION}")
    values = file.value(key, list)
    if not all(isinstance(value, kind) for value in values):
        raise ExportError(f"{file.name}: {key} has a value of a wrong type: {OPTION}")
    if count is not None and len(values) != count:
        raise ExportError(f"{file.name}: {key} has {len(values)} values for {count} tokens: {OPTION}")
    return values
