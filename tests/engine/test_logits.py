"""Every form, run by the decoder, gives the logits of the `cpu` form in float32."""

from __future__ import annotations

import numpy as np
import pytest
from forms import FORMS, TOLERANCES, Bundles, course, difference, tokens

REFERENCE = ("cpu", "fp32")
# The adapters here are as large as the model: their keys are beyond what 8 bits are measured for.
FLOATS = [form for form in FORMS[1:] if "+" not in form[1]]


@pytest.fixture(scope="module")
def expected(bundles: Bundles) -> list[np.ndarray]:
    """The logits of the course of requests, by the form that all others are measured against."""
    engine = bundles.engine(*REFERENCE)
    return course(engine.decoder(adapters=True), bundles.adapters(*REFERENCE, engine))


@pytest.mark.parametrize("form", FLOATS, ids="-".join)
def test_course(form: tuple[str, str], bundles: Bundles, expected: list[np.ndarray]) -> None:
    """Prompts, steps, guesses, moves and kept prefixes give the same logits, as far as the float type goes."""
    engine = bundles.engine(*form)
    actual = course(engine.decoder(adapters=True), bundles.adapters(*form, engine))
    assert difference(expected, actual) < TOLERANCES[form[1]]


@pytest.mark.parametrize("form", FORMS[1:], ids="-".join)
def test_base_alone(form: tuple[str, str], bundles: Bundles) -> None:
    """The graph without adapters: a prompt and eight steps."""
    prompt, rest = tokens(90, 1), tokens(8, 2)
    logits = []
    for each in (REFERENCE, form):
        decoder = bundles.engine(*each).decoder(adapters=False)
        decoder.start(0, None, 100)
        logits.append([decoder.forward(prompt).copy(), *(decoder.forward([token]).copy() for token in rest)])
    assert difference(*logits) < TOLERANCES[form[1]]


def test_an_adapter_matters(bundles: Bundles) -> None:
    """The tolerances are far below what an adapter changes."""
    engine, prompt, found = bundles.engine(*REFERENCE), tokens(20, 1), {}
    for name, adapter in bundles.adapters(*REFERENCE, engine).items():
        decoder = engine.decoder(adapters=True)
        decoder.start(0, adapter, 64)
        found[name] = decoder.forward(prompt).copy()
    for one, other in (("lora", "dora"), ("lora", "none"), ("dora", "none")):
        assert np.abs(found[one] - found[other]).max() > 1
