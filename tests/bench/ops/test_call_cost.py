"""bench.ops.call_cost: its two tables."""

from __future__ import annotations

import torch

from bench.ops import call_cost


def test_every_row_stands_beside_pytorchs(capsys, monkeypatch):
    monkeypatch.setattr(call_cost, "CALLS", 2)
    monkeypatch.setattr(call_cost, "GRADIENTS", ((2, 3, 6), (3, 2, 8)))
    threads = torch.get_num_threads()
    try:
        assert call_cost.main(["--repeat", "1"]) == 0
    finally:
        torch.set_num_threads(threads)
    calls, gradients = capsys.readouterr().out.strip().split("\n\n")
    rows = [line.split("|")[1:-1] for line in calls.splitlines()[2:]]
    assert len(rows) == 4 and all(float(value) >= 0 for row in rows for value in row[1:])
    rows = [line.split("|")[1:-1] for line in gradients.splitlines()[2:]]
    assert [row[0].strip() for row in rows] == ["2 to 3, 2x2", "3 to 2, 3x3"]
    assert all(float(value) >= 0 for row in rows for value in row[1:])
