"""Chat templates: from messages to the text a model was trained on.

Templates come from packages, so they run in jinja2's immutable sandbox, their source is capped, and what they
write is counted while they write it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hivellm_ort.errors import InferenceError, LoadError
from hivellm_ort.text.budget import BUDGET, Budget, TemplateLimitError
from hivellm_ort.text.forms import Conversation, Forms
from hivellm_ort.text.guard import Guard
from hivellm_ort.text.template_source import CHATML, CHATML_STOPS, MAX_SOURCE, read_template_source

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import jinja2

    from hivellm_ort.paths import StrPath
    from hivellm_ort.text.tokenizer import TextTokenizer, Tokenizer

__all__ = ["ChatTemplate", "Prompt", "end_of_turn_ids"]

_MAX_OUTPUT = 4 << 20
_MAX_WORDS = 1000  # of a template's own error


class Prompt(NamedTuple):
    """A rendered conversation, and its token ids."""

    text: str
    token_ids: list[int]


class ChatTemplate:
    """A compiled chat template; rendering is thread-safe.

    Args:
        source: The jinja2 text, at most 256 KiB.
        bos_token: What the template sees as `bos_token`; None leaves it undefined, as transformers does.
        eos_token: What the template sees as `eos_token`; None leaves it undefined.
        stops: Texts that begin the next turn, for models whose turns do not end with a token.
        built_in: Whether the source is this package's and not one that came with a model.
        max_characters: Most characters a rendering may have; 4 MiB by default.
        name: Where the source comes from, for messages.
        tokens: What it sees as other special tokens, such as `pad_token`.
        tool_use: The jinja2 text for conversations with tools, of models that have two templates.

    Attributes:
        eos_token: As given.
        stops: As given; generation has to end before them.
        built_in: As given.

    Raises:
        LoadError: If the source is too large or has a syntax error; the message names the line.
    """

    def __init__(
        self,
        source: str,
        *,
        bos_token: str | None = None,
        eos_token: str | None = None,
        stops: tuple[str, ...] = (),
        built_in: bool = False,
        max_characters: int = _MAX_OUTPUT,
        name: str = "chat template",
        tokens: Mapping[str, Any] | None = None,
        tool_use: str | None = None,
    ) -> None:
        self._template = _compiled(source, name)
        self._tool_use = self._template if tool_use is None else _compiled(tool_use, f"{name} (tool_use)")
        known = {**(tokens or {}), "bos_token": bos_token, "eos_token": eos_token}
        self._tokens = {key: token for key, token in known.items() if token is not None}
        self._max_characters = max_characters
        # Only what speaks of developers has a form for them; others would write a role that the model never saw.
        self._forms = Forms(
            lambda conversation: self.render(conversation.messages, tools=conversation.tools),
            name=name if built_in else "chat template",
            knows_developer="'developer'" in source or '"developer"' in source,
        )
        self._source, self._tool_use_source = source, tool_use
        self._guard: tuple[TextTokenizer, Guard] | None = None
        self.eos_token = eos_token
        self.stops = stops
        self.built_in = built_in

    @classmethod
    def from_folder(cls, folder: StrPath, tokenizer: TextTokenizer | None = None) -> ChatTemplate:
        """Read the template of an unpacked bundle or package.

        It is `chat_template.jinja`, else `chat_template` in `tokenizer_config.json` (a text, or a list of
        `{"name", "template"}` of which "default" is taken, and "tool_use" for conversations with tools), else plain
        ChatML, which is then `built_in`. The special tokens come from `tokenizer_config.json`.

        Args:
            folder: The unpacked base bundle or expert package.
            tokenizer: Its tokenizer, which tells what every text begins with. A template of the bundle writes that
                itself where the model learnt it so; plain ChatML has to be told.

        Raises:
            LoadError: If one of the files is unreadable or malformed, or the template does not compile.
        """
        found = read_template_source(Path(folder))
        if found.file is None:
            return cls(
                f"{{{{ bos_token }}}}{CHATML}",
                bos_token=(tokenizer and tokenizer.prefix) or None,
                eos_token=found.tokens.get("eos_token"),
                stops=CHATML_STOPS,
                built_in=True,
                name="built-in ChatML template",
            )
        bos_token, eos_token = found.tokens.pop("bos_token", None), found.tokens.pop("eos_token", None)
        return cls(
            found.source,
            bos_token=bos_token,
            eos_token=eos_token,
            name=found.file,
            tokens=found.tokens,
            tool_use=found.tool_use,
        )

    @property
    def supports_thinking(self) -> bool:
        """Whether `enable_thinking` changes anything: the template mentions it."""
        return "enable_thinking" in self._source

    def mentions(self, text: str) -> bool:
        """Whether the source has the text; of two templates that for conversations with tools."""
        return text in (self._source if self._tool_use_source is None else self._tool_use_source)

    def fit(
        self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None]:
        """Return messages and tools in the form in which the template shows all of them; see `Forms.fit`.

        Args:
            messages: As `build_messages` returns them.
            tools: As `checked_tools` returns them.

        Raises:
            InferenceError: If it shows the tools, a system message or the result of a tool in no form.
            OptionError: If it needs a call's arguments as an object, and they are the text of none.
        """
        fitted = self._forms.fit(Conversation(messages, tools))
        return fitted.messages, fitted.tools

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        enable_thinking: bool | None = None,
    ) -> str:
        """Return the text of a conversation, which is that of transformers' `apply_chat_template`.

        Args:
            messages: The turns, each with `role` and `content`.
            tools: JSON schemas of the functions that the model may call.
            add_generation_prompt: End with the opening of the assistant's turn.
            enable_thinking: Whether the model may think before it answers; None leaves that to the template.

        Raises:
            InferenceError: If the template refuses the messages (`raise_exception`), fails, does what the
                sandbox forbids, writes more than `max_characters`, or exceeds a limit of `text.budget`.
        """
        # transformers defines tools and documents too, as None.
        context: dict[str, object] = {**self._tokens, "tools": tools, "documents": None}
        context.update(messages=[dict(m) for m in messages], add_generation_prompt=add_generation_prompt)
        if enable_thinking is not None:
            context["enable_thinking"] = enable_thinking
        pieces: list[str] = []
        room = self._max_characters
        token = BUDGET.set(Budget((context["messages"], tools)))
        try:
            for piece in (self._template if tools is None else self._tool_use).generate(context):
                room -= len(piece)
                if room < 0:
                    break
                pieces.append(piece)
        except TemplateLimitError:
            raise
        except Exception as error:
            # A template is a program of someone else: whatever it raises is its failure, not ours.
            raise InferenceError(
                f"the chat template cannot render these messages: {_words(error)}"
            ) from error
        finally:
            BUDGET.reset(token)
        if room < 0:
            raise InferenceError(
                f"the chat template wrote more than {self._max_characters} characters; shorten the messages"
            )
        return "".join(pieces)

    def encode(
        self,
        messages: Sequence[Mapping[str, Any]],
        tokenizer: TextTokenizer,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        enable_thinking: bool | None = None,
    ) -> list[int]:
        """Return the token ids of a conversation that ends with the opening of the assistant's turn.

        They are those of `render`, except that only the special tokens that the template writes are read as such. In
        a message, a tool or a call `<|im_start|>` stays text, and so does one that comes about where two texts meet:
        the writer of a message cannot forge a turn. Turns that a template marks with plain words (`[INST]`,
        `### Instruction:`) have no such protection.

        Args:
            messages: As for `render`.
            tokenizer: The tokenizer of the same bundle.
            tools: As for `render`; their texts are as much those of a writer.
            enable_thinking: As for `render`.

        Raises:
            InferenceError: As for `render`, or if a message holds the text of a special token and it cannot be told
                from those of the template, which changes it, or puts its own together from parts.
            OptionError: If a message holds a lone surrogate.
        """
        return self.write(messages, tokenizer, tools=tools, enable_thinking=enable_thinking).token_ids

    def write(
        self,
        messages: Sequence[Mapping[str, Any]],
        tokenizer: TextTokenizer,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        enable_thinking: bool | None = None,
    ) -> Prompt:
        """As `encode`, with the text too."""

        def render(template: ChatTemplate, given: Any) -> str:
            return template.render(given[0], tools=given[1], enable_thinking=enable_thinking)

        given = messages, tools
        text = render(self, given)
        token_ids = tokenizer.encode(text)
        if not tokenizer.markers_of(token_ids):
            return Prompt(text, token_ids)
        if self._guard is None or self._guard[0] is not tokenizer:
            self._guard = tokenizer, Guard(self, tokenizer)
        return Prompt(text, self._guard[1].encode(text, token_ids, given, render))

    def renamed(self, names: Mapping[str, str]) -> ChatTemplate:
        """Return the template that writes other words in the place of some.

        Args:
            names: What to write for each word of the source and of the special tokens.

        Raises:
            LoadError: If it does not compile so.
        """
        words = re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))))

        def replaced(value: Any) -> Any:
            if isinstance(value, list):
                return [replaced(one) for one in value]
            return value if value is None else words.sub(lambda match: names[match[0]], value)

        tokens = {key: replaced(token) for key, token in self._tokens.items()}
        return ChatTemplate(
            replaced(self._source),
            bos_token=tokens.pop("bos_token", None),
            eos_token=tokens.pop("eos_token", None),
            tokens=tokens,
            tool_use=replaced(self._tool_use_source),
            max_characters=self._max_characters,
        )


def _compiled(source: str, name: str) -> jinja2.Template:
    import jinja2

    from hivellm_ort.text.sandbox import MAX_NODES, chat_environment

    if not source or source.isspace():
        raise LoadError(
            f"{name}: the chat template is empty; remove it for plain ChatML, or export the base again"
        )
    if len(source) > MAX_SOURCE:
        raise LoadError(f"{name}: longer than {MAX_SOURCE} characters; shorten it")
    if (
        source.count("{{") + source.count("{%") > MAX_NODES // 2
    ):  # known before it is parsed, which takes longer
        raise LoadError(f"{name}: the chat template has more than {MAX_NODES} parts; simplify it")
    try:
        return chat_environment().from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise LoadError(
            f"{name}, line {error.lineno}: syntax error ({error.message}); "
            "correct it, or export the base again"
        ) from error
    except TemplateLimitError as error:
        raise LoadError(f"{name}: {error}; simplify it") from error
    except Exception as error:
        # jinja2 writes Python: source that it accepts may still be too deeply nested to compile.
        raise LoadError(f"{name}: cannot be compiled ({_words(error)}); simplify it") from error


def _words(error: Exception) -> str:
    """Return what an error says, or its kind where it says nothing: `MemoryError`."""
    text = str(error) or type(error).__name__
    return text if len(text) <= _MAX_WORDS else f"{text[:_MAX_WORDS]}…"


def end_of_turn_ids(template: ChatTemplate, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return the special tokens that follow the assistant's words: where generation has to stop.

    White space between the words and the first special token is passed over.

    Args:
        template: Renders a question and an answer that is a marker.
        tokenizer: Tells which tokens are special.

    Returns:
        The ids, first to last; empty if no special token follows, or the template does not show the answer.

    Raises:
        InferenceError: If the template refuses one user turn and one assistant turn.
        LoadError: If it exceeds a limit with them: no conversation can be rendered.
    """
    marker = "endofturnmarker"
    messages = [{"role": "user", "content": "question"}, {"role": "assistant", "content": marker}]
    try:
        text = template.render(messages, add_generation_prompt=False)
    except TemplateLimitError as error:
        raise LoadError(f"{error}; use another template") from error
    _, found, rest = text.rpartition(marker)
    ids: list[int] = []
    for token_id in tokenizer.encode(rest.lstrip()) if found else []:
        if not tokenizer.is_special(token_id):
            break
        ids.append(token_id)
    return tuple(ids)
