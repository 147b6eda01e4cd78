"""The prompt formats that a manifest may name, and the choice between them and the template of the bundle.

For alpaca, llama, mistral, phi, deepseek and gemma, prompts are the inference strings of HiveLLM's trainer, because
experts were trained on them. The trainer has single turns only, so the end of an answer follows the published format.
llama3 and vicuna are as published. No format adds its own system message.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hivellm_ort.errors import InferenceError
from hivellm_ort.text.template import ChatTemplate

if TYPE_CHECKING:
    from hivellm_ort.text.tokenizer import TextTokenizer

__all__ = ["template_for"]

_LOG = logging.getLogger("hivellm_ort")

# With these words, real experts were trained on the format of their base.
_BUNDLE = (None, "chatml", "qwen3", "qwen", "custom")


@dataclass(frozen=True)
class _Family:
    """A prompt format in jinja2. `content` is the text of the turn, `pending` holds a system message."""

    system: str
    user: str
    assistant: str
    opening: str
    """Of the assistant's turn, at the end of a prompt."""
    stops: tuple[str, ...]
    marks: tuple[str, ...]
    """Any of these in a rendering tells that a bundle's own template is of this family."""

    @property
    def source(self) -> str:
        """The whole template. Turns of other roles, such as tool, are written as user turns."""
        return (
            "{{ bos_token }}{% set pending = namespace(system='') %}"
            "{% for message in messages %}{% set content = message['content'] %}"
            f"{{% if message['role'] == 'system' %}}{self.system}"
            f"{{% elif message['role'] == 'assistant' %}}{self.assistant}"
            f"{{% else %}}{self.user}{{% endif %}}{{% endfor %}}"
            "{% if pending.system %}{{ raise_exception('no user message after the system message') }}{% endif %}"
            f"{{% if add_generation_prompt %}}{self.opening}{{% endif %}}"
        )


_LLAMA = _Family(
    system="{% set pending.system = pending.system + '<<SYS>>\n' + content + '\n<</SYS>>\n\n' %}",
    # In Llama 2 every question and answer is a separate sequence.
    user="{% if loop.previtem and loop.previtem['role'] == 'assistant' %}{{ bos_token }}{% endif %}"
    "[INST] {{ pending.system + content }} [/INST] {% set pending.system = '' %}",
    assistant="{{ content }}{{ eos_token }}",
    opening="",
    stops=("[INST]",),
    marks=("[INST]",),
)

_FAMILIES = {
    "llama": _LLAMA,
    "llama2": _LLAMA,
    "mistral": _Family(
        system="{% set pending.system = pending.system + content + '\n\n' %}",
        user="[INST] {{ pending.system + content }} [/INST] {% set pending.system = '' %}",
        assistant="{{ content }}{{ eos_token }}",
        opening="",
        stops=("[INST]",),
        marks=("[INST]",),
    ),
    "llama3": _Family(
        system="<|start_header_id|>system<|end_header_id|>\n\n{{ content }}<|eot_id|>",
        user="<|start_header_id|>user<|end_header_id|>\n\n{{ content }}<|eot_id|>",
        assistant="<|start_header_id|>assistant<|end_header_id|>\n\n{{ content }}<|eot_id|>",
        opening="<|start_header_id|>assistant<|end_header_id|>\n\n",
        stops=("<|eot_id|>",),
        marks=("<|start_header_id|>",),
    ),
    "gemma": _Family(
        system="<start_of_turn>system\n{{ content }}<end_of_turn>\n",
        user="<start_of_turn>user\n{{ content }}<end_of_turn>\n",
        assistant="<start_of_turn>model\n{{ content }}<end_of_turn>\n",
        opening="<start_of_turn>model\n",
        stops=("<end_of_turn>",),
        marks=("<start_of_turn>",),
    ),
    "alpaca": _Family(
        # The trainer's fixed preamble fails to format, so no expert has seen one.
        system="{{ content }}\n\n",
        user="### Instruction:\n{{ content }}\n\n",
        assistant="### Response:\n{{ content }}{{ eos_token }}\n\n",
        opening="### Response:\n",
        stops=("\n### Instruction:", "\n### Response:"),
        marks=("### Instruction:",),
    ),
    "vicuna": _Family(
        system="{{ content }} ",
        user="USER: {{ content }} ",
        assistant="ASSISTANT: {{ content }}{{ eos_token }}",
        opening="ASSISTANT:",
        stops=("\nUSER:",),
        marks=("USER:",),
    ),
    "phi": _Family(
        system="System: {{ content }}\n\n",
        user="User: {{ content }}\n",
        assistant="Assistant: {{ content }}{{ eos_token }}\n",
        opening="Assistant: ",
        stops=("\nUser:",),
        marks=("<|user|>", "<|im_sep|>"),
    ),
    "deepseek": _Family(
        system="System: {{ content }}\n\n",
        user="User: {{ content }}\n\n",
        assistant="Assistant: {{ content }}{{ eos_token }}",
        opening="Assistant: ",
        stops=("\nUser:",),
        marks=("<\uff5cUser\uff5c>", "User: "),
    ),
}


def template_for(prompt_template: str | None, bundle: ChatTemplate, tokenizer: TextTokenizer) -> ChatTemplate:
    """Return the template for an expert whose manifest has this `prompt_template`.

    It is `bundle` for None, `chatml`, `qwen3`, `qwen`, `custom`, unknown words, and the family of the bundle's own
    template. Else it is the template of the family: llama (also llama2), llama3, alpaca, vicuna,
    mistral, phi, deepseek or gemma, with the bundle's end-of-sequence token after earlier answers.

    Args:
        prompt_template: The value in the manifest; case is ignored.
        bundle: The base bundle's template (see `ChatTemplate.from_folder`).
        tokenizer: Its tokenizer, which gives the tokens at the beginning of the trainer's prompts.
    """
    word = prompt_template and prompt_template.strip().lower()
    family = _FAMILIES.get(word or "")
    if family is None:
        if word not in _BUNDLE:
            _LOG.warning("prompt_template %r is not known: the base's own chat template is used", word)
        return bundle
    if not bundle.built_in and _belongs(bundle, family):
        return bundle
    return ChatTemplate(
        family.source,
        bos_token=tokenizer.prefix or None,
        eos_token=bundle.eos_token,
        stops=family.stops,
        built_in=True,
        name=f"built-in {word} template",
    )


def _belongs(template: ChatTemplate, family: _Family) -> bool:
    """Return whether the template has the turn format of the family."""
    try:
        text = template.render([{"role": "user", "content": "question"}])
    except InferenceError:
        return False
    return any(mark in text for mark in family.marks)
