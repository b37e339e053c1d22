"""The folder of the format c: its program, its tokenizer and its README work as they say, and what is refused."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from support.c_model import LIBRARY, CModel
from support.families import stages
from support.heads import save_headed
from support.models import save_tiny_bert, save_tiny_clip
from ternarize_cli.errors import (
    CheckpointError,
    FormatError,
    InputError,
    OutputExistsError,
    TernarizeError,
    UnavailableError,
)
from ternarize_cli.export.options import ExportOptions
from ternarize_cli.export.session import export
from ternarize_cli.runtime.encoder import Encoder
from ternarize_cli.runtime.tokenizing import Tokens

pytestmark = pytest.mark.skipif(LIBRARY is None, reason="the compiled library is not built")
TEXTS = [
    "the cat",
    "",
    "dog house tree " * 30,
    "red green small cat in a tree by the river " * 3,
    "The CAT",
    "a [SEP] b",
]
LICENCE = Path(__file__).parents[2] / "LICENSE"


@pytest.fixture(scope="module")
def program(c_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example, compiled without a warning."""
    if shutil.which("gcc") is None:
        pytest.skip("no gcc")
    made = tmp_path_factory.mktemp("program") / "example"
    command = ["gcc", "-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "example.c", "-L.", "-lternarize"]
    subprocess.run([*command, f"-Wl,-rpath,{c_folder}", "-o", str(made)], cwd=c_folder, check=True)
    return made


def encoded(program: Path, c_folder: Path, given: str, output: int | Any = subprocess.PIPE) -> Any:
    """What the example makes of its input."""
    command = [program, c_folder / "model.tz"]
    return subprocess.run(command, input=given, stdout=output, stderr=subprocess.PIPE, text=True, check=False)


def test_the_example_prints_the_vectors_of_the_runtime(program: Path, c_folder: Path, packed: Path) -> None:
    encoder = Encoder(packed)
    tokens = encoder.tokenize(TEXTS)
    lines = "".join(" ".join(map(str, text.ids)) + "\n" for text in tokens)
    made = encoded(program, c_folder, lines)
    assert made.returncode == 0, made.stderr
    vectors = np.array([line.split() for line in made.stdout.splitlines()], np.float32)
    assert (vectors == encoder.encode_tokens(tokens)).all()
    assert encoded(program, c_folder, "\t 2  7 3 \r\n").stdout == encoded(program, c_folder, "2 7 3").stdout


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("1 2 9999\n", "an id is no row of the model's table"),
        ("1 " * 65, "more tokens than"),
        *(
            (line, "other than ids")
            for line in ("4294967297 3", "9" * 30, "-1", "2 x 3", "2 3x", "2,3", "2 7.5", "2\0 3", "0x2")
        ),
    ],
)
def test_the_example_refuses_a_line_that_is_no_ids_of_the_model(
    program: Path, c_folder: Path, given: str, why: str
) -> None:
    refused = encoded(program, c_folder, given)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert why in refused.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_the_example_says_that_its_output_is_full(program: Path, c_folder: Path) -> None:
    with Path("/dev/full").open("w") as full:
        made = encoded(program, c_folder, "2 3\n", full)
    assert (made.returncode, made.stderr) == (1, "the vectors can't be written\n")


def test_the_folder_has_all_that_a_program_needs(c_folder: Path) -> None:
    assert sorted(path.name for path in c_folder.iterdir()) == [
        *("LICENSE-ternarize", "README.md", "config.json", "example.c", "libternarize.so", "model.tz", "ternarize.h"),
        "tokenizer.json",
    ]
    facts = json.loads((c_folder / "config.json").read_text())
    assert (facts["name"], facts["dimensions"], facts["limit"]) == ("packed", 32, 64)
    readme = (c_folder / "README.md").read_text()
    assert facts["content_hash"] in readme
    assert "The model has no prompts" in readme
    assert "encode_special_tokens" not in readme
    assert "`LICENSE-ternarize`" in readme
    assert (c_folder / "LICENSE-ternarize").read_bytes() == LICENCE.read_bytes()


def padded(folder: Path, settings: dict[str, Any]) -> Path:
    """A packed tiny BERT with some settings, whose tokenizer.json pads texts to 48 tokens and cuts them at 16."""
    source = save_tiny_bert(folder / "source")
    path = source / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.enable_padding(length=48, pad_token="[PAD]")
    tokenizer.enable_truncation(16)
    tokenizer.save(str(path))
    for name, changes in settings.items():
        known = json.loads((source / name).read_text()) if (source / name).exists() else {}
        (source / name).write_text(json.dumps(known | changes))
    return stages(source, folder)[2]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"tokenizer_config.json": {"truncation_side": "left"}},
        {"tokenizer_config.json": {"tokenizer_class": "BertTokenizerFast", "do_lower_case": False}},
        {"sentence_bert_config.json": {"max_seq_length": 20, "do_lower_case": True}},
    ],
    ids=["plain", "left", "case", "short"],
)
def test_the_tokenizer_gives_the_ids_of_the_runtime(settings: dict[str, Any], tmp_path: Path) -> None:
    packed = padded(tmp_path, settings)
    assert len(Tokenizer.from_file(str(packed / "tokenizer.json")).encode("the cat").ids) == 48
    export(packed, tmp_path / "made", to="c")
    encoder, tokenizer = Encoder(packed), Tokenizer.from_file(str(tmp_path / "made" / "tokenizer.json"))
    ids = [tokenizer.encode(text).ids for text in TEXTS]
    assert ids == [text.ids for text in encoder.tokenize(TEXTS)]
    assert max(map(len, ids)) == encoder.limit == json.loads((tmp_path / "made" / "config.json").read_text())["limit"]
    vectors = CModel(tmp_path / "made" / "model.tz").encode([Tokens(some, [0] * len(some)) for some in ids])
    assert (vectors == encoder.encode(TEXTS)).all()


