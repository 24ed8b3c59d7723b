"""Finding image files: folders, list files, and one clear message for each thing missing."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from fastunit.common.errors import DataError
from fastunit.config import Config
from fastunit.data.discovery import EXTENSIONS, find_domains, image_files


def put(*files: Path) -> None:
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(file)


def root_config(root: Path) -> Config:
    return Config(data_root=str(root))


@pytest.fixture
def lists(tmp_path):
    """A complete list-file configuration's keys, over folders with three images each."""
    keys = {}
    for domain in "ab":
        put(*(tmp_path / domain / f"{i}.png" for i in range(3)))
        names = tmp_path / f"{domain}.txt"
        names.write_text("2.png\n0.png\n")
        keys[f"data_folder_train_{domain}"] = str(tmp_path / domain)
        keys[f"data_list_train_{domain}"] = str(names)
    return keys


def test_folders_are_searched_recursively_in_sorted_order(tmp_path):
    names = [
        "b.JPG",
        "a/z.png",
        "a/y/x.tif",
        "c.jpeg",
        "d.bmp",
        "e.TIFF",
        "f.webp",
        "g.npy",
        "ä ü.jpg",
    ]
    put(*(tmp_path / "trainA" / name for name in names), tmp_path / "trainB/1.png")
    found = find_domains(root_config(tmp_path))
    assert found.train_a == tuple(sorted(tmp_path / "trainA" / name for name in names))
    assert found.train_b == (tmp_path / "trainB/1.png",)
    assert found.test_a == found.test_b == ()
    assert {f.suffix.lower() for f in found.train_a} == set(EXTENSIONS)


def test_test_folders_are_found_where_there_are_any(tmp_path):
    put(*(tmp_path / f"{split}/1.png" for split in ("trainA", "trainB", "testB")))
    found = find_domains(root_config(tmp_path))
    assert (found.test_a, found.test_b) == ((), (tmp_path / "testB/1.png",))


def test_the_order_is_that_of_paths_whatever_the_folders(tmp_path, monkeypatch):
    names = ["a.png", "a/1.png", "a-b/1.png", "a b/c/1.png", "a/b.png/x.png", "B/1.png", "é/1.png"]
    put(*(tmp_path / name for name in names))
    found = image_files(tmp_path)
    assert found == tuple(sorted(tmp_path / name for name in names))
    monkeypatch.chdir(tmp_path)
    for folder in (Path(), Path("a/.."), Path("a")):
        here = image_files(folder)
        assert here.names == tuple(map(str, here)) and sorted(here) == list(here)
    assert image_files(Path()) == tuple(file.relative_to(tmp_path) for file in found)


def test_hidden_files_and_folders_are_passed_over(tmp_path, caplog):
    put(tmp_path / "1.png", tmp_path / "._1.png", tmp_path / ".cache/2.png")
    (tmp_path / ".DS_Store").write_bytes(b"x")
    assert image_files(tmp_path) == (tmp_path / "1.png",)
    assert not caplog.records


def test_other_files_are_passed_over_with_a_warning(tmp_path, caplog):
    put(tmp_path / "1.png")
    for name in ("Thumbs.db", "notes.txt"):
        (tmp_path / name).write_text("x")
    assert image_files(tmp_path) == (tmp_path / "1.png",)
    assert "2 files such as Thumbs.db" in caplog.text


def test_links_are_followed_and_loops_end(tmp_path):
    put(tmp_path / "elsewhere/1.png", tmp_path / "elsewhere/deep/2.png")
    folder = tmp_path / "trainA"
    folder.mkdir()
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "file.png").symlink_to(tmp_path / "elsewhere/1.png")
    (tmp_path / "elsewhere/loop").symlink_to(folder)
    found = image_files(folder)
    assert found == (
        folder / "file.png",
        folder / "linked/1.png",
        folder / "linked/deep/2.png",
    )


def test_dangling_links_are_kept_for_validation_to_report(tmp_path):
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    assert image_files(tmp_path) == (tmp_path / "gone.jpg",)


def test_missing_data_root(tmp_path):
    with pytest.raises(DataError, match="nowhere does not exist"):
        find_domains(root_config(tmp_path / "nowhere"))


def test_data_root_is_a_file(tmp_path):
    put(tmp_path / "x.png")
    with pytest.raises(DataError, match=r"x\.png is a file, not a folder"):
        find_domains(root_config(tmp_path / "x.png"))


