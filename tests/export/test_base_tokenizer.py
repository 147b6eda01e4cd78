"""Tokenizer files of base folders, as transformers 4 and 5 write them: the same ids in the bundle, or a refusal."""

from __future__ import annotations

import codecs
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from reading import edit
from support import tiny
from support.exporting import Refusal, copied
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    processors,
    trainers,
)

from hivellm_export.pipeline import export
from hivellm_ort.text.template import ChatTemplate
from hivellm_ort.text.tokenizer import TextTokenizer

ModelFolder = Callable[[str], Path]

PIECES = (
    "select", " from", "where", "\n", "\n\n", "\t", "  ", " ", "1", "23,456.78", "def f(x):\n    return x", "é", "ß",
    "日本語", "中文", "עברית", "हिन्दी", "🙂", "👩‍👩‍👧", "\u00a0", "\u200b", "it's", "I'LL", "\r\n", "…", "—",
    "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<s>", "</s>", "<tool>", " <tool> ", "<|", "|>", "{", "}", '"',
    "\\",
)  # fmt: skip


def texts() -> list[str]:
    """300 texts of several scripts, code, numbers, white space and special tokens; the same each time."""
    choice = random.Random(7)
    return ["", *PIECES, *("".join(choice.choices(PIECES, k=choice.randint(2, 9))) for _ in range(300))]


def bundled(base: Path, work: Path) -> TextTokenizer:
    """The tokenizer of the bundle of `base`."""
    export(base, [], work / "bundle", precision="fp32")
    return TextTokenizer.from_folder(work / "bundle")


def assert_same_ids(expected: Callable[[str], list[int]], base: Path, work: Path) -> None:
    """The bundle's tokenizer gives the expected ids for every text."""
    actual = bundled(base, work)
    assert [(text, expected(text)) for text in texts()] == [(text, actual.encode(text)) for text in texts()]


def reference(folder: Path) -> Callable[[str], list[int]]:
    """The ids of `tokenizer.json` itself."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return lambda text: tokenizer.encode(text, add_special_tokens=False).ids


def transformers_ids(folder: Path) -> Callable[[str], list[int]]:
    """The ids of the tokenizer that transformers loads from `folder`."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return lambda text: tokenizer.encode(text, add_special_tokens=False)


def write_config(base: Path, **settings: Any) -> None:
    """Leave `tokenizer_config.json` with these settings alone, and no older file beside it."""
    (base / "special_tokens_map.json").unlink(missing_ok=True)
    (base / "chat_template.jinja").unlink(missing_ok=True)
    (base / "tokenizer_config.json").write_text(json.dumps(settings))


def add_token(base: Path, content: str) -> None:
    """Add a special token to `tokenizer.json`."""
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    tokenizer.add_special_tokens([AddedToken(content, special=True, normalized=False)])
    tokenizer.save(str(base / "tokenizer.json"))


@pytest.mark.parametrize(
    "name",
    [
        "TokenizersBackend", "PreTrainedTokenizerFast", "Qwen2Tokenizer", "Qwen2TokenizerFast", "GPT2Tokenizer",
        "MistralCommonBackend", "AClassOfTheFuture",
    ],
)  # fmt: skip
def test_any_class(name: str, model_folder: ModelFolder, tmp_path: Path) -> None:
    """A complete `tokenizer.json` is read as it is, whatever class is named, and the special tokens are kept."""
    base = copied(model_folder("qwen2"), tmp_path / "base")
    add_token(base, "<tool>")
    write_config(
        base,
        tokenizer_class=name,
        backend="tokenizers",
        is_local=True,
        bos_token=None,
        eos_token="<|im_end|>",
        extra_special_tokens=["<|im_start|>", "<tool>"],
        model_specific_special_tokens={"image_token": "<tool>"},
    )
    assert_same_ids(reference(base), base, tmp_path)
    written = json.loads((tmp_path / "bundle" / "tokenizer_config.json").read_text())
    assert "<|im_end|>" == written["eos_token"]
    assert written.get("bos_token") is None or name == "GPT2Tokenizer"


