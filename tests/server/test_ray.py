"""The application with Ray Serve, on golden packages: two replicas on this machine."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from api_calls import QUESTION, chat, chunks, error_of
from support.golden import BASE, golden

pytest.importorskip("ray.serve", reason="needs the extra ray")  # the examples have a folder `ray`

from hivellm_ort import ExpertManager

pytestmark = pytest.mark.filterwarnings("ignore")  # of Ray's own code
_SECONDS = 60


class Cluster:
    """Ray on this machine, and two replicas.

    Args:
        folder: for the store, and the packages that come later.
    """

    def __init__(self, folder: Path) -> None:
        import ray
        from ray.dashboard.modules.serve.sdk import ServeSubmissionClient

        self.folder = folder
        self.port = free_port()
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=_SECONDS)
        self.experts = {"sql": golden("sql"), "json": golden("json")}
        dashboard = free_port()
        ray.init(
            num_cpus=4,
            include_dashboard=True,
            dashboard_port=dashboard,
            object_store_memory=80 << 20,
            log_to_driver=False,
            logging_level="error",
        )
        self._submission = ServeSubmissionClient(f"http://127.0.0.1:{dashboard}")

    def deploy(self, **experts: Path) -> None:
        """Give the cluster a configuration with more experts, and wait until it holds."""
        from ray import serve

        self.experts.update(experts)
        application = {
            "name": "experts",
            "import_path": "hivellm_ort.ray:build_app",
            "args": {
                "base": str(BASE),
                "trust": "off",
                "cache_dir": str(self.folder),
                "limits": {"max_n": 2},
            },
            "deployments": [
                {
                    "name": "experts",
                    "num_replicas": 2,
                    "ray_actor_options": {"num_cpus": 0.1},
                    "user_config": {"experts": {name: str(path) for name, path in self.experts.items()}},
                }
            ],
        }
        options = {"host": "127.0.0.1", "port": self.port}
        earlier = serve.status().applications.get("experts")
        self._submission.deploy_applications({"http_options": options, "applications": [application]})

        def is_running() -> bool:
            told = serve.status().applications.get("experts")
            if told is None or (earlier and told.last_deployed_time_s == earlier.last_deployed_time_s):
                return False
            assert told.status != "DEPLOY_FAILED", told.message
            return bool(told.status == "RUNNING" and len(self.processes()) == 2)

        wait_for(is_running)

    def processes(self) -> list[int]:
        """The ids of the replicas' processes."""
        from ray.util.state import list_actors

        found = list_actors(filters=[("state", "=", "ALIVE")])
        return sorted(one.pid for one in found if one.class_name == "ServeReplica:experts:experts")

    def metric(self, name: str) -> dict[str, float]:
        """The samples of a metric by their labels."""
        lines = self.client.get("/metrics").text.splitlines()
        found = [
            line.removeprefix(f"hivellm_ort_{name}")
            for line in lines
            if line.startswith(f"hivellm_ort_{name}{{")
        ]
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in found}


def free_port() -> int:
    """A port that nothing uses."""
    import socket

    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


def wait_for(happened: Callable[[], bool]) -> None:
    """Return when it has, and fail where it does not in a minute."""
    end = time.monotonic() + _SECONDS
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two replicas with the experts `sql` and `json`."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("HIVELLM_API_KEYS", "")
        cluster = Cluster(tmp_path_factory.mktemp("ray"))
        try:
            cluster.deploy()
            yield cluster
        finally:
            cluster.client.close()
            ray.shutdown()


def ask(cluster: Cluster, **fields: Any) -> httpx.Response:
    """Ask for a chat completion."""
    return cluster.client.post("/v1/chat/completions", json=chat(**fields))


def test_the_answer_is_that_of_one_machine(cluster: Cluster, manager: ExpertManager) -> None:
    """Whole or streamed, an answer of a replica is the manager's, and errors are as they are there."""
    expected = manager.generate("sql", QUESTION, max_tokens=8, temperature=0.9, seed=3)
    whole = ask(cluster, max_tokens=8, temperature=0.9, seed=3)
    assert (200, "sql") == (whole.status_code, whole.headers["x-hivellm-expert"])
    assert expected.text == whole.json()["choices"][0]["message"]["content"]
    streamed = chunks(ask(cluster, max_tokens=8, temperature=0.9, seed=3, stream=True).text)
    assert expected.text == "".join(one["choices"][0]["delta"].get("content", "") for one in streamed)
    assert {"base", "sql", "json"} <= {one["id"] for one in cluster.client.get("/v1/models").json()["data"]}
    assert (404, "model_not_found") == failure(ask(cluster, model="nosuch"))
    assert (400, "invalid_value") == failure(ask(cluster, n=3))
    assert (403, "loading_is_off") == failure(cluster.client.post("/v1/load_lora_adapter", json={}))


