import pytest
from hypothesis import given
from hypothesis import strategies as st

from prlhf.infra.errors import UserError, loading, printable


@given(st.text(st.characters(codec=None) | st.sampled_from("\x1b\r\n\u2028\ud800\x9b")))
def test_a_message_is_one_printable_line_whatever_it_quotes(text):
    (line,) = UserError(f"cannot read {text}", where=text, fix=text).lines()
    assert len(line.encode().splitlines()) == 1
    assert line.splitlines() == [line]
    assert not any(ord(char) < 32 or 127 <= ord(char) < 160 for char in line)


def test_what_is_not_printable_is_named():
    assert printable("a\x1b[31m b\n\tc \ud800é") == r"a\x1b[31m b c \ud800é"


@pytest.mark.parametrize("raised", [TypeError("bad"), AttributeError("bad"), Exception("bad")])
def test_whatever_the_readers_of_a_damaged_file_raise_is_one_error(raised):
    with pytest.raises(UserError) as caught, loading("holds no model", where="models/x"):
        raise raised
    assert str(caught.value) == "models/x: holds no model: bad"


def test_an_error_of_ones_own_and_lack_of_memory_pass():
    for raised in (UserError("has no rows"), MemoryError()):
        with pytest.raises(type(raised)) as caught, loading("holds no model", where="models/x"):
            raise raised
        assert caught.value is raised
