"""Compare the tokenizer of a bundle with one that was read independently of the exporter."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from hivellm_export.verify.source import GgufSource, SourceFile
from hivellm_ort.errors import ExportError
from hivellm_ort.text.tokenizer import TextTokenizer
from hivellm_ort.textfile import decode_text

__all__ = ["check_tokenizer", "sample_texts"]

Encode = Callable[[str], list[int]]


class _Reader(NamedTuple):
    """An independent tokenizer: its name for messages, and the added tokens that it knows; None for all."""

    name: str
    encode: Encode
    known: set[str] | None = None


_silence: Any = None  # llama.cpp keeps a pointer to this callback

# fmt: off
_WORDS = (  # letters that look like Latin ones are meant
    "kettle", "don't", "I'll we've THEY'RE it's", "naïve café", "Straße", "œuvre", "¿Cuántos pedidos?", "Ελληνικά",
    "Всего заказов", "שלום עולם", "مرحبا بالعالم", "नमस्ते दुनिया", "สวัสดีชาวโลก",  # noqa: RUF001
    "三月份的订单", "東京で会いましょう", "안녕하세요", "Tiếng Việt", "\U0001f642", "\U0001f469\u200d\U0001f467",
    "\U0001f1e9\U0001f1ea", "e\u0301", "\u200b", "\ufeff", "\ufb01", "½", "²", "\u0663\u0664\u0665",
    "\u0967\u0968\u0969", "\u2167",
)
_CODE = (
    "SELECT name, COUNT(*) FROM users WHERE id>=100 GROUP BY name;", "x=1;y+=2", "def f(a,b):\n\treturn a**b",
    '{"a": [1, 2.5, -3e10], "b": null}', '<td class="price">12.50 €</td>', "C:\\Users\\me\\file.txt", "a_b-c.d/e",
    "#include <stdio.h>\n\nint main() {\n    return 0;\n}", "https://example.org/?q=1&r=%20", "->=>!==<=>&&||", "...",
    "---", "```python\nprint('hi')\n```", "user@example.org", "1.000,50", "12:30:59", "2024-01-31", "+49 (0)30",
    "select name, total from orders where total > 10 order by total desc", "a walk in the woods, once or twice",
)
# fmt: on
_SPACES = ("", " ", "  ", "   ", "\n", "\n\n", " \n", "\n ", "\t", "\t\t", "\r\n", "\u00a0", "\u3000", "\v")


def check_tokenizer(
    ours: TextTokenizer, source: SourceFile, folders: Sequence[Path], *, where: str
) -> str | None:
    """Encode some hundred texts with the bundle's tokenizer and with independent ones.

    For folders this is that of transformers. For a GGUF file also that of llama.cpp, if `llama-cpp-python` is
    installed.

    Args:
        ours: The bundle's tokenizer.
        source: The base model that was exported.
        folders: Folders with tokenizers. One of all independent tokenizers must agree with `ours`.
        where: The bundle, for messages.

    Returns:
        None, or why it could not be compared, and a remedy.

    Raises:
        ExportError: A text gives other tokens. The message names the difference and its place.
    """
    if isinstance(source, GgufSource):
        _check_digits(ours, source, where)
    readers = list(_readers(source, folders))
    if not readers:
        return "tokenizer: not compared; install llama-cpp-python, or pass the original one with --tokenizer FOLDER"
    faults = []
    for name, encode, known in readers:
        added = [token for token in _added(ours) if known is None or token in known]
        fault = _first_difference(ours, encode, sample_texts(added))
        if fault is None:
            return None
        faults.append((name, fault))
    name, (text, expected, actual) = faults[0]
    pairs = enumerate(itertools.zip_longest(expected, actual))
    first = next(place for place, (one, other) in pairs if one != other)
    raise ExportError(
        f"{where}: the tokenizer differs from {name}: {text!r} gives {_short(actual[first:])} from token {first} on, "
        f"and not {_short(expected[first:])}{_blame(ours, text, expected)}"
    )


def sample_texts(added: Sequence[str] = ()) -> list[str]:
    """Some hundred texts of many kinds, always the same. Some have `added` tokens between words."""
    numbers = ["1234567890"[:length] for length in range(1, 11)] + ["x" + "7" * n + "y" for n in range(1, 6)]
    single = [*_WORDS, *_CODE, *numbers]
    spaced = [f"a{space}b{space}{space}7" for space in _SPACES]
    led = [f"{space}{word}" for space, word in zip(itertools.cycle(_SPACES[1:]), single, strict=False)]
    joined = [" ".join(pair) for pair in itertools.pairwise(single)]
    marked = [
        f"{token}user\n{word} {token}" for token, word in zip(added, itertools.cycle(_WORDS), strict=False)
    ]
    return [*single, *spaced, *led, *joined, *marked]


def _readers(source: SourceFile, folders: Sequence[Path]) -> Iterator[_Reader]:
    """The independent tokenizers of a source."""
    if isinstance(source, GgufSource) and find_spec("llama_cpp") is not None:
        yield _Reader("llama.cpp's", _llama_cpp(source.path))
    for folder in folders:
        try:
            own = _transformers(folder)
        except Exception:  # for example an unknown class
            own = None
        if own is not None:
            yield _Reader(f"transformers' reading of {folder.name}", own)
        if (folder / "tokenizer.json").is_file() and (own is None or _is_newer(folder)):
            yield _tokenizer_json(folder / "tokenizer.json")


def _transformers(folder: Path) -> Encode:
    import transformers

    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    return lambda text: list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _tokenizer_json(path: Path) -> _Reader:
    """The tokenizer of the file alone, without tokens that other files of the folder add."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(decode_text(path.read_bytes()))
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    return _Reader(
        f"{path.parent.name}/{path.name}",
        lambda text: list(tokenizer.encode(text, add_special_tokens=False).ids),
        known,
    )


