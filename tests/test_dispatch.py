"""bench/products.py and bench/dispatch.py: which products are timed, and which go to cuDNN."""

from __future__ import annotations

import json

import pytest
import torch

from bench import dispatch, products, tiles_report
from fastunit import cli, config
from fastunit.kernels import cudnn, runtime, tiles

SMALL = {
    "gen": {"dim": 8, "n_res": 1, "n_downsample": 1},
    "dis": {"dim": 8, "n_layer": 2, "num_scales": 1},
    **{"crop_image_height": 32, "crop_image_width": 48, "batch_size": 3},
}
CPU = torch.device("cpu")
LAYER = cudnn.Layer(90, "fprop", False, 256, 256, 3, 1, 8192, 16)


@pytest.fixture(scope="module")
def asks():
    return products.asked(config.from_dict(SMALL), 80)


def launched(ask, implementation):
    """Return the names of the kernels that a product launches."""
    with runtime.recorded_launches(80) as launches:
        _, run = products.product(ask, CPU, torch.bfloat16)
        with products.using(implementation):
            run()
    return [launch.kernel.fn.__name__ for launch in launches]


# ---- the products of a step


def test_every_layer_of_a_step_is_asked_for_in_every_direction(asks):
    layers = {ask.layer for ask in asks}
    assert {layer.direction for layer in layers} == {"fprop", "dgrad", "wgrad"}
    assert {(layer.arch, layer.bits) for layer in layers} == {(80, 16)}
    # By hand: both domains' three residual images of 16 channels at half size, in one launch.
    residual = cudnn.Layer(80, "fprop", False, 16, 16, 3, 1, 2 * 3 * 16 * 24, 16)
    assert residual in layers
    # Both codes through both decoders; a 5x5 block upsamples by combined filters of 6x6.
    up = cudnn.Layer(80, "fprop", True, 16, 8, 6, 2, 4 * 3 * 32 * 48, 16)
    assert up in layers
    assert isinstance(cudnn.FASTER, frozenset)  # as it was


def test_the_longest_products_come_first(asks):
    work = [count * ask.work for ask, count in asks.items()]
    assert work == sorted(work, reverse=True) and work[0] > 10 * work[-1]


def test_each_use_of_a_layer_is_timed_once(asks):
    assert len({ask.name for ask in asks}) == len(asks)
    uses = {(ask.layer, ask.w_shape[0]) for ask in asks if ask.layer.direction != "fprop"}
    assert len(uses) == sum(ask.layer.direction != "fprop" for ask in asks)
    assert max(asks.values()) > 1  # alike ones are counted


def test_each_way_runs_its_own_kernels(asks):
    for ask in asks:
        kernel = "wgrad_kernel" if ask.layer.direction == "wgrad" else "conv_gemm_kernel"
        assert launched(ask, "triton") == [kernel]
        theirs = launched(ask, "cudnn")
        if ask.layer.direction != "fprop":
            assert theirs == []
        elif ask.plan.norm != "none":
            assert theirs == ["statistics_kernel"]
        else:
            assert theirs == ([] if ask.plan.act == "none" else ["fprop_kernel"])


# ---- what is proposed


def result(name, implementation, median, spread=0.01, layer=LAYER):
    """Return a benchmark's result: `spread` is the distance of the quartiles, relative."""
    seconds = 20e-6 * median
    low, high = seconds * (1 - spread), seconds * (1 + spread)
    full = f"bench_products[{name}-{implementation}]"
    return {
        **{"name": full, "fullname": full, "params": {"implementation": implementation}},
        "stats": {"median": seconds, "q1": low, "q3": high},
        "extra_info": {"median_us": median, "product": name, "layer": layer._asdict()},
    }


def both(name, ours, theirs, **options):
    return [result(name, "triton", ours, **options), result(name, "cudnn", theirs, **options)]


@pytest.mark.parametrize(
    ("ours", "theirs", "spread", "wins"),
    [
        (50.0, 40.0, 0.01, True),
        (41.0, 40.0, 0.001, False),  # within the margin
        (50.0, 40.0, 0.2, False),  # quartiles overlap
        (40.0, 50.0, 0.01, False),
    ],
)
def test_cudnn_must_win_by_a_margin_and_outside_the_noise(ours, theirs, spread, wins):
    found = dispatch.uses(both("a", ours, theirs, spread=spread))
    assert dispatch.faster(found) == ([LAYER] if wins else [])


