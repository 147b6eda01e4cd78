"""The page at `/` in a browser."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from api_calls import QUESTION
from serving_command import Command
from support.golden import BASE, GOLDEN, golden
from support.running import replace_files

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if CHROMIUM is None:
    pytest.skip("needs Chromium", allow_module_level=True)

EVIL = '<img src="/nothing" onerror="window.hacked = 1">'
ANSWER = ".assistant:not([aria-busy])"
# Shows tools and their calls as Hermes does.
TEMPLATE = (
    "{% for tool in tools or [] %}{{ tool | tojson }}\n{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content or '' }}"
    "{% for call in m.tool_calls or [] %}<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}\n</tool_call>'
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium without a window."""
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


class Tab:
    """A tab with the page. At its end nothing has gone wrong in it that was not expected, and nobody else was asked.

    Args:
        browser: that opens it.
        address: of the server.
        refusals: whether the server is going to refuse requests, which browsers tell as errors.
        size: width and height.
    """

    def __init__(
        self, browser: Any, address: str, *, refusals: bool = False, size: tuple[int, int] = (1280, 800)
    ) -> None:
        self.address, self._refusals = address, refusals
        self.context = browser.new_context(viewport={"width": size[0], "height": size[1]})
        self.context.set_default_timeout(20_000)
        self.page = self.context.new_page()
        self.faults: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", self._on_console)
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(self.address)

    def __enter__(self) -> Tab:
        return self

    def __exit__(self, *error: object) -> None:
        self.context.close()
        if error[0] is None:
            assert [] == self.faults
            assert self.requests
            assert {True} == {url.startswith(f"{self.address}/") for url in self.requests}

    def ready(self, model: str = "sql") -> Tab:
        """The models are there, and one is chosen."""
        self.page.wait_for_selector("#model option:nth-child(3)", state="attached")
        self.page.select_option("#model", value=model)
        return self

    def open(self) -> None:
        """All settings are to be seen."""
        self.page.evaluate(
            "for (const one of document.querySelectorAll('#settings details')) one.open = true"
        )

    def fill(self, **fields: str) -> None:
        """Fill fields of the settings; `_` stands for `-` in `form_text` and `stop_texts`."""
        self.open()
        for name, value in fields.items():
            self.page.fill(
                f"#{name.replace('_t', '-t')}" if name.endswith(("_text", "_texts")) else f"#{name}", value
            )

    def ask(self, question: str = QUESTION) -> None:
        """Send a message, and wait for the end of the answer."""
        before = self.page.locator(ANSWER).count()
        self.page.fill("#question", question)
        self.page.press("#question", "Enter")
        playwright.expect(self.page.locator(ANSWER)).to_have_count(before + 1)

    def text(self, selector: str) -> str:
        """What the last element has as text."""
        text: str = self.page.locator(selector).last.evaluate("element => element.textContent")
        return text

    def _on_console(self, message: Any) -> None:
        refused = self._refusals and message.text.startswith("Failed to load resource")
        if message.type in ("error", "warning") and not refused:
            self.faults.append(message.text)


def api(address: str, question: str = QUESTION, **fields: Any) -> dict[str, Any]:
    """The answer of the server to the same."""
    body = {"model": "sql", "messages": [{"role": "user", "content": question}], **fields}
    answer: dict[str, Any] = httpx.post(f"{address}/v1/chat/completions", json=body, timeout=60).json()
    return answer


