"""The page of methods is that of their specs."""

from tasks.methods import methods
from tests.fill_methods import PAGE, filled


def test_the_page_knows_every_method() -> None:
    text = PAGE.read_text()
    # Where this fails, `python -m tests.fill_methods` puts the page right.
    assert filled(text) == text
    assert [one.name for one in methods() if f"`{one.name}`" not in text] == []
    assert "`random-nemo-union`" in text and "`wanda-control`" in text
