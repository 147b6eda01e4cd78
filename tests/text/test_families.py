"""Prompt formats by name, letter for letter, and the choice of a template."""

from __future__ import annotations

import logging

import pytest
from tokenizer_samples import byte_level_tokenizer, prefixed_tokenizer
from tokenizers import AddedToken

from hivellm_ort.errors import InferenceError
from hivellm_ort.text.families import template_for
from hivellm_ort.text.template import ChatTemplate, end_of_turn_ids
from hivellm_ort.text.template_source import CHATML
from hivellm_ort.text.tokenizer import TextTokenizer

SYSTEM = {"role": "system", "content": "Dialect: sql\nSchema:\nT"}
USER = {"role": "user", "content": "Q\n1"}
ANSWER = {"role": "assistant", "content": "A"}
AGAIN = {"role": "user", "content": "Q2"}

PLAIN = TextTokenizer(byte_level_tokenizer())
PREFIXED = TextTokenizer(prefixed_tokenizer())
BUNDLE = ChatTemplate("the bundle's own", eos_token="</s>")
CHATML_TURN = "<|im_start|>user\nQ\n1<|im_end|>\n<|im_start|>assistant\n"

PROMPTS = {
    "llama": (
        "[INST] Q\n1 [/INST] ",
        "[INST] <<SYS>>\nDialect: sql\nSchema:\nT\n<</SYS>>\n\nQ\n1 [/INST] ",
        "[INST] <<SYS>>\nDialect: sql\nSchema:\nT\n<</SYS>>\n\nQ\n1 [/INST] A</s>[INST] Q2 [/INST] ",
    ),
    "mistral": (
        "[INST] Q\n1 [/INST] ",
        "[INST] Dialect: sql\nSchema:\nT\n\nQ\n1 [/INST] ",
        "[INST] Dialect: sql\nSchema:\nT\n\nQ\n1 [/INST] A</s>[INST] Q2 [/INST] ",
    ),
    "llama3": (
        "<|start_header_id|>user<|end_header_id|>\n\nQ\n1<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "<|start_header_id|>system<|end_header_id|>\n\nDialect: sql\nSchema:\nT<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nQ\n1<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "<|start_header_id|>system<|end_header_id|>\n\nDialect: sql\nSchema:\nT<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nQ\n1<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nA<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nQ2<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    "gemma": (
        "<start_of_turn>user\nQ\n1<end_of_turn>\n<start_of_turn>model\n",
        "<start_of_turn>system\nDialect: sql\nSchema:\nT<end_of_turn>\n"
        "<start_of_turn>user\nQ\n1<end_of_turn>\n<start_of_turn>model\n",
        "<start_of_turn>system\nDialect: sql\nSchema:\nT<end_of_turn>\n"
        "<start_of_turn>user\nQ\n1<end_of_turn>\n<start_of_turn>model\nA<end_of_turn>\n"
        "<start_of_turn>user\nQ2<end_of_turn>\n<start_of_turn>model\n",
    ),
    "alpaca": (
        "### Instruction:\nQ\n1\n\n### Response:\n",
        "Dialect: sql\nSchema:\nT\n\n### Instruction:\nQ\n1\n\n### Response:\n",
        "Dialect: sql\nSchema:\nT\n\n### Instruction:\nQ\n1\n\n### Response:\nA</s>\n\n"
        "### Instruction:\nQ2\n\n### Response:\n",
    ),
    "vicuna": (
        "USER: Q\n1 ASSISTANT:",
        "Dialect: sql\nSchema:\nT USER: Q\n1 ASSISTANT:",
        "Dialect: sql\nSchema:\nT USER: Q\n1 ASSISTANT: A</s>USER: Q2 ASSISTANT:",
    ),
    "phi": (
        "User: Q\n1\nAssistant: ",
        "System: Dialect: sql\nSchema:\nT\n\nUser: Q\n1\nAssistant: ",
        "System: Dialect: sql\nSchema:\nT\n\nUser: Q\n1\nAssistant: A</s>\nUser: Q2\nAssistant: ",
    ),
    "deepseek": (
        "User: Q\n1\n\nAssistant: ",
        "System: Dialect: sql\nSchema:\nT\n\nUser: Q\n1\n\nAssistant: ",
        "System: Dialect: sql\nSchema:\nT\n\nUser: Q\n1\n\nAssistant: A</s>User: Q2\n\nAssistant: ",
    ),
}
PROMPTS["llama2"] = PROMPTS["llama"]


@pytest.mark.parametrize("name", PROMPTS)
def test_prompts_of_a_family(name: str) -> None:
    """One question, one with a system message, and a second question after an answer, letter for letter."""
    template = template_for(name, BUNDLE, PLAIN)
    conversations = ([USER], [SYSTEM, USER], [SYSTEM, USER, ANSWER, AGAIN])

    assert PROMPTS[name] == tuple(template.render(messages) for messages in conversations)
    assert template.built_in
    assert not template.supports_thinking


