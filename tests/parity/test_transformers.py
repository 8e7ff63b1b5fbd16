"""Our encoder against transformers' ModernBertForMaskedLM: outputs, gradients, folders."""

import json
from itertools import accumulate, pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForMaskedLM, ModernBertConfig, ModernBertForMaskedLM

from restomod.errors import UserError
from restomod.model.encoder import EncoderConfig, MaskedLM
from restomod.model.hf import load_transformers, save_transformers, transformers_name
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
        **IDS, **(shape | fields), reference_compile=False, attn_implementation=attn_implementation
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


SHAPES = [
    pytest.param({}, [1, 2, 15, 16, 17, 33, 64, 65, 200], id="small"),
    pytest.param({"global_attn_every_n_layers": 1}, [40, 1, 90], id="all-global"),
    pytest.param({"global_attn_every_n_layers": 2, "local_attention": 2}, [70, 130], id="narrow"),
    pytest.param(
        {"local_attention": 128, "hidden_size": 128, "num_attention_heads": 2},
        [300, 1, 129],
        id="window-128",
    ),
    pytest.param(
        {"local_attention": 256, "num_hidden_layers": 3}, [500, 12], id="window-wider-than-blocks"
    ),
    pytest.param({"local_rope_theta": None, "global_rope_theta": 500.0}, [100], id="one-base"),
    pytest.param({"norm_eps": 1e-3, "vocab_size": 64}, [64, 64, 64], id="norm-eps"),
]


@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
@pytest.mark.parametrize(("fields", "lengths"), SHAPES)
def test_logits_and_gradients_equal_transformers(
    fields: dict[str, object], lengths: list[int], attn_implementation: str, tmp_path: Path
) -> None:
    reference = theirs(attn_implementation, **fields)
    model = ours(reference, tmp_path)
    ids, cu_seqlens = documents(lengths, reference.config.vocab_size)
    inputs, mask = padded(ids, cu_seqlens)

    expected = reference(input_ids=inputs, attention_mask=mask.long()).logits[mask]
    logits = model.logits(ids, cu_seqlens)
    assert (logits - expected).abs().max() < 1e-5 * expected.abs().max().clamp(min=1)

    labels = torch.where(torch.arange(len(ids)) % 3 == 0, ids, -100)
    torch.nn.functional.cross_entropy(expected, labels).backward()
    model.mlm_loss(ids, labels, cu_seqlens).backward()
    gradients = {name: p.grad for name, p in reference.named_parameters()}
    for name, parameter in model.named_parameters():
        want = gradients[transformers_name(name)]
        assert want is not None
        assert parameter.grad is not None
        assert (parameter.grad - want).norm() <= 1e-5 * want.norm(), name


def test_a_packed_document_gets_the_logits_it_gets_alone(tmp_path: Path) -> None:
    model = ours(theirs(), tmp_path)
    lengths = [31, 1, 7, 150, 64, 2, 80]
    ids, cu_seqlens = documents(lengths)
    together = model.logits(ids, cu_seqlens)
    for start, end in pairwise(cu_seqlens.tolist()):
        alone = model.logits(ids[start:end], torch.tensor([0, end - start]))
        torch.testing.assert_close(together[start:end], alone, atol=1e-5, rtol=1e-5)


def test_loading_and_saving_keep_every_bit(tmp_path: Path) -> None:
    reference = theirs()
    save_transformers(ours(reference, tmp_path / "theirs"), tmp_path / "ours")
    again = AutoModelForMaskedLM.from_pretrained(tmp_path / "ours")
    assert type(again) is ModernBertForMaskedLM
    for name, tensor in reference.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    differing = {
        name
        for name, value in reference.config.to_dict().items()
        if again.config.to_dict().get(name) != value
    }
    assert differing <= {"_name_or_path", "initializer_range", "classifier_pooling"}
    assert again.config.layer_types.count("full_attention") == 2
    assert (
        load_transformers(tmp_path / "ours").config == load_transformers(tmp_path / "theirs").config
    )


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
        ({"norm_bias": True}, "norm_bias is True"),
        ({"hidden_activation": "silu"}, "hidden_activation is 'silu'"),
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
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        load_transformers(tmp_path)


def test_an_untied_decoder_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    theirs().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    embedding = weights["model.embeddings.tok_embeddings.weight"]
    save_file(weights | {"decoder.weight": embedding.clone()}, tmp_path / "model.safetensors")
    load_transformers(tmp_path)
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
