"""Which experts the service offers: a variable of the environment, or a TOML file."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Settings"]

_KINDS: dict[str, tuple[type, str]] = {
    "experts": (dict, "a table of names and paths"),
    "base": (str, "a path"),
    "trust": (str, "require, warn or off"),
    "threads": (int, "an integer"),
    "max_loaded_experts": (int, "an integer"),
    "memory_budget": (int, "bytes, an integer"),
}


@dataclass(frozen=True)
class Settings:
    """What the service loads.

    Attributes:
        experts: packages by the name to ask them by.
        base: base bundle of thin packages.
        trust: what to do where no key you trust has signed a package.
        threads: of ONNX Runtime; one per physical core by default.
        max_loaded_experts: most adapters in memory.
        memory_budget: most bytes of bases, adapters and caches.
    """

    experts: Mapping[str, Path]
    base: Path | None = None
    trust: Any = "warn"
    threads: int | None = None
    max_loaded_experts: int | None = None
    memory_budget: int | None = None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Settings:
        """From the file that `HIVELLM_SERVICE` names, else from `HIVELLM_EXPERTS`.

        `HIVELLM_EXPERTS` is `NAME=PATH`, several with the separator of `PATH` between them (`:`, on Windows `;`).

        Raises:
            ValueError: neither is set, or it is malformed.
            OSError: the file cannot be read.
        """
        if file := environment.get("HIVELLM_SERVICE"):
            return cls.from_toml(Path(file))
        experts: dict[str, Path] = {}
        for entry in filter(None, environment.get("HIVELLM_EXPERTS", "").split(os.pathsep)):
            name, equals, path = entry.partition("=")
            if not (name and equals and path) or name in experts:
                raise ValueError(
                    f"HIVELLM_EXPERTS: {entry!r} must be NAME=PATH with a new name; {os.pathsep!r} separates experts"
                )
            experts[name] = Path(path)
        if not experts:
            raise ValueError(
                "no experts: set HIVELLM_EXPERTS=sql=expert-sql.expert, or HIVELLM_SERVICE to a TOML file"
            )
        return cls(experts)

    @classmethod
    def from_toml(cls, path: Path) -> Settings:
        """From a file with a table `experts`; paths are relative to the file.

        Raises:
            ValueError: it is no TOML, or a field is unknown or of the wrong type.
            OSError: it cannot be read.
        """
        try:
            document = tomllib.loads(path.read_text(encoding="utf-8"))
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"{path}: {error}") from error
        for field, value in document.items():
            if field not in _KINDS:
                raise ValueError(f"{path}: unknown field {field!r}; there are {', '.join(_KINDS)}")
            kind, meaning = _KINDS[field]
            if type(value) is not kind:
                raise ValueError(f"{path}: {field} must be {meaning}, not {value!r}")
        experts = document.pop("experts", {})
        if not experts or not all(isinstance(package, str) for package in experts.values()):
            raise ValueError(f'{path}: [experts] must name packages, such as sql = "expert-sql.expert"')
        if "base" in document:
            document["base"] = path.parent / document["base"]
        return cls({name: path.parent / package for name, package in experts.items()}, **document)
