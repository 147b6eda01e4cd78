"""The options for loading experts, and their checks."""

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

_MOST_THREADS = 1024  # ONNX Runtime has no limit: it starts threads until memory is full


class LoadOptions(TypedDict, total=False):
    """Keyword options of `Expert.load` and of `ExpertManager`, which passes them on.

    Attributes:
        device: "auto", "cpu", "cuda", "cuda:1", "dml", "dml:0" or "coreml". Default: "auto", the best available
            device for the graphs of the base. An unavailable device is an error. From a package for several targets
            the best graphs for the device are used.
        provider_options: Options of ONNX Runtime's execution provider, such as `{"gpu_mem_limit": 2 << 30}`.
        fallback: Whether to run on the CPU, with a warning, if the device is unavailable. Default: False.
        base: A base bundle to use instead of the packaged one. A package without a base needs it, unless a matching
            bundle is found: by digest in the folder `base` beside the package, or by digest or name in the cache and
            its folder `models`.
        cache_dir: Folder for unpacked packages. Default: `HIVELLM_HOME`, or the platform's cache folder.
        threads: Intra-op threads of ONNX Runtime, 1 to 1024. Default: one per physical core.
        trust: What to do with a package that no trusted key has signed. "warn" (the default) logs a warning.
            "require" refuses it, and compares every file with its digest. "off" loads it, even with an invalid
            signature. A `Trust` may have keys of its own. Unless it is "off", a graph from any other source than a
            package signed with a trusted key may contain only what the exporter writes.
        limits: Limits on the unpacked size.
        prefix_cache_bytes: Most bytes of the base's prefix cache, for all its experts. Default: 256 MiB. A base that
            is already in memory keeps its limit, and a warning is logged.
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
    """Checked `LoadOptions` with defaults.

    Attributes:
        device: The device for the base.
        base: The base bundle to use; None for the package's own, or one that is found.
        cache_dir: The store's folder; None for the default.
        threads: Intra-op threads; None for the default of ONNX Runtime.
        trust: The policy for signatures and the trusted keys.
        limits: Limits on the unpacked size.
        prefix_cache_bytes: Most bytes of the base's prefix cache; None for the default.
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
            ProviderError: No device has this name or number.
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
        """How files are compared with their records."""
        return "digest" if self.trust.policy == "require" else "size"

    def store(self) -> Store:
        """Return the store. No other process removes entries that are found in its `with` block."""
        return Store(self.cache_dir)


def checked_path(value: object, name: str) -> Path:
    """Return a caller's argument as a path.

    Args:
        value: The argument.
        name: Its name, for the message.

    Raises:
        OptionTypeError: The argument is neither a text nor a path.
    """
    try:
        return Path(value)  # type: ignore[arg-type]
    except TypeError as error:
        raise OptionTypeError(
            f"{argument(name)} is {type(value).__name__}: pass a text (str) or a path (pathlib.Path)"
        ) from error


def _trust(value: object) -> Trust:
    if isinstance(value, str):
        return Trust(value)  # type: ignore[arg-type]  # Trust refuses other words
    if not isinstance(value, Trust):
        raise OptionTypeError(f"trust is {type(value).__name__}: pass 'require', 'warn', 'off' or a Trust")
    return value


def _limits(value: object) -> Limits:
    if not isinstance(value, Limits):
        raise OptionTypeError(f"limits is {type(value).__name__}: pass a Limits")
    return value