def test_an_answer_is_the_servers(browser: Any, command: Command) -> None:
    """Text, tokens, shades, alternatives and counts are those of the API."""
    expected = api(command.address, max_tokens=12, temperature=0, logprobs=True, top_logprobs=3)
    choice, usage = expected["choices"][0], expected["usage"]
    with Tab(browser, command.address).ready() as tab:
        tab.fill(max_tokens="12", temperature="0", top_logprobs="3")
        tab.ask()
        assert choice["message"]["content"] == tab.text(f"{ANSWER} > .text")
        assert "sql" == tab.text(".assistant .head strong")
        tokens = tab.page.locator(".token")
        assert len(choice["logprobs"]["content"]) == tokens.count()
        shades = tokens.evaluate_all("all => all.map((one) => Number(one.style.getPropertyValue('--p')))")
        assert [2.718281828 ** one["logprob"] for one in choice["logprobs"]["content"]] == pytest.approx(
            shades, abs=2e-3
        )
        tokens.first.focus()
        tab.page.keyboard.press("ArrowRight")
        assert 3 == tab.page.locator("#tip li").count()
        assert "tip" == tokens.nth(1).get_attribute("aria-describedby")
        tab.page.keyboard.press("Escape")
        assert tab.page.locator("#tip").is_hidden()
        facts = tab.text(".facts-list")
        assert f"{usage['completion_tokens']} tokens" in facts
        assert f"Prompt{usage['prompt_tokens']} tokens" in facts
        assert all(name in facts for name in ("First token", "Speed", "cut off at the most tokens"))
        tab.page.get_by_role("button", name="Text", exact=True).click()
        assert (True, False) == (
            tab.page.locator(f"{ANSWER} > .text").is_visible(),
            tab.page.locator(".tokens").is_visible(),
        )
        playwright.expect(tab.page.locator("#status")).to_have_text("Ready")
        playwright.expect(tab.page.locator("#m-written")).to_have_text(re.compile(r"\d+"))
        assert "of" in tab.text("#m-active")
        assert "models" in tab.text("#m-parts")


def test_a_conversation(browser: Any, command: Command) -> None:
    """The second request has the first question and its answer, and the settings that were chosen."""
    with Tab(browser, command.address).ready() as tab:
        tab.fill(max_tokens="4", system="Be short.", top_k="5", min_p="0.1", seed="3", stop_texts="qq\nzz")
        tab.ask("one")
        first = tab.text(f"{ANSWER} > .text")
        tab.page.uncheck("#logprobs")
        with tab.page.expect_request("**/v1/chat/completions") as sent:
            tab.ask("two")
        body = json.loads(sent.value.post_data)
        assert ("logprobs" in body, 1) == (False, tab.page.locator(".tokens").count())
        assert tab.page.locator(f"{ANSWER} > .text").last.is_visible()
        assert [
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": "one"},
            {"role": "assistant", "content": first},
            {"role": "user", "content": "two"},
        ] == body["messages"]
        assert (4, 5, 0.1, 3, ["qq", "zz"]) == tuple(
            body[name] for name in ("max_tokens", "top_k", "min_p", "seed", "stop")
        )
        tab.page.click("#new")
        assert 0 == tab.page.locator(".turn").count()


