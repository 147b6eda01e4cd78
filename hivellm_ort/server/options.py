"""Options of the server: API keys, hosts, and limits of requests."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from hivellm_ort.errors import OptionError, OptionTypeError, argument
from hivellm_ort.textfile import decode_text

__all__ = ["AUTO", "KEYS_VARIABLE", "LOCAL_HOSTS", "ServerLimits", "ServerOptions", "read_keys"]

AUTO = "auto"
"""The model name that asks for routing. No expert can have it."""

LOCAL_HOSTS = ("localhost", "127.0.0.1", "[::1]")
"""The host names that only this machine uses for itself."""

KEYS_VARIABLE = "HIVELLM_API_KEYS"
"""The environment variable with API keys."""


def _limit(default: float, meaning: str) -> Any:
    return field(default=default, metadata={"help": meaning})


@dataclass(frozen=True, kw_only=True)
class ServerLimits:
    """Limits of one request and of all requests together.

    A request beyond a limit is refused before anything is generated. The error names the field and the limit.

    Attributes:
        max_body_bytes: The size of a body.
        max_n: Answers of one request.
        max_prompts: Prompts of one request to `/v1/completions`.
        max_questions: Questions of one request to `/v1/decisions`.
        max_tokens: Tokens of an answer.
        max_stops: Stop strings.
        max_bad_words: Texts of `bad_words`, of at most 128 characters each.
        max_logit_bias: Entries of `logit_bias`.
        max_tools: Tools of a request.
        max_schema_bytes: The size of a JSON schema, a grammar, a regular expression, or all choices together.
        max_schema_depth: Nested objects and lists in a JSON schema.
        max_waiting: Answers that wait for a row of the running batch. Further requests get status 429.
        request_timeout: Seconds from a request to the end of its answer.
        body_timeout: Seconds in which a body must arrive.
        send_timeout: Seconds in which a client must read a piece of an answer.

    Raises:
        OptionTypeError: A limit is not a number.
        OptionError: A limit is out of range.
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
    max_schema_depth: int = _limit(32, "Most nested objects and lists in a JSON schema.")
    max_waiting: int = _limit(
        64, "Most answers that wait for a row of the batch; further requests get status 429."
    )
    request_timeout: float = _limit(300.0, "Most seconds from a request to the end of its answer.")
    body_timeout: float = _limit(30.0, "Most seconds in which a body must arrive.")
    send_timeout: float = _limit(30.0, "Most seconds in which a client must read a piece of an answer.")

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
    """Options of the application.

    Attributes:
        keys: API keys. Every request must have one of them as `Authorization: Bearer KEY`, except `/health` and the
            files of the page. Without keys, which is the default, every client is answered.
        allowed_hosts: Accepted names in the header `Host`; `*` accepts any. The default is `LOCAL_HOSTS`, so that
            no page of another site can reach the server through its own host name (DNS rebinding).
        allowed_origins: Web sites whose pages may send requests from a browser (CORS). Default: none.
        loading_folder: The folder whose packages requests may load. Default: None; loading and unloading are off.
        page: Whether `/` is the web page. Its files need no key.
        limits: Limits of requests.

    Raises:
        OptionTypeError: An option has a wrong type.
        OptionError: A key is empty or has characters that a header cannot have, or a host pattern is invalid.
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


def read_keys(file: Path | None) -> tuple[str, ...]:
    """Return the API keys of a file. Without a file, return those of `HIVELLM_API_KEYS`, separated by commas.

    Args:
        file: A text file with one key per line. Empty lines and lines that begin with `#` are skipped.

    Raises:
        OSError: The file cannot be read.
        OptionError: The file has no key, or is not UTF-8 text.
    """
    if file is None:
        return tuple(key.strip() for key in os.environ.get(KEYS_VARIABLE, "").split(",") if key.strip())
    try:
        lines = [line.strip() for line in decode_text(file.read_bytes()).splitlines()]
    except UnicodeDecodeError as error:
        raise OptionError(f"{file}: it is not UTF-8 text: write one key per line") from error
    keys = tuple(line for line in lines if line and not line.startswith("#"))
    if not keys:
        raise OptionError(f"{file}: it has no key: write one key per line")
    return keys
