"""Detection of modifications to networks: replaced methods, layers and hooks.

Grouped execution does not call `encode`, `decode`, `calc_dis_loss` and so on, so it may be used
for unmodified networks only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache

from torch import nn
from torch.nn.modules import module as torch_module

from fastunit.models import layers, munit, norms, perceptual, unit2018


@cache
def methods(cls: type) -> dict[str, object]:
    """Return a class's `forward`, `__call__` and methods defined in fastunit, by name."""
    own = [base for base in cls.__mro__ if base.__module__.startswith("fastunit.")]
    names = {name for base in own for name, value in vars(base).items() if callable(value)}
    return {name: getattr(cls, name) for name in (names | {"forward", "__call__"}) - {"__init__"}}


def remember(*modules: object) -> None:
    """Record the methods of all classes in Python modules, before anyone replaces them."""
    for value in (value for module in modules for value in vars(module).values()):
        if isinstance(value, type) and issubclass(value, nn.Module):
            methods(value)


remember(layers, norms, unit2018, munit, perceptual)


class AsBuilt:
    """A snapshot of networks, by name, with which to find modifications made afterwards."""

    def __init__(self, networks: Mapping[str, nn.Module]) -> None:
        self._layouts = {name: _layout(_parts(network)) for name, network in networks.items()}
        self._halve = {name: vars(network).get("halve") for name, network in networks.items()}

    def changes(self, networks: Mapping[str, nn.Module]) -> list[str]:
        """Return what was modified, such as "gen_a.encode" or "hooks of dis_b.cnns.0"."""
        found = ["PyTorch's hooks of all modules"] if torch_module._has_any_global_hook() else []
        for name, network in networks.items():
            parts = _parts(network)
            if _layout(parts) != self._layouts[name]:
                found.append(name)
            elif vars(network).get("halve") is not self._halve[name]:
                found.append(f"{name}.halve")
            found += _changes(parts, name)
        return found


def changes(network: object, cls: type, name: str) -> list[str]:
    """Return in what a network differs from an unmodified `cls`."""
    if not isinstance(network, nn.Module):
        return [name]
    return ([] if type(network) is cls else [name]) + list(_changes(_parts(network), name))


def replaced(owner: object, originals: Mapping[str, object]) -> list[str]:
    """Return the names of an object's methods that differ from `originals`.

    Raises:
        ValueError: a module was assigned to a method's name; Python would still call the method.
    """
    shadowed = _shadowed(owner, originals)
    return sorted({*shadowed, *_replaced(type(owner), originals)})


def _shadowed(owner: object, originals: Mapping[str, object]) -> set[str]:
    for name in originals.keys() & getattr(owner, "_modules", {}).keys():
        raise ValueError(
            f"{name} of {type(owner).__name__} is a method, and stays so when a module is assigned "
            f"to it; assign the module's forward, or override {name} in a subclass"
        )
    return originals.keys() & vars(owner).keys()


def _replaced(cls: type, originals: Mapping[str, object]) -> list[str]:
    return [name for name, value in originals.items() if getattr(cls, name) is not value]


Parts = list[tuple[str, nn.Module]]


def _parts(network: nn.Module) -> Parts:
    """Return `named_modules`, whose nested generators take as long as a small update's layers."""
    found: Parts = []
    seen: set[nn.Module] = set()
    todo = [(network, "")]
    while todo:
        module, path = todo.pop()
        if module in seen:
            continue
        seen.add(module)
        found.append((path, module))
        prefix = f"{path}." if path else ""
        todo += [
            (part, prefix + name)
            for name, part in reversed(module._modules.items())
            if part is not None
        ]
    return found


def _layout(parts: Parts) -> list[tuple[str, type]]:
    return [(name, type(part)) for name, part in parts]


def _changes(parts: Parts, network: str) -> Iterator[str]:
    classes: dict[type, tuple[list[str], dict[str, object]]] = {}
    for name, part in parts:
        path, cls = f"{network}.{name}" if name else network, type(part)
        if cls not in classes:
            own = methods(cls)
            classes[cls] = _replaced(cls, own), own
        for method in (*classes[cls][0], *_shadowed(part, classes[cls][1])):
            yield f"{path}.{method}"
        if part._forward_hooks or part._forward_pre_hooks:
            yield f"hooks of {path}"
        elif part._backward_hooks or part._backward_pre_hooks:
            yield f"backward hooks of {path}"
