"""The loop of adaptation: what is measured when, and the run's result and pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from fastunit import config
from fastunit.common import environment, files
from fastunit.digits.images import normalised
from fastunit.digits.objective import Losses
from fastunit.digits.state import ACCURACIES, AdaptationState
from fastunit.digits.step import SOURCE, TARGET
from fastunit.report.grid import save_grid
from fastunit.report.metrics import read_metrics
from fastunit.training.loop import Loop
from fastunit.training.loss_monitor import LossMonitor, Record

SHOWN = 12  # digits of each domain in the sample grid


class Trainer(Loop[AdaptationState]):
    """Trains an `AdaptationState` for its settings' iterations and writes the run's folder."""

    title = "adapting"

    def __init__(self, state: AdaptationState, run_dir: Path, started: float) -> None:
        settings = state.settings
        super().__init__(state, settings, settings.iterations, run_dir, started)
        self._accuracies: dict[str, float] = {}  # measured last

    def finish(self) -> dict[str, Any]:
        """Write pictures, the networks and, last of all, result.json, whose content is returned.

        The accuracies are those of the last iterate.
        """
        state, folder = self.state, self.run_dir
        adaptation, task = state.adaptation, state.task
        _draw_curves(folder, task.names)
        if not adaptation.source_only:
            save_grid(_sample_rows(state), folder / "samples.png")
        about = {
            "method": state.method,
            "source": task.names[SOURCE],
            "target": task.names[TARGET],
            "iteration": state.iteration,
            "settings": config.to_dict(state.settings),
        }
        networks = {"dis": adaptation.dis, "judge": adaptation.evaluated}
        networks |= {} if adaptation.source_only else {"gen": adaptation.gen}
        states = {name: network.state_dict() for name, network in networks.items()}
        files.save({**about, "channels": task.channels, **states}, folder / "checkpoint.pt")
        result = {
            **about,
            **(self._accuracies or state.measure()),
            "source_tests": len(task.tests[SOURCE].labels),
            "target_tests": len(task.tests[TARGET].labels),
            **({"held_out_count": len(task.held_out.labels)} if task.held_out else {}),
            "seconds": self.seconds(),
            "environment": environment.describe(state.device),
        }
        files.write_json(result, folder / "result.json")
        return result

    def _advance(self) -> Losses:
        return self.state.advance()

    def _measure(self) -> dict[str, float] | None:
        settings, now = self.state.settings, self.state.iteration
        if now == settings.iterations or self._due(settings.test_every):
            self._accuracies = self.state.measure()
            return self._accuracies
        return {} if now == settings.warmup or self._due(settings.log_every) else None

    def _read_losses(self) -> list[Record]:
        records = super()._read_losses()
        if self.state.iteration == self.state.settings.warmup:
            records += self._monitor.drain()
            self._monitor = LossMonitor()  # other losses follow, which one cannot mix with these
        return records

    def _postfix(self, values: dict[str, float]) -> str:
        return f"classification {values.get('classification', 0):.3f}"


@torch.no_grad()
def _sample_rows(state: AdaptationState) -> dict[str, Tensor]:
    """Return test digits of both domains, their reconstructions and translations, by label."""
    gen, task = state.adaptation.gen, state.task
    x_a, x_b = (normalised(task.tests[domain].images[:SHOWN]) for domain in (SOURCE, TARGET))
    x_aa, x_ba, x_ab, x_bb, _ = gen.eval()(x_a, x_b)
    gen.train()
    a, b = task.names[SOURCE], task.names[TARGET]
    return {
        f"{a}, held out": x_a,
        "reconstructed": x_aa,
        f"as {b}": x_ab,
        f"{b}, held out": x_b,
        "reconstructed ": x_bb,
        f"as {a}": x_ba,
    }


def _draw_curves(folder: Path, names: dict[str, str]) -> None:
    """Write curves.png: the accuracies on both test splits over the iterations."""
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.add_subplot()
    records = [record for record in read_metrics(folder) if ACCURACIES.keys() <= record.keys()]
    for key, domain in ACCURACIES.items():
        steps, shares = ([record[name] for record in records] for name in ("iteration", key))
        axes.plot(steps, shares, marker=".", label=f"{names[domain]} ({key})")
    axes.set(xlabel="iteration", ylabel="accuracy on the test split")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    with files.atomic(folder / "curves.png") as temporary:
        figure.savefig(temporary, dpi=100)
