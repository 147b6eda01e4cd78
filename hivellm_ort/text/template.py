"""Chat templates: from messages to the text a model was trained on.

Templates come from packages, so they run in jinja2's immutable sandbox, their source is capped, and what they
write is counted while they write it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hivellm_ort.errors import InferenceError, LoadError
from hivellm_ort.text.markers import hide_markers, restore_markers
from hivellm_ort.text.template_source import CHATML_STOPS, MAX_SOURCE, read_template_source

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from hivellm_ort.paths import StrPath
    from hivellm_ort.text.tokenizer import TextTokenizer, Tokenizer

__all__ = ["ChatTemplate", "end_of_turn_ids"]

_MAX_OUTPUT = 4 << 20


class ChatTemplate:
    """A compiled chat template; rendering is thread-safe.

    Args:
        source: The jinja2 text, at most 1 MiB.
        bos_token: What the template sees as `bos_token`; None leaves it undefined, as transformers does.
        eos_token: What the template sees as `eos_token`; None leaves it undefined.
        stops: Texts that begin the next turn, for models whose turns do not end with a token.
        built_in: Whether the source is this package's and not one that came with a model.
        max_characters: Most characters a rendering may have; 4 MiB by default.
        name: Where the source comes from, for messages.

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
    ) -> None:
        import jinja2

        from hivellm_ort.text.sandbox import chat_environment

        if len(source) > MAX_SOURCE:
            raise LoadError(f"{name}: longer than {MAX_SOURCE} characters; shorten it")
        try:
            self._template = chat_environment().from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise LoadError(
                f"{name}, line {error.lineno}: syntax error ({error.message}); "
                "correct it, or export the base again"
            ) from error
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            # jinja2 writes Python: source that it accepts may still be too deeply nested to compile.
            raise LoadError(f"{name}: cannot be compiled ({error}); simplify it") from error
        tokens = {"bos_token": bos_token, "eos_token": eos_token}
        self._tokens = {key: token for key, token in tokens.items() if token is not None}
        self._max_characters = max_characters
        self._source = source
        self.eos_token = eos_token
        self.stops = stops
        self.built_in = built_in

    @classmethod
    def from_folder(cls, folder: StrPath) -> ChatTemplate:
        """Read the template of an unpacked bundle or package.

        It is `chat_template.jinja`, else `chat_template` in `tokenizer_config.json` (a text, or a list of
        `{"name", "template"}` of which "default" is taken), else plain ChatML, which is then `built_in`.
        `bos_token` and `eos_token` come from `tokenizer_config.json`.

        Args:
            folder: The unpacked base bundle or expert package.

        Raises:
            LoadError: If one of the files is unreadable or malformed, or the template does not compile.
        """
        found = read_template_source(Path(folder))
        return cls(
            found.source,
            bos_token=found.bos_token,
            eos_token=found.eos_token,
            stops=CHATML_STOPS if found.file is None else (),
            built_in=found.file is None,
            name=found.file or "built-in ChatML template",
        )

    @property
    def supports_thinking(self) -> bool:
        """Whether `enable_thinking` changes anything: the template mentions it."""
        return "enable_thinking" in self._source

    def render(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        add_generation_prompt: bool = True,
        enable_thinking: bool | None = None,
    ) -> str:
        """Return the text of a conversation.

        Args:
            messages: The turns, each with `role` and `content`.
            add_generation_prompt: End with the opening of the assistant's turn.
            enable_thinking: Whether the model may think before it answers; None leaves that to the template.

        Raises:
            InferenceError: If the template refuses the messages (`raise_exception`), fails, does what the
                sandbox forbids, or writes more than `max_characters`.
        """
        # transformers defines tools and documents too, as None.
        context: dict[str, object] = {"tools": None, "documents": None, **self._tokens}
        context.update(messages=[dict(m) for m in messages], add_generation_prompt=add_generation_prompt)
        if enable_thinking is not None:
            context["enable_thinking"] = enable_thinking
        pieces: list[str] = []
        room = self._max_characters
        try:
            for piece in self._template.generate(context):
                room -= len(piece)
                if room < 0:
                    break
                pieces.append(piece)
        except Exception as error:
            # A template is a program of someone else: whatever it raises is its failure, not ours.
            raise InferenceError(f"the chat template cannot render these messages: {error}") from error
        if room < 0:
            raise InferenceError(
                f"the chat template wrote more than {self._max_characters} characters; shorten the messages"
            )
        return "".join(pieces)

    def encode(
        self,
        messages: Sequence[Mapping[str, str]],
        tokenizer: TextTokenizer,
        *,
        enable_thinking: bool | None = None,
    ) -> list[int]:
        """Return the token ids of a conversation that ends with the opening of the assistant's turn.

        They are those of `render`, except that the text of a special token inside a message, such as
        `<|im_start|>`, stays text: the writer of a message cannot forge a turn with it. Turns that a template
        marks with plain words (`[INST]`, `### Instruction:`) have no such protection.

        Args:
            messages: As for `render`.
            tokenizer: The tokenizer of the same bundle.
            enable_thinking: As for `render`.

        Raises:
            InferenceError: As for `render`, or if a message holds the text of a special token and the template
                changes, or decides by, the text around it.
            ValueError: If a message holds a lone surrogate.
        """
        text = self.render(messages, enable_thinking=enable_thinking)
        hidden, literals = hide_markers(messages, tokenizer.marker_spans)
        if not literals:
            return tokenizer.encode(text)
        safe = self.render(hidden, enable_thinking=enable_thinking)
        if restore_markers(safe, literals) != text:
            found = next(iter(literals.values()))
            raise InferenceError(
                f"a message holds the text of a special token ({found!r}), which this chat template does not pass on "
                "as it is: remove it from the message"
            )
        return tokenizer.encode_literals(safe, literals)


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
    """
    marker = "endofturnmarker"
    messages = [{"role": "user", "content": "question"}, {"role": "assistant", "content": marker}]
    _, found, rest = template.render(messages, add_generation_prompt=False).rpartition(marker)
    ids: list[int] = []
    for token_id in tokenizer.encode(rest.lstrip()) if found else []:
        if not tokenizer.is_special(token_id):
            break
        ids.append(token_id)
    return tuple(ids)
