"""Files and datasets: found and read, or an error that says what is wrong with them."""

import json

import pytest

from robench.errors import InputError
from robench.texts import records

COMMIT = "0" * 40


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """Datasets in the local cache of the hub, which itself cannot be reached."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def add(dataset: str, files: dict[str, str]):
        folder = tmp_path / f"datasets--{dataset.replace('/', '--')}"
        (folder / "refs").mkdir(parents=True)
        (folder / "refs" / "main").write_text(COMMIT)
        for name, content in files.items():
            file = folder / "snapshots" / COMMIT / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content)

    return add


def test_a_dataset_is_read_from_the_cache(cached):
    files = {f"data/{split}-{i}.csv": f"prompt\n{split} {i}\n" for split in "ab" for i in (0, 1)}
    cached("owner/set", files)
    (one,) = records.find_files("owner/set/data/a-1.csv")
    assert one.read_text() == "prompt\na 1\n"
    rows = records.read(records.find_files("owner/set/data/a-*.csv"))
    assert [record["prompt"] for _, record in rows] == ["a 0", "a 1"]
    with pytest.raises(InputError, match=r"no data/c\.csv in the dataset owner/set"):
        records.find_files("owner/set/data/c.csv")


@pytest.mark.parametrize("reference", ["owner/none/a.csv", "owner/none"])
def test_an_unreachable_hub_is_reported_with_the_fix(cached, reference):
    with pytest.raises(InputError) as error:
        records.find_files(reference)
    assert str(error.value).startswith(
        f"{reference} is not a local file, the hub cannot be reached"
    )
    assert "HF_HOME" in str(error.value)


def hub(monkeypatch, answer):
    monkeypatch.setattr("huggingface_hub.snapshot_download", answer)


def test_gated_and_unknown_datasets_have_messages_of_their_own(monkeypatch):
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    def refuse(error):
        def download(*_, **__):
            raise error.__new__(error)

        return download

    hub(monkeypatch, refuse(GatedRepoError))
    with pytest.raises(InputError, match=r"conditions on https://huggingface.co/datasets/o/n and"):
        records.find_files("o/n/a.csv")
    hub(monkeypatch, refuse(RepositoryNotFoundError))
    with pytest.raises(InputError, match="the hub has no dataset o/n"):
        records.find_files("o/n/a.csv")


def test_of_a_dataset_of_several_files_one_must_be_named(monkeypatch, tmp_path):
    from collections import namedtuple

    listed = ["README.md", "train.csv"]

    def download(dataset, repo_type, allow_patterns="", dry_run=False):
        assert (dataset, repo_type) == ("o/n", "dataset")
        if dry_run:
            return [namedtuple("Info", "filename")(name) for name in listed]
        (tmp_path / allow_patterns).write_text("prompt\nDo it\n")
        return str(tmp_path)

    hub(monkeypatch, download)
    assert records.find_files("o/n") == [tmp_path / "train.csv"]
    listed.append("test.parquet")
    with pytest.raises(InputError, match=r"o/n has 2 files .* \(test.parquet, train.csv\); name"):
        records.find_files("o/n")


def test_a_path_is_not_a_dataset(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hub(monkeypatch, None)  # any call of it fails
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c.csv").write_text("prompt\nDo it\n")
    for path in ("a/b/c.csv", "a/nowhere.csv", "/x/y", "./x/y", "nowhere.csv"):
        assert [str(file) for file in records.find_files(path)] == [path.removeprefix("./")]


def test_parquet_may_contain_lists_and_null(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    rows = [{"prompt": "a", "messages": [{"role": "user"}]}, {"prompt": None, "messages": []}]
    file = tmp_path / "a.parquet"
    write_table(pyarrow.Table.from_pylist(rows), file)
    assert [record for _, record in records.read([file])] == rows
    file.write_text("no parquet")
    with pytest.raises(InputError, match=r"cannot read .*a\.parquet: "):
        records.read([file])


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"pip install 'robench\[parquet\]'"):
        records.read([tmp_path / "a.parquet"])


def test_columns_are_normalised_and_empty_values_skipped(tmp_path):
    file = tmp_path / "a.json"
    file.write_text(json.dumps([{"Context String": "x", "b_c": ""}, {"B c": 0, "d": None}]))
    first, second = records.read([file])
    assert records.text(first, "b_c", "context_string") == "x"
    assert records.text(second, "d", "bC") == "0"
    assert records.has([first, second], "contextString", "D")
    assert not records.has([first, second], "contextString", "e")
