"""bench.ops.winograd: its table."""

from __future__ import annotations

import re

from bench.ops import winograd


def test_the_table_has_times_ratios_and_errors(capsys, monkeypatch):
    monkeypatch.setattr(winograd, "CONVOLUTIONS", ((1, 3, 2, 4),))
    monkeypatch.setattr(winograd, "UPSAMPLING", ((2, 2, 3, 6),))
    assert winograd.main(["--turns", "1", "--rms"]) == 0
    rows = capsys.readouterr().out.splitlines()[2:]
    assert [row.split("|")[1].strip() for row in rows] == [
        "1 of 4x4, 3 to 2",
        "2 of 6x6, 2 to 3, 2x",
    ]
    for row in rows:
        cells = re.findall(r"([\d.]+), ([\d.]+), ([\d.]+) \((\S+), (\S+)\)", row)
        assert len(cells) == 3
        assert all(0 <= float(error) < 1e-5 for cell in cells for error in cell[3:])
