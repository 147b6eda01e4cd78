"""Which replica answers a request: one that has its expert, and has answered what begins alike."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from ray.serve.request_router import FIFOMixin, MultiplexMixin, PendingRequest, RequestRouter, RunningReplica

from hivellm_ort.serving.batch import DEFAULT_BATCH_SIZE

__all__ = ["ExpertRouter"]


class ExpertRouter(FIFOMixin, MultiplexMixin, RequestRouter):
    """Ray's routing by multiplexed models, with two differences.

    Among the replicas that hold an expert, a request goes where requests with its session id went before: the
    gateway makes the id from the beginning of the prompt, whose keys and values that replica may have kept. And a
    replica is passed over that has `slack` requests more than another, or no free row where another has one: an
    expert that many ask is loaded by more replicas.

    Nothing is remembered: the replica of a session id is the one with the highest hash of both (rendezvous hashing),
    so all gateways choose alike.
    """

    def initialize_state(self, slack: int = 4, rows: int = DEFAULT_BATCH_SIZE) -> None:
        """Take the `request_router_kwargs`.

        Args:
            slack: how many requests more than the least busy replica make one be passed over.
            rows: of a batch; further requests wait.
        """
        self._slack, self._rows = slack, rows

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Groups of replicas; Ray takes the least busy one that has room, of the first group with such a one."""
        if pending_request is None:
            return [candidate_replicas]
        pending_request.routing_context.should_backoff = True
        expert, session = pending_request.metadata.multiplexed_model_id, pending_request.metadata.session_id
        busy = {replica.replica_id: self._busy(replica) for replica in candidate_replicas}
        least = min(busy.values(), default=0)
        most = min(least + self._slack, self._rows) if least < self._rows else least + self._slack
        near = [replica for replica in candidate_replicas if busy[replica.replica_id] < most]
        holders = [replica for replica in near if expert in replica.multiplexed_model_ids]
        # A cold expert has one home, so that requests which come together load it once.
        first = _home(holders, session) if holders else _home(near, expert)
        return [group for group in (first, holders, near, candidate_replicas) if group]

    def _busy(self, replica: RunningReplica) -> int:
        return self.replica_queue_len_cache.get(replica.replica_id) or 0


def _home(replicas: Sequence[RunningReplica], key: str) -> list[RunningReplica]:
    """The one replica of a key; all of them where there is no key."""
    if not key or not replicas:
        return list(replicas)
    return [max(replicas, key=lambda replica: _rank(replica.replica_id.unique_id, key))]


def _rank(replica: str, key: str) -> bytes:
    return hashlib.blake2b(f"{replica}\0{key}".encode(), digest_size=8).digest()
