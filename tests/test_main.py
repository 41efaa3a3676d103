"""The command line: prompts from everywhere, one line for each slip, terminals of every kind."""

import dataclasses
import importlib
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from smol_scratch import (
    SmolLM2,
    SmolLM2Config,
    assets,
    commands,
    doctor,
    export_pretrained,
    fast,
    generation,
    load_tokenizer,
    speaker,
)
from smol_scratch.__main__ import NAME, main
from smol_scratch.commands import COMMANDS, EXAMPLES, GROUPS, overview
from smol_scratch.generation import CHAT_TEMPLATE
from smol_scratch.recipe import RunOptions, TrainingConfig
from smol_scratch.sampling import Sampling
from smol_scratch.terminal import read, with_flags

SHAPE = SmolLM2Config(
    block_size=96, n_layer=1, n_head=2, n_kv_head=1, n_embd=32, intermediate_size=48, head_dim=16
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two small model folders: one that answers, one that continues text."""
    torch.manual_seed(0)
    model, found = SmolLM2(SHAPE).eval(), {}
    for name, template in (("chatty", CHAT_TEMPLATE), ("plain", None)):
        model.chat_template = template
        found[name] = str(tmp_path_factory.mktemp("models") / name)
        export_pretrained(model, found[name], tokenizer=load_tokenizer())
    return found


def run(*arguments, text=None, env=(), cwd=None):
    return subprocess.run(
        [sys.executable, "-m", "smol_scratch", *arguments],
        input=text, capture_output=True, encoding="utf-8", errors="replace", cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(assets.ROOT)} | dict(env),
    )  # fmt: skip


SLIPS = [
    ("generat x", "generat: no such command; did you mean generate? There are generate, chat"),
    ("frobnicate", "frobnicate: no such command; There are"),
    ("--ckpt x generate", "--ckpt: a command comes first, one of generate"),
    ("generate --tokenz 3", "Unrecognized options: --tokenz, 3; did you mean --tokens?"),
    ("generate --tokens 0 hi", "--tokens 0: must be at least 1"),
    ("generate --tokens x hi", "--tokens"),
    ("generate --temperature -1 hi", "--temperature -1.0: must be at least 0"),
    ("generate --temperature nan hi", "--temperature nan: must be a finite number"),
    ("generate --top-p 2 hi", "--top-p 2.0: must be above 0 and at most 1"),
    ("generate --top-k 0 hi", "--top-k 0: must be at least 1"),
    ("generate --min-p -1 hi", "--min-p -1.0: must be at least 0 and at most 1"),
    ("generate --repetition-penalty 0 hi", "--repetition-penalty 0.0: must be above 0"),
    ("generate --seed 99999999999999999999 hi", "--seed 99999999999999999999: must fit"),
    ("generate hi --prompt hi", "--prompt: was given twice"),
    ("chat --tokens 0", "--tokens 0: must be at least 1"),
    ("train --steps 0", "--steps 0: must be at least 1"),
    ("train --seed -9223372036854775809", "--seed -9223372036854775809: must be at least -92233"),
    ("train --seed 18446744073709551616", "--seed 18446744073709551616: must be at least -92233"),
    (f"train --steps 1{400 * '0'}", "--steps ~10^400: must be a whole number of at most 64 bits"),
    (f"generate --tokens 1{400 * '0'} hi", "--tokens ~10^400: must be"),
    (f"info --batch 1{400 * '0'}", "must be at least 1, and below 2^31"),
    ("train --ckpt nofile", "--ckpt nofile: no such checkpoint folder"),
    ("train --ckpt=", "--ckpt: is empty; name a file or folder, or leave it out"),
    ("generate hi --ckpt=", "--ckpt: is empty; name a file or folder, or leave it out"),
    ("info --ckpt nofile", "--ckpt nofile: no such file or folder"),
    ("info --length 0", "--length 0: must lie between 1 and 8192, the model's context"),
    ("train --stepz 5", "did you mean --steps?"),
    ("train --schedule linear", "--schedule"),
    ("train --learning-rate 1e-5", "--learning-rate 1e-05: must not be below --min-learning-rate"),
    ("train --sequence-length 2000", "2000: the model takes at most --block-size 1024; lower"),
    ("train --decay-steps 5", "--decay-steps 5: only --schedule wsd has a decay"),
    (
        "train --schedule wsd --warmup-steps 9 --decay-steps 5 --steps 10",
        "--warmup-steps 9, --decay-steps 5: together longer",
    ),
    ("train --init x --block-size 5", "--block-size 5: the weights of --init x have their own"),
    ("train --mask-documents", "--mask-documents: is for shards only"),
    ("export", "nothing to write; name --folder, --gguf or --space"),
    ("export --push me/x", "--push me/x: uploads a model folder; name one with --folder"),
    ("demo --port 99999", "--port 99999: must lie between 1 and 65535"),
    ("info --batch x", "--batch"),
]


@pytest.mark.parametrize(("arguments", "said"), SLIPS)
def test_a_slip_is_one_line_with_its_flag(capsys, arguments, said):
    with pytest.raises(SystemExit) as ended:
        main(arguments.split())
    printed = capsys.readouterr()
    assert ended.value.code == 2
    assert printed.out == ""
    assert printed.err.startswith("python -m smol_scratch: ")
    assert printed.err.count("\n") == 1
    assert said in printed.err
    assert not re.search(r"\b[a-z_]+=", printed.err)  # flags, no names of Python's


@pytest.mark.parametrize(
    "arguments",
    ["generate hi --ckpt", "chat --ckpt", "export --gguf m.gguf --ckpt", "train --init",
     "train --text", "info --ckpt"],
)  # fmt: skip
def test_what_is_not_there_is_told_with_its_flag(capsys, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    for name in ("nofile", str(tmp_path / "no" / "folder")):
        with pytest.raises(SystemExit):
            main([*arguments.split(), name])
        flag = arguments.split()[-1]
        assert f"smol_scratch: {flag} {name}: no such file or folder" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit):
        main(["generate", "hi", "--ckpt", "empty/"])
    assert "smol_scratch: --ckpt empty holds no config.json" in capsys.readouterr().err


def test_a_programming_error_is_not_told_as_a_slip(monkeypatch):
    def slip():
        raise TypeError("'NoneType' object is not iterable")

    monkeypatch.setattr(assets, "fetch", slip)
    with pytest.raises(TypeError):
        main(["assets"])


def test_an_error_of_the_system_is_told_in_words(capsys, monkeypatch):
    def full():
        raise OSError(28, "No space left on device", "x.bin")

    monkeypatch.setattr(assets, "fetch", full)
    with pytest.raises(SystemExit):
        main(["assets"])
    assert capsys.readouterr().err == f"{NAME}: x.bin: no space left on device\n"


def test_help_and_slips_are_answered_before_anything_is_loaded():
    """In one fresh process: whatever loads PyTorch takes seconds to say that a value is wrong."""
    asked = [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)]
    asked += [arguments.split() for arguments, _ in SLIPS]
    program = f"""
import contextlib, io, sys
from smol_scratch.__main__ import main
for arguments in {asked!r}:
    with contextlib.suppress(SystemExit), contextlib.redirect_stderr(io.StringIO()):
        with contextlib.redirect_stdout(io.StringIO()):
            main(arguments)
    heavy = {{"torch", "numpy", "tokenizers", "gguf"}} & set(sys.modules)
    assert not heavy, (arguments, heavy)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_existing_gguf_file_is_kept_unless_told(capsys, tmp_path, folders):
    file = tmp_path / "m.gguf"
    file.write_text("mine")
    with pytest.raises(SystemExit):
        main(["export", "--ckpt", folders["plain"], "--gguf", str(file)])
    assert "m.gguf: is already there; name another file, or add --overwrite" in (
        capsys.readouterr().err
    )
    assert file.read_text() == "mine"
    assert main(["export", "--ckpt", folders["plain"], "--gguf", str(file), "--overwrite"]) == 0
    assert file.read_bytes().startswith(b"GGUF")
    folder = tmp_path / "out"
    assert main(["export", "--ckpt", folders["plain"], "--folder", str(folder)]) == 0
    with pytest.raises(SystemExit):
        main(["export", "--ckpt", folders["plain"], "--folder", str(folder)])
    said = capsys.readouterr().err
    assert f"{folder} is not empty: --overwrite replaces it; or name another folder" in said


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ("--folder a --space a", "--folder a: --space a goes there"),
        ("--folder a --gguf a", "--folder a: --gguf a goes there"),
        ("--gguf a --space a", "--gguf a: --space a goes there"),
        ("--folder a/b --space a", "--space a: --folder a/b goes there"),
        ("--gguf a/b.gguf --space a", "--space a: --gguf a/b.gguf goes there"),
        ("--folder a --gguf taken", "taken is a folder: name a file in it"),
        ("--folder a --space taken", "taken is not empty: name another folder"),
        ("--folder a --space taken/x", "x is a file: name a folder"),
        ("--folder taken/x --gguf a", "x is a file: name a folder"),
    ],
)
def test_an_export_of_several_writes_all_or_nothing(
    folders, tmp_path, monkeypatch, capsys, places, message
):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "x").touch()
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as ended:
        main(["export", "--overwrite", "--ckpt", str(folders["plain"]), *places.split()])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
    assert set(tmp_path.rglob("*")) == before