@pytest.mark.parametrize("name", PROMPTS)
def test_a_turn_ends_with_a_token_or_a_text(name: str) -> None:
    """The end-of-turn token is that of the format, or else the end of sequence; a text stands by for both."""
    raw = byte_level_tokenizer()
    raw.add_special_tokens([AddedToken(token) for token in ("</s>", "<|eot_id|>", "<end_of_turn>")])
    tokenizer = TextTokenizer(raw)
    template = template_for(name, BUNDLE, tokenizer)
    end = {"llama3": "<|eot_id|>", "gemma": "<end_of_turn>"}.get(name, "</s>")
    stops = {
        "llama3": ("<|eot_id|>",),
        "gemma": ("<end_of_turn>",),
        "alpaca": ("\n### Instruction:", "\n### Response:"),
        "vicuna": ("\nUSER:",),
        "phi": ("\nUser:",),
        "deepseek": ("\nUser:",),
    }

    assert (tokenizer.token_to_id(end),) == end_of_turn_ids(template, tokenizer)
    assert stops.get(name, ("[INST]",)) == template.stops
    # A token that the base does not have is never the end of a turn.
    assert () == end_of_turn_ids(template_for(name, BUNDLE, PLAIN), PLAIN)


@pytest.mark.parametrize("name", PROMPTS)
def test_what_the_tokenizer_puts_first_stands_first(name: str) -> None:
    """A prompt begins as a text that the trainer tokenised; Llama begins each question so."""
    assert "<s>" == PREFIXED.prefix
    assert "" == PLAIN.prefix
    prompt = template_for(name, BUNDLE, PREFIXED).render([SYSTEM, USER, ANSWER, AGAIN])
    expected = f"<s>{PROMPTS[name][2]}"
    if name in ("llama", "llama2"):
        expected = expected.replace("</s>[INST]", "</s><s>[INST]")

    assert expected == prompt


@pytest.mark.parametrize("name", PROMPTS)
def test_no_end_of_sequence_no_word_for_it(name: str) -> None:
    """A base whose configuration names no end of sequence gets none, and no None either."""
    template = template_for(name, ChatTemplate("the bundle's own"), PLAIN)

    assert PROMPTS[name][2].replace("</s>", "") == template.render([SYSTEM, USER, ANSWER, AGAIN])


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_a_system_message_is_never_lost(name: str) -> None:
    """Formats that write the system message into the user's turn refuse one without such a turn."""
    template = template_for(name, BUNDLE, PLAIN)
    system = "<<SYS>>\n{}\n<</SYS>>\n\n" if name == "llama" else "{}\n\n"
    expected = f"[INST] Q\n1 [/INST] A</s>[INST] {system.format('S')}Q2 [/INST] "

    assert expected == template.render([USER, ANSWER, {"role": "system", "content": "S"}, AGAIN])
    with pytest.raises(InferenceError, match="no user message after the system message"):
        template.render([SYSTEM])


@pytest.mark.parametrize("name", PROMPTS)
def test_a_tool_speaks_as_the_user(name: str) -> None:
    """Formats without tools show a tool's answer as the user's."""
    template = template_for(name, BUNDLE, PLAIN)

    assert template.render([USER]) == template.render([{**USER, "role": "tool"}])


@pytest.mark.parametrize("name", [None, "chatml", "qwen3", "qwen", "custom", "ChatML"])
def test_the_bundles_own_template(name: str | None, caplog: pytest.LogCaptureFixture) -> None:
    """These words mean the format of the base, whatever it is, also where they say ChatML."""
    assert BUNDLE is template_for(name, BUNDLE, PLAIN)
    assert not caplog.records


@pytest.mark.parametrize("name", ["", "zephyr", "llama 3"])
def test_unknown_words_are_logged(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """An unknown word means the format of the base too, with a warning."""
    with caplog.at_level(logging.WARNING, logger="hivellm_ort"):
        assert BUNDLE is template_for(name, BUNDLE, PLAIN)

    expected = f"prompt_template {name!r} is not known: the base's own chat template is used"
    assert [expected] == [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("llama", "<s>[INST]{{ messages[0].content }}[/INST]"),
        ("Mistral", "[INST]{{ messages[0].content }}[/INST]"),
        ("llama3", "{{ '<|start_header_id|>' + messages[0].role }}"),
        ("gemma", "<bos><start_of_turn>user"),
        ("alpaca", "Below is an instruction.\n\n### Instruction:"),
        ("vicuna", "A chat. USER: Q ASSISTANT:"),
        ("phi", "<|user|>\nQ<|end|>"),
        ("phi", "<|im_start|>user<|im_sep|>"),
        ("deepseek", "<\N{FULLWIDTH VERTICAL LINE}User\N{FULLWIDTH VERTICAL LINE}>Q"),
        ("deepseek", "User: Q\n\nAssistant:"),
    ],
)
def test_a_bundle_of_the_family_has_its_own_template(name: str, source: str) -> None:
    """A template that writes the family's marks is the base's own form of the format."""
    bundle = ChatTemplate(source)

    assert bundle is template_for(name, bundle, PLAIN)


@pytest.mark.parametrize(
    "bundle",
    [
        ChatTemplate("{{ raise_exception('no') }}[INST]"),
        ChatTemplate("{# [INST] #}<|im_start|>"),
        ChatTemplate("[INST]", built_in=True),
    ],
)
def test_other_bundles_do_not_count(bundle: ChatTemplate) -> None:
    """A template that fails, that only mentions a mark, or that no file of the bundle holds is not the family's."""
    assert "[INST] Q\n1 [/INST] " == template_for("llama", bundle, PLAIN).render([USER])


def test_without_a_template_chatml_is_chatml() -> None:
    """A base without a template gets ChatML with its <|im_start|>, never HiveLLM's <|system|>."""
    bundle = ChatTemplate(CHATML, built_in=True)

    assert CHATML_TURN == template_for("chatml", bundle, PLAIN).render([USER])
