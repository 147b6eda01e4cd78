"""Chat templates, also against transformers' own rendering."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.extras import requires_export
from tokenizer_samples import byte_level_tokenizer, prefixed_tokenizer

from hivellm_ort.errors import InferenceError, LoadError
from hivellm_ort.text.template import ChatTemplate, end_of_turn_ids
from hivellm_ort.text.template_source import CHATML, MAX_SOURCE
from hivellm_ort.text.tokenizer import TextTokenizer

MESSAGES = [
    {"role": "system", "content": "Dialect: sql\nSchema:\nCREATE TABLE t (a TEXT DEFAULT '<é&>');"},
    {"role": "user", "content": "  Größe > 3 & 東京? "},
    {"role": "assistant", "content": "SELECT 1;"},
    {"role": "user", "content": "Again"},
]

DEFAULT_SYSTEM = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}\n"
)
LOOP_CONTROLS = """
{% for message in messages %}
    {%- if message.role == 'system' %}{% continue %}{% endif %}
    {%- if loop.index > 3 %}
        {%- break %}
    {%- endif %}
    [{{ loop.index0 }}] {{ message.content | trim }}
{% endfor %}
"""
TO_JSON = """{{ messages | tojson }}
{{ messages[0] | tojson(indent=2, sort_keys=true) }}
{{ messages[1] | tojson(ensure_ascii=true, separators=(',', ':')) }}"""
GENERATION = """
{%- set mark = 'outer' %}
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {%- generation %}
            {%- set mark = 'inner' %}
            {{- mark + ':' + message.content + loop.index | string + eos_token }}
        {%- endgeneration %}
    {%- else %}
        {{- bos_token + message.content }}
    {%- endif %}
{%- endfor %}{{ mark }}"""
THINKING = """
{%- for message in messages %}
    {%- set content = message.content %}
    {%- if message.role == 'assistant' and '</think>' in content %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""
VARIABLES = """{% if tools is none and documents is none %}none{% endif %}
{%- if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}
{%- if not unk_token is defined %}no unk{% endif %}
{%- set ns = namespace(last=0) %}{% for m in messages %}{% set ns.last = loop.index %}{% endfor %}{{ ns.last }}
{{- strftime_now('%Y') }}"""


@pytest.mark.parametrize("add_generation_prompt", [True, False])
@pytest.mark.parametrize("start", [0, 1])
@pytest.mark.parametrize(
    "source", [CHATML, DEFAULT_SYSTEM, LOOP_CONTROLS, TO_JSON, GENERATION, VARIABLES, THINKING]
)
def test_renders_as_transformers_does(source: str, start: int, add_generation_prompt: bool) -> None:
    """The text equals that of apply_chat_template."""
    requires_export()
    import transformers

    reference = transformers.PreTrainedTokenizerFast(
        tokenizer_object=byte_level_tokenizer(), bos_token="<|im_start|>", eos_token="<|im_end|>"
    )
    options: dict[str, Any] = {"add_generation_prompt": add_generation_prompt, "enable_thinking": False}
    expected = reference.apply_chat_template(
        MESSAGES[start:], chat_template=source, tokenize=False, **options
    )

    template = ChatTemplate(source, bos_token="<|im_start|>", eos_token="<|im_end|>")
    assert expected == template.render(MESSAGES[start:], **options)


@pytest.mark.parametrize(
    ("enable_thinking", "expected"),
    [
        (None, "<|im_start|>assistant\n"),
        (True, "<|im_start|>assistant\n"),
        (False, "<|im_start|>assistant\n<think>\n\n</think>\n\n"),
    ],
)
def test_thinking(byte_level: TextTokenizer, enable_thinking: bool | None, expected: str) -> None:
    """Qwen3's way: the empty block is there only if thinking is off; earlier reasoning is left out."""
    template = ChatTemplate(THINKING)
    turns = [MESSAGES[1], {"role": "assistant", "content": "<think>\nWhy?\n</think>\n\nSELECT 1;"}]
    question = "<|im_start|>user\n  Größe > 3 & 東京? <|im_end|>\n"
    expected = f"{question}<|im_start|>assistant\nSELECT 1;<|im_end|>\n{expected}"

    assert template.supports_thinking
    assert expected == template.render(turns, enable_thinking=enable_thinking)
    assert (
        byte_level.encode(expected)
        == template.encode(turns, byte_level, enable_thinking=enable_thinking).token_ids
    )


def test_templates_without_thinking() -> None:
    """A template that does not mention thinking renders the same whatever is asked for."""
    template = ChatTemplate(CHATML)

    assert not template.supports_thinking
    assert template.render(MESSAGES) == template.render(MESSAGES, enable_thinking=False)


@given(contents=st.lists(st.text(), min_size=1, max_size=4))
def test_content_is_never_a_template(contents: list[str]) -> None:
    """Plain ChatML puts every content between its markers as it is, braces included."""
    messages = [{"role": "user", "content": content} for content in contents]
    expected = "".join(f"<|im_start|>user\n{content}<|im_end|>\n" for content in contents)

    assert f"{expected}<|im_start|>assistant\n" == ChatTemplate(CHATML).render(messages)


def test_undefined_tokens_print_as_nothing() -> None:
    """A token that the configuration lacks is undefined, not the word None."""
    expected = "[]"

    assert expected == ChatTemplate("[{{ bos_token }}{{ eos_token }}]").render([])


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("line one\n{% for m in messages %}", r"^chat template, line 2: syntax error"),
        ("\n\n{{ messages | no_such_filter }}", r"^chat template, line 3: syntax error .*no_such_filter"),
        ("{% generation %}", r"^chat template, line 1: syntax error"),
        ("x" * (MAX_SOURCE + 1), r"^chat template: longer than 262144 characters"),
        ("{{ " + "(" * 20000 + "1" + ")" * 20000 + " }}", r"^chat template: cannot be compiled"),
    ],
)
def test_broken_sources_are_load_errors(source: str, expected: str) -> None:
    """What does not compile is refused at once, with the line where there is one."""
    with pytest.raises(LoadError, match=expected):
        ChatTemplate(source)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[0].content.missing.deeper }}", "has no attribute 'missing'"),
        ("{{ ().__class__.__base__.__subclasses__() }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ 1 + 'a' }}", "unsupported operand"),
        ("{% for i in range(10 ** 9) %}{% endfor %}", "too big"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
    ],
)
def test_failures_are_inference_errors(source: str, expected: str) -> None:
    """A template's refusal and its mistakes are InferenceErrors with its own words."""
    with pytest.raises(
        InferenceError, match=f"^the chat template cannot render these messages: .*{expected}"
    ):
        ChatTemplate(source).render(MESSAGES)