def _llama_cpp(path: Path) -> Encode:
    import llama_cpp

    global _silence
    _silence = _silence or llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(_silence, None)  # it warns about a model without a context, which is intended
    model = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    return lambda text: list(model.tokenize(text.encode(), add_bos=False, special=True))


def _is_newer(folder: Path) -> bool:
    """Whether a later major version of transformers wrote the folder."""
    import transformers

    try:
        written = str(
            json.loads(decode_text((folder / "config.json").read_bytes())).get("transformers_version")
        )
    except (OSError, ValueError):
        return False
    return written.split(".")[0] > transformers.__version__.split(".")[0]


def _first_difference(
    ours: TextTokenizer, encode: Encode, texts: Sequence[str]
) -> tuple[str, list[int], list[int]] | None:
    for text in texts:
        expected, actual = encode(text), ours.encode(text)
        if expected != actual:
            return text, expected, actual
    return None


def _added(ours: TextTokenizer) -> list[str]:
    """Added tokens, at most 40."""
    document = json.loads(ours.to_json())
    return [str(token["content"]) for token in document.get("added_tokens") or ()][:40]


def _blame(ours: TextTokenizer, text: str, expected: list[int]) -> str:
    """Say where the fault is likely to be."""
    document = json.loads(ours.to_json())
    if any(id_ >= ours.vocab_size for id_ in expected):
        return "; its vocabulary is smaller"
    pieces = [ours.decode([id_], skip_special_tokens=False) for id_ in expected]
    if "".join(pieces) != text:
        return f"; look at its normaliser ({_type(document, 'normalizer')}), added tokens and vocabulary"
    return f"; look at its pre-tokenizer ({_type(document, 'pre_tokenizer')}), merges and added tokens"


def _type(document: dict[str, Any], part: str) -> str:
    value = document.get(part) or {}
    inner = [str(one.get("type")) for one in value.get("pretokenizers") or value.get("normalizers") or ()]
    return "+".join(inner) or str(value.get("type", "none"))


def _short(ids: list[int]) -> str:
    return str(ids[:8]) if len(ids) <= 8 else f"{str(ids[:8])[:-1]}, …]"


# Largest number of digits in one piece in llama.cpp, by tokenizer.ggml.pre; 0 for no limit.
_DIGITS = {
    "gpt-2": 0,
    "llama-bpe": 3,
    "llama3": 3,
    "llama-v3": 3,
    "qwen2": 1,
    "qwen35": 1,
    "smollm": 1,
    "tekken": 1,
}


def _check_digits(ours: TextTokenizer, source: GgufSource, where: str) -> None:
    """Check that the pre-tokenizer splits numbers as the file's kind does. This needs no other tokenizer."""
    name = source.key("tokenizer.ggml.pre")
    most = _DIGITS.get(str(name))
    if most is None or source.key("tokenizer.ggml.model") != "gpt2":
        return
    from tokenizers import Tokenizer

    splitter = Tokenizer.from_str(ours.to_json()).pre_tokenizer
    found = [piece for piece, _ in splitter.pre_tokenize_str("1234567")] if splitter is not None else []
    expected = 7 if most == 0 else most
    if not found or max(map(len, found)) != expected:
        raise ExportError(
            f"{where}: the tokenizer differs from {source.path.name}: its pre-tokenizer cuts '1234567' into {found}, "
            f"tokenizer.ggml.pre {name!r} allows {most or 'any number of'} digits in a piece"
        )
