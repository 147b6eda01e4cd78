"""The command `hivellm-ort doctor`."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import click

from hivellm_ort import __version__
from hivellm_ort.cli.output import echo, json_option, print_json
from hivellm_ort.engine.environment import cpu_flags, distributions, import_onnxruntime, unavailable_reason
from hivellm_ort.engine.providers import PROVIDERS, TARGETS
from hivellm_ort.errors import LoadError, ProviderError
from hivellm_ort.package.sizes import format_size
from hivellm_ort.package.store import Store
from hivellm_ort.paths import without_folders

__all__ = ["doctor"]

_LIBRARIES = ("llguidance", "numpy", "tokenizers")


@click.command()
@json_option("Print the report as JSON.")
@click.pass_context
def doctor(ctx: click.Context, as_json: bool) -> None:
    """Show what this machine can run.

    Prints versions, ONNX Runtime and its devices, CPU features, libraries and the cache. Changes nothing.

    Exit status: 0 if experts can run here; 1 if something must be repaired first.
    """
    report = _report()
    if as_json:
        print_json(report)
    else:
        _print(report)
    ctx.exit(0 if report["ok"] else 1)


def _report() -> dict[str, Any]:
    runtime = _runtime()
    store = _store()
    return {
        "ok": runtime["error"] is None and store["error"] is None,
        "hivellm_ort": __version__,
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "onnxruntime": runtime,
        "devices": _devices(runtime["error"]),
        "cpu": {"logical_cores": os.cpu_count(), "flags": cpu_flags()},
        "libraries": {name: _version(name) for name in _LIBRARIES},
        "store": store,
    }


def _runtime() -> dict[str, Any]:
    found: dict[str, Any] = {"distributions": list(distributions())}
    try:
        module = import_onnxruntime()
    except ProviderError as error:
        return {**found, "version": None, "providers": [], "error": without_folders(str(error))}
    return {
        **found,
        "version": module.__version__,
        "providers": list(module.get_available_providers()),
        "error": None,
    }


def _devices(error: str | None) -> dict[str, Any]:
    """Say what each device setting does; `auto` depends on the target of the graphs."""
    troubles = {name: error or unavailable_reason(provider) for name, provider in PROVIDERS.items()}
    auto = {
        target: next(
            (
                name
                for name, provider in PROVIDERS.items()
                if target in provider.targets and troubles[name] is None
            ),
            None,
        )
        for target in sorted(TARGETS)
    }
    return {
        "auto": auto,
        **{
            name: {
                "provider": provider.name,
                "targets": sorted(provider.targets),
                "available": troubles[name] is None,
                "trouble": troubles[name],
            }
            for name, provider in PROVIDERS.items()
        },
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _store() -> dict[str, Any]:
    try:
        store = Store()
        size = store.listing().total_bytes
    except (LoadError, OSError) as error:
        return {"root": None, "bytes": None, "max_bytes": None, "error": str(error)}
    return {"root": str(store.root), "bytes": size, "max_bytes": store.max_bytes, "error": None}


def _print(report: dict[str, Any]) -> None:
    _line("hivellm-ort", f"{report['hivellm_ort']}, Python {report['python']}, {report['system']}")
    runtime = report["onnxruntime"]
    if runtime["error"] is None:
        names = ", ".join(runtime["distributions"]) or "onnxruntime"
        _line("runtime", f"{names} {runtime['version']}: {', '.join(runtime['providers'])}")
    else:
        _line("runtime", runtime["error"])
    devices = dict(report["devices"])
    for target, chosen in devices.pop("auto").items():
        _line("device auto", f"graphs for {target}: {chosen or 'no device here runs them'}")
    for name, device in devices.items():
        if runtime["error"] is None:
            targets = f"available, runs graphs for {', '.join(device['targets'])}"
            _line(f"device {name}", device["trouble"] or targets)
    flags = [name for name, there in report["cpu"]["flags"].items() if there]
    _line("cpu", ", ".join([report["machine"], f"{report['cpu']['logical_cores']} logical cores", *flags]))
    _line("libraries", ", ".join(f"{name} {found}" for name, found in report["libraries"].items()))
    store = report["store"]
    _line("store", store["error"] or f"{store['root']}, {format_size(store['bytes'])}")


def _line(name: str, text: str) -> None:
    echo(f"{name:<14} {text}")
