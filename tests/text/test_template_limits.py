"""What a chat template may use, and that ordinary ones never come near it."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hostile_templates import HOSTILE
from template_samples import HERMES_LIKE, LLAMA_LIKE, QUESTION, SYSTEM, TOOL
from tokenizer_samples import byte_level_tokenizer

from hivellm_ort.errors import InferenceError, LoadError
from hivellm_ort.text.budget import MAX_BYTES, MAX_STEPS
from hivellm_ort.text.sandbox import MAX_NODES, chat_environment
from hivellm_ort.text.template import ChatTemplate, end_of_turn_ids
from hivellm_ort.text.template_rules import FILTERS
from hivellm_ort.text.tokenizer import TextTokenizer

LOOPS = HOSTILE["nested loops"]


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_templates_end(case: str) -> None:
    """A template that loops without end or makes more than there is room for is refused with words that say so."""
    template = ChatTemplate(HOSTILE[case])

    with pytest.raises(InferenceError, match=r"^the chat template \w+.{12}"):
        template.render([QUESTION])


def test_hostile_templates_take_little() -> None:
    """All of them together end soon, in a process that may have 150 MB more than it had before."""
    resource = pytest.importorskip("resource")
    program = f"""
import resource, time
from hostile_templates import HOSTILE
from hivellm_ort.errors import InferenceError
from hivellm_ort.text.template import ChatTemplate
ChatTemplate("x").render([])
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + (150 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for case, source in HOSTILE.items():
    begin = time.process_time()
    try:
        ChatTemplate(source).render([{QUESTION!r}])
    except InferenceError as error:
        if "MemoryError" in str(error) or time.process_time() - begin > 3:
            print(case, error)
"""
    assert resource
    if not Path("/proc/self/statm").exists():
        pytest.skip("reads the size of a process as Linux shows it")
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True, text=True, check=False, timeout=120,
        env={"PYTHONPATH": ":".join([str(Path(__file__).parent), *filter(None, sys.path)])},
    )  # fmt: skip

    assert ("", "") == (done.stdout, done.stderr[-500:])


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'x' * 4000000000 }}",
        "{{ 'x' | center(4000000000) }}",
        "{{ ('x' | center(30000000)) | length }}" * 20,
        "{% if 'x' * 4000000000 %}{% endif %}",
        "{% set x = [0] * 4000000000 %}",
        "{{ 9 ** (9 ** 9) }}",
        "{{ 'x' | format('%4000000000d') }}",
    ],
)
def test_nothing_is_computed_when_it_is_compiled(source: str) -> None:
    """A constant expression waits for the rendering, where it is counted."""
    assert ChatTemplate(f"{{% if false %}}{source}{{% endif %}}").render([]) == ""


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ a }}" * MAX_NODES, rf"^chat template: the chat template has more than {MAX_NODES} parts"),
        ("{{ " + "1 + " * 30000 + "1 }}", r"^chat template: cannot be compiled \("),
        ("{% if a %}" * 3000 + "{% endif %}" * 3000, r"^chat template: cannot be compiled \(.*"),
        ("{{ " + "9" * 10000 + " }}", r"^chat template: cannot be compiled \(.*digits"),
        ("{% for x in y %}" * 100 + "{% endfor %}" * 100, r"^chat template: cannot be compiled \(.*"),
        ("{% autoescape true %}{{ a }}{% endautoescape %}", r"autoescape.*remove it"),
        ("{{ " + "[" * 5000 + "]" * 5000 + " }}", r"^chat template: cannot be compiled \("),
        ("{{ a" + ".b" * 5000 + " }}", r"^chat template: cannot be compiled \("),
    ],
)
def test_sources_are_bounded(source: str, expected: str) -> None:
    """What is too large or too deep to compile is a LoadError with words."""
    with pytest.raises(LoadError, match=expected):
        ChatTemplate(source)


def test_every_filter_has_a_rule() -> None:
    """No filter of the environment multiplies without being counted, in no version of jinja2."""
    assert set(FILTERS) == set(chat_environment().filters)


def test_the_first_rendering_of_a_load() -> None:
    """The rendering that finds the end of a turn says at load that the template is unusable."""
    with pytest.raises(LoadError, match=rf"^the chat template takes more than {MAX_STEPS // 10**6}\d+ steps"):
        end_of_turn_ids(ChatTemplate(LOOPS), TextTokenizer(byte_level_tokenizer()))


def test_forms_are_not_tried_without_end() -> None:
    """A template that exceeds a limit in one form of a conversation is not rendered in all others."""
    with pytest.raises(InferenceError, match="takes more than"):
        ChatTemplate(LOOPS).fit([SYSTEM, QUESTION], [TOOL])


@pytest.mark.parametrize("source", [HERMES_LIKE, LLAMA_LIKE])
def test_long_conversations_have_room(source: str) -> None:
    """A conversation of many turns, or of long ones, has as much more as it needs."""
    template = ChatTemplate(source)
    many = [QUESTION, {"role": "assistant", "content": "an answer"}] * 2000
    assert template.render(many).count("an answer") == 2000

    long = [{"role": "user", "content": "東京 text " * 100_000}]
    assert template.render(long).count("東京") == 100_000


def test_quadratic_templates_have_room() -> None:
    """A template that goes over all turns for every turn may do so with hundreds."""
    inner = "{% for n in messages if n.role == 'user' %}{% endfor %}"
    source = f"{{% for m in messages %}}{inner}{{{{ m.content }}}}{{% endfor %}}"

    assert ChatTemplate(source).render([{"role": "user", "content": "x"}] * 500) == "x" * 500


def test_a_budget_is_one_renderings_own() -> None:
    """Renderings at once in several threads, and one after another, do not share what they have left."""
    source = "{% for i in range(20000) %}{% set x = 'x' * 500 %}{% endfor %}{{ messages[0].content }}"
    template = ChatTemplate(source)
    texts: list[str] = []

    def render() -> None:
        texts.extend(template.render([{"role": "user", "content": "x"}]) for _ in range(3))

    threads = [threading.Thread(target=render) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert ["x"] * 12 == texts
    assert MAX_BYTES < 12 * 20000 * 500


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ raise_exception('x' * 100000) }}", r"^the chat template cannot render these messages: x{1000}$"),
        ("{{ [][('x' * 100000)].y }}", r"^the chat template cannot render these messages: .{900,1100}$"),
        ("{% include 'x' %}", r"^the chat template cannot render these messages: no loader"),
        ("{% extends 'x' %}", r"^the chat template cannot render these messages: no loader"),
        ("{{ 1.5 ** 100000 }}", r"^the chat template cannot render these messages: .*out of range"),
    ],
)
def test_errors_have_words(source: str, expected: str) -> None:
    """No error of a template is empty, bare or endless."""
    with pytest.raises(InferenceError, match=expected):
        ChatTemplate(source).render([QUESTION])


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ '%5d|%-4s|%%' % (3, 'a') }}", "    3|a   |%"),
        ("{{ '{:>4}|{x!r}'.format('a', x=['b']) }}", "   a|['b']"),
        ("{{ '{a}'.format_map({'a': 1}) }}", "1"),
        ("{{ {}.fromkeys([1, 2], 3) }}", "{1: 3, 2: 3}"),
        ("{{ 'a,b'.split(',') | map('upper') | join('-') }}", "A-B"),
        ("{{ [3, 1, 2] | sort | list }}{{ [1, 2, 3] | sum }}", "[1, 2, 3]6"),
        ("{{ [1, 2, 3] | batch(2, 0) | list }}", "[[1, 2], [3, 0]]"),
        ("{{ [1, 2, 3] | slice(2) | list }}", "[[1, 2], [3]]"),
        ("{% for k, v in {'b': 1, 'a': 2} | dictsort %}{{ k ~ v }}{% endfor %}", "a2b1"),
        ("{% for k, v in {'b': 1}.items() %}{{ k ~ v }}{{ loop.last }}{% endfor %}", "b1True"),
        ("{% for g in [{'a': 1}, {'a': 1}] | groupby('a') %}{{ g.grouper }}{{ g.list | length }}{% endfor %}", "12"),
        ("{{ 'ab' | reverse }}{{ [1, 2] | reverse | list }}{{ 'ab'[::-1] }}", "ba[2, 1]ba"),
        ("{{ ['a'] * 2 + ['b'] }}{{ 2 ** 10 }}{{ 7 // 2 }}{{ 7 % 4 }}", "['a', 'a', 'b']102433"),
        ("{{ 1 - 3 }}{{ 1 / 2 }}{{ -(2 ** -1) }}", "-20.5-0.5"),
        ("{{ 'a\nb' | indent(2) }}|{{ 'a' | center(3) }}|{{ ' a ' | trim }}", "a\n  b| a |a"),
        ("{{ 'a' in ['a'] }}{{ 'a' in 'ba' }}{{ 'k' in {'k': 1} }}{{ 3 in range(5) }}", "TrueTrueTrueTrue"),
        ("{{ none ~ 1 ~ true ~ undefined_name }}{{ [1] | tojson(indent=1) }}", "None1True[\n 1\n]"),
        ("{% for i in [1, [2, [3]]] recursive %}{{ loop(i) if i is iterable else i }}{% endfor %}", "123"),
        ("{{ ('a' | safe) + '<' }}{{ '<' | e }}", "a&lt;&lt;"),
    ],
)  # fmt: skip
def test_what_counts_does_not_change(source: str, expected: str) -> None:
    """Operators, methods and filters give what they give without a budget."""
    assert expected == ChatTemplate(source).render([])
