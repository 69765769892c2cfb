"""The switches of the checks: one for each check, named after what it finds."""

from pydantic import Field

from chatpipe.recipe.section import Section


class CheckSwitches(Section):
    """Checks that stop a stage before its first step, where it would go wrong without any error; false turns one off.

    A description begins with the stages that have the check.
    """

    # of the template and its tokens
    pad_is_eos: bool = Field(True, description="sft, rm, ppo: padding hides the end-of-turn token from the loss.")
    double_bos: bool = Field(True, description="sft, rm, ppo: rows begin with two beginning-of-text tokens.")
    turns_lost: bool = Field(True, description="sft, rm, ppo: the chat template drops, changes or reorders turns.")
    template_not_saved: bool = Field(True, description="sft, rm, ppo: the saved tokenizer reads chats differently.")
    other_template: bool = Field(True, description="ppo: policy and reward model write prompts differently.")
    special_tokens_in_text: bool = Field(True, description="All stages: control tokens spelt out in the texts.")
    # of the rows
    eos_not_learned: bool = Field(True, description="sft: answers whose end-of-turn token is not trained on.")
    nothing_to_learn: bool = Field(True, description="sft, rm: rows with nothing to train on.")
    answers_cut: bool = Field(True, description="sft, rm: too many rows are longer than max_length.")
    prompts_cut: bool = Field(True, description="ppo: most prompts leave no room for an answer.")
    validation_seen: bool = Field(True, description="All stages: validation texts are in the training data too.")
    chosen_is_rejected: bool = Field(True, description="rm: the better and the worse answer are the same tokens.")
    end_of_text_missing: bool = Field(True, description="pretrain: the text has no end-of-text tokens.")
    unknown_tokens: bool = Field(True, description="pretrain, sft: the tokenizer has no tokens for the text.")
    token_ids_out_of_range: bool = Field(True, description="pretrain, sft: token ids that the model does not have.")
    # of the models
    embeddings_too_few: bool = Field(True, description="All stages: fewer embeddings than the tokenizer has tokens.")
    reward_pad_token: bool = Field(True, description="rm, ppo: a reward model whose pad token is unset or EOS.")
    batch_changes_score: bool = Field(True, description="rm, ppo: padding changes a reward model's scores.")
    score_not_on_eos: bool = Field(True, description="rm, ppo: the score is not read at the end of the turn.")
    new_score_head: bool = Field(True, description="ppo: the reward model's folder has no weights for its head.")
    reward_at_chance: bool = Field(True, description="ppo: the reward model is no better than chance.")
    policy_is_not_reference: bool = Field(True, description="ppo: KL is not 0, or the ratio not 1, at the start.")


def checks_of(stage: str) -> list[str]:
    """The names of a stage's checks, by their descriptions."""
    stages = {name: (field.description or "").split(":")[0] for name, field in CheckSwitches.model_fields.items()}
    return [name for name, those in stages.items() if those == "All stages" or stage in those.split(", ")]
