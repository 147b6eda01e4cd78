"""Talk with several experts in a terminal. Each question goes to the expert that fits it, or to one you name.

python examples/chat_cli.py --expert sql=SQL.expert --expert json=JSON.expert
"""

from __future__ import annotations

from pathlib import Path

import click
from named_experts import expert_options, load, take_any_console

from hivellm_ort import ExpertError, ExpertManager

__all__ = ["main"]

_HELP = """\
/expert NAME  ask this expert from now on
/auto         choose the expert by the question
/stats        experts, memory and speed
/new          forget the conversation
/quit         leave; so does the end of input
Ctrl-C stops a running answer."""


class Chat:
    """A conversation with the experts of a manager.

    Args:
        manager: The experts.
        max_tokens: Most tokens of one answer.
        temperature: 0 is greedy; None for the experts' own.
    """

    def __init__(self, manager: ExpertManager, *, max_tokens: int | None, temperature: float | None):
        self._manager = manager
        self._max_tokens, self._temperature = max_tokens, temperature
        self._turns: list[dict[str, str]] = []
        self._expert: str | None = None
        self._automatic = True

    def command(self, line: str) -> bool:
        """Do what a line that begins with `/` says; False if it says to leave."""
        word, _, rest = line[1:].partition(" ")
        match word:
            case "expert":
                self._choose(rest.strip())
            case "auto":
                self._automatic = True
                click.echo("each question goes to the expert that fits it", err=True)
            case "stats":
                self._stats()
            case "new":
                self._turns.clear()
                click.echo("the conversation is forgotten", err=True)
            case "quit":
                return False
            case _:
                click.echo(_HELP, err=True)
        return True

    def answer(self, question: str) -> None:
        """Print the answer as it comes, and remember it."""
        if self._automatic:
            self._route(question)
        if self._expert is None:
            click.echo("no expert fits the question: name one with /expert NAME", err=True)
            return
        stream = self._manager.generate_stream(
            self._expert,
            question,
            messages=self._turns,
            max_tokens=self._max_tokens,
            temperature=self._temperature,
        )
        try:
            for piece in stream:
                click.echo(piece, nl=False)
        except KeyboardInterrupt:
            stream.close()
        finally:
            click.echo()
        result = stream.result
        if result.finish_reason == "cancelled":
            click.echo("(stopped)", err=True)
        self._turns += [
            {"role": "user", "content": question},
            {"role": "assistant", "content": result.text},
        ]

    def _choose(self, name: str) -> None:
        names = [info.name for info in self._manager.list_loaded_experts()]
        if name not in names:
            click.echo(f"no expert {name!r}; there are {', '.join(names)}", err=True)
            return
        self._expert, self._automatic = name, False
        click.echo(f"every question goes to {name}", err=True)

    def _route(self, question: str) -> None:
        routes = self._manager.route(question)
        if routes:
            self._expert = routes[0].name
            click.echo(f"[{self._expert}: {', '.join(routes[0].reasons)}]", err=True)
        elif self._expert is not None:
            # Such as "and now by name": it belongs to what was said before.
            click.echo(f"[{self._expert}: as before, no expert fits better]", err=True)

    def _stats(self) -> None:
        stats, metrics = self._manager.stats(), self._manager.metrics.snapshot()
        for info in self._manager.list_loaded_experts():
            click.echo(
                f"{info.name:<16} {info.kind} rank {info.rank} on {info.base}, "
                f"{info.adapter_bytes / 1e6:.1f} MB, {info.hits} requests",
                err=True,
            )
        bases = len(stats["bases"])
        click.echo(f"{stats['bytes'] / 1e6:.0f} MB in all, {bases} base{'s' * (bases != 1)}", err=True)
        first = metrics["time_to_first_token_seconds"]["p50"]
        between = metrics["inter_token_latency_seconds"]["p50"]
        if first and between:
            click.echo(
                f"first token after {first * 1000:.0f} ms, then {1 / between:.0f} tokens/s (medians)",
                err=True,
            )


@click.command()
@expert_options
@click.option("--max-tokens", type=click.IntRange(min=1), help="Most tokens of one answer.")
@click.option("--temperature", type=float, help="0 is greedy; default: the experts' own.")
def main(
    experts: dict[str, Path],
    base: Path | None,
    threads: int | None,
    trust: str,
    max_tokens: int | None,
    temperature: float | None,
) -> None:
    """Talk with several experts. /help lists the commands; Ctrl-C stops an answer."""
    take_any_console()
    try:
        manager = load(experts, base=base, threads=threads, trust=trust)
    except ExpertError as error:
        raise click.ClickException(str(error)) from error
    with manager:
        click.echo(f"{', '.join(experts)} loaded; /help lists the commands", err=True)
        chat = Chat(manager, max_tokens=max_tokens, temperature=temperature)
        while (line := _ask()) is not None:
            try:
                if line.startswith("/"):
                    if not chat.command(line):
                        break
                elif line:
                    chat.answer(line)
            except ExpertError as error:
                click.echo(f"error: {error}", err=True)
            except KeyboardInterrupt:  # before the answer began
                click.echo(err=True)


def _ask() -> str | None:
    """The next line; None at the end of input."""
    while True:
        try:
            return input("> ").strip()
        except EOFError:
            return None
        except KeyboardInterrupt:
            click.echo()


if __name__ == "__main__":
    main()
