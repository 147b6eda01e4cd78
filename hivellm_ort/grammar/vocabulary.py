"""The tokenizer as llguidance needs it: no text of a grammar is ever read as a special token."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from threading import Lock
from typing import TYPE_CHECKING, Any

from hivellm_ort.errors import GrammarError
from hivellm_ort.panics import panics_as

if TYPE_CHECKING:
    from llguidance import LLTokenizer

__all__ = ["Vocabulary", "replace_tokens"]

_ADDED_TOKENS = re.compile(r'"added_tokens"\s*:\s*')
# What may hold "<" in llguidance's Lark without being a token: texts, regular expressions, comments.
_LARK_TOKEN = re.compile(
    r'"(?:\\.|[^"\\])*"|/(?:\\.|[^/\\\n])+/|(?://|#)[^\n]*|(?P<token><[^<>\s]+>)', re.DOTALL
)

_PROBE = 'A b  c\n\t{"key": [1.5, "é 東 🙂"]}\r\n'


class Vocabulary:
    """llguidance's tokenizer of one base, and the tokens that grammars may name.

    llguidance writes forced text with the tokenizer itself, which reads `<think>` in it as the token. It then
    contradicts its own grammar, which means the letters. So here every special token has an unguessable name.
    It holds any token that is marked special or written `<…>` as special, and so do we.

    Args:
        tokenizer_json: The content of `tokenizer.json`.
        width: Width of the model's logits, at least the number of tokens.

    Attributes:
        tokenizer: What llguidance compiles grammars for.
        width: As given.
        size: The first id that no token has, up to which ids may be allowed.
        visible: The special tokens that are not marked special: their names are part of an answer's text.

    Raises:
        GrammarError: If llguidance cannot read the tokenizer.
    """

    def __init__(self, tokenizer_json: str, width: int) -> None:
        from llguidance import LLTokenizer

        self.width = width
        self._pieces: frozenset[bytes] | None = (
            None  # the bytes of every token; slow to list, and seldom needed
        )
        self._listing = Lock()
        try:
            text, self._names, end, shown = _renamed(tokenizer_json)
            self.visible = frozenset(self._names[name] for name in shown)
            self.size = min(end, width)
            # An end token of its own: those of the model differ between requests, so the constraint sees to them.
            with panics_as(_unreadable):
                self.tokenizer: LLTokenizer = LLTokenizer(text, n_vocab=max(width, end + 1), eos_token=[end])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise _unreadable(str(error)) from error
        if not self._reads_back(_PROBE):
            raise GrammarError(
                "tokenizer.json: llguidance, which enforces grammars, reads other texts in its tokens than it means; "
                "generate without a grammar, or export the base with another tokenizer"
            )

    def _reads_back(self, text: str) -> bool:
        with panics_as(_unreadable):
            return bool(self.tokenizer.decode_bytes(self.tokenizer.tokenize_str(text)) == text.encode())

    def spells(self, text: str) -> bool:
        """Say whether some tokens make the text."""
        content = text.encode()
        if self._reads_back(text):
            return True
        with self._listing:
            if self._pieces is None:
                special = set(self._names.values())
                ids = (one for one in range(self.size) if one not in special)
                self._pieces = frozenset(self.tokenizer.decode_bytes([one]) for one in ids)
        longest = max(map(len, self._pieces), default=0)
        reached = {0}
        for end in range(1, len(content) + 1):
            if any(
                begin in reached and content[begin:end] in self._pieces
                for begin in range(max(0, end - longest), end)
            ):
                reached.add(end)
        return len(content) in reached

    def special(self, name: str) -> int | None:
        """Return the id of the special token of that name; None if there is none."""
        return self._names.get(name)

    def parts(self, text: str) -> list[str | int]:
        """Return a text in pieces, with the id in the place of each special token's name."""
        names = sorted((name for name in self._names if name in text), key=len, reverse=True)
        if not names:
            return [text]
        pieces = re.split(f"({'|'.join(map(re.escape, names))})", text)
        return [self._names[piece] if index % 2 else piece for index, piece in enumerate(pieces)]

    def named(self, lark: str) -> str:
        """Return the Lark text with `<name>` replaced by `<[id]>` wherever it stands for a token.

        Raises:
            GrammarError: If the tokenizer has no special token of that name.
        """

        def numbered(token: str) -> str:
            if token.startswith("<["):
                return token
            if token not in self._names:
                raise GrammarError(
                    f"the grammar names the token {token}, which this model's tokenizer does not have; "
                    'use a token of the model, or write the text in quotes ("<…>")'
                )
            return f"<[{self._names[token]}]>"

        return replace_tokens(lark, numbered)


def _unreadable(words: str) -> GrammarError:
    return GrammarError(
        f"tokenizer.json: llguidance, which enforces grammars, cannot read it ({words}); "
        "generate without a grammar, or export the base with another tokenizer"
    )


def replace_tokens(lark: str, replacement: Callable[[str], str]) -> str:
    """Return a text in llguidance's Lark with `replacement` of each token that it names.

    Args:
        lark: The text.
        replacement: Gets a token as it is written there, such as `<think>` or `<[1000]>`.
    """

    def replaced(match: re.Match[str]) -> str:
        return match[0] if match["token"] is None else replacement(match["token"])

    return _LARK_TOKEN.sub(replaced, lark)


def _renamed(text: str) -> tuple[str, dict[str, int], int, list[str]]:
    """Return the tokenizer with renamed special tokens and an end token, their ids by name, and the end token's.

    Last come the names of those that the tokenizer does not mark special.
    """
    document = json.loads(text)
    vocabulary, added = document["model"]["vocab"], document["added_tokens"]
    nonce = os.urandom(16).hex()
    names = {token["content"]: token["id"] for token in added if _is_special(token)}
    shown = [token["content"] for token in added if _is_special(token) and not token["special"]]
    renamed = [
        token | {"content": f"<{nonce}:{token['id']}>", "special": True} if _is_special(token) else token
        for token in added
    ]
    by_id = isinstance(vocabulary, list)  # Unigram has pairs of text and score in the order of ids
    tokens = {pair[0]: place for place, pair in enumerate(vocabulary)} if by_id else vocabulary
    end = max([*tokens.values(), *(token["id"] for token in added)]) + 1
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    renamed.append({"id": end, "content": f"<{nonce}:end>", **flags, "special": True})
    place = _ADDED_TOKENS.search(text)
    in_vocabulary = names.keys() & tokens.keys()
    decoder = document["decoder"] or {}
    parts = [part for part in decoder.get("decoders", ()) if part["type"] == "ByteLevel"]
    if place is not None and not in_vocabulary and not parts:
        # Writing the whole document again takes a tenth of the time that all the rest does.
        found, stop = json.JSONDecoder().raw_decode(text, place.end())
        if found == added:
            return text[: place.end()] + json.dumps(renamed) + text[stop:], names, end, shown
    for name in in_vocabulary:
        new = f"<{nonce}:{names[name]}>"
        if by_id:
            vocabulary[tokens[name]][0] = new
        else:
            vocabulary[new] = vocabulary.pop(name)
    document["added_tokens"] = renamed
    if parts:
        # It goes by the first part of a sequence, and would take the bytes for letters.
        document["decoder"] = parts[0]
    return json.dumps(document), names, end, shown


def _is_special(token: dict[str, Any]) -> bool:
    content = token["content"]
    return bool(token["special"]) or (content.startswith("<") and content.endswith(">"))