def test_the_readme_says_what_the_tokenizer_leaves_to_the_program(tmp_path: Path) -> None:
    settings = {
        "tokenizer_config.json": {"split_special_tokens": True},
        "config_sentence_transformers.json": {"prompts": {"query": "small: "}, "default_prompt_name": "query"},
    }
    packed = padded(tmp_path, settings)
    export(packed, tmp_path / "made", to="c")
    facts, readme = (
        json.loads((tmp_path / "made" / "config.json").read_text()),
        (tmp_path / "made" / "README.md").read_text(),
    )
    assert (facts["prompts"]["query"], facts["default_prompt_name"], facts["split_special_tokens"]) == (
        *("small: ", "query"),
        True,
    )
    assert "`encode_special_tokens`" in readme
    assert "A prompt is left to the program" in readme
    tokenizer = Tokenizer.from_file(str(tmp_path / "made" / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    assert [tokenizer.encode(f"small: {text}").ids for text in TEXTS] == [
        text.ids for text in Encoder(packed).tokenize(TEXTS)
    ]


@pytest.mark.skipif(shutil.which("readelf") is None, reason="no readelf")
def test_the_library_needs_the_c_library_alone(c_folder: Path) -> None:
    listed = subprocess.run(
        ["readelf", "-d", c_folder / "libternarize.so"], capture_output=True, text=True, check=True
    ).stdout
    needed = {name.partition(".")[0] for name in re.findall(r"NEEDED.*\[(.*)\]", listed)}
    assert needed - {"ld-linux-x86-64", "ld-linux-aarch64"} <= {"libc", "libm", "libpthread"}


def test_what_is_no_packed_text_encoder_is_refused(
    packed: Path, tiny_bert: Path, tiny_vit: Path, tmp_path: Path
) -> None:
    with pytest.raises(FormatError, match="is no packed model"):
        export(tiny_bert, tmp_path / "made", to="c")
    with pytest.raises((UnavailableError, CheckpointError)):
        export(stages(tiny_vit, tmp_path)[2], tmp_path / "made", to="c")
    changed = tmp_path / "changed"
    shutil.copytree(packed, changed)
    weights = bytearray((changed / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (changed / "model.safetensors").write_bytes(weights)
    with pytest.raises(FormatError, match="is not what was packed"):
        export(changed, tmp_path / "made", to="c")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("save", "why"),
    [(save_headed, "has a head that gives scores"), (save_tiny_clip, "reads images")],
    ids=["reranker", "clip"],
)
def test_the_hint_for_another_model_is_a_wheel(save: Callable[[Path], Path], why: str, tmp_path: Path) -> None:
    packed = stages(save(tmp_path / "source"), tmp_path)[2]
    with pytest.raises(UnavailableError, match=why) as caught:
        export(packed, tmp_path / "made", to="c")
    assert caught.value.hint == f"ternarize export {packed} --to wheel"


def test_pooling_without_the_tokens_of_prompts_is_refused(tmp_path: Path) -> None:
    source = save_tiny_bert(tmp_path / "source")
    path = source / "1_Pooling" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"include_prompt": False}))
    (source / "config_sentence_transformers.json").write_text(json.dumps({"prompts": {"query": "search: "}}))
    with pytest.raises(UnavailableError, match="leaves the tokens of prompts out of pooling"):
        export(stages(source, tmp_path)[2], tmp_path / "made", to="c")


def test_the_command_writes_the_folder_once(run: Callable[..., Any], packed: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    report = run("export", packed, "--to", "c", "-o", made, "--json")
    assert report.exit_code == 0, report.output
    assert f"writing {made} …" in report.stderr
    assert {Path(file["path"]).name for file in json.loads(report.stdout)["files"]} >= {"model.tz", "ternarize.h"}
    again = run("export", packed, "--to", "c", "-o", made)
    assert again.exit_code == OutputExistsError.exit_code
    assert "--force" in again.stderr
    before = (made / "model.tz").read_bytes()
    assert run("export", packed, "--to", "c", "-o", made, "--force").exit_code == 0
    assert (made / "model.tz").read_bytes() == before


@pytest.mark.parametrize(
    "arguments",
    [
        ("--to", "gif"),
        ("--to", "c", "--version", "2.0"),
        ("--to", "c", "--platform", "beos"),
        ("--to", "c", "--platform", "linux_aarch64"),
        ("--to", "c", "-o", "."),
        ("--to", "wheel", "--version", "latest"),
        ("--to", "wheel", "--name", "1st"),
        ("--to", "wheel", "--serve"),
        ("--to", "wheel", "-o", "none/such"),
    ],
    ids=" ".join,
)
def test_nothing_is_said_to_be_written_before_all_arguments_are_checked(
    run: Callable[..., Any], packed: Path, arguments: tuple[str, ...]
) -> None:
    report = run("export", packed, *arguments)
    assert report.exit_code in {error.exit_code for error in (InputError, TernarizeError, UnavailableError)}
    assert report.stderr.startswith("error: ")


def test_options_of_other_formats_are_refused(packed: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--version means nothing for the format c"):
        export(packed, tmp_path / "made", to="c", options=ExportOptions(version="2.0"))
    with pytest.raises(InputError, match="there is no format 'gif'"):
        export(packed, tmp_path / "made", to="gif")
