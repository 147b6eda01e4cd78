"""Bundles whose JSON files say what is not so: each loads and answers, or is refused by name."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import os
import random
import shutil
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from support.running import PROMPT, Packages

from hivellm_ort import Expert
from hivellm_ort.adapters.config import read_peft_config
from hivellm_ort.adapters.prepared_adapter import PreparedAdapter
from hivellm_ort.cli.main import main
from hivellm_ort.contract import ADAPTER_FILE, ADAPTER_GRAPH, DECODER_JSON, DecoderConfig
from hivellm_ort.errors import AdapterError, InferenceError, LoadError, ManifestError

Change = Callable[[Any], None]

DEEP: Any = []
for _ in range(99):
    DEEP = [DEEP]
# What stands in place of every value of a file.
WRONG: tuple[Any, ...] = (
    None, True, -1, 0, 1.5, 1e308, 10**9, 10**40, "", "x", "\x1b[2J", "x" * 100_000, [], [None], {}, {"a": {}}, DEEP,
)  # fmt: skip
SAMPLE = int(
    os.environ.get("HIVELLM_LIES", "40")
)  # of the changes that reading lets through, how many are run


@pytest.fixture(scope="module")
def unpacked(packages: Packages, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The LoRA expert as a folder, with its base."""
    folder = tmp_path_factory.mktemp("lies") / "expert"
    with tarfile.open(packages.lora) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture
def folder(unpacked: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed; its large files are shared."""

    def link(source: str, target: str) -> object:
        return os.link(source, target) if source.endswith((".bin", ".onnx")) else shutil.copy2(source, target)

    return Path(shutil.copytree(unpacked, tmp_path / "expert", copy_function=link))


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of everything in a document."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


def lies(document: Any) -> Iterator[tuple[str, Any]]:
    """The document with one value replaced, again and again; each with what was done."""
    for path in places(document):
        for wrong in WRONG:
            changed = copy.deepcopy(document)
            if path:
                inner = changed
                for key in path[:-1]:
                    inner = inner[key]
                inner[path[-1]] = wrong
            yield f"/{'/'.join(map(str, path))} = {str(wrong)[:20]}", changed if path else wrong


def write(bundle: Path, name: str, content: bytes) -> None:
    """Put a file into a bundle, and its size and digest into the list."""
    (bundle / name).write_bytes(content)
    if name != DECODER_JSON:
        document = json.loads((bundle / DECODER_JSON).read_bytes())
        document["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        (bundle / DECODER_JSON).write_text(json.dumps(document))


def change(bundle: Path, make: Change) -> None:
    """Change what a bundle's decoder.json says."""
    document = json.loads((bundle / DECODER_JSON).read_bytes())
    make(document)
    write(bundle, DECODER_JSON, json.dumps(document).encode())


def answer(folder: Path) -> list[int]:
    """Return the answer of a folder's expert."""
    with Expert.load(folder, threads=1, trust="off") as expert:
        return list(expert.generate(PROMPT, max_tokens=2, timeout=20).tokens)


def peak() -> int:
    """Return the peak memory of this process in MiB; 0 if unknown."""
    if sys.platform == "win32":
        return 0
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used >> 20 if sys.platform == "darwin" else used >> 10


def outcome(act: Callable[[], object]) -> Exception | None:
    """Return the library's error from a call, or None. Any other error is raised."""
    try:
        act()
    except (LoadError, InferenceError) as error:
        return error
    return None


def test_every_lie_of_decoder_json(folder: Path) -> None:
    """Whatever stands in place of a value, reading gives a description, or an error that names the file."""
    path = folder / "onnx" / DECODER_JSON
    document = json.loads(path.read_bytes())
    document["sites"], document["weights"] = (
        document["sites"][:2],
        dict(list(document["weights"].items())[:2]),
    )
    before, begin, read = peak(), time.perf_counter(), 0
    for what, lie in lies(document):
        path.write_text(json.dumps(lie))
        error = outcome(lambda: DecoderConfig.from_file(path))
        read += error is None
        assert error is None or (DECODER_JSON in str(error) and len(str(error)) < 1000), what
    assert read > 0
    assert peak() - before < 200
    assert time.perf_counter() - begin < 60


def test_lies_that_can_be_read_are_run(folder: Path) -> None:
    """An expert on such a base answers, or ends with an error of ours, at once and in little memory."""
    bundle = folder / "onnx"
    document = json.loads((bundle / DECODER_JSON).read_bytes())
    before, ran = peak(), 0
    for what, lie in random.Random(5).sample(list(lies(document)), 25 * SAMPLE):
        write(bundle, DECODER_JSON, json.dumps(lie).encode())
        if ran < SAMPLE and outcome(lambda: DecoderConfig.from_file(bundle / DECODER_JSON)) is None:
            ran += 1
            begin = time.perf_counter()
            outcome(lambda: answer(folder))
            assert time.perf_counter() - begin < 20, what
    assert SAMPLE == ran
    assert peak() - before < 300


@pytest.mark.parametrize("name", ["generation_config.json", "tokenizer_config.json"])
def test_every_lie_of_another_file(name: str, folder: Path) -> None:
    """So for the other JSON files of a base."""
    bundle = folder / "onnx"
    every = list(lies(json.loads((bundle / name).read_bytes())))
    for what, lie in random.Random(6).sample(every, min(SAMPLE, len(every))):
        write(bundle, name, json.dumps(lie).encode())
        error = outcome(lambda: answer(folder))
        assert error is None or name in str(error), what


def test_every_lie_of_an_adapters_configuration(packages: Packages, tmp_path: Path) -> None:
    """And for `adapter_config.json`, which people write by hand."""
    path = tmp_path / "adapter_config.json"
    document = json.loads((packages.lora_folder / path.name).read_bytes())
    for what, lie in lies(document):
        path.write_text(json.dumps(lie))
        error = outcome(lambda: read_peft_config(path).targets("model.layers.0.self_attn.q_proj"))
        assert error is None or (isinstance(error, AdapterError) and path.name in str(error)), what


def test_every_lie_of_a_prepared_adapter(folder: Path, tmp_path: Path) -> None:
    """And for what a prepared adapter says of itself."""
    own = PreparedAdapter.from_file(folder / "onnx" / ADAPTER_FILE)
    one = dict(list(own.modules.items())[:1])
    safe = dataclasses.replace(own, modules=one).to_bytes()
    size = int.from_bytes(safe[:8], "little")
    header, data = json.loads(safe[8 : 8 + size]), safe[8 + size :]
    path = tmp_path / ADAPTER_FILE
    for what, lie in lies(json.loads(header["__metadata__"]["hivellm_ort"])):
        changed = json.dumps({**header, "__metadata__": {"hivellm_ort": json.dumps(lie)}}).encode()
        path.write_bytes(len(changed).to_bytes(8, "little") + changed + data)
        error = outcome(lambda: PreparedAdapter.from_file(path))
        assert error is None or isinstance(error, AdapterError), what


@pytest.mark.parametrize(
    ("lie", "fault"),
    [
        (lambda said: said.update(name=5), "/name: a number where a string is expected; export again"),
        (lambda said: said.update(name="\x1b[2J"), "/name: holds characters that are not printable"),
        (lambda said: said.update(target=["cpu"]), "/target: a list where a string is expected"),
        (lambda said: said.update(source_sha256=None), "/source_sha256: missing, or not a SHA-256"),
        (lambda said: said["architecture"].update(head_dim="x"), "/architecture/head_dim: a string where"),
        (
            lambda said: said["architecture"].update(num_hidden_layers=10**9),
            "/architecture/num_hidden_layers: is 1000000000, and must be a whole number from 1 to 4096; export again",
        ),
        (lambda said: said["architecture"].update(num_key_value_heads=3), "which does not divide 4 heads"),
        (lambda said: said["architecture"].update(hidden_size=65), "/sites/0/parts: .* by /architecture it takes 65"),
        (lambda said: said["graph"].update(inputs=7), "/graph/inputs: a number where an object is expected"),
        (lambda said: said["graph"]["inputs"].update(input_ids=[None, 1]), "/graph/inputs/input_ids: holds null"),
        (lambda said: said["sites"].append(said["sites"][0]), "/sites: .* comes twice"),
        (lambda said: said["sites"].append(None), "/sites: null where an object is expected"),
        (lambda said: said["files"].pop(ADAPTER_GRAPH), "/files: decoder.adapters.onnx is missing"),
        (lambda said: said.update(merged="1" * 64), "/sites: a bundle with a merged adapter takes no others"),
        (lambda said: next(iter(said["weights"].values())).update(weight=1 << 40), "/weights: .* begins behind"),
    ],
)  # fmt: skip
def test_lie_that_is_named(lie: Change, fault: str, folder: Path) -> None:
    """The message has the place, what is there, and what to do; it comes when the package is loaded."""
    change(folder / "onnx", lie)
    with pytest.raises(ManifestError, match=rf"decoder\.json:[0-9]+:[0-9]+: .*{fault}"):
        answer(folder)


def _keys_for_values(said: Any) -> None:
    parts = said["sites"][0]["parts"]
    parts[1], parts[2] = parts[2], parts[1]


def _one_layer_for_another(said: Any) -> None:
    one, other = (site for site in said["sites"] if site["name"].endswith("down_proj"))
    one["parts"], other["parts"] = other["parts"], one["parts"]


@pytest.mark.parametrize("lie", [_keys_for_values, _one_layer_for_another])
def test_modules_that_change_places(lie: Change, folder: Path) -> None:
    """Both fit every shape and would answer something else: a site's name tells which modules it has."""
    change(folder / "onnx", lie)
    with pytest.raises(ManifestError, match=r"/sites/[0-9]+/parts: .* has other modules than its name tells"):
        answer(folder)


def test_key_that_comes_twice(folder: Path) -> None:
    """A name that comes twice is refused, because readers differ in which one they use."""
    path = folder / "onnx" / DECODER_JSON
    path.write_text(path.read_text().replace('"name"', '"name": "other", "name"', 1))
    with pytest.raises(ManifestError, match="comes twice"):
        answer(folder)


def test_keys_of_a_later_version(folder: Path) -> None:
    """Unknown fields are ignored anywhere."""
    expected = answer(folder)

    def later(said: Any) -> None:
        said["contract_version"] = "1.99"
        for inner in (
            said,
            said["architecture"],
            said["graph"],
            said["sites"][0],
            said["files"][ADAPTER_GRAPH],
        ):
            inner["more"] = {"deep": [None, 1e300]}

    change(folder / "onnx", later)
    assert expected == answer(folder)


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("generation_config.json", b"{}", r"/eos_token_id: missing"),
        ("generation_config.json", b'{"eos_token_id": [2, 288]}', r"/eos_token_id: must be token ids from 0 to 287"),
        ("generation_config.json", b'{"eos_token_id": ' + b"[" * 10**5 + b"]" * 10**5 + b"}", "inside each other"),
        ("chat_template.jinja", b"", "the chat template is empty"),
        ("chat_template.jinja", b" \n", "the chat template is empty"),
    ],
    ids=["no end", "end beyond the vocabulary", "deep", "empty template", "blank template"],
)  # fmt: skip
def test_other_files_that_say_nothing(name: str, content: bytes, fault: str, folder: Path) -> None:
    """Each is refused when the package is loaded, with its file."""
    write(folder / "onnx", name, content)
    with pytest.raises(LoadError, match=rf"{name}.*{fault}"):
        answer(folder)


