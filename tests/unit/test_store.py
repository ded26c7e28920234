from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from in_graph_lora.trainer.data import store as store_module
from in_graph_lora.trainer.data.store import Entry, Store, clear, key_of, usage
from in_graph_lora.trainer.events import Notice


def _quiet(event: object) -> None:
    pass


def _entry(fill: float = 1.0, size: int = 16) -> Entry:
    return Entry(
        {"latent": torch.full((4, size), fill), "b": torch.ones(2, dtype=torch.bfloat16)}, {"a": [1]}
    )


def _same(one: Entry | None, other: Entry) -> bool:
    return (
        one is not None
        and one.constants == other.constants
        and one.tensors.keys() == other.tensors.keys()
        and all(
            torch.equal(t, other.tensors[k]) and t.dtype == other.tensors[k].dtype
            for k, t in one.tensors.items()
        )
    )


def test_a_link_in_the_cache_leads_to_nothing_that_is_deleted(tmp_path: Path) -> None:
    cache, other = tmp_path / "cache", tmp_path / "other"
    key = key_of("a")
    Store(other, _quiet).put(key, _entry())
    cache.mkdir()
    (cache / key[:2]).symlink_to(other / key[:2], target_is_directory=True)
    assert usage(cache) == clear(cache) == (0, 0)
    assert _file(other, key).exists()


def _file(folder: Path, key: str) -> Path:
    return folder / key[:2] / f"{key}.safetensors"


def test_what_was_put_comes_back_in_another_process(tmp_path: Path) -> None:
    key = key_of("a", 1)
    Store(tmp_path, _quiet).put(key, _entry())
    fresh = Store(tmp_path, _quiet)
    assert key in fresh
    assert fresh.shape(key, "latent") == (4, 16)
    assert _same(fresh.get(key), _entry())
    assert key_of("a", 2) not in fresh
    assert fresh.get(key_of("a", 2)) is None


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def _other_constants(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"[1]", b"[2]"))


def _other_key(path: Path) -> None:
    key = key_of("somebody else's")
    Store(path.parent.parent, _quiet).put(key, _entry(2.0))
    path.write_bytes(_file(path.parent.parent, key).read_bytes())


def _foreign(path: Path) -> None:
    safetensors.torch.save_file({"latent": torch.zeros(4, 16)}, path)


def _header_of_a_gigabyte(path: Path) -> None:
    path.write_bytes((10**9).to_bytes(8, "little") + b"{}")


@pytest.mark.parametrize(
    "harm", [_cut, _empty, _flip_a_bit, _other_constants, _other_key, _foreign, _header_of_a_gigabyte]
)
def test_a_torn_or_altered_file_counts_as_missing_and_is_replaced(tmp_path: Path, harm) -> None:
    key = key_of("x")
    Store(tmp_path, _quiet).put(key, _entry())
    harm(_file(tmp_path, key))
    fresh = Store(tmp_path, _quiet)
    assert fresh.get(key) is None
    assert key not in fresh
    fresh.put(key, _entry(3.0))
    assert _same(fresh.get(key), _entry(3.0))
    assert _same(Store(tmp_path, _quiet).get(key), _entry(3.0))


def test_a_torn_file_has_no_shape(tmp_path: Path) -> None:
    key = key_of("x")
    Store(tmp_path, _quiet).put(key, _entry())
    _cut(_file(tmp_path, key))
    assert Store(tmp_path, _quiet).shape(key, "latent") is None


def test_what_holds_nan_never_reaches_the_disk(tmp_path: Path) -> None:
    store, key = Store(tmp_path, _quiet), key_of("x")
    store.put(key, _entry(float("nan")))
    assert store.get(key) is not None
    assert usage(tmp_path) == (0, 0)
    assert key not in Store(tmp_path, _quiet)


