"""What a cluster does that gains a replica, gains an expert, and loses a replica, on this one machine.

    pip install "hivellm-ort[cpu,ray]" httpx psutil
    python benchmarks/ray_serve.py --expert sql=SQL.expert --expert json=JSON.expert --third elastic=ELASTIC.expert

It starts Ray, deploys `hivellm_ort.ray:build_app`, and takes it down at the end. Replicas have one thread each. All
of Ray's processes, the clients and the replicas share the cores of this machine, so a second replica shows less here
than on a machine of its own. Tokens per second depend on what else the machine does; time of the cores per token
does less. `--json` prints the figures as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
from ray import serve
from ray.dashboard.modules.serve.sdk import ServeSubmissionClient
from ray.util.state import list_actors

QUESTIONS = {
    "sql": "Show the name and city of t3 where amount is over {n}, sorted by created",
    "elastic": "Find all documents where order.total is greater than {n} and status is shipped.",
    "json": 'Fix this invalid JSON:\n{{\'id\': {n}, "name": "kettle", "in_stock": true,}}',
}
_LONGEST = 120.0


class Cluster:
    """Ray on this machine, and the application on it.

    Args:
        experts: packages by name.
        base: for packages without one.
        folder: for the store.
    """

    def __init__(self, experts: dict[str, Path], base: Path | None, folder: Path) -> None:
        self.port, dashboard = _free_port(), _free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self.experts = experts
        self.replicas = 1
        self._arguments = {
            "base": base and str(base.resolve()),
            "threads": 1,
            "cache_dir": str(folder),
            "trust": "off",
        }
        ray.init(
            num_cpus=8,  # for Ray's own counts alone
            include_dashboard=True,
            dashboard_port=dashboard,
            object_store_memory=100 << 20,
            log_to_driver=False,
            logging_level="error",
        )
        self._client = ServeSubmissionClient(f"http://127.0.0.1:{dashboard}")

    def deploy(self) -> float:
        """Tell Ray which replicas and experts there are. Returns seconds until that is so."""
        begin = time.perf_counter()
        experts = {name: str(path.resolve()) for name, path in self.experts.items()}
        replicas = {
            "name": "experts",
            "num_replicas": self.replicas,
            "ray_actor_options": {"num_cpus": 1},
            "user_config": {"experts": experts},
        }
        application = {
            "name": "experts",
            "import_path": "hivellm_ort.ray:build_app",
            "args": self._arguments,
            "deployments": [replicas],
        }
        config = {"http_options": {"host": "127.0.0.1", "port": self.port}, "applications": [application]}
        earlier = serve.status().applications.get("experts")
        self._client.deploy_applications(config)
        while True:
            told = serve.status().applications.get("experts")
            if told is not None and (
                not earlier or told.last_deployed_time_s != earlier.last_deployed_time_s
            ):
                if told.status == "DEPLOY_FAILED":
                    raise SystemExit(told.message)
                if told.status == "RUNNING" and len(self.processes()) == self.replicas:
                    return time.perf_counter() - begin
            time.sleep(0.1)

    def processes(self, actor: str = "ServeReplica:experts:experts") -> list[psutil.Process]:
        """Those of the replicas, or of another kind of actor."""
        found = list_actors(filters=[("state", "=", "ALIVE")])
        pids = sorted(one.pid for one in found if one.class_name == actor)
        return [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]

    @property
    def working(self) -> dict[str, list[psutil.Process]]:
        """The processes on the way of a request."""
        return {
            "replicas": self.processes(),
            "gateway": self.processes("ServeReplica:experts:gateway"),
            "proxy": self.processes("ProxyActor"),
        }


async def stream(
    client: httpx.AsyncClient, address: str, expert: str, number: int, tokens: int
) -> AsyncIterator[str]:
    """Stream an answer: each event's data; what went wrong comes as the last, in parentheses."""
    body = {
        "model": expert,
        "messages": [{"role": "user", "content": QUESTIONS.get(expert, "{n}").format(n=number)}],
        "max_tokens": tokens,
        "regex": "[^~]{2000,}",  # so that it does not end before
        "temperature": 1,
        "seed": number,
        "stream": True,
    }
    try:
        async with client.stream("POST", f"{address}/v1/chat/completions", json=body) as response:
            if response.status_code != 200:
                yield f"(status {response.status_code})"
                return
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    yield "(error event)" if line.startswith('data: {"error"') else line
    except httpx.HTTPError as error:
        yield f"({type(error).__name__})"


async def load(
    address: str, experts: list[str], clients: int, tokens: int, seconds: float
) -> dict[str, float]:
    """Tokens per second of clients that ask again and again, and the time to the first token."""
    numbers, count, whole, first = itertools.count(), 0, 0, []
    begin = time.perf_counter()
    end = begin + seconds

    async def ask(client: httpx.AsyncClient) -> None:
        nonlocal count, whole
        while time.perf_counter() < end:
            number, asked, seen = next(numbers), time.perf_counter(), False
            async for event in stream(client, address, experts[number % len(experts)], number, tokens):
                if event.startswith("("):
                    raise SystemExit(f"a request failed: {event}")
                if not seen:
                    first.append(time.perf_counter() - asked)
                seen = True
                whole += 1
                count += time.perf_counter() < end

    async with _client(clients) as client:
        await asyncio.gather(*(ask(client) for _ in range(clients)))
    return {"tokens/s": count / seconds, "first token, median s": statistics.median(first), "tokens": whole}


