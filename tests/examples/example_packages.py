"""Where the tests of the examples find what they run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Examples:
    """What the examples run on.

    Attributes:
        folder: the examples.
        home: for `HIVELLM_HOME`.
        model: the base model as transformers saved it.
        adapter: the adapter of `sql` as PEFT saved it, with a manifest.
        sql: an expert for SQL.
        json: one for JSON, on the same base.
    """

    folder: Path
    home: Path
    model: Path
    adapter: Path
    sql: Path
    json: Path

    @property
    def options(self) -> list[str]:
        """How the command lines name the experts."""
        return [
            "--expert",
            f"sql={self.sql}",
            "--expert",
            f"json={self.json}",
            "--threads",
            "1",
            "--trust",
            "off",
        ]
