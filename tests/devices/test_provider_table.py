"""The table of providers: it agrees with extras and documents, and one more entry is a whole provider."""

from __future__ import annotations

import ast
import dataclasses
import json
import re
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner
from fake_runtimes import CPU, Install, bundle

import hivellm_ort
from hivellm_ort import ProviderError
from hivellm_ort.cli.main import main
from hivellm_ort.contract import ADAPTER_GRAPH
from hivellm_ort.engine.capabilities import Capabilities
from hivellm_ort.engine.devices import Device, choose_placement
from hivellm_ort.engine.ort_values import DeviceMemory
from hivellm_ort.engine.providers import EXTRAS, PROVIDERS, TARGETS, Provider
from hivellm_ort.engine.session import Engine

ROOT = Path(__file__).parents[2]
SYSTEMS = {"linux": "Linux", "win32": "Windows", "darwin": "macOS"}
XPU = Provider(
    device="xpu",
    name="XpuExecutionProvider",
    targets=("portable",),
    extra="xpu",
    has_device_id=True,
    options=(("precision", "half"),),
    sequential=True,
    preload_dlls=True,
    graph_capture_option="capture",
    memory="xpu_buffer",
    device_fault=lambda device_id: "there are two" if device_id > 1 else None,
    graph_fault=lambda config: "it knows no Qwen" if config.architecture.model_type == "qwen2" else None,
    start_faults=(("E17", "wake it up"),),
    cure="buy one",
)


def test_every_extra_exists() -> None:
    """Each extra that a message names installs an ONNX Runtime."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    assert [["onnxruntime"]] * len(EXTRAS) == [
        re.findall(r"^onnxruntime", extras[extra][0]) for extra in EXTRAS
    ]
    assert {provider.extra for provider in PROVIDERS.values()} == set(EXTRAS)


def test_the_document_has_the_table() -> None:
    """docs/providers.md has each provider, in the order that `auto` takes, with its extra, systems and targets."""
    text = (ROOT / "docs" / "providers.md").read_text(encoding="utf-8")
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "|" in line
    ]
    devices = [row for row in rows if row[0].startswith("`") and "ExecutionProvider" in row[1]]
    assert [(provider.device, f"`{provider.name}`") for provider in PROVIDERS.values()] == [
        (row[0].split("`")[1], row[1]) for row in devices
    ]
    for provider, row in zip(PROVIDERS.values(), devices, strict=True):
        assert provider.has_device_id == (f"`{provider.device}:1`" in row[0])
        assert f"`hivellm-ort[{provider.extra}]`" in row[2]
        where = [SYSTEMS[system] for system in provider.systems] or ["everywhere"]
        assert ", ".join(where) == row[3]
    head, *matrix = [row for row in rows if row[0] == "target" or row[0].strip("`") in TARGETS][
        : len(TARGETS) + 1
    ]
    runs = {
        (row[0].strip("`"), name.strip("`"))
        for row in matrix
        for name, cell in zip(head[1:], row[1:], strict=True)
        if cell.startswith("yes")
    }
    assert {(target, one.device) for one in PROVIDERS.values() for target in one.targets} == runs


def test_only_the_table_describes_a_provider() -> None:
    """No other code of the engine has the name of a provider or device as a text of its own."""
    names = {
        word for one in PROVIDERS.values() for word in (one.device, one.name, one.extra, one.memory) if word
    }
    engine = Path(hivellm_ort.__file__).parent / "engine"
    found = [
        f"{path.name}: {node.value}"
        for path in sorted(engine.glob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value in names
    ]
    assert [] == [text for text in found if not text.startswith("providers.py")]


@pytest.fixture
def xpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """One more entry in the table."""
    monkeypatch.setitem(PROVIDERS, "xpu", XPU)


@pytest.mark.usefixtures("xpu")
def test_one_more_entry(tmp_path: Path, runtime: Install) -> None:
    """A new entry can be asked for and is started as it says; nothing else knows it."""
    fake = runtime(XPU.name)
    config = bundle("portable")
    placement = choose_placement(Device.of("xpu:1", {"capture": True}), config)
    assert (XPU, "xpu:1", True) == (placement.provider, placement.device, placement.graph_capture)
    assert DeviceMemory("xpu_buffer", 1) == Capabilities.of(config, placement).memory
    (tmp_path / ADAPTER_GRAPH).write_bytes(b"")
    engine = Engine(tmp_path, config, placement=placement)
    (call,) = fake.calls
    expected = {"precision": "half", "device_id": "1", "capture": "1"}
    assert [(XPU.name, expected)] == call["providers"]
    assert ("sequential", 1, XPU.name) == (call["options"].execution_mode, fake.preloads, engine.provider)


@pytest.mark.usefixtures("xpu")
def test_one_more_entry_that_is_not_installed(runtime: Install) -> None:
    """Its name is offered for devices, and its extra is what to install."""
    with pytest.raises(ProviderError, match="'dml', 'coreml' or 'xpu', with a number"):
        Device.of("ypu")
    runtime()
    with pytest.raises(ProviderError, match=r"offers only .*'hivellm-ort\[xpu\]'"):
        choose_placement(Device.of("xpu"), bundle("portable"))


@pytest.mark.usefixtures("xpu")
def test_messages_of_one_more_entry(tmp_path: Path, runtime: Install) -> None:
    """Each message about it comes from its entry."""
    fake = runtime(XPU.name)
    with pytest.raises(ProviderError, match="there are two"):
        choose_placement(Device.of("xpu:2"), bundle("portable"))
    config = bundle("portable")
    qwen = dataclasses.replace(
        config, architecture=dataclasses.replace(config.architecture, model_type="qwen2")
    )
    with pytest.raises(ProviderError, match="it knows no Qwen"):
        choose_placement(Device.of("xpu"), qwen)
    with pytest.raises(ProviderError, match="export again with --target portable"):
        choose_placement(Device.of("xpu"), bundle("cuda"))
    (tmp_path / ADAPTER_GRAPH).write_bytes(b"")
    placement = choose_placement(Device.of("xpu"), config)
    for error, cure in (("error E17", "wake it up"), ("error E18", "buy one")):
        fake.failure = RuntimeError(error)
        with pytest.raises(ProviderError, match=f"{error}; {cure}; or allow the CPU"):
            Engine(tmp_path, config, placement=placement)


@pytest.mark.usefixtures("xpu")
def test_the_doctor_lists_one_more_entry(
    tmp_path: Path, runtime: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The report has it, and `auto` takes it for no graphs that a provider before it runs."""
    monkeypatch.setenv("HIVELLM_HOME", str(tmp_path / "store"))
    runtime(XPU.name)
    report = json.loads(CliRunner().invoke(main, ["doctor", "--json"]).stdout)
    expected = {"provider": XPU.name, "targets": ["portable"], "available": True, "trouble": None}
    assert expected == report["devices"]["xpu"]
    assert "cpu" == report["devices"]["auto"]["portable"]
    assert CPU in report["onnxruntime"]["providers"]
