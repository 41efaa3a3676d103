"""What leaves the package is what others read: folders, GGUF, the hub. Old .pt files come in."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import pickle
import re
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import gguf as gguf_format
import huggingface_hub
import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from huggingface_hub import ModelCard
from huggingface_hub.utils import filter_repo_objects
from safetensors import safe_open

from smol_scratch import (
    SmolLM2,
    SmolLM2Config,
    assets,
    hub,
    load_pretrained,
    load_tokenizer,
    to_transformers,
)
from smol_scratch.checkpoint import save_checkpoint
from smol_scratch.generation import chat_prompt, stop_tokens, stream_text
from smol_scratch.gguf_file import read_gguf
from smol_scratch.hub import load_walkthrough_checkpoint, write_model_files
from smol_scratch.recipe import RunOptions, TrainingConfig
from smol_scratch.sharing import export_gguf, export_pretrained, push_to_hub
from smol_scratch.tokenizer import SmolLM2Tokenizer, tokenizer_for
from smol_scratch.training import TrainingState, train
from tests.checks import SMALL, randomise
from tests.test_package import python

# The whole vocabulary, so that a tokenizer fits; a theta that is nobody's default.
TINY = SmolLM2Config.preset("tiny", n_layer=2, rope_theta=130_000.0)
EMBEDDING = "model.embed_tokens.weight"
QUERY = "model.layers.1.self_attn.q_proj.weight"


def make(config: SmolLM2Config = TINY) -> SmolLM2:
    model = SmolLM2(config).eval()
    randomise(model)
    return model


@pytest.fixture(scope="module")
def tiny() -> SmolLM2:
    torch.manual_seed(0)
    return make().requires_grad_(False)


@pytest.fixture(scope="module")
def folder(tiny, tokenizer, tmp_path_factory) -> Path:
    """One export, for tests that only read it."""
    place = tmp_path_factory.mktemp("export") / "tiny"
    figures = {"validation loss": "1.58 nats", "steps": 2_000}
    return export_pretrained(tiny, place, tokenizer=tokenizer, figures=figures)


def auto_model(*source: object, **options: object):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(*source, **options).eval()


def auto_tokenizer(*source: object, **options: object):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(*source, **options)


@torch.no_grad()
def assert_same_logits(theirs, model: SmolLM2) -> None:
    """Theirs are those of the oracle bit by bit, and ours up to rounding."""
    ids = torch.randint(model.config.vocab_size, (2, 17))
    logits = theirs(ids).logits
    assert torch.equal(logits, to_transformers(model)(ids).logits)
    torch.testing.assert_close(logits, model(ids)[0], rtol=1e-4, atol=1e-4)


def same_weights(one: SmolLM2, other: SmolLM2) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# Folders


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("size", ["5GB", "100KB"])
def test_transformers_loads_an_exported_folder(tied, size, tmp_path, tries):
    # Six heads of ten channels: more than the width of 48.
    config = dataclasses.replace(SMALL, dropout=0.0, head_dim=10, tie_embeddings=tied)
    model = make(config)
    folder = export_pretrained(model, tmp_path / "a" / "mine", max_shard_size=size)
    assert (len(list(folder.glob("*.safetensors"))) > 1) == (size == "100KB")
    theirs = auto_model(folder)
    assert (theirs.lm_head.weight is theirs.model.embed_tokens.weight) == tied
    assert_same_logits(theirs, model)
    assert theirs.generation_config.eos_token_id == 0
    assert theirs.config.rope_parameters == {"rope_type": "default", "rope_theta": 100_000.0}
    loaded = load_pretrained(folder, quiet=True)
    assert loaded.config == config
    assert same_weights(loaded, model)
    assert not tries


def test_the_weights_file_is_plain(folder, tiny):
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert set(file.keys()) == set(tiny.state_dict())  # tied: no lm_head.weight
        assert file.get_tensor(EMBEDDING).dtype == torch.float32
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_theta_survives_every_way(folder, tmp_path):
    """Ours writes rope_theta, version 5 rope_parameters; both sides read both."""
    theirs = auto_model(folder)
    assert theirs.config.rope_parameters["rope_theta"] == 130_000
    theirs.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text("utf-8"))
    assert "rope_parameters" in written
    assert "rope_theta" not in written
    assert "rope_theta" in json.loads((folder / "config.json").read_text("utf-8"))
    assert load_pretrained(tmp_path, quiet=True).config == TINY
    assert load_pretrained(folder, quiet=True).config == TINY


STRANGE = ["a  1", "in\n\n1984", "x<|endoftext|>y<|im_start|>", " 's \t\r\n é 中 👍"]


@pytest.fixture(scope="module")
def text_ids(tokenizer, text) -> list[int]:
    return tokenizer.encode(text)


def test_transformers_reads_the_exported_tokenizer(folder, tokenizer, text, text_ids, tries):
    theirs = auto_tokenizer(folder)
    assert theirs(text).input_ids == text_ids
    assert theirs.decode(text_ids) == text
    for string in STRANGE:
        assert theirs(string).input_ids == tokenizer.encode(string)
        assert theirs.decode(tokenizer.encode(string)) == string
    assert len(theirs("a  1").input_ids) == 3  # digits are split off first
    assert theirs.eos_token_id == theirs.bos_token_id == theirs.pad_token_id == tokenizer.eos_id
    assert theirs.model_max_length == TINY.block_size
    assert not tries


def test_the_exported_tokenizer_is_read_again(folder, tokenizer):
    again = load_tokenizer(folder)  # checks vocabulary, merges and digits
    assert again.special_tokens == tokenizer.special_tokens
    for string in STRANGE:
        assert again.encode(string) == tokenizer.encode(string)


def test_weights_can_be_stored_in_half_the_space(tiny, tmp_path):
    folder = export_pretrained(tiny, tmp_path / "half", dtype=torch.bfloat16)
    assert auto_model(folder).dtype == torch.bfloat16
    state = load_pretrained(folder, quiet=True).state_dict()
    for name, weight in tiny.state_dict().items():
        torch.testing.assert_close(state[name], weight.bfloat16().float(), rtol=0, atol=0)


def spoken(card: ModelCard, place: Path) -> str:
    """Run the card's own lines, as somebody would who copies them."""
    [lines] = re.findall(r"```python\n(.+?)```", card.text, re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", lines], cwd=place, capture_output=True, text=True, check=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    return done.stdout.strip()


@pytest.mark.slow
def test_the_card_of_real_weights_names_them_and_their_licence_and_lets_them_speak(
    real_model, tokenizer, tmp_path
):
    export_pretrained(real_model, tmp_path / "real", tokenizer=tokenizer)
    card = ModelCard.load(tmp_path / "real" / "README.md")
    assert card.data.license == "apache-2.0"
    assert card.data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert card.data.language == "en"
    assert "4-bit (Q4_1) dequantised to float32" in card.text
    assert "Paris" in spoken(card, tmp_path)
    again = load_pretrained(tmp_path / "real", quiet=True)
    export_pretrained(again, tmp_path / "again", tokenizer=tokenizer)
    second = ModelCard.load(tmp_path / "again" / "README.md")
    assert second.data.to_dict() == card.data.to_dict()
    assert "Loaded were: " in card.text
    assert "Loaded were: " not in second.text, "a folder of the writer's tells the reader nothing"


def test_the_card_of_a_checkpoint_says_how_it_was_trained(tmp_path, tokenizer, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = tokenizer.encode("To be, or not to be, that is the question. " * 40)
    recipe = TrainingConfig(
        preset="tiny", steps=2, batch_size=2, accumulate=3, sequence_length=16, block_size=64,
        precision="fp32", learning_rate=1e-3,
    )  # fmt: skip
    state = TrainingState.create(recipe, text, None, RunOptions(eval_interval=0, device="cpu"))
    list(train(state))
    save_checkpoint(state, Path("run"), tokenizer)
    export_pretrained(load_pretrained("run", quiet=True), "mine", tokenizer=tokenizer)
    card = ModelCard.load("mine/README.md")
    assert "2 steps of 96 tokens on tiny Shakespeare, from random weights; AdamW" in card.text
    assert "learning rate 0.001 to 3e-05 (cosine)" in card.text
    assert (card.data.license, card.data.base_model, card.data.language) == (None, None, "en")
    assert "Its licence is for its owner to name" in card.text
    assert spoken(card, tmp_path).startswith("To be, or not to be")


def test_a_card_claims_nothing_that_is_not_known(tiny, tmp_path, tokenizer):
    """A file or folder that is merely called as Hugging Face's weights are is not theirs."""
    path = tmp_path / "SmolLM2-135M"
    export_pretrained(tiny, path)
    (path / "README.md").unlink()
    export_gguf(tiny, tmp_path / "SmolLM2-135M-Instruct.gguf", tokenizer=tokenizer)
    for number, source in enumerate((path, tmp_path / "SmolLM2-135M-Instruct.gguf")):
        export_pretrained(load_pretrained(source, quiet=True), tmp_path / f"out{number}")
        data = ModelCard.load(tmp_path / f"out{number}" / "README.md").data
        assert (data.license, data.base_model) == (None, None)
    (path / "README.md").write_text("---\nlicense: [mit\n---\n")
    export_pretrained(load_pretrained(path, quiet=True), tmp_path / "torn")
    (path / "README.md").write_text("---\nlicense: mit\nlanguage: [de, fr]\n---\n")
    export_pretrained(load_pretrained(path, quiet=True), tmp_path / "theirs")
    data = ModelCard.load(tmp_path / "theirs" / "README.md").data
    assert (data.license, data.language) == ("mit", ["de", "fr"])


def test_the_card_says_what_the_run_measured(folder):
    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "text-generation"
    assert "| validation loss | 1.58 nats |" in card.text
    assert "| steps | 2000 |" in card.text
    assert f"{sum(p.numel() for p in SmolLM2(TINY).parameters()):,} parameters" in card.text


def test_exports_need_no_transformers(tmp_path):
    program = f"""
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("transformers", "matplotlib", "IPython", "nbformat", "nbclient"):
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
from smol_scratch import SmolLM2, SmolLM2Config, load_tokenizer
from smol_scratch.sharing import export_gguf, export_pretrained
model, tokenizer = SmolLM2(SmolLM2Config.preset("tiny", n_layer=1)), load_tokenizer()
export_pretrained(model, {str(tmp_path / "folder")!r}, tokenizer=tokenizer)
export_gguf(model, {str(tmp_path / "model.gguf")!r}, tokenizer=tokenizer)
"""
    assert python(program).stdout == ""
    load_pretrained(tmp_path / "folder", quiet=True)
    load_pretrained(tmp_path / "model.gguf", quiet=True)


def test_real_weights_make_the_round_trip(real_model, tokenizer, tmp_path):
    folder = export_pretrained(real_model, tmp_path / "real", tokenizer=tokenizer)
    theirs = auto_model(folder)
    assert theirs.lm_head.weight is theirs.model.embed_tokens.weight
    ids = auto_tokenizer(folder)("The capital of France is", return_tensors="pt").input_ids
    assert ids.tolist() == [tokenizer.encode("The capital of France is")]
    with torch.no_grad():
        logits = theirs(ids).logits
        assert torch.equal(logits, to_transformers(real_model)(ids).logits)
        torch.testing.assert_close(logits, real_model(ids)[0], rtol=1e-4, atol=1e-3)
    assert tokenizer.decode([logits[0, -1].argmax()]) == " Paris"
    again = load_pretrained(folder, quiet=True)
    assert same_weights(again, real_model)
    assert again.chat_template == real_model.chat_template


def test_weights_that_answer_keep_their_chat_template(real_model, tokenizer, tmp_path):
    """In a folder and in a GGUF file: the prompt is ours, and an answer ends with its turn."""
    model = make()
    model.chat_template = real_model.chat_template
    folder = export_pretrained(model, tmp_path / "answers", tokenizer=tokenizer)
    theirs = auto_tokenizer(folder)
    for question in ("Why?", [{"role": "system", "content": "Be brief."},
                              {"role": "user", "content": "a  1"}]):  # fmt: skip
        turns = [{"role": "user", "content": question}] if question == "Why?" else question
        ids = theirs.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
        assert ids == chat_prompt(tokenizer, question)
    answers_end = tokenizer.special_tokens["<|im_end|>"]
    assert theirs.eos_token_id == answers_end
    assert auto_model(folder).generation_config.eos_token_id == answers_end
    path = export_gguf(model, tmp_path / "answers.gguf", tokenizer=tokenizer)
    assert load_pretrained(path, quiet=True).chat_template == model.chat_template
    bare = export_pretrained(model, tmp_path / "without a tokenizer")
    file = export_gguf(model, tmp_path / "without.gguf")
    for place in (bare, file):
        assert load_pretrained(place, quiet=True).chat_template == model.chat_template
    for place in (path, file):  # one template is one string: readers expect no list
        written = gguf_format.GGUFReader(place).fields
        assert written["tokenizer.chat_template"].contents() == model.chat_template
        assert not any(name.startswith("tokenizer.chat_templates") for name in written)
    written = gguf_format.GGUFReader(path).fields
    assert written["tokenizer.ggml.eos_token_id"].contents() == answers_end


# All or nothing


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_folder_with_something_in_it_is_left_alone(tmp_path):
    one, other = make(SMALL), make(SMALL)
    folder = tmp_path / "mine"
    folder.mkdir()
    export_pretrained(one, folder)  # empty: taken
    before = content(folder)
    with pytest.raises(FileExistsError, match=r": overwrite=True replaces it; or name another"):
        export_pretrained(other, folder)
    assert content(folder) == before
    export_pretrained(other, folder, overwrite=True)
    assert same_weights(load_pretrained(folder, quiet=True), other)
    assert list(tmp_path.iterdir()) == [folder]


def test_a_folder_of_other_things_is_never_replaced(tmp_path):
    (tmp_path / "thesis.txt").write_text("three years")
    (tmp_path / "a.txt").write_text("one")
    with pytest.raises(FileExistsError, match=r"holds a\.txt: it is no earlier export"):
        export_pretrained(make(SMALL), tmp_path, overwrite=True)
    assert content(tmp_path) == {"a.txt": b"one", "thesis.txt": b"three years"}


def test_a_checkpoint_is_no_earlier_export(tmp_path):
    """It has all that an export has, and what the next step depends on."""
    folder = export_pretrained(make(SMALL), tmp_path / "checkpoint")
    (folder / "training_state.json").write_text("{}")
    before = content(folder)
    with pytest.raises(
        FileExistsError, match=r"holds training_state\.json: it is no earlier export"
    ):
        export_pretrained(make(SMALL), folder, overwrite=True)
    assert content(folder) == before


def test_a_folder_is_not_replaced_by_a_file(tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "thesis.txt").write_text("three years")
    with pytest.raises(IsADirectoryError, match="models is a folder: name a file in it"):
        export_gguf(make(SMALL), tmp_path / "models")
    assert content(tmp_path / "models") == {"thesis.txt": b"three years"}


def disk_full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("earlier", [True, False])
@pytest.mark.parametrize(
    ("where", "name"),
    [
        (safetensors.torch, "save_file"),
        (hub, "_write_json"),
        (huggingface_hub, "ModelCardData"),
        (Path, "replace"),
    ],
)
def test_a_full_disk_leaves_no_half_folder(earlier, where, name, tmp_path, monkeypatch):
    folder = tmp_path / "mine"
    if earlier:
        export_pretrained(make(SMALL), folder)
        before = content(folder)
    monkeypatch.setattr(where, name, disk_full)
    with pytest.raises(OSError, match="No space left"):
        export_pretrained(make(SMALL), folder, overwrite=True)
    assert list(tmp_path.iterdir()) == ([folder] if earlier else [])
    assert not earlier or content(folder) == before


def test_an_earlier_export_comes_back_when_the_last_step_fails(tmp_path, monkeypatch):
    folder = export_pretrained(make(SMALL), tmp_path / "mine")
    before, replace = content(folder), Path.replace
    monkeypatch.setattr(
        Path, "replace", lambda a, b: disk_full() if a.name == "new" else replace(a, b)
    )
    with pytest.raises(OSError, match="No space left"):
        export_pretrained(make(SMALL), folder, overwrite=True)
    assert content(folder) == before


@pytest.mark.parametrize("name", ["write_header_to_file", "write_tensors_to_file"])
def test_a_full_disk_leaves_no_half_gguf(name, tmp_path, monkeypatch):
    path = export_gguf(make(SMALL), tmp_path / "mine.gguf")
    before = path.read_bytes()
    monkeypatch.setattr(gguf_format.GGUFWriter, name, disk_full)
    with pytest.raises(OSError, match="No space left"):
        export_gguf(make(SMALL), path)
    assert content(tmp_path) == {"mine.gguf": before}


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EIO, errno.ENOTSUP])
def test_a_drive_that_cannot_flush_a_folder_or_set_modes_gets_whole_exports(
    tmp_path, monkeypatch, number
):
    real = os.fsync

    def fsync(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(number, os.strerror(number))
        real(handle)

    def chmod(*_, **__):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "chmod", chmod)
    model = make(SMALL)
    folder = export_pretrained(model, tmp_path / "mine")
    path = export_gguf(model, tmp_path / "mine.gguf")
    for place in (folder, path):
        assert same_weights(load_pretrained(place, quiet=True), model)


