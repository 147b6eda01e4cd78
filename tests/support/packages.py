"""Golden packages for tests of the runtime and of managers."""

from __future__ import annotations

import pytest
from golden.sources import BASES, save_base

from hivellm_ort import Expert
from support.golden import BASE, adapter_folder, golden, with_base
from support.running import PROMPT, Packages

__all__ = ["packages"]


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Packages:
    """Experts on two tiny bases, as packages; see `Packages`."""
    work = tmp_path_factory.mktemp("runtime")
    cache = work / "cache"
    lora, dora, ia3 = (with_base(name, work / f"{name}.expert") for name in ("lora", "dora", "ia3"))
    for name in ("lora", "dora", "ia3"):
        adapter_folder(name, work / name)
    adapter_folder("windowed", work / "other")
    with Expert.load(lora, cache_dir=cache, threads=1) as expert:
        eos = expert.generate(PROMPT, max_tokens=40).tokens[20]
    ends = f'{{\n  "eos_token_id": [\n    2,\n    {eos}\n  ]\n}}\n'.encode()
    return Packages(
        cache=cache,
        model=save_base(work / "tiny", BASES["tiny"]),
        base=BASE,
        lora=lora,
        dora=dora,
        ia3=ia3,
        lora_folder=work / "lora",
        ending=with_base("lora", work / "ending.expert", files={"generation_config.json": ends}),
        eos=eos,
        merged=golden("merged"),
        short=golden("short"),
    )