def retokenized(bundle: Path, **model: Any) -> None:
    """Give the base a tokenizer of these words and no others."""
    document = json.loads((bundle / "tokenizer.json").read_bytes())
    document.update(model=model, added_tokens=[])
    write(bundle, "tokenizer.json", json.dumps(document).encode())


def test_tokens_beyond_the_vocabulary(folder: Path) -> None:
    """A tokenizer may be larger than the model; a prompt with a token that the model has no row for is refused."""
    bundle = folder / "onnx"
    document = json.loads((bundle / "tokenizer.json").read_bytes())
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    document["added_tokens"] += [
        {"id": 288 + number, "content": f"<extra{number}>", **flags, "special": True} for number in range(99)
    ]
    write(bundle, "tokenizer.json", json.dumps(document).encode())
    assert answer(folder)
    write(bundle, "chat_template.jinja", b"{{ messages[0].content }}<extra98>")
    with pytest.raises(
        InferenceError, match=r"token [0-9]+, '<extra98>', and the model's vocabulary ends at 287"
    ):
        answer(folder)


@pytest.mark.parametrize(
    "model",
    [
        {"type": "BPE", "vocab": {}, "merges": []},
        {"type": "WordLevel", "vocab": {"a": 4_000_000_000}, "unk_token": "a"},
    ],
    ids=["no token", "one token of a great id"],
)
@pytest.mark.parametrize("options", [{}, {"regex": "a+"}, {"bad_words": ["b"]}], ids=str)
def test_tokenizer_of_another_kind(model: dict[str, Any], options: dict[str, Any], folder: Path) -> None:
    """A damaged vocabulary is an error of the library, also in grammars and bad words."""
    retokenized(folder / "onnx", **model)

    def act() -> None:
        with Expert.load(folder, threads=1, trust="off") as expert:
            expert.generate(PROMPT, max_tokens=2, **options)

    assert outcome(act) is not None


@pytest.mark.parametrize("options", [{}, {"bad_words": ["b"]}, {"logprobs": 2}], ids=str)
def test_vocabulary_of_one_token(options: dict[str, Any], folder: Path) -> None:
    """One token is enough for a prompt and for an answer."""
    retokenized(folder / "onnx", type="WordLevel", vocab={"a": 0}, unk_token="a")
    with Expert.load(folder, threads=1, trust="off") as expert:
        assert 2 == len(expert.generate(PROMPT, max_tokens=2, **options).tokens)


@pytest.mark.parametrize("command", ["run", "inspect"])
@pytest.mark.parametrize(
    ("name", "lie"),
    [
        (DECODER_JSON, lambda said: said.update(name=5)),
        (DECODER_JSON, lambda said: said["architecture"].update(num_hidden_layers=10**9)),
        ("generation_config.json", lambda said: said.update(eos_token_id=10**40)),
    ],
    ids=["name", "layers", "end"],
)
def test_json_of_a_command(command: str, name: str, lie: Change, folder: Path) -> None:
    """With --json a command prints an object for any bundle."""
    document = json.loads((folder / "onnx" / name).read_bytes())
    lie(document)
    write(folder / "onnx", name, json.dumps(document).encode())
    result = CliRunner().invoke(
        main, [command, str(folder), *([PROMPT] if command == "run" else []), "--json"]
    )
    printed = json.loads(result.stdout)
    if command == "inspect" and name != DECODER_JSON:  # which reads no other file of a base
        assert ("expert-lora", 0) == (printed["name"], result.exit_code)
    else:
        assert ("ManifestError", 2) == (printed["error"]["type"], result.exit_code)
