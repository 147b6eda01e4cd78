"""Chooses the replica of a request: one with its expert in memory and its prompt prefix in the cache."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from ray.serve.request_router import FIFOMixin, MultiplexMixin, PendingRequest, RequestRouter, RunningReplica

from hivellm_ort.serving.batch import DEFAULT_BATCH_SIZE

__all__ = ["ExpertRouter"]


class ExpertRouter(FIFOMixin, MultiplexMixin, RequestRouter):
    """Ray's routing by multiplexed models, with two differences.

    First, requests with the same session id go to the same replica among those with the expert in memory. The gateway
    makes the id from the beginning of the prompt, so that replica probably has its keys and values in the cache.
    Second, busy replicas are skipped: those with `slack` requests more than the least busy one, or without a free row
    while another has one. So more replicas load an expert with many requests.

    The router has no state. The replica of a session id is the one with the highest hash of both (rendezvous
    hashing), so all gateways choose the same.
    """

    def initialize_state(self, slack: int = 4, rows: int = DEFAULT_BATCH_SIZE) -> None:
        """Set the `request_router_kwargs`.

        Args:
            slack: A replica with this many requests more than the least busy one is skipped.
            rows: The rows of a batch. Further requests wait.
        """
        self._slack, self._rows = slack, rows

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Return groups of replicas. Ray takes the least busy replica of the first group that has a free one."""
        if pending_request is None:
            return [candidate_replicas]
        pending_request.routing_context.should_backoff = True
        expert, session = pending_request.metadata.multiplexed_model_id, pending_request.metadata.session_id
        busy = {replica.replica_id: self._busy(replica) for replica in candidate_replicas}
        least = min(busy.values(), default=0)
        most = min(least + self._slack, self._rows) if least < self._rows else least + self._slack
        near = [replica for replica in candidate_replicas if busy[replica.replica_id] < most]
        holders = [replica for replica in near if expert in replica.multiplexed_model_ids]
        # An expert that is nowhere in memory has one preferred replica: simultaneous requests load it once.
        first = _preferred(holders, session) if holders else _preferred(near, expert)
        return [group for group in (first, holders, near, candidate_replicas) if group]

    def _busy(self, replica: RunningReplica) -> int:
        return self.replica_queue_len_cache.get(replica.replica_id) or 0


def _preferred(replicas: Sequence[RunningReplica], key: str) -> list[RunningReplica]:
    """Return the one replica of a key; all replicas if there is no key."""
    if not key or not replicas:
        return list(replicas)
    return [max(replicas, key=lambda replica: _rank(replica.replica_id.unique_id, key))]


def _rank(replica: str, key: str) -> bytes:
    return hashlib.blake2b(f"{replica}\0{key}".encode(), digest_size=8).digest()