def test_a_prompt_comes_from_an_argument_a_flag_or_standard_input(capsys, monkeypatch, folders):
    how = ["--ckpt", folders["plain"], "--tokens", "4", "--temperature", "0"]
    outputs = []
    for given, typed in ((["The quick"], ""), (["--prompt", "The quick"], ""), (["-"], "The quick"),
                         ([], "The quick\n")):  # fmt: skip
        monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
        assert main(["generate", *given, *how]) == 0
        printed = capsys.readouterr()
        outputs.append(printed.out)
        assert "these weights have no chat template: they continue text" in printed.err
    assert len(set(outputs)) == 1
    assert outputs[0].startswith("The quick")
    for empty in (["-"], ["--prompt", "  "]):
        monkeypatch.setattr(sys, "stdin", io.StringIO(""))
        with pytest.raises(SystemExit):
            main(["generate", *empty, *how])
        assert "--prompt: is empty" in capsys.readouterr().err


def test_a_chat_remembers_its_turns_and_says_when_the_context_is_full(capsys, monkeypatch, folders):
    asked = []
    real = generation.chat_prompt

    def watched(tokenizer, turns):
        asked.append([dict(turn) for turn in turns])
        return real(tokenizer, turns)

    monkeypatch.setattr(generation, "chat_prompt", watched)
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hi\nAnd you?\n\n"))
    options = ["--tokens", "3", "--seed", "1", "--system", "Be brief."]
    assert main(["chat", "--ckpt", folders["chatty"], *options]) == 0
    first, second = asked
    assert first == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
    ]
    answer = capsys.readouterr().out.splitlines()[0]
    assert second[:2] == first
    assert second[2] == {"role": "assistant", "content": answer}
    assert second[3] == {"role": "user", "content": "And you?"}

    monkeypatch.setattr(sys, "stdin", io.StringIO("long " * 200 + "\n"))
    with pytest.raises(SystemExit):
        main(["chat", "--ckpt", folders["chatty"]])
    assert "fills the context of 96 tokens; begin a new one" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["chat", "--ckpt", folders["plain"]])
    assert "have no chat template" in capsys.readouterr().err


