"""Graphs that the exporter never writes load from signed packages only, and nothing of others is run."""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.extras import requires_export

requires_export()

import onnx
from hostile_graphs import change_graphs, looping, repacked
from onnx import TensorProto, helper
from support.running import PROMPT, Packages

from hivellm_export.graph.rules import check_bundle
from hivellm_export.pipeline import export
from hivellm_ort import Expert, ExportError, IntegrityError, LoadError, Trust
from hivellm_ort.contract import ADAPTER_GRAPH
from hivellm_ort.integrity.keyfiles import generate_key
from hivellm_ort.integrity.signing import sign
from hivellm_ort.loading import graph_check
from hivellm_ort.loading.bundles import Bundle
from hivellm_ort.loading.graph_check import LARGEST_GRAPH, check_graphs
from hivellm_ort.operators import OPERATORS, ROUNDED_CACHE

DOCUMENT = Path(__file__).parents[2] / "docs" / "contract.md"
Change = Callable[[onnx.ModelProto], object]


@pytest.fixture(scope="module")
def bundles(packages: Packages, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The base of `packages` with its cache in float32, and in 8 bits."""
    work = tmp_path_factory.mktemp("graphs")
    export(packages.model, [], work / "float32", precision="fp32")
    export(packages.model, [], work / "int8", precision="fp32", cache="int8")
    return {path.name: path for path in work.iterdir()}


@pytest.fixture
def changed(bundles: dict[str, Path], tmp_path: Path) -> Callable[[Change, str], Path]:
    """Make a copy of a bundle with changed graphs."""

    def make(change: Change, cache: str = "float32") -> Path:
        return change_graphs(Path(shutil.copytree(bundles[cache], tmp_path / "bundle")), change)

    return make


def node(op_type: str, domain: str = "", **attributes: object) -> Change:
    """A change: one more node."""
    made = helper.make_node(op_type, [], ["more"], name="more", domain=domain, **attributes)
    return lambda model: model.graph.node.append(made)


def small_graph(*nodes: onnx.NodeProto) -> onnx.GraphProto:
    """A graph for inside of a node."""
    return helper.make_graph(list(nodes), "inner", [], [])


def hidden_graph(model: onnx.ModelProto) -> None:
    """A graph in an allowed operator, in an attribute that says that it is a number."""
    attribute = model.graph.node[0].attribute.add(name="axis")
    attribute.type, attribute.i = onnx.AttributeProto.INT, 0
    attribute.g.CopyFrom(small_graph())


def inner_branch(model: onnx.ModelProto) -> None:
    """An `If` inside of one."""
    branch = next(node for node in model.graph.node if node.op_type == "If").attribute[0].g
    inner = helper.make_node(
        "If", ["c"], [], name="inner", then_branch=small_graph(), else_branch=small_graph()
    )
    branch.node.append(inner)


def loop_in_branch(model: onnx.ModelProto) -> None:
    """A loop in a branch of `If`."""
    branch = next(node for node in model.graph.node if node.op_type == "If").attribute[0].g
    branch.node.append(helper.make_node("Loop", ["", ""], [], name="deep", body=small_graph()))


def function(model: onnx.ModelProto) -> None:
    """A function with the name of an allowed operator, which would take its place."""
    made = helper.make_function("", "Gemm", ["a"], ["b"], [helper.make_node("Loop", [], [])], [])
    model.functions.append(made)


def training(model: onnx.ModelProto) -> None:
    """Graphs for training."""
    model.training_info.add()


def sparse(model: onnx.ModelProto) -> None:
    """A sparse tensor, which is small in the file and of any size in memory."""
    model.graph.sparse_initializer.add(dims=[1 << 34])


def options(model: onnx.ModelProto) -> None:
    """Options of the session."""
    model.metadata_props.add(key="ort_config", value='{"session_options": {"enable_profiling": 1}}')


def outside(*places: str, attribute: bool = False) -> Change:
    """A change: a tensor that is in files of these names."""

    def change(model: onnx.ModelProto) -> None:
        tensor = TensorProto(name="loot", data_type=TensorProto.UINT8, dims=[16])
        tensor.data_location = TensorProto.EXTERNAL
        for place in places:
            tensor.external_data.add(key="location", value=place)
        if attribute:
            model.graph.node.append(helper.make_node("Constant", [], ["more"], value=tensor))
        else:
            model.graph.initializer.append(tensor)

    return change


ATTACKS: dict[str, tuple[Change, str, str]] = {
    "loop": (looping(3), "float32", "operator 'Equal'"),
    "loop alone": (node("Loop", body=small_graph()), "float32", "node 'more' has the operator 'Loop' of 'ai.onnx'"),
    "scan": (node("Scan", body=small_graph(), num_scan_inputs=0), "float32", "operator 'Scan'"),
    "large tensor": (node("ConstantOfShape"), "float32", "operator 'ConstantOfShape' of 'ai.onnx'"),
    "repeated": (node("Tile"), "float32", "operator 'Tile'"),
    "branches without 8 bits": (node("If"), "float32", "operator 'If'"),
    "custom domain": (node("Gemm", "evil.ops"), "float32", "operator 'Gemm' of 'evil.ops'"),
    "other name of a domain": (node("Gemm", "ai.onnx.ml"), "float32", "operator 'Gemm' of 'ai.onnx.ml'"),
    "compiled": (node("EPContext", "com.microsoft"), "float32", "operator 'EPContext' of 'com.microsoft'"),
    "name with escapes": (node("\x1b[31mLoop"), "float32", re.escape(r"operator '\\x1b[31mLoop'")),
    "function": (function, "float32", "it has the function 'Gemm'"),
    "hidden graph": (hidden_graph, "float32", "has a graph inside"),
    "branch in a branch": (inner_branch, "int8", r"node 'inner' \('If'\) has a graph inside"),
    "loop in a branch": (loop_in_branch, "int8", "node 'deep' has the operator 'Loop'"),
    "training": (training, "float32", "graphs for training"),
    "sparse": (sparse, "float32", "sparse tensors"),
    "session options": (options, "float32", r"session options \(ort_config\)"),
    "file above": (outside("../../../../../../etc/passwd"), "float32", "tensor 'loot' is in '../../.*/etc/passwd'"),
    "absolute file": (outside("/etc/passwd"), "float32", "tensor 'loot' is in '/etc/passwd'"),
    "address in memory": (outside("*/_ORT_MEM_ADDR_/*"), "float32", "tensor 'loot' is in"),
    "two places": (outside("weights.bin", "/etc/passwd"), "float32", "'weights.bin', '/etc/passwd' and not in"),
    "no place": (outside(), "float32", "tensor 'loot' is in nowhere"),
    "file of an attribute": (outside("tokenizer.json", attribute=True), "float32", "is in 'tokenizer.json'"),
}  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS)
def test_refused(attack: str, changed: Callable[[Change, str], Path]) -> None:
    """Anything that exports never contain is refused by name, graph and place. The exporter refuses it too."""
    change, cache, message = ATTACKS[attack]
    folder = changed(change, cache)
    with pytest.raises(LoadError, match=message) as caught:
        check_graphs(Bundle.open(folder))
    assert str(caught.value).startswith(f"{ADAPTER_GRAPH} of base bundle ")
    assert "trust='off'" in str(caught.value)
    assert str(caught.value).isprintable()
    if attack != "function":  # which the exporter's reader does not even read
        with pytest.raises(ExportError):
            check_bundle(folder)


def test_a_large_graph_is_not_parsed(changed: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph with more bytes than any export writes is refused before it is read."""
    folder = changed(lambda model: model.graph.node[0].__setattr__("doc_string", "x" * LARGEST_GRAPH))
    monkeypatch.setattr(graph_check, "_model_class", lambda: pytest.fail("parsed"))
    with pytest.raises(LoadError, match=f"at most {LARGEST_GRAPH} are allowed"):
        check_graphs(Bundle.open(folder))


@pytest.mark.parametrize("content", [b"graph", b"", b"\x3a\xff\xff\xff\xff\x0f", b"\x3a\x02\x0a\x00" * 1000])
def test_damaged(bundles: dict[str, Path], tmp_path: Path, content: bytes) -> None:
    """A file that is not a graph is a LoadError that names it. An empty graph is left to ONNX Runtime."""
    folder = Path(shutil.copytree(bundles["float32"], tmp_path / "bundle"))
    (folder / ADAPTER_GRAPH).write_bytes(content)
    if content in (b"graph", b"\x3a\xff\xff\xff\xff\x0f"):
        with pytest.raises(LoadError, match=f"{ADAPTER_GRAPH} of .* is not an ONNX graph"):
            check_graphs(Bundle.open(folder))
    elif content:
        with pytest.raises(LoadError, match="node '' has the operator ''"):
            check_graphs(Bundle.open(folder))
    else:
        check_graphs(Bundle.open(folder))


def test_another_target(changed: Callable[..., Path]) -> None:
    """The operators are those of the target that the bundle names; a target that is not known has none."""
    folder = changed(node("ArgMax"))
    bundle = Bundle.open(folder)
    cuda = dataclasses.replace(bundle, config=dataclasses.replace(bundle.config, target="cuda"))
    check_graphs(cuda)
    unknown = dataclasses.replace(bundle, config=dataclasses.replace(bundle.config, target="other"))
    for refused in (bundle, unknown):
        with pytest.raises(LoadError, match="has the operator"):
            check_graphs(refused)


def test_a_base_folder(
    packages: Packages, changed: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A base that is given, or at hand, has no signature: it is refused unless checks are off, and nothing runs."""
    folder = changed(looping(3))
    with monkeypatch.context() as patch:
        patch.setattr("hivellm_ort.engine.session.start_session", lambda *_, **__: pytest.fail("started"))
        for trust in ("warn", Trust("warn", keys={})):
            with pytest.raises(LoadError, match="operator 'Equal'"):
                Expert.load(packages.lora_folder, base=folder, cache_dir=packages.cache, trust=trust)
        models = tmp_path / "home" / "models"
        shutil.copytree(folder, models / "tiny")
        named = Path(shutil.copytree(packages.lora_folder, tmp_path / "named"))
        with pytest.raises(LoadError, match="operator 'Equal'"):
            Expert.load(named, cache_dir=tmp_path / "home")
    with Expert.load(packages.lora_folder, base=folder, cache_dir=packages.cache, trust="off") as expert:
        assert 5 == expert.generate(PROMPT, max_tokens=5).completion_tokens


def test_a_graph_is_parsed_once(
    packages: Packages, bundles: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A passed check is recorded for its bytes. A changed graph is refused."""
    base = Path(shutil.copytree(bundles["float32"], tmp_path / "bundle"))

    def load(cache: str = "cache") -> None:
        Expert.load(packages.lora_folder, base=base, cache_dir=tmp_path / cache, threads=1).close()

    load()
    with monkeypatch.context() as patch:
        patch.setattr(graph_check, "_model_class", lambda: pytest.fail("parsed"))
        load()
        with pytest.raises(pytest.fail.Exception, match="parsed"):
            load("other")
    change_graphs(base, node("Loop", body=small_graph()))
    for _ in range(2):
        with pytest.raises(LoadError, match="operator 'Loop'"):
            load()


def test_nothing_is_remembered_where_a_signature_is_required(
    packages: Packages, bundles: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `trust="require"` every graph that the signature is not about is parsed with every load."""
    key = generate_key(tmp_path / "publisher.key")
    signed = sign(
        packages.lora, tmp_path / "publisher.key", publisher="P", output=tmp_path / "signed.expert"
    ).path
    parse, parsed = graph_check._model_class, []
    monkeypatch.setattr(graph_check, "_model_class", lambda: (parsed.append(1), parse())[1])
    trust = Trust("require", keys={"publisher": key})
    for _ in range(2):
        Expert.load(signed, base=packages.base, cache_dir=tmp_path / "cache", trust=trust, threads=1).close()
    assert 2 == len(parsed)


def test_signatures(packages: Packages, tmp_path: Path, changed: Callable[..., Path]) -> None:
    """A package with such a graph loads only if a trusted key has signed it."""
    package = repacked(packages.lora, looping(3), tmp_path / "looping.expert")
    key = generate_key(tmp_path / "publisher.key")
    signed = sign(package, tmp_path / "publisher.key", publisher="P", output=tmp_path / "signed.expert").path
    trusted = {"publisher": key}
    with packages.load("lora") as expert:
        expected = expert.generate(PROMPT, max_tokens=5).tokens
    for path, trust in (
        (package, Trust("off")),
        (signed, Trust("off")),
        (signed, Trust("warn", keys=trusted)),
        (signed, Trust("require", keys=trusted)),
    ):
        with Expert.load(path, cache_dir=tmp_path / "cache", trust=trust, threads=1) as expert:
            assert expected == expert.generate(PROMPT, max_tokens=5).tokens
    for path, keys in ((package, trusted), (signed, {})):
        with pytest.raises(LoadError, match="operator 'Equal'"):
            Expert.load(path, cache_dir=tmp_path / "cache", trust=Trust("warn", keys=keys))
    with pytest.raises(IntegrityError):
        Expert.load(signed, cache_dir=tmp_path / "cache", trust=Trust("require", keys={}))
    # The signature is of the package: a base from elsewhere has none.
    with pytest.raises(LoadError, match="operator 'Equal'"):
        Expert.load(
            signed, base=changed(looping(3)), cache_dir=tmp_path / "cache", trust=Trust("warn", keys=trusted)
        )


def test_the_document_has_them_all() -> None:
    """`docs/contract.md` names all operators and no others."""
    text = DOCUMENT.read_text(encoding="utf-8")
    section = text.partition("## Operators")[2].partition("\n## ")[0]
    tables = [*OPERATORS.values(), *ROUNDED_CACHE.values()]
    operators = {kind for domains in tables for kinds in domains.values() for kind in kinds}
    found = set(re.findall(r"`([A-Z]\w+)`", section)) - {"LoadError"}
    assert operators == found
