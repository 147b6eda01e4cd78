"""Requests that schemathesis makes from `/openapi.json`, sound ones and others."""

from __future__ import annotations

from typing import Any

import pytest

schemathesis = pytest.importorskip("schemathesis", reason="needs schemathesis")

from hypothesis import HealthCheck, Phase, seed, settings
from schemathesis.checks import load_all_checks
from schemathesis.specs.openapi.checks import positive_data_acceptance
from serving_command import Command

from hivellm_ort import ExpertManager
from hivellm_ort.server import create_app

load_all_checks()


with ExpertManager() as _empty:
    SCHEMA = schemathesis.openapi.from_dict(create_app(_empty).openapi())


@SCHEMA.hook
def map_body(_context: Any, body: Any) -> Any:
    """Have requests name an expert that is there."""
    if isinstance(body, dict) and isinstance(body.get("model"), str):
        body["model"] = "sql"
    return body


@seed(1)
@SCHEMA.parametrize()
@settings(
    max_examples=10,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_every_response_is_described(case: Any, command: Command) -> None:
    """No request makes the server fail, and status, type and body of each response are those of the document.

    One check is left out: that every request which fits the document is answered. What fields may not have
    together, and limits of the operator, are in no schema.
    """
    case.call_and_validate(base_url=command.address, excluded_checks=[positive_data_acceptance])
