"""Make a fast tokenizer from a GGUF file, with the same ids as llama.cpp."""

from __future__ import annotations

import re
from collections import defaultdict

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from hivellm_export.gguf.file import GgufFile
from hivellm_export.gguf.vocabulary import OPTION, Vocabulary, read_template, read_vocabulary
from hivellm_ort.errors import ExportError

__all__ = ["read_tokenizer"]

_BLANK = "▁"


def read_tokenizer(file: GgufFile) -> PreTrainedTokenizerFast:
    """Make the tokenizer of a file, with its chat templates.

    Raises:
        ExportError: The tokenizer cannot be made. The message names the key.
    """
    vocabulary = read_vocabulary(file)
    make = _of_bytes if vocabulary.model == "gpt2" else _of_characters
    tokenizer = make(vocabulary, file.name)
    tokens = vocabulary.tokens
    added = [
        AddedToken(tokens[i], special=special, normalized=False, rstrip=i in vocabulary.strips)
        for i, special in vocabulary.added.items()
    ]
    tokenizer.add_tokens(added)
    _frame(tokenizer, vocabulary)
    names = {
        "bos_token": vocabulary.bos,
        "eos_token": vocabulary.eos,
        "unk_token": vocabulary.unknown,
        "pad_token": vocabulary.padding,
    }
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        clean_up_tokenization_spaces=False,
        chat_template=read_template(file),
        # Naming a token here would make it special, so only those that are special in llama.cpp are named.
        **{name: tokens[i] for name, i in names.items() if i in vocabulary.added},
    )


def _of_bytes(vocabulary: Vocabulary, _: str) -> Tokenizer:
    assert vocabulary.pre is not None
    ids = {token: i for i, token in enumerate(vocabulary.tokens)}
    tokenizer = Tokenizer(
        models.BPE(vocab=ids, merges=vocabulary.merges, ignore_merges=vocabulary.pre.whole_words)
    )
    cuts = [pre_tokenizers.Split(Regex(expression), "isolated") for expression in vocabulary.pre.expressions]
    alphabet = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    missing = "".join(sorted(set(pre_tokenizers.ByteLevel.alphabet()) - ids.keys()))
    # Bytes without a token are left out. This cut prevents merges across them.
    gaps = [pre_tokenizers.Split(Regex(f"[{re.escape(missing)}]"), "removed")] if missing else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*cuts, alphabet, *gaps])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _of_characters(vocabulary: Vocabulary, name: str) -> Tokenizer:
    ids = {token: i for i, token in enumerate(vocabulary.tokens)}
    has_bytes = all(f"<0x{byte:02X}>" in ids for byte in range(256))
    unknown = None if vocabulary.unknown is None else vocabulary.tokens[vocabulary.unknown]
    tokenizer = Tokenizer(
        models.BPE(
            vocab=ids,
            merges=_merges_by_score(vocabulary, ids, name),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=has_bytes,
        )
    )
    prefix = [normalizers.Prepend(_BLANK)] if vocabulary.space_prefix else []
    tokenizer.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", _BLANK)])
    strip = [decoders.Strip(" ", 1, 0)] if vocabulary.space_prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_BLANK, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return tokenizer


def _merges_by_score(vocabulary: Vocabulary, ids: dict[str, int], name: str) -> list[tuple[str, str]]:
    """Convert SentencePiece scores to merges: every way to make a token of two others, the highest score first.

    If scores are equal, llama.cpp merges the leftmost pair. A list of merges cannot express this. Runs of one
    character are correct if the longer token is first. Any other tokens of equal score that may compete are an error.
    """
    ways: list[tuple[float, int, int, str, str]] = []
    equal: defaultdict[float, dict[str, None]] = defaultdict(dict)
    for token, i in ids.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in ids and right in ids:
                ways.append((-vocabulary.scores[i], -len(token), i, left, right))
                if i not in vocabulary.added and len(set(token)) > 1:
                    equal[vocabulary.scores[i]][token] = None
    for tokens in equal.values():
        _check_order(list(tokens), vocabulary, ids, name)
    ways.sort()
    return [(left, right) for *_, left, right in ways]


def _check_order(tokens: list[str], vocabulary: Vocabulary, ids: dict[str, int], name: str) -> None:
    """Refuse two tokens with one score if one ends with a part that the other begins with."""
    begins: dict[str, str] = {}
    for token in tokens:
        for cut in range(1, len(token)):
            if token[:cut] in ids and token[cut:] in ids:
                begins.setdefault(token[:cut], token)
    for token in tokens:
        for cut in range(1, len(token)):
            other = begins.get(token[cut:]) if token[:cut] in ids else None
            if other is not None and other != token:
                raise ExportError(
                    f"{name}: tokenizer.ggml.scores: tokens {ids[token]} ({token!r}) and {ids[other]} ({other!r}) "
                    f"have the same score, {vocabulary.scores[ids[token]]}, so no order of merges is right: {OPTION}"
                )


def _frame(tokenizer: Tokenizer, vocabulary: Vocabulary) -> None:
    """Add the begin and end tokens of a text, if the file asks for them."""
    ends = [
        (vocabulary.tokens[i], i) if add and i is not None else None
        for add, i in ((vocabulary.add_bos, vocabulary.bos), (vocabulary.add_eos, vocabulary.eos))
    ]
    if any(ends):
        first, last = (f"{end[0]}:0" if end else "" for end in ends)
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[piece for piece in (first, "$A:0", last) if piece],
            pair=[piece for piece in (first, "$A:0", last, first, "$B:0", last) if piece],
            special_tokens=[end for end in ends if end],
        )