def test_an_expert_has_one_replica_while_that_has_time(cluster: Cluster) -> None:
    """Requests for an expert, one after the other, go to the same replica; that of another may be another."""
    before = cluster.metric("completion_tokens_total")
    for _ in range(6):
        assert 200 == ask(cluster, model="json", max_tokens=2).status_code
    grown = {
        labels: value - before.get(labels, 0)
        for labels, value in cluster.metric("completion_tokens_total").items()
        if 'expert="json"' in labels and value > before.get(labels, 0)
    }
    assert [12] == list(grown.values())


def test_an_expert_is_added_and_replaced_without_a_restart(cluster: Cluster, manager: ExpertManager) -> None:
    """A changed configuration reaches the replicas that run; a broken package changes nothing but its own name."""
    before = cluster.processes()
    assert (404, "model_not_found") == failure(ask(cluster, model="third"))
    copy, broken = cluster.folder / "third.expert", cluster.folder / "broken.expert"
    copy.write_bytes(golden("json").read_bytes())
    broken.write_bytes(copy.read_bytes()[:1000])
    cluster.deploy(third=copy, fourth=broken)
    json_text = manager.generate("json", QUESTION, max_tokens=8).text
    assert [json_text] * 4 == [answer(ask(cluster, model="third", max_tokens=8)) for _ in range(4)]
    told = ask(cluster, model="fourth")
    assert (503, "model_unavailable") == failure(told)
    assert str(cluster.folder) not in told.text
    assert [1, 1] == list(cluster.metric("failed_experts").values())
    cluster.deploy(third=golden("sql"), fourth=copy)
    sql_text = manager.generate("sql", QUESTION, max_tokens=8).text
    assert [sql_text] * 4 == [answer(ask(cluster, model="third", max_tokens=8)) for _ in range(4)]
    assert json_text == answer(ask(cluster, model="fourth", max_tokens=8))
    assert before == cluster.processes()


def test_a_client_that_leaves_ends_its_answer(cluster: Cluster) -> None:
    """The replica stops generating, as it does on one machine."""
    cancelled = total(cluster, "cancelled")
    with cluster.client.stream(
        "POST", "/v1/chat/completions", json=chat(max_tokens=450, stream=True)
    ) as response:
        next(response.iter_lines())
    wait_for(lambda: total(cluster, "cancelled") == cancelled + 1)


def test_requests_end_when_a_replica_dies(cluster: Cluster) -> None:
    """Each stream ends complete or with an error to retry. Complete answers come from another replica."""

    def stream(number: int) -> str:
        events = chunks(
            ask(cluster, model=["sql", "json"][number % 2], max_tokens=450, stream=True, seed=number).text
        )
        if "error" in events[-1]:
            return str(events[-1]["error"]["code"])
        return "answer" if events[-1]["choices"][0]["finish_reason"] else "cut off"

    def whole(number: int) -> str:
        return "answer" if ask(cluster, max_tokens=300, seed=number).status_code == 200 else "failed"

    with ThreadPoolExecutor(16) as threads:
        streams = [threads.submit(stream, number) for number in range(12)]
        wholes = [threads.submit(whole, number) for number in range(4)]
        wait_for(lambda: sum(cluster.metric("active_requests").values()) >= 8)
        os.kill(busiest(cluster), signal.SIGKILL)
        ends = [one.result(_SECONDS) for one in streams]
        assert ["answer"] * 4 == [one.result(_SECONDS) for one in wholes]
    assert {"replica_lost"} <= set(ends) <= {"answer", "replica_lost"}
    wait_for(lambda: len(cluster.processes()) == 2)
    assert 200 == ask(cluster, max_tokens=2).status_code


class _Queues:
    """How many requests each replica has, as Ray's cache tells."""

    def __init__(self, **busy: int) -> None:
        self.get = busy.get


