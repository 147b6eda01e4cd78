"""Export a Hugging Face folder with Optimum's ONNX exporter; runs in that environment."""

from __future__ import annotations

import json
import sys

from optimum.onnxruntime import ORTModelForCausalLM

if __name__ == "__main__":
    _spec = json.loads(sys.argv[1])
    ORTModelForCausalLM.from_pretrained(_spec["hf"], export=True).save_pretrained(_spec["output"])