def test_weights_that_are_not_the_configurations_are_refused(tmp_path):
    weights = make(SMALL).state_dict()
    weights["module.extra"] = weights.pop(QUERY)
    with pytest.raises(ValueError, match=f"{QUERY} is missing; module.extra is unknown"):
        write_model_files(weights, SMALL, tmp_path)
    assert not content(tmp_path)


def test_a_tokenizer_that_does_not_belong_is_refused(tokenizer, tmp_path):
    message = "the tokenizer has 49152 entries, the model"
    with pytest.raises(ValueError, match=message):
        export_pretrained(make(SMALL), tmp_path / "mine", tokenizer=tokenizer)
    with pytest.raises(ValueError, match=message):
        export_gguf(make(SMALL), tmp_path / "mine.gguf", tokenizer=tokenizer)
    assert not content(tmp_path)


# The hub


@pytest.fixture
def calls(monkeypatch) -> list[tuple[str, dict]]:
    """A hub that only writes down what is asked of it."""
    made: list[tuple[str, dict]] = []

    class FakeApi:
        def __init__(self, token=None):
            made.append(("api", {"token": token}))

        def create_repo(self, repo_id, **options):
            made.append(("create_repo", {"repo_id": repo_id, **options}))

        def upload_folder(self, **options):
            made.append(("upload_folder", options))
            return SimpleNamespace(commit_url="https://the.hub/commit/1")

    monkeypatch.setattr(huggingface_hub, "HfApi", FakeApi)
    return made