def test_a_folder_that_cannot_be_made_leaves_everything_in_memory_and_says_so_once(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    notices: list[Notice] = []
    store = Store(tmp_path / "cache", notices.append)
    for i in range(3):
        store.hold([key_of(i)])
        store.put(key_of(i), _entry(i))
    assert all(_same(store.get(key_of(i)), _entry(i)) for i in range(3))
    assert store.shape(key_of(0), "latent") == (4, 16)
    assert len(notices) == 1
    assert "stays in memory" in notices[0].message


def test_entries_of_before_are_read_where_nothing_can_be_written(tmp_path: Path, monkeypatch) -> None:
    old, new = key_of("old"), key_of("new")
    Store(tmp_path, _quiet).put(old, _entry(1))
    monkeypatch.setattr(store_module, "write_whole", lambda path, *a, **k: _refuse(path))
    store = Store(tmp_path, _quiet)
    store.put(new, _entry(2))
    assert _same(store.get(old), _entry(1))
    assert _same(store.get(new), _entry(2))


def test_a_disk_that_is_nearly_full_is_left_to_the_run(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(store_module, "SPARE", 10**30)
    notices: list[Notice] = []
    store = Store(tmp_path / "cache", notices.append)
    for i in range(2):
        store.put(key_of(i), _entry(i))
    assert usage(tmp_path / "cache") == (0, 0)
    assert _same(store.get(key_of(1)), _entry(1))
    assert ["free on the disk" in n.message for n in notices] == [True]


def _refuse(path: Path) -> None:
    raise store_module.StorageError(f"{path} cannot be written (no space left)")


def test_a_folder_that_vanishes_is_made_again(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    store = Store(folder, _quiet)
    store.put(key_of(1), _entry(1))
    clear(folder)
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir()
    folder.rmdir()
    assert key_of(1) not in store
    store.put(key_of(2), _entry(2))
    assert usage(folder)[0] == 1


def _bytes_of_one(tmp_path: Path) -> int:
    Store(tmp_path / "one", _quiet).put(key_of(0), _entry(0, 256))
    return usage(tmp_path / "one")[1]


def _aged(folder: Path, key: str, seconds: int) -> None:
    path = _file(folder, key)
    os.utime(path, (path.stat().st_mtime - seconds,) * 2)


def test_what_was_not_used_for_longest_goes_first(tmp_path: Path) -> None:
    folder, one = tmp_path / "cache", _bytes_of_one(tmp_path)
    keys = [key_of(i) for i in range(6)]
    first = Store(folder, _quiet, 100 * one)
    for i, key in enumerate(keys[:5]):
        first.put(key, _entry(i, 256))
        _aged(folder, key, 1000 - i)
    first.release()
    second = Store(folder, _quiet, 5 * one)
    second.hold(keys[:1])  # the oldest is used again
    second.put(keys[5], _entry(5, 256))
    assert usage(folder)[1] <= 5 * one
    fresh = Store(folder, _quiet)
    assert [key in fresh for key in keys] == [True, False, False, True, True, True]


def test_nothing_that_a_living_process_holds_is_evicted(tmp_path: Path) -> None:
    folder, one = tmp_path / "cache", _bytes_of_one(tmp_path)
    held = [key_of(i) for i in range(3)]
    theirs = Store(folder, _quiet)
    for i, key in enumerate(held):
        theirs.put(key, _entry(i, 256))
        _aged(folder, key, 1000)
    theirs.hold(held)
    notices: list[Notice] = []
    ours = Store(folder, notices.append, 2 * one)
    ours.put(key_of("ours"), _entry(9, 256))
    fresh = Store(folder, _quiet)
    assert all(key in fresh for key in (*held, key_of("ours")))
    assert ["needs more" in n.message for n in notices] == [True]
    theirs.release()
    ours.release()
    Store(folder, _quiet, 2 * one).put(key_of("later"), _entry(9, 256))
    assert usage(folder)[1] <= 2 * one


def test_a_dead_process_holds_nothing(tmp_path: Path) -> None:
    folder, one = tmp_path / "cache", _bytes_of_one(tmp_path)
    key = key_of("dead")
    Store(folder, _quiet).put(key, _entry(0, 256))
    dead = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True
    )
    lease = folder / "in-use" / f"{int(dead.stdout)}-0.json"
    lease.parent.mkdir()
    lease.write_text(json.dumps({"keys": [key]}))
    _aged(folder, key, 1000)
    Store(folder, _quiet, one).put(key_of("new"), _entry(1, 256))
    assert key not in Store(folder, _quiet)
    assert not lease.exists()


def test_clear_takes_entries_and_nothing_else(tmp_path: Path) -> None:
    store = Store(tmp_path, _quiet)
    store.put(key_of(1), _entry())
    run = tmp_path / "0001" / "run.json"  # a run with the name "cache" lies in the same folder
    run.parent.mkdir()
    run.write_text("{}")
    foreign = _file(tmp_path, key_of(1)).with_name("mine.safetensors")
    foreign.write_bytes(b"mine")
    count, size = usage(tmp_path)
    assert count == 1
    assert clear(tmp_path) == (count, size)
    assert usage(tmp_path) == (0, 0)
    assert run.exists()
    assert foreign.exists()
    assert usage(tmp_path / "not there") == clear(tmp_path / "not there") == (0, 0)


def test_memory_is_bounded_however_much_is_read(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(store_module, "IN_MEMORY", 10 * _entry(0, 256).nbytes)
    store = Store(tmp_path, _quiet)
    for i in range(50):
        store.put(key_of(i), _entry(i, 256))
    for i in range(50):
        assert _same(store.get(key_of(i)), _entry(i, 256))
    assert sum(e.nbytes for e in store._recent.values()) == store._recent_bytes <= 10 * _entry(0, 256).nbytes


def test_two_processes_may_write_the_same_entries_at_once(tmp_path: Path, repo_root: Path) -> None:
    script = f"""
import sys
sys.path.insert(0, {str(repo_root / "tests")!r})
import conftest
from unit.test_store import put_and_read
from pathlib import Path
put_and_read(Path({str(tmp_path)!r}))
"""
    with subprocess.Popen([sys.executable, "-c", script], cwd=repo_root) as other:
        while other.poll() is None:
            put_and_read(tmp_path)
    assert other.returncode == 0
    fresh = Store(tmp_path, _quiet)
    assert all((e := fresh.get(key_of(i))) is not None and e.constants == i for i in range(50, 60))
    assert not list(tmp_path.rglob("*.part"))


def put_and_read(folder: Path) -> None:
    """With room for some twenty of sixty entries."""
    store = Store(folder, _quiet, 20 * 18_000)
    for i in range(60):
        found = store.get(key_of(i))
        assert found is None or found.constants == i
        store.put(key_of(i), Entry({"latent": torch.full((64, 64), float(i))}, i))
        store._recent.clear()
        store.release()
