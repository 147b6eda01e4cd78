"""What an operator sets: who may ask, from where, and how much."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from hivellm_ort.errors import OptionError, OptionTypeError, argument

__all__ = ["LOCAL_HOSTS", "ServerLimits", "ServerOptions"]

LOCAL_HOSTS = ("localhost", "127.0.0.1", "[::1]")
"""How clients on this machine name it."""


def _limit(default: float, meaning: str) -> Any:
    return field(default=default, metadata={"help": meaning})


@dataclass(frozen=True, kw_only=True)
class ServerLimits:
    """How much one request, and all of them, may ask.

    A request beyond a limit is refused before anything is generated; the error names the field and the limit.

    Attributes:
        max_body_bytes: size of a body.
        max_n: answers of one request.
        max_prompts: prompts of one request to `/v1/completions`.
        max_questions: questions of one request to `/v1/decisions`.
        max_tokens: tokens of an answer.
        max_stops: stop strings.
        max_bad_words: texts of `bad_words`, of 128 characters each.
        max_logit_bias: entries of `logit_bias`.
        max_tools: tools of a request.
        max_schema_bytes: size of a JSON schema, a grammar, a regular expression or all choices together.
        max_schema_depth: objects and lists within each other in a JSON schema.
        max_waiting: answers that wait for a row of the running batch; beyond it requests get status 429.
        request_timeout: seconds from a request to the end of its answer.
        body_timeout: seconds in which a body must arrive.
        send_timeout: seconds that a client may leave a piece of an answer unread.

    Raises:
        OptionTypeError: a limit is no number.
        OptionError: one is out of range.
    """

    max_body_bytes: int = _limit(4 << 20, "Most bytes of a body.")
    max_n: int = _limit(8, "Most answers of one request.")
    max_prompts: int = _limit(16, "Most prompts of one request to /v1/completions.")
    max_questions: int = _limit(32, "Most questions of one request to /v1/decisions.")
    max_tokens: int = _limit(4096, "Most tokens of an answer.")
    max_stops: int = _limit(16, "Most stop strings of a request.")
    max_bad_words: int = _limit(64, "Most texts of bad_words.")
    max_logit_bias: int = _limit(1024, "Most entries of logit_bias.")
    max_tools: int = _limit(128, "Most tools of a request.")
    max_schema_bytes: int = _limit(64 << 10, "Most bytes of a JSON schema or a grammar.")
    max_schema_depth: int = _limit(32, "Most objects and lists within each other in a JSON schema.")
    max_waiting: int = _limit(64, "Most answers that wait for a row; then requests get status 429.")
    request_timeout: float = _limit(300.0, "Most seconds from a request to the end of its answer.")
    body_timeout: float = _limit(30.0, "Most seconds in which a body must arrive.")
    send_timeout: float = _limit(30.0, "Most seconds that a client may leave a piece of an answer unread.")

    def __post_init__(self) -> None:
        for one in fields(self):
            value, whole = getattr(self, one.name), isinstance(one.default, int)
            if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
                wanted = "a whole number (int)" if whole else "a number of seconds (float)"
                raise OptionTypeError(f"{argument(one.name)} is {type(value).__name__}: pass {wanted}")
            if not value > 0:
                raise OptionError(f"{argument(one.name)} is {value!r}: it must be above 0")


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """How the application behaves.

    Attributes:
        keys: any of these must come as `Authorization: Bearer KEY` with every request but `/health` and the files of
            the page; none by default, and then anybody may ask.
        allowed_hosts: names in the header `Host` that are answered; `*` is any. By default those of this machine
            alone, so that no page of another site can reach the server through a name of its own.
        allowed_origins: web pages that may ask from a browser (CORS); none by default.
        loading_folder: packages in it may be loaded and unloaded by requests; by default none may.
        page: Whether `/` is the page. Its files need no key.
        limits: how much requests may ask.

    Raises:
        OptionTypeError: an option has a wrong type.
        OptionError: a key is empty, or no header can hold it.
    """

    keys: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = LOCAL_HOSTS
    allowed_origins: tuple[str, ...] = ()
    loading_folder: Path | None = None
    page: bool = True
    limits: ServerLimits = field(default_factory=ServerLimits)

    def __post_init__(self) -> None:
        for name in ("keys", "allowed_hosts", "allowed_origins"):
            texts = getattr(self, name)
            if not isinstance(texts, tuple) or not all(isinstance(text, str) for text in texts):
                raise OptionTypeError(f"{name} is {type(texts).__name__}: pass a tuple of texts (str)")
        for index, key in enumerate(self.keys):
            if not key or not key.isascii() or not key.isprintable() or " " in key:
                # The key itself is a secret.
                raise OptionError(
                    f"keys[{index}]: a key has one or more visible ASCII characters and no space"
                )
        for host in self.allowed_hosts:
            if "*" in host[1:] or (host.startswith("*") and host != "*" and not host.startswith("*.")):
                raise OptionError(
                    f"allowed_hosts has {host!r}: write a name, '*.example.com', or '*' for any"
                )