def test_pushing_sends_the_model_and_nothing_else(folder, calls, tries):
    assert push_to_hub(folder, "me/tiny", token="secret") == "https://the.hub/commit/1"
    (_, api), (_, create), (last, upload) = calls
    assert api == {"token": "secret"}
    assert create == {"repo_id": "me/tiny", "private": True, "exist_ok": True}
    assert last == "upload_folder"
    assert (upload["repo_id"], upload["folder_path"]) == ("me/tiny", folder)
    private = ["training_state.json", "optimizer.safetensors", "generators.safetensors", ".env"]
    shards = ["model-00001-of-00002.safetensors", "model.safetensors.index.json"]
    present = [path.name for path in folder.iterdir()] + shards
    sent = filter_repo_objects(present + private, allow_patterns=upload["allow_patterns"])
    assert sorted(sent) == sorted(present)
    assert not tries


def test_what_is_no_model_folder_is_not_pushed(tmp_path, calls):
    with pytest.raises(assets.MissingAssetError, match=r"no config\.json: export_pretrained"):
        push_to_hub(tmp_path, "me/tiny")
    assert not calls


# GGUF


@pytest.mark.parametrize("tied", [True, False])
def test_a_gguf_in_full_precision_comes_back_bit_by_bit(tied, tmp_path):
    model = make(dataclasses.replace(TINY, tie_embeddings=tied))
    loaded = load_pretrained(export_gguf(model, tmp_path / "tiny.gguf"), quiet=True)
    assert loaded.config == model.config
    assert same_weights(loaded, model)


