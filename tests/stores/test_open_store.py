from __future__ import annotations

import subprocess
import sys

import pytest

from wsgi_isr.errors import ConfigError
from wsgi_isr.stores import open_store
from wsgi_isr.stores.memory import MemoryStore
from wsgi_isr.stores.null import NullStore
from wsgi_isr.stores.sqlite.store import SQLiteStore


def test_memory_opens_with_and_without_a_bound():
    assert isinstance(open_store("memory://"), MemoryStore)
    store = open_store("memory://?max_bytes=100000")
    assert isinstance(store, MemoryStore)
    assert store.max_bytes == 100_000


def test_null_opens():
    assert isinstance(open_store("null://"), NullStore)


def test_three_slashes_are_a_relative_path_and_four_an_absolute_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    relative = open_store("sqlite:///cache/relative.db?max_bytes=100000&timeout=0.5")
    assert isinstance(relative, SQLiteStore)
    assert relative.path == str(tmp_path / "cache" / "relative.db")
    assert relative._table.max_bytes == 100_000
    assert relative._table._file.timeout == 0.5
    absolute = open_store(f"sqlite:///{tmp_path}/absolute.db")
    assert isinstance(absolute, SQLiteStore)
    assert absolute.path == str(tmp_path / "absolute.db")


def test_a_path_is_percent_decoded(tmp_path):
    open_store(f"sqlite:///{tmp_path}/a%20b%3F%23.db").set("key", b"value")
    assert (tmp_path / "a b?#.db").exists()


def test_the_scheme_may_be_written_in_capitals():
    assert isinstance(open_store("Memory://"), MemoryStore)


