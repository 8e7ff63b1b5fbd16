"""What Composer itself writes for a model laid out as FlexBERT is imported, tokenizer included."""

import torch
import yaml

from restomod import load_model
from restomod.tools.convert import import_checkpoint
from tests.unit.model.test_flexbert import SETTINGS, SIZES, logits_of


def test_a_checkpoint_of_composers_trainer(tiny, tmp_path):
    from composer import Trainer
    from composer.models import HuggingFaceModel
    from transformers import (
        AutoTokenizer,
        BertConfig,
        ModernBertConfig,
        ModernBertForMaskedLM,
        PreTrainedModel,
    )

    torch.manual_seed(0)
    theirs = ModernBertForMaskedLM(
        ModernBertConfig(**SIZES, local_attention=16, attn_implementation="eager", pad_token_id=0)
    ).eval()

    class FlexBertForMaskedLM(PreTrainedModel):
        """The same modules under the names of that repository."""

        config_class = BertConfig

        def __init__(self, config):
            super().__init__(config)
            self.bert = torch.nn.Module()
            self.bert.embeddings = theirs.model.embeddings
            self.bert.encoder = torch.nn.Module()
            self.bert.encoder.layers = theirs.model.layers
            self.bert.final_norm = theirs.model.final_norm
            self.head, self.decoder = theirs.head, theirs.decoder

        def forward(self, input_ids=None, **_):
            return {"logits": theirs(input_ids=input_ids).logits}

        def get_input_embeddings(self):
            return self.bert.embeddings.tok_embeddings

    tokenizer = AutoTokenizer.from_pretrained(tiny.folder / "tokenizer")
    model = HuggingFaceModel(FlexBertForMaskedLM(BertConfig(**SETTINGS)), tokenizer=tokenizer)
    optimizer = torch.optim.AdamW(model.parameters())
    trainer = Trainer(model=model, optimizers=optimizer, max_duration="1ba", progress_bar=False)
    file = tmp_path / "ep0-ba0-rank0.pt"
    trainer.save_checkpoint(str(file))
    trainer.close()

    text = import_checkpoint(file, tmp_path / "out", None, None)
    ids = torch.randint(0, 512, (100,), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs(input_ids=ids[None]).logits[0]
        torch.testing.assert_close(
            logits_of(load_model(tmp_path / "out"), ids), expected, atol=1e-5, rtol=1e-5
        )
    assert yaml.safe_load(text)["tokenizer"] == str(tmp_path / "out")
    again = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert again("a word").input_ids == tokenizer("a word").input_ids