@pytest.mark.parametrize("dtype", ["f16", "q8_0"])
def test_a_smaller_gguf_is_as_near_as_its_format_allows(dtype, tiny, tmp_path):
    loaded = load_pretrained(export_gguf(tiny, tmp_path / "tiny.gguf", dtype), quiet=True)
    state = loaded.state_dict()
    for name, weight in tiny.state_dict().items():
        if weight.ndim == 1:
            expected, error = weight, torch.zeros(())
        elif dtype == "f16":
            expected, error = weight.half().float(), torch.zeros(())
        else:
            # The largest of a block of 32 becomes ±127. Half a step is lost, and what float16
            # loses in the step: 2^-11 of up to 127 of them.
            blocks = weight.unflatten(-1, (-1, 32))
            step = blocks.abs().amax(-1, keepdim=True) / 127
            expected = weight
            error = ((0.501 + 127 * 2**-11) * step).expand_as(blocks).reshape(weight.shape)
            assert not torch.equal(state[name], weight)
        assert ((state[name] - expected).abs() <= error).all(), name


@pytest.mark.parametrize("tied", [True, False])
def test_transformers_reads_the_gguf(tied, tmp_path, tries):
    pytest.importorskip("accelerate", reason="transformers reads GGUF weights only beside it")
    model = make(dataclasses.replace(TINY, tie_embeddings=tied))
    export_gguf(model, tmp_path / "tiny.gguf")
    theirs = auto_model(tmp_path, gguf_file="tiny.gguf")
    assert theirs.config.rope_parameters["rope_theta"] == 130_000
    assert_same_logits(theirs, model)
    assert not tries


