"""ONNX Runtimes that are not there: modules with a chosen list of providers, which record what they are asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

from hivellm_ort.contract import Architecture, DecoderConfig, GraphConfig

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
DML = "DmlExecutionProvider"
COREML = "CoreMLExecutionProvider"


# Of the graph that `bundle` promises.
INPUTS = [
    SimpleNamespace(name="input_ids", type="tensor(int64)", shape=["batch_size", "sequence_length"]),
    SimpleNamespace(name="seqlens_k", type="tensor(int32)", shape=["batch_size"]),
    SimpleNamespace(name="total_sequence_length", type="tensor(int32)", shape=[]),
    SimpleNamespace(name="logits_rows", type="tensor(int64)", shape=["rows"]),
    *(
        SimpleNamespace(
            name=f"past_key_values.0.{part}", type="tensor(float)", shape=["batch_size", 1, "max", 4]
        )
        for part in ("key", "value")
    ),
]
OUTPUTS = [
    SimpleNamespace(name="logits", type="tensor(float)", shape=["rows", 32]),
    *(
        SimpleNamespace(name=f"present.0.{part}", type="tensor(float)", shape=["batch_size", 1, "max", 4])
        for part in ("key", "value")
    ),
]


class FakeOptions:
    """Session options that keep what is set."""

    def __init__(self) -> None:
        self.entries: dict[str, str] = {}

    def add_session_config_entry(self, name: str, value: str) -> None:
        """Keep an entry."""
        self.entries[name] = value


@dataclass
class FakeRuntime:
    """What a fake ONNX Runtime offers and does.

    Attributes:
        offered: its providers.
        started: the providers that a session then has; by default those asked for, and the CPU.
        failure: what creating a session on another provider than the CPU raises.
        refusal: what creating one on the CPU raises.
        nodes: nodes by provider that a session tells of; None for a runtime that cannot tell.
        calls: path, providers, session options and keywords of every session that was asked for.
        preloads: how often CUDA's libraries were asked for.
    """

    offered: list[str]
    started: list[str] | None = None
    failure: Exception | None = None
    refusal: Exception | None = None
    nodes: dict[str, int] | None = None
    calls: list[dict[str, Any]] = field(default_factory=list)
    preloads: int = 0

    def module(self) -> ModuleType:
        """The module `onnxruntime`."""
        module: Any = ModuleType("onnxruntime")
        module.__version__ = "1.99.0"
        module.SessionOptions = FakeOptions
        module.ExecutionMode = SimpleNamespace(ORT_SEQUENTIAL="sequential")
        module.InferenceSession = self._session
        module.get_available_providers = lambda: self.offered
        module.preload_dlls = self._preload
        return module

    def _preload(self) -> None:
        self.preloads += 1
        print("Failed to load libcudnn.so.9")  # noqa: T201  as ONNX Runtime does

    def _session(self, path: str, options: FakeOptions, *, providers: list[Any], **keywords: Any) -> Any:
        self.calls.append({"path": path, "options": options, "providers": providers, **keywords})
        names = [each if isinstance(each, str) else each[0] for each in providers]
        error = self.refusal if names == [CPU] else self.failure
        if error is not None:
            raise error
        started = names if names == [CPU] else self.started or [*names, CPU]
        session = SimpleNamespace(
            get_providers=lambda: started, get_inputs=lambda: INPUTS, get_outputs=lambda: OUTPUTS
        )
        if self.nodes is not None:
            session.get_provider_graph_assignment_info = lambda: [
                SimpleNamespace(ep_name=name, get_nodes=lambda count=count: range(count))
                for name, count in self.nodes.items()
            ]
        return session


Install = Callable[..., FakeRuntime]
"""Makes a fake runtime be the one of the environment, see the fixture `runtime`."""


def bundle(target: str, dtype: str = "float32") -> DecoderConfig:
    """A `decoder.json` without adapter sites."""
    return DecoderConfig(
        name="tiny",
        architecture=Architecture("llama", 8, 16, 1, 2, 1, 4, 32, 64),
        precision="fp32" if dtype == "float32" else "fp16",
        target=target,
        sites=(),
        source_sha256="0" * 64,
        graph=GraphConfig(activation_dtype=dtype),
    )
