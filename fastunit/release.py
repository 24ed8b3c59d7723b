"""Checkpoint files in the 2018 release's layout: {"a": state_dict, "b": state_dict}."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from fastunit import files
from fastunit.errors import CheckpointError
from fastunit.unit import UNIT


def save_networks(unit: UNIT, folder: Path, iteration: int) -> None:
    """Write gen_%08d.pt and dis_%08d.pt."""
    generators = {"a": unit.gen_a.state_dict(), "b": unit.gen_b.state_dict()}
    discriminators = {"a": unit.dis_a.state_dict(), "b": unit.dis_b.state_dict()}
    files.save(generators, folder / f"gen_{iteration:08d}.pt")
    files.save(discriminators, folder / f"dis_{iteration:08d}.pt")


def load_networks(unit: UNIT, path: Path, expect: str | None = None) -> None:
    """Load a gen_*.pt or dis_*.pt (told apart by their keys) into both domains' networks.

    With `expect` ("gen" or "dis") the other kind is refused.

    Raises CheckpointError when the file does not fit the networks, or when it holds different
    values for blocks that the networks share.
    """
    state = files.read(path)
    domains = [state.get(name) for name in ("a", "b")] if isinstance(state, dict) else []
    if not domains or not all(isinstance(domain, dict) for domain in domains):
        raise CheckpointError(f"{path} does not hold the two domains 'a' and 'b'")
    kind = "dis" if any(str(key).startswith("cnns.") for key in state["a"]) else "gen"
    if expect not in (None, kind):
        raise CheckpointError(f"{path} holds {kind} networks, but {expect} ones are needed")
    networks = {domain: getattr(unit, f"{kind}_{domain}") for domain in ("a", "b")}
    for domain, network in networks.items():
        _check_fit(network, state[domain], f"{path} ({domain})")
    if kind == "gen":
        _check_shared(unit, state, path)
    for domain, network in networks.items():
        network.load_state_dict(state[domain])


def load_state(module: nn.Module, state: dict, source: str) -> None:
    """Load a state_dict strictly; a misfit is a CheckpointError with the first differences."""
    _check_fit(module, state, source)
    module.load_state_dict(state)


def _check_fit(module: nn.Module, state: dict, source: str) -> None:
    """Raise CheckpointError with the first differences between a network and a state_dict."""
    own = module.state_dict()
    wrong = [f"{key} is missing" for key in own if key not in state]
    wrong += [f"{key} is not one of the network's" for key in state if key not in own]
    wrong += [
        f"{key} is not a tensor" for key in own if not isinstance(state.get(key, own[key]), Tensor)
    ]
    wrong += [
        f"{key} is of shape {tuple(state[key].shape)}, the network's is {tuple(value.shape)}"
        for key, value in own.items()
        if isinstance(state.get(key), Tensor) and state[key].shape != value.shape
    ]
    if wrong:
        more = f" (and {len(wrong) - 3} more)" if len(wrong) > 3 else ""
        raise CheckpointError(f"{source} does not fit the networks: {'; '.join(wrong[:3])}{more}")


def _check_shared(unit: UNIT, state: dict, path: Path) -> None:
    mine = {key: id(value) for key, value in unit.gen_a.named_parameters()}
    for key, value in unit.gen_b.named_parameters():
        if mine[key] == id(value) and not torch.equal(state["a"][key], state["b"][key]):
            raise CheckpointError(
                f"{path} holds different values of {key} for a and b, which these networks "
                "share; set share.enc and share.dec to 0 to load it"
            )
