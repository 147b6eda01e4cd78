"""What every test gets."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

# Shared machines are slow at odd moments: a deadline would fail tests that are right.
settings.register_profile("project", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("project")


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables that change how the library behaves; the cache's place stays, for downloads are kept there."""
    for name in ("HF_HOME", "HIVELLM_CACHE_SIZE", "TQDM_DISABLE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True, scope="session")
def _exports_not_verified() -> Iterator[None]:
    """Exports are verified where a test asks for it, with `verify=True`: hundreds of them would take minutes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hivellm_export.verify.report.MOST_SECONDS", 0.0)
        yield
