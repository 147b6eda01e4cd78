"""What a slim installation is: `hivellm-ort[cpu]` in a new environment, its size, its start-up, and that it runs.

    python benchmarks/slim.py [--package FILE --prompt TEXT] [--json]

Builds the wheel of this checkout, installs it with pip and nothing else, and measures. Sizes are those of the files,
in MB of 10^6 bytes, without pip itself; the import time, that of `from hivellm_ort import Expert`, is the
median of eleven fresh processes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
import venv
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
FORBIDDEN = ("torch", "transformers", "peft", "optimum", "onnx", "onnx_ir", "accelerate")
_PIP = ("pip", "setuptools", "wheel", "pkg_resources", "_distutils_hack")


def install(folder: Path) -> Path:
    """Make an environment with `hivellm-ort[cpu]` in `folder`; returns its Python."""
    venv.create(folder, with_pip=True)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    _run(python, "-m", "pip", "install", "--quiet", f"{ROOT}[cpu]")
    return python


def measure(python: Path) -> dict[str, Any]:
    """Size, packages and import time of the environment of `python`."""
    site = Path(_run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    files = [path for path in site.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files if not path.relative_to(site).parts[0].startswith(_PIP))
    listed = json.loads(_run(python, "-m", "pip", "list", "--format", "json"))
    script = (
        "import importlib.util, json, sys; "
        "print(json.dumps([name for name in sys.argv[1:] if importlib.util.find_spec(name)]))"
    )
    return {
        "megabytes": round(size / 1e6, 1),
        "packages": len([entry for entry in listed if entry["name"] not in _PIP]),
        "forbidden": json.loads(_run(python, "-c", script, *FORBIDDEN)),
        "import_seconds": round(_import_seconds(python), 3),
    }


def _import_seconds(python: Path) -> float:
    """Median time until there is an `Expert` to load with, without the interpreter's own start."""
    script = (
        "import time; t = time.perf_counter(); from hivellm_ort import Expert; print(time.perf_counter() - t)"
    )
    return statistics.median(float(_run(python, "-c", script)) for _ in range(11))


def _run(python: Path, *arguments: str) -> str:
    # Outside the checkout, so that only what is installed can be imported.
    done = subprocess.run(
        [str(python), *arguments], check=False, capture_output=True, text=True, cwd=tempfile.gettempdir()
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments[:4])} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def main() -> None:
    """Install, measure, run, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--package", type=Path, help="a .expert package to run in the slim environment")
    parser.add_argument("--prompt", default="List all users")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        python = install(Path(folder) / "venv")
        report = {"install_seconds": round(time.perf_counter() - begin, 1), **measure(python)}
        if options.package:
            command = ("-m", "hivellm_ort", "run", str(options.package.resolve()), options.prompt)
            report["result"] = json.loads(_run(python, *command, "--max-tokens", "16", "--json"))
            grammar = ("--json-schema", '{"enum": [{"tool": "search"}, {"tool": "read"}]}')
            report["constrained"] = json.loads(_run(python, *command, *grammar, "--json"))
    if options.json:
        print(json.dumps(report, indent=2))
        return
    print(f"installed  {report['megabytes']} MB in {report['packages']} packages")
    print(f"import     {1000 * report['import_seconds']:.0f} ms")
    print(f"forbidden  {', '.join(report['forbidden']) or 'none'}")
    if options.package:
        print(f"answer     {report['result']['text']!r}")
        print(f"as JSON    {report['constrained']['text']}")


if __name__ == "__main__":
    main()
