"""Chat templates that do with tools what those of published models do, in words of their own."""

from __future__ import annotations

from typing import Any

from support.extras import requires_export
from tokenizer_samples import byte_level_tokenizer

from hivellm_ort.text.messages import checked_messages, checked_tools
from hivellm_ort.text.template import ChatTemplate

# As Qwen3: tools in the system message, arguments as they are if they are a text.
HERMES_LIKE = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- 'Functions:' }}
    {%- for tool in tools %}{{- '\\n' + (tool | tojson) }}{%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- elif message.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' + message.content }}
        {%- for call in message.tool_calls or [] %}
            {%- set call = call.function or call %}
            {{- '<tool_call>{"name": "' + call.name + '", "arguments": ' }}
            {{- call.arguments if call.arguments is string else call.arguments | tojson }}
            {{- '}</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {{- '<|im_start|>user\\n<tool_response>' + message.content + '</tool_response><|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""

# As Llama 3.1: tools before the first question, any arguments written as JSON, texts of calls left out.
LLAMA_LIKE = """\
{{- bos_token }}
{%- if messages[0].role == 'system' %}
    {{- '<|system|>' + messages[0].content | trim }}
    {%- set messages = messages[1:] %}
{%- endif %}
{%- for message in messages %}
    {%- if 'tool_calls' in message %}
        {%- if message.tool_calls | length != 1 %}{{- raise_exception('one call at a time') }}{%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '<|assistant|>{"name": "' + call.name + '", "parameters": ' + (call.arguments | tojson) + '}' }}
    {%- elif message.role == 'tool' %}
        {{- '<|ipython|>' + (message.content | tojson) }}
    {%- else %}
        {{- '<|' + message.role + '|>' }}
        {%- if loop.first and tools is not none %}
            {%- for tool in tools %}{{- tool | tojson(indent=4) + '\\n\\n' }}{%- endfor %}
        {%- endif %}
        {{- message.content | trim }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}"""

# As Mistral: the system message in the last turn if that is the user's, tools there too, ids of nine characters.
MISTRAL_LIKE = """\
{%- if messages[0].role == 'system' %}
    {%- set told = messages[0].content %}
    {%- set messages = messages[1:] %}
{%- endif %}
{%- set questions = messages | selectattr('role', 'equalto', 'user') | list %}
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {%- if tools is not none and message == questions[-1] %}
            {{- '[AVAILABLE_TOOLS][' }}
            {%- for tool in tools %}
                {%- for key, value in tool.function.items() %}{{- key + '=' + (value | tojson) }}{%- endfor %}
            {%- endfor %}
            {{- '][/AVAILABLE_TOOLS]' }}
        {%- endif %}
        {{- '[INST]' + (told + '\\n\\n' if told is defined and loop.last else '') + message.content + '[/INST]' }}
    {%- elif message.tool_calls is defined %}
        {{- '[TOOL_CALLS]' }}
        {%- for call in message.tool_calls %}
            {%- if call.id | length != 9 %}{{- raise_exception('ids have nine characters') }}{%- endif %}
            {{- (call.function | tojson)[:-1] + ', "id": "' + call.id + '"}' }}
        {%- endfor %}
        {{- eos_token }}
    {%- elif message.role == 'assistant' %}
        {{- message.content + eos_token }}
    {%- elif message.role == 'tool' %}
        {{- '[TOOL_RESULTS]{"content": ' + message.content + ', "call_id": "' + message.tool_call_id + '"}' }}
    {%- else %}
        {{- raise_exception('a system message must come first') }}
    {%- endif %}
{%- endfor %}"""

# As Qwen3-Coder: arguments one by one.
ITEMS_LIKE = """\
{%- for tool in tools or [] %}{{- '<tool>' + (tool.function or tool).name + '</tool>' }}{%- endfor %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content }}
    {%- for call in message.tool_calls or [] %}
        {{- '<function=' + call.function.name + '>' }}
        {%- for name, value in call.function.arguments | items %}
            {{- '<parameter=' + name + '>' + (value if value is string else value | tojson) + '</parameter>' }}
        {%- endfor %}
        {{- '</function>' }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}"""

# As DeepSeek-V3: a call is a turn whose content is none, and its arguments are a text.
DEEPSEEK_LIKE = """\
{%- for message in messages %}
    {%- if message.role == 'assistant' and message.content is none %}
        {%- for call in message.tool_calls %}
            {{- '<|call|>' + call.function.name + '\\n```json\\n' + call.function.arguments + '\\n```' }}
        {%- endfor %}
    {%- elif message.role == 'assistant' %}
        {{- '<|assistant|>' + message.content + eos_token }}
    {%- else %}
        {{- '<|' + message.role + '|>' + message.content }}
    {%- endif %}
{%- endfor %}"""

# As vision models: a content may be in parts.
PARTS_LIKE = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.content is string %}
        {{- message.content }}
    {%- else %}
        {%- for part in message.content %}{{- part.text }}{%- endfor %}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}"""

CHATML_LIKE = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor %}"""

# As Gemma: the roles must alternate, and there is no other.
ALTERNATING = """\
{{- bos_token }}
{%- for message in messages %}
    {%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must alternate') }}
    {%- endif %}
    {{- '[INST]' + message.content + '[/INST]' if message.role == 'user' else message.content + eos_token }}
{%- endfor %}"""

# Other roles are dropped without a word, as Mistral-7B-v0.3's first template does.
DROPPING = """\
{%- for message in messages %}
    {%- if message.role == 'user' %}{{- '[INST]' + message.content + '[/INST]' }}
    {%- elif message.role == 'assistant' %}{{- message.content + eos_token }}{%- endif %}
{%- endfor %}"""

SYSTEM = {"role": "system", "content": "Be brief."}
QUESTION = {"role": "user", "content": "Root of 4?"}
ANSWER = {"role": "assistant", "content": "It is 2."}
RESULT = {"role": "tool", "content": "2", "tool_call_id": "abcdefghi", "name": "root"}
TOOL = {
    "type": "function",
    "function": {
        "name": "root",
        "description": "The square root, √x & <more>",
        "parameters": {
            "type": "object",
            "properties": {"x": {"type": "number", "description": "of what"}},
            "required": ["x"],
        },
    },
}


def call(arguments: Any, **more: Any) -> dict[str, Any]:
    """Return a turn of the assistant that calls the tool."""
    function = {"name": "root", "arguments": arguments}
    calls = [{"id": "abcdefghi", "type": "function", "function": function}]
    return {"role": "assistant", "content": "", "tool_calls": calls, **more}


def template(source: str) -> ChatTemplate:
    """Return the template with the tokens of the samples."""
    return ChatTemplate(source, bos_token="<s>", eos_token="</s>")


def shown(source: str, messages: Any, tools: Any = None) -> str:
    """Return the text of a conversation as a request makes it."""
    made = template(source)
    fitted, fitted_tools = made.fit(checked_messages(messages), checked_tools(tools))
    return made.render(fitted, tools=fitted_tools)


def by_transformers(source: str, messages: Any, tools: Any = None) -> str:
    """Return the text that transformers gives."""
    requires_export()
    import transformers

    reference = transformers.PreTrainedTokenizerFast(
        tokenizer_object=byte_level_tokenizer(), bos_token="<s>", eos_token="</s>"
    )
    text: str = reference.apply_chat_template(
        messages, tools=tools, chat_template=source, tokenize=False, add_generation_prompt=True
    )
    return text