def test_output_is_capped() -> None:
    """A rendering may have as many characters as allowed and not one more."""
    template = ChatTemplate("{% for m in messages %}xx{% endfor %}", max_characters=8)
    expected = "xxxxxxxx"

    assert expected == template.render(MESSAGES)
    with pytest.raises(InferenceError, match="more than 8 characters"):
        template.render([*MESSAGES, MESSAGES[0]])


def test_endless_output_ends() -> None:
    """A template that writes without end is stopped at the default cap."""
    source = "{% for i in range(999) %}{% for j in range(999) %}" + "x" * 99 + "{% endfor %}{% endfor %}"

    with pytest.raises(InferenceError, match="more than 4194304 characters"):
        ChatTemplate(source).render([])


def write_config(folder: Path, **config: object) -> None:
    """Write tokenizer_config.json."""
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


@pytest.mark.parametrize(
    ("chat_template", "expected"),
    [
        ("from config {{ eos_token }}", "from config </s>"),
        (
            [{"name": "rag", "template": "rag"}, {"name": "default", "template": "default {{ bos_token }}"}],
            "default <s>",
        ),
        (None, "<|im_start|>user\nAgain<|im_end|>\n<|im_start|>assistant\n"),
    ],
)
def test_template_from_the_configuration(tmp_path: Path, chat_template: object, expected: str) -> None:
    """Without a file of its own the template is the configuration's, or plain ChatML."""
    write_config(tmp_path, chat_template=chat_template, bos_token={"content": "<s>"}, eos_token="</s>")

    template = ChatTemplate.from_folder(tmp_path)
    assert expected == template.render(MESSAGES[3:])
    assert "</s>" == template.eos_token
    assert (chat_template is None) == template.built_in


def test_the_file_comes_first(tmp_path: Path) -> None:
    """chat_template.jinja wins over the configuration, and loses its last line break as in transformers."""
    write_config(tmp_path, chat_template="from config", bos_token=None, eos_token="</s>")
    (tmp_path / "chat_template.jinja").write_text("größe {{ eos_token }}\n", encoding="utf-8")

    expected = "größe </s>"
    template = ChatTemplate.from_folder(tmp_path)
    assert expected == template.render([])
    assert () == template.stops
    assert not template.built_in


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_files_of_windows(tmp_path: Path, encoding: str) -> None:
    """Both files are read by their byte order marks, and a mark within the configuration's text goes too."""
    source = "{% for m in messages %}\r\n{{ bos_token + m.content }}\r\n{% endfor %}"
    config = json.dumps({"chat_template": f"\ufeff{source}", "bos_token": "<s>"})
    (tmp_path / "tokenizer_config.json").write_bytes(config.encode(encoding))
    expected = "<s>Again\n"

    assert expected == ChatTemplate.from_folder(tmp_path).render(MESSAGES[3:])
    (tmp_path / "chat_template.jinja").write_bytes(source.encode(encoding))
    assert expected == ChatTemplate.from_folder(tmp_path).render(MESSAGES[3:])


