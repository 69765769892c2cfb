"""How long a sequence an encoder scores in ppo: as long as it was trained on, not its windows or all its positions."""

import parts
import pytest
import tiny
import torch
from transformers import (
    ModernBertConfig,
    ModernBertForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from chatpipe.errors import UsageError
from chatpipe.models.properties import longest_sequence, shared_context
from chatpipe.reward.reward_model import score_sequences

LONGEST = 16
SIZES = {
    "vocab_size": tiny.VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_labels": 1,
    "pad_token_id": tiny.PAD,
}


def with_a_window():
    config = ModernBertConfig(**SIZES, max_position_embeddings=64, local_attention=8, initializer_range=0.2)
    torch.manual_seed(0)
    return ModernBertForSequenceClassification(config).eval()


def with_unused_positions():
    config = RobertaConfig(
        **SIZES, max_position_embeddings=LONGEST + 1, initializer_range=0.2
    )  # they begin behind the pad
    torch.manual_seed(0)
    return RobertaForSequenceClassification(config).eval()


@pytest.fixture
def tokenizer():
    made = tiny.tokenizer()
    made.model_max_length = LONGEST
    return made


ENCODERS = pytest.mark.parametrize("encoder", [with_a_window, with_unused_positions])


@ENCODERS
def test_the_stage_takes_what_the_encoder_reads(encoder, tokenizer):
    assert shared_context(tiny.policy(), [encoder()], tokenizer) == LONGEST


@ENCODERS
def test_the_longest_sequence_is_scored_as_the_model_itself_does(encoder, tokenizer):
    model = encoder()
    assert longest_sequence(model, tokenizer) == LONGEST
    sequences = [[3 + i % 9 for i in range(length)] for length in (5, LONGEST)]
    stock = torch.cat([model(torch.tensor([ids])).logits[:, 0] for ids in sequences])
    torch.testing.assert_close(score_sequences(model, sequences), stock.detach(), atol=1e-5, rtol=1e-5)


@ENCODERS
def test_the_trainer_takes_prompts_that_leave_room_and_refuses_others(encoder, tokenizer, tmp_path):
    given = {"reward_model": encoder(), "processing_class": tokenizer}
    parts.trainer(tmp_path, **given, train_prompts=[[3] * 10])  # and 6 tokens of completion
    with pytest.raises(UsageError, match=rf"in the context of reward_model \({LONGEST}\)"):
        parts.trainer(tmp_path, **given, train_prompts=[[3] * 11])
