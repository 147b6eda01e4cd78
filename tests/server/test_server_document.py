"""`docs/server.md` says what there is."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from hivellm_ort.server import ServerLimits
from hivellm_ort.server.errors import ERRORS
from hivellm_ort.server.schemas.chat import ChatBody
from hivellm_ort.server.schemas.common import REFUSED
from hivellm_ort.server.schemas.completions import CompletionBody
from hivellm_ort.server.schemas.decisions import DecisionsBody
from hivellm_ort.server.schemas.responses import ResponsesBody

TEXT = (Path(__file__).parents[2] / "docs" / "server.md").read_text(encoding="utf-8")
WORDS = set(re.findall(r"`([a-z_]+)[`:.]", TEXT))


@pytest.mark.parametrize("body", [ChatBody, CompletionBody, ResponsesBody, DecisionsBody])
def test_every_field_is_described(body: type[ChatBody]) -> None:
    """Fields that are taken, by the names that clients use."""
    names = {field.alias or name for name, field in body.model_fields.items()}
    assert set() == names - WORDS


def test_every_refused_field_is_described() -> None:
    """Fields that are refused."""
    assert set() == set(REFUSED) - WORDS


def test_every_limit_is_described() -> None:
    """Each limit has its option and its default."""
    sizes = {4 << 20: "4 MiB", 64 << 10: "64 KiB"}
    for limit in dataclasses.fields(ServerLimits):
        default = sizes.get(limit.default, f"{limit.default:g}")
        unit = " s" if isinstance(limit.default, float) else ""
        assert f"| `--{limit.name.replace('_', '-')}` | {default}{unit} |" in TEXT


def test_every_status_is_described() -> None:
    """Each status of an error is in the table."""
    rows = " ".join(re.findall(r"^\| ([\d, ]+) \|", TEXT, re.MULTILINE))
    assert {str(status) for status in ERRORS} - {"405", "default"} <= set(re.findall(r"\d+", rows))