def test_a_chat_says_when_the_context_nears_its_end(capsys, monkeypatch, folders):
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hi\n" + "long " * 45 + "\n\n"))
    assert main(["chat", "--ckpt", folders["chatty"], "--tokens", "2", "--system", "Hi"]) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if "are used" in line]
    assert len(told) == 1
    assert re.fullmatch(r"[78]\d of the context's 96 tokens are used", told[0])


def test_ctrl_c_in_a_chat_stops_the_answer_and_at_the_prompt_the_program(folders):
    program = (
        "import torch, time; f = torch.multinomial\n"
        "torch.multinomial = lambda *a, **k: (time.sleep(0.3), f(*a, **k))[1]\n"
        "import sys; from smol_scratch.__main__ import main\n"
        f"sys.argv[1:] = ['chat', '--ckpt', {folders['chatty']!r}]; main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(assets.ROOT)},
    )  # fmt: skip
    for _ in range(2):
        process.stdin.write(b"Hi\n")
        process.stdin.flush()
        assert process.stdout.read(1)  # it speaks
        process.send_signal(signal.SIGINT)
        while process.stdout.read(1) not in b"\n":  # the answer ends, long before 50 tokens
            pass
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in said


def test_a_prompt_that_is_too_long_is_refused_before_the_weights_are_read(
    capsys, monkeypatch, folders
):
    def load(*_, **__):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(speaker, "load_pretrained", load)
    for ckpt in ([], ["--ckpt", folders["chatty"]]):
        with pytest.raises(SystemExit):
            main(["generate", "word " * 9000, *ckpt])
        context = "96" if ckpt else "8,192"
        said = f"--prompt: has 9,001 tokens, and the model takes {context} in all"
        assert said in capsys.readouterr().err
    with pytest.raises(AssertionError, match="weights were loaded"):
        main(["generate", "hi"])


