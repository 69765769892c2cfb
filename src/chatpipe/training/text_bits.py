"""The training loss in bits per byte of the raw text: tokens that stand for no text are in neither of the two."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerBase


def tokens_without_text(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The ids of special tokens but the unknown one, which stands for text: left out, such text would look easy.

    Where one token is both, as GPT-2's end of text, it stands for none.
    """
    unknown = {tokenizer.unk_token_id} - {tokenizer.eos_token_id, tokenizer.bos_token_id}
    return tuple(sorted(set(tokenizer.all_special_ids) - unknown))


class TextBits:
    """Turns the mean loss of the causal predictions since the last log into bits per byte.

    `left_out` are ids of tokens without text, `bytes_per_token` the mean UTF-8 bytes of all others. `sums` [3] counts
    what has been predicted since: tokens, those left out, and the nats of these.
    """

    def __init__(self, left_out: tuple[int, ...], bytes_per_token: float) -> None:
        self.left_out, self.bytes_per_token = left_out, bytes_per_token
        self.forget()

    def forget(self) -> None:
        """Begins to count anew."""
        self.sums = torch.zeros(3, dtype=torch.float64)

    def find(self, labels: Tensor) -> Tensor:
        """(row, column) [places, 2] of the predictions in `labels` [rows, tokens] whose target is to be left out.

        Where a step begins: on a GPU finding waits for what was asked of it before.
        """
        return torch.isin(labels[:, 1:], torch.tensor(self.left_out, device=labels.device)).nonzero()

    def add(self, logits: Tensor, labels: Tensor, places: Tensor, predicted: int) -> None:
        """Counts a micro-batch of `predicted` tokens, given what `find` found in its labels.

        `logits` [rows, tokens, vocabulary] are not yet shifted against `labels` [rows, tokens].
        """
        rows, columns = places.unbind(1)
        asked, targets = logits.detach()[rows, columns].float(), labels[rows, columns + 1]
        nats = F.cross_entropy(asked, targets, reduction="sum").double()
        counts = torch.tensor([predicted, len(places), 0], dtype=torch.float64).to(nats.device)
        self.sums = self.sums.to(nats.device) + counts + F.pad(nats[None], (2, 0))

    def per_byte(self, loss: float, over_processes: Callable[[Tensor], Tensor] = lambda sums: sums) -> float:
        """Bits per byte, where `loss` is the mean nats of all that was predicted; `over_processes` adds their sums."""
        predicted, left_out, nats = over_processes(self.sums).tolist()
        text = max(predicted - left_out, 1)
        return (loss * predicted - nats) / math.log(2) / (text * self.bytes_per_token)
