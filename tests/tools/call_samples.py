"""Chat templates that write calls as those of published models do, in words of their own, and tools to call."""

from __future__ import annotations

from functools import cache
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from hivellm_ort.text.template import ChatTemplate
from hivellm_ort.tools.formats import CallFormat, find_format

_TURNS = (
    "{{- '<|im_start|>system\\n' }}{%- for tool in tools or [] %}{{- tool | tojson + '\\n' }}{%- endfor %}"
    "{{- '<|im_end|>\\n' }}"
    "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' }}{{- m.content or '' }}CALLS"
    "{{- '<|im_end|>\\n' }}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


def _template(calls: str) -> str:
    return _TURNS.replace("CALLS", calls)


# As Qwen2.5 and Qwen3: each call on lines of its own.
QWEN = _template(
    "{%- for call in m.tool_calls or [] %}"
    "{{- '\\n' if m.content or not loop.first else '' }}"
    '{{- \'<tool_call>\\n{"name": "\' + call.function.name + \'", "arguments": \' }}'
    "{{- call.function.arguments | tojson + '}\\n</tool_call>' }}{%- endfor %}"
)

# On one line, and without a space after the colons.
HERMES = _template(
    "{%- for call in m.tool_calls or [] %}"
    '{{- \'<tool_call>{"name":"\' + call.function.name + \'","arguments":\' }}'
    "{{- call.function.arguments | tojson + '}</tool_call>' }}{%- endfor %}"
)

# As Hermes 2 Pro: arguments before the name.
ARGUMENTS_FIRST = _template(
    "{%- for call in m.tool_calls or [] %}{{- '<tool_call>\\n{ \"arguments\": ' + call.function.arguments | tojson }}"
    "{{- ', \"name\": \"' + call.function.name + '\"}\\n</tool_call> ' }}{%- endfor %}"
)

# As SmolLM3: it tells the model how to call, and does not show earlier calls.
TOLD = "{{- 'Answer with <tool_call>JSON</tool_call>.\\n' }}" + _template("")

# As Llama 3.1 and 3.2: one call at a time, its arguments are called parameters.
LLAMA3 = _template(
    "{%- if m.tool_calls %}{%- if m.tool_calls | length > 1 %}{{- raise_exception('one at a time') }}{%- endif %}"
    "{%- set call = m.tool_calls[0].function %}"
    "{{- '{\"name\": \"' + call.name + '\", \"parameters\": ' + call.arguments | tojson + '}' }}{%- endif %}"
)

# As Mistral 7B v0.3 and Nemo: one list of all calls, with ids of nine letters and digits.
MISTRAL = _template(
    "{%- if m.tool_calls %}{{- '[TOOL_CALLS] [' }}{%- for call in m.tool_calls %}"
    "{%- if call.id | length != 9 %}{{- raise_exception('ids have nine characters') }}{%- endif %}"
    "{{- (call.function | tojson)[:-1] + ', \"id\": \"' + call.id + '\"}' }}"
    "{{- ']' if loop.last else ', ' }}{%- endfor %}{%- endif %}"
)

# As Mistral Small 3.2: a bare name, an id, the arguments.
MISTRAL_IDS = _template(
    "{%- for call in m.tool_calls or [] %}"
    "{{- '[TOOL_CALLS]' + call.function.name + '[CALL_ID]' + call.id + '[ARGS]' }}"
    "{{- call.function.arguments | tojson }}{%- endfor %}"
)

# As Ministral 3 and Devstral 2: a bare name and the arguments.
MISTRAL_ARGS = _template(
    "{%- for call in m.tool_calls or [] %}{{- '[TOOL_CALLS]' + call.function.name + '[ARGS]' }}"
    "{{- call.function.arguments | tojson }}{%- endfor %}"
)

# As FunctionGemma: texts between marks, and no JSON.
FUNCTIONGEMMA = _template(
    "{%- for call in m.tool_calls or [] %}{{- '<start_function_call>call:' + call.function.name + '{' }}"
    "{%- for key, value in call.function.arguments.items() %}{{- key + ':' }}"
    "{{- '<escape>' + value + '<escape>' if value is string else value | tojson }}"
    "{{- '' if loop.last else ',' }}{%- endfor %}{{- '}<end_function_call>' }}{%- endfor %}"
)

# As Qwen3-Coder: arguments one by one, which no known format has.
CODER = _template(
    "{%- for call in m.tool_calls or [] %}{{- '<tool_call>\\n<function=' + call.function.name + '>' }}"
    "{%- for key, value in call.function.arguments.items() %}"
    "{{- '<parameter=' + key + '>' + value | string + '</parameter>' }}{%- endfor %}"
    "{{- '</function>\\n</tool_call>' }}{%- endfor %}"
)

PLAIN = _template("")

TEMPLATES = {
    "qwen": QWEN,
    "hermes": HERMES,
    "arguments_first": ARGUMENTS_FIRST,
    "told": TOLD,
    "llama3": LLAMA3,
    "mistral": MISTRAL,
    "mistral_ids": MISTRAL_IDS,
    "mistral_args": MISTRAL_ARGS,
    "functiongemma": FUNCTIONGEMMA,
}
"""The templates whose format is known, by a name."""

JSON_FORMATS = tuple(name for name in TEMPLATES if name != "functiongemma")
"""Those whose calls can be enforced."""


@cache
def format_named(name: str) -> CallFormat:
    """The format of one of the templates."""
    found = find_format(ChatTemplate(TEMPLATES[name]))
    assert found is not None
    return found


def tool(name: str, parameters: Any = None, **more: Any) -> dict[str, Any]:
    """A tool in the form of OpenAI's API."""
    function = {"name": name, "parameters": parameters, **more}
    return {
        "type": "function",
        "function": {key: value for key, value in function.items() if value is not None},
    }


WEATHER_SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"enum": ["Oslo", "Rome"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 5},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 3}, "maxItems": 2},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
WEATHER = tool("get_weather", WEATHER_SCHEMA)
STOP = tool("stop")
TOOLS = [WEATHER, STOP]
SCHEMAS: dict[str, Any] = {
    "get_weather": WEATHER_SCHEMA,
    "stop": {"type": "object", "additionalProperties": False},
}


_LINES = [
    '{"name": "get_weather", "arguments": {"city": "Oslo", "days": 3, "tags": ["a", "b"]}}',
    '{"name": "stop", "parameters": {}}; [{"name": "stop", "id": "abcdefghi"}]',
    "<think> naïve Größe, 東京, 🙂 </think> call:get_weather{city:Rome}",
]
SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "[TOOL_CALLS]",
    "[ARGS]",
    "[CALL_ID]",
    "<|python_tag|>",
)
VISIBLE = ("<think>", "</think>", "<tool_call>", "</tool_call>")


@cache
def tokenizer(*, markers: bool) -> Tokenizer:
    """A byte-level BPE; its markers of calls are tokens, special ones as in Llama and Mistral, or are not."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    special = SPECIAL if markers else SPECIAL[:3]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=450, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(_LINES * 3, trainer)
    made.add_tokens([AddedToken(tag, special=False) for tag in (VISIBLE if markers else VISIBLE[:2])])
    return made
