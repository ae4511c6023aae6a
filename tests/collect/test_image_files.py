"""Which image belongs to which prompt, and what is said of images that cannot be used."""

import io
import os
import struct
import warnings
import zlib
from pathlib import Path

import pytest
from PIL import Image

from tasks.collect import image_files
from tasks.collect.image_files import MODES, MOST_PIXELS, find_images, header_of, read_header, read_whole, suffixes
from tasks.errors import InputError
from tasks.prompt_files import PromptEntry
from tests.support.prompts import read_prompts


def image(path: Path, mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (4, 4)).save(path)
    return path


def claiming(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says to be so large."""
    chunks = (b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT" + zlib.compress(b""), b"IEND")
    packed = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def test_images_are_found_by_name_and_by_number(tmp_path: Path) -> None:
    for name in ("00012.png", "b.jpg"):
        image(tmp_path / name)
    prompts = [PromptEntry("one", "memorized", images=("12",)), PromptEntry("two", "memorized", images=("b.jpg",))]
    third = PromptEntry("three", "memorized", numbers=("13",))
    found = find_images([*prompts, third], tmp_path)
    assert found.files == {"one": [tmp_path / "00012.png"], "two": [tmp_path / "b.jpg"]}
    assert found.problems == [] and found.bare == [third]


def test_images_are_found_by_their_metadata(tmp_path: Path) -> None:
    image(tmp_path / "x.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "x.png", "text": "one"}\n')
    assert find_images([PromptEntry("one", "memorized")], tmp_path).files == {"one": [tmp_path / "x.png"]}
    # The published file numbers its rows by something that no file is called after.
    numbered = PromptEntry("one", "memorized", images=("103072",))
    assert find_images([numbered], tmp_path).files == {"one": [tmp_path / "x.png"]}
    (tmp_path / "metadata.jsonl").write_text("oops\n")
    assert any("metadata.jsonl:1: not JSON" in problem for problem in find_images([numbered], tmp_path).problems)


def test_images_without_a_prompt_are_counted(tmp_path: Path) -> None:
    for name in ("1.png", "2.png", "3.png"):
        image(tmp_path / name)
    one, both = PromptEntry("one", "memorized", images=("1",)), PromptEntry("others", "memorized", images=("2", "3"))
    assert find_images([one], tmp_path).notices == [
        f"2 of 3 images in {tmp_path} belong to no prompt and are left out: 2.png, 3.png"
    ]
    assert find_images([one, both], tmp_path).notices == []
    bare = PromptEntry("bare", "memorized", source="a.csv:7")
    assert find_images([one, bare, both], tmp_path).notices == [
        f"1 of 3 prompts have no image in {tmp_path}, so copies of theirs are not found: a.csv:7"
    ]


def test_images_that_belong_to_nothing(tmp_path: Path) -> None:
    (problem,) = find_images([], tmp_path).problems
    assert "holds no images that are read here" in problem
    image(tmp_path / "x.png")
    (problem,) = find_images([PromptEntry("one", "memorized", images=("12",))], tmp_path).problems
    assert "belongs to a prompt, such as '12' of 'one'" in problem
    (problem,) = find_images([], tmp_path / "none").problems
    assert "there is no such folder" in problem
    (problem,) = find_images([], tmp_path / "x.png").problems
    assert "is no folder" in problem


def test_images_of_a_further_file_are_found_by_name_and_by_metadata_not_by_number(tmp_path: Path) -> None:
    for name in ("1.png", "dog.png", "sea.png"):
        image(tmp_path / name)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "sea.png", "text": "the sea"}\n')
    mine = [PromptEntry("a cat", "memorized", images=("1",))]
    others = [PromptEntry("a dog", "ordinary", images=("dog.png",)), PromptEntry("a car", "null", numbers=("1",))]
    found = find_images(mine, tmp_path, [*others, PromptEntry("the sea", "ordinary")]).files
    assert {text: [path.name for path in paths] for text, paths in found.items()} == {
        "a cat": ["1.png"],
        "a dog": ["dog.png"],
        "the sea": ["sea.png"],
    }


def test_images_of_one_name_in_two_folders_are_told_apart_by_their_paths(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        image(tmp_path / name / "01.png")
    prompts = [
        PromptEntry("a cat", "memorized", images=("cat/01.png",)),
        PromptEntry("a dog", "memorized", images=("dog/01",)),
    ]
    assert find_images(prompts, tmp_path).files == {
        "a cat": [tmp_path / "cat" / "01.png"],
        "a dog": [tmp_path / "dog" / "01.png"],
    }
    for name in ("01.png", "1"):
        (problem,) = find_images(
            [PromptEntry("a cat", "memorized", images=(name,), source="a.csv:2")], tmp_path
        ).problems
        assert problem.startswith(f"a.csv:2: which image is {name!r}, ") and "dog/01.png?" in problem
    # A path that is not there is not taken for another folder's, but one that begins further up is right.
    found = find_images([prompts[0], PromptEntry("a cow", "memorized", images=("cow/01.png",))], tmp_path)
    assert found.files.keys() == {"a cat"} and "no image 'cow/01.png'" in found.problems[0]
    above = PromptEntry("a dog", "memorized", images=("images/dog/01.png",))
    assert find_images([above], tmp_path).files == {"a dog": [tmp_path / "dog" / "01.png"]}
    image(tmp_path / "01.png")
    found = find_images([PromptEntry("a cat", "memorized", images=("01.png",))], tmp_path)
    assert found.files == {"a cat": [tmp_path / "01.png"]}


def test_a_number_beside_a_name_counts_only_where_the_name_finds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("index,file_name,caption\n3,00017.png,named\n17,http://x/y.png,numbered\n")
    prompts = read_prompts(path)
    assert [(prompt.images, prompt.numbers) for prompt in prompts] == [
        (("00017.png",), ("3",)),
        (("http://x/y.png",), ("17",)),
    ]
    for name in ("00003.png", "00017.png"):
        image(tmp_path / name)
    found = find_images(prompts, tmp_path)
    assert found.files == {name: [tmp_path / "00017.png"] for name in ("named", "numbered")} and not found.problems


def test_that_nothing_will_be_a_control_is_said(tmp_path: Path) -> None:
    image(tmp_path / "1.png")
    others = [PromptEntry("a dog", "ordinary", numbers=("1",))]
    (notice,) = find_images([PromptEntry("a cat", "memorized", numbers=("1",))], tmp_path, others).notices
    assert "attacks will have no control" in notice


def test_every_name_that_leads_nowhere_is_named_with_its_line(tmp_path: Path) -> None:
    image(tmp_path / "1.png")
    (tmp_path / "8.xyz").write_bytes(b"x")
    prompts = [
        PromptEntry("one", "memorized", images=("1.png", "2.png"), source="a.csv:2"),
        PromptEntry("three", "memorized", images=("3.png",), source="a.csv:3"),
        PromptEntry("address", "memorized", images=("http://x/9.png",), source="a.csv:4"),
        PromptEntry("number", "memorized", numbers=("9",), source="a.csv:5"),
        PromptEntry("odd", "memorized", images=("8.xyz",), source="a.csv:6"),
        PromptEntry("far", "ordinary", images=("x" * 5000 + ".png",), source="b.csv:1"),
    ]
    found = find_images(prompts[:5], tmp_path, prompts[5:])
    assert found.files == {"one": [tmp_path / "1.png"]}
    assert [problem.split(": ")[0] for problem in found.problems] == ["b.csv:1", "a.csv:2", "a.csv:3", "a.csv:6"]
    assert "there is no image '2.png'" in found.problems[1] and "no kind of image that is read" in found.problems[3]


@pytest.mark.parametrize("suffix", [".heic", ".JXL", ".svg", ".psd", ".cr2"])
def test_what_no_library_here_reads_is_named_with_its_reason(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"1{suffix}").write_bytes(b"x")
    prompt = PromptEntry("one", "memorized", numbers=("1",), source="a.csv:2")
    (problem,) = find_images([prompt], tmp_path).problems
    assert f"1 are of kinds that are not read, such as 1{suffix}" in problem
    image(tmp_path / "2.png")
    (problem,) = find_images([prompt, PromptEntry("two", "memorized", numbers=("2",))], tmp_path).problems
    assert problem.startswith("a.csv:2: ") and f"1{suffix} is " in problem and "save it as PNG or JPEG" in problem


@pytest.mark.parametrize("suffix", sorted(suffixes()))
def test_every_format_of_pillow_that_people_have_is_read(tmp_path: Path, suffix: str) -> None:
    for name in (f"1{suffix}", f"2{suffix.upper()}"):
        image(tmp_path / name)
        assert (read_header(tmp_path / name).width, read_whole(tmp_path / name)[1].height) == (4, 4)
    prompts = [
        PromptEntry("one", "memorized", numbers=("1",)),
        PromptEntry("two", "memorized", images=(f"2{suffix.upper()}",)),
    ]
    assert find_images(prompts, tmp_path).files.keys() == {"one", "two"}


def test_the_formats_that_the_readme_names() -> None:
    wanted = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".jp2", ".avif"}
    assert wanted <= suffixes() | ({".avif"} if "AVIF" not in image_files.FORMATS else set())


def test_what_systems_put_beside_images_is_no_image(tmp_path: Path) -> None:
    image(tmp_path / "1.png")
    for name in ("._1.png", ".thumbnails/1.png", "__MACOSX/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    found = find_images([PromptEntry("one", "memorized", images=("1.png",))], tmp_path)
    assert found.files == {"one": [tmp_path / "1.png"]} and found.problems == found.notices == []


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "it is empty"),
        (b"\n<!DOCTYPE html><html>not found", "it is a web page or SVG"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "it is a HEIC image"),
        (b"\xff\x0a\0\0", "it is a JPEG XL image"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
        (b"no image", "it is of no kind that is read here"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR", ""),
    ],
)
def test_the_cause_is_the_cause(tmp_path: Path, content: bytes, why: str) -> None:
    (tmp_path / "1.png").write_bytes(content)
    with pytest.raises(InputError) as refusal:
        read_header(tmp_path / "1.png")
    assert str(refusal.value).startswith(f"{tmp_path / '1.png'} cannot be read as an image") and why in str(
        refusal.value
    )
    assert "\n" not in str(refusal.value)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "1.png")
    for read in (read_header, read_whole):
        with pytest.raises(InputError, match=r"1\.png cannot be read as an image \(it is a pipe or device\)"):
            read(tmp_path / "1.png")


def test_a_truncated_image_has_a_header_and_is_refused_whole(tmp_path: Path) -> None:
    whole = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(whole, "PNG")
    (tmp_path / "1.png").write_bytes(whole.getvalue()[:-500])
    assert read_header(tmp_path / "1.png").width == 64
    with pytest.raises(InputError, match=r"1\.png cannot be read as an image \(.*truncated"):
        read_whole(tmp_path / "1.png")


@pytest.mark.parametrize(
    ("width", "height"), [(8001, 8000), (1, MOST_PIXELS + 1), (9_500, 9_500), (20_000, 20_000), (2**31 - 1, 2**31 - 1)]
)
def test_images_of_too_many_pixels_are_refused_by_name_before_they_are_unfolded(width: int, height: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InputError, match=r"^bomb\.png has .* pixels, and images may have 64 million at most"):
            header_of("bomb.png", io.BytesIO(claiming(width, height)))


def test_no_limit_of_pillow_lies_below_ours() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert header_of("large.png", io.BytesIO(claiming(8000, 8000))).width == 8000


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_pixels_without_a_look_in_eight_bits_are_refused(tmp_path: Path, mode: str) -> None:
    assert mode not in MODES
    with pytest.raises(InputError, match="8 bits a channel"):
        read_header(image(tmp_path / "1.tif", mode))


@pytest.mark.parametrize(("suffix", "frames"), [(".gif", 3), (".png", 3), (".webp", 3), (".tif", 3)])
def test_frames_are_counted_and_the_first_is_taken(tmp_path: Path, suffix: str, frames: int) -> None:
    colours = [Image.new("RGB", (4, 4), colour) for colour in ("red", "green", "blue")]
    path = tmp_path / f"1{suffix}"
    colours[0].save(path, save_all=True, append_images=colours[1:])
    assert read_header(path).frames == frames
