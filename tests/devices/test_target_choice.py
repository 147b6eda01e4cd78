"""Which of several targets a device gets, on simulated runtimes."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import pytest
from fake_runtimes import COREML, CUDA, DML, Install, bundle

from hivellm_ort.engine.devices import Device
from hivellm_ort.errors import ProviderError
from hivellm_ort.loading.bundles import Bundle, has_best_provider, rank_bundles

DTYPES = {"fp16": "float16", "bf16": "bfloat16"}


def bundles(*forms: str) -> list[Bundle]:
    """Bundles by target, and precision where it is another than fp32; the digest is the form."""
    found = []
    for form in forms:
        target, _, precision = form.partition(" ")
        config = bundle(target, DTYPES.get(precision, "float32"))
        config = dataclasses.replace(config, precision=precision or "fp32", sha256=form)
        found.append(Bundle(Path(form), config))
    return found


def best(device: str | None, *forms: str, fallback: bool = False, exact: str = "") -> str:
    """The form that is taken."""
    asked = Device.of(device, fallback=fallback)
    return rank_bundles(bundles(*forms), asked, owner="expert-sql", exact=exact)[0].config.sha256


ALL = ("cpu int8", "cuda fp16", "dml fp16", "portable")


@pytest.mark.parametrize(
    ("offered", "gpus", "taken"),
    [
        ((), None, "cpu int8"),
        ((CUDA,), 1, "cuda fp16"),
        ((CUDA,), 0, "cpu int8"),
        ((CUDA,), None, "cpu int8"),
        ((DML,), None, "dml fp16"),
        ((COREML,), None, "cpu int8"),
    ],
)
def test_auto(offered: tuple[str, ...], gpus: int | None, taken: str, runtime: Install) -> None:
    """The first provider that is there takes the graphs made for it, in whatever order they come."""
    runtime(*offered, gpus=gpus)
    assert taken == best(None, *ALL) == best("auto", *reversed(ALL))


@pytest.mark.parametrize(
    ("device", "forms", "taken"),
    [
        ("cpu", ALL, "cpu int8"),
        ("cuda", ALL, "cuda fp16"),
        ("cpu", ("portable", "cpu int4"), "cpu int4"),
        ("cpu", ("cuda fp16", "portable"), "portable"),
        ("cuda", ("cpu int8", "portable"), "portable"),
        ("auto", ("cpu int8", "portable"), "portable"),
        ("auto", ("cpu int8", "dml fp16"), "cpu int8"),
        ("auto", ("portable",), "portable"),
        ("auto", ("npu", "cpu"), "cpu"),
    ],
)
def test_on_a_machine_with_a_gpu(device: str, forms: tuple[str, ...], taken: str, runtime: Install) -> None:
    """Graphs for any runtime do where there are none for the device; unknown targets are passed over."""
    runtime(CUDA, gpus=1)
    assert taken == best(device, *forms)


NO_DRIVER = (
    "CUDAExecutionProvider: no NVIDIA driver was found: install the driver (in a container, give it the GPUs)"
)


def test_gpu_wheel_without_a_driver_and_graphs_for_it_alone(runtime: Install) -> None:
    """What is missing is named, with both ways on: the driver, and the CPU where it is allowed."""
    runtime(CUDA, distribution="onnxruntime-gpu", gpus=None)
    for device in ("auto", "cuda"):
        with pytest.raises(ProviderError) as caught:
            best(device, "cuda fp16")
        start = f"device {device!r}: expert-sql has graphs for cuda, which it does not run: "
        assert f"{start}{NO_DRIVER}; or allow the CPU with fallback=True" == str(caught.value)
    assert "cuda fp16" == best("auto", "cuda fp16", fallback=True)


def test_gpu_wheel_without_a_driver_and_graphs_for_the_cpu_too(
    runtime: Install, caplog: pytest.LogCaptureFixture
) -> None:
    """Auto takes the CPU's, and the log says why; asked for by name the GPU is an error that names the CPU."""
    runtime(CUDA, distribution="onnxruntime-gpu", gpus=None)
    with caplog.at_level(logging.INFO, logger="hivellm_ort"):
        assert "cpu int8" == best("auto", "cuda fp16", "cpu int8")
    (message,) = caplog.messages
    assert message.startswith("expert-sql has graphs for cuda, cpu; used are those for cpu int8 on CPU")
    assert NO_DRIVER in message
    with pytest.raises(ProviderError) as caught:
        best("cuda", "cuda fp16", "cpu int8")
    assert [] == [part for part in (NO_DRIVER, "use device='cpu'") if part not in str(caught.value)]
    assert "cpu int8" == best("cuda", "cuda fp16", "cpu int8", fallback=True)


