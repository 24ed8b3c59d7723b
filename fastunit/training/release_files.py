"""Checkpoint files in the layout of the releases.

2018: {"a": state_dict, "b": state_dict} for the generators, and for the discriminators. 2017 (the
paper's networks): the state_dict of the module that holds both domains.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastunit.common import files
from fastunit.common.errors import CheckpointError
from fastunit.models.domain_pair import TrainablePair

LARGEST = 1e9  # magnitude of a weight: trained ones are far smaller, larger ones give black images
PAPERS = ("encode_A.", "model_")  # prefixes of the state_dict keys of the paper's networks


def save_networks(unit: TrainablePair, folder: Path, iteration: int) -> None:
    """Write gen_%08d.pt and dis_%08d.pt."""
    for kind, networks in unit.layout().items():
        if isinstance(networks, nn.Module):
            state = networks.state_dict()
        else:
            state = {domain: network.state_dict() for domain, network in networks.items()}
        files.save(state, folder / f"{kind}_{iteration:08d}.pt")


def load_networks(unit: TrainablePair, path: Path, expect: str) -> None:
    """Load networks of the kind `expect`, "gen" or "dis", from a file as `save_networks` writes.

    Raises:
        CheckpointError: the file does not fit the networks, or has different values of a and b
            for blocks that they share.
    """
    networks, state = unit.layout()[expect], files.read(path)
    if isinstance(networks, nn.Module):
        if not isinstance(state, dict):
            raise CheckpointError(f"{path} does not hold the values of a network by their names")
        if state.keys() == {"a", "b"}:
            raise CheckpointError(f"{path} holds the 2018 release's networks: use network=release")
        load_state(networks, state, str(path))
    else:
        _load_domains(networks, state, path, expect)


def _load_domains(networks: dict[str, nn.Module], state: Any, path: Path, expect: str) -> None:
    domains = [state.get(name) for name in networks] if isinstance(state, dict) else []
    if not domains or not all(isinstance(domain, dict) for domain in domains):
        hint = ""
        if isinstance(state, dict) and any(str(key).startswith(PAPERS) for key in state):
            hint = ": it holds the paper's networks; use network=paper"
        raise CheckpointError(f"{path} does not hold the two domains 'a' and 'b'{hint}")
    own = networks["a"].state_dict()
    if (scales := _has(state["a"], "cnns.")) != _has(own, "cnns."):
        kind = "dis" if scales else "gen"
        raise CheckpointError(f"{path} holds {kind} networks, but {expect} ones are needed")
    if (styles := _has(state["a"], "enc_style.")) != _has(own, "enc_style."):
        held, other = ("MUNIT", "munit") if styles else ("UNIT", "release")
        raise CheckpointError(f"{path} holds {held}'s networks; use network={other}")
    for domain, network in networks.items():
        _check_fit(network, state[domain], f"{path} ({domain})")
    _check_shared(networks, state, path)
    for domain, network in networks.items():
        network.load_state_dict(state[domain])


def _has(state: dict, prefix: str) -> bool:
    """Return whether a state_dict has a network's part."""
    return any(str(key).startswith(prefix) for key in state)


def load_state(module: nn.Module, state: dict, source: str) -> None:
    """Load a state_dict strictly; raises CheckpointError with the first differences."""
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
        f"{key} {reason}"
        for key, value in own.items()
        if isinstance(state.get(key), Tensor) and (reason := _unusable(state[key], value))
    ]
    wrong += [
        f"{key} is of shape {tuple(state[key].shape)}, the network's is {tuple(value.shape)}"
        for key, value in own.items()
        if isinstance(state.get(key), Tensor) and state[key].shape != value.shape
    ]
    if wrong:
        more = f" (and {len(wrong) - 3} more)" if len(wrong) > 3 else ""
        raise CheckpointError(f"{source} does not fit the networks: {'; '.join(wrong[:3])}{more}")


def _unusable(value: Tensor, own: Tensor) -> str | None:
    """Return what is wrong with a tensor's dtype, layout or values, if anything."""
    if value.layout != torch.strided or value.is_quantized or value.device.type == "meta":
        return "is no dense tensor"
    if value.is_complex() or value.is_floating_point() != own.is_floating_point():
        return f"is of {value.dtype}, the network's is of {own.dtype}"
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        return "has elements that overlap"
    if value.numel() and value.is_floating_point() and not value.abs().max() <= LARGEST:  # NaN too
        return f"has values that are not finite, or beyond {LARGEST:g}"
    return None


def _check_shared(networks: dict[str, nn.Module], state: dict, path: Path) -> None:
    mine = {key: id(value) for key, value in networks["a"].named_parameters()}
    for key, value in networks["b"].named_parameters():
        if mine.get(key) == id(value) and not torch.equal(state["a"][key], state["b"][key]):
            raise CheckpointError(
                f"{path} holds different values of {key} for a and b, which these networks "
                "share; set share.enc and share.dec to 0 to load it"
            )
