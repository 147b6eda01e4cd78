"""Small plots of a run, for the README."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.measure import Results
from harness.models import MODELS
from harness.plan import PRECISIONS, parse_system
from harness.targets import Table

__all__ = ["draw", "draw_memory"]

_COLOURS = {
    "ours": "#d1495b",
    "genai": "#00798c",
    "llamacpp": "#edae49",
    "transformers": "#66757f",
    "optimum": "#a3b18a",
    "openvino": "#5e548e",
    "onnx-genai": "#8d6a9f",
}
_STYLES = ("-", "--", ":", "-.")


def draw(document: dict[str, Any], folder: Path) -> list[Path]:
    """Write what the run has data for: speed over length for each model, and the expert workload.

    Returns:
        The files.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    table = Table(Results.from_json(document))
    files = []
    for suite, axis in (("prefill", "tokens of prompt"), ("decode", "tokens of context")):
        for model in MODELS.values():
            if _lines(pyplot, table, suite, model.name):
                pyplot.xlabel(axis)
                pyplot.ylabel("tokens per second")
                pyplot.title(f"{suite.capitalize()}, {model.title}", fontsize=9)
                files.append(_save(pyplot, folder / f"{suite}-{model.name}.svg"))
    if _bars(pyplot, table):
        pyplot.title("Expert workload, requests per minute", fontsize=9)
        files.append(_save(pyplot, folder / "workload.svg"))
    return files


def draw_memory(track: dict[str, Any], path: Path) -> Path:
    """Write resident memory over time.

    Args:
        track: `points` with seconds and bytes, and `parts` with the second at which each began and its name.
        path: the file.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.figure(figsize=(6, 3.6))
    seconds, sizes = zip(*track["points"], strict=True)
    pyplot.plot(seconds, [size / 1e6 for size in sizes], color=_COLOURS["ours"], linewidth=1.2)
    pyplot.ylim(bottom=0)
    for number, (begin, name) in enumerate(track["parts"]):
        pyplot.axvline(begin, color=_COLOURS["transformers"], linewidth=0.6)
        height = max(sizes) / 4e6 * (number % 3)  # short parts stand close together
        pyplot.text(begin, height, f" {name}", fontsize=7, rotation=90, va="bottom")
    pyplot.xlabel("seconds")
    pyplot.ylabel("resident memory in MB")
    pyplot.title("Memory of a soak run", fontsize=9)
    return _save(pyplot, path)


def _lines(pyplot: Any, table: Table, suite: str, model: str) -> bool:
    """A line for each of ours and one for each peer over the sizes; False where there are fewer than two."""
    rows = [
        row
        for row in table.results.rows
        if (row.suite, row.model) == (suite, model)
        and parse_system(row.system).precision in _drawn(parse_system(row.system).peer)
    ]
    if len({row.case for row in rows}) < 2:
        return False
    pyplot.figure(figsize=(6, 3.6))
    drawn: dict[str, int] = {}
    for system in dict.fromkeys(row.system for row in rows):
        peer = system.rpartition(" ")[0]
        own = sorted((int(row.case), table.value(row)) for row in rows if row.system == system)
        sizes = [size for size, _ in own]
        middle = [value.median for _, value in own]
        below = [value.median - value.least for _, value in own]
        above = [value.most - value.median for _, value in own]
        pyplot.errorbar(
            sizes,
            middle,
            yerr=(below, above),
            label=system,
            color=_COLOURS[peer],
            linestyle=_STYLES[drawn.get(peer, 0) % len(_STYLES)],
            marker=".",
            linewidth=1.6 if peer == "ours" else 1.0,
            capsize=2,
        )
        drawn[peer] = drawn.get(peer, 0) + 1
    pyplot.xscale("log", base=2)
    ticks = sorted({int(row.case) for row in rows})
    pyplot.xticks(ticks, [str(tick) for tick in ticks])
    pyplot.ylim(bottom=0)
    pyplot.legend(fontsize=6, ncols=2)
    return True


def _drawn(peer: str) -> tuple[str, ...]:
    """The precisions to draw: all of ours, and the one that is used most of a peer."""
    return PRECISIONS[peer] if peer == "ours" else PRECISIONS[peer][:1]


def _bars(pyplot: Any, table: Table) -> bool:
    rows = [
        row
        for row in table.results.rows
        # Peers answer one by one in both cases.
        if row.suite == "workload" and (row.case == "one by one" or parse_system(row.system).peer == "ours")
    ]
    if not rows:
        return False
    values = [table.value(row) for row in rows]
    pyplot.figure(figsize=(6, 0.6 + 0.3 * len(rows)))
    pyplot.barh(
        [f"{row.system}, {row.case}" for row in rows],
        [value.median for value in values],
        xerr=(
            [value.median - value.least for value in values],
            [value.most - value.median for value in values],
        ),
        color=[_COLOURS[row.system.rpartition(" ")[0]] for row in rows],
    )
    pyplot.gca().invert_yaxis()
    return True


def _save(pyplot: Any, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyplot.tight_layout()
    # No date and no random ids: the same data gives the same file.
    pyplot.rcParams["svg.hashsalt"] = path.stem
    pyplot.savefig(path, metadata={"Date": None})
    pyplot.close()
    return path