UNKNOWN = "QNNExecutionProvider"


def test_provider_that_this_version_does_not_know(runtime: Install) -> None:
    """Auto passes it over, and says what else is offered where nothing that it knows will do."""
    runtime(UNKNOWN, distribution="onnxruntime-qnn")
    assert "cpu int8" == best("auto", *ALL)
    with pytest.raises(ProviderError) as caught:
        best("auto", "cuda fp16")
    message = str(caught.value)
    assert f"onnxruntime-qnn 1.99.0 offers only {UNKNOWN}, CPUExecutionProvider: pip uninstall" in message
    assert "pip uninstall onnxruntime-qnn, then pip install 'hivellm-ort[cuda]'" in message


@pytest.mark.parametrize("device", ["qnn", UNKNOWN])
def test_provider_that_is_not_known_asked_for_by_name(device: str, runtime: Install) -> None:
    """That ONNX Runtime has it does not help; the message has the names that do."""
    runtime(UNKNOWN, distribution="onnxruntime-qnn")
    with pytest.raises(ProviderError) as caught:
        best(device, "cpu int8")
    assert str(caught.value).startswith(
        f"device {device!r} is unknown to this version of hivellm-ort, whatever ONNX Runtime offers: use 'auto', "
        "'cpu', 'cuda', 'dml' or 'coreml'"
    )


