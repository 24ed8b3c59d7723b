"""The names of the release's modules: what each computes."""

from __future__ import annotations

import math
import sys
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from fastunit.common.errors import ConfigError, DataError
from fastunit.compat import UNIT_Trainer, data, networks, transforms, utils
from fastunit.models.perceptual import Perceptual, as_vgg_takes
from tests.support.tensors import images, rand


def test_encoder_and_decoder_with_a_norm():
    enc = networks.ContentEncoder(2, 1, 3, 4, "in", "relu", "reflect")
    dec = networks.Decoder(2, 1, enc.output_dim, 3, res_norm="in", activ="relu", pad_type="reflect")
    own = networks.VAEGen(3, {"dim": 4, "n_downsample": 2, "n_res": 1})
    enc.load_state_dict(own.enc.state_dict()), dec.load_state_dict(own.dec.state_dict())
    x = torch.rand(1, 3, 16, 16)
    torch.testing.assert_close(dec(enc(x)), own.decode(own.encode(x)[0]))
    adain = networks.Decoder(2, 1, 16, 3, "adain", "relu", "reflect")
    for norm in adain.modules():
        if isinstance(norm, networks.AdaptiveInstanceNorm2d):
            norm.weight, norm.bias = torch.ones(16), torch.zeros(16)
    adain.load_state_dict(own.dec.state_dict(), strict=False)
    torch.testing.assert_close(adain(enc(x)), dec(enc(x)))  # which is instance norm


def test_style_encoder_and_mlp():
    style = networks.StyleEncoder(4, 3, 4, 8, "none", "relu", "reflect")
    assert style(torch.rand(2, 3, 32, 32)).shape == (2, 8, 1, 1) and style.output_dim == 16
    mlp = networks.MLP(8, 5, 6, 3)
    x = rand(2, 8, 1, 1).float()
    layers = [block.fc for block in mlp.model]
    wanted = layers[2](F.relu(layers[1](F.relu(layers[0](x.flatten(1))))))
    torch.testing.assert_close(mlp(x), wanted)


def test_adain():
    norm = networks.AdaptiveInstanceNorm2d(3)
    x, gamma, beta = rand(2, 3, 5, 4), rand(2, 3), rand(2, 3)
    with pytest.raises(RuntimeError, match="assign weight and bias"):
        norm(x)
    norm.weight, norm.bias = gamma.view(-1), beta.view(-1)
    wanted = F.instance_norm(x) * gamma[:, :, None, None] + beta[:, :, None, None]
    torch.testing.assert_close(norm(x), wanted)
    assert list(norm.state_dict()) == ["running_mean", "running_var"]


def test_spectral_norm():
    layer = networks.SpectralNorm(nn.Linear(5, 4), power_iterations=50)
    layer(torch.rand(1, 5))
    assert torch.linalg.matrix_norm(layer.normalized(), 2).item() == pytest.approx(1, abs=1e-4)


def test_vgg16_and_its_folder(tmp_path):
    vgg, own = networks.Vgg16(), Perceptual()
    values = zip(own.convs, vgg.children(), strict=True)
    for mine, theirs in values:
        theirs.load_state_dict(mine.state_dict())
    x = images(1, 3, 32, 32).float()
    torch.testing.assert_close(utils.vgg_preprocess(x), as_vgg_takes(x))
    torch.testing.assert_close(vgg(utils.vgg_preprocess(x)), own.features(x))
    with pytest.raises(ConfigError, match=r"models/vgg16\.weight is missing"):
        utils.load_vgg16(tmp_path / "models")
    (tmp_path / "models").mkdir()
    torch.save(vgg.state_dict(), tmp_path / "models" / "vgg16.weight")
    loaded = utils.load_vgg16(tmp_path / "models")
    torch.testing.assert_close(loaded.conv5_3.weight, vgg.conv5_3.weight)
    small = {"gen": {"dim": 4, "n_res": 1}, "dis": {"dim": 4, "n_layer": 2, "num_scales": 1}}
    channels = {"input_dim_a": 3, "input_dim_b": 3}
    made = UNIT_Trainer(small | channels | {"vgg_w": 1, "vgg_model_path": str(tmp_path)})
    made.gen_update(x, x)
    assert made.loss_gen_vgg_a > 0


def test_munits_generator_is_there():
    assert networks.AdaINGen(3, {"dim": 4})(torch.rand(1, 3, 16, 16)).shape == (1, 3, 16, 16)


def test_transforms():
    image = Image.new("RGB", (30, 24), (255, 0, 51))
    assert transforms.Resize(12)(image).size == (15, 12)
    assert transforms.Resize((7, 9))(image).size == (9, 7)
    assert transforms.CenterCrop(8)(image).size == (8, 8)
    x = transforms.ToTensor()(image)
    assert x.shape == (3, 24, 30) and x[:, 0, 0].tolist() == pytest.approx([1, 0, 0.2])
    half = (0.5,) * 3
    y = transforms.Normalize(half, half)(x)
    assert y[:, 0, 0].tolist() == pytest.approx([1, -1, -0.6])
    with pytest.raises(ValueError, match="an image of 24x30 is smaller than the crop 25x8"):
        transforms.RandomCrop((25, 8))(image)
    sheet = transforms.make_grid(torch.arange(3.0)[:, None, None, None].expand(3, 1, 2, 2), nrow=2)
    assert sheet.shape == (3, 10, 10) and sheet[0, 2, 6] == 1 and sheet[0, 6, 2] == 2


