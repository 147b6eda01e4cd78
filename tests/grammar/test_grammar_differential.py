"""The grammars handed to llguidance against a recogniser of its own making.

Texts are derived at random from each grammar as the recogniser reads it, and some are changed afterwards. There are
800 for each grammar; the environment variable `HIVELLM_GRAMMAR_EXAMPLES` sets another number. Where
`HIVELLM_TEST_TOKENIZERS` names a folder with one folder per model, their tokenizers are tried too.
"""

from __future__ import annotations

import os
import random
from itertools import islice
from pathlib import Path

import pytest
from matching import REAL, SAMPLES, accepts, lark_of, matcher, members, mutated, text_of
from support.earley import read

from hivellm_ort.grammar.vocabulary import Vocabulary

COUNT = int(os.environ.get("HIVELLM_GRAMMAR_EXAMPLES", "800"))
LONGEST = 120  # characters: the recogniser is made for clarity

_ROOT = os.environ.get("HIVELLM_TEST_TOKENIZERS")
TOKENIZERS = sorted(path.parent for path in Path(_ROOT).glob("*/tokenizer.json")) if _ROOT else []
GRAMMARS = SAMPLES + sorted(REAL.glob("*.gbnf"))


def _texts(gbnf: str, count: int) -> list[str]:
    """Return so many texts, half of them members."""
    random_ = random.Random(5)
    source = (text for text in members(read(gbnf, leading_bars=True), random_) if len(text) <= LONGEST)
    return [text if index % 2 else mutated(text, random_) for index, text in enumerate(islice(source, count))]


@pytest.mark.parametrize("path", GRAMMARS, ids=lambda path: path.stem)
def test_same_texts_are_accepted(path: Path) -> None:
    """The exact grammar takes a text if and only if the recogniser does."""
    gbnf = text_of(path)
    recogniser, compiled = read(gbnf, leading_bars=True), matcher(lark_of(gbnf))
    texts = _texts(gbnf, COUNT)
    differing = [text for text in texts if recogniser.accepts(text) != accepts(compiled, text)]
    assert [] == differing[:5], f"{len(differing)} of {len(texts)}"


@pytest.mark.parametrize("path", GRAMMARS, ids=lambda path: path.stem)
def test_quick_grammar_takes_no_more(path: Path) -> None:
    """The grammar for generating takes only texts of the language."""
    gbnf = text_of(path)
    recogniser, compiled = read(gbnf, leading_bars=True), matcher(lark_of(gbnf, exact=False))
    texts = _texts(gbnf, COUNT // 4)
    taken = [text for text in texts if accepts(compiled, text)]
    assert [] == [text for text in taken if not recogniser.accepts(text)][:5]
    assert len(taken) > len(texts) / 10


@pytest.mark.skipif(not TOKENIZERS, reason="HIVELLM_TEST_TOKENIZERS names no folder with tokenizers")
@pytest.mark.parametrize("folder", TOKENIZERS, ids=lambda folder: folder.name)
def test_masks_of_real_tokenizers(folder: Path) -> None:
    """Texts in the tokens of a real tokenizer are allowed token by token, and their end is."""
    tokenizer = Vocabulary((folder / "tokenizer.json").read_text("utf-8"), 0).tokenizer
    for path in GRAMMARS:
        lark = lark_of(text_of(path), exact=False)
        in_bytes, compiled = matcher(lark), matcher(lark, tokenizer)
        for text in [text for text in _texts(text_of(path), 24) if accepts(in_bytes, text)]:
            for token in tokenizer.tokenize_str(text):
                mask = compiled.compute_bitmask()
                assert mask[token // 8] >> token % 8 & 1, (path.stem, text, tokenizer.decode_str([token]))
                assert compiled.consume_token(token)
            assert compiled.is_accepting()
            assert compiled.reset()


def test_published_grammars_are_there() -> None:
    """Both published grammars were compared too."""
    if not REAL.is_dir():
        pytest.skip(f"no folder {REAL.name} of published grammars")
    assert ["expert-json", "expert-sql"] == sorted(path.stem for path in GRAMMARS if path.parent == REAL)
