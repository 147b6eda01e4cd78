"""The command `hivellm-ort run`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import click

from hivellm_ort.cli.files import NamedPath, read_text
from hivellm_ort.cli.output import echo, echo_answer, json_option, print_json
from hivellm_ort.expert import Expert
from hivellm_ort.integrity import Policy
from hivellm_ort.loading.options import LoadOptions
from hivellm_ort.printable import printable

__all__ = ["loading_options", "run", "text_or_file"]

_TEXT_FILES = frozenset(
    (
        ".cypher",
        ".ddl",
        ".ebnf",
        ".gbnf",
        ".graphql",
        ".json",
        ".lark",
        ".md",
        ".sql",
        ".txt",
        ".yaml",
        ".yml",
    )
)
_LONGEST_PATH = 1024


def text_or_file(_ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """The text itself, or with a leading @ the contents of a file; the name of a file alone is refused."""
    if value is None:
        return value
    if not value.startswith("@"):
        if _is_named_like_a_file(value):
            raise click.BadParameter(
                f"{value!r} is the name of a file; for what is in it write @{value}", param=param
            )
        return value
    try:
        return read_text(Path(value[1:]))
    except (OSError, UnicodeDecodeError) as error:
        raise click.BadParameter(f"{value[1:]} cannot be read: {error}", param=param) from error


def _is_named_like_a_file(text: str) -> bool:
    """Whether a text is the path of a file that there is, or is one word with the ending of a text file."""
    if len(text) > _LONGEST_PATH or "\n" in text:
        return False
    if not any(map(str.isspace, text)) and Path(text).suffix.lower() in _TEXT_FILES:
        return True
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # no path at all
        return False


def _name_and_value(_ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """`NAME=VALUE` given any number of times, as a dict."""
    pairs = [value.partition("=") for value in values]
    wrong = [name for name, equals, _ in pairs if not (name and equals)]
    if wrong:
        raise click.BadParameter(f"{wrong[0]!r} is not NAME=VALUE", param=param)
    return {name: value for name, _, value in pairs}


def loading_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of every command that loads an expert; the command gets them as `loading`, a `LoadOptions`."""

    @functools.wraps(command)
    def gathered(*arguments: Any, **options: Any) -> Any:
        loading = {name: options.pop(name) for name in LoadOptions.__annotations__ if name in options}
        return command(*arguments, loading=loading, **options)

    for option in (
        click.option(
            "--threads", type=click.IntRange(min=1), help="Threads; one per physical core by default."
        ),
        click.option("--fallback", is_flag=True, help="Run on the CPU where the device is unavailable."),
        click.option(
            "--provider-option",
            "provider_options",
            multiple=True,
            metavar="NAME=VALUE",
            callback=_name_and_value,
            help="An option of the execution provider; may be repeated.",
        ),
        click.option("--device", help="auto (default), cpu, cuda, cuda:1, dml, dml:0 or coreml."),
        click.option(
            "--trust",
            type=click.Choice(get_args(Policy)),
            default="warn",
            help="What to do where no key you trust has signed the package; default: warn.",
        ),
        click.option("--base", type=NamedPath(), help="Base bundle for a thin package."),
    ):
        gathered = option(gathered)
    return gathered


@click.command()
@click.argument("package", type=NamedPath())
@click.argument("prompt")
@click.option("--schema", callback=text_or_file, help="What the prompt is about: text, or @FILE.")
@click.option("--system", callback=text_or_file, help="System message: text, or @FILE.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="Most tokens to generate.")
@click.option("--temperature", type=float, help="0 is greedy; default: the expert's own.")
@click.option("--top-p", type=float, help="Nucleus; default: the expert's own.")
@click.option("--top-k", type=int, help="0 is off; default: the expert's own.")
@click.option("--stop", multiple=True, help="A string that ends the answer; may be repeated.")
@click.option("--seed", type=int, help="Seed of the random numbers.")
@click.option("--grammar", callback=text_or_file, help="GBNF grammar of the answer: text, or @FILE.")
@click.option("--no-grammar", is_flag=True, help="Without the package's own grammar.")
@click.option("--json-schema", callback=text_or_file, help="JSON schema of the answer: text, or @FILE.")
@click.option(
    "--lenient",
    is_flag=True,
    default=None,
    help="Leave out, with a warning, what of a JSON schema cannot be enforced.",
)
@click.option("--regex", help="Regular expression that the answer matches.")
@click.option("--choice", multiple=True, help="A text that the answer may be; give each of them.")
@click.option("--thinking", "enable_thinking", is_flag=True, help="Let a thinking model think first.")
@click.option("--prompt-lookup/--no-prompt-lookup", default=None, help="Guess tokens from the prompt.")
@json_option("Print the whole result as JSON instead of streaming.")
@loading_options
def run(
    package: Path,
    prompt: str,
    loading: LoadOptions,
    as_json: bool,
    no_grammar: bool,
    **options: Any,
) -> None:
    """Answer PROMPT with the expert in PACKAGE."""
    if no_grammar:
        if options["grammar"] is not None:
            raise click.UsageError("--grammar and --no-grammar exclude each other")
        options["grammar"] = False
    options["choice"] = options["choice"] or None
    with Expert.load(package, **loading) as expert:
        with expert.generate_stream(prompt, **options) as stream:
            for piece in stream:
                if not as_json:
                    echo_answer(piece)
        if as_json:
            print_json(stream.result.to_dict())
        else:
            echo()
            for warning in stream.result.warnings:
                echo(f"warning: {printable(warning)}", err=True)
