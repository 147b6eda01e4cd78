"""The cache cleaned beside experts: what is loaded answers, and what is damaged is found when it is loaded."""

# The expected value comes first.

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.running import PROMPT, Packages, engine_of

from hivellm_ort import Expert, LoadError
from hivellm_ort.engine.session import Engine
from hivellm_ort.package.store import Store

_CLEAR = "import sys; from hivellm_ort.package.store import Store; Store(sys.argv[1]).clear()"
_LOAD = "import sys; from hivellm_ort import Expert; Expert.load(sys.argv[2], cache_dir=sys.argv[1]).close()"
_CLEARING = "import sys; from hivellm_ort.package.store import Store\nwhile True: Store(sys.argv[1]).clear()"


def in_another_process(code: str, *arguments: Path, **environment: str) -> None:
    """Run Python code in a new process."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, **environment})


def answered(expert: Expert) -> list[int]:
    """The tokens of a short answer."""
    return expert.generate(PROMPT, max_tokens=8).tokens


@pytest.mark.parametrize("how", ["clear", "size"])
@pytest.mark.parametrize("name", ["lora", "merged"])
def test_loaded_and_then_removed(packages: Packages, tmp_path: Path, name: str, how: str) -> None:
    """An expert answers as before when another process has removed all that it was loaded from."""
    with packages.load(name) as expert:
        expected = answered(expert)
    with Expert.load(getattr(packages, name), cache_dir=tmp_path, threads=1) as expert:
        if how == "clear":
            in_another_process(_CLEAR, tmp_path)
        else:
            in_another_process(_LOAD, tmp_path, packages.short, HIVELLM_CACHE_SIZE="1KB")
        assert not engine_of(expert).folder.exists()
        assert expected == answered(expert)


def test_loaded_while_another_process_clears(packages: Packages, tmp_path: Path) -> None:
    """Loads beside a process that clears the cache all the time succeed, and the answers are right."""
    with packages.load("dora") as expert:
        expected = answered(expert)
    clearing = subprocess.Popen([sys.executable, "-c", _CLEARING, str(tmp_path)])
    try:
        for _ in range(10):
            with Expert.load(packages.dora, cache_dir=tmp_path, threads=1) as expert:
                assert expected == answered(expert)
        assert None is clearing.poll()
    finally:
        clearing.kill()
        clearing.wait(60)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("decoder.adapters.onnx", lambda data: bytes(len(data))),
        ("decoder.adapters.onnx", lambda data: data[: len(data) // 2] + bytes(len(data) - len(data) // 2)),
        ("weights.bin", lambda data: data[:100]),
        ("weights.bin", None),
    ],
)
def test_damaged_base(
    packages: Packages,
    tmp_path: Path,
    name: str,
    damage: Callable[[bytes], bytes] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A file that is damaged after its size was compared makes loading fail, and the message names it."""
    whole = Store(tmp_path)
    path = whole.unpack(packages.lora).bundles[0] / name
    start = Engine.start

    def damaged(engine: Engine) -> None:
        data = path.read_bytes()
        path.unlink()  # it is shared with other files of the cache
        if damage is not None:
            path.write_bytes(damage(data))
        start(engine)

    monkeypatch.setattr(Engine, "start", damaged)
    with pytest.raises(LoadError, match=r"decoder\.adapters\.onnx of base bundle 'tiny'.*weights\.bin"):
        Expert.load(packages.lora, cache_dir=tmp_path, threads=1)
    monkeypatch.undo()
    whole.prune()
    with Expert.load(packages.lora, cache_dir=tmp_path, threads=1) as expert:
        assert 8 == len(answered(expert))


def test_second_graph_of_a_removed_base(packages: Packages, tmp_path: Path) -> None:
    """A graph that was not opened when its folder was removed is missed by name, with what to do."""
    with Expert.load(packages.lora, cache_dir=tmp_path, threads=1) as expert:
        Store(tmp_path).clear()
        with pytest.raises(
            LoadError, match=r"decoder\.onnx of base bundle 'tiny' was removed from .*: load again"
        ):
            engine_of(expert).decoder(adapters=False)
        assert 8 == len(answered(expert))


def test_base_in_memory_costs_no_second_session(packages: Packages, tmp_path: Path) -> None:
    """A second expert of a base shares its session, and only the graph that is used is open."""
    with (
        Expert.load(packages.lora, cache_dir=tmp_path, threads=1) as lora,
        Expert.load(packages.dora, cache_dir=tmp_path, threads=1) as dora,
    ):
        assert engine_of(lora) is engine_of(dora)
        assert [True] == list(engine_of(lora)._sessions)
