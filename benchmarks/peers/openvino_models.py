"""Convert a Hugging Face folder with Optimum Intel; runs in that environment."""

from __future__ import annotations

import json
import subprocess
import sys

OPTIONS = {
    "int8": ["--weight-format", "int8"],
    "int4": ["--weight-format", "int4", "--sym", "--group-size", "32", "--ratio", "1.0"],
}

if __name__ == "__main__":
    _spec = json.loads(sys.argv[1])
    _command = [sys.executable, "-m", "optimum.commands.optimum_cli", "export", "openvino"]
    _command += ["--model", _spec["hf"], "--task", "text-generation-with-past", *OPTIONS[_spec["precision"]]]
    subprocess.run([*_command, _spec["output"]], check=True, stdout=sys.stderr)
