"""Sessions on other providers: what ONNX Runtime is given, and what becomes of one that does not start."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from fake_runtimes import COREML, CPU, CUDA, DML, Install, bundle

from hivellm_ort import LoadError, ProviderError
from hivellm_ort.contract import ADAPTER_GRAPH, DecoderConfig
from hivellm_ort.engine import session
from hivellm_ort.engine.devices import Device, choose_placement
from hivellm_ort.engine.session import Engine

RECORD = "session.record_ep_graph_assignment_info"
EXACT = "session.x64quantprecision"


def engine_on(device: Device, folder: Path, config: DecoderConfig, threads: int | None = None) -> Engine:
    """An engine where `device` puts it."""
    return Engine(folder, config, placement=choose_placement(device, config), threads=threads)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A bundle whose graph only a fake runtime loads."""
    (tmp_path / ADAPTER_GRAPH).write_bytes(b"")
    return tmp_path


@pytest.fixture(autouse=True)
def no_amx(monkeypatch: pytest.MonkeyPatch) -> None:
    """Options are the same on every machine."""
    monkeypatch.setattr(session, "cpu_flags", lambda: {"avx2": True})


def test_amx(folder: Path, runtime: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    """8-bit products overflow nowhere in AMX, and the exact kernels are slower."""
    monkeypatch.setattr(session, "cpu_flags", lambda: {"amx_int8": True})
    fake = runtime()
    Engine(folder, bundle("cpu"))._session(True)
    assert {} == fake.calls[0]["options"].entries


def test_cpu(folder: Path, runtime: Install) -> None:
    """The CPU's session is started when it is needed, with the CPU alone and nothing recorded."""
    fake = runtime()
    engine = Engine(folder, bundle("cpu"), threads=3)
    assert [] == fake.calls
    engine._session(True)
    (call,) = fake.calls
    assert str(folder / ADAPTER_GRAPH) == call["path"]
    assert [CPU] == call["providers"]
    assert 0 == call["enable_fallback"]
    assert {"log_severity_level": 3, "intra_op_num_threads": 3, "entries": {EXACT: "1"}} == vars(
        call["options"]
    )
    assert CPU == engine.provider


def test_cuda(folder: Path, runtime: Install, capsys: pytest.CaptureFixture[str]) -> None:
    """Number and options reach CUDA, once, when the engine is made; its libraries are looked for first."""
    fake = runtime(CUDA, gpus=2)
    device = Device.of("cuda:1", {"gpu_mem_limit": 1 << 31, "enable_cuda_graph": True})
    engine = engine_on(device, folder, bundle("cuda", "float16"))
    (call,) = fake.calls
    expected = {"device_id": "1", "enable_cuda_graph": "1", "gpu_mem_limit": "2147483648"}
    assert [(CUDA, expected)] == call["providers"]
    assert 0 == call["enable_fallback"]
    assert {"log_severity_level": 3, "entries": {EXACT: "1", RECORD: "1"}} == vars(call["options"])
    assert 1 == fake.preloads
    assert "" == capsys.readouterr().out
    engine._session(True)
    assert 1 == len(fake.calls)
    assert CUDA == engine.provider


def test_without_standard_streams(
    folder: Path, runtime: Install, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """In a windowed application there are none: what ONNX Runtime prints of CUDA's libraries goes nowhere."""
    fake = runtime(CUDA, gpus=1)
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(f"sys.{name}", None)
    engine = engine_on(Device.of("cuda"), folder, bundle("cuda", "float16"))
    assert (CUDA, 1) == (engine.provider, fake.preloads)
    assert ("", "") == capfd.readouterr()


@pytest.mark.parametrize("offered", [(CUDA,), ("QNNExecutionProvider",)], ids=["no driver", "unknown"])
def test_other_providers_are_left_alone(offered: tuple[str, ...], folder: Path, runtime: Install) -> None:
    """A session on the CPU is given the CPU alone, whatever else this ONNX Runtime offers."""
    fake = runtime(*offered, gpus=None)
    engine_on(Device(), folder, bundle("cpu"))._session(True)
    assert ([CPU], 0) == (fake.calls[0]["providers"], fake.preloads)


def test_directml(folder: Path, runtime: Install) -> None:
    """DirectML runs one node after the other, without memory patterns."""
    fake = runtime(DML)
    engine_on(Device.of("dml:1"), folder, bundle("dml", "float16"))
    (call,) = fake.calls
    assert [(DML, {"device_id": "1"})] == call["providers"]
    assert ("sequential", False) == (call["options"].execution_mode, call["options"].enable_mem_pattern)
    assert 0 == fake.preloads


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"ModelFormat": "MLProgram"}),
        ({"ModelFormat": "NeuralNetwork"}, {"ModelFormat": "NeuralNetwork"}),
    ],
)
def test_coreml(options: dict[str, str], expected: dict[str, str], folder: Path, runtime: Install) -> None:
    """CoreML gets the newer format unless another is asked for, and no number."""
    fake = runtime(COREML)
    engine_on(Device.of("coreml", options), folder, bundle("portable"))
    assert [(COREML, expected)] == fake.calls[0]["providers"]


