"""Checkpoints of AnswerDotAI/ModernBERT's code become models that score as transformers' do."""

import datetime
import pickle
import random
import re
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from restomod import cli, load_model
from restomod.errors import UserError
from restomod.tools.convert import import_checkpoint
from restomod.train.checkpoints.loading import Unread, load_foreign

SIZES = {"num_hidden_layers": 4, "hidden_size": 32, "num_attention_heads": 2}
SIZES |= {"intermediate_size": 48, "vocab_size": 512}
SETTINGS = SIZES | {
    "attention_layer": "rope",
    "attn_out_bias": False,
    "attn_out_dropout_prob": 0.1,
    "attn_qkv_bias": False,
    "bert_layer": "prenorm",
    "embed_norm": True,
    "embedding_layer": "sans_pos",
    "final_norm": True,
    "global_attn_every_n_layers": 3,
    "head_pred_act": "gelu",
    "hidden_act": "gelu",
    "local_attn_rotary_emb_base": 10_000.0,
    "mlp_in_bias": False,
    "mlp_layer": "glu",
    "mlp_out_bias": False,
    "norm_kwargs": {"bias": False, "eps": 1e-5},
    "normalization": "layernorm",
    "rotary_emb_base": 160_000.0,
    "skip_first_prenorm": True,
    "sliding_window": 16,
}
"""What the repository's YAMLs have under model.model_config."""


@pytest.fixture(scope="module")
def reference():
    """transformers' model, and its weights by the names of Composer's HuggingFaceModel."""
    from transformers import ModernBertConfig, ModernBertForMaskedLM

    torch.manual_seed(0)
    config = ModernBertConfig(
        **SIZES,
        local_attention=16,
        global_rope_theta=160_000.0,
        local_rope_theta=10_000.0,
        pad_token_id=0,
        attn_implementation="eager",
        reference_compile=False,
    )
    model = ModernBertForMaskedLM(config).eval()
    with torch.no_grad():  # so that no norm or bias is where it began
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    renamed = {}
    for name, weight in model.state_dict().items():
        name = name.replace("model.layers.", "model.encoder.layers.")
        name = re.sub(r"^model\.", "bert.", name)
        renamed[f"model.{name}"] = weight.clone()
    renamed["model.decoder.weight"] = renamed["model.bert.embeddings.tok_embeddings.weight"]
    return model, renamed


def composer_state(weights, settings=None, tokenizer=None):
    """What Composer saves: much that is no weight, and that weights_only would refuse."""
    huggingface = {"model": {"config": {"content": settings or {}, "class": "bert.FlexBert"}}}
    names = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
    if tokenizer:
        files = {n: tokenizer / n for n in names if (tokenizer / n).is_file()}
        huggingface["tokenizer"] = {
            name: {"file_extension": ".json", "content": yaml.safe_load(file.read_text())}
            for name, file in files.items()
        }
    generators = {"python": random.getstate(), "numpy": np.random.get_state()}
    return {
        "state": {
            "model": weights,
            "optimizers": {"DecoupledStableAdamW": {"state": {0: {"step": torch.tensor(3.0)}}}},
            "timestamp": {"Timestamp": {"batch": 4000, "total_wct": datetime.timedelta(1)}},
            "run_name": "modernbert",
            "train_metrics": {"loss": np.float64(2.5), "where": Path("x")},
            "integrations": {"huggingface": huggingface} if settings or tokenizer else {},
        },
        "rng": [generators | {"torch": torch.random.get_rng_state()}],
    }


@pytest.fixture
def checkpoint(reference, tiny, tmp_path):
    def save(weights=None, settings=SETTINGS, tokenizer=tiny.folder / "tokenizer"):
        file = tmp_path / "ep0-ba4000-rank0.pt"
        torch.save(composer_state(weights or reference[1], settings, tokenizer), file)
        return file

    return save


def logits_of(model, ids):
    return model.logits(ids, torch.tensor([0, len(ids)]))


