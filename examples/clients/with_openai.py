"""OpenAI's client for Python: an answer, a stream, and an object of a class.

python examples/clients/with_openai.py http://127.0.0.1:8000/v1 json
"""

from __future__ import annotations

import sys

from openai import OpenAI
from pydantic import BaseModel

ADDRESS, MODEL = sys.argv[1:]


class Product(BaseModel):
    """What the answer is."""

    available: bool


api = OpenAI(base_url=ADDRESS, api_key="none")
turns = [{"role": "user", "content": "Describe a kettle in JSON"}]

answer = api.chat.completions.create(model=MODEL, messages=turns, max_tokens=40)
sys.stdout.write(f"{answer.choices[0].message.content}\n")

with api.chat.completions.create(model=MODEL, messages=turns, max_tokens=40, stream=True) as chunks:
    for chunk in chunks:
        sys.stdout.write(chunk.choices[0].delta.content or "")
sys.stdout.write("\n")

parsed = api.chat.completions.parse(model=MODEL, messages=turns, response_format=Product)
sys.stdout.write(f"{parsed.choices[0].message.parsed!r}\n")
