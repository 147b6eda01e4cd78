"""Answer the prompts of a JSON Lines file with several experts.

python examples/batch_minimal.py prompts.jsonl sql=SQL.expert json=JSON.expert
"""

import json
import sys
from pathlib import Path

from hivellm_ort import ExpertManager

prompts, *packages = sys.argv[1:]
# Each line is an object such as {"prompt": "Count all orders", "expert": "sql"}.
with Path(prompts).open(encoding="utf-8") as file:
    lines = [json.loads(line) for line in file]

with ExpertManager() as manager:
    manager.load_experts(dict(package.split("=", 1) for package in packages))
    # A line without "expert" goes to the expert that fits its prompt best.
    requests = [(line.get("expert") or manager.choose(line["prompt"]), line["prompt"]) for line in lines]
    # All requests share forward passes, whatever their experts.
    for (expert, prompt), result in zip(requests, manager.generate_batch(requests), strict=True):
        answer = {"prompt": prompt, "expert": expert, "text": result.text}
        print(json.dumps(answer))  # noqa: T201
