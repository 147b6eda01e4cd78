"""Greedy tokens of the three real experts against transformers and PEFT in float32."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from support.rows import begun

from hivellm_ort import Expert, ExpertManager, ExpertManifest
from hivellm_ort.loading.folder_packing import pack
from hivellm_ort.package.store import Store, open_package

TIE = 0.02  # a gap between the two best logits below which another runtime may pick the other token
EXPERTS = ("expert-sql", "expert-elastic", "expert-json")


def references(folder: Path, expert: str) -> list[dict[str, Any]]:
    """The recorded prompts and tokens of one expert."""
    lines = (folder / expert / "references.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def assert_same_tokens(expected: list[int], actual: tuple[int, ...], gap: list[float]) -> None:
    """Equal, or different first at the position that the reference records as a tie."""
    if expected == list(actual):
        return
    smallest, position = gap
    first = next(i for i, (a, b) in enumerate(zip(expected, actual, strict=False)) if a != b)
    assert (position, True) == (first, smallest < TIE)


@pytest.fixture(scope="module")
def manager(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The three experts on one base."""
    with ExpertManager(cache_dir=tmp_path_factory.mktemp("cache")) as manager:
        for package in sorted(exported.glob("*.expert")):
            name = package.name.split("-smollm2")[0]
            manager.load_expert(name, package, base=exported / "base")
        yield manager


@pytest.mark.parametrize("round_", ["first", "after swapping back"])
@pytest.mark.parametrize("expert", EXPERTS)
def test_swapped_experts_give_the_reference_tokens(
    expert: str, round_: str, manager: ExpertManager, shared_experts: Path
) -> None:
    """Each expert in turn gives the tokens of PEFT, also after the others have run."""
    recorded = references(shared_experts, expert)
    for reference in recorded if round_ == "first" else recorded[:3]:
        result = manager.generate(
            expert, reference["user"], system=reference["system"], temperature=0, max_tokens=96
        )
        assert len(reference["prompt_ids"]) == result.prompt_tokens
        assert_same_tokens(reference["expert_ids"], result.tokens, reference["expert_min_gap"])


@pytest.mark.parametrize("expert", EXPERTS)
def test_bare_package_gives_the_reference_tokens(
    expert: str, exported: Path, shared_experts: Path, tmp_path: Path
) -> None:
    """Packed with PEFT's files alone, an expert is prepared to the exported numbers and gives the same tokens."""
    store = Store(tmp_path / "cache")
    source = open_package(Path(__file__).parents[2] / "models" / expert, store)
    pack(source, tmp_path / "bare.expert", ExpertManifest.from_file(source.root / "manifest.json"))
    loaded = Expert.load(tmp_path / "bare.expert", base=exported / "base", cache_dir=store.root)
    with loaded as bare:
        for reference in references(shared_experts, expert)[:3]:
            result = bare.generate(
                reference["user"], system=reference["system"], temperature=0, max_tokens=96
            )
            assert_same_tokens(reference["expert_ids"], result.tokens, reference["expert_min_gap"])
    (path,) = (store.root / "adapters").glob("*.safetensors")
    (thin,) = exported.glob(f"{expert}-*.expert")
    original = store.unpack(thin).adapter
    assert original is not None
    assert original.read_bytes() == path.read_bytes()


def test_base_gives_the_reference_tokens(manager: ExpertManager, shared_experts: Path) -> None:
    """The graph without adapters gives the tokens of the base model."""
    engine = manager._registry.get("expert-sql").expert.shared_base.engine
    for reference in references(shared_experts, "expert-sql")[:4]:
        row = begun(engine, None, 256)
        tokens: list[int] = []
        pending = reference["prompt_ids"]
        while len(tokens) < 96 and tokens[-1:] != [2]:
            tokens.append(int(row.forward(pending).argmax()))
            pending = tokens[-1:]
        assert_same_tokens(reference["base_ids"], tuple(tokens), reference["base_min_gap"])


def test_answers_are_those_the_readmes_show(manager: ExpertManager) -> None:
    """The prompts of the demonstration give the answers that PEFT gave, as recorded in models/*/README.md."""
    from hivellm_export.demo import PROMPTS

    for prompt in PROMPTS:
        readme = Path(__file__).parents[2] / "models" / prompt.expert / "README.md"
        result = manager.generate(prompt.expert, prompt.text, temperature=0, **prompt.options)
        assert "eos" == result.finish_reason
        assert f"```text\n{result.text}<|im_end|>\n```" in readme.read_text(encoding="utf-8")


def test_snippets_of_the_readme_print_what_they_say(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Run one after another on the packages of the demonstration, they print the answers in their comments."""
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    snippets = [part.split("```")[0] for part in readme.split("```python\n")[1:]]
    assert snippets[0].count("\n") <= 6
    (tmp_path / "out").symlink_to(exported)
    digest = hashlib.sha256((exported / "base" / "decoder.json").read_bytes()).hexdigest()
    (tmp_path / "home" / "bases").mkdir(parents=True)
    (tmp_path / "home" / "bases" / digest).symlink_to(exported / "base")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HIVELLM_HOME", str(tmp_path / "home"))
    names: dict[str, Any] = {}
    for snippet in snippets:
        exec(compile(snippet, "README.md", "exec"), names)
    shown = [line[2:] for snippet in snippets for line in snippet.splitlines() if line.startswith("# ")]
    assert 3 == len(shown)
    assert "".join(shown) == capsys.readouterr().out.replace("\n", "")
    assert shown[1:] == [result.text for result in names["results"]]
    names["expert"].close()
    names["manager"].close()


@pytest.mark.parametrize("expert", EXPERTS)
def test_merged_expert_gives_the_reference_tokens(
    expert: str, base_file: Path, shared_experts: Path, tmp_path: Path
) -> None:
    """Folded into the weights, an expert gives the same tokens."""
    from hivellm_export.pipeline import export

    source = Path(__file__).parents[2] / "models" / expert
    report = export(base_file, [source], tmp_path / "out", precision="fp32", merged=True)
    package = tmp_path / "out" / report.packages[0].file
    with Expert.load(package, cache_dir=tmp_path / "cache") as merged:
        assert merged.adapter is None
        for reference in references(shared_experts, expert):
            result = merged.generate(
                reference["user"], system=reference["system"], temperature=0, max_tokens=96
            )
            assert_same_tokens(reference["expert_ids"], result.tokens, reference["expert_min_gap"])
