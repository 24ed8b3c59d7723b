"""The configuration: the release's files load, everything wrong is refused by name."""

from __future__ import annotations

import dataclasses

import pytest

from fastunit import config
from fastunit.common.errors import ConfigError
from fastunit.config import Config, from_dict, rules
from tests.support.checkout import ROOT

# A YAML file with every key of the 2018 release and the values of its 256x256 tasks.
RELEASE_YAML = """
# logger options
image_save_iter: 10000
image_display_iter: 100
display_size: 8
snapshot_save_iter: 10000
log_iter: 1
max_iter: 1000000
batch_size: 1
weight_decay: 0.0001
beta1: 0.5
beta2: 0.999
init: kaiming
lr: 0.0001
lr_policy: step
step_size: 100000
gamma: 0.5
gan_w: 1
recon_x_w: 10
recon_h_w: 0
recon_kl_w: 0.01
recon_x_cyc_w: 10
recon_kl_cyc_w: 0.01
vgg_w: 1
gen:
  dim: 64
  activ: relu
  n_downsample: 2
  n_res: 4
  pad_type: reflect
dis:
  dim: 64
  norm: none
  activ: lrelu
  n_layer: 4
  gan_type: lsgan
  num_scales: 3
  pad_type: reflect
input_dim_a: 3
input_dim_b: 3
num_workers: 8
new_size: 256
crop_image_height: 256
crop_image_width: 256
data_folder_train_a: ./data/a
data_list_train_a: ./data/a.txt
data_folder_test_a: ./data/a
data_list_test_a: ./data/a_test.txt
data_folder_train_b: ./data/b
data_list_train_b: ./data/b.txt
data_folder_test_b: ./data/b
data_list_test_b: ./data/b_test.txt
"""


def test_release_file_loads_unchanged(tmp_path):
    path = tmp_path / "release.yaml"
    path.write_text(RELEASE_YAML)
    loaded = config.load(path)
    assert (loaded.vgg_w, loaded.gen.n_res, loaded.dis.num_scales) == (1.0, 4, 3)
    assert loaded.data_list_test_b == "./data/b_test.txt"
    assert loaded.share == config.ShareConfig(0, 0)


def test_defaults_are_the_releases(tmp_path):
    path = tmp_path / "release.yaml"
    path.write_text(RELEASE_YAML)
    loaded, default = config.load(path), Config()
    own = {"display_size", "vgg_w", "num_workers", "new_size"}
    for item in dataclasses.fields(Config):
        if item.name not in own and not item.name.startswith("data_"):
            assert getattr(loaded, item.name) == getattr(default, item.name), item.name


@pytest.mark.parametrize("name", [None, "demo", "photos"])
def test_own_files_load_and_share_one_block(name):
    loaded = config.load(name)
    assert loaded.share == config.ShareConfig(1, 1)


def test_yaml_roundtrip(tmp_path):
    first = config.load(None, ["new_size_a=80", "lr=1e-4", "data.skip_bad=true"])
    path = tmp_path / "config.yaml"
    path.write_text(config.dump_yaml(first))
    assert config.load(path) == first
    assert (first.lr, *(first.domain(name).new_size for name in "ab")) == (1e-4, 80, 64)


