"""Which provider runs which graphs."""

from __future__ import annotations

import logging
import platform

import pytest
from fake_runtimes import COREML, CPU, CUDA, DML, Install, bundle

from hivellm_ort import ProviderError
from hivellm_ort.engine.devices import Device, choose_placement


@pytest.mark.parametrize(
    ("offered", "target", "expected"),
    [
        ((CUDA,), "cpu", CPU),
        ((DML,), "cpu", CPU),
        ((COREML,), "cpu", CPU),
        ((CUDA,), "cuda", CUDA),
        ((DML,), "dml", DML),
        ((), "portable", CPU),
        ((COREML,), "portable", CPU),
        ((CUDA,), "portable", CUDA),
        ((DML,), "portable", DML),
    ],
)
def test_auto(offered: tuple[str, ...], target: str, expected: str, runtime: Install) -> None:
    """Auto takes the fastest that is there of those that run the graphs."""
    runtime(*offered, gpus=1)
    assert expected == choose_placement(Device(), bundle(target)).provider.name


@pytest.mark.parametrize(
    ("device", "target"),
    [
        ("cpu", "cpu"),
        ("cpu", "portable"),
        ("cuda:1", "cuda"),
        ("cuda", "portable"),
        ("dml:3", "dml"),
        ("dml", "portable"),
        ("coreml", "portable"),
    ],
)
def test_named_device(device: str, target: str, runtime: Install) -> None:
    """A device that runs the target's graphs is taken as it was named."""
    runtime(CUDA, DML, COREML, gpus=2)
    found = choose_placement(Device.of(device), bundle(target))
    assert (device.partition(":")[0], Device.of(device).device_id) == (found.provider.device, found.device_id)


@pytest.mark.parametrize(
    ("device", "target", "cure"),
    [
        ("cuda", "cpu", "use device='cpu', or export again with --target cuda"),
        ("dml", "cpu", "use device='cpu', or export again with --target dml"),
        ("coreml", "cpu", "use device='cpu', or export again with --target portable"),
        ("cpu", "cuda", "use device='cuda', or export again with --target cpu"),
        ("dml", "cuda", "use device='cuda', or export again with --target dml"),
        ("coreml", "dml", "use device='dml', or export again with --target portable"),
    ],
)
def test_graphs_for_another_provider(device: str, target: str, cure: str, runtime: Install) -> None:
    """A device that cannot run the graphs is refused with both ways out, unless the CPU is allowed."""
    runtime(CUDA, DML, COREML, gpus=1)
    with pytest.raises(ProviderError) as caught:
        choose_placement(Device.of(device), bundle(target))
    assert f"device {device!r}: " in str(caught.value)
    assert cure in str(caught.value)
    assert "fallback=True" in str(caught.value)
    allowed = choose_placement(Device.of(device, fallback=True), bundle(target))
    assert (CPU, True) == (allowed.provider.name, allowed.is_fallback)


def test_target_of_another_version() -> None:
    """Graphs for a provider that this version does not know are refused by name, whatever is allowed."""
    with pytest.raises(ProviderError, match="'npu'"):
        choose_placement(Device(fallback=True), bundle("npu"))


