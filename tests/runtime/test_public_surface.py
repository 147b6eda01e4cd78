"""What the package shows, and what it never imports."""

from __future__ import annotations

import ast
import importlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.running import PROMPT, Packages

import hivellm_ort
from hivellm_ort import Expert, GenerateOptions, LoadOptions

BUILD_TIME = {"torch", "transformers", "peft", "optimum", "onnx", "onnx_ir", "onnxscript", "hivellm_export"}
# What each room may import of this package: a room knows only rooms below it. Lowest first.
ROOMS: dict[str, set[str]] = {
    "errors": set(),
    "callbacks": {"errors"},
    "forking": {"errors"},
    "textfile": set(),
    "paths": set(),
    "printable": set(),
    "panics": {"errors", "printable"},
    "ranges": set(),
    "result": set(),
    "filenames": {"errors"},
    "jsonfiles": {"errors", "filenames", "textfile"},
    "grammar": {"errors", "jsonfiles", "panics", "printable"},
    "options": {"errors", "grammar"},
    "contract": {"errors", "filenames", "jsonfiles", "paths", "printable"},
    "adapters": {"contract", "errors", "jsonfiles", "paths"},
    "observability": {"callbacks", "result"},
    "text": {"errors", "jsonfiles", "panics", "paths", "printable", "textfile"},
    "engine": {"adapters", "contract", "errors"},
    "decoding": {"callbacks", "errors", "ranges", "result", "text"},
    "operators": set(),
    "progress": {"forking", "printable"},
    "version": set(),
    "package": {"contract", "errors", "filenames", "jsonfiles", "paths", "ranges", "textfile", "version"},
    "routing": {"errors", "package", "printable"},
    "integrity": {"errors", "filenames", "forking", "jsonfiles", "package", "paths", "textfile"},
    "loading": {
        "adapters", "contract", "engine", "errors", "filenames", "grammar", "integrity", "operators", "options",
        "package", "paths", "printable", "progress", "text", "textfile",
    },
    "tools": {"errors", "grammar", "result", "text"},
    "serving": {
        "callbacks", "contract", "decoding", "engine", "errors", "forking", "grammar", "jsonfiles", "options",
        "package", "result", "text", "tools",
    },
    "expert": {"contract", "engine", "errors", "loading", "options", "paths", "result", "serving", "text"},
    "manager": {
        "errors", "expert", "forking", "integrity", "loading", "observability", "options", "package", "paths",
        "result", "routing", "serving", "text",
    },
    "lazy": set(),
    "__init__": {
        "errors", "expert", "grammar", "integrity", "lazy", "loading", "manager", "observability", "options",
        "package", "result", "serving", "tools", "version",
    },
    "server": {
        "__init__", "errors", "jsonfiles", "lazy", "manager", "observability", "options", "paths", "result",
        "serving", "text", "textfile", "tools",
    },
    "cli": {
        "__init__", "engine", "errors", "expert", "grammar", "integrity", "jsonfiles", "loading", "package", "paths",
        "printable", "progress", "server", "text", "textfile",
    },
    "__main__": {"cli"},
    "ray": {"__init__", "errors", "integrity", "lazy", "observability", "server", "serving"},
}  # fmt: skip
THIRD_PARTY: dict[str, set[str]] = {
    "adapters": {"numpy", "safetensors"},
    "cli": {"click"},
    "decoding": {"numpy"},
    "serving": {"numpy"},
    "engine": {"numpy", "onnxruntime"},
    "grammar": {"llguidance", "numpy", "referencing"},
    "observability": {"opentelemetry"},
    "integrity": {"cryptography", "filelock", "platformdirs"},
    "loading": {"google", "tokenizers"},
    "package": {"filelock", "jsonschema", "platformdirs", "referencing"},
    "server": {"fastapi", "pydantic", "pydantic_core", "starlette", "uvicorn"},
    "text": {"jinja2", "tokenizers"},
    "progress": {"tqdm"},
    "ray": {"fastapi", "pydantic", "ray", "starlette"},
}
ROOT = Path(hivellm_ort.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))


def room_of(path: Path) -> str:
    """`engine/session.py` is in the room `engine`, `expert.py` is one itself."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    """Yield the dotted names of all modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import"
            yield str(node.module)


def test_all_is_sorted_and_true() -> None:
    """`__all__` lists every public name that the package defines, and each is documented."""
    names = hivellm_ort.__all__
    # As ruff sorts them: constants, classes, dunders.
    assert sorted(names, key=lambda name: (not name.isupper(), name)) == names
    modules = {room for room in ROOMS if room != "__init__"} | {"annotations", "TYPE_CHECKING"}
    public = {name for name in dir(hivellm_ort) if not name.startswith("_")} - modules
    assert public | {"__version__"} == set(names)
    assert [] == [name for name in names if name != "__version__" and not getattr(hivellm_ort, name).__doc__]