@pytest.mark.parametrize("wrapper", ["", "_orig_mod.", "layers", "module."])
def test_the_imported_model_scores_as_transformers_does(reference, checkpoint, tmp_path, wrapper):
    theirs, weights = reference
    if wrapper == "layers":  # each layer compiled by itself
        weights = {re.sub(r"(layers\.\d+\.)", r"\1_orig_mod.", n): w for n, w in weights.items()}
    else:
        weights = {wrapper + name: weight for name, weight in weights.items()}
    text = import_checkpoint(checkpoint(weights), tmp_path / "out", None, None)
    ids = torch.randint(0, 512, (150,), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours = logits_of(load_model(tmp_path / "out"), ids)
        expected = theirs(input_ids=ids[None]).logits[0]
    torch.testing.assert_close(ours, expected, atol=2e-5, rtol=1e-5)
    part = yaml.safe_load(text)
    assert part["init"] == {"weights": str(tmp_path / "out")}
    assert part["phases"] == [{"rope_base_global": 160_000.0, "rope_base_local": 10_000.0}]
    assert part["model"]["local_window"] == 16
    assert (tmp_path / "out" / "tokenizer.json").is_file()


@pytest.mark.parametrize("within", ["nothing", "model"])
def test_weights_that_stand_alone_in_a_file_are_read(reference, tiny, tmp_path, within):
    weights = reference[1]
    torch.save({"model": weights} if within == "model" else weights, tmp_path / "bare.pt")
    (tmp_path / "y.yaml").write_text(yaml.safe_dump({"model": {"model_config": dict(SETTINGS)}}))
    arguments = (tmp_path / "out", tmp_path / "y.yaml", tiny.folder / "tokenizer")
    import_checkpoint(tmp_path / "bare.pt", *arguments)
    norm = load_model(tmp_path / "out").state_dict()["encoder.final_norm.weight"]
    assert torch.equal(norm, weights["model.bert.final_norm.weight"])
    torch.save([1], tmp_path / "bare.pt")
    with pytest.raises(UserError, match="no FlexBERT masked-language model"):
        import_checkpoint(tmp_path / "bare.pt", *arguments)


def test_what_is_not_stored_comes_from_the_command_line(
    checkpoint, tiny, tmp_path, monkeypatch, capsys
):
    file = checkpoint(settings=None, tokenizer=None)
    tokenizer = str(tiny.folder / "tokenizer")
    words = ["restomod", "import", str(file), "--out", str(tmp_path / "out")]

    def run(*more):
        monkeypatch.setattr(sys, "argv", [*words, *more])
        return cli.main()

    assert run() == 2
    assert run("--tokenizer", tokenizer) == 2  # nobody says how many heads
    training = {"max_seq_len": 1024, "base": 1e4, "model": {"model_config": dict(SETTINGS)}}
    training["model"]["model_config"]["rotary_emb_base"] = "${base}"
    training["model"]["model_config"]["local_attn_rotary_emb_base"] = -1
    training["model"]["model_config"]["attn_out_dropout_prob"] = 0.0
    (tmp_path / "theirs.yaml").write_text(yaml.safe_dump(training))
    assert run("--tokenizer", tokenizer, "--config", str(tmp_path / "theirs.yaml")) == 0
    config = load_model(tmp_path / "out").config
    assert (config.heads, config.max_sequence_length) == (2, 1024)
    assert config.rope_base_global == config.rope_base_local == 10_000.0
    monkeypatch.setattr(sys, "argv", words[:3])
    assert cli.main() == 2
    monkeypatch.setattr(sys, "argv", ["restomod", "import", str(tmp_path), "--tokenizer", "x"])
    assert cli.main() == 2
    monkeypatch.setattr(sys, "argv", ["restomod", "import", str(tmp_path / "nothing.pt")])
    assert cli.main() == 2
    assert "nothing.pt: no such file or folder" in capsys.readouterr().err


def test_the_recipe_keeps_the_dropout_that_a_transformers_folder_does_not_tell(
    checkpoint, tmp_path
):
    settings = SETTINGS | {"attn_out_dropout_prob": 0.0}
    text = import_checkpoint(checkpoint(settings=settings), tmp_path / "out", None, None)
    assert yaml.safe_load(text)["model"]["attention_dropout"] == 0.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bert_layer": "postnorm"}, "bert_layer is 'postnorm' and this import reads 'prenorm'"),
        ({"attention_layer": "rope_parallel"}, "attention_layer is 'rope_parallel'"),
        ({"normalization": "rmsnorm"}, "normalization is 'rmsnorm'"),
        ({"head_pred_act": None}, "head_pred_act is None"),
        ({"sliding_window": None}, "nothing says what sliding_window is"),
        ({"num_attention_heads": "2"}, "num_attention_heads is '2', a number is expected"),
        ({"num_attention_heads": 5}, "does not divide"),
        ({"global_attn_every_n_layers": -1}, "every layer is local"),
        ({"rotary_emb_dim": 4}, "rotary_emb_dim is 4"),
        ({"intermediate_size": 64}, "says intermediate_size 64, the weights say 48"),
        ({"attn_qkv_bias": True}, "says attn_qkv_bias True, the weights say False"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
    ],
)
def test_settings_that_are_not_ours_are_refused_by_name(checkpoint, tmp_path, change, message):
    with pytest.raises(UserError, match=re.escape(message)):
        import_checkpoint(checkpoint(settings=SETTINGS | change), tmp_path / "out", None, None)


