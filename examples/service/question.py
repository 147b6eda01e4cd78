"""What a client may ask."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from hivellm_ort import ExpertManager

__all__ = ["Question", "Turn"]


class Turn(BaseModel):
    """One message of a conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str


class Question(BaseModel):
    """The body of `POST /generate` and `POST /stream`.

    Without `expert` the request is routed; `or_base` asks the base model where no expert fits. The other fields are
    options of `hivellm_ort.GenerateOptions`, which says what they mean; what is left out is the expert's default.
    """

    model_config = ConfigDict(extra="forbid")

    expert: str | None = None
    prompt: str | None = None
    or_base: bool = False

    messages: list[Turn] | None = None
    system: str | None = None
    schema_: str | None = Field(None, alias="schema")
    enable_thinking: bool | None = None

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    seed: int | None = None

    max_tokens: int | None = None
    stop: str | list[str] | None = None
    timeout: float | None = None

    grammar: bool | str | None = None
    json_schema: bool | dict[str, Any] | None = None
    regex: str | None = None
    choice: list[str] | None = None

    @model_validator(mode="after")
    def _asks_something(self) -> Question:
        if self.prompt is None and not self.messages:
            raise ValueError("give a prompt, or messages that end with the question")
        return self

    def options(self) -> dict[str, Any]:
        """The options, as `hivellm_ort.GenerateOptions` has them."""
        return self.model_dump(by_alias=True, exclude_none=True, exclude={"expert", "prompt", "or_base"})

    def chosen(self, manager: ExpertManager) -> str:
        """The expert that is named, else the one that fits."""
        if self.expert is not None:
            return self.expert
        beside = {"messages": self.model_dump()["messages"], "system": self.system, "schema": self.schema_}
        return manager.choose(self.prompt, or_base=self.or_base, **beside)
