"""The options of loading, the same for every way of asking for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from hivellm_ort.engine.devices import Device, ProviderOptions
from hivellm_ort.errors import OptionTypeError, argument
from hivellm_ort.integrity import Policy, Trust
from hivellm_ort.options import check_flag, check_names, check_text, check_whole
from hivellm_ort.package.archive import DEFAULT_LIMITS, Limits
from hivellm_ort.package.filecheck import Check
from hivellm_ort.package.store import Store
from hivellm_ort.paths import StrPath

__all__ = ["LoadOptions", "LoadSettings", "checked_path"]

_MOST_THREADS = 1024  # ONNX Runtime starts as many as it is told, until the memory is full


class LoadOptions(TypedDict, total=False):
    """Keyword options of `Expert.load` and of `ExpertManager`, which passes them on.

    Attributes:
        device: "auto" (the default) takes what is there for the graphs of the base, else "cpu", "cuda", "cuda:1",
            "dml", "dml:0" or "coreml". One that does not start is an error. Of a package for several targets the
            graphs are taken that suit the device.
        provider_options: Options of ONNX Runtime's execution provider, as `{"gpu_mem_limit": 2 << 30}`.
        fallback: Run on the CPU, with a warning, where the device is unavailable; False by default.
        base: A base bundle to use instead of the packaged one. A package without a base needs it, unless a bundle
            with the digest it states is in a folder `base` beside it, or one of the base its manifest names in the
            cache or in the folder `models` there.
        cache_dir: Where packages are unpacked; the platform's cache folder, or `HIVELLM_HOME`, by default.
        threads: Intra-op threads of ONNX Runtime, 1 to 1024; one per physical core by default.
        trust: "warn" (the default) logs a warning where no key you trust has signed the package, "require" refuses
            it and reads every file again to compare it, "off" loads even what a failed signature says was changed;
            or a `Trust` with keys of its own. But with "off", graphs that did not come in a package signed by such
            a key may have only what the exporter writes.
        limits: What the package may unpack to.
        prefix_cache_bytes: Most bytes of keys and values that the base keeps of earlier prompts, for all its
            experts; 256 MiB by default. A base that is in memory keeps its number, and a warning says so.
    """

    device: str | None
    provider_options: ProviderOptions | None
    fallback: bool
    base: StrPath | None
    cache_dir: StrPath | None
    threads: int | None
    trust: Trust | Policy
    limits: Limits
    prefix_cache_bytes: int | None


@dataclass(frozen=True)
class LoadSettings:
    """`LoadOptions`, checked, with the defaults filled in.

    Attributes:
        device: What the base shall run on.
        base: The base bundle to use; None for the package's, or one that is found.
        cache_dir: The store's folder; None for the default.
        threads: Intra-op threads; None leaves it to ONNX Runtime.
        trust: What to do about signatures, and whose count.
        limits: What the package may unpack to.
        prefix_cache_bytes: Most bytes that the base keeps of earlier prompts; None for the default.
    """

    device: Device = Device()  # noqa: RUF009  immutable
    base: Path | None = None
    cache_dir: Path | None = None
    threads: int | None = None
    trust: Trust = Trust("warn")  # noqa: RUF009  immutable
    limits: Limits = DEFAULT_LIMITS
    prefix_cache_bytes: int | None = None

    @classmethod
    def of(cls, options: LoadOptions) -> LoadSettings:
        """Check options.

        Raises:
            OptionTypeError: An option does not exist, or has a value of a wrong type.
            OptionError: An option is out of range.
            ProviderError: There is no device of that name or number.
        """
        check_names(options, LoadOptions, "loading")
        device, fallback = options.get("device"), options.get("fallback", False)
        check_text("device", device)
        check_flag("fallback", fallback)
        threads, kept = options.get("threads"), options.get("prefix_cache_bytes")
        check_whole("threads", threads, 1, _MOST_THREADS)
        check_whole("prefix_cache_bytes", kept, 0)
        base, cache_dir = options.get("base"), options.get("cache_dir")
        return cls(
            device=Device.of(device, options.get("provider_options"), fallback=fallback),
            base=None if base is None else checked_path(base, "base"),
            cache_dir=None if cache_dir is None else checked_path(cache_dir, "cache_dir"),
            threads=threads,
            trust=_trust(options.get("trust", "warn")),
            limits=_limits(options.get("limits", DEFAULT_LIMITS)),
            prefix_cache_bytes=kept,
        )

    @property
    def check(self) -> Check:
        """How files are compared with what is recorded of them."""
        return "digest" if self.trust.policy == "require" else "size"

    def store(self) -> Store:
        """The store. In its `with` block nothing that was found in it is removed."""
        return Store(self.cache_dir)


def checked_path(value: object, name: str) -> Path:
    """A path that a caller gave.

    Args:
        value: What was given.
        name: Of the argument, for the message.

    Raises:
        OptionTypeError: It is neither a text nor a path.
    """
    try:
        return Path(value)  # type: ignore[arg-type]
    except TypeError as error:
        raise OptionTypeError(
            f"{argument(name)} is {type(value).__name__}: pass a text (str) or a path (pathlib.Path)"
        ) from error


def _trust(value: object) -> Trust:
    if isinstance(value, str):
        return Trust(value)  # type: ignore[arg-type]  # refuses other words by itself
    if not isinstance(value, Trust):
        raise OptionTypeError(f"trust is {type(value).__name__}: pass 'require', 'warn', 'off' or a Trust")
    return value


def _limits(value: object) -> Limits:
    if not isinstance(value, Limits):
        raise OptionTypeError(f"limits is {type(value).__name__}: pass a Limits")
    return value