def test_special_tokens_in_any_words(model_folder: ModelFolder, tmp_path: Path) -> None:
    """Tokens that only the settings name become tokens, as a list, by name, in the old file or by id."""
    settings: list[dict[str, Any]] = [
        {"extra_special_tokens": ["<tool>"]},
        {"extra_special_tokens": {"image_token": "<tool>"}},
        {"additional_special_tokens": ["<tool>"], "extra_special_tokens": []},
        {"added_tokens_decoder": {"280": {"content": "<tool>", "special": True, "normalized": False}}},
    ]
    first = Tokenizer.from_file(str(model_folder("qwen2") / "tokenizer.json")).get_vocab_size()
    for number, fields in enumerate(settings):
        base = copied(model_folder("qwen2"), tmp_path / f"base{number}")
        write_config(base, tokenizer_class="TokenizersBackend", eos_token="<|im_end|>", **fields)
        assert [first] == bundled(base, tmp_path / f"work{number}").encode("<tool>")
    base = copied(model_folder("qwen2"), tmp_path / "map")
    write_config(base, tokenizer_class="PreTrainedTokenizerFast")
    (base / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": "<tool>"}}))
    assert_same_ids(transformers_ids(base), base, tmp_path)


def sentencepiece_like(base: Path, *, prepend: bool) -> None:
    """Give `base` a tokenizer as Llama's converted ones are: byte fallback, `▁` for a space, `<s>` put before."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence(
        [*([normalizers.Prepend("▁")] if prepend else []), normalizers.Replace(" ", "▁")]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer.train_from_iterator(
        ["▁select▁from▁where"],
        trainers.BpeTrainer(vocab_size=285, special_tokens=special[:3], show_progress=False),
    )
    model = json.loads(tokenizer.to_str())["model"]
    vocab = {**model["vocab"]}
    for token in special[3:]:
        vocab.setdefault(token, len(vocab))
    tokenizer.model = models.BPE(
        vocab=vocab,
        merges=[tuple(pair) for pair in model["merges"]],
        unk_token="<unk>",
        byte_fallback=True,
        fuse_unk=True,
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.save(str(base / "tokenizer.json"))


@pytest.mark.parametrize("prepend", [True, False])
def test_llama_tokenizer(prepend: bool, tmp_path: Path) -> None:
    """`add_prefix_space` and `legacy` beside a complete file do not send the reader to a tokenizer.model."""
    base = tiny.save_model(tmp_path / "base", "llama", vocab_size=600)
    sentencepiece_like(base, prepend=prepend)
    options = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "legacy": False}
    write_config(base, tokenizer_class="LlamaTokenizer", add_bos_token=True, **options)
    expected = transformers_ids(base)
    if prepend:
        write_config(
            base, tokenizer_class="LlamaTokenizer", add_bos_token=True, add_prefix_space=True, **options
        )
    assert_same_ids(expected, base, tmp_path)
    assert "<s>" == TextTokenizer.from_folder(tmp_path / "bundle").prefix


@pytest.mark.parametrize("add", [True, False])
def test_begin_token_that_the_settings_switch(add: bool, tmp_path: Path) -> None:
    """Where a class goes by `add_bos_token`, the tokenizer's own prefix does."""
    base = tiny.save_model(tmp_path / "base", "llama", vocab_size=600)
    sentencepiece_like(base, prepend=True)
    write_config(base, tokenizer_class="LlamaTokenizer", bos_token="<s>", eos_token="</s>", add_bos_token=add)
    assert ("<s>" if add else "") == bundled(base, tmp_path).prefix


def test_vocabulary_and_merges(model_folder: ModelFolder, tmp_path: Path) -> None:
    """A folder without `tokenizer.json` is converted as transformers does it."""
    base = copied(model_folder("qwen2"), tmp_path / "base")
    Tokenizer.from_file(str(base / "tokenizer.json")).model.save(str(base))
    (base / "tokenizer.json").unlink()
    write_config(base, tokenizer_class="Qwen2Tokenizer", eos_token="<|im_end|>", pad_token="<|endoftext|>")
    assert_same_ids(transformers_ids(base), base, tmp_path)


@pytest.mark.parametrize(
    ("mark", "encoding"),
    [(codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le")],
    ids=["utf8", "utf16"],
)
def test_byte_order_marks(mark: bytes, encoding: str, model_folder: ModelFolder, tmp_path: Path) -> None:
    """Every text file of a folder may be one that an editor or PowerShell of Windows wrote."""
    base = copied(model_folder("qwen2"), tmp_path / "base")
    expected = reference(base)
    export(base, [], tmp_path / "plain", precision="fp32")
    weights = base / "model.safetensors"
    weights.rename(base / "model-00001-of-00001.safetensors")
    index = {"metadata": {}, "weight_map": {"model.norm.weight": "model-00001-of-00001.safetensors"}}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    files = [path for path in base.iterdir() if path.suffix in (".json", ".jinja")]
    assert {"config.json", "chat_template.jinja", "tokenizer.json", "generation_config.json"} <= {
        path.name for path in files
    }
    for path in files:
        text = path.read_text(encoding="utf-8").replace("\n", "\r\n")
        path.write_bytes(mark + text.encode(encoding))
    assert_same_ids(expected, base, tmp_path)
    for name in ("tokenizer.json", "chat_template.jinja", "generation_config.json", "weights.bin"):
        assert (tmp_path / "plain" / name).read_bytes() == (tmp_path / "bundle" / name).read_bytes(), name


TEMPLATE = "{% for m in messages %}[{{ m['content'] }}]{% endfor %}"


@pytest.mark.parametrize(
    "value",
    [
        TEMPLATE,
        [{"name": "default", "template": TEMPLATE}],
        [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": TEMPLATE}],
        {"default": TEMPLATE, "rag": "documents"},
    ],
    ids=["text", "one", "list", "object"],
)
def test_template_of_the_settings(value: Any, model_folder: ModelFolder, tmp_path: Path) -> None:
    """A chat template in `tokenizer_config.json` is found in any form; of several the default is rendered."""
    base = copied(model_folder("qwen2"), tmp_path / "base")
    write_config(base, tokenizer_class="TokenizersBackend", eos_token="<|im_end|>", chat_template=value)
    export(base, [], tmp_path / "bundle", precision="fp32")
    template = ChatTemplate.from_folder(tmp_path / "bundle")
    assert "[hello]" == template.render([{"role": "user", "content": "hello"}])


def test_templates_in_files(model_folder: ModelFolder, tmp_path: Path) -> None:
    """Files go before the settings, and the bundle keeps the templates that are not the default."""
    base = copied(model_folder("qwen2"), tmp_path / "base")
    write_config(base, tokenizer_class="TokenizersBackend", eos_token="<|im_end|>", chat_template="old")
    (base / "chat_template.jinja").write_text(TEMPLATE)
    (base / "additional_chat_templates").mkdir()
    (base / "additional_chat_templates" / "tool_use.jinja").write_text("tools")
    export(base, [], tmp_path / "bundle", precision="fp32")
    template = ChatTemplate.from_folder(tmp_path / "bundle")
    assert "[hello]" == template.render([{"role": "user", "content": "hello"}])
    written = json.loads((tmp_path / "bundle" / "tokenizer_config.json").read_text())["chat_template"]
    assert {"default": TEMPLATE, "tool_use": "tools"} == {item["name"]: item["template"] for item in written}


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"auto_map": {"AutoTokenizer": ["own.Tokenizer", None]}}, "tokenizer_config.json: auto_map"),
        ({"split_special_tokens": True}, "tokenizer_config.json: split_special_tokens"),
        ({"fast_tokenizer_files": ["tokenizer.4.0.0.json"]}, "tokenizer_config.json: fast_tokenizer_files"),
        ({"add_prefix_space": True}, "tokenizer_config.json: add_prefix_space is true, but false in tokenizer.json"),
        ({"tokenizer_class": 5}, "tokenizer_config.json: tokenizer_class"),
        ({"extra_special_tokens": "<tool>"}, "tokenizer_config.json: extra_special_tokens"),
        ({"chat_template": [{"name": "rag", "template": "x"}]}, "no template is named default, only rag"),
        ({"chat_template": " "}, "tokenizer_config.json: chat_template: the template default is empty"),
        ({"chat_template": 5}, "tokenizer_config.json: chat_template must be a text"),
    ],
)  # fmt: skip
def test_refused_setting(
    settings: dict[str, Any], named: str, model_folder: ModelFolder, refused: Refusal, tmp_path: Path
) -> None:
    """A setting that contradicts `tokenizer.json`, or that it cannot hold, ends the export by name."""
    base = copied(model_folder("qwen2"), tmp_path / "base")
    write_config(base, **{"tokenizer_class": "TokenizersBackend", **settings})
    found, message = refused(base)
    assert "ExportError" == found
    assert named in message


