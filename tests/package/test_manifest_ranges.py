"""What a manifest suggests and the reader keeps is what a generation takes: no package loads that cannot answer."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from package_samples import changed

from hivellm_ort import ManifestError, ranges
from hivellm_ort.decoding.params import SamplingParams
from hivellm_ort.decoding.stops import StopMatcher
from hivellm_ort.package.manifest import ExpertManifest

DECODING = "/training/decoding"
NUMBERS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
_NUMBER = st.one_of(
    st.floats(),
    st.integers(),
    st.integers(0, 100),
    st.floats(0, 2),
    st.sampled_from(
        [0, 1, 1e-9, 1e-4, 1e6, 2e6, 1e-6, 9e-7, 1e-320, 5e-324, 1e38, 1e300, 2**70, -(2**70), 10**400]
    ),
)


def _manifest(key: str, value: Any, *, strict: bool = False) -> ExpertManifest:
    return ExpertManifest.from_dict(changed(f"{DECODING}/{key}", value), where="m.json", strict=strict)


@given(st.sampled_from(NUMBERS), _NUMBER)
def test_what_is_kept_is_taken(key: str, value: float) -> None:
    """A number is left unset with one warning, or a generation takes it, with no word about it."""
    manifest = _manifest(key, value)
    kept = getattr(manifest.decoding, key)
    if kept is None:
        (warning,) = manifest.warnings
        assert warning.startswith(f"m.json: {DECODING}/{key}: ")
    else:
        assert (value, ()) == (kept, manifest.warnings)
        SamplingParams(**{key: kept})


_STOP = st.one_of(st.just(""), st.text("a\n;", max_size=3), st.integers(1, 2000).map("x".__mul__))


@given(st.lists(_STOP, max_size=90))
def test_stops_that_are_kept_are_taken(stops: list[str]) -> None:
    """Every stop sequence is kept or named in a warning, and a generation takes the kept ones."""
    manifest = _manifest("stop_sequences", stops)
    usable = [stop for stop in stops if 1 <= len(stop) <= 1024]
    kept = manifest.decoding.stop_sequences
    assert tuple(usable[:64]) == kept
    StopMatcher((), kept)
    faults = {
        f"{DECODING}/stop_sequences/{at}" for at, stop in enumerate(stops) if not 1 <= len(stop) <= 1024
    }
    faults |= {f"{DECODING}/stop_sequences"} if len(usable) > 64 else set()
    named = {line.split(": ")[1] for line in manifest.warnings if line.count(": ") > 1}
    assert named == faults or len(manifest.warnings) > 50


BAD = [
    ("temperature", 1e-9),
    ("temperature", 1e300),
    ("repetition_penalty", 1e-320),
    ("repetition_penalty", 1e39),
    ("top_p", 0),
    ("top_k", -1),
    ("top_k", -(2**70)),
    ("min_p", 1.0001),
    ("max_new_tokens", 0),
    ("max_new_tokens", 10**400),
    ("temperature", float("nan")),
    ("stop_sequences", ["x" * 2000]),
    ("stop_sequences", [";", ""]),
    ("stop_sequences", [str(number) for number in range(65)]),
]


@pytest.mark.parametrize(("key", "value"), BAD)
def test_authors_are_refused(key: str, value: Any) -> None:
    """Strict reading refuses what tolerant reading leaves out with a warning. Both have the same pointer."""
    (warning,) = _manifest(key, value).warnings
    with pytest.raises(ManifestError) as caught:
        _manifest(key, value, strict=True)
    assert f"m.json: {warning.split(': ')[1]}: " in str(caught.value)


def test_a_hole_in_the_stops() -> None:
    """The index in a warning is the one in the file, even if earlier items are left out."""
    manifest = _manifest("stop_sequences", [None, 5, ";", "x" * 1025])
    assert (";",) == manifest.decoding.stop_sequences
    assert [f"{DECODING}/stop_sequences/{at}" for at in (1, 3)] == [
        line.split(": ")[1] for line in manifest.warnings
    ]


def test_the_schema_has_the_same_ranges() -> None:
    """An author's editor knows the bounds that the reader has."""
    text = (
        files("hivellm_ort.package").joinpath("schemas", "manifest-shared.json").read_text(encoding="utf-8")
    )
    fields = json.loads(text)["$defs"]["decoding"]["properties"]
    penalty, stops = fields["repetition_penalty"], fields["stop_sequences"]
    assert (ranges.MIN_PENALTY, ranges.MAX_PENALTY) == (penalty["minimum"], penalty["maximum"])
    assert (ranges.MAX_PUBLISHED_STOPS, ranges.MAX_STOP_LENGTH) == (
        stops["maxItems"],
        stops["items"]["maxLength"],
    )
