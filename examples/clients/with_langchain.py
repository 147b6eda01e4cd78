"""LangChain: an answer, a stream, and an object of a class.

pip install langchain-openai
python examples/clients/with_langchain.py http://127.0.0.1:8000/v1 json
"""

from __future__ import annotations

import sys

from langchain_openai import ChatOpenAI
from pydantic import BaseModel

ADDRESS, MODEL = sys.argv[1:]
QUESTION = "Describe a kettle in JSON"


class Product(BaseModel):
    """What the answer is."""

    available: bool


chat = ChatOpenAI(base_url=ADDRESS, api_key="none", model=MODEL, max_tokens=40)
sys.stdout.write(f"{chat.invoke(QUESTION).content}\n")

for chunk in chat.stream(QUESTION):
    sys.stdout.write(chunk.content)
sys.stdout.write("\n")

sys.stdout.write(f"{chat.with_structured_output(Product).invoke(QUESTION)!r}\n")