@pytest.fixture(scope="module")
def with_tokenizer(tiny, tokenizer, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    return export_gguf(tiny, path, "q8_0", tokenizer=tokenizer)


def test_the_tokenizer_in_a_gguf_is_read_again(with_tokenizer, tokenizer, gguf):
    again = load_tokenizer(with_tokenizer)  # checks vocabulary and merges
    assert again.special_tokens == tokenizer.special_tokens
    for string in STRANGE:
        assert again.encode(string) == tokenizer.encode(string)
    # What llama.cpp reads, but for the marks of a conversation, is what its own converter wrote.
    written = gguf_format.GGUFReader(with_tokenizer).fields
    theirs = gguf_format.GGUFReader(gguf).fields
    ours = {name for name in written if name.startswith("tokenizer.")}
    assert ours == {n for n in theirs if n.startswith("tokenizer.")} - {"tokenizer.chat_template"}
    for name in ours:  # the vocabulary was checked above
        if not name.endswith(("_token_id", ".tokens", ".merges")):
            assert written[name].contents() == theirs[name].contents(), name
    assert written["tokenizer.ggml.pre"].contents() == "smollm"  # splits every digit off
    assert written["tokenizer.ggml.eos_token_id"].contents() == tokenizer.eos_id


def test_transformers_reads_the_tokenizer_in_a_gguf(with_tokenizer, tokenizer, text, text_ids):
    loaded = auto_tokenizer(with_tokenizer.parent, gguf_file=with_tokenizer.name)
    assert loaded(text).input_ids == text_ids
    assert loaded.eos_token_id == tokenizer.eos_id
    # Its reader ignores the field that says how digits are cut. Should this fail, it has learnt.
    assert len(loaded("a  1").input_ids) == 4


def test_what_a_gguf_cannot_hold_is_named(tmp_path):
    with pytest.raises(ValueError, match="dtype='q4_k': must be one of f32, f16, q8_0"):
        export_gguf(make(SMALL), tmp_path / "mine.gguf", "q4_k")
    with pytest.raises(ValueError, match=r"dtype=\['f32'\]: must be one of"):
        export_gguf(make(SMALL), tmp_path / "mine.gguf", ["f32"])
    big = make(SMALL)
    big.model.layers[0].mlp.up_proj.weight.data[3, 5] = -70_000.0
    with pytest.raises(
        ValueError, match=r"0\.mlp\.up_proj\.weight holds a number that is too large"
    ):
        export_gguf(big, tmp_path / "mine.gguf", "f16")
    assert not content(tmp_path)


@torch.no_grad()
def greedy(model: SmolLM2, ids: list[int], new: int) -> list[int]:
    for _ in range(new):
        logits, _ = model(torch.tensor([ids]))
        ids = [*ids, int(logits[0, -1].argmax())]
    return ids


def q8_0(weight: torch.Tensor) -> bytes:
    """llama.cpp's blocks, written down plainly: a float16 step, then 32 multiples of it."""
    blocks = weight.float().reshape(-1, 32).numpy()
    step = np.abs(blocks).max(-1, keepdims=True) / np.float32(127)
    with np.errstate(divide="ignore"):
        steps = blocks * np.where(step > 0, np.float32(1) / step, np.float32(0))
    whole = np.where(steps < 0, np.ceil(steps - 0.5), np.floor(steps + 0.5))  # halves outwards
    stored = [step.astype("<f2").view(np.uint8), whole.astype(np.int8).view(np.uint8)]
    return np.concatenate(stored, axis=-1).tobytes()


@pytest.fixture(scope="module")
def real_q8_0(real_model, tokenizer, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("real") / "real.gguf"
    return export_gguf(real_model, path, "q8_0", tokenizer=tokenizer)


def test_all_tensors_of_a_q8_0_file_are_llama_cpps_bytes(real_model, real_q8_0):
    """Its text need not be ours: llama.cpp rounds what goes into each product as well."""
    stored = read_gguf(real_q8_0).tensors
    assert len(stored) == 272
    weights = real_model.state_dict()
    for name, tensor in stored.items():
        ours = hub._GGUF_OUTER.get(name)
        if ours is None:
            _, layer, part, _ = name.split(".")
            ours = f"model.layers.{layer}.{hub._GGUF_BLOCK[part]}.weight"
        weight = weights[ours]
        if name.endswith(("attn_q.weight", "attn_k.weight")):
            weight = hub.neighbours_from_halves(weight, real_model.config.head_dim)
        expected = q8_0(weight) if weight.ndim == 2 else weight.numpy().tobytes()
        assert tensor.data.tobytes() == expected, name
        assert tensor.kind.name == ("Q8_0" if weight.ndim == 2 else "F32")


LLAMA_CPP = "pip install llama-cpp-python (it builds for some minutes)"


@pytest.mark.slow
def test_llama_cpps_own_quantiser_writes_the_same_tensors(
    real_model, real_q8_0, tokenizer, tmp_path
):
    llama_cpp = pytest.importorskip("llama_cpp", reason=LLAMA_CPP)
    full = export_gguf(real_model, tmp_path / "f32.gguf", "f32", tokenizer=tokenizer)
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0
    theirs = tmp_path / "q8_0.gguf"
    names = str(full).encode(), str(theirs).encode()
    assert llama_cpp.llama_model_quantize(*names, settings) == 0
    ours, made = read_gguf(real_q8_0), read_gguf(theirs)
    assert ours.tensors.keys() == made.tensors.keys()
    for name, tensor in made.tensors.items():
        assert (tensor.kind, tensor.shape) == (ours.tensors[name].kind, ours.tensors[name].shape)
        assert tensor.data.tobytes() == ours.tensors[name].data.tobytes(), name
    for field in ("general.file_type", "general.quantization_version"):
        assert ours.fields[field] == made.fields[field]


@pytest.mark.slow
def test_llama_cpp_speaks_the_same_in_full_precision(real_model, tokenizer, tmp_path):
    llama_cpp = pytest.importorskip("llama_cpp", reason=LLAMA_CPP)
    path = export_gguf(real_model, tmp_path / "real.gguf", "f32", tokenizer=tokenizer)
    llama = llama_cpp.Llama(str(path), n_ctx=128, n_threads=2, verbose=False)
    strange = "a  1 in\n\n1984, 's \t é 中 👍"
    assert llama.tokenize(strange.encode(), add_bos=False) == tokenizer.encode(strange)
    prompt = "Once upon a time"
    made = llama.create_completion(prompt, max_tokens=32, temperature=0.0)["choices"][0]["text"]
    model = load_pretrained(path, quiet=True)
    ids = tokenizer.encode(prompt)
    expected = tokenizer.decode(greedy(model, ids, 32)[len(ids) :])
    assert "<|" not in expected  # llama.cpp would stop there
    assert made == expected


# Other people's models, and what others read of ours

# Every field that the specification requires, or that llama.cpp cannot do without.
FIELDS = {
    "general.architecture": "llama",
    "general.quantization_version": 2,
    "llama.context_length": 192,
    "llama.embedding_length": 96,
    "llama.block_count": 2,
    "llama.feed_forward_length": 160,
    "llama.attention.head_count": 6,
    "llama.attention.head_count_kv": 3,
    "llama.attention.key_length": 32,
    "llama.attention.value_length": 32,
    "llama.rope.dimension_count": 32,
    "llama.rope.freq_base": 123_456.0,
    "llama.attention.layer_norm_rms_epsilon": np.float32(3.25e-4),
    "llama.vocab_size": 224,
}
UNUSUAL = SmolLM2Config(
    block_size=192, vocab_size=224, n_layer=2, n_head=6, n_kv_head=3, n_embd=96, head_dim=32,
    intermediate_size=160, rope_theta=123_456.0, norm_eps=3.25e-4, tie_embeddings=False,
)  # fmt: skip


@pytest.mark.parametrize(("dtype", "file_type"), [("f32", 0), ("f16", 1), ("q8_0", 7)])
def test_a_gguf_file_says_all_that_the_format_requires(dtype, file_type, tmp_path):
    path = export_gguf(make(UNUSUAL), tmp_path / "strange.gguf", dtype)
    written = {n: f.contents() for n, f in gguf_format.GGUFReader(path).fields.items()}
    expected = FIELDS | {"general.name": "strange", "general.file_type": file_type}
    assert {n: v for n, v in written.items() if not n.startswith("GGUF.")} == expected
    assert gguf_format.LlamaFileType(file_type).name.endswith(dtype.upper())
    config = dataclasses.replace(UNUSUAL, init_std=96**-0.5)  # a GGUF file does not know it
    assert load_pretrained(path, quiet=True).config == config


def test_a_matrix_that_fits_no_blocks_is_stored_in_float16_and_said(tmp_path, capsys):
    config = dataclasses.replace(UNUSUAL, intermediate_size=80)
    model = make(config)
    loaded = load_pretrained(export_gguf(model, tmp_path / "w.gguf", "q8_0"), quiet=True)
    said = capsys.readouterr().err
    assert said == (
        "w.gguf: 2 matrices are not as wide as whole blocks of 32 and were stored as f16, "
        "model.layers.0.mlp.down_proj.weight the first\n"
    )
    kinds = {n: t.kind.name for n, t in read_gguf(tmp_path / "w.gguf").tensors.items()}
    assert {n for n, kind in kinds.items() if kind == "F16"} == {
        f"blk.{layer}.ffn_down.weight" for layer in range(2)
    }
    weights, state = model.state_dict(), loaded.state_dict()
    assert torch.equal(state[DOWN], weights[DOWN].half().float())
    export_gguf(make(UNUSUAL), tmp_path / "fits.gguf", "q8_0")
    assert capsys.readouterr().err == ""


DOWN = "model.layers.0.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def padded() -> SmolLM2:
    torch.manual_seed(0)
    return make(dataclasses.replace(TINY, vocab_size=49_216)).requires_grad_(False)


def test_entries_without_a_token_survive_every_way(padded, tokenizer, tmp_path, tries):
    folder = export_pretrained(padded, tmp_path / "padded", tokenizer=tokenizer)
    path = export_gguf(padded, tmp_path / "padded.gguf", tokenizer=tokenizer)
    for place in (folder, path):
        loaded, own = load_pretrained(place, quiet=True), tokenizer_for(place, 49_216)
        assert same_weights(loaded, padded)
        assert (own.vocab_size, own.fingerprint) == (49_152, tokenizer.fingerprint)
        text = "".join(stream_text(loaded, own, [1, 2, 3], 60, temperature=9.0))
        assert tokenizer.encode(text)
    fields = read_gguf(path).fields
    assert fields["llama.vocab_size"] == len(fields["tokenizer.ggml.tokens"]) == 49_216
    assert fields["tokenizer.ggml.tokens"][-1] == "[PAD49215]"
    kinds = fields["tokenizer.ggml.token_type"]
    assert (kinds[16], kinds[17], kinds[49_151], kinds[49_152:]) == (3, 1, 1, [5] * 64)
    assert auto_model(folder).model.embed_tokens.weight.shape[0] == 49_216


def test_a_token_that_was_added_goes_the_whole_way(tokenizer, tmp_path):
    """The usual recipe for a pad token: resize the embedding, save, and use it elsewhere."""
    folder = export_pretrained(make(TINY), tmp_path / "first", tokenizer=tokenizer)
    theirs, words = auto_model(folder), auto_tokenizer(folder)
    words.add_special_tokens({"pad_token": "[PAD]"})
    theirs.resize_token_embeddings(len(words))
    theirs.save_pretrained(tmp_path / "added")
    words.save_pretrained(tmp_path / "added")
    model = load_pretrained(tmp_path / "added", quiet=True)
    own = tokenizer_for(tmp_path / "added", model.config.vocab_size)
    assert (model.config.vocab_size, own.vocab_size) == (49_153, 49_153)
    assert own.names["pad_token"] == "[PAD]"
    path = export_gguf(model, tmp_path / "a.gguf", tokenizer=own)
    fields = read_gguf(path).fields
    assert fields["tokenizer.ggml.tokens"][-1] == "[PAD]"
    assert fields["tokenizer.ggml.padding_token_id"] == 49_152
    assert (
        load_tokenizer(path).encode("a[PAD]") == own.encode("a[PAD]") == words("a[PAD]").input_ids
    )
    again = export_pretrained(model, tmp_path / "again", tokenizer=own)
    assert auto_tokenizer(again).pad_token_id == 49_152


OTHER = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}{{ eos_token }}"
    "{% endfor %}"
)