@pytest.mark.parametrize("file", [True, False])
def test_a_template_for_tools(tmp_path: Path, file: bool) -> None:
    """A model with a template of its own for tools gets it where tools are given, as in transformers."""
    sources = {"default": "plain", "tool_use": "{{ tools[0].name }}"}
    if file:
        (tmp_path / "additional_chat_templates").mkdir()
        (tmp_path / "chat_template.jinja").write_text(sources["default"])
        (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text(sources["tool_use"])
    else:
        listed = [{"name": name, "template": source} for name, source in sources.items()]
        write_config(tmp_path, chat_template=listed)
    template = ChatTemplate.from_folder(tmp_path)

    assert ["plain", "f"] == [template.render(MESSAGES, tools=tools) for tools in (None, [{"name": "f"}])]


def test_other_special_tokens_are_known(tmp_path: Path) -> None:
    """A template sees every special token of the configuration, as in transformers."""
    source = "{{ pad_token }}{{ image_token }}{{ additional_special_tokens }}{{ unk_token is defined }}"
    tokens = {"pad_token": {"content": "<pad>"}, "additional_special_tokens": ["<a>"], "unk_token": None}
    write_config(tmp_path, chat_template=source, **tokens, extra_special_tokens={"image_token": "<image>"})

    assert "<pad><image>['<a>']False" == ChatTemplate.from_folder(tmp_path).render([])


def test_plain_chatml_begins_as_the_tokenizer_says(tmp_path: Path) -> None:
    """Without a template what the tokenizer's post-processor adds stands first, once; with one the template says."""
    tokenizer = TextTokenizer(prefixed_tokenizer())
    write_config(tmp_path, bos_token="<s>", eos_token="</s>")
    template = ChatTemplate.from_folder(tmp_path, tokenizer)
    question = "<|im_start|>user\nAgain<|im_end|>\n<|im_start|>assistant\n"
    bos = tokenizer.token_to_id("<s>")

    assert f"<s>{question}" == template.render(MESSAGES[3:])
    assert [bos, *tokenizer.encode(question)] == template.encode(MESSAGES[3:], tokenizer).token_ids
    for source in ("{{ bos_token }}{{ messages[0].content }}", "{{ messages[0].content }}"):
        write_config(tmp_path, chat_template=source, bos_token="<s>")
        ids = ChatTemplate.from_folder(tmp_path, tokenizer).encode(MESSAGES[3:], tokenizer).token_ids
        assert source.count("bos_token") == ids.count(bos)


def test_empty_folder_gives_chatml(tmp_path: Path) -> None:
    """A folder with neither file is answered with plain ChatML."""
    expected = "<|im_start|>assistant\n"

    template = ChatTemplate.from_folder(tmp_path)
    assert expected == template.render([])
    assert ("<|im_end|>",) == template.stops
    assert template.built_in


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("chat_template.jinja", b"{% if", r"^chat_template\.jinja, line 1: syntax error"),
        ("chat_template.jinja", b"\xff", r"^chat_template\.jinja: cannot be read as UTF-8"),
        ("chat_template.jinja", b"x" * (MAX_SOURCE + 1), r"^chat_template\.jinja: longer than 262144 bytes"),
        ("tokenizer_config.json", b"{", r"^tokenizer_config\.json:1:2: .*correct the JSON"),
        (
            "tokenizer_config.json",
            b"[]",
            r"^tokenizer_config\.json:1:1: holds a list where an object is expected",
        ),
        ("tokenizer_config.json", b'{"chat_template": 3}', r"^tokenizer_config\.json: chat_template must be"),
        ("tokenizer_config.json", b'{"chat_template": [{"name": []}]}', r'a list with one named "default"'),
        ("tokenizer_config.json", b'{"bos_token": 3}', r"^tokenizer_config\.json: bos_token must be"),
    ],
)
def test_broken_files_are_load_errors(tmp_path: Path, name: str, content: bytes, expected: str) -> None:
    """The error of a broken file names the file, and never the folder."""
    (tmp_path / name).write_bytes(content)

    with pytest.raises(LoadError, match=expected) as caught:
        ChatTemplate.from_folder(tmp_path)

    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (CHATML, (2,)),
        (DEFAULT_SYSTEM, (2,)),
        ("{% for m in messages %}{{ m.content }} {{ eos_token }}{{ '<|endoftext|>' }}{% endfor %}", (2, 0)),
        ("{% for m in messages %}{{ m.content }} the end{{ eos_token }}{% endfor %}", ()),
        ("{{ messages[0].content }}", ()),
    ],
)
def test_end_of_turn(byte_level: TextTokenizer, source: str, expected: tuple[int, ...]) -> None:
    """The ids are those of the special tokens right after the assistant's words."""
    assert expected == end_of_turn_ids(ChatTemplate(source, eos_token="<|im_end|>"), byte_level)
