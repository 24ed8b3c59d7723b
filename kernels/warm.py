"""``python -m fastunit.kernels.warm`` is ``python -m fastunit.warm``: kernels compiled ahead."""

import runpy

if __name__ == "__main__":
    runpy.run_module("fastunit.warm", run_name="__main__")