def test_overrides_win_over_the_file_and_extra_over_both(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("max_iter: 5\ngen: {dim: 8}\nnew_size: 256\n")
    values = config.read_yaml(path)
    resolved = config.resolve(values, ["gen.n_res=1", "max_iter=6"], {"max_iter": 7})
    assert (resolved.gen.dim, resolved.gen.n_res, resolved.max_iter) == (8, 1, 7)


def test_an_override_opens_an_empty_section(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("data:\ncrop_image_height: 64\n")
    assert config.load(path, ["data.skip_bad=true"]).data.skip_bad


BAD_VALUES = [
    ({"gen": {"activ": "rleu"}}, ["gen.activ", "'rleu'", "relu, lrelu, prelu, selu, tanh, none"]),
    ({"gen": {"activ": "rleu"}}, ["did you mean 'relu'"]),
    ({"gen": {"pad_type": "mirror"}}, ["gen.pad_type", "'mirror'", "zero, reflect, replicate"]),
    ({"dis": {"norm": "group"}}, ["dis.norm", "'group'", "none, bn, in, ln"]),
    ({"dis": {"gan_type": "wgan"}}, ["dis.gan_type", "'wgan'", "lsgan, nsgan"]),
    ({"dis": {"num_scales": 0}}, ["dis.num_scales=0", "at least 1"]),
    ({"gen": {"n_downsample": -1}}, ["gen.n_downsample=-1", "at least 0"]),
    ({"gen": {"dim": 8.5}}, ["gen.dim=8.5", "whole number"]),
    ({"gen": 3}, ["gen", "section", "3"]),
    ({"lr_policy": "cosin"}, ["lr_policy", "'cosin'", "step, constant", "mean 'cosine'"]),
    ({"init": "he"}, ["init", "'he'", "gaussian, xavier, kaiming, orthogonal"]),
    ({"lr": "fast"}, ["lr='fast'", "finite number"]),
    ({"lr": float("nan")}, ["lr=nan", "finite number"]),
    ({"lr": 10**400}, ["lr=1", "finite number"]),
    ({"lr": -1}, ["lr=-1", "at least 0"]),
    ({"beta1": 1.0}, ["beta1=1.0", "below 1"]),
    ({"ema_decay": 1}, ["ema_decay=1", "below 1"]),
    ({"batch_size": 0}, ["batch_size=0", "at least 1"]),
    ({"batch_size": True}, ["batch_size=True", "whole number"]),
    ({"max_iter": None}, ["max_iter=None", "whole number"]),
    ({"data": {"skip_bad": "maybe"}}, ["data.skip_bad='maybe'", "true or false"]),
    ({"share": {"enc": 5}}, ["share.enc=5", "gen.n_res=4", "0 to 4"]),
    ({"share": {"dec": 9}}, ["share.dec=9", "gen.n_res=4"]),
    ({"crop_image_height": 130}, ["crop_image_height=130", "multiple of 4", "128"]),
    ({"crop_image_width": 16}, ["crop_image_width=16", "too small"]),
    ({"new_size": 200}, ["new_size=200", "crop_image_height=256"]),
    ({"new_size": 300, "new_size_b": 128}, ["new_size=128", "domain b"]),
    ({"seed": -1}, ["seed=-1", "at least 0"]),
    ({"learning_rate": 1}, ["unknown key 'learning_rate'", "known keys", "lr"]),
    ({"batchsize": 1}, ["unknown key 'batchsize'", "did you mean batch_size?"]),
    ({"gen": {"n_resblocks": 1}}, ["unknown key 'gen.n_resblocks'", "gen.n_res"]),
    ({"num_scales": 1}, ["unknown key 'num_scales'", "dis.num_scales"]),
]


@pytest.mark.parametrize(("values", "words"), BAD_VALUES, ids=[str(v) for v, _ in BAD_VALUES])
def test_bad_values_are_named(values, words):
    with pytest.raises(ConfigError) as caught:
        from_dict(values)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("gen.dim", ["--set 'gen.dim'", "key=value"]),
        ("=3", ["--set '=3'", "key=value"]),
        ("gen=[", ["--set 'gen=['", "not valid YAML"]),
        ("lr.x=1", ["--set 'lr.x=1'", "lr is a value"]),
        ("gen.dims=1", ["gen.dims", "gen.dim?"]),
    ],
)
def test_bad_overrides_are_named(text, words):
    with pytest.raises(ConfigError) as caught:
        config.load(None, [text])
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ["cannot read", "bad.yaml"]),
        (b"a: [", ["bad.yaml", "not valid YAML"]),
        (b"- a\n- b\n", ["bad.yaml", "key: value"]),
        (b"", ["bad.yaml", "key: value"]),
        (b"\xff\xfe\x00", ["bad.yaml"]),
        (b"a: !!python/object/apply:os.system ['true']", ["bad.yaml", "leave it out"]),
    ],
)
def test_bad_files_are_named(tmp_path, content, words):
    path = tmp_path / "bad.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        config.load(path)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("scales", [1, 2, 3])