def test_a_text_that_fills_the_context_says_so(capsys, folders):
    options = ["--ckpt", folders["plain"], "--tokens", "400", "--temperature", "0"]
    assert main(["generate", "The quick", *options]) == 0
    assert "the context of 96 tokens is full: the text ends here" in capsys.readouterr().err


def test_ctrl_c_ends_a_stream_quietly(folders):
    command = [sys.executable, "-m", "smol_scratch", "generate", "Go on", "--tokens", "90"]
    options = ["--ckpt", folders["plain"]]
    slow = "import torch, time; f = torch.multinomial\n"
    program = (
        f"{slow}torch.multinomial = lambda *a, **k: (time.sleep(0.2), f(*a, **k))[1]\n"
        f"from smol_scratch.__main__ import main\nmain({command[3:] + options!r})"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(assets.ROOT)},
    )  # fmt: skip
    assert process.stdout.read(8)  # it speaks
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in said


@pytest.mark.parametrize(
    ("command", "module"),
    [("generate hi", name) for name in ("smol_scratch.terminal", "tyro", "numpy", "torch._C")]
    + [("train", "torch._C"), ("export --folder x", "tokenizers"), ("info", "numpy")],
)
def test_ctrl_c_while_libraries_load_ends_quietly(command, module):
    """Interrupted when this module has just been imported, as ``-X importtime`` says."""
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", "-m", "smol_scratch", *command.split()],
        stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(assets.ROOT)},
    )  # fmt: skip
    for line in process.stderr:
        if line.rpartition("|")[2].strip() == module:
            break
    process.send_signal(signal.SIGINT)
    out, rest = process.communicate(timeout=60)
    said = [line for line in rest.splitlines() if not line.startswith("import time:")]
    assert (process.returncode, out, said) == (130, "", [])


# What pip writes for [project.scripts].
SCRIPT = """import re
import sys
from smol_scratch.__main__ import main
if __name__ == '__main__':
    sys.exit(main())
"""
# Sends SIGINT at the moment when a module is about to be imported; loads nothing itself.
AT = """import posix, sys
def at(event, given):
    if event == "import" and given[0] == posix.environ[b"INTERRUPT_AT"].decode():
        posix.kill(posix.getpid(), 2)
sys.addaudithook(at)
"""


def interrupted_at(module, start, tmp_path, *words):
    (tmp_path / "sitecustomize.py").write_text(AT)
    (tmp_path / "smol-scratch").write_text(SCRIPT)
    first = ["-m", "smol_scratch"] if start == "module" else [str(tmp_path / "smol-scratch")]
    path = os.pathsep.join((str(tmp_path), str(assets.ROOT)))
    return subprocess.run(
        [sys.executable, *first, *words], capture_output=True, text=True, cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path, "INTERRUPT_AT": module},
    )  # fmt: skip


@pytest.mark.skipif(os.name == "nt", reason="signals are sent otherwise there")
@pytest.mark.parametrize("start", ["module", "script"])
@pytest.mark.parametrize(
    "module", ["smol_scratch.terminal", "difflib", "smol_scratch.assets", "smol_scratch.commands",
               "smol_scratch.sampling", "tyro", "smol_scratch.speaker", "torch"],
)  # fmt: skip
def test_ctrl_c_ends_quietly_from_the_first_moment_of_the_program(module, start, tmp_path):
    done = interrupted_at(module, start, tmp_path, "generate", "hi")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.skipif(os.name == "nt", reason="signals are sent otherwise there")