def test_how_a_model_is_spoken_with_survives_every_way(tokenizer, tmp_path):
    """Template, its names for tokens, and what ends an answer: not SmolLM2's, but its own."""
    names = {"bos_token": "<file_sep>", "eos_token": "<filename>", "pad_token": "<gh_stars>",
             "unk_token": "<repo_name>"}  # fmt: skip
    number = {name: tokenizer.special_tokens[token] for name, token in names.items()}
    templates = {"default": OTHER, "tool_use": OTHER + "{{ tools }}"}
    own = SmolLM2Tokenizer(
        tokenizer.backend, chat_templates=templates, names=names, end_ids=[number["eos_token"], 9]
    )
    model = make()
    model.chat_template = OTHER
    folder = export_pretrained(model, tmp_path / "own", tokenizer=own)
    path = export_gguf(model, tmp_path / "own.gguf", tokenizer=own)
    fields = read_gguf(path).fields
    stored = {name: fields[f"tokenizer.ggml.{name}_token_id"]
              for name in ("bos", "eos", "eot", "unknown", "padding")}  # fmt: skip
    assert list(stored.values()) == [
        *(number[name] for name in ("bos_token", "eos_token")), 9,
        *(number[name] for name in ("unk_token", "pad_token")),
    ]  # fmt: skip
    assert fields["tokenizer.ggml.add_bos_token"] is False
    assert fields["tokenizer.ggml.add_space_prefix"] is False
    text = "<file_sep>[user] Hi<filename>"
    for place in (folder, path):
        again = load_tokenizer(place)
        assert load_pretrained(place, quiet=True).chat_template == OTHER
        assert again.chat_templates == templates
        assert {name: again.names[name] for name in names} == names
        assert stop_tokens(again) == (0, 2, number["eos_token"], 9)
        assert again.decode(chat_prompt(again, "Hi")) == text
    theirs = auto_tokenizer(folder)
    turns = [{"role": "user", "content": "Hi"}]
    assert theirs.apply_chat_template(turns, tokenize=False) == text
    assert theirs.eos_token_id == number["eos_token"]
    assert auto_model(folder).generation_config.eos_token_id == [number["eos_token"], 9]
    # Weights that give no answers are not told to end as answers do.
    base = export_pretrained(make(), tmp_path / "base", tokenizer=own)
    assert auto_tokenizer(base).eos_token_id == auto_model(base).config.eos_token_id == 0