def test_a_layer_must_be_faster_in_every_use():
    other = LAYER._replace(direction="wgrad")
    found = dispatch.uses(
        both("a", 50.0, 40.0) + both("b", 40.0, 50.0) + both("c", 50.0, 40.0, layer=other)
    )
    assert dispatch.faster(found) == [other]


def test_quartiles_are_those_of_one_product():
    (use,) = dispatch.uses(both("a", 50.0, 40.0, spread=0.1))
    assert use.ours == pytest.approx((50.0, 45.0, 55.0))
    assert use.ratio == pytest.approx(1.25)


@pytest.fixture
def write(tmp_path):
    def write(results):
        path = tmp_path / "products.json"
        run = {"benchmarks": results, "machine_info": {"gpu": "NVIDIA TEST"}, "commit_info": {}}
        path.write_text(json.dumps(run))
        return path

    return write


def test_what_is_printed_can_be_pasted(write, tmp_path, capsys):
    path = write(both("a", 50.0, 40.0) + both("b", 40.0, 60.0, layer=LAYER._replace(taps=7)))
    assert dispatch.main([str(path)]) == 0
    page = capsys.readouterr().out
    source = page.partition("```python\n")[2].partition("```")[0]
    scope = {"Layer": cudnn.Layer}
    exec(source, scope)
    assert scope["FASTER"] == frozenset({LAYER})
    assert "| a | 50.0 (49.5 to 50.5) | 40.0 (39.6 to 40.4) | 1.25 | cuDNN |" in page
    assert page.rstrip().endswith("| 0.67 | ours |") and "NVIDIA TEST" in page
    assert dispatch.main([str(path), "--margin", "0.5", "-o", str(tmp_path / "x.md")]) == 0
    assert "FASTER: frozenset[Layer] = frozenset()" in (tmp_path / "x.md").read_text()


def test_a_report_without_products_is_refused(write, capsys):
    path = write(both("a", 50.0, 40.0)[:1])
    assert cli.guard(lambda: dispatch.main([str(path)])) == 2
    error = capsys.readouterr().err
    assert "-k products" in error and error.count("\n") == 1


# ---- the tiles that autotuning chose


@pytest.fixture
def tuned(monkeypatch, tmp_path):
    """Return what a small step's launchers gave `tiles.choose`: keys and candidates, kept."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    store, seen = tiles._Store("NVIDIA TEST"), {}

    def choose(key, candidates, run, x):
        # The last candidate is said to be the fastest.
        monkeypatch.setattr(tiles, "_time", lambda run, tile: -candidates.index(tile))
        seen[tuple(map(str, key))] = candidates
        return store.best(key, candidates, run)

    monkeypatch.setattr(tiles, "choose", choose)
    products.asked(config.from_dict(SMALL), 90)
    return seen


def test_tiles_are_reported_beside_those_of_the_table(tuned, capsys):
    found = list(tiles_report.choices("NVIDIA TEST"))
    assert {choice.key: choice.table for choice in found} == {k: c[0] for k, c in tuned.items()}
    assert {choice.key: choice.winner for choice in found} == {k: c[-1] for k, c in tuned.items()}
    assert {choice.key[0] for choice in found} == {"conv_gemm", "wgrad"}
    assert tiles_report.main(["--gpu", "NVIDIA TEST"]) == 0
    page = capsys.readouterr().out
    scope = {"Tile": tiles.Tile}
    exec(page.partition("```python\n")[2].partition("```")[0], scope)
    assert scope["WINNERS"] == {choice.key: choice.winner for choice in found}
    assert f"{len(found)} of {len(found)} products" in page


def test_candidates_are_found_from_a_key(tuned):
    assert {key: tiles_report.candidates(key) for key in tuned} == tuned


def test_a_gpu_without_tiles_is_refused(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    assert cli.guard(lambda: tiles_report.main(["--gpu", "NVIDIA NONE"])) == 2
    assert "no tiles of 'NVIDIA NONE' are kept" in capsys.readouterr().err
