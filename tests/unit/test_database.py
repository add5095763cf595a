"""The door to the database: what is said when nobody answers."""

from __future__ import annotations

import pytest

from aos.codecs.errors import TransientError
from aos.infra.database import link


def test_a_database_that_does_not_answer_is_an_error_with_code_and_hint() -> None:
    with pytest.raises(TransientError) as error:
        link("postgresql://postgres@127.0.0.1:1/nowhere")
    assert error.value.code == "AOS4002"
    assert error.value.hint
