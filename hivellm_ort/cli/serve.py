"""The command `hivellm-ort serve`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from hivellm_ort import ExpertManager
from hivellm_ort.cli.files import NamedPath
from hivellm_ort.cli.output import echo
from hivellm_ort.cli.run import loading_options
from hivellm_ort.errors import OptionError
from hivellm_ort.loading.options import LoadOptions
from hivellm_ort.package.store import Store
from hivellm_ort.server.options import (
    AUTO,
    KEYS_VARIABLE,
    LOCAL_HOSTS,
    ServerLimits,
    ServerOptions,
    read_keys,
)

__all__ = ["serve"]

_MISSING = 'serve needs FastAPI and uvicorn ({name} is not installed): pip install "hivellm-ort[server]"'


def _limit_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add an option for each limit of `ServerLimits`."""
    for limit in reversed(fields(ServerLimits)):
        kind = (
            click.IntRange(min=1)
            if isinstance(limit.default, int)
            else click.FloatRange(min=0, min_open=True)
        )
        flag = f"--{limit.name.replace('_', '-')}"
        option = click.option(
            flag, limit.name, type=kind, default=limit.default, show_default=True, help=limit.metadata["help"]
        )
        command = option(command)
    return command


def _parse_experts(_ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, Path]:
    """Parse the values of `--expert NAME=PATH`."""
    found: dict[str, Path] = {}
    for value in values:
        name, equals, path = value.partition("=")
        if not (name and equals and path):
            raise click.BadParameter(f"{value!r} is not NAME=PATH", param=param)
        if name in found:
            raise click.BadParameter(f"the name {name!r} is given twice", param=param)
        found[name] = Path(path)
    return found


@click.command()
@click.argument("packages", nargs=-1, type=NamedPath(), metavar="[PACKAGE]...")
@click.option(
    "--expert",
    "experts",
    multiple=True,
    metavar="NAME=PATH",
    callback=_parse_experts,
    help="A package and its name in requests; may be repeated.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Host name or address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    help="Port; 0 is any free port.",
)
@click.option(
    "--api-key-file",
    type=NamedPath(),
    help=f"File with API keys, one per line; default: {KEYS_VARIABLE}, separated by commas.",
)
@click.option(
    "--allowed-host",
    "allowed_hosts",
    multiple=True,
    help="Accepted name in the header Host; may be repeated. Default: localhost, 127.0.0.1 and [::1]; "
    "any name if --host is not local.",
)
@click.option(
    "--allowed-origin",
    "allowed_origins",
    multiple=True,
    help="A web site whose pages may send requests, such as https://example.com; may be repeated.",
)
@click.option(
    "--allow-loading",
    type=NamedPath(exists=True, file_okay=False),
    help="Folder with packages that clients may load and unload.",
)
@click.option("--ssl-certfile", type=NamedPath(), help="TLS certificate for HTTPS, in PEM.")
@click.option("--ssl-keyfile", type=NamedPath(), help="Private key of the certificate, in PEM.")
@click.option(
    "--drain-timeout",
    type=click.FloatRange(min=0),
    default=30.0,
    show_default=True,
    help="Seconds that running answers may take after SIGTERM.",
)
@click.option(
    "--max-connections",
    type=click.IntRange(min=1),
    default=512,
    show_default=True,
    help="Most open connections; further ones are closed immediately.",
)
@click.option(
    "--header-timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=10.0,
    show_default=True,
    help="Most seconds in which the headers of a request must arrive.",
)
@click.option("--no-page", is_flag=True, help="Serve the API only, without the page at /.")
@click.option("--access-log", is_flag=True, help="Log every request.")
@click.option("--max-loaded-experts", type=click.IntRange(min=1), help="Most experts in memory.")
@click.option("--memory-budget", type=click.IntRange(min=1), help="Most bytes of bases, adapters and caches.")
@_limit_options
@loading_options
def serve(
    packages: tuple[Path, ...],
    experts: Mapping[str, Path],
    host: str,
    port: int,
    api_key_file: Path | None,
    allowed_hosts: tuple[str, ...],
    allowed_origins: tuple[str, ...],
    allow_loading: Path | None,
    ssl_certfile: Path | None,
    ssl_keyfile: Path | None,
    drain_timeout: float,
    max_connections: int,
    header_timeout: float,
    no_page: bool,
    access_log: bool,
    max_loaded_experts: int | None,
    memory_budget: int | None,
    loading: LoadOptions,
    **limits: Any,
) -> None:
    """Serve the experts in each PACKAGE behind OpenAI's API.

    The model name of a PACKAGE is the name in its manifest. Clients use http://HOST:PORT/v1 as their base URL.

    SIGTERM and Ctrl-C end the server. Running answers then have --drain-timeout seconds.

    Exit status: 0 after SIGTERM or Ctrl-C; 2 if a package, a file or the address cannot be used.
    """
    try:
        from hivellm_ort.server.app import create_app
        from hivellm_ort.server.uvicorn_runner import ListenOptions, is_local, run
    except ModuleNotFoundError as error:
        raise OptionError(_MISSING.format(name=error.name)) from error
    if not packages and not experts:
        raise click.UsageError("nothing to serve: name a PACKAGE, or an expert with --expert NAME=PATH")
    keys = read_keys(api_key_file)
    local = is_local(host)
    options = ServerOptions(
        keys=keys,
        allowed_hosts=allowed_hosts or (LOCAL_HOSTS if local else ("*",)),
        allowed_origins=allowed_origins,
        loading_folder=allow_loading,
        page=not no_page,
        limits=ServerLimits(**limits),
    )
    listen_options = ListenOptions(
        host=host,
        port=port,
        certificate=ssl_certfile,
        private_key=ssl_keyfile,
        drain_seconds=drain_timeout,
        access_log=access_log,
        max_connections=max_connections,
        header_seconds=header_timeout,
    )
    if not local and not keys:
        echo(
            f"warning: other machines can connect to {host}, and no API key is set: every client is answered "
            f"(set keys with --api-key-file or {KEYS_VARIABLE})",
            err=True,
        )
    with ExpertManager(
        max_loaded_experts=max_loaded_experts, memory_budget=memory_budget, **loading
    ) as manager:
        named = _all_packages(manager, packages, experts)
        manager.load_experts(named)
        base = loading.get("base")
        folders = {path.absolute().parent for path in named.values()}
        folders |= {folder.resolve() for folder in folders} | ({Path(base).absolute()} if base else set())
        folders.add(Store().root)
        app = create_app(manager, options, folders=folders)
        run(app, listen_options, lambda address: echo(f"{', '.join(named)} at {address}", err=True))


def _all_packages(
    manager: ExpertManager, packages: tuple[Path, ...], experts: Mapping[str, Path]
) -> dict[str, Path]:
    """Return all packages by their names in requests."""
    named = dict(experts)
    for path in packages:
        name = manager.package_name(path)
        if name in named:
            raise OptionError(
                f"two packages have the name {name!r}: give one another name with --expert NAME={path}"
            )
        named[name] = path
    if AUTO in named:
        raise OptionError(
            f"{AUTO!r} is the model name for routing: give the expert another name with --expert NAME=PATH"
        )
    return named