def test_one_domain_missing_names_the_folders_looked_for(tmp_path):
    put(tmp_path / "trainA/1.png", tmp_path / "train_b/1.png")
    with pytest.raises(DataError) as error:
        find_domains(root_config(tmp_path))
    message = str(error.value)
    assert "has no folder trainB (looked for" in message
    assert str(tmp_path / "trainB") in message and "holds: trainA, train_b" in message


def test_both_domains_missing(tmp_path):
    with pytest.raises(DataError, match=r"no folder trainA and no folder trainB.*holds: nothing"):
        find_domains(root_config(tmp_path))


@pytest.mark.parametrize("split", ["trainA", "testB"])
def test_empty_folder_is_named(tmp_path, split):
    put(*(tmp_path / f"{name}/1.png" for name in ("trainA", "trainB", "testB") if name != split))
    (tmp_path / split).mkdir()
    with pytest.raises(DataError, match=f"{split} holds no images"):
        find_domains(root_config(tmp_path))


def test_folder_of_other_files_says_what_it_holds(tmp_path):
    put(tmp_path / "trainB/1.png")
    (tmp_path / "trainA").mkdir()
    for name in ("photo.heic", "Thumbs.db"):
        (tmp_path / "trainA" / name).write_bytes(b"x")
    with pytest.raises(DataError, match=r"holds no images .*2 other files such as Thumbs.db"):
        find_domains(root_config(tmp_path))


def test_lists_name_files_relative_to_the_folder(tmp_path, lists):
    crlf = "\ufeff 1.png\r\n\r\nsub/x y.png \r\n"
    Path(lists["data_list_train_a"]).write_bytes(crlf.encode())
    put(tmp_path / "a/sub/x y.png")
    found = find_domains(Config(**lists))
    assert found.train_a == (tmp_path / "a/1.png", tmp_path / "a/sub/x y.png")
    assert found.train_b == (tmp_path / "b/2.png", tmp_path / "b/0.png")
    assert found.test_a == found.test_b == ()


def test_a_folder_without_a_list_is_searched(tmp_path, lists):
    del lists["data_list_train_b"]
    lists["data_folder_test_a"] = str(tmp_path / "b")
    found = find_domains(Config(**lists))
    assert found.train_b == found.test_a == tuple(tmp_path / f"b/{i}.png" for i in range(3))


def test_missing_list_file(lists):
    lists["data_list_train_b"] += "x"
    with pytest.raises(DataError, match=r"list file .*b\.txtx: No such file"):
        find_domains(Config(**lists))


def test_list_file_that_is_not_text(lists):
    Path(lists["data_list_train_a"]).write_bytes(b"\xff\xfe\x00x")
    with pytest.raises(DataError, match=r"a\.txt: not UTF-8 text"):
        find_domains(Config(**lists))


def test_empty_list_file(lists):
    Path(lists["data_list_train_a"]).write_text("\n \r\n")
    with pytest.raises(DataError, match=r"a\.txt names no files"):
        find_domains(Config(**lists))


def test_list_naming_absent_files_shows_five_and_counts(lists):
    names = [f"absent{i}.png" for i in range(8)]
    Path(lists["data_list_train_a"]).write_text("\n".join(["1.png", *names]))
    with pytest.raises(DataError) as error:
        find_domains(Config(**lists))
    message = str(error.value)
    assert "8 files that do not exist" in message and "and 3 more" in message
    assert all((name in message) == (i < 5) for i, name in enumerate(names))


def test_list_without_its_folder(lists):
    del lists["data_folder_train_b"]
    with pytest.raises(DataError, match="needs data_folder_train_b"):
        find_domains(Config(**lists))


def test_list_folder_missing(lists):
    lists["data_folder_train_b"] += "x"
    with pytest.raises(DataError, match=r"data_folder_train_b .*bx is not a folder"):
        find_domains(Config(**lists))


def test_one_domain_without_keys(lists):
    del lists["data_folder_train_b"], lists["data_list_train_b"]
    with pytest.raises(DataError, match="domain b has no training images"):
        find_domains(Config(**lists))


def test_both_kinds_of_data_given(tmp_path, lists):
    with pytest.raises(DataError, match=r"both data_root .* keep one"):
        find_domains(Config(data_root=str(tmp_path), **lists))


def test_no_data_given():
    with pytest.raises(DataError, match="give data_root"):
        find_domains(Config())


def test_the_shared_data_sets_are_found(shared):
    day = find_domains(root_config(shared / "data/day2night_amos"))
    counts = [len(files) for files in (day.train_a, day.train_b, day.test_a, day.test_b)]
    assert counts == [120, 120, 79, 80]