@pytest.mark.parametrize(
    ("url", "problem", "remedy"),
    [
        ("", "no scheme", "sqlite:///"),
        ("store.db", "no scheme", "sqlite:///"),
        ("sqlite:store.db", "no scheme", "sqlite:///"),
        ("://x", "no scheme", "sqlite:///"),
        (None, "NoneType", "memory://"),
        ("sqlit:///x.db", "sqlit://", "did you mean sqlite?"),
        ("etcd://x", "etcd://", "known: memcached, memory, null, redis, rediss, sqlite, valkey, valkeys"),
        ("memory://?max_byte=100000", "'max_byte'", "did you mean max_bytes?"),
        ("memory://?timeout=1", "'timeout'", "max_bytes"),
        ("memory://?max_bytes=big", "'big'", "max_bytes="),
        ("memory://?max_bytes=-1", "'-1'", "max_bytes="),
        ("memory://?max_bytes=", "''", "max_bytes="),
        ("memory://?max_bytes=1_000_000", "'1_000_000'", "max_bytes="),
        ("memory://?max_bytes=²", "'²'", "max_bytes="),
        ("memory://?max_bytes=5", "too small", "65536"),
        ("memory://?max_bytes=100000&max_bytes=200000", "twice", "once"),
        ("memory://?max_bytes", "malformed", "option=value"),
        ("memory://#5", "'#'", "%23"),
        ("null://?max_bytes=100000", "'max_bytes'", "leave it out"),
        ("sqlite://", "no file", "sqlite:///"),
        ("sqlite:///", "no file", "sqlite:///"),
        ("sqlite:///cache/", "no file", "sqlite:///"),
        ("sqlite://cache/store.db", "'cache'", "three slashes"),
        ("sqlite:///:memory:", ":memory:", "memory://"),
        ("sqlite:///%FF.db", "malformed", ""),
        ("sqlite:///x.db?timeout=soon", "'soon'", "timeout="),
        ("sqlite:///x.db?timeout=0", "'0'", "timeout="),
        ("sqlite:///x.db?timeout=nan", "'nan'", "timeout="),
        ("sqlite:///x.db?timeout=inf", "'inf'", "timeout="),
        ("sqlite:///x.db?timeout=-1", "'-1'", "timeout="),
        ("sqlite:///x.db?mode=ro", "'mode'", "max_bytes, timeout"),
    ],
)
def test_a_url_that_cannot_be_opened_names_the_option_and_the_remedy(url, problem, remedy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        open_store(url, option="WSGI_ISR_STORE")
    assert caught.value.option == "WSGI_ISR_STORE"
    assert problem in caught.value.problem
    assert remedy in caught.value.remedy
    assert list(tmp_path.iterdir()) == []


def test_an_error_does_not_repeat_a_password():
    with pytest.raises(ConfigError) as caught:
        open_store("redis://user:secret@host/?password=secret#x")
    assert "secret" not in str(caught.value)


def test_a_scheme_loads_only_its_own_module():
    loaded = "{'sqlite3', 'importlib.metadata'} & set(sys.modules)"
    # The files are imported without the package's __init__, whose imports do not matter here.
    script = (
        "import sys, types; package = types.ModuleType('wsgi_isr'); package.__path__ = ['wsgi_isr'];"
        "sys.modules['wsgi_isr'] = package; from wsgi_isr.stores import open_store; open_store('memory://');"
        f"assert not {loaded}, {loaded}; open_store('null://'); assert not {loaded}, {loaded}"
    )
    done = subprocess.run([sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, '.'); {script}"], check=False)
    assert done.returncode == 0


class TestEntryPoints:
    """Entry points of other distributions: metadata in a directory of ``sys.path``, as when installed."""

    @pytest.fixture
    def install(self, tmp_path, monkeypatch):
        def install(name: str, scheme: str, source: str) -> None:
            site = tmp_path / name
            metadata = site / f"{name}-1.0.dist-info"
            metadata.mkdir(parents=True)
            (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
            (metadata / "entry_points.txt").write_text(f"[wsgi_isr.stores]\n{scheme} = {name}:make\n")
            (site / f"{name}.py").write_text(source)
            monkeypatch.syspath_prepend(site)
            monkeypatch.delitem(sys.modules, name, raising=False)

        return install

    def test_a_store_of_another_distribution_opens_by_its_scheme(self, install):
        install(
            "foreign_one",
            "my-own+x.y",
            "from wsgi_isr.stores.memory import MemoryStore\n"
            "def make(url):\n"
            "    store = MemoryStore()\n"
            "    store.set('url', url.encode())\n"
            "    return store\n",
        )
        assert open_store("my-own+x.y://host/?a=b").get("url") == b"my-own+x.y://host/?a=b"

    def test_a_misspelt_scheme_of_another_distribution_is_suggested(self, install):
        install("foreign_two", "rediscluster", "")
        with pytest.raises(ConfigError, match="did you mean rediscluster"):
            open_store("rediscluste://")

    def test_no_distribution_can_take_a_scheme_of_ours(self, install):
        install("foreign_three", "memory", "raise AssertionError('imported')")
        assert isinstance(open_store("memory://"), MemoryStore)

    def test_two_distributions_with_one_scheme_are_named(self, install):
        install("foreign_four", "same", "")
        install("foreign_five", "same", "")
        with pytest.raises(ConfigError, match="same://") as caught:
            open_store("same://")
        assert "foreign_four" in caught.value.problem
        assert "foreign_five" in caught.value.problem

    @pytest.mark.parametrize(
        ("source", "problem"),
        [
            ("import a_module_that_is_nowhere", "ModuleNotFoundError"),
            ("", "make"),
            ("def make(url): raise OSError('no route to host')", "no route to host"),
            ("def make(url): return {}", "returned a dict"),
        ],
    )
    def test_one_that_does_not_open_is_a_configuration_error_that_names_it(self, install, source, problem):
        install("foreign_six", "broken", source)
        with pytest.raises(ConfigError) as caught:
            open_store("broken://", option="argument")
        assert caught.value.option == "argument"
        assert problem in caught.value.problem
        assert "foreign_six" in caught.value.problem

    def test_its_own_configuration_error_comes_through_under_our_option(self, install):
        install(
            "foreign_seven",
            "careful",
            "from wsgi_isr.errors import ConfigError\n"
            "def make(url): raise ConfigError('store', 'no host', 'write careful://host')\n",
        )
        with pytest.raises(ConfigError) as caught:
            open_store("careful://", option="argument")
        assert (caught.value.option, caught.value.remedy) == ("argument", "write careful://host")