@pytest.mark.parametrize(
    "path",
    [path for path in FILES if path.name != "__main__.py"],
    ids=lambda path: path.relative_to(ROOT).as_posix(),
)
def test_modules_declare_what_they_export(path: Path) -> None:
    """A module with classes or functions has an `__all__` of existing, public names."""
    if room_of(path) == "ray":
        pytest.importorskip("ray.serve", reason="needs the extra ray")
    dotted = ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__")
    module = importlib.import_module(dotted)
    body = ast.parse(path.read_text(encoding="utf-8")).body
    if any(isinstance(node, ast.ClassDef | ast.FunctionDef) for node in body):
        assert module.__all__
    names = getattr(module, "__all__", [])
    assert [] == [name for name in names if not hasattr(module, name)]
    assert [] == [name for name in names if name.startswith("_") and name != "__version__"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_point_downwards(path: Path) -> None:
    """No file imports build-time libraries, a room above its own, or a library that is not its room's."""
    room = room_of(path)
    names = set(imports(path))
    assert set() == {name.partition(".")[0] for name in names} & BUILD_TIME
    own = {name for name in names if name.partition(".")[0] == "hivellm_ort"}
    rooms = {name.split(".")[1] if "." in name else "__init__" for name in own}
    assert set() == rooms - {room} - ROOMS[room]
    others = {name.partition(".")[0] for name in names - own} - sys.stdlib_module_names
    assert set() == others - THIRD_PARTY.get(room, set())


def test_the_map_is_exact() -> None:
    """The map names every room, has no circle, and allows nothing that is not used."""
    found: dict[str, set[str]] = {room_of(path): set() for path in FILES}
    for path in FILES:
        for name in imports(path):
            if name.partition(".")[0] == "hivellm_ort":
                found[room_of(path)].add(name.split(".")[1] if "." in name else "__init__")
    assert ROOMS == {room: rooms - {room} for room, rooms in found.items()}
    floors = list(ROOMS)
    assert [] == [
        (room, below) for room in floors for below in ROOMS[room] if floors.index(below) >= floors.index(room)
    ]


# The stages of a load, first to last. What each of them uses stands before it.
LOADING = [
    "adapter_files", "bundles", "grammars", "adapter_tokenizer", "graph_check", "bases", "peft_folder",
    "folder_packing", "inspection", "options", "opening", "parts",
]  # fmt: skip


def test_loading_goes_one_way() -> None:
    """No file of `loading` imports one of a later stage, and only `Expert` runs the last."""
    files = {path.stem: path for path in (ROOT / "loading").glob("*.py") if path.stem != "__init__"}
    assert sorted(LOADING) == sorted(files)
    dotted = "hivellm_ort.loading."
    for name, path in files.items():
        below = {found.removeprefix(dotted) for found in imports(path) if found.startswith(dotted)}
        assert set() == below - set(LOADING[: LOADING.index(name)]), name
    users = [path for path in FILES if f"{dotted}parts" in set(imports(path))]
    assert [ROOT / "expert.py"] == users


# What their checks refuse no user can bring about.
INVARIANTS = {
    "adapters/prepared_adapter.py",
    "grammar/matcher.py",
    "package/filecheck.py",
    "package/store.py",
}


def test_errors_have_types_of_their_own() -> None:
    """A bare ValueError or TypeError is a bug: the commands show it as one, and not as a mistake of the user's."""
    found = [
        f"{path.relative_to(ROOT).as_posix()}:{node.lineno}"
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)
        if isinstance(node.exc.func, ast.Name) and node.exc.func.id in ("ValueError", "TypeError")
    ]
    assert [] == [place for place in found if place.partition(":")[0] not in INVARIANTS]


def test_messages_name_arguments_in_one_way() -> None:
    """Messages that commands show too write no argument as Python has it: `errors.argument` names it."""
    names = {*GenerateOptions.__annotations__, *LoadOptions.__annotations__}
    python = re.compile(rf"\b({'|'.join(sorted(names))})=")
    found = []
    for path in FILES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        documents = {
            id(node.value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        }
        found += [
            f"{path.relative_to(ROOT).as_posix()}:{node.lineno}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
            if id(node) not in documents and "{%" not in node.value and python.search(node.value)
        ]
    assert [] == found


def test_commands_print_in_one_way() -> None:
    """`cli/output.py` knows which characters standard output takes, and which steer a terminal."""
    commands = [*(ROOT / "cli").glob("*.py"), *(ROOT.parent / "export" / "hivellm_export").rglob("*.py")]
    texts = {path.name: path.read_text(encoding="utf-8") for path in commands}
    assert ["output.py"] == [
        name for name, text in texts.items() if re.search(r"click\.s?echo|\bprint\(", text)
    ]


def test_a_generation_imports_no_build_time_library(packages: Packages, lora: Expert) -> None:
    """A process that loads an expert and answers never loads PyTorch and its relatives."""
    script = (
        "import json, sys, hivellm_ort\n"
        "with hivellm_ort.Expert.load(sys.argv[1], cache_dir=sys.argv[2], threads=1) as expert:\n"
        "    result = expert.generate(sys.argv[3], max_tokens=5)\n"
        "print(json.dumps([list(result.tokens), sorted({name.partition('.')[0] for name in sys.modules})]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, packages.lora, packages.cache, PROMPT],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    tokens, modules = json.loads(done.stdout)
    assert list(lora.generate(PROMPT, max_tokens=5).tokens) == tokens
    assert set() == BUILD_TIME & set(modules)
    assert "onnxruntime" in modules


@pytest.mark.parametrize("script", ["import hivellm_ort", "from hivellm_ort.cli.main import main"])
def test_import_alone_is_light(script: str) -> None:
    """Importing the package or its commands loads neither ONNX Runtime nor a build-time library."""
    check = f"{script}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, timeout=60, check=True
    )
    assert set() == (BUILD_TIME | {"onnxruntime"}) & set(done.stdout.split())


def test_names_bring_their_modules() -> None:
    """The package alone brings not even numpy; a name brings what it needs, and a wrong one is an error."""
    check = (
        "import sys, hivellm_ort as package\n"
        "alone = 'numpy' in sys.modules\n"
        "from hivellm_ort import *\n"
        "print(alone, Expert is package.Expert, 'numpy' in sys.modules, hasattr(package, 'Experts'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, timeout=60, check=True
    )
    assert ["False", "True", "True", "False"] == done.stdout.split()