def test_unwritten_settings_are_flexberts_defaults(checkpoint, tmp_path):
    settings = {name: value for name, value in SETTINGS.items() if name != "mlp_layer"}
    with pytest.raises(UserError, match="mlp_layer is 'mlp', FlexBERT's default, and this"):
        import_checkpoint(checkpoint(settings=settings), tmp_path / "out", None, None)


def test_weights_of_another_model_are_refused_by_name(reference, checkpoint, tmp_path):
    def refused(weights, message):
        with pytest.raises(UserError, match=message):
            import_checkpoint(checkpoint(weights), tmp_path / "out", None, None)

    weights = dict(reference[1])
    extra = {"model.bert.encoder.layers.1.attn.k_norm.weight": torch.ones(32)}
    refused(weights | extra, r"does not have: bert.encoder.layers.1.attn.k_norm.weight")
    refused(weights | {"model.decoder.weight": torch.zeros(512, 32)}, "must be tied")
    refused(
        weights | {"model.head.norm.weight": torch.zeros(4)}, r"head.norm.weight has shape \[4]"
    )
    refused(weights | {"model.head.norm.weight": 3}, "is no tensor")
    refused(
        {"model.bert.pooler": torch.ones(1)}, "no FlexBERT masked-language model; .*bert.pooler"
    )
    weights.pop("model.bert.encoder.layers.2.mlp.Wi.weight")
    refused(weights, r"lack bert.encoder.layers.2.mlp.Wi.weight")


def test_a_yaml_that_contradicts_the_checkpoint_is_refused(checkpoint, tmp_path):
    (tmp_path / "y.yaml").write_text(
        yaml.safe_dump({"model": {"model_config": {"sliding_window": 128}}})
    )
    with pytest.raises(UserError, match=r"sliding_window is 128, but the checkpoint was .* 16"):
        import_checkpoint(checkpoint(), tmp_path / "out", tmp_path / "y.yaml", None)
    (tmp_path / "y.yaml").write_text("model: {}\n")
    with pytest.raises(UserError, match=r"has no model\.model_config"):
        import_checkpoint(checkpoint(), tmp_path / "out", tmp_path / "y.yaml", None)


def test_a_tokenizer_of_another_model_is_refused(reference, checkpoint, tiny, tmp_path):
    weights = dict(reference[1])
    for name in ("bert.embeddings.tok_embeddings.weight", "decoder.weight", "decoder.bias"):
        weights[f"model.{name}"] = weights[f"model.{name}"][:256]
    settings = SETTINGS | {"vocab_size": 256}
    with pytest.raises(UserError, match="512 tokens, the model's vocabulary 256"):
        import_checkpoint(checkpoint(weights, settings), tmp_path / "out", None, None)


class Payload:
    def __init__(self, path):
        self._path = path

    def __reduce__(self):
        return Path.touch, (self._path,)


def test_nothing_that_a_checkpoint_names_is_called(reference, tmp_path):
    state = composer_state(reference[1], SETTINGS)
    state["state"]["algorithms"] = [Payload(tmp_path / "touched")]
    torch.save(state, tmp_path / "x.pt")
    read = load_foreign(tmp_path / "x.pt")
    assert isinstance(read["state"]["algorithms"][0], Unread)
    assert isinstance(read["state"]["timestamp"]["Timestamp"]["total_wct"], Unread)
    assert read["state"]["timestamp"]["Timestamp"]["batch"] == 4000
    assert torch.equal(read["rng"][0]["torch"], state["rng"][0]["torch"])
    assert not (tmp_path / "touched").exists()


def test_files_of_another_kind_are_refused(tmp_path):
    def refused(message):
        with pytest.raises(UserError, match=message):
            load_foreign(tmp_path / "x.pt")

    (tmp_path / "x.pt").write_bytes(pickle.dumps(Payload(tmp_path / "touched")))
    refused("is no zip file")
    torch.save({"a": torch.ones(1000)}, tmp_path / "x.pt", _use_new_zipfile_serialization=False)
    refused("is no zip file")
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("x/constants.pkl", b"")
    refused("TorchScript")
    torch.save({"a": torch.ones(1000)}, tmp_path / "x.pt")
    content = (tmp_path / "x.pt").read_bytes()
    (tmp_path / "x.pt").write_bytes(content.replace(b"_rebuild_tensor_v2", b"_rebuild_tensor_vX"))
    assert isinstance(load_foreign(tmp_path / "x.pt")["a"], Unread)
    assert not (tmp_path / "touched").exists()
