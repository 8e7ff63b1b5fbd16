"""Our encoder against transformers' ModernBertForMaskedLM: outputs, gradients, folders."""

import json
from itertools import accumulate, pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForMaskedLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    ModernBertForSequenceClassification,
    ModernBertModel,
)
from transformers.models.modernbert import modeling_modernbert

from restomod.errors import UserError
from restomod.model.config import EncoderConfig
from restomod.model.encoder import MaskedLM
from restomod.model.hf import (
    load_transformers,
    save_transformers,
    transformers_config,
    transformers_name,
)
from restomod.model.init import initialize

IDS = {
    "pad_token_id": 3,
    "cls_token_id": 1,
    "sep_token_id": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def theirs(attn_implementation: str = "sdpa", **fields: object) -> ModernBertForMaskedLM:
    """A small random model whose weights are large enough that every part of it matters."""
    shape: dict[str, object] = {
        "vocab_size": 211,
        "hidden_size": 48,
        "num_attention_heads": 3,
        "intermediate_size": 80,
        "num_hidden_layers": 5,
        "local_attention": 32,
        "initializer_range": 0.15,
    }
    config = ModernBertConfig(
        **(IDS | shape | fields), reference_compile=False, attn_implementation=attn_implementation
    )
    torch.manual_seed(0)
    model = ModernBertForMaskedLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "bias" in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def ours(model: ModernBertForMaskedLM, folder: Path) -> MaskedLM:
    model.save_pretrained(folder)
    return load_transformers(folder)


def documents(lengths: list[int], vocabulary: int = 211) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(sum(lengths))
    ids = torch.randint(4, vocabulary, (sum(lengths),), generator=generator)  # no special tokens
    return ids, torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)


def padded(ids: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, Tensor]:
    parts = [ids[a:b] for a, b in pairwise(cu_seqlens.tolist())]
    inputs = torch.nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_value=3)
    lengths = cu_seqlens.diff()
    return inputs, torch.arange(inputs.shape[1]) < lengths[:, None]


def compare(
    reference: ModernBertForMaskedLM, lengths: list[int], dtype: torch.dtype, folder: Path
) -> None:
    """Logits and the gradients of every parameter, ours packed, theirs padded."""
    bound = 1e-5 if dtype == torch.float32 else 1e-10
    model = ours(reference, folder).to(dtype)
    reference = reference.to(dtype)
    ids, cu_seqlens = documents(lengths, reference.config.vocab_size)
    inputs, mask = padded(ids, cu_seqlens)

    expected = reference(input_ids=inputs, attention_mask=mask.long()).logits[mask]
    logits = model.logits(ids, cu_seqlens)
    for start, end in pairwise(cu_seqlens.tolist()):  # a short document must not hide in a long one
        wanted = expected[start:end]
        assert (logits[start:end] - wanted).norm() <= bound * wanted.norm(), (start, end)

    labels = torch.where(torch.arange(len(ids)) % 3 == 0, ids, -100)
    torch.nn.functional.cross_entropy(expected, labels).backward()
    model.mlm_loss(ids, labels, cu_seqlens).backward()
    gradients = {name: p.grad for name, p in reference.named_parameters()}
    size = torch.stack([g.norm() for g in gradients.values() if g is not None]).norm()
    for name, parameter in model.named_parameters():
        want = gradients[transformers_name(name)]
        assert want is not None
        assert parameter.grad is not None
        # A key's bias shifts all scores of a query alike: its gradient is rounding, on both sides.
        assert (parameter.grad - want).norm() <= bound * max(want.norm(), 1e-3 * size), name


@st.composite
def shapes(draw: st.DrawFn) -> dict[str, object]:
    """Fields of a small ModernBertConfig."""
    heads, head_size = draw(st.integers(1, 4)), 2 * draw(st.integers(2, 16))
    switch = st.booleans()
    return {
        "num_hidden_layers": draw(st.integers(1, 5)),
        "num_attention_heads": heads,
        "hidden_size": heads * head_size,
        "intermediate_size": draw(st.integers(3, 70)),
        "vocab_size": draw(st.integers(8, 300)),
        "local_attention": 2 * draw(st.integers(1, 128)),
        "global_attn_every_n_layers": draw(st.integers(1, 4)),
        "global_rope_theta": draw(st.sampled_from([10_000.0, 160_000.0])),
        "local_rope_theta": draw(st.sampled_from([10_000.0, 160_000.0, None])),
        "hidden_activation": draw(st.sampled_from(["gelu", "silu"])),
        "norm_eps": draw(st.sampled_from([1e-5, 1e-3])),
        "norm_bias": draw(switch),
        "attention_bias": draw(switch),
        "mlp_bias": draw(switch),
        "classifier_bias": draw(switch),
        "decoder_bias": draw(switch),
    }


