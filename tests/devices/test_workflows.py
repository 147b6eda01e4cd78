"""Workflows, and what documents show of shells: YAML that parses, pinned actions, commands that exist."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path
from typing import Any

import click
import pytest

from hivellm_ort.cli.main import main

yaml = pytest.importorskip("yaml", reason="needs PyYAML")

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/*.md", "examples/**/*.md", "models/**/*.md", "benchmarks/*.md")
    for path in ROOT.glob(pattern)
)
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"(?:^|[\s;|&(/])hivellm-ort (.*)")
EXPORTER = find_spec("torch") is not None


def fences(kind: str) -> Iterator[tuple[str, str]]:
    """Where from, and text, of each block of a kind in the documents."""
    for name in DOCUMENTS:
        for found, text in FENCE.findall((ROOT / name).read_text(encoding="utf-8")):
            if found == kind:
                yield name, text


WORKFLOWS = [
    *((path.name, path.read_text(encoding="utf-8")) for path in sorted((ROOT / ".github/workflows").glob("*.yml"))),
    *fences("yaml"),
]  # fmt: skip
IDS = [name for name, _ in WORKFLOWS]


def steps(text: str) -> Iterator[dict[str, Any]]:
    """The steps of every job of a workflow."""
    for job in yaml.safe_load(text)["jobs"].values():
        yield from job["steps"]


def scripts() -> Iterator[tuple[str, str]]:
    """Where from, and text, of everything that a shell runs."""
    for name, text in WORKFLOWS:
        for step in steps(text):
            if "run" in step:
                yield name, step["run"]
    yield from fences("sh")


def commands() -> list[tuple[str, str]]:
    """Where from, and arguments, of every `hivellm-ort` in a script."""
    return [
        (name, match[1])
        for name, script in scripts()
        for line in script.replace("\\\n", "").splitlines()
        if (match := COMMAND.search(line.partition(" #")[0]))
    ]


def test_there_is_something_to_check() -> None:
    """Both workflows and the one of the document are found, with the commands of a whole pipeline."""
    assert ["ci.yml", "release.yml", "docs/ci-export.md"] == IDS
    names = {arguments.split()[0] for _, arguments in commands()}
    assert {command for command in main.list_commands(click.Context(main)) if command != "cache"} <= names


@pytest.mark.parametrize(("name", "text"), WORKFLOWS, ids=IDS)
def test_workflow(name: str, text: str) -> None:
    """Read-only, one at a time, with a limit of time, and every action pinned to a commit."""
    document = yaml.safe_load(text)
    assert {"contents": "read"} == document["permissions"]
    assert "${{ github.ref }}" in document["concurrency"]["group"]
    assert [] == [job for job, value in document["jobs"].items() if "timeout-minutes" not in value]
    assert [] == [job for job, value in document["jobs"].items() if "permissions" in value]
    used = [step["uses"] for step in steps(text) if "uses" in step]
    assert used
    assert [] == [action for action in used if not re.fullmatch(r"actions/[a-z-]+@[0-9a-f]{40}", action)]
    # Each pin says in a comment which version it is, the same everywhere.
    assert len(used) == len(
        re.findall(r"uses: actions/[a-z-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$", text, re.MULTILINE)
    )
    checkouts = [step for step in steps(text) if step.get("uses", "").startswith("actions/checkout@")]
    assert [] == [step for step in checkouts if step["with"]["persist-credentials"] is not False]


def test_ci_installs_and_tests_as_the_documents_say() -> None:
    """The commands of CONTRIBUTING that install and test are those of the stages."""
    stages = (ROOT / ".ci" / "stage").read_text(encoding="utf-8")
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for extra in ("dev", "test"):
        (line,) = re.findall(rf'^pip install .*-e "\.\[{extra}\]" && pytest$', text, re.MULTILINE)
        install, _, run = line.partition(" && ")
        assert install.replace("-c export/constraints.txt ", "") in stages.replace(
            "-c export/constraints.txt ", ""
        )
        assert re.search(rf"\b{run}\b", stages)


def test_one_version_of_each_action() -> None:
    """All workflows pin the same commit of an action."""
    used = {step["uses"] for _, text in WORKFLOWS for step in steps(text) if "uses" in step}
    assert len(used) == len({action.partition("@")[0] for action in used})


@pytest.mark.parametrize(("name", "text"), WORKFLOWS, ids=IDS)
def test_no_expression_in_a_script(name: str, text: str) -> None:
    """What a branch or a secret is called reaches a shell as a variable, never as part of its script."""
    assert [] == [step["run"] for step in steps(text) if "${{" in step.get("run", "")]


def test_the_key() -> None:
    """The secret reaches the step that signs alone, in a file only the user reads, which is deleted."""
    ((_, text),) = fences("yaml")
    document = yaml.safe_load(text)
    holders = [step for step in steps(text) if "secrets." in str(step)]
    assert ["Sign"] == [step["name"] for step in holders]
    assert 1 == str(document).count("secrets.")
    assert "signing" == document["jobs"]["sign"]["environment"]
    lines = holders[0]["run"].splitlines()
    deleted, written = (
        next(i for i, line in enumerate(lines) if sign in line) for sign in ("trap", "umask 077")
    )
    assert deleted < written


@pytest.mark.parametrize(("name", "arguments"), commands(), ids=lambda value: value.replace(" ", "_")[:60])
def test_command_line(name: str, arguments: str) -> None:
    """Every command exists, and takes the options and as many arguments as it is given."""
    lexer = shlex.shlex(arguments, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words = list(takewhile(lambda word: not word or not {*word} <= {*"();<>|&"}, lexer))
    command: click.Command = main
    while isinstance(command, click.Group):
        word = words.pop(0)
        if word in ("demo", "export") and not EXPORTER:
            pytest.skip("needs the export extra")
        found = command.get_command(click.Context(command), word)
        assert found is not None, word
        command = found
    # Files are not there: parse the words alone, without what reads them.
    values, rest, _ = command.make_parser(click.Context(command)).parse_args(words)
    assert [] == rest
    for parameter in command.params:
        given = values.get(parameter.name)
        if isinstance(parameter.type, click.Choice):
            chosen = given if isinstance(given, list) else [given]
            assert {None, *parameter.type.choices} >= {*chosen}
        assert not parameter.required or isinstance(given, str)