@pytest.mark.parametrize(
    ("provider", "device", "target", "error", "cure"),
    [
        (CUDA, "cuda:1", "cuda", "CUDA failure 101: invalid device ordinal\n; GPU=1", "nvidia-smi -L"),
        (CUDA, "cuda", "cuda", "CUDA failure 35: driver version is insufficient", "update the driver"),
        (CUDA, "cuda", "cuda", "Unknown provider option: x", "onnxruntime-gpu[cuda,cudnn]"),
        (DML, "dml:9", "dml", "dml_provider_factory.cc(520) 887A0002", "dml:0 is the first"),
        (DML, "dml", "dml", "dml_provider_factory.cc(520) 887A0004", "DirectX 12"),
        (COREML, "coreml", "portable", "no", "macOS 12"),
    ],
)
def test_session_that_fails(
    provider: str, device: str, target: str, error: str, cure: str, folder: Path, runtime: Install
) -> None:
    """The error has the device, ONNX Runtime's words on one line, and the cure."""
    fake = runtime(provider, gpus=2)
    fake.failure = RuntimeError(error)
    with pytest.raises(ProviderError, match=r"does not start for decoder\.adapters\.onnx") as caught:
        engine_on(Device.of(device), folder, bundle(target))
    for part in (provider, " ".join(error.split()), cure, "fallback=True"):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    assert 1 == len(fake.calls)


def test_provider_that_is_left_out(folder: Path, runtime: Install) -> None:
    """ONNX Runtime goes on with the CPU where CUDA's libraries do not load: that is an error."""
    fake = runtime(CUDA, gpus=1)
    fake.started = [CPU]
    with pytest.raises(ProviderError, match=r"ONNX Runtime left it out.*cudnn"):
        Engine(folder, bundle("cuda"))


def test_provider_that_runs_nothing(folder: Path, runtime: Install) -> None:
    """A provider that is there and was given no node is an error; one node is enough."""
    fake = runtime(CUDA, gpus=1)
    fake.nodes = {CPU: 7}
    with pytest.raises(ProviderError, match="none of the graph's 7 nodes"):
        Engine(folder, bundle("cuda"))
    fake.nodes = {CPU: 7, CUDA: 1}
    assert CUDA == Engine(folder, bundle("cuda")).provider


@pytest.mark.parametrize("fault", ["failure", "started", "nodes"])
def test_fallback_when_it_does_not_start(
    fault: str, folder: Path, runtime: Install, caplog: pytest.LogCaptureFixture
) -> None:
    """Where it is allowed the CPU takes over, with fresh options, and one warning says why."""
    fake = runtime(CUDA, gpus=1)
    setattr(fake, fault, {"failure": RuntimeError("no"), "started": [CPU], "nodes": {CPU: 3}}[fault])
    device = Device.of("cuda", {"gpu_mem_limit": 1}, fallback=True)
    engine = engine_on(device, folder, bundle("cuda"), 2)
    assert CPU == engine.provider
    assert [CPU] == fake.calls[-1]["providers"]
    expected = {"log_severity_level": 3, "intra_op_num_threads": 2, "entries": {EXACT: "1"}}
    assert expected == vars(fake.calls[-1]["options"])
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "decoder.adapters.onnx runs on the CPU, as fallback allows: device 'cuda:0'" in record.getMessage()


def test_graph_that_the_cpu_cannot_run_either(folder: Path, runtime: Install) -> None:
    """Where the CPU cannot load the graph, what ONNX Runtime says of it is the error."""
    fake = runtime()
    fake.refusal = NotImplementedError("no kernel for GroupQueryAttention(1)")
    engine = engine_on(Device(fallback=True), folder, bundle("cuda"))
    with pytest.raises(LoadError, match="cannot be loaded: no kernel for GroupQueryAttention"):
        engine.decoder(adapters=True)