def softmax_of_any_width(x: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    return torch.softmax(x, dim, torch.promote_types(x.dtype, dtype))


LENGTHS = st.one_of(st.integers(1, 20), st.integers(21, 300), st.integers(301, 1000))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
@settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(fields=shapes(), lengths=st.lists(LENGTHS, min_size=1, max_size=6))
def test_logits_and_gradients_equal_transformers(
    fields: dict[str, object],
    lengths: list[int],
    attn_implementation: str,
    dtype: torch.dtype,
    tmp_path: Path,
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if attn_implementation == "eager":
            # Theirs takes the softmax in float32 whatever the dtype: 1e-9 off in float64.
            patch.setattr(modeling_modernbert.nn.functional, "softmax", softmax_of_any_width)
        compare(theirs(attn_implementation, **fields), lengths, dtype, tmp_path)


@pytest.mark.parametrize(
    ("fields", "lengths", "dtype"),
    [
        ({"local_attention": 128, "num_hidden_layers": 3}, [17, 8192], torch.float32),
        ({"local_rope_theta": 160_000.0, "num_hidden_layers": 2}, [8192], torch.float64),
        ({"global_attn_every_n_layers": 1, "num_hidden_layers": 2}, [8192, 2], torch.float32),
    ],
)
def test_long_documents_equal_transformers(
    fields: dict[str, object], lengths: list[int], dtype: torch.dtype, tmp_path: Path
) -> None:
    shape = {"num_attention_heads": 2, "hidden_size": 32, "vocab_size": 64}
    compare(theirs(**shape, **fields), lengths, dtype, tmp_path)


def test_a_packed_document_gets_the_logits_it_gets_alone(tmp_path: Path) -> None:
    model = ours(theirs(), tmp_path)
    lengths = [31, 1, 7, 150, 64, 2, 80]
    ids, cu_seqlens = documents(lengths)
    together = model.logits(ids, cu_seqlens)
    for start, end in pairwise(cu_seqlens.tolist()):
        alone = model.logits(ids[start:end], torch.tensor([0, end - start]))
        torch.testing.assert_close(together[start:end], alone, atol=1e-5, rtol=1e-5)


def files(folder: Path) -> tuple[dict[str, Tensor], dict[str, object]]:
    weights = {}
    for path in folder.glob("*.safetensors"):
        weights |= load_file(path)
    return weights, json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize(
    ("dtype", "shard"),
    [
        (torch.float32, "1GB"),
        (torch.bfloat16, "1GB"),
        (torch.float32, "50KB"),
        (torch.bfloat16, "30KB"),
    ],
)
def test_loading_and_saving_keep_every_bit_and_field(
    dtype: torch.dtype, shard: str, tmp_path: Path
) -> None:
    fields = {"classifier_dropout": 0.3, "bos_token_id": 7, "id2label": {0: "no", 1: "yes"}}
    reference = theirs(
        **fields, initializer_range=0.07, local_rope_theta=None, hidden_activation="silu"
    ).to(dtype)
    reference.save_pretrained(tmp_path / "theirs", max_shard_size=shard)
    model = load_transformers(tmp_path / "theirs")
    assert {x.dtype for x in model.state_dict().values()} == {torch.float32}
    save_transformers(model, tmp_path / "ours")
    weights, config = files(tmp_path / "theirs")
    weights_again, config_again = files(tmp_path / "ours")
    assert weights.keys() == weights_again.keys()
    for name, tensor in weights.items():
        assert torch.equal(weights_again[name], tensor), name
        assert weights_again[name].dtype == tensor.dtype == dtype
    assert {name: config_again[name] for name in config} == config
    again = AutoModelForMaskedLM.from_pretrained(tmp_path / "ours")
    assert type(again) is ModernBertForMaskedLM
    known = reference.config.to_dict()
    differing = {name for name in known if again.config.to_dict()[name] != known[name]}
    assert differing <= {"_name_or_path", "dtype"}  # where and how it was loaded


def test_what_training_changes_is_saved(tmp_path: Path) -> None:
    """Neither the old fields nor the old dtype win over the model."""
    theirs(classifier_dropout=0.3).to(torch.bfloat16).save_pretrained(tmp_path / "theirs")
    model = load_transformers(tmp_path / "theirs")
    model.config.rope_base_global = 4321.0
    with torch.no_grad():
        model.head.dense.weight.add_(1e-4)
    save_transformers(model, tmp_path / "ours")
    weights, config = files(tmp_path / "ours")
    assert torch.equal(weights["head.dense.weight"], model.head.dense.weight)
    assert (config["global_rope_theta"], config["classifier_dropout"]) == (4321.0, 0.3)
    assert config["dtype"] == "float32"


# Shapes of published models (reference: their config.json files).
PUBLISHED = {
    "ModernBERT-base": (22, 768, 12, 1152, 50_368, 10_000.0),
    "ModernBERT-large": (28, 1024, 16, 2624, 50_368, 10_000.0),
    "ettin-17m": (7, 256, 4, 384, 50_368, 160_000.0),
    "ettin-32m": (10, 384, 6, 576, 50_368, 160_000.0),
    "ettin-68m": (19, 512, 8, 768, 50_368, 160_000.0),
    "ettin-150m": (22, 768, 12, 1152, 50_368, 160_000.0),
    "ettin-400m": (28, 1024, 16, 2624, 50_368, 160_000.0),
    "ettin-1b": (28, 1792, 28, 3840, 50_368, 160_000.0),
    "mmBERT-base": (22, 768, 12, 1152, 256_000, 160_000.0),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_shapes_have_the_same_parameters(name: str) -> None:
    layers, hidden, heads, intermediate, vocab, local = PUBLISHED[name]
    with torch.device("meta"):
        model = MaskedLM(
            EncoderConfig(
                layers=layers, hidden_size=hidden, heads=heads, intermediate_size=intermediate,
                vocab_size=vocab, rope_base_local=local,
            )
        )  # fmt: skip
        reference = ModernBertForMaskedLM(
            ModernBertConfig.from_dict(transformers_config(model.config) | IDS)
        )
    shapes = {transformers_name(n): p.shape for n, p in model.named_parameters()}
    assert shapes == {n: p.shape for n, p in reference.named_parameters()}


def test_a_vocabulary_of_256_000_words(tmp_path: Path) -> None:
    reference = theirs(vocab_size=256_000, hidden_size=24, num_hidden_layers=2)
    compare(reference, [3, 40], torch.float32, tmp_path)


def test_a_sharded_folder_loads(tmp_path: Path) -> None:
    reference = theirs()
    reference.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    model = load_transformers(tmp_path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(reference.state_dict()[transformers_name(name)], tensor), name
    next(tmp_path.glob("model-00002-*.safetensors")).unlink()
    with pytest.raises(UserError, match="model-00002"):
        load_transformers(tmp_path)


def test_an_export_gives_the_same_logits_in_transformers(tmp_path: Path) -> None:
    config = EncoderConfig(
        layers=4, hidden_size=64, heads=2, intermediate_size=96, vocab_size=300,
        pad_id=3, cls_id=1, sep_id=2, max_sequence_length=1024,
    )  # fmt: skip
    model = MaskedLM(config)
    initialize(model, seed=5)
    save_transformers(model, tmp_path)
    exported = AutoModelForMaskedLM.from_pretrained(tmp_path, attn_implementation="sdpa").eval()
    assert exported.config.max_position_embeddings == 1024
    for length in (1, 2, 64, 65, 129, 500, 1024):
        ids, cu_seqlens = documents([length], 300)
        expected = exported(input_ids=ids[None], attention_mask=torch.ones(1, length)).logits[0]
        assert (model.logits(ids, cu_seqlens) - expected).abs().max() < 1e-4


def test_a_transformers_5_configuration_is_read(tmp_path: Path) -> None:
    model = ours(theirs(global_rope_theta=777.0, local_rope_theta=55.0), tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    del (
        fields["global_rope_theta"],
        fields["local_rope_theta"],
        fields["global_attn_every_n_layers"],
    )
    fields["rope_parameters"] = {
        "full_attention": {"rope_type": "default", "rope_theta": 777.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 55.0},
    }
    fields["layer_types"] = ["full_attention", *["sliding_attention"] * 2] * 2
    fields["layer_types"].pop()
    (tmp_path / "config.json").write_text(json.dumps(fields))
    assert load_transformers(tmp_path).config == model.config


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "bert"}, "model_type is 'bert'"),
        ({"hidden_activation": "relu"}, "hidden_activation is 'relu'"),
        ({"norm_bias": True}, "lack model.embeddings.norm.bias"),
        ({"attention_dropout": 0.1}, "attention_dropout is 0.1"),
        ({"hidden_size": "48"}, "hidden_size is '48', a int is expected"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"pad_token_id": None}, "pad_token_id is missing"),
        ({"rope_parameters": 3}, "rope_parameters.full_att"),
        ({"rope_parameters": {"full_attention": None}}, "rope_parameters.full_att"),
        (
            {"rope_parameters": {"full_attention": {"type": "linear", "rope_theta": 9.0}}},
            "rope_parameters.full_att",
        ),
        (
            {"rope_parameters": {"full_attention": {"rope_theta": None}}},
            "rope_theta of full_attention is None",
        ),
        ({"global_rope_theta": None}, "global_rope_theta is None"),
        ({"global_rope_theta": "160k"}, "global_rope_theta is '160k'"),
        ({"local_rope_theta": -1.0}, "local_rope_theta is -1.0"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"norm_eps": float("nan")}, "norm_eps is nan"),
        ({"layer_types": 5}, "layer_types is 5"),
        ({"hidden_activation": ["gelu"]}, "hidden_activation is"),
        (
            {
                "rope_parameters": {
                    kind: {"rope_type": "default", "rope_theta": 9.0}
                    for kind in ("full_attention", "sliding_attention")
                }
            },
            "disagree",
        ),
        ({"tie_word_embeddings": False}, "tie_word_embeddings"),
        ({"mlp_dropout": 0.1}, "mlp_dropout is 0.1"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "rope_scaling"),
        ({"layer_types": ["full_attention"] * 5}, "layer_types"),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "yarn"}}},
            "rope_parameters.full_att",
        ),
        ({"num_attention_heads": 5}, "num_attention_heads 5"),
        ({"hidden_size": 96}, "has shape"),
        ({"num_hidden_layers": 6}, "lack model.layers.5"),
        ({"num_hidden_layers": 4}, "does not have"),
    ],
)
def test_what_the_encoder_cannot_express_is_refused_by_name(
    fields: dict[str, object], message: str, tmp_path: Path
) -> None:
    theirs().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | fields))
    with pytest.raises(UserError, match=message):
        load_transformers(tmp_path)


