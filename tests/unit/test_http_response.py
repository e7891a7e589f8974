"""The stored form of responses."""

from __future__ import annotations

import dataclasses

from wsgi_isr.data.http_response import SCHEMA, StoredResponse


def test_the_stored_name_and_fields_of_a_response_belong_to_a_schema() -> None:
    """Entries hold the name of the class and its fields. A change needs another ``SCHEMA``, so another key."""
    stored = f"{StoredResponse.__module__}:{StoredResponse.__qualname__}"
    fields = " ".join(field.name for field in dataclasses.fields(StoredResponse))
    assert (SCHEMA, stored, fields) == (
        2,
        "wsgi_isr.data.http_response:StoredResponse",
        "status reason url headers body encoding elapsed history",
    )