@pytest.mark.parametrize("wrap", [torch.compile, torch.nn.DataParallel])
def test_a_wrapped_model_is_exported_as_itself(wrap, tiny, tmp_path):
    wrapped = wrap(tiny)
    folder = export_pretrained(wrapped, tmp_path / "mine")
    assert same_weights(load_pretrained(folder, quiet=True), tiny)
    path = export_gguf(wrapped, tmp_path / "mine.gguf")
    assert same_weights(load_pretrained(path, quiet=True), tiny)
    (tmp_path / "state").mkdir()
    write_model_files(wrapped.state_dict(), tiny.config, tmp_path / "state")
    assert same_weights(load_pretrained(tmp_path / "state", quiet=True), tiny)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"model": "x"}, TypeError, "model=str: must be a SmolLM2"),
        ({"model": None}, TypeError, "model=NoneType: must be a SmolLM2"),
        ({"tokenizer": "x"}, TypeError, "tokenizer=str: must be a SmolLM2Tokenizer"),
        ({"dtype": torch.int8}, ValueError, "dtype=torch.int8: must be torch.float32"),
        ({"dtype": "bfloat16"}, ValueError, "dtype='bfloat16': must be"),
        ({"dtype": 16}, ValueError, "dtype=16: must be"),
    ],
)
def test_exports_with_wrong_arguments_are_named(options, error, message, tmp_path):
    given = {"model": make(SMALL)} | options
    with pytest.raises(error, match=message):
        export_pretrained(given.pop("model"), tmp_path / "mine", **given)
    given = {"model": make(SMALL)} | options
    with pytest.raises(error, match=message.replace("torch.float32", "one of")):
        export_gguf(given.pop("model"), tmp_path / "mine.gguf", **given)
    assert not content(tmp_path)


# Old .pt files


@torch.no_grad()
def walkthrough_logits(weights: dict, config: SmolLM2Config, ids: torch.Tensor) -> torch.Tensor:
    """The walkthrough's model, written down plainly: RoPE turns channel 2 i with 2 i + 1."""

    def norm(x, name):
        return F.rms_norm(x, x.shape[-1:], weights[name], config.norm_eps)

    def turned(x):
        D, T = config.head_dim, x.shape[-2]
        angles = torch.arange(T)[:, None] * config.rope_theta ** (-torch.arange(0, D, 2) / D)
        pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
        return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2)

    x = weights[EMBEDDING][ids]
    for layer in range(config.n_layer):
        at = f"model.layers.{layer}."
        h = norm(x, at + "input_layernorm.weight")
        q, k, v = (
            (h @ weights[f"{at}self_attn.{n}_proj.weight"].T).unflatten(-1, (-1, config.head_dim))
            for n in "qkv"
        )
        q, k, v = turned(q.transpose(1, 2)), turned(k.transpose(1, 2)), v.transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + y.transpose(1, 2).flatten(-2) @ weights[at + "self_attn.o_proj.weight"].T
        h = norm(x, at + "post_attention_layernorm.weight")
        gate, up = (h @ weights[f"{at}mlp.{n}_proj.weight"].T for n in ("gate", "up"))
        x = x + (F.silu(gate) * up) @ weights[at + "mlp.down_proj.weight"].T
    return norm(x, "model.norm.weight") @ weights.get("lm_head.weight", weights[EMBEDDING]).T


