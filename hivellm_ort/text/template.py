"""Chat templates: from messages to the text a model was trained on.

Templates come from packages, so they run in jinja2's immutable sandbox, their source is capped, and what they
write is counted while they write it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hivellm_ort.errors import InferenceError, LoadError
from hivellm_ort.text.template_source import MAX_SOURCE, read_template_source

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from hivellm_ort.text.tokenizer import Tokenizer

__all__ = ["ChatTemplate", "end_of_turn_ids"]

_MAX_OUTPUT = 4 << 20


class ChatTemplate:
    """A compiled chat template; rendering is thread-safe.

    Args:
        source: The jinja2 text, at most 1 MiB.
        bos_token: What the template sees as `bos_token`; None leaves it undefined, as transformers does.
        eos_token: What the template sees as `eos_token`; None leaves it undefined.
        max_characters: Most characters a rendering may have; 4 MiB by default.
        name: Where the source comes from, for messages.

    Raises:
        LoadError: If the source is too large or has a syntax error; the message names the line.
    """

    def __init__(
        self,
        source: str,
        *,
        bos_token: str | None = None,
        eos_token: str | None = None,
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

    @classmethod
    def from_folder(cls, folder: Path) -> ChatTemplate:
        """Read the template of an unpacked bundle or package.

        It is `chat_template.jinja`, else `chat_template` in `tokenizer_config.json` (a text, or a list of
        `{"name", "template"}` of which "default" is taken), else plain ChatML. `bos_token` and `eos_token`
        come from `tokenizer_config.json`.

        Args:
            folder: The unpacked base bundle or expert package.

        Raises:
            LoadError: If one of the files is unreadable or malformed, or the template does not compile.
        """
        found = read_template_source(folder)
        return cls(found.source, bos_token=found.bos_token, eos_token=found.eos_token, name=found.name)

    def render(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        add_generation_prompt: bool = True,
        **variables: object,
    ) -> str:
        """Return the text of a conversation.

        Args:
            messages: The turns, each with `role` and `content`.
            add_generation_prompt: End with the opening of the assistant's turn.
            **variables: Further names for the template, such as `enable_thinking=False`; `tools` and
                `documents` are None unless given, as in transformers.

        Raises:
            InferenceError: If the template refuses the messages (`raise_exception`), fails, does what the
                sandbox forbids, or writes more than `max_characters`.
        """
        context = {"tools": None, "documents": None, **self._tokens, **variables}
        context.update(messages=[dict(m) for m in messages], add_generation_prompt=add_generation_prompt)
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