def test_forms_are_enforced(browser: Any, command: Command) -> None:
    """An answer has the form that was chosen, and the tokens that a grammar forced are marked."""
    only = {"properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
    schema = json.dumps({"type": "object", **only})
    with Tab(browser, command.address).ready() as tab:
        for form, text, pattern in (
            ("json_schema", schema, r'\{"a": ?[12]\}'),
            ("grammar", 'root ::= "yes" | "no"', "yes|no"),
            ("regex", "[ab]{3}c", "[ab]{3}c"),
            ("choice", "left\nright", "left|right"),
        ):
            tab.page.select_option("#form", value=form)
            tab.fill(form_text=text)
            tab.ask()
            assert re.fullmatch(pattern, tab.text(f"{ANSWER} > .text"))
            answer = tab.page.locator(ANSWER).last
            forced = answer.locator(".token.forced").count()
            assert forced > 0
            assert f"Forced by grammar{forced}" in (answer.locator(".facts-list").text_content() or "")
            answer.locator(".token.forced").first.hover()
            assert "The grammar left no other token." in tab.text("#tip")


def test_routing_is_explained(browser: Any, command: Command) -> None:
    """With `auto` the page says who answers and why."""
    with Tab(browser, command.address).ready("auto") as tab:
        tab.fill(max_tokens="2")
        tab.ask("Fix this invalid JSON")
        assert "json" == tab.text(".assistant .head strong")
        assert "Why json?" in tab.text(".routing summary")
        assert tab.page.locator(".routing li").count() > 0


def test_calls_of_tools(browser: Any, cache: Path, tmp_path: Path) -> None:
    """A call is shown with its arguments, and the result that one writes goes back with it."""
    bundle = Path(shutil.copytree(BASE, tmp_path / "bundle"))
    replace_files(bundle, {"chat_template.jinja": TEMPLATE})
    parameters = {
        "type": "object",
        "properties": {"n": {"const": 7}},
        "required": ["n"],
        "additionalProperties": False,
    }
    tools = [{"type": "function", "function": {"name": "count", "parameters": parameters}}]
    arguments = [
        "--expert",
        f"sql={golden('sql')}",
        "--base",
        str(bundle),
        "--threads",
        "1",
        "--trust",
        "off",
    ]
    with Command(arguments, cache) as command, Tab(browser, command.address).ready() as tab:
        tab.fill(tools=json.dumps(tools), max_tokens="100")
        tab.page.select_option("#tool_choice", value="required")
        tab.ask()
        assert "Calls count" == tab.text(".call p")
        assert {"n": 7} == json.loads(tab.text(".call pre"))
        assert "calls tools" in tab.text(".facts-list")
        tab.page.get_by_label("Result of count").fill("seven")
        tab.page.select_option("#tool_choice", value="none")
        tab.fill(max_tokens="3")
        with tab.page.expect_request("**/v1/chat/completions") as sent:
            tab.page.click("#send")
        playwright.expect(tab.page.locator(ANSWER)).to_have_count(2)
        _, call, result = json.loads(sent.value.post_data)["messages"]
        assert "count" == call["tool_calls"][0]["function"]["name"]
        assert {
            "role": "tool",
            "tool_call_id": call["tool_calls"][0]["id"],
            "content": "seven",
        } == result


def test_errors_in_full(browser: Any, command: Command) -> None:
    """The page shows the error of the server, marks the field, and keeps the message."""
    with Tab(browser, command.address, refusals=True).ready() as tab:
        tab.fill(top_p="3")
        tab.page.fill("#question", "keep me")
        tab.page.press("#question", "Enter")
        alert = tab.page.get_by_role("alert")
        playwright.expect(alert).to_contain_text("top_p is 3.0: it must be a number from 0 to 1")
        playwright.expect(alert).to_contain_text("status 400, code invalid_value, field top_p")
        assert "true" == tab.page.get_attribute("#top_p", "aria-invalid")
        assert ("keep me", 0) == (tab.page.input_value("#question"), tab.page.locator(".turn").count())
        tab.fill(top_p="", tools="[1,")
        tab.page.click("#send")
        playwright.expect(alert).to_contain_text("This is not JSON")
        tab.fill(tools="", seed="9007199254740993")
        tab.page.click("#send")
        playwright.expect(alert).to_contain_text("A browser cannot hold this number exactly")
        tab.fill(seed="", max_tokens="2")
        tab.page.click("#send")
        playwright.expect(tab.page.locator(ANSWER)).to_have_count(1)
        assert alert.is_hidden()


def stream(tab: Tab, *documents: dict[str, Any], done: bool = True) -> None:
    """Have the next request get these chunks, with a comment and line ends of another system between them."""
    events = [f"data: {json.dumps(document)}" for document in documents] + (["data: [DONE]"] if done else [])
    headers = {"content-type": "text/event-stream", "x-hivellm-expert": "sql%C3%A9"}
    body = ": waiting\n\n" + "\r\n\r\n".join(events) + "\n\n"
    tab.page.route("**/v1/chat/completions", lambda route: route.fulfill(headers=headers, body=body), times=1)


def delta(**fields: str) -> dict[str, Any]:
    """A chunk with a part of an answer."""
    return {"choices": [{"index": 0, "delta": fields, "logprobs": None, "finish_reason": None}]}


def test_what_else_streams_hold(browser: Any, command: Command) -> None:
    """Thoughts are apart from the answer. An answer that breaks off says so, and what there is of it stays."""
    error = {
        "message": "the server is shutting down: retry",
        "type": "server_error",
        "code": "shutting_down",
    }
    with Tab(browser, command.address).ready() as tab:
        tab.open()
        tab.page.uncheck("#logprobs")
        stream(tab, delta(reasoning_content="Let me "), delta(reasoning_content="see."), delta(content="Yes"))
        tab.ask()
        assert ("Let me see.", "Yes", "sqlé") == (
            tab.text(".thoughts .text"),
            tab.text(f"{ANSWER} > .text"),
            tab.text(".assistant .head strong"),
        )
        alert = tab.page.get_by_role("alert")
        assert alert.is_hidden()
        for chunks, done, told in (
            ([delta(content="Ye"), {"error": error}], True, "the server is shutting down: retry"),
            ([delta(content="Ye")], False, "The connection ended before the answer did."),
        ):
            stream(tab, *chunks, done=done)
            tab.ask()
            playwright.expect(alert).to_contain_text(told)
            assert ("Ye", True) == (
                tab.text(f"{ANSWER} > .text"),
                "ended by an error" in tab.text(".facts-list"),
            )


def test_a_stream_is_stopped(browser: Any, cache: Path) -> None:
    """The answer ends at the server too, its beginning stays, and the conversation goes on."""
    experts = ["--expert", f"sql={golden('sql')}", "--base", str(BASE), "--threads", "1", "--trust", "off"]
    with Command(experts, cache, slow=True) as slow, Tab(browser, slow.address) as tab:
        tab.ready()
        tab.fill(max_tokens="200")
        tab.page.fill("#question", QUESTION)
        tab.page.press("#question", "Enter")
        tab.page.wait_for_selector(".token:nth-child(5)")
        assert "running" == ("running" if tab.page.locator("#stop").is_visible() else "")
        tab.page.click("#stop")
        playwright.expect(tab.page.locator(ANSWER)).to_have_count(1)
        assert "stopped by you" in tab.text(".facts-list")
        assert 5 <= tab.page.locator(".token").count() < 150
        tab.page.wait_for_function(
            "async () => /^hivellm_ort_active_requests 0$/m.test(await (await fetch('metrics')).text())"
        )
        metrics = httpx.get(f"{slow.address}/metrics").text
        assert 'requests_total{expert="sql",finish_reason="cancelled"} 1' in metrics
        tab.fill(max_tokens="2")
        tab.ask("again")


def test_texts_of_strangers_stay_texts(browser: Any, cache: Path) -> None:
    """HTML in names of experts, messages, answers and tokens is shown as text."""
    experts = ["--expert", f"sql={golden('sql')}", "--expert", f"json={golden('json')}", "--base", str(BASE)]
    with Command(
        [*experts, "--threads", "1", "--trust", "off", "--allow-loading", str(GOLDEN)], cache
    ) as command:
        loaded = httpx.post(
            f"{command.address}/v1/load_lora_adapter",
            json={"lora_name": EVIL, "lora_path": "dora.expert"},
            timeout=60,
        )
        assert 200 == loaded.status_code, loaded.text
        with Tab(browser, command.address).ready(EVIL) as tab:
            tab.page.select_option("#form", value="choice")
            tab.fill(form_text=EVIL, max_tokens="100")
            tab.ask(EVIL)
            assert EVIL == tab.text(".user .text")
            assert EVIL == tab.text(f"{ANSWER} > .text")
            assert EVIL == tab.text(".assistant .head strong")
            assert EVIL == tab.text(".tokens")
            tab.page.locator(".token").nth(2).hover()
            assert 1 == tab.page.locator("img").count()  # the page's own
            assert tab.page.evaluate("window.hacked === undefined")


def test_a_key_is_asked_for(browser: Any, cache: Path) -> None:
    """The page comes without one, asks for it, and keeps it in this tab alone."""
    experts = ["--expert", f"sql={golden('sql')}", "--expert", f"json={golden('json')}", "--base", str(BASE)]
    keys = {"HIVELLM_API_KEYS": "secret-key"}
    with (
        Command([*experts, "--threads", "1", "--trust", "off"], cache, keys) as command,
        Tab(browser, command.address, refusals=True) as tab,
    ):
        playwright.expect(tab.page.get_by_role("alert")).to_contain_text("The key is missing or wrong")
        playwright.expect(tab.page.locator("#key")).to_be_focused()
        tab.page.fill("#key", "secret-key")
        tab.page.press("#key", "Tab")
        tab.ready()
        tab.fill(max_tokens="2")
        tab.ask()
        assert "secret-key" not in tab.text("#code-text")
        assert "$HIVELLM_API_KEY" in tab.text("#code-text")
        stored = tab.page.evaluate("[sessionStorage.length, localStorage.length, document.cookie]")
        assert [1, 0, ""] == stored


@pytest.mark.skipif(shutil.which("curl") is None or os.name == "nt", reason="needs curl and a POSIX shell")
def test_the_request_as_code(browser: Any, command: Command) -> None:
    """The command gives the answer of the page; so does the program, whose literals are the fields that were sent."""
    question = 'it\'s "é" \\ $HOME `x` 🙂\nline'
    with Tab(browser, command.address).ready() as tab:
        tab.fill(max_tokens="6", top_k="3", tools="", schema="CREATE TABLE t (a INT); -- true, null")
        tab.ask(question)
        shown = tab.text(f"{ANSWER} > .text")
        curl = tab.text("#code-text")
        tab.page.click("#as-python")
        program = tab.text("#code-text")
    output = subprocess.run(["bash", "-c", curl], capture_output=True, check=True, timeout=60).stdout.decode()
    found = [json.loads(line[6:]) for line in output.split("\n") if line.startswith("data: {")]
    pieces = [one["choices"][0]["delta"].get("content", "") for one in found if one["choices"]]
    assert shown == "".join(pieces)
    ran = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        timeout=60,
        encoding="utf-8",
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
    )
    assert (0, shown) == (ran.returncode, ran.stdout), ran.stderr
    call = next(
        node
        for node in ast.walk(ast.parse(program))
        if isinstance(node, ast.Call) and any(word.arg == "messages" for word in node.keywords)
    )
    fields = {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
    assert [{"role": "user", "content": question}] == fields["messages"]
    assert {"top_k": 3, "schema": "CREATE TABLE t (a INT); -- true, null"} == fields["extra_body"]
    assert (True, 6) == (fields["stream"], fields["max_tokens"])


@pytest.mark.parametrize("width", [360, 1280])
def test_everything_has_a_name_and_fits(width: int, browser: Any, command: Command) -> None:
    """No field is without a label, and nothing runs out of a narrow window."""
    with Tab(browser, command.address, size=(width, 740)).ready() as tab:
        if width < 600:
            tab.page.click("#show-settings")
            assert "true" == tab.page.get_attribute("#show-settings", "aria-expanded")
        tab.fill(max_tokens="8")
        tab.ask("a" * 200)
        assert tab.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        unnamed = tab.page.evaluate(
            "[...document.querySelectorAll('input, select, textarea, button')]"
            ".filter((one) => !(one.labels?.length || one.textContent.trim())).map((one) => one.id)"
        )
        assert [] == unnamed
        twice = tab.page.evaluate(
            "[...document.querySelectorAll('[id]')].map(({ id }) => id)"
            ".filter((id, at, all) => all.indexOf(id) !== at)"
        )
        assert [] == twice