def layouts(weights: dict, config: SmolLM2Config) -> dict[str, object]:
    optimizer = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 3e-4}]}
    rope = {"model.layers.0.self_attn.rope.inv_freq": torch.ones(4)}
    return {
        "model": {"model": weights, "optimizer": optimizer, "step": 5000, "loss": 0.09},
        "model_state_dict": {"model_state_dict": weights, "config": dataclasses.asdict(config)},
        "state_dict": {"epoch": 1, "state_dict": weights | rope},
        "bare": weights,
        **{
            front: {"model": {front + name: t for name, t in weights.items()}}
            for front in (
                "_orig_mod.",
                "module.",
                "module._orig_mod.",
                "_orig_mod.module.",
                "module.module.",
                "model.",
            )
        },
        "frequencies": weights | {"_orig_mod.model.layers.1.self_attn.rope.cos": torch.ones(2, 2)},
        "head twice": weights | {"lm_head.weight": weights[EMBEDDING].clone()},
    }


@pytest.mark.parametrize("layout", layouts({EMBEDDING: torch.zeros(1)}, SMALL))
def test_an_old_checkpoint_gives_the_same_logits(layout, tmp_path):
    weights = make(SMALL).state_dict()
    path = tmp_path / "checkpoint.pt"
    torch.save(layouts(weights, SMALL)[layout], path)
    config = None if layout == "model_state_dict" else SMALL
    model = load_walkthrough_checkpoint(path, config)
    assert model.config == SMALL
    ids = torch.randint(SMALL.vocab_size, (2, 17))
    expected = walkthrough_logits(weights, SMALL, ids)
    torch.testing.assert_close(model(ids)[0], expected, rtol=1e-4, atol=1e-4)
    assert not model.training
    assert "checkpoint.pt" in model.source


def test_without_a_configuration_it_is_the_walkthroughs(tmp_path):
    torch.save({"model": make(SMALL).state_dict()}, tmp_path / "checkpoint.pt")
    with pytest.raises(assets.CorruptAssetError, match=r"model\.layers\.10\..*and 267 more"):
        load_walkthrough_checkpoint(tmp_path / "checkpoint.pt")


class Malice:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path):
    trace = tmp_path / "trace"
    pickle.loads(pickle.dumps(Malice(trace)))
    assert trace.exists()  # the trap works
    trace.unlink()
    weights = make(SMALL).state_dict()
    torch.save({"model": weights, "extra": Malice(trace)}, tmp_path / "zip.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Malice(trace), protocol=2))
    for name in ("zip.pt", "plain.pt"):
        with pytest.raises(assets.CorruptAssetError, match=f"{name} is damaged, or holds more"):
            load_walkthrough_checkpoint(tmp_path / name, SMALL)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ({"net": {}, "iteration": 3}, "no weights under a known name; found: net, iteration"),
        ({"model": [1, 2], "step": 3}, "no weights under a known name; found: model, step"),
        (torch.zeros(3), "no weights under a known name; found: Tensor"),
        ({1: torch.zeros(3)}, "no weights under a known name; found: 1"),
        ({"model": {2: torch.zeros(3)}}, "no weights under a known name; found: model"),
        ({"model": {}, "config": {"n_layers": 2}}, "config cannot be read.*n_layers"),
    ],
)
def test_another_layout_is_named(stored, message, tmp_path):
    torch.save(stored, tmp_path / "checkpoint.pt")
    with pytest.raises(assets.CorruptAssetError, match=message) as error:
        load_walkthrough_checkpoint(tmp_path / "checkpoint.pt")
    assert "checkpoint.pt" in str(error.value)


def test_a_configuration_of_the_wrong_type_is_named(tmp_path):
    torch.save(make(SMALL).state_dict(), tmp_path / "checkpoint.pt")
    with pytest.raises(TypeError, match=r"config=\{'n_layer': 2\}: must be a SmolLM2Config"):
        load_walkthrough_checkpoint(tmp_path / "checkpoint.pt", {"n_layer": 2})


def test_tensors_of_another_shape_are_named(tmp_path):
    torch.save(make(SMALL).state_dict() | {QUERY: torch.zeros(7, 48)}, tmp_path / "checkpoint.pt")
    with pytest.raises(assets.CorruptAssetError, match=rf"{QUERY} has shape \(7, 48\)"):
        load_walkthrough_checkpoint(tmp_path / "checkpoint.pt", SMALL)


def test_a_damaged_or_absent_checkpoint_is_named(tmp_path):
    path = tmp_path / "checkpoint.pt"
    with pytest.raises(assets.MissingAssetError, match=r"checkpoint\.pt: no such file"):
        load_walkthrough_checkpoint(path)
    torch.save({"model": make(SMALL).state_dict()}, path)
    whole = path.read_bytes()
    for place in range(64, 900, 7):  # what the unpickler reads first; it raises as it likes
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 8]) + whole[place + 1 :])
        with contextlib.suppress(assets.CorruptAssetError):
            load_walkthrough_checkpoint(path, SMALL)
    path.write_bytes(whole)
    for kept in (0, 10, 5000):
        path.write_bytes(path.read_bytes()[:kept])
        with pytest.raises(assets.CorruptAssetError, match=r"checkpoint\.pt is damaged"):
            load_walkthrough_checkpoint(path, SMALL)