@pytest.mark.parametrize(
    ("module", "start"),
    [("smol_scratch", "module"), ("signal", "module"),
     ("smol_scratch", "script"), ("smol_scratch.__main__", "script"), ("signal", "script")],
)  # fmt: skip
def test_before_it_ctrl_c_is_pythons_own(module, start, tmp_path):
    """Python starts, and three short files are read: nothing of ours could answer there."""
    done = interrupted_at(module, start, tmp_path, "generate", "hi")
    assert (done.returncode, done.stdout) == (-signal.SIGINT, "")
    assert done.stderr.splitlines()[-1] == "KeyboardInterrupt"


def test_ctrl_c_is_ignored_where_the_starter_asked_for_it():
    """As behind nohup."""
    program = "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    program += "from smol_scratch.__main__ import main; sys.argv[1:] = ['--version']; main()\n"
    program += "assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True).returncode == 0


def test_a_pipe_that_closes_ends_it_quietly():
    done = subprocess.run(
        f"{sys.executable} -m smol_scratch info | head -c 5; exit ${{PIPESTATUS[0]}}",
        shell=True, executable="/bin/bash", capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(assets.ROOT)},
    )  # fmt: skip
    assert done.stdout == "Confi"
    assert done.stderr == ""
    assert done.returncode in (0, 141)


def test_a_pipe_that_closes_while_text_is_written_ends_it_quietly(folders):
    done = subprocess.run(
        f"{sys.executable} -m smol_scratch generate 'Go on' --ckpt {shlex.quote(folders['plain'])} "
        "--tokens 80 | head -c 5; exit ${PIPESTATUS[0]}",
        shell=True, executable="/bin/bash", capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(assets.ROOT)},
    )  # fmt: skip
    assert done.stdout == "Go on"
    assert len(done.stderr.splitlines()) == 2  # which weights, and that they continue text
    assert done.returncode == 141


# A command, the function in whose stead Ctrl-C comes (in the middle of the work; @2: in its second
# call), and what the command makes, which must not be there afterwards.
SHARDS = "shards --input text.txt --output stored --shard-tokens 500"
TRAIN = "train --preset tiny --steps 1 --eval-interval 0 --held-out 0.1 --text text.txt --save run"
MOMENTS = [
    ("export --ckpt {plain} --folder out", "smol_scratch.hub:_write_json", "out"),
    ("export --ckpt {plain} --gguf out.gguf", "gguf.quants:quantize@3", "out.gguf"),
    ("export --ckpt {plain} --gguf out.gguf", "gguf:GGUFWriter.write_kv_data_to_file", "out.gguf"),
    ("export --ckpt {plain} --gguf out.gguf", "gguf:GGUFWriter.write_tensors_to_file", "out.gguf"),
    ("export --ckpt {plain} --gguf out.gguf", "smol_scratch.assets:_flush", "out.gguf"),
    ("export --ckpt {plain} --space out", "shutil:copytree", "out"),
    (SHARDS, "smol_scratch.shards:_check_ids@40", "stored/report.json"),
    (SHARDS, "smol_scratch.assets:_flush@5", "stored/report.json"),
    (SHARDS, "smol_scratch.shards:_write_index@2", "stored/report.json"),
    (f"{SHARDS} --unique", "smol_scratch.documents:Seen.is_new@30", "stored/report.json"),
    ("clinic open 1 --folder desk", "shutil:copyfile", "desk/case-01"),
    ("clinic open 1 --folder desk", "smol_scratch.assets:_flush@9", "desk/case-01"),
    (TRAIN, "smol_scratch.texts:pieces_of", "run"),
    (TRAIN, "smol_scratch.tokenizer:SmolLM2Tokenizer.encode_batch@2", "run"),
    (TRAIN, "smol_scratch.run:split", "run"),
    (TRAIN, "smol_scratch.training:TrainingState.create", "run"),
]
INTERRUPT = """
import importlib, itertools, os, signal, sys
place, _, call = sys.argv.pop(1).partition("@")
module, _, names = place.partition(":")
home = importlib.import_module(module)
*outer, name = names.split(".")
for each in outer:
    home = getattr(home, each)
real, calls = getattr(home, name), itertools.count(1)
def interrupted(*given, **named):
    if next(calls) == int(call or 1):
        os.kill(os.getpid(), signal.SIGINT)
    return real(*given, **named)
setattr(home, name, interrupted)
from smol_scratch.__main__ import main
sys.exit(main())
"""