@pytest.mark.parametrize("layers", [1, 3, 4])
@pytest.mark.parametrize("downsample", [0, 2, 3])
def test_smallest_crop_is_what_the_networks_take(scales, layers, downsample):
    import torch

    from fastunit.models.unit import UNIT

    values = {
        "gen": {"dim": 1, "n_res": 1, "n_downsample": downsample},
        "dis": {"dim": 1, "n_layer": layers, "num_scales": scales},
    }
    settings = from_dict(values)
    unit, size = UNIT(settings), rules.smallest_crop(settings)
    image = torch.zeros(1, 3, size, size)
    unit.dis_a(unit.gen_a(image)[0])  # raises where the crop is too small
    smaller = torch.zeros(1, 3, *[size - 2**downsample] * 2)
    with pytest.raises((RuntimeError, ValueError)):
        unit.dis_a(unit.gen_a(smaller)[0])


def test_reference_lists_every_key():
    from fastunit.config.fields import known_keys

    table = config.reference()
    keys = known_keys(Config)
    sections = {key.rpartition(".")[0] for key in keys}
    assert {"gen", "paper.gen"} <= sections
    assert all((f"| `{key}` |" in table) == (key not in sections) for key in keys)


def test_the_documentation_holds_the_reference():
    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert config.reference() in text, "paste what config.reference() returns"


def test_a_perceptual_term_of_one_pixel_is_refused(tiny):
    small = {"crop_image_height": 8, "crop_image_width": 12, "gen": {"n_downsample": 1}}
    dis = {"dis": {"n_layer": 1, "num_scales": 1}}
    config.from_dict(tiny | small | dis)
    with pytest.raises(ConfigError, match=r"vgg_w=1\.0 needs crops .* not 8x12; enlarge"):
        config.from_dict(tiny | small | dis | {"vgg_w": 1, "vgg_model_path": "x.pth"})


def test_new_size_need_only_reach_the_shorter_side_of_the_crop(tiny):
    wide = tiny | {"new_size": 64, "crop_image_height": 64, "crop_image_width": 128}
    tall = wide | {"crop_image_height": 128, "crop_image_width": 64}
    assert config.from_dict(wide).crop == (64, 128) and config.from_dict(tall).crop == (128, 64)
    for keys, name in ((wide, "crop_image_height"), (tall, "crop_image_width")):
        with pytest.raises(ConfigError, match=f"new_size=62 .* smaller than {name}=64; raise it"):
            config.from_dict(keys | {"new_size": 62})
    own = wide | {"new_size_b": 60}
    with pytest.raises(ConfigError, match="new_size=60 of domain b"):
        config.from_dict(own)


def test_load_takes_changes_by_key_and_within_sections():
    demo = config.load()
    changed = config.load("demo", ["gen.n_res=1"], max_iter=7, gen={"dim": 4})
    assert (changed.max_iter, changed.gen.dim, changed.gen.n_res) == (7, 4, 1)
    assert changed.gen.n_downsample == demo.gen.n_downsample and changed.dis == demo.dis
    with pytest.raises(ConfigError, match=r"unknown key 'gen\.dims'"):
        config.load(gen={"dims": 4})


def test_a_folder_does_not_hide_a_configuration_of_ours(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wanted = config.read_yaml("emoji")
    (tmp_path / "emoji").mkdir()  # of the data, or of a run
    assert config.read_yaml("emoji") == wanted
    (tmp_path / "own").mkdir()
    with pytest.raises(ConfigError, match="cannot read the configuration own"):
        config.read_yaml("own")
