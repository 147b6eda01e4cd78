"""Keys and values in 8 bits, as the decoder has them: what a row gives does not depend on how it was read."""

from __future__ import annotations

import numpy as np
import pytest
from forms import Bundles, tokens

from hivellm_ort import ProviderError
from hivellm_ort.engine.decoder import Decoder
from hivellm_ort.engine.environment import import_onnxruntime

FORM = ("cpu", "fp32+int8")
PROMPT = tokens(200, 1)


def begun(bundles: Bundles) -> tuple[Decoder, object]:
    """A decoder, and the LoRA adapter."""
    engine = bundles.engine(*FORM)
    return engine.decoder(adapters=True), bundles.adapters(*FORM, engine)["lora"]


def read(decoder: Decoder, adapter: object, *cuts: int) -> np.ndarray:
    """The logits after the prompt, read in parts, and after four steps."""
    decoder.start(0, adapter, 220)  # type: ignore[arg-type]
    for begin, end in zip((0, *cuts), (*cuts, len(PROMPT)), strict=True):
        logits = decoder.append(0, PROMPT[begin:end])
    return np.stack([logits[0].copy(), *(decoder.append(0, [token])[0].copy() for token in tokens(4, 2))])


@pytest.mark.parametrize(
    "cuts", [(45,), (150,), range(10, 200, 10), range(6, 200, 6), range(1, 200)], ids=len
)
def test_parts(cuts: tuple[int, ...], bundles: Bundles) -> None:
    """Products for many tokens and the operator for few, down to single ones, read and write the same cache."""
    decoder, adapter = begun(bundles)
    whole = read(decoder, adapter)
    parts = read(decoder, adapter, *cuts)
    # A value between two of 8 bits may fall the other way.
    assert np.abs(whole - parts).mean() < 2e-3
    assert np.abs(whole - parts).max() < 0.1


def test_a_kept_prefix(bundles: Bundles) -> None:
    """What is kept of a row is what another one would have read."""
    decoder, adapter = begun(bundles)
    whole = read(decoder, adapter)
    decoder.save_prefix(0, PROMPT)
    taken = decoder.start(0, adapter, 220, PROMPT)  # type: ignore[arg-type]
    assert len(PROMPT) - 2 == taken
    logits = decoder.append(0, PROMPT[taken:])
    assert np.abs(whole[0] - logits[0]).max() < 1e-4


def test_rows_together(bundles: Bundles) -> None:
    """Rows of a batch step as each would alone."""
    decoder, adapter = begun(bundles)
    prompts = [tokens(count, count) for count in (70, 33, 7)]
    alone = []
    for prompt in prompts:
        decoder.start(0, adapter, 220)  # type: ignore[arg-type]
        decoder.append(0, prompt)
        alone.append([decoder.append(0, [token])[0].copy() for token in tokens(4, 3)])
    decoder.free_rows()
    for row, prompt in enumerate(prompts):
        decoder.start(row, adapter, 120)  # type: ignore[arg-type]
        decoder.append(row, prompt)
    together = [decoder.step([token] * len(prompts)).copy() for token in tokens(4, 3)]
    assert np.abs(np.stack(alone, axis=1) - np.stack(together)).max() < 1e-4


def test_a_quarter_of_the_memory(bundles: Bundles) -> None:
    """Keys and values take one byte each."""
    sizes = []
    for form in (FORM, ("cpu", "fp32")):
        decoder = bundles.engine(*form).decoder(adapters=False)
        decoder.start(0, None, 200)
        sizes.append(decoder.nbytes)
    assert 4 * sizes[0] == sizes[1]


def test_an_older_onnxruntime(bundles: Bundles, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime 1.27 and older would fail in the middle of a run: refused when the base is opened."""
    monkeypatch.setattr(import_onnxruntime(), "__version__", "1.24.4")
    with pytest.raises(
        ProviderError, match=r"'tiny' keeps .* needs ONNX Runtime 1\.28, and 1\.24\.4 is inst"
    ):
        bundles.engine(*FORM)
    monkeypatch.setattr(import_onnxruntime(), "__version__", "1.28.0")
    bundles.engine(*FORM)
