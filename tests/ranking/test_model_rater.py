"""A reward model reads answers as it did in training: also an encoder whose windows and positions are longer."""

import pytest
import torch
from transformers import ModernBertConfig, ModernBertForMaskedLM, RobertaConfig, RobertaForMaskedLM

from chatpipe.data.chat_template import add_chat_template
from chatpipe.models.new_model import train_tokenizer
from chatpipe.ranking.raters import model_scorer
from chatpipe.reward.reward_model import new_reward_model, score_sequences
from chatpipe.reward.training_data import encode_answers

LONGEST = 32
SIZES = {"vocab_size": 280, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "pad_token_id": 0}
BODIES = {
    "a window": lambda: ModernBertForMaskedLM(
        ModernBertConfig(**SIZES, num_attention_heads=2, max_position_embeddings=64, local_attention=8)
    ),
    "positions that are not used": lambda: RobertaForMaskedLM(
        RobertaConfig(**SIZES, num_attention_heads=2, max_position_embeddings=LONGEST + 1)  # they begin behind the pad
    ),
}


@pytest.mark.parametrize("kind", BODIES)
def test_an_encoder_scores_what_it_was_trained_to_read(kind, tmp_path):
    torch.manual_seed(0)
    BODIES[kind]().save_pretrained(tmp_path)
    model = new_reward_model(str(tmp_path), pad_token_id=0, seed=0)
    model.save_pretrained(tmp_path)
    tokenizer = train_tokenizer([], vocab_size=280, model_max_length=LONGEST)
    add_chat_template(tokenizer)
    tokenizer.save_pretrained(tmp_path)
    prompt, answers = [{"role": "user", "content": "x" * 60}], ["One of them.", "The other."]
    sequences = encode_answers(tokenizer, prompt, answers, LONGEST)
    assert max(map(len, sequences)) == LONGEST
    (scores,) = model_scorer(str(tmp_path), "--reward")([(prompt, answers)])
    assert scores == pytest.approx(score_sequences(model, sequences).tolist(), abs=1e-5)