def test_half_floats_on_the_cpu(runtime: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an x86 CPU is slow at is not taken where there is something else."""
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    runtime()
    assert "portable" == best(None, "cuda fp16", "portable")
    with pytest.raises(
        ProviderError, match=r"expert-sql has graphs for dml, portable, .*very slow.*fallback=True"
    ):
        best(None, "dml fp16", "portable fp16")
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    assert "portable fp16" == best(None, "dml fp16", "portable fp16")


def test_precisions_of_one_target(runtime: Install) -> None:
    """Small and exact goes before exact, and that before small."""
    runtime(CUDA, gpus=1)
    assert "cpu int8" == best("cpu", "cpu int4", "cpu", "cpu int8")
    assert "cpu" == best("cpu", "cpu int4", "cpu")
    assert "cuda fp16" == best("cuda", "cuda int4", "cuda bf16", "cuda fp16", "portable")
    assert "cuda bf16" == best("cuda", "cuda int4", "cuda bf16")


def test_the_bundle_of_the_adapter(runtime: Install) -> None:
    """The one it was exported with comes first on its provider."""
    runtime()
    assert "cpu int4" == best(None, "cpu int8", "cpu int4", exact="cpu int4")
    assert "portable" == best(None, "cpu int8", "portable", exact="portable")


def test_a_better_provider_than_that_of_the_adapter(runtime: Install) -> None:
    """The provider counts before the bundle that the adapter was exported with."""
    runtime(CUDA, gpus=1)
    assert "cuda fp16" == best(None, "cpu int8", "cuda fp16", exact="cpu int8")


@pytest.mark.parametrize(
    ("device", "forms", "parts"),
    [
        (
            "dml",
            ("cpu", "cuda"),
            (
                "device 'dml': DmlExecutionProvider: it exists on Windows",
                "graphs for cpu, cuda only",
                "device='cpu'",
            ),
        ),
        (
            "coreml",
            ("cpu", "dml"),
            (
                "device 'coreml': CoreMLExecutionProvider: it exists on macOS",
                "for cpu, dml only",
                "device='cpu'",
            ),
        ),
        (
            "cuda",
            ("cpu", "dml"),
            ("device 'cuda': expert-sql has graphs for cpu, dml", "--target cuda", "use device='cpu'"),
        ),
        (
            "cuda:1",
            ("cuda", "portable"),
            ("device 'cuda:1'", "for cuda, portable", "there is no GPU number 1"),
        ),
        ("dml", ("cpu", "dml"), ("device 'dml'", "for cpu, dml", "it exists on Windows only")),
        ("auto", ("npu", "tpu"), ("device 'auto'", "has graphs for npu, tpu", "target 'npu'", "update it")),
    ],
)
def test_device_that_runs_none(
    device: str,
    forms: tuple[str, ...],
    parts: tuple[str, ...],
    runtime: Install,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The message has the device, the targets that there are, and each cure once."""
    monkeypatch.setattr("sys.platform", "linux")
    runtime(CUDA, gpus=1)
    with pytest.raises(ProviderError) as caught:
        best(device, *forms)
    message = str(caught.value)
    assert [] == [part for part in parts if part not in message]
    assert 1 == message.count(f"device '{device}': ")
    assert message.count("fallback=True") <= 1


def test_gpu_asked_for_on_an_installation_for_the_cpu(runtime: Install) -> None:
    """The message begins with what is installed and what to install, whatever the package has graphs for."""
    runtime()
    with pytest.raises(ProviderError) as caught:
        best("cuda", "cpu int8")
    assert (
        "device 'cuda': CUDAExecutionProvider: the installed onnxruntime 1.99.0 offers only CPUExecutionProvider: "
        "pip uninstall onnxruntime, then pip install 'hivellm-ort[cuda]'; or use device='cpu'; or allow the CPU with "
        "fallback=True (expert-sql has graphs for cpu only)"
    ) == str(caught.value)


def test_fallback(runtime: Install) -> None:
    """Where the CPU may take over, it gets what suits it, else anything."""
    runtime(gpus=None)
    assert "cpu" == best("cuda", "cuda fp16", "portable", "cpu", fallback=True)
    assert "portable" == best("dml", "cuda fp16", "portable", fallback=True)
    assert "cuda fp16" == best("dml", "cuda fp16", fallback=True)


def test_the_log_says_why(runtime: Install, caplog: pytest.LogCaptureFixture) -> None:
    """What was taken, on what, and why nothing else; nothing where there was no choice."""
    runtime(gpus=None)
    with caplog.at_level(logging.INFO, logger="hivellm_ort"):
        best(None, "cpu int8")
        assert [] == caplog.messages
        best(None, *ALL)
    (message,) = caplog.messages
    start = "expert-sql has graphs for cpu, cuda, dml, portable; used are those for cpu int8 on CPUExecutionProvider"
    assert message.startswith(start)
    assert "not portable fp32 on CPUExecutionProvider" in message
    assert (
        "CUDAExecutionProvider: the installed onnxruntime 1.99.0 offers only CPUExecutionProvider" in message
    )


@pytest.mark.parametrize(
    ("device", "form", "expected"),
    [
        ("auto", "cuda fp16", True),
        ("auto", "portable", True),
        ("auto", "cpu", False),
        ("cpu", "cpu", True),
        ("cuda", "cpu", False),
        ("auto", "dml", False),
    ],
)
def test_nothing_could_be_better(device: str, form: str, expected: bool, runtime: Install) -> None:
    """A bundle on the first provider that is there, or on the one asked for, needs no search for others."""
    runtime(CUDA, gpus=1)
    assert expected == has_best_provider(bundles(form)[0], Device.of(device))
