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

__all__ = ["answer_options", "loading_options", "run", "text_or_file"]

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
    """Take the text itself, or the contents of a file after `@`. The name of a file without `@` is refused."""
    if value is None:
        return value
    if not value.startswith("@"):
        if _is_named_like_a_file(value):
            raise click.BadParameter(
                f"{value!r} is the name of a file: write @{value} for its contents", param=param
            )
        return value
    try:
        return read_text(Path(value[1:]))
    except (OSError, UnicodeDecodeError) as error:
        raise click.BadParameter(f"{value[1:]} cannot be read: {error}", param=param) from error


def _is_named_like_a_file(text: str) -> bool:
    """Return whether a text is the path of an existing file, or one word with the suffix of a text file."""
    if len(text) > _LONGEST_PATH or "\n" in text:
        return False
    if not any(map(str.isspace, text)) and Path(text).suffix.lower() in _TEXT_FILES:
        return True
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # not a path
        return False


def _name_and_value(_ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """Parse `NAME=VALUE`, given any number of times."""
    pairs = [value.partition("=") for value in values]
    wrong = [name for name, equals, _ in pairs if not (name and equals)]
    if wrong:
        raise click.BadParameter(f"{wrong[0]!r} is not NAME=VALUE", param=param)
    return {name: value for name, _, value in pairs}


def loading_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of loading to a command. The command gets them as `loading`, a `LoadOptions`."""

    @functools.wraps(command)
    def gathered(*arguments: Any, **options: Any) -> Any:
        loading = {name: options.pop(name) for name in LoadOptions.__annotations__ if name in options}
        return command(*arguments, loading=loading, **options)

    for option in (
        click.option(
            "--threads",
            type=click.IntRange(min=1),
            show_default="physical cores",
            help="Number of CPU threads.",
        ),
        click.option("--fallback", is_flag=True, help="Run on the CPU if the device is unavailable."),
        click.option(
            "--provider-option",
            "provider_options",
            multiple=True,
            metavar="NAME=VALUE",
            callback=_name_and_value,
            help="Option of the execution provider. Can be repeated.",
        ),
        click.option("--device", show_default="auto", help="auto, cpu, cuda, cuda:1, dml, dml:0 or coreml."),
        click.option(
            "--trust",
            type=click.Choice(get_args(Policy)),
            default="warn",
            show_default=True,
            help="What to do if no key that you trust has signed the package: refuse it, warn, or do not check.",
        ),
        click.option(
            "--base", type=NamedPath(), help="Folder of the exported base, for a package without one."
        ),
    ):
        gathered = option(gathered)
    return gathered


def answer_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--max-tokens` and `--temperature`."""
    command = click.option(
        "--temperature",
        type=float,
        show_default="the expert's own",
        help="Randomness: 0 always takes the most likely token.",
    )(command)
    return click.option(
        "--max-tokens",
        type=click.IntRange(min=1),
        show_default="the expert's own, or 512",
        help="Maximum tokens of an answer.",
    )(command)


@click.command()
@click.argument("package", type=NamedPath())
@click.argument("prompt")
@click.option(
    "--schema",
    callback=text_or_file,
    help="Context of the prompt, such as the tables of a database: text or @FILE.",
)
@click.option("--system", callback=text_or_file, help="System message: text or @FILE.")
@answer_options
@click.option(
    "--top-p",
    type=float,
    show_default="the expert's own",
    help="Sample only from the most likely tokens whose probabilities add up to this.",
)
@click.option(
    "--top-k",
    type=int,
    show_default="the expert's own",
    help="Sample from this many most likely tokens; 0 is all.",
)
@click.option("--stop", multiple=True, help="Text that ends the answer. Can be repeated.")
@click.option("--seed", type=int, help="Seed for sampling: the same seed gives the same answer.")
@click.option("--grammar", callback=text_or_file, help="GBNF grammar of the answer: text or @FILE.")
@click.option("--no-grammar", is_flag=True, help="Ignore the package's own grammar.")
@click.option("--json-schema", callback=text_or_file, help="JSON schema of the answer: text or @FILE.")
@click.option(
    "--lenient",
    is_flag=True,
    default=None,
    help="Ignore, with a warning, what cannot be enforced of a JSON schema.",
)
@click.option("--regex", help="Regular expression that the whole answer matches.")
@click.option("--choice", multiple=True, help="Allowed answer. Repeat it for each allowed answer.")
@click.option(
    "--thinking", "enable_thinking", is_flag=True, help="Let a thinking model think before it answers."
)
@click.option(
    "--prompt-lookup/--no-prompt-lookup",
    default=None,
    help="Guess tokens from the prompt: faster if the answer repeats parts of it.",
)
@json_option("Print the complete result as JSON instead of streaming the text.")
@loading_options
def run(
    package: Path,
    prompt: str,
    loading: LoadOptions,
    as_json: bool,
    no_grammar: bool,
    **options: Any,
) -> None:
    """Answer one prompt with an expert.

    PACKAGE is a .expert file, or a folder that PEFT saved. The answer to PROMPT is streamed to standard output.
    """
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
