"""The keys of calls of cached functions."""

from __future__ import annotations

from typing import Any

import pytest

from wsgi_isr.data.codec import Unencodable
from wsgi_isr.data.data_key import DataKey, pack_arguments

KEY = DataKey("shop:price", 1, pack_arguments({"n": 1}))


@pytest.mark.parametrize(
    "key",
    [
        KEY,
        KEY._replace(version="1.2"),
        KEY._replace(closure_digest="c"),
        KEY._replace(app="0:shop"),
        KEY._replace(closure_digest="c", app="0:shop"),
        KEY._replace(name='"],["'),
    ],
)
def test_a_key_comes_back_from_its_text(key: DataKey) -> None:
    assert DataKey.parse(key.text) == key


@pytest.mark.parametrize(
    "change",
    [
        {"name": "shop:prices"},
        {"version": 2},
        {"version": "1"},
        {"packed": pack_arguments({"n": True})},
        {"packed": pack_arguments({"n": 1.0})},
        {"packed": pack_arguments({"n": "1"})},
        {"packed": pack_arguments({"m": 1})},
        {"closure_digest": "c"},
        {"app": "c"},
    ],
)
def test_each_part_makes_another_key(change: dict[str, Any]) -> None:
    assert KEY._replace(**change).text != KEY.text


def test_the_order_of_a_dict_in_the_arguments_makes_no_other_key() -> None:
    assert pack_arguments({"n": {"a": 1, "b": 2}}) == pack_arguments({"n": {"b": 2, "a": 1}})


def test_a_key_has_one_tag_in_all_apps() -> None:
    assert KEY._replace(app="0:shop").tag == KEY.tag
    assert KEY._replace(closure_digest="c").tag != KEY.tag


def test_the_arguments_come_back_from_the_key() -> None:
    assert DataKey.parse(KEY.text).arguments == {"n": 1}


def test_an_object_cannot_be_part_of_a_key() -> None:
    with pytest.raises(Unencodable):
        pack_arguments({"n": object()})
