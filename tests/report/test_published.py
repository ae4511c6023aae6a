"""Published figures stand beside an audit's own, and it is said whose they are."""

from tasks.conditions import Condition
from tasks.report.published import FIGURES, MODEL, SOURCE, published_text
from tasks.report.verdict import Row


def row(variant: str, name: str, metric: str, value: float) -> tuple[tuple[str, Condition, str], Row]:
    condition = Condition.parse(name)
    return (variant, condition, metric), Row(variant, condition, metric, value, None, None, 10)


def cells(text: str, words: str) -> list[str]:
    (line,) = (line for line in text.splitlines() if line.startswith(f"| {words} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_our_figures_stand_in_their_columns() -> None:
    text = published_text(
        dict(
            [
                row("wanda", "dori-prompt", "mr_generations", 0.74),
                row("wanda", "dori-prompt", "mr", 0.96),
                row("wanda", "dori-prompt", "sscd_orig_median_mean", 0.75),
                row("original", "prompt", "mr", 0.98),
            ]
        )
    )
    assert cells(text, "Wanda, under Dori") == ["Wanda, under Dori", "0.72", "0.76", "0.74", "0.96", "0.75"]
    assert cells(text, "the model itself, memorized prompts")[1:] == ["0.98", "0.90", "", "0.98", ""]
    assert cells(text, "NeMo, prompts")[1:] == ["0.20", "0.33", "", "", ""]
    assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) == 1


def test_it_is_said_whose_figures_they_are() -> None:
    text = published_text(dict([row("original", "prompt", "mr", 0.98)]))
    before = text[: text.index("| |")]
    assert MODEL in before and SOURCE in before and "of another model" in before
    assert text.count("published, SD 1.4") == 2


def test_another_start_or_variant_is_not_the_like() -> None:
    others = dict([row("wanda", "dori-noise", "mr", 0.88), row("nemo-union", "prompt", "mr", 0.44)])
    assert published_text(others) == ""
    text = published_text(others | dict([row("original", "prompt", "mr", 0.98)]))
    assert "0.88" not in text and "0.44" not in text


def test_every_published_rate_is_a_rate_and_named_once() -> None:
    assert all(0 <= figure.mr <= 1 and 0 <= figure.sscd <= 1 for figure in FIGURES)
    assert len({(figure.variant, figure.condition) for figure in FIGURES}) == len(FIGURES)
