"""The memory that a run of pretraining would take, by part, counted on fake tensors.

Neither the data nor the hub is needed, and nothing of the model's size is allocated.
"""

from dataclasses import dataclass, replace

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, PretrainedConfig, PreTrainedModel

from chatpipe.data.masking import masked_loss
from chatpipe.errors import UsageError
from chatpipe.models.activation import quickest_gelu
from chatpipe.models.new_model import model_config
from chatpipe.models.pretrained import quickest_attention
from chatpipe.recipe.schema import Pretrain
from chatpipe.run.live_bytes import peak_of
from chatpipe.training.batches import micro_batches
from chatpipe.training.memory import free_memory, used_memory
from chatpipe.training.muon import hidden_matrices
from chatpipe.training.precision import use_bf16

GIB = 2**30
TEXT_BYTES = 64 * 2**20
"""What a run holds of its text (words that the tokeniser remembers, held-out documents, counts of 3-grams), measured:
it does not grow with the corpus."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one process at the moment when it holds most, by part.

    `process` is all beside text and the tensors of a step: Python with its libraries, what these keep, evaluations.
    """

    process: int
    text: int
    weights: int
    optimizer: int
    gradients: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        """All parts together."""
        return self.process + self.text + self.of_a_step

    @property
    def of_a_step(self) -> int:
        """The tensors of a training step."""
        return self.weights + self.optimizer + self.gradients + self.activations + self.logits

    def reached(self, peak: int, counted: "Memory") -> "Memory":
        """The same with the process as it was found to be: `peak` was reached with what `counted` says of a step."""
        return replace(self, process=max(peak - counted.of_a_step, self.process))

    def in_gib(self) -> dict[str, float]:
        """Every part and the total in GiB."""
        return {name: round(size / GIB, 3) for name, size in {**self.__dict__, "total": self.total}.items()}


def training_device() -> torch.device:
    """Where a stage trains."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def estimate_memory(section: Pretrain, tokens: int, processes: int) -> Memory:
    """The memory of each process, counted on fake tensors: nothing is allocated, whatever the size."""
    device, spread = training_device(), micro_batches(section, processes, "pretrain")
    rows, accumulates = spread["per_device_train_batch_size"], spread["gradient_accumulation_steps"] > 1
    with torch.device("meta"):
        model = blank_model(section, tokens)
    vocabulary = model.get_input_embeddings().num_embeddings
    sizes = [4 * parameter.numel() for parameter in model.parameters()]
    of_muon = 4 * sum(p.numel() for p in hidden_matrices(model).values()) if section.optimizer == "muon" else 0
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = model.to_empty(device=device).train()
        if section.gradient_checkpointing:
            # The second name alone is known before transformers 5.2x, and warned of behind it.
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable()
        ids = torch.zeros(rows, section.block_size, dtype=torch.long, device=device)
        passes = 2 if accumulates else 1
        peak = peak_of(lambda: _backward(section, model, ids, passes), vocabulary, list(model.parameters()))
    optimizer = 2 * sum(sizes) - of_muon
    at_step = {"gradients": sum(sizes), "activations": 0, "logits": 0}
    in_pass = {name: peak[name] for name in at_step}
    return Memory(
        process=used_memory(device) if device.type == "cpu" else 0,
        text=TEXT_BYTES if device.type == "cpu" else 0,
        weights=sum(sizes),
        optimizer=optimizer,
        **max(at_step, in_pass, key=lambda parts: sum(parts.values())),
    )


def check_memory(memory: Memory, section: Pretrain, processes: int) -> None:
    """Raises `UsageError` where `memory` is more than there is, with what would fit."""
    device = training_device()
    free = free_memory(device) + used_memory(device)  # `memory` counts what is held already, as behind a probe
    needed = memory.total * (processes if device.type == "cpu" else 1)
    if needed <= free:
        return
    parts = ", ".join(f"{name} {size:.1f}" for name, size in memory.in_gib().items() if name != "total")
    rows = micro_batches(section, processes, "pretrain")["per_device_train_batch_size"]
    per_row = (memory.activations + memory.logits) / rows
    room = free / (processes if device.type == "cpu" else 1) - (memory.total - per_row * rows)
    fitting = int(room / per_row) if per_row else 0
    raise UsageError(
        f"A step takes {needed / GIB:.1f} GiB of memory, but this {device.type} has {free / GIB:.1f} GiB free.\n"
        f"In GiB, a process: {parts}.",
        f"Set pretrain.per_device_train_batch_size to {fitting} at most (it is {rows}), or gradient_checkpointing."
        if fitting >= 1
        else "Use a smaller model, gradient_checkpointing, or a machine with more memory.",
    )


def blank_model(section: Pretrain, tokens: int) -> PreTrainedModel:
    """A model of the recipe's shape with fresh weights, also where it is to go on from a saved one."""
    config: PretrainedConfig
    if section.model is not None:
        config = AutoConfig.from_pretrained(section.model)
    else:
        config = model_config(section.architecture, tokens, eos_token_id=1, pad_token_id=0)
    auto = AutoModelForMaskedLM if section.objective == "masked" else AutoModelForCausalLM
    return quickest_gelu(quickest_attention(auto.from_config(config)))


def _backward(section: Pretrain, model: PreTrainedModel, ids: torch.Tensor, passes: int) -> None:
    for _ in range(passes):
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=use_bf16(section.bf16, ids.device)):
            if section.objective == "masked":
                loss = masked_loss(model(input_ids=ids), ids, ids.numel())
            else:
                loss = model(input_ids=ids, labels=ids, use_cache=False, num_items_in_batch=ids.numel()).loss
        loss.backward()
