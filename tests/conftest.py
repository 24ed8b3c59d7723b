"""What every test gets: a private cache folder, fixed seeds, few threads; and shared fixtures."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

_SHARED = Path(__file__).resolve().parents[2] / "shared"

Golden = tuple[dict[str, Any], dict[str, np.ndarray]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked `gpu` where there is none, saying so."""
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs an NVIDIA GPU; torch.cuda.is_available() is false")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


@pytest.fixture(scope="session", autouse=True)
def _environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the user's cache out of reach, of subprocesses too, and tiny tensors on few threads."""
    # On a machine of many cores, handing these sizes to all of them costs more than it saves.
    torch.set_num_threads(min(4, torch.get_num_threads()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTUNIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _seeds() -> None:
    """Give every test the same random numbers, whichever tests ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder of reference numbers and real images beside the checkout, or skip."""
    if not _SHARED.is_dir():
        pytest.skip(f"needs the reference data in {_SHARED}, which is not there")
    return _SHARED


@pytest.fixture(scope="session")
def load_golden(shared: Path) -> Callable[[str], Golden]:
    """Return a loader of golden cases: name -> (the case's JSON, its arrays, all float64)."""

    def load(name: str) -> Golden:
        case = json.loads((shared / "golden" / f"{name}.json").read_text(encoding="utf-8"))
        with np.load(shared / "golden" / f"{name}.npz") as arrays:
            return case, dict(arrays)

    return load