def interrupted_within(place, words, folder):
    """Run a command that gets Ctrl-C when a function is called; what it says must be quiet."""
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPT, place, *words],
        capture_output=True, text=True, cwd=folder,
        env=os.environ | {"PYTHONPATH": str(assets.ROOT)},
    )  # fmt: skip
    assert (done.returncode, "Traceback" in done.stderr) == (130, False), done.stderr
    assert not re.search("[Ee]rror|[Ee]xception|[Ii]nterrupt", done.stderr), done.stderr
    return done


def no_halves(folder):
    """Say whether nothing lies in a folder under a name of something that is being written."""
    return not list(folder.rglob(".*"))


@pytest.mark.skipif(os.name == "nt", reason="signals are sent otherwise there")
@pytest.mark.parametrize(("command", "place", "made"), MOMENTS)
def test_ctrl_c_in_the_middle_leaves_nothing_half_written_and_the_next_start_works(
    command, place, made, folders, tmp_path, monkeypatch
):
    scenes = (f"Scene {number}. To be, or not to be: {'so ' * number}" for number in range(60))
    (tmp_path / "text.txt").write_text("<|endoftext|>".join(scenes), "utf-8")
    words = command.format(**folders).split()
    interrupted_within(place, words, tmp_path)
    assert not (tmp_path / made).exists()
    assert no_halves(tmp_path)
    if "stored" not in made and "desk" not in made:
        assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]
    monkeypatch.chdir(tmp_path)
    assert main(words) == 0
    assert (tmp_path / made).exists()
    assert no_halves(tmp_path)
    if "--unique" not in words and made.startswith("stored"):
        assert main([word.replace("stored", "whole") for word in words]) == 0
        assert (tmp_path / "stored" / "index.json").read_bytes() == (
            tmp_path / "whole" / "index.json"
        ).read_bytes()


