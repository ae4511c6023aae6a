"""Settings as people type them: taken as they are meant, and refused in plain words, all at once."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from flows.nightly import NightlyParams
from flows.params import AuditParams, own_of
from flows.reference import BuildRun
from flows.run.spec import Run
from flows.scan import ScanRun
from flows.settings import MANAGED, Settings, listed, settings_for
from flows.typed import groups_of, leaves, problems_in, settings_of, unknown, validated, values_of
from tasks.errors import InputError
from tasks.reference.build import BuildParams
from tasks.scan.task import ScanParams


def typed(*pairs: str) -> Settings:
    return settings_for("quick", {}, **settings_of(pairs, Settings))


def refused(*pairs: str) -> list[str]:
    """What is said of settings, as the commands gather it."""
    problems: list[str] = []
    given = settings_of(pairs, Settings, problems)
    try:
        settings_for("quick", {}, **given)
    except InputError as error:
        problems += error.problems
    return problems


@pytest.mark.parametrize(
    ("pair", "value"),
    [
        ("starts=noise", ("noise",)),
        ("starts=noise,prompt", ("noise", "prompt")),
        ("starts=[noise, prompt]", ("noise", "prompt")),  # what a shell leaves of quotes
        ("starts=['noise','prompt']", ("noise", "prompt")),
        ("starts=('noise',)", ("noise",)),
        ('starts=["noise"]', ("noise",)),
        ("starts=", ()),
        ("starts=[]", ()),
        ("efforts=50", (50,)),
        ("efforts=50, 100", (50, 100)),
        ("memorized=", None),
        ("memorized=null", None),
        ("memorized=None", None),
        ("memorized=12", 12),
        ('seeds="4"', 4),
        ("seeds='4'", 4),
        ("seeds = 4", 4),
        ("seeds=4.0", 4),
        ("agreement=True", True),
        ("agreement=no", False),
        ("random-tokens.tokens=2", 2),
        ("mitigations=wanda, random-tokens", ("wanda", "random-tokens")),
        ("mitigations=['nemo']", ("nemo",)),
        ("sampling.guidance=2", 2.0),
        ("wanda.sparsity=1e-1", 0.1),
        ("nemo.statistics=12", Path("12")),
        ("nemo.site='key'", "key"),
        ('wanda={"sparsity": 0.1}', 0.1),
        ("wanda={'sparsity': 0.1}", 0.1),
    ],
)
def test_what_people_type_is_taken(pair: str, value: Any) -> None:
    chosen = typed(pair)
    for name in ("wanda.sparsity" if pair.startswith("wanda") else pair.partition("=")[0].strip()).split("."):
        chosen = getattr(chosen, name.replace("-", "_"))
    assert chosen == value


def test_a_digest_of_digits_is_a_text() -> None:
    digits = "1" * 64
    assert typed("sscd.weights=x", f"sscd.sha256={digits}").sscd.sha256 == digits
    assert typed("sscd.weights=x", f"sscd.sha256={'AB' * 32}").sscd.sha256 == "ab" * 32


@pytest.mark.parametrize(
    ("pair", "expected"),
    [
        ("seeds=0", "seeds cannot be 0: it may be: integer, >= 1, <= 100"),
        ("seeds=", "seeds cannot be '': it may be: integer, >= 1, <= 100"),
        ("seeds=null", "seeds cannot be 'null': it may be: integer, >= 1, <= 100"),
        ("seeds=true", "seeds cannot be 'true': it may be: integer, >= 1, <= 100"),
        ("seeds=many", "seeds cannot be 'many': it may be: integer, >= 1, <= 100"),
        ("seeds=2.5", "seeds cannot be 2.5: it may be: integer, >= 1, <= 100"),
        ("memorized=0", "memorized cannot be 0: it may be: integer, >= 1 or null"),
        ("wanda.sparsity=2", "wanda.sparsity cannot be 2: it may be: number, > 0, <= 1"),
        ("wanda.sparsity=NaN", "wanda.sparsity cannot be NaN: it may be: number, > 0, <= 1"),
        ("finetune.clip=Infinity", "finetune.clip cannot be Infinity: it may be: number, > 0"),
        ("finetune.clip=inf", "finetune.clip cannot be Infinity: it may be: number, > 0"),
        ("seed=9999999999", "seed cannot be 9999999999: it may be: integer, >= 0, <= 4294967295"),
        ("agreement=2", "agreement cannot be 2: it may be: boolean"),
        (
            "random-tokens=3",
            "--set 'random-tokens=3': random_tokens is a group of settings, such as random_tokens.tokens",
        ),
        ("starts=nose", "starts cannot be 'nose': it may be: a list of: prompt, noise, other; did you mean noise?"),
        (
            "starts=nose,x",
            "starts cannot be 'nose', 'x': it may be: a list of: prompt, noise, other; did you mean noise?",
        ),
        ("wanda=3", "--set 'wanda=3': wanda is a group of settings, such as wanda.half"),
        ("wanda=[1]", "--set 'wanda=[1]': wanda is a group of settings, such as wanda.half"),
        ('wanda={"sparcity": 1}', "there is no setting 'wanda.sparcity': did you mean wanda.sparsity or wanda.share?"),
        ("sparsity=0.1", "there is no setting 'sparsity': did you mean wanda.sparsity?"),
        ("threshold-nulls=3", "there is no setting 'threshold-nulls': did you mean threshold_nulls?"),
        ("Seeds=3", "there is no setting 'Seeds': did you mean seeds?"),
        ("profile=full", "there is no setting 'profile': `engram settings` lists all"),
        ("model=x", "there is no setting 'model': `engram settings` lists all"),
        ("seeds", "--set 'seeds' is not NAME=VALUE"),
        ("=3", "--set '=3' is not NAME=VALUE"),
        ("nemo.theta=0.5", "nemo: theta_min 1.0 must lie below theta 0.5"),
        ("dori.start=noise", "dori.start would be ignored: attacks begin where `starts` says"),
        ("se\x1bds=3", r"there is no setting 'se\x1bds': did you mean seeds"),
        ("seeds=\x1b[2J", r"seeds cannot be '\x1b[2J': it may be: integer, >= 1, <= 100"),
    ],
)
def test_what_cannot_be_is_refused_in_plain_words(pair: str, expected: str) -> None:
    (found,) = refused(pair)
    assert found.startswith(expected)
    assert "type=" not in found and "pydantic" not in found and found.isprintable()


def test_all_that_is_wrong_is_told_at_once() -> None:
    found = refused("seeds=0", "stepps=3", "wanda=1", "wanda.sparsity=2", "seeds", "nulls=2", "nulls=3")
    assert [sentence.split()[0] for sentence in found] == [
        "there",
        "--set",
        "--set",
        "nulls",
        "seeds",
        "wanda.sparsity",
    ]
    assert "nulls is set twice, by --set 'nulls=2' and by --set 'nulls=3': leave one" in found


def test_the_same_value_twice_is_no_fault() -> None:
    assert typed("seeds=3", "seeds=3").seeds == 3
    assert refused('wanda={"sparsity": 0.1}', "wanda.sparsity=0.2")[0].startswith("wanda.sparsity is set twice")


def test_only_what_is_listed_counts() -> None:
    names = {row["setting"] for row in listed(Settings())}
    assert names | set(MANAGED) == {name for name, _ in leaves(Settings)} and not names & set(MANAGED)
    for name in MANAGED:
        assert unknown(f"{name}s", Settings).endswith("?")


def test_scans_and_builds_are_refused_alike() -> None:
    with pytest.raises(InputError, match=r"alpha cannot be 2: it may be: number, > 0, < 1"):
        validated(ScanParams, settings_of(["alpha=2"], ScanParams))
    assert validated(ScanParams, settings_of(["detectors=ssim"], ScanParams)).detectors == ("ssim",)
    with pytest.raises(InputError, match=r"planted_batch cannot be 17: it may be: integer, >= 1, <= 16"):
        validated(BuildParams, settings_of(["planted_batch=17"], BuildParams))


def test_parameters_of_a_query() -> None:
    assert values_of(["a=1", "b=x", "c = null"]) == {"a": 1, "b": "x", "c": None}
    with pytest.raises(InputError, match="2 things cannot be used") as refusal:
        values_of(["a=1", "a=2", "b"])
    assert "'a' is set twice" in str(refusal.value)


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ("[1]", "engram.json holds no names with their values"),
        ("3", "engram.json holds no names with their values"),
        ("{", "engram.json is not JSON"),
        ('{"promts": "x"}', "engram.json: there is no setting 'promts': did you mean prompts?"),
        ('{"prompts": 3}', "engram.json: prompts cannot be 3: it may be:"),
        ('{"prompts": ""}', "engram.json: prompts cannot be ''"),
        ('{"settings": [3]}', "engram.json: settings cannot be [3]: it may be: names with their values, in braces"),
        ('{"profiles": 3}', "engram.json: profiles cannot be 3"),
        ('{"profiles": {"full": 3}}', "engram.json: profiles cannot be 3"),
        ('{"profiles": {"quik": {}}}', "engram.json has a profile 'quik'; there are quick, full"),
        ('{"settings": {"seeds": 0}}', "engram.json: seeds cannot be 0: it may be: integer, >= 1, <= 100"),
        ('{"settings": {"wanda": 3}}', "engram.json: wanda is a group of settings, such as wanda.half, not 3"),
        ('{"profiles": {"full": {"sead": 1}}}', "engram.json: there is no setting 'sead': did you mean seed"),
        ('{"settings": {"finetune": {"clip": Infinity}}}', "engram.json: finetune.clip cannot be Infinity"),
        ('{"settings": {"dori": {"also_at": [3]}}}', "engram.json: dori.also_at would be ignored"),
    ],
)
def test_what_a_model_says_of_its_audit_is_judged_by_file(tmp_path: Path, own: str, expected: str) -> None:
    (tmp_path / "engram.json").write_text(own)
    with pytest.raises(InputError) as refusal:
        own_of(tmp_path)
    (found,) = refusal.value.problems
    assert found.startswith(f"{tmp_path}/{expected}")


def test_a_model_may_give_one_value_for_a_list(tmp_path: Path) -> None:
    (tmp_path / "engram.json").write_text(json.dumps({"settings": {"starts": "noise", "efforts": 50}}))
    chosen = settings_for("quick", own_of(tmp_path))
    assert (chosen.starts, chosen.efforts) == (("noise",), (50,))


def test_what_a_form_sends_is_judged_in_plain_words() -> None:
    given = {"model": "m", "settings": {"seeds": 0, "wanda": {"sparcity": 1}, "starts": "noise"}}
    with pytest.raises(ValidationError) as refusal:
        AuditParams.model_validate(given)
    words = str(refusal.value)
    assert "settings.seeds cannot be 0: it may be: integer, >= 1, <= 100" in words
    assert "there is no setting 'settings.wanda.sparcity': did you mean settings.wanda.sparsity" in words
    # As a registration of another version is told of.
    found = problems_in(refusal.value, AuditParams)
    assert found and "settings.seeds cannot be 0" in found[0] and "Input should" not in found[0]
    with pytest.raises(ValidationError, match=r"scan\.alpha cannot be 3"):
        ScanRun.model_validate({"scan": {"alpha": 3}})


@pytest.mark.parametrize(
    "kind", [AuditParams, NightlyParams, BuildRun, Run, ScanRun, Settings, ScanParams, BuildParams]
)
def test_each_description_can_be_read_alone(kind: type[BaseModel]) -> None:
    groups = groups_of(kind)
    said = {name: field.description or "" for name, field in leaves(kind) if name not in groups}
    assert said and [name for name, text in said.items() if not re.fullmatch(r"[A-Z].*\.", text)] == []
