"""The body of `/v1/decisions`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

from hivellm_ort.server.schemas.common import Body, of_types
from hivellm_ort.server.schemas.responses import (
    CallItem,
    InputText,
    MessageItem,
    OutputItem,
    OutputText,
    RefusalText,
    as_items,
    as_parts,
    kind_of_item,
)

__all__ = ["Choice", "DecisionsBody", "Level", "Predicate", "Question", "Rating", "Selection"]

MOST_CHOICES = 255  # as in OpenAI's API
MOST_LEVELS = 10

_ITEMS = ("message", "function_call", "function_call_output")


class InputJson(Body):
    """JSON that the model reads as text."""

    type: Literal["input_json"]
    data: dict[str, Any] | list[dict[str, Any]]

    @property
    def text(self) -> str:
        """The JSON text, on one line."""
        return json.dumps(self.data, ensure_ascii=False)


_Part = Annotated[
    InputText | InputJson | OutputText | RefusalText,
    Discriminator("type"),
    of_types(("input_text", "input_json", "output_text", "refusal"), "prompts are text"),
]
_Instructions = Annotated[
    list[
        Annotated[
            InputText | InputJson,
            Discriminator("type"),
            of_types(("input_text", "input_json"), "questions are text"),
        ]
    ],
    BeforeValidator(as_parts, json_schema_input_type=str | list[InputText | InputJson]),
    Field(min_length=1),
]


class _MessageItem(MessageItem):
    """A message of the conversation."""

    content: Annotated[  # type: ignore[assignment]
        list[_Part], BeforeValidator(as_parts, json_schema_input_type=str | list[_Part])
    ]


_Item = Annotated[
    Annotated[_MessageItem, Tag("message")]
    | Annotated[CallItem, Tag("function_call")]
    | Annotated[OutputItem, Tag("function_call_output")],
    Discriminator(kind_of_item),
    of_types(_ITEMS, f"an item is one of {', '.join(_ITEMS)}"),
]


class Choice(Body):
    """A value to choose from."""

    value: Annotated[str, Field(min_length=1)] | bool
    description: str | None = None


class Level(Body):
    """A level of a score."""

    label: str = Field(min_length=1)
    description: str | None = None


def _different(options: Sequence[Choice | Level]) -> Sequence[Choice | Level]:
    """Refuse equal options. `true` and `"true"` are different."""
    seen = set()
    for index, option in enumerate(options):
        value = option.value if isinstance(option, Choice) else option.label
        key = (type(value), value)
        if key in seen:
            raise PydanticCustomError(
                "twice",
                "the option {value}, number {index} from 0, is given twice",
                {"value": value, "index": index},
            )
        seen.add(key)
    return options


class _Question(Body):
    name: str | None = Field(None, description="Repeated in the answer.")
    instructions: _Instructions


class Predicate(_Question):
    """Asks whether a statement about the input is true."""

    type: Literal["predicate"]


class Selection(_Question):
    """Asks which of several values fits the input."""

    type: Literal["choice"]
    choices: Annotated[list[Choice], Field(min_length=2, max_length=MOST_CHOICES), AfterValidator(_different)]


class Rating(_Question):
    """Asks for the level of the input on a scale."""

    type: Literal["score"]
    levels: Annotated[
        list[Level],
        Field(min_length=2, max_length=MOST_LEVELS, description="From the lowest to the highest."),
        AfterValidator(_different),
    ]


Question = Predicate | Selection | Rating


class DecisionsBody(Body):
    """The body of `/v1/decisions`."""

    model: str = Field(description="An expert's name, `base` for the base model, or `auto` for routing.")
    input: Annotated[
        list[_Item], BeforeValidator(as_items, json_schema_input_type=str | list[_Item]), Field(min_length=1)
    ]
    questions: Annotated[
        list[
            Annotated[
                Question,
                Discriminator("type"),
                of_types(("predicate", "choice", "score"), "a question is a predicate, a choice or a score"),
            ]
        ],
        Field(min_length=1),
    ]

    # Accepted and not used.
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