async def third(cluster: Cluster, name: str, path: Path) -> float:
    """Seconds from the changed configuration to the first answer of a new expert."""
    begin = time.perf_counter()
    cluster.experts = {**cluster.experts, name: path}
    deploying = asyncio.create_task(asyncio.to_thread(cluster.deploy))
    async with _client(1) as client:
        while True:
            events = [event async for event in stream(client, cluster.address, name, 1, 4)]
            if not events[-1].startswith("("):
                break
            await asyncio.sleep(0.05)
    took = time.perf_counter() - begin
    await deploying
    return took


async def kill(cluster: Cluster, experts: list[str], clients: int, tokens: int) -> dict[str, Any]:
    """Kill a replica while clients stream: how each request ends, and when."""
    begun = 0
    victim = cluster.processes()[0]

    async def ask(client: httpx.AsyncClient, number: int) -> str:
        nonlocal begun
        count, last = 0, "(nothing)"
        async for event in stream(client, cluster.address, experts[number % len(experts)], number, tokens):
            begun += not count
            count, last = count + 1, event
        if last.startswith("("):
            return last.strip("()")
        return "cut off without a word" if '"finish_reason":null' in last else "whole answer"

    async with _client(clients) as client:
        asking = [asyncio.create_task(ask(client, number)) for number in range(clients)]
        while begun < 3 * clients // 4:  # a few may wait for a row
            await asyncio.sleep(0.02)
        victim.send_signal(signal.SIGKILL)
        killed = time.perf_counter()
        replacing = asyncio.create_task(asyncio.to_thread(_replaced, cluster, victim.pid))
        done, hanging = await asyncio.wait(asking, timeout=_LONGEST)
        ended = time.perf_counter() - killed
    replaced = await replacing
    return {
        "ends": {**Counter(task.result() for task in done), "hang": len(hanging)},
        "last end, s after the kill": ended,
        "new replica, s after the kill": replaced - killed,
    }


def _replaced(cluster: Cluster, killed: int) -> float:
    """When as many replicas as before take requests."""
    while True:
        told = serve.status().applications["experts"].deployments["experts"].replica_states
        alive = [process for process in cluster.processes() if process.pid != killed]
        if told.get("RUNNING") == len(alive) == cluster.replicas:
            return time.perf_counter()
        time.sleep(0.1)


def _core_seconds(processes: list[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def _client(clients: int) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=clients)
    return httpx.AsyncClient(timeout=httpx.Timeout(_LONGEST, connect=10), limits=limits)


def _free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port: int = bound.getsockname()[1]
        return port


@contextlib.contextmanager
def one_process(
    experts: dict[str, Path], base: Path | None, folder: Path
) -> Iterator[tuple[str, psutil.Process]]:
    """`hivellm-ort serve` with the same experts and one thread; its address and process."""
    port = _free_port()
    command = [
        sys.executable,
        "-m",
        "hivellm_ort",
        "serve",
        "--port",
        str(port),
        "--threads",
        "1",
        "--trust",
        "off",
    ]
    command += [part for name, path in experts.items() for part in ("--expert", f"{name}={path}")]
    command += ["--base", str(base)] if base is not None else []
    process = subprocess.Popen(
        command, env={**os.environ, "HIVELLM_HOME": str(folder)}, stderr=subprocess.DEVNULL
    )
    try:
        while True:
            if process.poll() is not None:
                raise SystemExit(f"hivellm-ort serve ended with status {process.returncode}")
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"http://127.0.0.1:{port}/ready").status_code == 200:
                    break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}", psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


def _named(text: str) -> tuple[str, Path]:
    name, _, path = text.partition("=")
    return name, Path(path)


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--expert", type=_named, action="append", required=True, metavar="NAME=FILE")
    parser.add_argument("--third", type=_named, required=True, metavar="NAME=FILE")
    parser.add_argument("--base", type=Path)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    experts = dict(options.expert)
    report: dict[str, Any] = {"cores": os.cpu_count(), "clients": options.clients}

    def measure(address: str, working: dict[str, list[psutil.Process]]) -> dict[str, float]:
        asyncio.run(load(address, list(experts), options.clients, options.tokens, 3))  # to warm up
        before = {name: _core_seconds(processes) for name, processes in working.items()}
        found = asyncio.run(load(address, list(experts), options.clients, options.tokens, options.seconds))
        count = found.pop("tokens")
        for name, processes in working.items():
            found[f"{name}: core ms per token"] = 1000 * (_core_seconds(processes) - before[name]) / count
        return found

    with tempfile.TemporaryDirectory() as folder:
        with one_process(experts, options.base, Path(folder)) as (address, process):
            report["hivellm-ort serve"] = measure(address, {"server": [process]})
        cluster = Cluster(dict(experts), options.base, Path(folder))
        try:
            report["first deployment, s"] = cluster.deploy()
            report["1 replica"] = measure(cluster.address, cluster.working)
            cluster.replicas = 2
            report["1 to 2 replicas, s"] = cluster.deploy()
            report["2 replicas"] = measure(cluster.address, cluster.working)
            before = [process.pid for process in cluster.processes()]
            report["third expert, s to its first answer"] = asyncio.run(third(cluster, *options.third))
            report["the same processes after it"] = before == [process.pid for process in cluster.processes()]
            report["MiB of a replica"] = [process.memory_info().rss >> 20 for process in cluster.processes()]
            report["a replica is killed"] = asyncio.run(
                kill(cluster, list(experts), options.clients, 8 * options.tokens)
            )
        finally:
            ray.shutdown()
    if options.json:
        print(json.dumps(report))
        return
    for name, value in report.items():
        print(f"{name:40} {_shown(value)}")


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_shown(one)}" for name, one in value.items())
    return f"{value:.2f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
