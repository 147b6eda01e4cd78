"""`examples/quickstart.ipynb`."""

from __future__ import annotations

import pytest
from example_packages import Examples

nbformat = pytest.importorskip("nbformat", reason="needs nbformat")
nbclient = pytest.importorskip("nbclient", reason="needs nbclient")
pytest.importorskip("ipykernel", reason="needs ipykernel")


def test_the_notebook_runs(examples: Examples, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every cell runs on the packages that the environment names; it is kept without outputs."""
    monkeypatch.setenv("SQL_EXPERT", str(examples.sql))
    monkeypatch.setenv("JSON_EXPERT", str(examples.json))
    notebook = nbformat.read(examples.folder / "quickstart.ipynb", as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [] == [output for cell in cells for output in cell.outputs]
    assert {None} == {cell.execution_count for cell in cells}
    nbclient.NotebookClient(notebook, timeout=60, kernel_name="python3").execute()
    printed = {
        cell.id: "".join(output.get("text", "") for output in cell.outputs if output.get("name") == "stdout")
        for cell in cells
    }
    assert (
        "sql: lora of rank 4 on tiny, unsigned\njson: dora of rank 4 on tiny, unsigned\n" == printed["load"]
    )
    assert "complete: True" in printed["schema"]
    assert printed["route"].startswith("json\n")
    assert printed["route"].endswith("\njson\n")
    assert ["sql", "json", "sql"] == [
        line.partition(":")[0] for line in printed["batch"].splitlines() if "' -> " in line or '" -> ' in line
    ]
