"""Small real tokenizers, built once."""

from __future__ import annotations

import pytest
from tokenizer_samples import byte_level_tokenizer, metaspace_tokenizer
from tokenizers import decoders

from hivellm_ort.text.tokenizer import TextTokenizer


@pytest.fixture(scope="session")
def byte_level() -> TextTokenizer:
    """Return the ByteLevel tokenizer."""
    return TextTokenizer(byte_level_tokenizer())


@pytest.fixture(scope="session")
def metaspace() -> TextTokenizer:
    """Return the Metaspace tokenizer with the decoder of Llama 2."""
    decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return TextTokenizer(metaspace_tokenizer(decoder))
