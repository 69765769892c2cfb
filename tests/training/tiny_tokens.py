"""What the tests of pretraining learn from."""

import torch
from torch.utils.data import Dataset

VOCABULARY, CONTEXT = 64, 16


class Tokens(Dataset):
    """Rows of tokens in which each follows from the one before; some predict less than the whole row."""

    def __init__(self, rows: int = 24, ragged: bool = False) -> None:
        generator = torch.Generator().manual_seed(0)
        first = torch.randint(4, VOCABULARY, (rows, 1), generator=generator)
        self.ids = 4 + (first + 7 * torch.arange(CONTEXT)) % (VOCABULARY - 4)
        self.labels = self.ids.clone()
        if ragged:
            lengths = torch.randint(2, CONTEXT + 1, (rows, 1), generator=generator)
            self.labels[torch.arange(CONTEXT) >= lengths] = -100

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.ids[index], "labels": self.labels[index]}