def test_prefix_space_that_the_versions_read_differently(
    model_folder: ModelFolder, refused: Refusal, tmp_path: Path
) -> None:
    """A file whose pre-tokenizer adds a space is read as it is from version 5, else the settings must say so."""
    base = copied(model_folder("qwen2"), tmp_path / "base")
    document = json.loads((base / "tokenizer.json").read_text())
    document["pre_tokenizer"]["add_prefix_space"] = True
    (base / "tokenizer.json").write_text(json.dumps(document))
    write_config(base, tokenizer_class="TokenizersBackend")
    assert_same_ids(reference(base), base, tmp_path)
    write_config(base, tokenizer_class="PreTrainedTokenizerFast")
    found, message = refused(base)
    assert "ExportError" == found
    assert message.startswith("tokenizer.json: its pre_tokenizer adds a space before a text")
    write_config(base, tokenizer_class="PreTrainedTokenizerFast", add_prefix_space=True)
    assert_same_ids(reference(base), base, tmp_path / "said")


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("tokenizer.json", b"[1]", "tokenizer.json: must be a JSON object"),
        ("tokenizer.json", b'{"model": {"type": "unheard of"}}', "tokenizer.json: model.type: 'unheard"),
        ("tokenizer_config.json", b"{", "tokenizer_config.json: not valid JSON"),
        ("tokenizer_config.json", b"\xff\xfe{", "tokenizer_config.json: not UTF-8"),
        ("chat_template.jinja", b"\xe9", "chat_template.jinja: not UTF-8"),
        ("special_tokens_map.json", b"[]", "special_tokens_map.json: must be a JSON object"),
        ("generation_config.json", b'"x"', "generation_config.json: must be a JSON object"),
        ("generation_config.json", b'{"eos_token_id": "x"}', "generation_config.json: eos_token_id must be"),
        ("generation_config.json", b'{"eos_token_id": [2, 288]}', "generation_config.json: eos_token_id must be"),
        ("adapter_config.json", b"{}", "adapter_config.json says that the folder is an adapter's"),
    ],
)  # fmt: skip
def test_malformed_file(
    name: str, content: bytes, named: str, model_folder: ModelFolder, refused: Refusal, tmp_path: Path
) -> None:
    """A file that is no text, no object or none of its kind is named."""
    base = copied(model_folder("qwen2"), tmp_path / "base")
    (base / name).write_bytes(content)
    found, message = refused(base)
    assert "ExportError" == found
    assert named in message


