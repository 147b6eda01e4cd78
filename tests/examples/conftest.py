"""Two tiny experts that say what they are for."""

from __future__ import annotations

from pathlib import Path

import pytest
from example_packages import Examples
from golden.sources import BASES, save_base
from support.golden import adapter_folder, with_base

_ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Examples:
    """The packages, put together once."""
    work = tmp_path_factory.mktemp("examples")
    sql, json = (
        with_base(name, work / f"expert-{name}-tiny.v1.0.0.expert", manifest={"integrity": None})
        for name in ("sql", "json")
    )
    return Examples(
        folder=_ROOT / "examples",
        home=work / "home",
        model=save_base(work / "tiny", BASES["tiny"]),
        adapter=adapter_folder("sql", work / "sql"),
        sql=sql,
        json=json,
    )


@pytest.fixture
def examples(exported: Examples, monkeypatch: pytest.MonkeyPatch) -> Examples:
    """The packages, and an environment in which the examples unpack them to one place."""
    monkeypatch.setenv("HIVELLM_HOME", str(exported.home))
    for name in ("HIVELLM_EXPERTS", "HIVELLM_SERVICE"):
        monkeypatch.delenv(name, raising=False)
    return exported