def test_data(photos, tmp_path):
    folder = data.ImageFolder(photos / "trainA", return_paths=True)
    image, path = folder[0]
    assert len(folder) == 5 and image.size == (30, 24) and path.endswith("0.png")
    (tmp_path / "list.txt").write_text("1.png\n\n3.png\n")
    listed = data.ImageFilelist(photos / "trainA", tmp_path / "list.txt")
    assert [path.rpartition("/")[2] for path in listed.imgs] == ["1.png", "3.png"]
    with pytest.raises(DataError, match="nowhere is not a folder"):
        data.ImageFolder(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"none\.txt cannot be read"):
        data.ImageFilelist(photos, tmp_path / "none.txt")


@pytest.mark.parametrize("workers", [0, 1])
def test_loaders(photos, workers):
    shape = {"new_size_a": 20, "new_size_b": 18, "crop_image_height": 16, "crop_image_width": 12}
    conf = shape | {"batch_size": 2, "num_workers": workers, "data_root": str(photos)}
    loaders = utils.get_all_data_loaders(conf)
    assert [len(loader) for loader in loaders] == [2, 1, 1, 1]
    batch = next(iter(loaders[0]))
    assert batch.shape == (2, 3, 16, 12) and -1 <= batch.min() < batch.max() <= 1


def test_configuration_schedules_and_weights(tmp_path):
    (tmp_path / "a.yaml").write_text("lr: 0.1\n")
    assert utils.get_config(tmp_path / "a.yaml") == {"lr": 0.1}
    for text in ("- 1", "{"):
        (tmp_path / "b.yaml").write_text(text)
        with pytest.raises(ConfigError, match=r"b\.yaml"):
            utils.get_config(tmp_path / "b.yaml")
    layer = nn.Linear(400, 300)
    layer.apply(utils.weights_init("gaussian"))
    assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05) and not layer.bias.any()
    optimizer = torch.optim.SGD(layer.parameters(), 1.0)
    schedule = utils.get_scheduler(optimizer, {"lr_policy": "step", "step_size": 2, "gamma": 0.1})
    for _ in range(2):
        optimizer.step(), schedule.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)
    assert utils.get_scheduler(optimizer, {}) is None
    with pytest.raises(ConfigError, match="lr_policy='poly' must be one of constant, step"):
        utils.get_scheduler(optimizer, {"lr_policy": "poly"})


def test_checkpoints(tmp_path):
    for name in ("gen_00000001.pt", "gen_00000010.pt", "dis_00000011.pt"):
        (tmp_path / name).touch()
    assert utils.get_model_list(tmp_path, "gen") == str(tmp_path / "gen_00000010.pt")
    assert utils.get_model_list(tmp_path, "vgg") is None
    one = torch.ones(1)
    old = {"enc.model.0.norm.running_mean": one, "dec.model.0.x.running_var": one, "w": one}
    assert list(utils.pytorch03_to_pytorch04({"a": old})["a"]) == ["w"]
    kept = utils.pytorch03_to_pytorch04({"a": old}, "MUNIT")["a"]
    assert list(kept) == ["dec.model.0.x.running_var", "w"]


class Inception(nn.Module):
    """The end of torchvision's network."""

    def __init__(self, weights, init_weights, transform_input):
        super().__init__()
        self.fc, self.made = nn.Linear(4, 1000), (weights, init_weights, transform_input)


def test_inception_is_torchvision_s(tmp_path, monkeypatch):
    state = {"fc.weight": torch.rand(3, 4), "fc.bias": torch.rand(3)}
    torch.save(state, tmp_path / "a.pth")
    monkeypatch.setitem(sys.modules, "torchvision", ModuleType("torchvision"))
    with pytest.raises(ConfigError, match="need torchvision: pip install torchvision"):
        utils.load_inception(tmp_path / "a.pth")
    models = ModuleType("torchvision.models")
    models.inception_v3 = Inception
    monkeypatch.setitem(sys.modules, "torchvision.models", models)
    network = utils.load_inception(tmp_path / "a.pth")
    torch.testing.assert_close(network.fc.weight.data, state["fc.weight"])
    assert network.made == (None, False, True) and network.aux_logits is False
    assert not any(p.requires_grad for p in network.parameters())


def test_pages_losses_and_times(tmp_path, capsys):
    utils.write_html(tmp_path / "index.html", 25, 10, "images")
    page = (tmp_path / "index.html").read_text()
    assert "images/gen_a2b_test_00000020.jpg" in page and "images/gen_b2a_train_current.jpg" in page
    written = {}

    class Writer:
        def add_scalar(self, name, value, iteration):
            written[name] = value, iteration

    class Trainer:
        def __init__(self):
            self.loss_gen_total, self.other, self._loss = 3.0, 1.0, 2.0

    utils.write_loss(4, Trainer(), Writer())
    assert written == {"loss_gen_total": (3.0, 5)}
    with utils.Timer("took %f"):
        pass
    assert capsys.readouterr().out.startswith("took 0.")


def test_paths_between_codes():
    low, high = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0])
    assert utils.slerp(0.5, low, high).tolist() == pytest.approx([math.sqrt(2)] * 2)
    assert utils.get_slerp_interp(3, 4, 8).shape == (12, 8, 1, 1)
