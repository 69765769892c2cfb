"""Memory that is counted before anything is allocated."""

import pytest
import torch

from chatpipe.errors import UsageError
from chatpipe.recipe.schema import Pretrain
from chatpipe.run.memory_estimate import Memory, blank_model, check_memory, estimate_memory, peak_of

TOKENS = 500


def section(**keys) -> Pretrain:
    shape = {"n_layer": 2, "n_head": 2, "n_embd": 32, "n_positions": 64, **keys.pop("architecture", {})}
    return Pretrain(architecture=shape, block_size=64, batch_size=8, **{"bf16": False, **keys})


def test_every_tensor_is_counted_while_it_is_alive_and_no_longer():
    def work():
        kept = torch.zeros(100)  # 400 bytes
        large = kept.expand(50, 100).contiguous()  # 20,000
        view = large[1:]  # the same memory
        del large, view
        return kept, torch.ones(10, 7)  # 280 bytes, and the last size is that of the vocabulary

    assert peak_of(work, vocabulary=7, parameters=[])["activations"] == 20_400
    assert peak_of(lambda: torch.ones(10, 7), vocabulary=7, parameters=[]) == {"logits": 280}


@pytest.mark.parametrize("family", ["gpt2", "qwen3", "modernbert"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_weights_gradients_and_optimizer_are_as_large_as_they_are(family, optimizer):
    objective = "masked" if family == "modernbert" else "causal"
    made = section(architecture={"family": family}, objective=objective, optimizer=optimizer)
    memory = estimate_memory(made, TOKENS, processes=1)
    model = blank_model(made, TOKENS)
    assert memory.weights == 4 * model.num_parameters()
    matrices = sum(p.numel() for n, p in model.named_parameters() if p.ndim == 2 and (".h." in n or ".layers." in n))
    matrices += 32 * 32 if family == "modernbert" else 0  # its prediction head's
    assert memory.optimizer == 8 * model.num_parameters() - (4 * matrices if optimizer == "muon" else 0)


def test_what_a_real_pass_allocates_is_what_was_counted():
    made = section()
    memory = estimate_memory(made, TOKENS, processes=1)
    model = blank_model(made, TOKENS).train()
    ids = torch.zeros(8, 64, dtype=torch.long)
    real = peak_of(
        lambda: model(input_ids=ids, labels=ids, use_cache=False).loss.backward(), TOKENS, list(model.parameters())
    )
    counted = memory.activations + memory.logits + memory.gradients
    assert counted == pytest.approx(real.total(), rel=0.02)
    assert memory.logits >= 8 * 64 * TOKENS * 4


@pytest.mark.filterwarnings("error::FutureWarning")
def test_rows_take_more_and_recomputing_takes_less():
    one = estimate_memory(section(per_device_train_batch_size=2), TOKENS, 1)
    four = estimate_memory(section(), TOKENS, 1)
    assert four.logits == pytest.approx(4 * one.logits, rel=0.1)
    deep = {"architecture": {"n_layer": 8}}
    stored = estimate_memory(section(**deep), TOKENS, 1)
    recomputed = estimate_memory(section(**deep, gradient_checkpointing=True), TOKENS, 1)
    assert recomputed.activations < stored.activations / 2


def test_what_a_probe_reached_above_the_tensors_of_its_steps_is_the_process():
    step = {"text": 7, "weights": 10, "optimizer": 20, "gradients": 0}
    counted = Memory(process=100, **step, activations=400, logits=50)
    probed = Memory(process=100, **step, activations=40, logits=5)  # of a tenth of the tokens
    reached = counted.reached(peak=300, counted=probed)
    assert reached.process == 300 - 75
    assert reached.total == 225 + 7 + 10 + 20 + 400 + 50
    assert counted.reached(peak=80, counted=probed) == counted


def test_what_is_too_much_is_refused_with_what_would_fit(monkeypatch):
    monkeypatch.setattr("chatpipe.run.memory_estimate.free_memory", lambda device: 2**30)
    monkeypatch.setattr("chatpipe.run.memory_estimate.used_memory", lambda device: 0)
    none = {"process": 0, "text": 0, "gradients": 0}
    fits = Memory(**none, weights=2**20, optimizer=2**21, activations=2**29, logits=2**29 - 2**22)
    check_memory(fits, section(), 1)
    too_much = Memory(**none, weights=2**20, optimizer=2**21, activations=2**30, logits=2**30)
    with pytest.raises(UsageError) as caught:
        check_memory(too_much, section(), 1)
    assert caught.value.message.startswith("A step takes 2.0 GiB of memory")
    assert "pretrain.per_device_train_batch_size to 3 at most (it is 8)" in caught.value.hint
    with pytest.raises(UsageError):
        check_memory(fits, section(), 2)  # two processes share a CPU's memory


def test_what_torch_keeps_of_a_gpu_behind_the_probe_is_there_for_the_run(monkeypatch):
    monkeypatch.setattr("chatpipe.run.memory_estimate.training_device", lambda: torch.device("cuda"))
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (2**30, 4 * 2**30))
    monkeypatch.setattr("torch.cuda.memory_reserved", lambda device: 2 * 2**30)
    none = {"process": 0, "text": 0, "weights": 0, "optimizer": 0, "gradients": 0, "logits": 0}
    check_memory(Memory(**none, activations=3 * 2**30), section(), 1)
    with pytest.raises(UsageError, match=r"takes 3\.5 GiB of memory, but this cuda has 3\.0 GiB free"):
        check_memory(Memory(**none, activations=7 * 2**29), section(), 1)