@pytest.mark.skipif(os.name == "nt", reason="signals are sent otherwise there")
def test_ctrl_c_while_a_file_is_replaced_keeps_the_earlier_one(folders, tmp_path):
    (tmp_path / "out.gguf").write_text("mine")
    words = f"export --ckpt {folders['plain']} --gguf out.gguf --overwrite".split()
    interrupted_within("gguf:GGUFWriter.write_tensors_to_file", words, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["out.gguf"]
    assert (tmp_path / "out.gguf").read_text() == "mine"


@pytest.mark.skipif(os.name == "nt", reason="signals are sent otherwise there")
@pytest.mark.parametrize(
    ("words", "place", "open_still"),
    [
        ("run 1 round-trip", "smol_scratch.clinic.patient:Patient.inside", True),
        ("run 1 first-loss", "smol_scratch.clinic.desk:Desk.write", True),
        ("hint 1", "smol_scratch.assets:_flush", True),
        ("reset 1", "pathlib:Path.rename", True),
        ("reset 1", "shutil:rmtree", False),
    ],
)
def test_ctrl_c_at_the_clinic_leaves_a_case_open_or_closed(words, place, open_still, tmp_path):
    clinic = ["clinic", "--folder", str(tmp_path / "desk")]
    assert main([*clinic, "open", "1"]) == 0
    before = sorted(tmp_path.rglob("*"))
    interrupted_within(place, [*clinic, *words.split()], tmp_path)
    if open_still:
        assert sorted(tmp_path.rglob("*")) == before
    else:
        assert not (tmp_path / "desk" / "case-01").exists()
    assert main([*clinic, "open", "1"]) == 0
    assert main([*clinic, "reset", "1"]) == 0


@pytest.mark.skipif(os.name == "nt", reason="signals are sent otherwise there")
@pytest.mark.parametrize(
    ("place", "written"),
    [
        ("smol_scratch.doctor:machine", False),
        ("smol_scratch.doctor:asset_states", True),
        ("smol_scratch.probes:examine", True),
        ("smol_scratch.probes:examine_run", True),
    ],
)
@pytest.mark.parametrize("earlier", [True, False])
def test_ctrl_c_at_the_doctor_leaves_a_whole_report_or_none(place, written, earlier, tmp_path):
    """Where it was looking already, what it found; the next start is not refused."""
    file = tmp_path / "found.json"
    if earlier:
        file.write_text(json.dumps({"kind": doctor.KIND, "problems": []}))
    interrupted_within(place, ["doctor", "--json", str(file)], tmp_path)
    assert no_halves(tmp_path)
    doctor.check_target(file)  # as the next start does
    if earlier or written:
        report = json.loads(file.read_text("ascii"))
        assert ("machine" in report) == written
        assert "ok" not in report
    else:
        assert not file.exists()


@pytest.mark.skipif(os.name == "nt", reason="signals are sent otherwise there")
@pytest.mark.parametrize("module", ["numpy", "torch._C", "smol_scratch.probes"])
def test_ctrl_c_at_the_doctor_while_libraries_load_ends_quietly(module, tmp_path):
    done = interrupted_at(module, "module", tmp_path, "doctor", "--json", "found.json")
    assert (done.returncode, done.stderr) == (130, "")
    assert not (tmp_path / "found.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["cp1252", "cp437", "ascii"])
def test_a_console_that_is_not_utf_8_stops_nothing(folders, encoding):
    env = {"PYTHONIOENCODING": encoding}
    assert run("info", env=env.items()).returncode == 0
    how = ("--ckpt", folders["plain"], "--tokens", "3", "--temperature", "0")
    done = run("generate", "Zażółć 😀", *how, env=env.items())
    assert (done.returncode, "Traceback" in done.stderr) == (0, False)


@pytest.mark.slow
def test_standard_input_is_utf_8_whatever_the_locale_or_says_what_it_is(folders):
    c = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "utf-8"}
    how = ["--ckpt", folders["plain"], "--tokens", "1", "--temperature", "0"]
    command = [sys.executable, "-m", "smol_scratch", "generate", *how]
    env = os.environ | {"PYTHONPATH": str(assets.ROOT)}

    def answer(given, *arguments, env=env):
        done = subprocess.run([*command, *arguments], input=given, capture_output=True, env=env)
        assert b"Traceback" not in done.stderr
        return done.returncode, (done.stdout + done.stderr).decode()

    for status, said in (
        answer("Zażółć".encode(), env=env | c),
        answer("\ufeffZażółć\r\n".encode(), env=env | c),
        answer(b"", "Zażółć", env=env | c),
    ):
        assert status == 0
        assert said.startswith("Zażółć")
    assert answer("café".encode("latin-1")) == (
        2, f"{NAME}: standard input: is no UTF-8, for it holds the byte 0xE9 where no character "
        "can have it, as in Latin-1 or Windows-1252; convert it with `iconv -f WINDOWS-1252 -t "
        "UTF-8`\n",
    )  # fmt: skip
    assert "standard input: is UTF-16; convert it" in answer("hi".encode("utf-16"))[1]
    status, said = answer(b"", b"caf\xe9")
    assert (status, "--prompt: is no UTF-8, for it holds the byte 0xE9" in said) == (2, True)


def test_without_a_compiler_compile_is_refused_before_anything_is_loaded(capsys, monkeypatch):
    monkeypatch.setenv("CXX", "/nonexistent/g++")
    for command in (["generate", "hi", "--compile"], ["train", "--compile"]):
        with pytest.raises(SystemExit):
            main(command)
        err = capsys.readouterr().err
        assert "--compile: needs a C++ compiler, and /nonexistent/g++ is not to be found" in err
    monkeypatch.setenv("CXX", sys.executable)  # anything that is there
    fast.require_compiler()


def test_help_names_every_command_in_plain_words(capsys):
    assert main(["--help"]) == 0
    assert capsys.readouterr().out.strip() == overview(NAME).strip()
    assert main([]) == 0
    assert all(f"\n  {name} " in overview(NAME) for name in COMMANDS)
    assert "``" not in overview(NAME)


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_help(capsys, name):
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert f"smol_scratch {name}" in said
    assert "``" not in said
    *_, last = said.splitlines()
    assert last == f"  {NAME} {name} {EXAMPLES[name]}".rstrip()


FIELDS = [field for of in (TrainingConfig, RunOptions) for field in dataclasses.fields(of)]


def test_every_flag_of_train_stands_in_one_short_named_group(capsys):
    grouped = [flag for _, flags in GROUPS.values() for flag in flags]
    assert sorted(grouped) == sorted(field.name for field in FIELDS)
    assert max(len(flags) for _, flags in GROUPS.values()) <= 9
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    # A frame, whatever it is drawn with: title, what the group is about, and its flags.
    titled = re.split(r"^\W+ (?:(\w+) )?options \W+$", capsys.readouterr().out, flags=re.M)
    assert titled[1::2] == [None, *GROUPS]
    for box, (about, flags) in zip(titled[4::2], GROUPS.values(), strict=True):
        lines = [line.strip("|│ ") for line in box.strip().splitlines()]
        assert about.startswith(lines[0])
        names = [flag.replace("_", "-") for flag in flags]
        assert re.findall(r"^--([a-z][a-z0-9-]*)", "\n".join(lines), re.M) == names


def test_what_is_asked_of_train_arrives_and_the_rest_is_as_before(monkeypatch):
    asked = []
    monkeypatch.setattr(commands, "train", lambda *given: asked.append(given))
    before = TrainingConfig(steps=7, clip=0.5, text=Path("a b.txt"), seed=3)
    options = RunOptions(ckpt=Path("old"), keep=2, compile=True)
    command = commands.train_from(before, options)
    read(command, "train", [])()
    line = "--clip 2 --no-compile --save new --beta1 0.5"
    read(command, "train", line.split())()
    assert asked == [
        (before, options),
        (
            dataclasses.replace(before, clip=2.0, beta1=0.5),
            dataclasses.replace(options, compile=False, save=Path("new")),
        ),
    ]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_example_at_the_end_of_a_help_works(monkeypatch, name):
    """All but the work itself: it is read, and the command is called with what it says."""
    called = []

    def stop(*given, **named):
        called.append((given, named))
        raise SystemExit(7)

    for place in (
        "speaker.Speaker", "run.run", "hub.load_pretrained", "demo.launch", "assets.fetch",
        "report.print_report", "doctor.examine_machine", "documents.store", "clinic.desk.serve",
        "plan.plan",
    ):  # fmt: skip
        module, _, function = place.rpartition(".")
        home = importlib.import_module(f"smol_scratch.{module}")
        monkeypatch.setattr(home, function, stop)
    with pytest.raises(SystemExit) as ended:
        main([name, *shlex.split(EXAMPLES[name])])
    assert (ended.value.code, len(called)) == (7, 1)


def test_the_examples_of_the_overview_are_read():
    lines = [line.strip() for line in overview(NAME).splitlines() if line.startswith(f"  {NAME}")]
    assert len(lines) == 3
    for line in lines:
        name, *flags = shlex.split(line.removeprefix(NAME))
        read(COMMANDS[name], name, flags)


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("top_p=2: must be", "--top-p 2: must be"),
        ("preset='x': must be", "--preset x: must be"),
        ("a.txt: no such file", "a.txt: no such file"),
        ("two\nlines", "two lines"),
        ("learning_rate=1.0, min=2: no", "--learning-rate 1.0, min=2: no"),
        (
            "a: shard=True, no_shard=1 (seed=5); seed='x y'",
            "a: --shard, no_shard=1 (--seed 5); --seed x y",
        ),
        ("a: shard=False, a.seed=1, max-seed=2", "a: --no-shard, a.seed=1, max-seed=2"),
        ("shard=True: no", "--shard: no"),
    ],
)
def test_python_names_become_flags(message, line):
    assert with_flags(message, ["seed", "shard"]) == line


def test_defaults_are_those_of_one_place():
    import inspect

    for command in (commands.generate, commands.chat):
        defaults = inspect.signature(command).parameters
        for name, value in vars(Sampling()).items():
            assert defaults[name].default == value
