"""Devices of loaded experts, and the one ONNX Runtime of an environment."""

from __future__ import annotations

import importlib.metadata
import logging
import sys
from collections.abc import Iterator

import pytest
from click.testing import CliRunner
from support.running import PROMPT, Packages, engine_of, engines, held

from hivellm_ort import Expert, ExpertManager, ProviderError
from hivellm_ort.cli.main import main
from hivellm_ort.contract import ADAPTER_GRAPH
from hivellm_ort.engine.devices import Placement
from hivellm_ort.engine.environment import distributions, import_onnxruntime
from hivellm_ort.engine.providers import Provider
from hivellm_ort.engine.session import start_session


@pytest.fixture
def fresh_import() -> Iterator[None]:
    """The search for ONNX Runtime is made anew in a test, and again after it."""
    for cached in (import_onnxruntime, distributions):
        cached.cache_clear()
    yield
    for cached in (import_onnxruntime, distributions):
        cached.cache_clear()


@pytest.mark.parametrize("device", ["cuda", "dml:1", "coreml", "tpu", "", "cuda:x", "CPU "])
def test_device_that_is_unavailable(device: str, packages: Packages) -> None:
    """The message names the device and one that would do; nothing stays loaded."""
    before = engines()
    with pytest.raises(ProviderError, match="'cpu'") as caught:
        packages.load("lora", device=device)
    assert repr(device) in str(caught.value)
    assert before == engines()


@pytest.mark.parametrize("device", [None, "auto", "cpu", "cpu:0"])
def test_names_of_the_cpu(device: str | None, packages: Packages, caplog: pytest.LogCaptureFixture) -> None:
    """An export for the CPU runs there under each of its names, and the log says so."""
    with (
        caplog.at_level(logging.INFO, logger="hivellm_ort"),
        packages.load("lora", device=device) as expert,
    ):
        assert "CPUExecutionProvider" == engine_of(expert).provider
    version = import_onnxruntime().__version__
    start = f"base tiny runs on CPUExecutionProvider ({distributions()[0]} {version}): device"
    assert [True] == [text.startswith(start) for text in caplog.messages if text.startswith("base ")]


def test_names_of_one_device_share_an_engine(packages: Packages) -> None:
    """Experts of one base share its session however the same device was asked for."""
    with packages.load("lora") as one, packages.load("dora", device="auto") as two:
        assert engine_of(one) is engine_of(two)
        with packages.load("ia3", device="cpu") as three:
            assert engine_of(one) is engine_of(three)


def test_fallback(packages: Packages, lora: Expert, caplog: pytest.LogCaptureFixture) -> None:
    """Where it is allowed the CPU answers for a device that is unavailable, with a warning."""
    expected = lora.generate(PROMPT, max_tokens=8).tokens
    options = {"cache_dir": packages.cache, "device": "cuda:1", "threads": 1, "fallback": True}
    with Expert.load(packages.lora, provider_options={"gpu_mem_limit": 1 << 30}, **options) as expert:
        assert expected == expert.generate(PROMPT, max_tokens=8).tokens
        assert engine_of(lora) is engine_of(expert)
    (warning,) = [text for text in caplog.messages if "fallback" in text]
    assert warning.startswith("base tiny runs on the CPU, as fallback allows: device 'cuda:1'")


def test_manager_hands_them_on(packages: Packages) -> None:
    """A manager loads each expert with its device, options and fallback."""
    with ExpertManager(cache_dir=packages.cache, device="cuda", threads=1) as manager:
        with pytest.raises(ProviderError, match="device 'cuda'"):
            manager.load_expert("sql", packages.lora)
        assert [] == manager.list_loaded_experts()
    with ExpertManager(cache_dir=packages.cache, device="cuda", fallback=True, threads=1) as manager:
        manager.load_expert("sql", packages.lora)
        assert "CPUExecutionProvider" == engine_of(held(manager, "sql")).provider
    with (
        ExpertManager(cache_dir=packages.cache, provider_options={"arena": 1}) as manager,
        pytest.raises(ProviderError, match="provider_options arena: CPUExecutionProvider"),
    ):
        manager.load_expert("sql", packages.lora)


def test_provider_that_runs_nothing(lora: Expert, caplog: pytest.LogCaptureFixture) -> None:
    """A provider that starts and is given no node, as ONNX Runtime tells, is an error unless the CPU may run."""
    name = "AzureExecutionProvider"  # calls services on the network, and runs no operator of ours
    if name not in import_onnxruntime().get_available_providers():
        pytest.skip(f"this ONNX Runtime does not offer {name}")
    provider = Provider("azure", name, frozenset({"cpu"}), "cpu")
    graph = engine_of(lora).folder / ADAPTER_GRAPH
    with pytest.raises(ProviderError, match=r"device 'azure' .* none of the graph's [1-9]\d* nodes"):
        start_session(graph, Placement(provider), threads=1)
    assert [] == caplog.records
    session = start_session(graph, Placement(provider, fallback=True), threads=1)
    assert ["CPUExecutionProvider"] == session.get_providers()
    assert ["decoder.adapters.onnx runs on the CPU"] == [text.partition(",")[0] for text in caplog.messages]


@pytest.mark.parametrize("command", ["run", "chat"])
def test_command_line(command: str, packages: Packages, monkeypatch: pytest.MonkeyPatch) -> None:
    """The options of the commands reach the loader."""
    monkeypatch.setenv("HIVELLM_HOME", str(packages.cache))
    prompt = [PROMPT] if command == "run" else []

    def invoke(*options: str) -> tuple[int, str]:
        arguments = [command, str(packages.lora), *prompt, "--threads", "1", "--max-tokens", "4", *options]
        result = CliRunner().invoke(main, arguments)
        return result.exit_code, result.stderr

    assert 0 == invoke("--device", "cuda", "--fallback", "--provider-option", "gpu_mem_limit=1")[0]
    status, message = invoke("--provider-option", "a=b=c", "--provider-option", "d=")
    assert (2, True) == (status, "--provider-option a, d: CPUExecutionProvider" in message)
    status, message = invoke("--provider-option", "=c")
    assert (2, True) == (status, "is not NAME=VALUE" in message)
    status, message = invoke("--device", "dml")
    assert (2, True) == (status, message.startswith("error: device 'dml': "))


@pytest.mark.usefixtures("fresh_import")
def test_two_distributions(packages: Packages, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two distributions that overwrite each other are named, and nothing stays loaded."""
    both = {"onnxruntime": ["onnxruntime-gpu", "onnxruntime", "onnxruntime-gpu"]}
    monkeypatch.setattr(importlib.metadata, "packages_distributions", lambda: both)
    before = engines()
    with pytest.raises(ProviderError, match="onnxruntime, onnxruntime-gpu; uninstall"):
        packages.load("lora")
    assert before == engines()


@pytest.mark.usefixtures("fresh_import")
def test_no_distribution(packages: Packages, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without ONNX Runtime the message says what to install."""
    monkeypatch.setattr(importlib.metadata, "packages_distributions", lambda: {"numpy": ["numpy"]})
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    before = engines()
    with pytest.raises(ProviderError, match=r"hivellm-ort\[cpu\]"):
        packages.load("lora")
    assert before == engines()