@pytest.mark.parametrize(
    ("device", "target", "system", "message"),
    [
        ("cuda", "cuda", "linux", r"onnxruntime 1\.99\.0 offers only .*'hivellm-ort\[cuda\]'"),
        ("auto", "cuda", "win32", r"onnxruntime 1\.99\.0 offers only .*'hivellm-ort\[cuda\]'"),
        ("dml", "dml", "win32", r"pip uninstall onnxruntime, then pip install 'hivellm-ort\[directml\]'"),
        ("auto", "dml", "linux", "exists on Windows only"),
        ("cuda", "portable", "darwin", "exists on Linux and Windows only"),
        ("coreml", "portable", "linux", "exists on macOS only"),
        ("coreml", "portable", "darwin", r"'hivellm-ort\[cpu\]'"),
    ],
)
def test_provider_that_is_not_there(
    device: str, target: str, system: str, message: str, runtime: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message says what is installed and what to install, or where the provider exists."""
    runtime()
    monkeypatch.setattr("hivellm_ort.engine.environment.sys.platform", system)
    with pytest.raises(ProviderError, match=message):
        choose_placement(Device.of(device), bundle(target))


@pytest.mark.parametrize(
    ("device", "gpus", "message"),
    [
        ("cuda", None, "no NVIDIA driver was found"),
        ("cuda", 0, "shows no GPU"),
        ("cuda:1", 1, "no GPU number 1: use cuda:0$"),
        ("cuda:7", 4, "no GPU number 7: use cuda:0 to cuda:3$"),
    ],
)
def test_gpu_that_is_not_there(device: str, gpus: int | None, message: str, runtime: Install) -> None:
    """With the GPU wheel installed, what the driver shows decides."""
    runtime(CUDA, distribution="onnxruntime-gpu", gpus=gpus)
    with pytest.raises(ProviderError, match=message.replace("$", "; or allow the CPU")):
        choose_placement(Device.of(device), bundle("cuda"))


def test_gpu_wheel_without_driver_runs_portable_graphs(
    runtime: Install, caplog: pytest.LogCaptureFixture
) -> None:
    """Auto goes on to the CPU where that runs the graphs, and the log says what was passed over."""
    runtime(CUDA, distribution="onnxruntime-gpu", gpus=None)
    with caplog.at_level(logging.INFO, logger="hivellm_ort"):
        choose_placement(Device(), bundle("portable")).announce("tiny")
    (record,) = caplog.records
    assert logging.INFO == record.levelno
    assert record.getMessage().startswith(
        "base tiny runs on CPUExecutionProvider (onnxruntime-gpu 1.99.0): device 'auto'; "
        "its graphs are for target 'portable'; CUDAExecutionProvider: no NVIDIA driver was found"
    )


def test_what_fallback_did_is_a_warning(runtime: Install, caplog: pytest.LogCaptureFixture) -> None:
    """The warning says what runs where, and the reason that would be the error."""
    runtime()
    with caplog.at_level(logging.INFO, logger="hivellm_ort"):
        choose_placement(Device.of("cuda", fallback=True), bundle("cuda")).announce("tiny")
    (record,) = caplog.records
    assert logging.WARNING == record.levelno
    assert "base tiny runs on the CPU, as fallback allows: device 'cuda': CUDA" in record.getMessage()


@pytest.mark.parametrize(
    ("machine", "dtype", "refused"),
    [
        ("x86_64", "float16", True),
        ("AMD64", "bfloat16", True),
        ("x86_64", "float32", False),
        ("arm64", "float16", False),
        ("aarch64", "float16", False),
    ],
)
def test_half_precision_on_a_cpu(
    machine: str, dtype: str, refused: bool, runtime: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An x86 CPU runs fp16 graphs only where that is allowed by name."""
    runtime()
    monkeypatch.setattr(platform, "machine", lambda: machine)
    config = bundle("portable", dtype)
    for device in ("auto", "cpu"):
        if refused:
            with pytest.raises(ProviderError, match=f"computes in {dtype}"):
                choose_placement(Device.of(device), config)
        else:
            assert not choose_placement(Device.of(device), config).is_fallback
        assert refused == choose_placement(Device.of(device, fallback=True), config).is_fallback


def test_options_for_the_cpu(runtime: Install) -> None:
    """Options that nothing would read are refused, and say what was chosen."""
    runtime()
    device = Device.of("auto", {"gpu_mem_limit": 1, "cudnn_conv_algo_search": "DEFAULT"})
    with pytest.raises(
        ProviderError, match="provider_options cudnn_conv_algo_search, gpu_mem_limit: CPUExecutionProvider"
    ):
        choose_placement(device, bundle("cpu"))


def test_placements_are_equal_where_sessions_can_be_shared(runtime: Install) -> None:
    """The name that was asked by does not matter; number, options and fallback do."""
    runtime(CUDA, gpus=2)
    config = bundle("cuda")
    one = choose_placement(Device.of("auto"), config)
    assert one == choose_placement(Device.of("cuda:0"), config)
    assert hash(one) == hash(choose_placement(Device.of("cuda"), config))
    for other in (
        Device.of("cuda:1"),
        Device.of("cuda", {"gpu_mem_limit": 1}),
        Device.of("cuda", fallback=True),
    ):
        assert one != choose_placement(other, config)
    assert choose_placement(Device.of("cpu"), bundle("cpu")) == choose_placement(
        Device.of("auto", fallback=True), bundle("cpu")
    )
