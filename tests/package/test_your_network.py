"""The code of docs/your-network.md runs, and prints what the page says."""

from __future__ import annotations

import re

import torch

from fastunit.fusion import backend
from tests.support.checkout import ROOT


def test_its_code_runs(capsys):
    page = (ROOT / "docs" / "your-network.md").read_text(encoding="utf-8")
    backend.register()
    names: dict[str, object] = {}
    for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(code, names)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "0 fused, 2 left, 2 graphs"
    theirs, ours = (float(line.split()[-1]) for line in printed[-2:])
    assert theirs > 1 and ours == 0
    torch._dynamo.reset()
