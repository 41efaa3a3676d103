"""How others describe a Llama, read for what it means: ``config.json``, and a GGUF file's fields.

What cannot change the arithmetic is let through: a field that is null, false, empty or at its
neutral value, and one that speaks of something else. What would change it, and no
tensor's name or shape would betray, is refused by name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from smol_scratch.assets import CorruptAssetError
from smol_scratch.config import SmolLM2Config

# Our field for each of theirs that says something about the model.
_FIELDS = {
    "max_position_embeddings": "block_size",
    "vocab_size": "vocab_size",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "num_key_value_heads": "n_kv_head",
    "hidden_size": "n_embd",
    "intermediate_size": "intermediate_size",
    "head_dim": "head_dim",
    "rms_norm_eps": "norm_eps",
    "tie_word_embeddings": "tie_embeddings",
    "attention_dropout": "dropout",
    "initializer_range": "init_std",
}
# What ``transformers`` takes for a Llama's field that is left out or null. The others must be
# there, since a shape that is not theirs would follow; both numbers of heads have no fixed default.
_DEFAULTS: dict[str, Any] = {
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "attention_dropout": 0.0,
    "initializer_range": 0.02,
}
_THETA = 10_000.0
_GGUF_FIELDS = {
    "context_length": "block_size",
    "block_count": "n_layer",
    "attention.head_count": "n_head",
    "attention.head_count_kv": "n_kv_head",
    "embedding_length": "n_embd",
    "feed_forward_length": "intermediate_size",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "norm_eps",
}

# What this model does, by the words in the name of a field that might ask for something else.
_WORDS = {
    frozenset(words.split()): does
    for words, does in {
        "alibi interleaved position rope rotary": "it has plain RoPE, on halves, for all channels",
        "bias biases": "it has no biases",
        "act activation": "its one activation is SiLU",
        "attention attn bidirectional causal qk qkv sink sinks sliding window": (
            "every token attends to all before it, with scores scaled by 1/sqrt(head_dim)"
        ),
        "layernorm norm normalize rmsnorm": "its norms are RMSNorm, before attention and MLP",
        "cap capping clamp clip factor fraction logit logits multiplier mup pct percent ratio "
        "residual scalar scale scaling softcap softcapping": "it scales and caps nothing",
    }.items()
}
# Neutral at 1, the others at 0.
_MULTIPLIES = frozenset(
    ("factor", "fraction", "multiplier", "pct", "percent", "ratio", "scalar", "scale", "scaling")
)
# Beside one of these it is about something else: how a thing is computed, what only training does,
# what is returned, a token's number.
_ELSEWHERE = frozenset(
    ("checkpoint", "checkpointing", "context", "drop", "dropout", "flash", "fp32", "id",
     "implementation", "output", "pdrop", "sdpa", "start", "token")
)  # fmt: skip


def config_from_hf(fields: Mapping[str, Any]) -> SmolLM2Config:
    """Translate the content of a Llama ``config.json``.

    Both ``rope_theta`` and version 5's ``rope_parameters`` are read. A field that is left out or
    null means what it means to ``transformers``.

    Raises:
        ValueError: for a field that is needed and missing, has the wrong type, or asks for what
            this model cannot do (biases, RoPE scaling, another activation).
        TypeError: for what is no object.
    """
    if not isinstance(fields, Mapping):
        raise TypeError(f"fields={fields!r:.60}: must be the object of a config.json")
    fields = dict(fields)
    ours: dict[str, Any] = {"rope_theta": _theta(fields)}
    for theirs, field in _FIELDS.items():
        value = fields.pop(theirs, None)
        value = _DEFAULTS.get(theirs) if value is None else value
        if value is not None:
            ours[field] = _typed(theirs, field, value)
    needed = {"vocab_size", "n_layer", "n_head", "n_embd", "intermediate_size"}
    if missing := needed - set(ours):
        raise ValueError(f"fields missing in the configuration: {', '.join(sorted(missing))}")
    ours.setdefault("n_kv_head", ours["n_head"])
    ours.setdefault("head_dim", ours["n_embd"] // ours["n_head"])
    for name, check in _CHECKS.items():
        if (value := fields.pop(name, None)) and (reason := check(value)):
            raise ValueError(f"{name}={value!r}: {reason}")
    _refuse_windows(fields, ours["block_size"])
    _refuse_arithmetic(fields, ours)
    return SmolLM2Config(**ours)


def config_to_hf(config: SmolLM2Config) -> dict[str, Any]:
    """Return the content of the ``config.json`` that describes the same model to others."""
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "rope_scaling": None,
        "rope_interleaved": False,
        "pretraining_tp": 1,
        **{theirs: getattr(config, ours) for theirs, ours in _FIELDS.items()},
        "rope_theta": config.rope_theta,
    }


def config_from_gguf(fields: Mapping[str, Any], vocab_size: int, *, tied: bool) -> SmolLM2Config:
    """Translate the fields of a GGUF file whose architecture is ``llama``.

    Args:
        fields: name to value.
        vocab_size: rows of the embedding.
        tied: whether there is no matrix for the head.

    Raises:
        CorruptAssetError: for a field that is needed and missing.
        ValueError: for one of the wrong type, or that asks for what this model cannot do.
    """
    if (given := fields.get("general.architecture")) != "llama":
        raise ValueError(f"architecture {given!r}, not 'llama'")
    if (parts := fields.get("split.count", 1)) != 1:
        raise ValueError(f"split.count={parts}: one part of several; llama-gguf-split merges them")
    prefix = "llama."
    theirs = {n.removeprefix(prefix): v for n, v in fields.items() if n.startswith(prefix)}
    scaling = {name: theirs.pop(name) for name in [*theirs] if name.startswith("rope.scal")}
    scaling = {name: value for name, value in scaling.items() if not _neutral_scaling(name, value)}
    if scaling:
        names = ", ".join(prefix + name for name in scaling)
        raise ValueError(f"{names}: RoPE scaling is not built ({scaling})")
    ours: dict[str, Any] = {}
    for name, field in _GGUF_FIELDS.items():
        value = theirs.pop(name, None)
        if isinstance(value, list) and value and all(v == value[0] for v in value):
            value = value[0]  # one for each layer, all the same
        if value is not None:
            ours[field] = _typed(prefix + name, field, value)
        elif field not in ("n_kv_head", "head_dim"):
            raise CorruptAssetError(f"the field {prefix}{name} is missing")
    ours.setdefault("n_kv_head", ours["n_head"])
    ours.setdefault("head_dim", ours["n_embd"] // ours["n_head"])
    for name in ("rope.dimension_count", "attention.value_length"):
        value = theirs.pop(name, ours["head_dim"])
        if value != ours["head_dim"]:
            raise ValueError(
                f"{prefix}{name}={value!r}: all {ours['head_dim']} channels of a head are turned, "
                "and its values have as many"
            )
    # Stored in float32, so that 1e-5 comes back as 9.999999747e-06.
    ours["norm_eps"] = float(f"{ours['norm_eps']:.6g}")
    ours["rope_theta"] = _number(prefix + "rope.freq_base", theirs.pop("rope.freq_base", _THETA))
    window = theirs.pop("attention.sliding_window", None)
    _refuse_windows({prefix + "attention.sliding_window": window}, ours["block_size"])
    _refuse_arithmetic(theirs, ours, prefix)
    return SmolLM2Config(
        **ours, vocab_size=vocab_size, tie_embeddings=tied, init_std=ours["n_embd"] ** -0.5
    )


# Single fields.


def _typed(theirs: str, field: str, value: Any) -> int | float | bool:
    """Return a value in the type that our field has."""
    kind = {"norm_eps": _number, "dropout": _number, "init_std": _number, "tie_embeddings": _truth}
    return kind.get(field, _whole)(theirs, value)


def _whole(name: str, value: Any) -> int:
    if isinstance(value, float) and value.is_integer():  # some tools write 8192.0
        value = int(value)
    if type(value) is not int or value < 1:
        raise ValueError(f"{name}={value!r}: must be a whole number of at least 1")
    return value


def _number(name: str, value: Any) -> float:
    if type(value) not in (int, float):
        raise ValueError(f"{name}={value!r}: must be a number")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name}={value!r:.40}: must be a number that a float can hold") from None


def _truth(name: str, value: Any) -> bool:
    if type(value) is not bool:
        raise ValueError(f"{name}={value!r}: must be true or false")
    return value


def _theta(fields: dict[str, Any]) -> float:
    """Take what speaks of RoPE out of the fields, and return its theta."""
    found = {"rope_theta": fields.pop("rope_theta", None)}
    for name in ("rope_parameters", "rope_scaling"):
        given = rope = fields.pop(name, None)
        if not given:
            continue
        if isinstance(rope, Mapping) and isinstance(rope.get("full_attention"), Mapping):
            rope = rope["full_attention"]  # one for each type of layer
        if not isinstance(rope, Mapping):
            raise ValueError(f"{name}={given!r}: must be an object such as {{'rope_theta': 1e5}}")
        kind = rope.get("rope_type") or rope.get("type")
        # Each kind of scaling leaves the angles as they are where its factor is 1.
        stretch = [] if kind == "default" else ["factor", "attention_factor", "mscale"]
        read = ["partial_rotary_factor", *stretch]
        plain = all(rope.get(key) in (None, 1) for key in read)
        if kind not in (None, "default") and rope.get("factor") is None:
            plain = False
        if not plain:
            raise ValueError(
                f"{name}={given!r}: RoPE scaling and partial RoPE are not built; only plain RoPE "
                "with a rope_theta is"
            )
        found[f"{name}.rope_theta"] = rope.get("rope_theta")
    thetas = {name: _number(name, value) for name, value in found.items() if value is not None}
    if len(set(thetas.values())) > 1:
        raise ValueError(f"{thetas}: which of them is it?")
    return next(iter(thetas.values()), _THETA)


def _neutral_scaling(name: str, value: Any) -> bool:
    """Say whether a GGUF field on RoPE scaling changes no angle."""
    last = name.rpartition(".")[2]
    if last in ("type", "original_context_length", "finetuned"):
        return last != "type" or value in ("none", "linear", "yarn", "longrope")
    return value in (1, None) or (last in ("yarn_log_multiplier", "factor") and value == 0)


def _only(*allowed: str) -> Callable[[Any], str | None]:
    return lambda value: None if value in allowed else f"this model only has {allowed[0]!r}"


def _architectures(value: Any) -> str | None:
    known = ("LlamaForCausalLM", ["LlamaForCausalLM"], ["LlamaModel"])
    return None if value in known else f"this model only has {known[1]!r}"


def _quantisation(value: Any) -> str | None:
    off = ("load_in_4bit", "load_in_8bit")
    if isinstance(value, Mapping) and all(value.get(name) is False for name in off):
        return None
    return "the weights are stored quantised; save them in 16 or 32 bits"


def _own_code(value: Any) -> str | None:
    named = isinstance(value, Mapping) and not any(str(n).startswith("AutoModel") for n in value)
    return None if named else "the model is computed by code of its own"


_CHECKS: dict[str, Callable[[Any], str | None]] = {
    "model_type": _only("llama"),
    "architectures": _architectures,
    "hidden_act": _only("silu", "swish"),
    "quantization_config": _quantisation,
    "quantization": _quantisation,
    "compression_config": _quantisation,
    "is_encoder_decoder": lambda value: "this model is a decoder alone",
    "auto_map": _own_code,
    "pretraining_tp": lambda value: None,  # products in pieces: the same sums
}


def _refuse_windows(fields: dict[str, Any], block_size: int) -> None:
    """Take what speaks of a sliding window out of the fields; raise where one bites."""
    types, used = fields.pop("layer_types", None), fields.pop("use_sliding_window", None)
    full = isinstance(types, list) and all(kind == "full_attention" for kind in types)
    if types and not full:
        raise ValueError(f"layer_types={types!r}: this model only has 'full_attention'")
    for name in [name for name in fields if name.endswith("sliding_window")]:
        window = fields.pop(name)
        if window and type(window) not in (int, float, bool):
            raise ValueError(f"{name}={window!r}: must be a number or null")
        if window and 0 < window < block_size and used is not False and not types:
            raise ValueError(
                f"{name}={window}: this model attends to all of its {block_size} positions"
            )


def _refuse_arithmetic(fields: Mapping[str, Any], ours: dict[str, Any], prefix: str = "") -> None:
    """Raise for a field that is not known, may change the arithmetic, and is not neutral."""
    D, eps, theta = ours["head_dim"], ours["norm_eps"], ours["rope_theta"]
    neutral = {
        "attention.causal": True,
        "attention.layer_norm_epsilon": eps,
        "attention.scale": D**-0.5,
        "attention_multiplier": D**-0.5,
        "is_causal": True,
        "layer_norm_eps": eps,
        "norm_eps": eps,
        "norm_type": "rmsnorm",
        "position_embedding_type": "rope",
        "query_pre_attn_scalar": D,
        "rope_base": theta,
        "rotary_base": theta,
        "rotary_dim": D,
        "rotary_emb_base": theta,
        "scale_attn_weights": True,
    }
    for name, value in fields.items():
        words = set(re.split(r"[^a-z0-9]+", str(name).lower()))
        does = next((does for about, does in _WORDS.items() if about & words), None)
        off = value is None or value is False or value in ("", [], {})
        if does is None or off or name == "max_window_layers" or _ELSEWHERE & words:
            continue
        usual = neutral.get(name, 1 if _MULTIPLIES & words else 0)
        same = value == usual and (value is not True or usual is True)
        if isinstance(value, float) and isinstance(usual, float):
            same = math.isclose(value, usual, rel_tol=1e-6)  # stored with seven digits
        if not same:
            raise ValueError(f"{prefix}{name}={value!r}: this model cannot do it; {does}")