def chosen(expert: str, session: str, loaded: dict[str, set[str]], **busy: int) -> list[list[str]]:
    """The groups of replicas that the router offers Ray, by their names."""
    from hivellm_ort.ray.router import ExpertRouter

    replicas = [
        SimpleNamespace(replica_id=_Id(name), multiplexed_model_ids=loaded.get(name, set())) for name in busy
    ]
    router = object.__new__(ExpertRouter)
    router.initialize_state()
    router._replica_queue_len_cache = _Queues(**busy)
    metadata = SimpleNamespace(multiplexed_model_id=expert, session_id=session)
    request = SimpleNamespace(metadata=metadata, routing_context=SimpleNamespace(should_backoff=False))
    groups = asyncio.run(router.choose_replicas(replicas, request))
    return [sorted(replica.replica_id for replica in group) for group in groups]


class _Id(str):
    """The id of a replica."""

    __slots__ = ()

    @property
    def unique_id(self) -> str:
        """As Ray has it."""
        return str(self)


@pytest.mark.parametrize(
    ("loaded", "busy", "first"),
    [
        ({"b": {"sql"}}, {"a": 0, "b": 3, "c": 0}, {"b"}),
        ({"b": {"sql"}}, {"a": 0, "b": 4, "c": 0}, {"a", "c"}),
        ({"b": {"sql"}, "c": {"sql"}}, {"a": 0, "b": 1, "c": 1}, {"b", "c"}),
        ({"b": {"sql"}}, {"a": 7, "b": 8, "c": 7}, {"a", "c"}),
        ({"b": {"sql"}}, {"a": 8, "b": 11, "c": 8}, {"b"}),
        ({}, {"a": 0, "b": 0, "c": 0}, {"a", "b", "c"}),
    ],
    ids=[
        "has it",
        "has more to do",
        "two have it",
        "has no free row",
        "none has a free row",
        "nobody has it",
    ],
)
def test_which_replica_a_request_goes_to(
    loaded: dict[str, set[str]], busy: dict[str, int], first: set[str]
) -> None:
    """To one that has the expert and time; always the same for prompts that begin alike; any other may help out."""
    found = [chosen("sql", session, loaded, **busy) for session in ("x", "x", "y", "z")]
    assert found[0] == found[1]
    assert all(len(groups[0]) == 1 and set(groups[0]) <= first for groups in found)
    assert [sorted(busy)] * 4 == [groups[-1] for groups in found]


def test_beginnings_share_a_replica_and_others_are_spread() -> None:
    """Of two replicas with an expert each gets some beginnings, and one beginning goes to one of them."""
    both = {"a": {"sql"}, "b": {"sql"}}
    homes = [chosen("sql", str(number), both, a=0, b=0)[0][0] for number in range(32)]
    assert {"a", "b"} == set(homes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bass": "x"}, "bass"),
        ({"experts": {"auto": "x.expert"}}, "'auto' cannot be the name of an expert"),
        ({"limits": {"max_tokns": 1}}, "the limit 'max_tokns' does not exist"),
        ({"limits": {"max_n": 0}}, "max_n is 0"),
        ({"limits": {"max_n": "3"}}, "max_n is str"),
    ],
)
def test_arguments_are_refused_by_name(arguments: dict[str, Any], message: str) -> None:
    """What is not understood in the configuration is no deployment."""
    from pydantic import ValidationError

    from hivellm_ort.ray import build_app

    with pytest.raises(ValidationError, match=message):
        build_app(arguments)


def busiest(cluster: Cluster) -> int:
    """The process of a replica that generates."""
    from ray.util.state import list_actors

    active = cluster.metric("active_requests")
    labels = max(active, key=lambda one: active[one])
    found = list_actors(filters=[("state", "=", "ALIVE")])
    return next(one.pid for one in found if one.name and one.name.endswith(labels.split('"')[1]))


def total(cluster: Cluster, reason: str) -> float:
    """Answers that ended for a reason."""
    found = cluster.metric("requests_total")
    return sum(value for labels, value in found.items() if f'finish_reason="{reason}"' in labels)


def answer(response: httpx.Response) -> str:
    """The text of an answer."""
    assert 200 == response.status_code, response.text
    return str(response.json()["choices"][0]["message"]["content"])


def failure(response: httpx.Response) -> tuple[int, str]:
    """Status and code of an error."""
    return response.status_code, error_of(response)["code"]