def test_tokenizer_model_alone(
    model_folder: ModelFolder, refused: Refusal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tokenizer.model that cannot be converted is named, with what to do."""
    monkeypatch.setattr("hivellm_export.huggingface.tokenizer.find_spec", lambda name: None)
    base = copied(model_folder("llama"), tmp_path / "base")
    (base / "tokenizer.json").unlink()
    (base / "tokenizer.model").write_bytes(b"no model")
    write_config(base, tokenizer_class="LlamaTokenizer")
    found, message = refused(base)
    assert "ExportError" == found
    assert message.startswith("tokenizer.model: tokenizer.json is missing, and converting this file needs")


@pytest.mark.parametrize(
    ("value", "config", "expected"),
    [(2, 1, [1, 2]), ([2, 1], 2, [1, 2]), (None, 2, [2]), ([], [2, 0], [0, 2])],
)
def test_end_tokens(
    value: Any, config: Any, expected: list[int], model_folder: ModelFolder, tmp_path: Path
) -> None:
    """The bundle ends answers at every id that either file names, and keeps no defaults for sampling."""
    base = copied(model_folder("qwen2"), tmp_path / "base")
    write_config(base, tokenizer_class="TokenizersBackend", chat_template=TEMPLATE)
    edit(base / "config.json", eos_token_id=config)
    (base / "generation_config.json").write_text(
        json.dumps({"eos_token_id": value, "do_sample": True, "temperature": "warm", "of_the_future": {}})
    )
    export(base, [], tmp_path / "bundle", precision="fp32")
    written = json.loads((tmp_path / "bundle" / "generation_config.json").read_text())
    assert {"eos_token_id": expected} == written