def test_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.json"):
        load_transformers(tmp_path)
    theirs().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match="neither"):
        load_transformers(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(UserError, match="save it as safetensors first"):
        load_transformers(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"12345678 broken")
    with pytest.raises(UserError, match=r"model\.safetensors: cannot be read"):
        load_transformers(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(UserError, match="no index"):
        load_transformers(tmp_path)
    for text, message in (("{", "not JSON"), ("[]", "not a mapping")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(UserError, match=message):
            load_transformers(tmp_path)


@pytest.mark.parametrize("kind", [ModernBertModel, ModernBertForSequenceClassification])
def test_a_model_without_the_masked_language_head_is_refused(kind: type, tmp_path: Path) -> None:
    kind(theirs().config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=f"lack .* and this is .*{kind.__name__}"):
        load_transformers(tmp_path)


@pytest.mark.parametrize(
    ("field", "value"),
    [("norm", "rmsnorm"), ("positions", "alibi"), ("rope_fraction", 0.5), ("causal", True)],
)
def test_what_transformers_cannot_express_is_not_exported(
    field: str, value: object, tmp_path: Path
) -> None:
    config = EncoderConfig(layers=1, hidden_size=16, heads=2, vocab_size=20, **{field: value})
    with pytest.raises(UserError, match=f"cannot express this model's {field}={value}"):
        save_transformers(MaskedLM(config), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_special_ids_that_a_folder_came_with_go_back(tmp_path: Path) -> None:
    """transformers' defaults are ids of its default vocabulary, which a small one does not have."""
    theirs(cls_token_id=50_281, sep_token_id=50_282).save_pretrained(tmp_path / "theirs")
    save_transformers(load_transformers(tmp_path / "theirs"), tmp_path / "ours")
    assert files(tmp_path / "ours")[1]["cls_token_id"] == 50_281


def test_weights_that_float32_cannot_hold_are_refused(tmp_path: Path) -> None:
    theirs().double().save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"holds torch\.float64"):
        load_transformers(tmp_path)


def test_a_file_where_a_folder_should_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be read"):
        load_transformers(tmp_path / "file")
    with pytest.raises(UserError, match="cannot be made a folder"):
        save_transformers(ours(theirs(), tmp_path / "theirs"), tmp_path / "file")


def test_an_untied_decoder_is_refused(tmp_path: Path) -> None:
    theirs().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    embedding = weights["model.embeddings.tok_embeddings.weight"]
    save_file(weights | {"decoder.weight": embedding.clone()}, tmp_path / "model.safetensors")
    save_transformers(load_transformers(tmp_path), tmp_path / "again")
    assert torch.equal(files(tmp_path / "again")[0]["decoder.weight"], embedding)
    save_file(weights | {"decoder.weight": embedding + 1}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="tied"):
        load_transformers(tmp_path)


def test_saving_copies_the_tokenizer_and_refuses_ids_outside_the_vocabulary(tmp_path: Path) -> None:
    model = ours(theirs(), tmp_path / "theirs")
    source = tmp_path / "tokenizer"
    source.mkdir()
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        save_transformers(model, tmp_path / "out", tokenizer_folder=source)
    (source / "tokenizer.json").write_text("{}")
    save_transformers(model, tmp_path / "out", tokenizer_folder=source)
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "{}"
    model.config.pad_id = 999
    with pytest.raises(UserError, match="pad_id 999"):
        save_transformers(model, tmp_path / "out")
